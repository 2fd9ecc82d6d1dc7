"""Bytes of messages to columns (ptars): all frames in one call, and never more than one bad frame lost to view. Pure.

What most entries do not have, the branches beside `marketFF`, is bytes to the first pass and parsed in a second where it
occurs: columns of nulls for it would cost a fourth of the time. An entry with two branches where protobuf allows one, or
with such a branch twice, goes through protobuf's own parser, which keeps the last, or merges them; no library writes one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import ptars
import pyarrow.compute as pc
from google.protobuf import wrappers_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from tickvault.brokers.upstox.arrays import fields, parents, spread
from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.model import Rejected

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import pyarrow as pa
    from google.protobuf.descriptor import Descriptor

    from tickvault.model import Frame

__all__ = ["Messages", "misshapen", "parse"]

# Beyond this a frame's outer shape is looked at first, which costs a seventh of its decoding. The parser goes one call
# deeper for each group within a group, which takes a byte, and ends the process between 98,000 and 105,000 of them on a
# stack of 8 MB; it makes columns of millions of entries. 2,000 keys in full, more than a connection may have, are 2,000
# parts of 400 bytes.
_LARGE_BYTES: Final = 80_000
_PART_BYTES: Final = 65_536  # of a part, and of all that is in none
_PARTS: Final = 50_000
_RARE: Final = {
    ("Feed", "ltpc"): "LTPC",
    ("Feed", "firstLevelWithGreeks"): "FirstLevelWithGreeks",
    ("FullFeed", "indexFF"): "IndexFullFeed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Messages:
    """Frames as columns.

    Attributes:
        type: of each frame; `current_ms` its currentTs.
        info: its MarketInfo, null where it has none.
        keys: instrument key of each entry of all frames; `frame` the index of the frame it came in.
        mode: its RequestMode.
        branches: field name of `Feed` or `FullFeed` → its messages, one an entry, null where it has none; none is
            missing but those that no entry has.
    """

    type: pa.Array
    current_ms: pa.Array
    info: pa.StructArray
    keys: pa.Array
    frame: pa.Array
    mode: pa.Array
    branches: Mapping[str, pa.StructArray]


def _opaque(fields: Collection[tuple[str, str]]) -> Descriptor:
    """Return the descriptor of a frame in which these fields, (message, field), are bytes, as often as they come."""
    file = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    for message in file.message_type:
        for field in message.field:
            if (message.name, field.name) in fields:
                field.type, field.label = FieldDescriptorProto.TYPE_BYTES, FieldDescriptorProto.LABEL_REPEATED
                field.ClearField("type_name")
                field.ClearField("oneof_index")
    pool = DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindMessageTypeByName(f"{file.package}.FeedResponse")


_OUTER: Final = GetMessageClass(_opaque({("FeedResponse", "feeds"), ("FeedResponse", "marketInfo")}))
_RARE_FRAME: Final = _opaque(_RARE.keys())
_FRAMES: Final = ptars.HandlerPool([_RARE_FRAME.file]).get_for_message(_RARE_FRAME)
_WHOLE: Final = ptars.HandlerPool([pb.DESCRIPTOR])
_OF_RARE: Final = {name: _WHOLE.get_for_message(pb.DESCRIPTOR.message_types_by_name[name]) for name in _RARE.values()}


def parse(frames: Sequence[Frame]) -> tuple[Sequence[Frame], Messages | None, list[Rejected]]:
    """Parse all frames at once; when that fails, find the ones that do not parse by bisection."""
    why = {frame.seq: words for frame in frames if (words := misshapen(frame.payload))}
    rejected = [_rejected_frame(frame, f"is not decoded: {why[frame.seq]}") for frame in frames if frame.seq in why]
    frames = [frame for frame in frames if frame.seq not in why] if why else frames
    try:
        return frames, _messages([frame.payload for frame in frames]) if frames else None, rejected
    except ValueError:
        pass
    good: list[Frame] = []
    payloads: list[bytes] = []
    pending = [frames]
    while pending:
        part = pending.pop()
        try:
            readable = _readable([frame.payload for frame in part])
        except ValueError as exc:
            if len(part) == 1:
                rejected.append(_rejected_frame(part[0], f"does not decode: {exc}"))
            else:
                pending += [part[len(part) // 2 :], part[: len(part) // 2]]
        else:
            good.extend(part)
            payloads.extend(readable)
    return good, _messages(payloads) if good else None, rejected


def misshapen(payload: bytes) -> str | None:
    """Say why a message is of no shape that a parser should meet; None when it may be parsed, as any short one may."""
    if len(payload) <= _LARGE_BYTES:
        return None
    try:
        outer: Any = _OUTER.FromString(payload)
    except DecodeError as exc:
        return f"expected a protobuf message: {exc}"
    if (count := len(outer.feeds) + len(outer.marketInfo)) > _PARTS:
        return f"expected at most {_PARTS} parts, got {count}"
    sizes = [*map(len, outer.feeds), *map(len, outer.marketInfo)]
    if max(sizes, default=0) > _PART_BYTES:
        return f"expected parts of at most {_PART_BYTES} bytes, got one of {max(sizes)}"
    if (rest := len(payload) - sum(sizes) - 4 * count) > _PART_BYTES:
        return f"expected at most {_PART_BYTES} bytes beside entries and market info, got {rest}"
    return None


def _messages(payloads: Sequence[bytes]) -> Messages:
    """Parse messages into columns.

    Raises:
        ValueError: one of them does not parse.
    """
    try:
        return _columns(payloads)
    except BaseException as exc:
        if type(exc).__name__ != "PanicException":
            raise
        raise ValueError(f"the parser failed: {exc}") from exc  # a panic in Rust is no Exception, and would end us


def _columns(payloads: Sequence[bytes]) -> Messages:
    columns = _FRAMES.list_to_record_batch(payloads)
    feeds = columns.column("feeds")
    top = fields(feeds.items)
    full = fields(top.get("fullFeed"))
    branches = {"marketFF": full.get("marketFF")}
    for (message, field), kind in _RARE.items():
        branches[field] = _rare(kind, (top if message == "Feed" else full).get(field))
    _check_single(*(branches[name] for name in ("ltpc", "firstLevelWithGreeks")), top.get("fullFeed"))
    _check_single(*(branches[name] for name in ("marketFF", "indexFF")))
    return Messages(
        type=columns.column("type"),
        current_ms=columns.column("currentTs"),
        info=columns.column("marketInfo"),
        keys=feeds.keys,
        frame=parents(feeds),
        mode=pc.struct_field(feeds.items, "requestMode"),
        branches={name: messages for name, messages in branches.items() if messages is not None},
    )


def _check_single(*branches: pa.Array | None) -> None:
    """See that no entry has two branches of a `oneof`: the parser does not tell which of them came last.

    Raises:
        ValueError: an entry has.
    """
    there = [one.is_valid() for one in branches if one is not None and one.null_count < len(one)]
    for number, one in enumerate(there):
        for other in there[:number]:
            if pc.any(pc.and_(one, other)).as_py():
                raise ValueError("an entry has two branches where one is allowed")


def _rare(kind: str, messages: pa.ListArray | None) -> pa.StructArray | None:
    """Parse messages where there are any; None if there is none.

    Raises:
        ValueError: an entry has several.
    """
    if messages is None or not len(messages.values):
        return None
    lengths = pc.fill_null(pc.list_value_length(messages), 0)
    if pc.max(lengths).as_py() > 1:
        raise ValueError("an entry has a branch twice")
    return spread(_OF_RARE[kind].array_to_record_batch(messages.flatten()).to_struct_array(), pc.equal(lengths, 1))


def _readable(payloads: Sequence[bytes]) -> Sequence[bytes]:
    """Return messages as the parser takes them: a single one that it cannot read, as the reference would write it.

    A map entry without a value is valid, and the parser panics at it (ptars 0.0.25).

    Raises:
        ValueError: one of them is no message, or any of several cannot be read.
    """
    try:
        _messages(payloads)
    except ValueError:
        if len(payloads) > 1:
            raise
        try:
            payloads = [pb.FeedResponse.FromString(payloads[0]).SerializeToString()]
        except DecodeError as exc:
            raise ValueError(str(exc)) from exc
        _messages(payloads)
    return payloads


def _rejected_frame(frame: Frame, reason: str) -> Rejected:
    return Rejected(seq=frame.seq, table="frame", instrument_key="", reason=reason, body=frame.payload)
