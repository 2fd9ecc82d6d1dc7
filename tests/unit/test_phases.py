"""When a segment trades: calendar and feed, and which of them is believed."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from tickvault.brokers.upstox.phases import Calendar, Phase, calendar_of, phase

IST = dt.timezone(dt.timedelta(hours=5, minutes=30))
MONDAY = dt.date(2026, 11, 23)
SUNDAY = dt.date(2026, 11, 22)
DIWALI = dt.date(2026, 11, 10)  # a Tuesday


def at(date: dt.date, clock: str) -> int:
    return int(dt.datetime.combine(date, dt.time.fromisoformat(clock), IST).timestamp()) * 10**9


def row(date: dt.date, exchange: str, begin: str, end: str) -> dict[str, Any]:
    return {"exchange": exchange, "start_time": at(date, begin) // 10**6, "end_time": at(date, end) // 10**6}


def usual(date: dt.date) -> list[dict[str, Any]]:
    return [row(date, "NSE", "09:15", "15:30"), row(date, "NFO", "09:15", "15:40"), row(date, "MCX", "09:00", "23:30")]


def holiday(date: dt.date, kind: str, closed: tuple[str, ...] = (), opened: tuple[Any, ...] = ()) -> dict[str, Any]:
    return {
        "date": date.isoformat(),
        "holiday_type": kind,
        "description": "x",
        "closed_exchanges": list(closed),
        "open_exchanges": list(opened),
    }


KNOWN = calendar_of([], {MONDAY.isoformat(): usual(MONDAY)})


@pytest.mark.parametrize(
    ("segment", "status", "expected"),
    [
        ("NSE_EQ", "PRE_OPEN_START", Phase.PRE_OPEN),
        ("NSE_EQ", "PRE_OPEN_M_END", Phase.PRE_OPEN),
        ("NSE_EQ", "PRE_OPEN_END", Phase.QUIET),
        ("NSE_EQ", "NORMAL_OPEN", Phase.OPEN),
        ("NSE_EQ", "CTS_CLOSE", Phase.QUIET),
        ("NSE_EQ", "CAS_LM_START", Phase.CLOSING),
        ("NSE_EQ", "CAS_M_STOP", Phase.CLOSING),
        ("NSE_EQ", "CAS_STOP", Phase.QUIET),
        ("NSE_EQ", "NORMAL_CLOSE", Phase.QUIET),
        ("NSE_EQ", "CLOSING_START", Phase.CLOSING),
        ("NSE_EQ", "CLOSING_END", Phase.CLOSED),
        ("NSE_FO", "NORMAL_CLOSE", Phase.CLOSED),
        ("NSE_EQ", "17", Phase.UNKNOWN),
    ],
)
def test_a_status_of_now_is_believed(segment: str, status: str, expected: Phase) -> None:
    """Equities end with CLOSING_END, derivatives with NORMAL_CLOSE; what is new is unknown, not closed."""
    assert phase(segment, status, KNOWN, at(MONDAY, "12:00")) is expected


@pytest.mark.parametrize(
    ("status", "said", "now", "expected"),
    [
        # Joined on Sunday, told Friday's end; on Monday nothing more has been heard.
        ("CLOSING_END", at(SUNDAY, "18:00"), at(MONDAY, "10:00"), Phase.OPEN),
        ("CLOSING_END", at(SUNDAY, "18:00"), at(SUNDAY, "18:01"), Phase.CLOSED),
        # Joined before the opening: what was true then does not outlive it.
        ("CLOSING_END", at(MONDAY, "08:00"), at(MONDAY, "08:59"), Phase.CLOSED),
        ("CLOSING_END", at(MONDAY, "08:00"), at(MONDAY, "09:15"), Phase.OPEN),
        ("PRE_OPEN_END", at(MONDAY, "09:09"), at(MONDAY, "09:14"), Phase.QUIET),
        ("PRE_OPEN_END", at(MONDAY, "09:09"), at(MONDAY, "09:16"), Phase.OPEN),
        # A halt within the day, and a day that is made longer, are news.
        ("NORMAL_CLOSE", at(MONDAY, "11:00"), at(MONDAY, "11:30"), Phase.QUIET),
        ("NORMAL_OPEN", at(MONDAY, "09:15"), at(MONDAY, "16:30"), Phase.OPEN),
        # The closing session is to come, but not for ever, and not on a day without trading.
        ("NORMAL_CLOSE", at(MONDAY, "15:30"), at(MONDAY, "16:29"), Phase.QUIET),
        ("NORMAL_CLOSE", at(MONDAY, "15:30"), at(MONDAY, "16:30"), Phase.CLOSED),
        ("NORMAL_CLOSE", at(SUNDAY, "12:00"), at(SUNDAY, "12:01"), Phase.CLOSED),
        # Still open, from the day before.
        ("NORMAL_OPEN", at(SUNDAY, "12:00"), at(MONDAY, "02:00"), Phase.CLOSED),
    ],
)
def test_a_status_left_over_is_not_believed(status: str, said: int, now: int, expected: Phase) -> None:
    """It counts on its own date, and not over the opening."""
    assert phase("NSE_EQ", status, KNOWN, now, said_ns=said) is expected


def test_without_calendar_nothing_is_guessed() -> None:
    """No status that counts and no hours: unknown."""
    assert phase("NSE_EQ", None, Calendar(), at(MONDAY, "10:00")) is Phase.UNKNOWN
    assert phase("GLOBAL_INDEX", None, KNOWN, at(MONDAY, "10:00")) is Phase.UNKNOWN
    assert phase("NSE_EQ", "NORMAL_OPEN", Calendar(), at(MONDAY, "10:00"), said_ns=at(SUNDAY, "10:00")) is Phase.UNKNOWN
    assert phase("NSE_EQ", None, KNOWN, at(MONDAY, "10:00")) is Phase.OPEN


def test_a_trading_holiday_is_closed_but_for_the_exchanges_that_open() -> None:
    """MCX often has its evening; the others are closed."""
    evening = row(DIWALI, "MCX", "17:00", "23:30")
    one = calendar_of(
        [holiday(DIWALI, "TRADING_HOLIDAY", ("NSE", "NFO"), (evening,))], {MONDAY.isoformat(): usual(MONDAY)}
    )
    assert one.hours("NSE_EQ", DIWALI) is None
    hours = one.hours("MCX_FO", DIWALI)
    assert hours is not None
    assert hours.open_ns == at(DIWALI, "17:00")


def test_a_settlement_holiday_trades() -> None:
    """Banks are closed, exchanges are not."""
    one = calendar_of([holiday(DIWALI, "SETTLEMENT_HOLIDAY", ("NSE",))], {MONDAY.isoformat(): usual(MONDAY)})
    hours = one.hours("NSE_EQ", DIWALI)
    assert hours is not None
    assert (hours.open_ns, hours.close_ns) == (at(DIWALI, "09:15"), at(DIWALI, "15:30"))


def test_special_timing_opens_a_sunday() -> None:
    """The festive hour: traded, although it is a weekend; and it is nobody's usual day."""
    muhurat = dt.date(2026, 11, 8)
    hour = row(muhurat, "NSE", "18:00", "19:00")
    one = calendar_of([holiday(muhurat, "SPECIAL_TIMING", (), (hour,))], {})
    assert phase("NSE_EQ", None, one, at(muhurat, "18:30")) is Phase.OPEN
    one = calendar_of([holiday(muhurat, "SPECIAL_TIMING", (), (hour,))], {MONDAY.isoformat(): usual(MONDAY)})
    assert phase("NSE_EQ", None, one, at(muhurat, "18:30")) is Phase.OPEN
    assert one.hours("NSE_EQ", muhurat + dt.timedelta(days=1)) is not None
    assert one.hours("NSE_FO", muhurat) is None


