"""When a day's trading is over."""

from __future__ import annotations

import datetime as dt

import pytest

from tickvault.brokers.upstox.closing import is_over
from tickvault.brokers.upstox.phases import Calendar, Hours, Phase

IST = dt.timezone(dt.timedelta(hours=5, minutes=30))
MONDAY = dt.date(2026, 11, 23)


def at(clock: str, date: dt.date = MONDAY) -> int:
    return int(dt.datetime.combine(date, dt.time.fromisoformat(clock), IST).timestamp()) * 10**9


KNOWN = Calendar(
    timings={
        MONDAY: {
            "NSE": Hours(at("09:15"), at("15:30")),
            "MCX": Hours(at("09:00"), at("23:30")),
        }
    }
)


@pytest.mark.parametrize(
    ("segments", "clock", "phases", "over"),
    [
        (("NSE_EQ",), "08:00", {}, False),
        (("NSE_EQ",), "15:29", {"NSE_EQ": Phase.CLOSED}, False),
        (("NSE_EQ",), "15:30", {}, True),
        (("NSE_EQ",), "15:30", {"NSE_EQ": Phase.CLOSED}, True),
        (("NSE_EQ",), "15:59", {"NSE_EQ": Phase.QUIET}, False),
        (("NSE_EQ",), "15:59", {"NSE_EQ": Phase.CLOSING}, False),
        (("NSE_EQ",), "16:30", {"NSE_EQ": Phase.CLOSING}, True),
        (("NSE_EQ", "MCX_FO"), "16:30", {}, False),
        (("NSE_EQ", "MCX_FO"), "23:30", {}, True),
        (("NSE_EQ", "BSE_EQ"), "23:59", {}, False),
        ((), "16:30", {}, False),
        ((), "23:30", {}, True),
    ],
)
def test_the_last_segment_decides(segments: tuple[str, ...], clock: str, phases: dict[str, Phase], over: bool) -> None:
    """By its hours; while its status says that it is still at it, not yet; of unknown hours, never; while nobody knows which, all."""
    assert is_over(segments, KNOWN, phases, at(clock)) is over


def test_a_day_without_trading_is_over_from_its_beginning() -> None:
    """Unless the feed says otherwise; without a calendar nothing is known."""
    sunday = at("10:00", MONDAY - dt.timedelta(days=1))
    assert is_over(("NSE_EQ",), KNOWN, {"NSE_EQ": Phase.CLOSED}, sunday)
    assert not is_over(("NSE_EQ",), KNOWN, {"NSE_EQ": Phase.OPEN}, sunday)
    assert not is_over((), Calendar(), {}, sunday)
