"""When a segment trades: what the exchange's calendar plans, and what the feed says. Pure.

The feed's word (`market_info`) wins while it is fresh; the calendar decides when nothing was said, and for days on which
no recorder ran. Hours are never written down here: they come from the broker's holidays and timings.

Statuses are kept as the broker spells them. A new connection is told the state of the day before, whatever the day:
on a Sunday `NSE_EQ` is at CLOSING_END and `NSE_FO` at NORMAL_CLOSE. So a status counts on the IST date on which it was
said, and one from before the opening does not count after it.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from tickvault.ledger import Sessions
from tickvault.model import IST, segment_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["CLOSING_NS", "Calendar", "Hours", "Phase", "calendar_of", "exchange_of", "phase"]

_NS_PER_MS: Final = 1_000_000
_NS_PER_S: Final = 1_000_000_000
_DAY_NS: Final = 86_400 * _NS_PER_S  # every day: India has no summer time
_SATURDAY: Final = 5
# The broker's timings begin with continuous trading. Auctions run before it from 09:00 to 09:15 in equities (order entry
# ends at a random second before 09:10), and from 09:00 to 09:08 in their futures. Source: exchange circulars, 2025.
_PRE_OPEN_NS: Final = 15 * 60 * _NS_PER_S
_WITH_PRE_OPEN: Final = frozenset({"NSE", "BSE", "NFO"})

# Segment of a key → exchange of the calendar. Source: Upstox documentation, market timings.
_EXCHANGES: Final = {
    "NSE_EQ": "NSE",
    "NSE_INDEX": "NSE",
    "NSE_FO": "NFO",
    "NSE_COM": "NSCOM",
    "NCD_FO": "CDS",
    "BSE_EQ": "BSE",
    "BSE_INDEX": "BSE",
    "BSE_FO": "BFO",
    "BCD_FO": "BCD",
    "MCX_FO": "MCX",
    "MCX_INDEX": "MCX",
}


class Phase(StrEnum):
    """What a segment is doing."""

    CLOSED = "closed"
    PRE_OPEN = "pre_open"
    QUIET = "quiet"  # between the pre-open's end and the open: nobody sends anything, and that is normal
    OPEN = "open"
    CLOSING = "closing"
    UNKNOWN = "unknown"


# Status on the wire → phase, in all three of its scopes: segment, closing auction (cas), pre-open.
# NSE_EQ and BSE_EQ end their day with CLOSING_END, the derivatives with NORMAL_CLOSE. Source: measured by third parties,
# September 2026.
_OF_STATUS: Final = {
    "PRE_OPEN_START": Phase.PRE_OPEN,
    "PRE_OPEN_M_END": Phase.PRE_OPEN,  # no further orders at market price; the auction goes on
    "PRE_OPEN_END": Phase.QUIET,
    "NORMAL_OPEN": Phase.OPEN,
    "NORMAL_CLOSE": Phase.CLOSED,
    "CLOSING_START": Phase.CLOSING,
    "CLOSING_END": Phase.CLOSED,
    "CTS_CLOSE": Phase.QUIET,  # continuous trading has ended for stocks with a closing auction
    "CAS_LM_START": Phase.CLOSING,
    "CAS_M_STOP": Phase.CLOSING,
    "CAS_STOP": Phase.QUIET,
}
# The closing session of equities ends 45 min behind their hours; an end that nobody told is not waited for longer.
CLOSING_NS: Final = 3600 * _NS_PER_S
_EQUITY: Final = frozenset({"NSE_EQ", "BSE_EQ", "NSE_INDEX", "BSE_INDEX"})


@dataclass(frozen=True, slots=True)
class Hours:
    """When an exchange trades on one date, in ns of UTC; the end is exclusive."""

    open_ns: int
    close_ns: int

    def __contains__(self, at_ns: int) -> bool:
        return self.open_ns <= at_ns < self.close_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Calendar:
    """What is known of trading days.

    Attributes:
        timings: date → exchange → hours; a date that is there without an exchange: closed on that date.
        closed: date → exchanges closed for a trading holiday; settlement holidays trade.
        special: date → exchange → hours that a holiday list gives (an evening session, a special Saturday).
    """

    timings: Mapping[dt.date, Mapping[str, Hours]] = field(default_factory=dict)
    closed: Mapping[dt.date, frozenset[str]] = field(default_factory=dict)
    special: Mapping[dt.date, Mapping[str, Hours]] = field(default_factory=dict)

    def hours(self, segment: str, date: dt.date) -> Hours | None:
        """Return when a segment trades on a date, None if it does not, or nothing is known of its exchange."""
        exchange = exchange_of(segment)
        if exchange is None:
            return None
        if date in self.timings:
            return self.timings[date].get(exchange)
        if exchange in self.special.get(date, {}):
            return self.special[date][exchange]
        if exchange in self.closed.get(date, ()) or date.weekday() >= _SATURDAY:
            return None
        return self._usual(exchange, date)

    @property
    def segments(self) -> tuple[str, ...]:
        """The segments whose hours are known."""
        return tuple(segment for segment in _EXCHANGES if self.knows(segment))

    def knows(self, segment: str) -> bool:
        """Whether anything is known of a segment's hours."""
        exchange = exchange_of(segment)
        return exchange is not None and self._nearest(exchange, None) is not None

    def trades(self, date: dt.date) -> bool:
        """Whether any exchange is expected to trade on a date; taken for granted where nothing says otherwise."""
        if date in self.timings or date in self.special:
            return bool(self.timings.get(date, self.special.get(date)))
        return date.weekday() < _SATURDAY

    def sessions(self, first: dt.date, last: dt.date) -> Sessions:
        """Return when each segment whose hours are known trades from the first date to the last, pre-open included."""
        dates = [first + dt.timedelta(days=number) for number in range((last - first).days + 1)]
        windows = {}
        for segment, exchange in _EXCHANGES.items():
            if self.knows(segment):
                early_ns = _PRE_OPEN_NS if exchange in _WITH_PRE_OPEN else 0
                of_dates = [hours for date in dates if (hours := self.hours(segment, date)) is not None]
                windows[segment] = tuple((hours.open_ns - early_ns, hours.close_ns) for hours in of_dates)
        return Sessions(from_ns=_midnight_ns(first), to_ns=_midnight_ns(last) + _DAY_NS, windows=windows)

    def _usual(self, exchange: str, date: dt.date) -> Hours | None:
        """Return the hours of the nearest ordinary day whose timings are known, moved to a date."""
        nearest = self._nearest(exchange, date)
        if nearest is None:
            return None
        moved_ns = (date - nearest).days * _DAY_NS
        hours = self.timings[nearest][exchange]
        return Hours(hours.open_ns + moved_ns, hours.close_ns + moved_ns)

    def _nearest(self, exchange: str, date: dt.date | None) -> dt.date | None:
        """Return the ordinary day nearest to a date (None: any) whose timings are known; not a holiday's evening."""
        ordinary = [
            day
            for day, of_day in self.timings.items()
            if exchange in of_day and day.weekday() < _SATURDAY and day not in self.special
        ]
        return min(ordinary, key=lambda day: (abs((day - (date or day)).days), day), default=None)


