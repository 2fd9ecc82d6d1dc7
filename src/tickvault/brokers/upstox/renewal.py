"""When an open connection moves onto another token: in the half hour before the first pre-open, never while it trades.

Nobody has measured whether a connection survives the end of its token at 03:30 IST. One that does may end at any time
after, so it is left for a new one while there is nothing to lose. Pure.
"""

from __future__ import annotations

import datetime as dt
from typing import Final

from tickvault.model import IST

__all__ = ["is_renewal_time", "next_session_open_ns"]

# Before the pre-open of 09:00 there is nothing to record; five minutes are for what goes wrong meanwhile.
_BEGIN: Final = dt.time(8, 15)
_END: Final = dt.time(8, 55)
_OPEN: Final = dt.time(9, 0)
_SESSION: Final = dt.timedelta(hours=15)  # the longest there is: MCX, 09:00 to 23:55
_SATURDAY: Final = 5


def is_renewal_time(now_ns: int) -> bool:
    """Whether an open connection may be left for another token now (UTC ns)."""
    return _BEGIN <= _at(now_ns).time() < _END


def next_session_open_ns(now_ns: int) -> int:
    """Return when the session opens that runs now or is next, UTC ns; a holiday counts as a session, a week-end not."""
    day = _at(now_ns).date()
    while True:
        opens = dt.datetime.combine(day, _OPEN, IST)
        if day.weekday() < _SATURDAY and _at(now_ns) < opens + _SESSION:
            return int(opens.timestamp()) * 1_000_000_000
        day += dt.timedelta(days=1)


def _at(now_ns: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(now_ns / 1e9, IST)