def test_hours_of_a_holiday_are_nobodys_usual_hours() -> None:
    """The nearest ordinary day is taken."""
    evening = row(DIWALI, "MCX", "17:00", "23:30")
    one = calendar_of(
        [holiday(DIWALI, "TRADING_HOLIDAY", (), (evening,))],
        {DIWALI.isoformat(): [evening], MONDAY.isoformat(): usual(MONDAY)},
    )
    hours = one.hours("MCX_FO", DIWALI + dt.timedelta(days=1))
    assert hours is not None
    assert hours.open_ns == at(DIWALI + dt.timedelta(days=1), "09:00")


def test_a_day_of_which_the_broker_lists_nothing_is_closed() -> None:
    """Its own list wins over the usual hours."""
    one = calendar_of([], {MONDAY.isoformat(): usual(MONDAY), DIWALI.isoformat(): []})
    assert one.hours("NSE_EQ", DIWALI) is None
    assert not one.trades(DIWALI)
    assert one.trades(MONDAY)
    assert not one.trades(SUNDAY)


def test_sessions_begin_with_the_pre_open() -> None:
    """Auctions of equities and their futures are data; commodities have none. Segments without hours are left out."""
    sessions = KNOWN.sessions(SUNDAY, MONDAY)
    assert sessions.windows["NSE_EQ"] == ((at(MONDAY, "09:00"), at(MONDAY, "15:30")),)
    assert sessions.windows["MCX_FO"] == ((at(MONDAY, "09:00"), at(MONDAY, "23:30")),)
    assert "NSE_COM" not in sessions.windows
    assert (sessions.from_ns, sessions.to_ns) == (at(SUNDAY, "00:00"), at(MONDAY + dt.timedelta(days=1), "00:00"))


@pytest.mark.parametrize(("begin", "end"), [("15:30", "09:15"), ("09:15", "09:15")])
def test_hours_that_cannot_be_are_refused(begin: str, end: str) -> None:
    """An answer in another unit, or turned round, must not close a market."""
    with pytest.raises(ValueError, match="expected hours"):
        calendar_of([], {MONDAY.isoformat(): [row(MONDAY, "NSE", begin, end)]})
