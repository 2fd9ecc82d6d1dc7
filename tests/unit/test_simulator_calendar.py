"""When the simulated exchanges trade, and what their segments' statuses are."""

from __future__ import annotations

import datetime as dt
import itertools

import pytest

from tickvault.errors import ConfigurationError
from tickvault.simulator.calendar import (
    ALWAYS_OPEN,
    EXCHANGES,
    Calendar,
    Holiday,
    Hours,
    epoch_ms,
    ist_date,
    parse_calendar,
    parse_time_s,
)
from tickvault.simulator.frames import SEGMENTS
from tickvault.simulator.timetable import EXCHANGE_OF, SEGMENT_OF, following, standing, timetable

MONDAY = dt.date(2026, 10, 5)
SUNDAY = dt.date(2026, 11, 8)


def at(day: dt.date, time: str) -> int:
    return epoch_ms(day, parse_time_s(time, "test"))


def clock(ms: int) -> str:
    return dt.datetime.fromtimestamp(ms / 1000, dt.timezone(dt.timedelta(hours=5, minutes=30))).strftime("%H:%M")


def test_times_are_in_india() -> None:
    """00:00 IST is 18:30 UTC of the day before, and belongs to the day."""
    assert epoch_ms(MONDAY, 0) == dt.datetime(2026, 10, 4, 18, 30, tzinfo=dt.UTC).timestamp() * 1000
    assert ist_date(epoch_ms(MONDAY, 0)) == MONDAY
    assert ist_date(epoch_ms(MONDAY, 0) - 1) == MONDAY - dt.timedelta(days=1)


def test_every_segment_has_an_exchange_and_every_exchange_a_segment() -> None:
    """The eleven segments of market_info, the eight exchanges of the status endpoint."""
    assert set(EXCHANGE_OF) == set(SEGMENTS)
    assert set(SEGMENT_OF) == set(EXCHANGES)


def test_a_cash_day_has_the_documented_phases() -> None:
    """Pre-open from 09:00, trading from 09:15, the closing auction from 15:15, all over at 16:00."""
    day = timetable(Calendar(), MONDAY, 1)
    told = [(clock(c.at_ms), c.scope, c.status) for c in day if c.segment == "NSE_EQ"]
    random = [row for row in told if row[2] in {"PRE_OPEN_END", "CAS_STOP"}]
    assert [row for row in told if row not in random] == [
        ("00:00", "segment", "CLOSING_END"),
        ("09:00", "segment", "PRE_OPEN_START"),
        ("09:00", "pre_open", "PRE_OPEN_START"),
        ("09:05", "pre_open", "PRE_OPEN_M_END"),
        ("09:15", "segment", "NORMAL_OPEN"),
        ("15:15", "cas", "CTS_CLOSE"),
        ("15:20", "cas", "CAS_LM_START"),
        ("15:25", "cas", "CAS_M_STOP"),
        ("15:30", "segment", "NORMAL_CLOSE"),
        ("15:30", "cas", "NORMAL_CLOSE"),
        ("15:40", "segment", "CLOSING_START"),
        ("16:00", "segment", "CLOSING_END"),
    ]
    assert {row[0] for row in random if row[2] == "PRE_OPEN_END"} <= {"09:08", "09:09", "09:10"}
    assert {row[0] for row in random if row[2] == "CAS_STOP"} <= {"15:28", "15:29", "15:30"}
    derivatives = [(clock(c.at_ms), c.status) for c in day if c.segment == "NSE_FO"]
    assert derivatives == [("00:00", "NORMAL_CLOSE"), ("09:15", "NORMAL_OPEN"), ("15:40", "NORMAL_CLOSE")]


def test_random_moments_follow_the_seed_and_the_day() -> None:
    """The same again for the same, another for another."""
    assert timetable(Calendar(), MONDAY, 1) == timetable(Calendar(), MONDAY, 1)
    ends = {
        next(c.at_ms for c in timetable(Calendar(), day, seed) if c.status == "PRE_OPEN_END") - epoch_ms(day, 0)
        for day, seed in itertools.product((MONDAY, MONDAY + dt.timedelta(days=1)), (1, 2))
    }
    assert len(ends) == 4


@pytest.mark.parametrize(
    ("time", "status", "scopes"),
    [
        ("08:00", "CLOSING_END", {"segment"}),
        ("09:02", "PRE_OPEN_START", {"segment", "pre_open"}),
        ("12:00", "NORMAL_OPEN", {"segment", "pre_open"}),
        ("15:21", "NORMAL_OPEN", {"segment", "pre_open", "cas"}),
        ("15:50", "CLOSING_START", {"segment", "pre_open", "cas"}),
        ("20:00", "CLOSING_END", {"segment", "pre_open", "cas"}),
    ],
)
def test_what_stands_at_a_moment(time: str, status: str, scopes: set[str]) -> None:
    """The segment's status, and the auctions' of this day only."""
    held = standing(Calendar(), at(MONDAY, time), 1)
    assert held["segment", "NSE_EQ"][0] == status
    assert {scope for scope, segment in held if segment == "NSE_EQ"} == scopes
    assert {segment for scope, segment in held if scope == "segment"} == set(SEGMENTS)


def test_on_a_weekend_the_status_is_since_friday() -> None:
    """Closed, and when that was."""
    status, since_ms = standing(Calendar(), at(dt.date(2026, 10, 4), "12:00"), 1)["segment", "NSE_EQ"]
    assert (status, since_ms) == ("CLOSING_END", at(dt.date(2026, 10, 2), "16:00"))


