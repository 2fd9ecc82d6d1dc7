"""What a message is, without what it says: names of fields, distances, delays. Pure; no price and no text gets through."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.model import segment_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Entry", "Frame", "decoded", "grid", "minutes", "parts", "shape_of", "spread"]

_MINUTE_MS: Final = 60_000
_GRIDS_MS: Final = (50, 100, 150, 250, 300)
_NEAR_MS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One instrument in a frame: its key, mode, the names of the fields that are there, and its minute candle's start."""

    key: str
    mode: str
    parts: frozenset[str]
    minute_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What a frame is, without what it says."""

    kind: str
    at_ms: int
    entries: tuple[Entry, ...] = ()
    statuses: Mapping[str, str] = field(default_factory=dict)


def decoded(payload: bytes) -> Frame | None:
    """Return what a frame is, without what it says; None when it does not decode."""
    try:
        message = pb.FeedResponse.FromString(payload)
    except DecodeError:
        return None
    statuses = {
        _name(segment): pb.MarketStatus.Name(status) if status in pb.MarketStatus.values() else str(int(status))
        for segment, status in message.marketInfo.segmentStatus.items()
    }
    return Frame(
        kind=pb.Type.Name(message.type) if message.type in pb.Type.values() else str(int(message.type)),
        at_ms=message.currentTs,
        entries=tuple(_entry(key, feed) for key, feed in message.feeds.items()),
        statuses=statuses,
    )


def _entry(key: str, feed: pb.Feed) -> Entry:
    mode = pb.RequestMode.Name(feed.requestMode) if feed.requestMode in pb.RequestMode.values() else "unknown"
    found: set[str] = set()
    minute_ms = None
    match feed.WhichOneof("FeedUnion"):
        case "ltpc":
            found = {one.name for one, _ in feed.ltpc.ListFields()}
        case "firstLevelWithGreeks":
            found = {one.name for one, _ in feed.firstLevelWithGreeks.ListFields()}
        case "fullFeed":
            full = feed.fullFeed
            side = full.indexFF if full.WhichOneof("FullFeedUnion") == "indexFF" else full.marketFF
            found = {one.name for one, _ in side.ListFields()}
            minute_ms = next((one.ts for one in side.marketOHLC.ohlc if one.interval == "I1" and one.ts > 0), None)
    return Entry(key=key, mode=mode, parts=frozenset(found), minute_ms=minute_ms)


def grid(stamps_ms: Iterable[int]) -> dict[str, object]:
    """Return how far live frames are apart, and what share of the distances lies within 3 ms of a multiple of a grid."""
    stamps = [one for one in stamps_ms if one > 0]
    apart = [b - a for a, b in pairwise(stamps) if b > a]
    if not apart:
        return {}
    fits = {
        str(width): round(sum(min(one % width, -one % width) <= _NEAR_MS for one in apart) / len(apart), 3)
        for width in _GRIDS_MS
    }
    # Beside each share what chance alone would give.
    chance = {str(width): round((2 * _NEAR_MS + 1) / width, 3) for width in _GRIDS_MS}
    common = Counter(round(one, -1) for one in apart).most_common(8)
    return {
        "apart_ms": spread(apart),
        "most_common_ms": {str(width): count for width, count in common},
        "fits": fits,
        "chance": chance,
    }


def parts(frames: Iterable[Frame]) -> dict[str, dict[str, int]]:
    """Return, for each segment, how many entries came and in how many of them each field was there."""
    found: dict[str, Counter[str]] = {}
    for frame in frames:
        for entry in frame.entries:
            counts = found.setdefault(f"{segment_of(entry.key)} {entry.mode}", Counter())
            counts["entries"] += 1
            counts.update(entry.parts)
    return {name: dict(sorted(counts.items())) for name, counts in found.items()}


def minutes(frames: Iterable[Frame]) -> dict[str, dict[str, object]]:
    """Return, for each segment, how long after a minute's end its candle was there; below 0: while it was running."""
    last: dict[str, int] = {}
    delays: dict[str, list[float]] = {}
    for frame in frames:
        for entry in frame.entries:
            if entry.minute_ms is None:
                continue
            if entry.key in last and entry.minute_ms > last[entry.key]:
                delay_s = (frame.at_ms - entry.minute_ms - _MINUTE_MS) / 1000
                delays.setdefault(segment_of(entry.key), []).append(delay_s)
            last[entry.key] = entry.minute_ms
    return {
        segment: {"changes": len(found), "closed_minutes": sum(one >= 0 for one in found), "delay_s": spread(found)}
        for segment, found in delays.items()
    }


def shape_of(text: str) -> str:
    """Return the form of a text message without its content: documented nowhere, it may name anything."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return f"{len(text)} characters, not JSON"
    names = [_name(str(name)) for name in list(body)[:10]] if isinstance(body, dict) else []
    return f"JSON {type(body).__name__} of {len(text)} characters, fields: {', '.join(names) or 'none'}"


def _name(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z_]{1,20}", text) else "…"


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Return the least, the middle and the greatest of some values; None without any."""
    if not values:
        return None
    return {"min": min(values), "median": round(statistics.median(values), 3), "max": max(values)}
