"""Waiting before the next try."""

from __future__ import annotations

from itertools import islice
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickvault.backoff import backoff


class Highest(Random):
    """A random source at the top of every range."""

    def uniform(self, a: float, b: float) -> float:
        return b


@pytest.mark.parametrize(
    ("first_s", "cap_s", "ceilings"),
    [
        (1, 30, [1, 2, 4, 8, 16, 30, 30, 30]),
        (5, 12, [5, 10, 12, 12]),
        (50, 12, [12, 12, 12]),
    ],
)
def test_ceiling_doubles_up_to_the_cap(first_s: float, cap_s: float, ceilings: list[float]) -> None:
    """The longest possible wait doubles from the first to the cap, and stays there."""
    assert list(islice(backoff(Highest(), first_s=first_s, cap_s=cap_s), len(ceilings))) == ceilings


@given(st.integers())
def test_jitter_is_over_the_upper_half(seed: int) -> None:
    """Every wait lies between half its ceiling and its ceiling: none comes back at once."""
    waits = islice(backoff(Random(seed), first_s=1, cap_s=30), 12)
    ceilings = islice(backoff(Highest(), first_s=1, cap_s=30), 12)
    assert all(ceiling / 2 <= wait <= ceiling for wait, ceiling in zip(waits, ceilings, strict=True))


def test_back_off_goes_on_for_ever() -> None:
    """The ten-thousandth wait is still there, and still within the cap."""
    assert 15 <= next(islice(backoff(Random(1), first_s=1, cap_s=30), 10_000, None)) <= 30


def test_waits_differ_between_recorders() -> None:
    """Two recorders thrown off at one moment do not come back at one moment."""
    one, other = (list(islice(backoff(Random(seed), first_s=1, cap_s=30), 8)) for seed in (1, 2))
    assert one != other
