"""Waiting before the next attempt, and the bound on authorize calls."""

from __future__ import annotations

from itertools import islice
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickvault.brokers.upstox.plan import RateLimit, backoff


class Highest(Random):
    """A random source at the top of every range."""

    def uniform(self, a: float, b: float) -> float:
        return b


@pytest.mark.parametrize(
    ("bounds", "ceilings"),
    [
        ({}, [1, 2, 4, 8, 16, 30, 30, 30]),
        ({"first_s": 5, "cap_s": 12}, [5, 10, 12, 12]),
        ({"first_s": 50, "cap_s": 12}, [12, 12, 12]),
    ],
)
def test_ceiling_doubles_up_to_the_cap(bounds: dict[str, float], ceilings: list[float]) -> None:
    """The longest possible wait doubles from the first to the cap, and stays there."""
    assert list(islice(backoff(Highest(), **bounds), len(ceilings))) == ceilings


@given(st.integers())
def test_jitter_is_full(seed: int) -> None:
    """Every wait lies between nothing and its ceiling."""
    waits = list(islice(backoff(Random(seed)), 12))
    assert all(0 <= wait <= ceiling for wait, ceiling in zip(waits, islice(backoff(Highest()), 12), strict=True))


def test_back_off_goes_on_for_ever() -> None:
    """The ten-thousandth wait is still there, and still within the cap."""
    assert 0 <= next(islice(backoff(Random(1)), 10_000, None)) <= 30


def test_waits_differ_between_recorders() -> None:
    """Two recorders thrown off at one moment do not come back at one moment."""
    assert list(islice(backoff(Random(1)), 8)) != list(islice(backoff(Random(2)), 8))


@given(st.lists(st.floats(0, 45), min_size=1, max_size=60), st.floats(0, 1e6))
def test_never_more_than_six_calls_in_a_minute(pauses_s: list[float], start_s: float) -> None:
    """Whenever calls are wanted, no window of 60 s holds a seventh."""
    limit, now_s, calls_s = RateLimit(), start_s, []
    for pause_s in pauses_s:
        now_s += pause_s
        now_s += limit.delay_s(now_s)
        limit.note(now_s)
        calls_s.append(now_s)
    windows = zip(calls_s, calls_s[6:], strict=False)
    assert all(seventh_s - first_s >= 60 - 1e-6 for first_s, seventh_s in windows)


def test_calls_within_the_limit_are_not_delayed() -> None:
    """Six calls go at once; the seventh waits until the first is a minute old."""
    limit = RateLimit()
    for now_s in range(6):
        assert limit.delay_s(now_s) == 0
        limit.note(now_s)
    assert limit.delay_s(10) == 50
    assert limit.delay_s(60) == 0
