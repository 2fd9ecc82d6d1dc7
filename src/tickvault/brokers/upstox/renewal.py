"""When an open connection moves onto another token: in the half hour before the first pre-open, never while it trades.

Nobody has measured whether a connection survives the end of its token at 03:30 IST. One that does may end at any time
after, so it is left for a new one while there is nothing to lose. Pure.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Final

from tickvault.model import IST

if TYPE_CHECKING:
    from collections.abc import Collection

    from tickvault.brokers.upstox.phases import Calendar

__all__ = ["is_renewal_time", "next_session"]

# Before the pre-open of 09:00 there is nothing to record; five minutes are for what goes wrong meanwhile.
_BEGIN: Final = dt.time(8, 15)
_END: Final = dt.time(8, 55)
_OPEN: Final = dt.time(9, 0)
_NS_PER_S: Final = 1_000_000_000
_LONGEST_NS: Final = 15 * 3600 * _NS_PER_S  # MCX, 09:00 to 23:55
_DAYS: Final = 30
_SATURDAY: Final = 5


def is_renewal_time(now_ns: int) -> bool:
    """Whether an open connection may be left for another token now (UTC ns)."""
    return _BEGIN <= _at(now_ns).time() < _END


def next_session(now_ns: int, calendar: Calendar, segments: Collection[str] = ()) -> tuple[int, int] | None:
    """Return when the session opens and ends that runs now or is next, UTC ns; None: there is none within a month.

    Args:
        now_ns: UTC wall clock.
        calendar: has the hours; where it knows none that matter, every working day has a session.
        segments: that matter; none: all.
    """
    today = _at(now_ns).date()
    for number in range(_DAYS):
        day = today + dt.timedelta(days=number)
        found = _hours(calendar, day, segments)
        if found is not None and now_ns < found[1]:
            return found
    return None


def _hours(calendar: Calendar, day: dt.date, segments: Collection[str]) -> tuple[int, int] | None:
    """Return from when to when anything trades on a day, the pre-open included."""
    windows = calendar.sessions(day, day).windows
    known = [spans for segment, spans in windows.items() if not segments or segment in segments]
    if known:
        spans = [span for of_segment in known for span in of_segment]
        return (min(begin for begin, _ in spans), max(end for _, end in spans)) if spans else None
    if day.weekday() >= _SATURDAY:
        return None
    opens_ns = int(dt.datetime.combine(day, _OPEN, IST).timestamp()) * _NS_PER_S
    return opens_ns, opens_ns + _LONGEST_NS


def _at(now_ns: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(now_ns / 1e9, IST)
