"""The verdict on a day, and its words; pure. What it is made from is day.py's."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Collection, Mapping, Sequence

__all__ = [
    "Absent",
    "Day",
    "Late",
    "Missing",
    "SegmentDay",
    "StoreDay",
    "absent_words",
    "late_words",
    "missing_words",
    "store_words",
]

_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A stretch of a session that was not recorded, and the segments it was missing in."""

    from_ns: int
    to_ns: int
    reason: str
    detail: str
    segments: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """How long it is."""
        return (self.to_ns - self.from_ns) / _NS


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentDay:
    """One market segment's day.

    Attributes:
        session_s: seconds in which it traded, up to now.
        recorded_s: seconds of them that are recorded.
        states: state → seconds, over the whole day; `closed` is when it did not trade.
        keys: instruments of it that were subscribed to.
    """

    segment: str
    session_s: float
    recorded_s: float
    states: Mapping[str, float]
    keys: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """An instrument that the broker did not serve while its segment traded, by the ledger.

    Attributes:
        from_ns: since when, the first time; to_ns: until when, the last time. UTC wall clock.
        seconds: of the session that it was missing, over the whole day.
        detail: why, as far as it shows.
    """

    instrument_key: str
    from_ns: int
    to_ns: int
    seconds: float
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Late:
    """An instrument whose first tick came late after its subscription, or that a new connection did not bring again.

    Attributes:
        after_s: seconds from the subscription to the first tick; None: none came at all.
        lost_ns: when it was subscribed to again, if nothing has come since; UTC wall clock.
    """

    instrument_key: str
    after_s: float | None
    lost_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreDay:
    """How far a store is with the day's frames.

    Attributes:
        behind: frames of the day that it has not taken.
        rows: table → rows of the day's frames that it has taken; those that it refused among them.
        refused: pieces of the day that it refused, or that did not decode.
        state: running, retrying, misconfigured, parked or stopped, and unknown before its first batch; `detail` says why.
    """

    name: str
    cursor_seq: int
    behind: int
    rows: Mapping[str, int]
    refused: int
    state: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """The verdict.

    Attributes:
        date: in India.
        complete: nothing is missing; `why` has a sentence for each thing that is.
        hours_known: whether sessions come from the exchanges' calendar; otherwise the whole recording counts.
        absent: instruments that were missing for a while, the longest first.
        unknown: keys that the broker's master list does not have, and of which nothing has ever come; they cost nothing.
        rows: table → rows of the day.
    """

    date: dt.date
    complete: bool
    why: tuple[str, ...]
    hours_known: bool
    segments: tuple[SegmentDay, ...]
    missing: tuple[Missing, ...]
    absent: tuple[Absent, ...]
    late: tuple[Late, ...]
    unknown: tuple[str, ...]
    rows: Mapping[str, int]
    stores: tuple[StoreDay, ...]

    def json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self) | {"date": self.date.isoformat()}


def missing_words(missing: Sequence[Missing]) -> list[str]:
    """Say how long each reason lasted, in the segment where it lasted longest."""
    seconds: dict[str, dict[str, float]] = {}
    for one in missing:
        of_segment = seconds.setdefault(one.reason, {})
        for segment in one.segments:
            of_segment[segment] = of_segment.get(segment, 0.0) + one.seconds
    return [f"{max(of_segment.values()):,.1f} s {reason}" for reason, of_segment in seconds.items()]


def late_words(late: Sequence[Late]) -> list[str]:
    """Name instruments that never came, or not again."""
    never = [one.instrument_key for one in late if one.after_s is None]
    lost = [one.instrument_key for one in late if one.lost_ns is not None]
    words = (("never seen", never), ("not seen since they were subscribed to again", lost))
    return [
        f"{len(keys):,} of the subscribed instruments {what}: {', '.join(keys[:3])}{', …' if len(keys) > 3 else ''}"
        for what, keys in words
        if keys
    ]


def absent_words(absent: Sequence[Absent], named: Collection[str]) -> list[str]:
    """Name the instruments that were missing for a while, unless they are named already."""
    found = [one for one in absent if one.instrument_key not in named]
    if not found:
        return []
    shown = ", ".join(f"{one.instrument_key} ({one.seconds:,.1f} s)" for one in found[:3])
    return [f"{len(found):,} of the subscribed instruments not served for a while: {shown}{', …' * (len(found) > 3)}"]


def store_words(store: StoreDay) -> list[str]:
    """Say what a store has still to take, and what it refused."""
    words = []
    if store.behind:
        words.append(f"{store.name} ({store.state}) has {store.behind:,} frames still to take")
    if store.refused:
        words.append(f"{store.name} refused {store.refused:,} rows: `tickvault dead-letters list` has its words")
    return words