def exchange_of(segment: str) -> str | None:
    """Return the exchange whose calendar a segment keeps; takes an instrument key too."""
    return _EXCHANGES.get(segment_of(segment))


def phase(segment: str, status: str | None, calendar: Calendar, at_ns: int, *, said_ns: int | None = None) -> Phase:
    """Return what a segment is doing.

    Args:
        segment: e.g. `NSE_EQ`.
        status: its last status on the wire, verbatim, of any scope; None before the first, and when the connection is
            gone that told it.
        calendar: asked when no status counts.
        at_ns: UTC wall clock in ns.
        said_ns: when the status was received; None: just now.
    """
    today = _date(at_ns)
    hours = calendar.hours(segment, today)
    if status is not None and _counts(at_ns if said_ns is None else said_ns, at_ns, hours):
        if (
            status == "NORMAL_CLOSE"
            and segment_of(segment) in _EQUITY
            and not _is_done(segment, hours, calendar, at_ns)
        ):
            return Phase.QUIET  # the closing session is to come; CLOSING_END ends it
        return _OF_STATUS.get(status, Phase.UNKNOWN)
    if hours is None and not calendar.knows(segment):
        return Phase.UNKNOWN
    return Phase.OPEN if hours is not None and at_ns in hours else Phase.CLOSED


def _is_done(segment: str, hours: Hours | None, calendar: Calendar, at_ns: int) -> bool:
    """Return whether no closing session follows any more: whether indices are told of its end nobody has measured."""
    return calendar.knows(segment) if hours is None else at_ns >= hours.close_ns + CLOSING_NS


def _counts(said_ns: int, at_ns: int, hours: Hours | None) -> bool:
    """Return whether a status is news of today. Its end is not doubted: exchanges have stayed open longer than planned."""
    if _date(said_ns) != _date(at_ns):
        return False
    return hours is None or not said_ns < hours.open_ns <= at_ns


def _date(at_ns: int) -> dt.date:
    return dt.datetime.fromtimestamp(at_ns // _NS_PER_S, IST).date()


def _midnight_ns(date: dt.date) -> int:
    return int(dt.datetime(date.year, date.month, date.day, tzinfo=IST).timestamp()) * _NS_PER_S


def calendar_of(holidays: Iterable[Mapping[str, Any]], timings: Mapping[str, Iterable[Mapping[str, Any]]]) -> Calendar:
    """Return the calendar that the broker's answers describe.

    Args:
        holidays: `data` of the holidays endpoint.
        timings: ISO date → `data` of that date's timings endpoint; an empty list: everything is closed.

    Raises:
        KeyError, TypeError, ValueError: an answer has another form.
    """
    closed: dict[dt.date, frozenset[str]] = {}
    special: dict[dt.date, dict[str, Hours]] = {}
    for one in holidays:
        if one["holiday_type"] == "SETTLEMENT_HOLIDAY":
            continue  # banks are closed, exchanges are not
        date = dt.date.fromisoformat(str(one["date"])[:10])
        # TRADING_HOLIDAY, with the exchanges that open in the evening; SPECIAL_TIMING; one date may have both.
        closed[date] = closed.get(date, frozenset()) | frozenset(map(str, one.get("closed_exchanges") or ()))
        special[date] = special.get(date, {}) | _hours(one.get("open_exchanges") or ())
    return Calendar(
        timings={dt.date.fromisoformat(date): _hours(rows) for date, rows in timings.items()},
        closed=closed,
        special=special,
    )


def _hours(rows: Iterable[Mapping[str, Any]]) -> dict[str, Hours]:
    found: dict[str, Hours] = {}
    for row in rows:
        hours = Hours(int(row["start_time"]) * _NS_PER_MS, int(row["end_time"]) * _NS_PER_MS)
        if not 0 < hours.open_ns < hours.close_ns <= hours.open_ns + _DAY_NS:
            raise ValueError(f"expected hours of one day, got {row['start_time']} to {row['end_time']}")
        before = found.get(exchange := str(row["exchange"]), hours)
        found[exchange] = Hours(min(hours.open_ns, before.open_ns), max(hours.close_ns, before.close_ns))
    return found