def test_what_follows_goes_on_over_days() -> None:
    """In order, beginning after the moment; a closed day adds midnight only."""
    friday = dt.date(2026, 10, 2)
    rows = itertools.islice(following(Calendar(), at(friday, "15:45"), 1), 60)
    told = [(ist_date(c.at_ms), clock(c.at_ms), c.status) for c in rows if c.segment == "NSE_EQ"]
    assert told[:5] == [
        (friday, "16:00", "CLOSING_END"),
        (dt.date(2026, 10, 3), "00:00", "CLOSING_END"),
        (dt.date(2026, 10, 4), "00:00", "CLOSING_END"),
        (MONDAY, "00:00", "CLOSING_END"),
        (MONDAY, "09:00", "PRE_OPEN_START"),
    ]


def test_an_always_open_exchange_never_closes() -> None:
    """On any day, over midnight too."""
    rows = itertools.islice(following(ALWAYS_OPEN, at(SUNDAY, "12:00"), 1), 40)
    assert {c.status for c in rows} == {"NORMAL_OPEN"}
    assert set(standing(ALWAYS_OPEN, at(SUNDAY, "03:00"), 1).values()) == {
        ("NORMAL_OPEN", standing(ALWAYS_OPEN, at(SUNDAY, "03:00"), 1)["segment", "NSE_EQ"][1])
    }


def test_holidays_close_open_and_leave_alone() -> None:
    """Closed exchanges are, open ones have their hours on a Sunday too, the rest are as on any such day."""
    evening = Hours(61_200, 84_600)
    trading = Holiday(day=MONDAY, closed=("NSE", "NFO"), open={"MCX": evening})
    muhurat = Holiday(day=SUNDAY, kind="SPECIAL_TIMING", open={"NSE": Hours(64_800, 68_400)})
    settlement = Holiday(day=dt.date(2026, 10, 6), kind="SETTLEMENT_HOLIDAY")
    calendar = Calendar(holidays=(trading, muhurat, settlement))
    monday = calendar.sessions(MONDAY)
    assert "NSE" not in monday
    assert monday["MCX"] == evening
    assert monday["BSE"] == Calendar().hours["BSE"]
    assert calendar.sessions(SUNDAY) == {"NSE": Hours(64_800, 68_400)}
    assert calendar.sessions(dt.date(2026, 10, 6)) == Calendar().hours


def test_a_day_can_be_squeezed() -> None:
    """09:00 to 16:00 in seven seconds from noon: every phase where it belongs."""
    calendar = Calendar().squeezed(43_200.0, 7.0)
    told = {(c.scope, c.status): c.at_ms - at(MONDAY, "12:00") for c in timetable(calendar, MONDAY, 1)
            if c.segment == "NSE_EQ"}  # fmt: skip
    assert told["segment", "PRE_OPEN_START"] == 0
    assert told["segment", "NORMAL_OPEN"] == 250
    assert told["cas", "CTS_CLOSE"] == 6_250
    assert told["segment", "CLOSING_END"] == 7_000
    assert 140 <= told["segment", "PRE_OPEN_END"] <= 200


def test_a_calendar_is_read_from_a_document() -> None:
    """What is not named is as at the exchange; dates may be relative to the start."""
    calendar = parse_calendar(
        {
            "hours": {"NSE": ["10:00", "10:30:30"]},
            "phases": {"pre_open_s": 60, "cas_stop_s": [30, 0]},
            "weekend": [7],
            "holidays": [
                {"date": "today+1", "description": "Diwali", "closed": ["NSE"]},
                {"date": dt.date(2026, 11, 8), "type": "SPECIAL_TIMING", "open": {"NSE": ["18:00", "19:00"]}},
            ],
        }
    ).resolved(MONDAY)
    assert calendar.hours["NSE"] == Hours(36_000, 37_830)
    assert calendar.hours["BSE"] == Calendar().hours["BSE"]
    assert calendar.phases is not None
    assert (calendar.phases.pre_open_s, calendar.phases.cas_stop_s) == (60, (30, 0))
    assert [one.day for one in calendar.holidays] == [MONDAY + dt.timedelta(days=1), SUNDAY]
    assert parse_calendar({}) == Calendar()
    assert parse_calendar({"phases": False}).phases is None


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], r"calendar: expected a table"),
        ({"ours": {}}, r"unknown field 'ours'; expected hours, phases"),
        ({"hours": {"NSX": ["09:00", "10:00"]}}, r"calendar.hours: unknown field 'NSX'"),
        ({"hours": {"NSE": "09:00"}}, r"calendar.hours.NSE: expected \[start, end\]"),
        ({"hours": {"NSE": ["9", "10:00"]}}, r"calendar.hours.NSE: expected a time of day .* got '9'"),
        ({"hours": {"NSE": ["10:00", "09:00"]}}, r"calendar.hours.NSE: expected a start before an end"),
        ({"hours": {"NSE": ["10:00", "24:01"]}}, r"got '24:01'"),
        ({"weekend": [8]}, r"calendar.weekend: expected a list of ISO weekdays"),
        ({"phases": {"pre_open_s": "1"}}, r"calendar.phases.pre_open_s: expected seconds, got '1'"),
        ({"phases": {"cas_stop_s": [1, 2, 3]}}, r"cas_stop_s: expected seconds, or a pair"),
        ({"holidays": [{}]}, r"calendar.holidays\[1\]: date is missing"),
        ({"holidays": [{"date": "tomorrow"}]}, r"holidays\[1\].date: expected a date .* got 'tomorrow'"),
        ({"holidays": [{"date": "today", "type": "FEAST"}]}, r"holidays\[1\].type: expected one of"),
        ({"holidays": [{"date": "today", "closed": ["X"]}]}, r"holidays\[1\].closed: expected a list of"),
    ],
)
def test_mistakes_are_named(document: object, message: str) -> None:
    """With the field, what was expected and what was got."""
    with pytest.raises(ConfigurationError, match=message):
        parse_calendar(document)
