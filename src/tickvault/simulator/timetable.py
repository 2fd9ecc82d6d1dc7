"""What the exchanges' segments are doing, and when that changes (pure): a function of calendar, date and seed."""

from __future__ import annotations

import datetime as dt
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tickvault.simulator.calendar import DAY_S, epoch_ms, ist_date

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tickvault.simulator.calendar import Calendar, Hours, Phases

__all__ = [
    "CASH",
    "EXCHANGE_OF",
    "SCOPES",
    "SEGMENT_OF",
    "Change",
    "following",
    "last_trading_ms",
    "standing",
    "timetable",
]

EXCHANGE_OF: Final[Mapping[str, str]] = {
    "NSE_COM": "NSCOM",
    "NCD_FO": "CDS",
    "NSE_FO": "NFO",
    "BSE_EQ": "BSE",
    "BCD_FO": "BCD",
    "BSE_FO": "BFO",
    "NSE_EQ": "NSE",
    "MCX_FO": "MCX",
    "MCX_INDEX": "MCX",
    "NSE_INDEX": "NSE",
    "BSE_INDEX": "BSE",
}
# The segment whose status an exchange's status is.
SEGMENT_OF: Final[Mapping[str, str]] = {
    "NSE": "NSE_EQ",
    "BSE": "BSE_EQ",
    "MCX": "MCX_FO",
    **{exchange: segment for segment, exchange in EXCHANGE_OF.items() if exchange not in {"NSE", "BSE", "MCX"}},
}
CASH: Final = ("NSE_EQ", "BSE_EQ")
SCOPES: Final = ("segment", "cas", "pre_open")
_LOOK_BACK_DAYS: Final = 10  # longer than any row of days without trading


@dataclass(frozen=True, slots=True, order=True)
class Change:
    """A status from a moment on.

    Attributes:
        at_ms: epoch ms.
        segment: whose.
        scope: which of its statuses, one of SCOPES.
        status: the new one, in the broker's spelling.
    """

    at_ms: int
    segment: str
    scope: str
    status: str


def timetable(calendar: Calendar, day: dt.date, seed: int) -> list[Change]:
    """Return the changes of an IST day, in order; the same for the same calendar, day and seed."""
    changes: list[Change] = []
    for segment, exchange in EXCHANGE_OF.items():
        hours = calendar.sessions(day).get(exchange)
        if hours is None or hours.start_s > 0:
            # At midnight the day before is over, even if it was to last until 24:00.
            changes.append(Change(epoch_ms(day, 0.0), segment, "segment", _closed(segment)))
        if hours is None:
            continue
        # One auction an exchange: both draws are the same for all its segments.
        rng = random.Random(f"{seed} {day} {exchange}")  # noqa: S311  # a moment, not a secret
        cash = segment in CASH and calendar.phases is not None
        moments = _cash(hours, calendar.phases, rng) if cash and calendar.phases is not None else _plain(segment, hours)
        changes.extend(
            Change(epoch_ms(day, at_s), segment, scope, status) for at_s, scope, status in moments if 0 <= at_s < DAY_S
        )
    # Stable: at one moment, a segment's later row wins.
    return sorted(changes, key=lambda change: change.at_ms)


def standing(calendar: Calendar, now_ms: int, seed: int) -> dict[tuple[str, str], tuple[str, int]]:
    """Return (scope, segment) → (status, since when in epoch ms) at a moment."""
    today = ist_date(now_ms)
    found: dict[tuple[str, str], tuple[str, int]] = {}
    for back in range(_LOOK_BACK_DAYS, -1, -1):
        for change in timetable(calendar, today - dt.timedelta(days=back), seed):
            place = change.scope, change.segment
            if change.at_ms <= now_ms and found.get(place, ("", 0))[0] != change.status:
                found[place] = change.status, change.at_ms
    # An auction's status is of its day.
    midnight_ms = epoch_ms(today, 0.0)
    return {place: held for place, held in found.items() if place[0] == "segment" or held[1] >= midnight_ms}


def last_trading_ms(calendar: Calendar, now_ms: int) -> int:
    """Return when the cash market last traded before a moment at which it does not: a market closed is one stopped."""
    for back in range(_LOOK_BACK_DAYS):
        day = ist_date(now_ms) - dt.timedelta(days=back)
        hours = calendar.sessions(day).get("NSE")
        if hours is not None and (end_ms := epoch_ms(day, hours.end_s) - 1_000) < now_ms:
            return end_ms
    return now_ms


def following(calendar: Calendar, after_ms: int, seed: int) -> Iterator[Change]:
    """Yield the changes after a moment, for ever; one to the status that stands is among them."""
    day = ist_date(after_ms)
    while True:
        yield from (change for change in timetable(calendar, day, seed) if change.at_ms > after_ms)
        day += dt.timedelta(days=1)


def _closed(segment: str) -> str:
    return "CLOSING_END" if segment in CASH else "NORMAL_CLOSE"


def _plain(segment: str, hours: Hours) -> Iterator[tuple[float, str, str]]:
    yield hours.start_s, "segment", "NORMAL_OPEN"
    yield hours.end_s, "segment", _closed(segment)


def _cash(hours: Hours, phases: Phases, rng: random.Random) -> Iterator[tuple[float, str, str]]:
    start_s, end_s = hours.start_s, hours.end_s
    orders_end_s = start_s - rng.uniform(*phases.order_entry_s)
    cas_stop_s = end_s - rng.uniform(*phases.cas_stop_s)
    yield start_s - phases.pre_open_s, "segment", "PRE_OPEN_START"
    yield start_s - phases.pre_open_s, "pre_open", "PRE_OPEN_START"
    yield start_s - phases.market_orders_s, "pre_open", "PRE_OPEN_M_END"
    yield orders_end_s, "segment", "PRE_OPEN_END"
    yield orders_end_s, "pre_open", "PRE_OPEN_END"
    yield start_s, "segment", "NORMAL_OPEN"
    yield end_s - phases.cts_close_s, "cas", "CTS_CLOSE"
    yield end_s - phases.cas_start_s, "cas", "CAS_LM_START"
    yield end_s - phases.cas_market_stop_s, "cas", "CAS_M_STOP"
    yield cas_stop_s, "cas", "CAS_STOP"
    yield end_s, "segment", "NORMAL_CLOSE"
    yield end_s, "cas", "NORMAL_CLOSE"
    yield end_s + phases.post_close_s, "segment", "CLOSING_START"
    yield end_s + phases.post_end_s, "segment", "CLOSING_END"
