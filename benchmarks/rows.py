"""One line of the benchmarks' table, and how rates are compared: in turns, so that a noisy machine is noisy to all."""

from __future__ import annotations

import resource
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Row", "alternate", "children_s", "ratio", "there_and_back"]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure and what it is held against.

    Attributes:
        what: the question, in the table's words.
        figure: as measured, with its unit.
        base: what it is compared with, as measured in the same run.
        ratio: figure by base; for a latency, or a size, the figure itself.
        target: that it should reach; None where nothing is promised.
        at_most: the target is an upper bound.
    """

    what: str
    figure: str
    base: str
    ratio: float
    target: float | None = None
    at_most: bool = False

    @property
    def passes(self) -> bool | None:
        """Whether the target is reached; None without one."""
        if self.target is None:
            return None
        return self.ratio <= self.target if self.at_most else self.ratio >= self.target


def alternate(
    work: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Do each piece of work once a round, one after the other; return the seconds of each, by round."""
    spent: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, do in work.items():
            begun_s = clock()
            do()
            if number:  # the first round warms up
                spent[name].append(clock() - begun_s)
    return spent


def children_s() -> float:
    """Return the CPU seconds of all processes that we started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def there_and_back(work: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Do each piece of work twice a round, in one order and back again, so that what drifts falls on all alike.

    Args:
        work: says itself how many seconds it took.
        rounds: each gives one figure a name, the mean of both.
    """
    spent: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        there = {name: do() for name, do in work.items()}
        back = {name: do() for name, do in reversed(work.items())}
        for name, of in spent.items():
            of.append((there[name] + back[name]) / 2)
    return spent


def ratio(base_s: list[float], work_s: list[float]) -> float:
    """Return how fast the work is against the base: the median of the rounds' ratios."""
    return statistics.median(base / work for base, work in zip(base_s, work_s, strict=True))
