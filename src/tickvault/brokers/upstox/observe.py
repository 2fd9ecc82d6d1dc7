"""What a frame says, seen from outside: which keys it serves, what it says of the market, what in it is new. Pure.

For supervision only: rows come from wire.py, and nothing here decides what is recorded. It is cheap (half a microsecond an
entry), since it looks at every frame once more: entries are bytes to it, but for those of a sample, and those that are so
short that they may be empty or begin otherwise than the .proto has it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet

from tickvault.brokers.upstox.parsing import misshapen
from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from google.protobuf.message import Message

__all__ = ["Observation", "Observer", "RawFrame", "Said", "Show", "Sight", "observe"]

SAMPLE: Final = 32  # one frame in so many is searched for unknown modes and fields
SAMPLE_ENTRIES: Final = 20  # of such a frame, for fields
HOLLOW_BYTES: Final = 16  # an entry of no more may have nothing in it: messages within messages, all empty
SIGHT_FRAMES: Final = 256  # between two looks, a quarter of a second: the broker sends about one
SIGHT_BYTES: Final = 4 * 1024 * 1024  # snapshots of 5,000 keys in full; a single frame may have more
MAX_NOVELTIES: Final = 100  # kept in mind, so that each is told once

_TYPES: Final = frozenset(pb.Type.values())


def _outline() -> type[Any]:
    """Return the class of a frame whose entries are bytes."""
    file = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    (entry,) = (
        one for message in file.message_type for one in message.nested_type
        if message.name == "FeedResponse" and one.name == "FeedsEntry"
    )  # fmt: skip
    (value,) = (field for field in entry.field if field.name == "value")
    value.type = FieldDescriptorProto.TYPE_BYTES
    value.ClearField("type_name")
    pool = DescriptorPool()
    for name in file.dependency:
        pool.AddSerializedFile(pb.DESCRIPTOR.pool.FindFileByName(name).serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return GetMessageClass(pool.FindMessageTypeByName(pb.FeedResponse.DESCRIPTOR.full_name))


_OUTLINE: Final = _outline()
_MODES: Final = frozenset(pb.RequestMode.values())
# The first byte of an entry: the number of a branch, and that it has a length.
_BRANCHES: Final = bytes(field.number << 3 | 2 for field in pb.Feed.DESCRIPTOR.fields if field.message_type is not None)
_STATUSES: Final = {number: name for name, number in pb.MarketStatus.items()}


class Show(StrEnum):
    """What kind of message a frame is."""

    SNAPSHOT = "snapshot"
    LIVE = "live"
    MARKET_INFO = "market_info"
    UNKNOWN = "unknown"  # a type that the .proto does not name
    BROKEN = "broken"  # it does not decode


_SHOWS: Final = {pb.initial_feed: Show.SNAPSHOT, pb.live_feed: Show.LIVE, pb.market_info: Show.MARKET_INFO}


@dataclass(frozen=True, slots=True, kw_only=True)
class RawFrame:
    """A message as it was read.

    Attributes:
        conn: number of its connection.
        received_ns: UTC wall clock; `received_s` monotonic.
    """

    conn: int
    received_ns: int
    received_s: float
    payload: bytes


@dataclass(frozen=True, slots=True)
class Said:
    """A status in words, and since when in ms; 0 when the broker does not say."""

    status: str
    since_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one frame says.

    Attributes:
        kind: what kind of message it is.
        keys: instruments that it has data of.
        empty: instruments whose entry has nothing in it: the broker's answer to a key in the wrong format.
        segments: segment → status, verbatim; an unknown enum as its number.
        cas: segment → status of its closing auction; `pre_open` the same of its pre-open session.
        novelties: enum numbers and fields that the .proto does not have, each told once by an Observer.
    """

    conn: int
    received_ns: int
    received_s: float
    kind: Show
    keys: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    segments: Mapping[str, str] = field(default_factory=dict)
    cas: Mapping[str, Said] = field(default_factory=dict)
    pre_open: Mapping[str, Said] = field(default_factory=dict)
    novelties: tuple[str, ...] = ()


class Sight:
    """Frames that wait to be observed; when there are too many the oldest go, and are counted.

    Attributes:
        lost: frames that went unobserved.
    """

    def __init__(self, max_frames: int = SIGHT_FRAMES, max_bytes: int = SIGHT_BYTES) -> None:
        self.lost = 0
        self._max_frames, self._max_bytes = max_frames, max_bytes
        self._frames: deque[RawFrame] = deque()
        self._bytes = 0

    def put(self, frame: RawFrame) -> None:
        """Add a frame."""
        self._frames.append(frame)
        self._bytes += len(frame.payload)
        while len(self._frames) > 1 and (len(self._frames) > self._max_frames or self._bytes > self._max_bytes):
            self._bytes -= len(self._frames.popleft().payload)
            self.lost += 1

    def take(self) -> list[RawFrame]:
        """Take what there is, in order."""
        taken = list(self._frames)
        self._frames.clear()
        self._bytes = 0
        return taken


