"""Whether trading is over for today in everything that is subscribed to. Pure."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Final

from tickvault.brokers.upstox.phases import CLOSING_NS, Phase
from tickvault.model import IST

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from tickvault.brokers.upstox.phases import Calendar

__all__ = ["is_over"]

_TRADING: Final = frozenset({Phase.OPEN, Phase.PRE_OPEN, Phase.CLOSING})


def is_over(segments: Collection[str], calendar: Calendar, phases: Mapping[str, Phase], at_ns: int) -> bool:
    """Return whether none of the segments trades any more today.

    Args:
        segments: what is subscribed to; none: not known yet, so that everything whose hours are known has to be over.
        calendar: says when each should close. A segment of unknown hours is never over: only a person can tell.
        phases: segment → what it does, by the feed's statuses while they count. One that is at it after its hours is
            waited for, up to an hour.
        at_ns: UTC wall clock in ns.
    """
    today = dt.datetime.fromtimestamp(at_ns / 1e9, IST).date()
    wanted = segments or calendar.segments
    return bool(wanted) and all(
        calendar.knows(segment) and _is_over(calendar, segment, phases.get(segment), today, at_ns) for segment in wanted
    )


def _is_over(calendar: Calendar, segment: str, phase: Phase | None, today: dt.date, at_ns: int) -> bool:
    hours = calendar.hours(segment, today)
    if hours is None:  # it does not trade today; unless it does
        return phase not in _TRADING
    if at_ns < hours.close_ns:
        return False
    return phase in {None, Phase.CLOSED, Phase.UNKNOWN} or at_ns >= hours.close_ns + CLOSING_NS