class Observer:
    """Observes frame after frame; says of each novelty once that it is there."""

    def __init__(self, sample: int = SAMPLE) -> None:
        self._sample = sample
        self._frames = 0
        self._told: set[str] = set()

    def observe(self, frames: Iterable[RawFrame]) -> list[Observation]:
        """Return what each frame says."""
        return [self._observe(frame) for frame in frames]

    def _observe(self, frame: RawFrame) -> Observation:
        deep = self._frames % self._sample == 0
        self._frames += 1
        return observe(frame, deep=deep, told=self._told)


def observe(frame: RawFrame, *, deep: bool = False, told: set[str] | None = None) -> Observation:
    """Return what a frame says.

    Args:
        frame: any bytes.
        deep: look into all entries, and search for unknown modes and fields too.
        told: novelties not to be told again; those found are added.
    """
    keys: list[str] = []
    empty: list[str] = []
    novelties: list[str] = []
    try:
        if misshapen(frame.payload):
            return _observation(frame, kind=Show.BROKEN)
        message: Any = (pb.FeedResponse if deep else _OUTLINE).FromString(frame.payload)
        for key, entry in message.feeds.items():
            there = _has_data(entry) if deep else _is_filled(entry)
            (keys if there else empty).append(key)
        if deep:
            novelties += _unknown(message)
    except DecodeError:
        return _observation(frame, kind=Show.BROKEN)
    info = message.marketInfo
    if message.type not in _TYPES:
        novelties.append(f"Type {message.type}")
    novelties += [f"MarketStatus {number}" for number in info.segmentStatus.values() if number not in _STATUSES]
    return _observation(
        frame,
        kind=_SHOWS.get(message.type, Show.UNKNOWN),
        keys=tuple(keys),
        empty=tuple(empty),
        segments={segment: _STATUSES.get(number, str(number)) for segment, number in info.segmentStatus.items()},
        cas={segment: Said(said.status, said.updatedTime) for segment, said in info.casMarketStatus.items()},
        pre_open={segment: Said(said.status, said.updatedTime) for segment, said in info.preOpenSessionStatus.items()},
        novelties=_new(novelties, set() if told is None else told),
    )


def _observation(frame: RawFrame, **said: Any) -> Observation:
    return Observation(conn=frame.conn, received_ns=frame.received_ns, received_s=frame.received_s, **said)


def _is_filled(entry: bytes) -> bool:
    """Whether an entry has data, by its length where it begins as one of ours does."""
    return (len(entry) > HOLLOW_BYTES and entry[0] in _BRANCHES) or _has_data(pb.Feed.FromString(entry))


def _has_data(feed: pb.Feed) -> bool:
    # A price settles it for nearly every entry; the union's other branches read as 0 and are not made by reading.
    full = feed.fullFeed
    if full.marketFF.ltpc.ltp or full.indexFF.ltpc.ltp or feed.ltpc.ltp or feed.firstLevelWithGreeks.ltpc.ltp:
        return True
    return not all(field.name == "requestMode" or _is_hollow(field, value) for field, value in feed.ListFields())


def _is_hollow(field: Any, value: Any) -> bool:
    """Whether a field that is on the wire has nothing in it; a list's items count, though they be zeros."""
    if field.message_type is None or field.is_repeated:
        return False
    return all(_is_hollow(inner, held) for inner, held in value.ListFields())


def _new(novelties: Iterable[str], told: set[str]) -> tuple[str, ...]:
    found = tuple(one for one in dict.fromkeys(novelties) if one not in told)[: max(0, MAX_NOVELTIES - len(told))]
    told.update(found)
    return found


def _unknown(message: pb.FeedResponse) -> Iterator[str]:
    yield from (f"RequestMode {one.requestMode}" for one in message.feeds.values() if one.requestMode not in _MODES)
    yield from _unknown_in(message)
    yield from _unknown_in(message.marketInfo)
    for _, feed in zip(range(SAMPLE_ENTRIES), message.feeds.values(), strict=False):
        yield from _unknown_below(feed)


def _unknown_below(message: Message) -> Iterator[str]:
    yield from _unknown_in(message)
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for inner in value if descriptor.is_repeated else (value,):
                yield from _unknown_below(inner)


def _unknown_in(message: Message) -> Iterator[str]:
    name = message.DESCRIPTOR.name
    unknown = UnknownFieldSet(message)
    yield from (f"{name} field {unknown[index].field_number}" for index in range(len(unknown)))
