"""Bytes of messages to columns (ptars): all frames at once, and never more than one bad frame lost to view. Pure.

What most entries do not have, the branches beside `marketFF`, is bytes to the first pass and parsed in a second where it
occurs: columns of nulls for it would cost a fourth of the time. So is a frame's market info. An entry with two branches
where protobuf allows one, or anything of these twice, goes through protobuf's own parser, which keeps the last, or merges
them; no library writes one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import ptars
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf import wrappers_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from tickvault.brokers.upstox.arrays import fields, one_each, parents
from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.model import Rejected

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from google.protobuf.descriptor import Descriptor

    from tickvault.model import Frame

__all__ = ["Messages", "Rare", "misshapen", "parse"]

# Beyond this a frame's outer shape is looked at first, which costs a seventh of its decoding. The parser goes one call
# deeper for each group within a group, which takes a byte, and ends the process between 98,000 and 105,000 of them on a
# stack of 8 MB; it makes columns of millions of entries. 2,000 keys in full, more than a connection may have, are 2,000
# parts of 400 bytes.
_LARGE_BYTES: Final = 80_000
_PART_BYTES: Final = 65_536  # of a part, and of all that is in none
_PARTS: Final = 50_000
_RARE: Final = {
    ("FeedResponse", "marketInfo"): "MarketInfo",
    ("Feed", "ltpc"): "LTPC",
    ("Feed", "firstLevelWithGreeks"): "FirstLevelWithGreeks",
    ("FullFeed", "indexFF"): "IndexFullFeed",
}


class Rare(NamedTuple):
    """Messages that few rows have: index of the row of each, and what they hold."""

    rows: pa.Array
    messages: pa.StructArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Messages:
    """Frames as columns.

    Attributes:
        types: of each frame; `current_ms` its currentTs.
        info: every MarketInfo, by the index of its frame; None if no frame has one.
        keys: instrument key of each entry of all frames; `frame` the index of the frame it came in.
        mode: its RequestMode.
        columns: field of MarketFullFeed → its values, one an entry and null where it is not there; levels and candles are
            lists, by the names they have within their message. What other branches have stands under the same names. A
            column may be missing if no entry has any of its values.
    """

    types: Sequence[int]
    current_ms: Sequence[int]
    info: Rare | None
    keys: pa.Array
    frame: pa.Array
    mode: pa.Array
    columns: Mapping[str, pa.Array]


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
_OF_RARE: Final = {
    field: _WHOLE.get_for_message(pb.DESCRIPTOR.message_types_by_name[kind]) for (_, field), kind in _RARE.items()
}


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
    frames = _FRAMES.list_to_record_batch(payloads)
    feeds = frames.column("feeds")
    top = fields(feeds.items)
    whole = top["fullFeed"]
    full = fields(whole)
    market = full.get("marketFF")
    info = _rare("marketInfo", frames.column("marketInfo"))
    if info is not None and len(info.rows.unique()) < len(info.rows):
        raise ValueError("a frame has market info twice")
    others = {
        "ltpc": _rare("ltpc", top["ltpc"], beside=whole),
        "firstLevelWithGreeks": _rare("firstLevelWithGreeks", top["firstLevelWithGreeks"], beside=whole),
        "indexFF": _rare("indexFF", full.get("indexFF"), beside=market),
    }
    return Messages(
        types=frames.column("type").to_pylist(),
        current_ms=frames.column("currentTs").to_pylist(),
        info=info,
        keys=feeds.keys,
        frame=parents(feeds),
        mode=top["requestMode"],
        columns=_merged(len(whole), _named(market), {name: one for name, one in others.items() if one is not None}),
    )


def _rare(field: str, bodies: pa.ListArray | None, *, beside: pa.StructArray | None = None) -> Rare | None:
    """Parse what stands in a field, where anything does; None if nothing does.

    Args:
        field: its name in _OF_RARE.
        bodies: the messages of each row.
        beside: what a row may not have with them.

    Raises:
        ValueError: a row has both.
    """
    if bodies is None or not len(bodies.values):
        return None
    rows = pc.list_parent_indices(bodies)
    if beside is not None and beside.null_count < len(beside) and pc.any(beside.is_valid().take(rows)).as_py():
        raise ValueError("an entry has two branches where one is allowed")
    return Rare(rows, _OF_RARE[field].array_to_record_batch(bodies.flatten()).to_struct_array())


def _merged(count: int, market: dict[str, pa.Array], others: Mapping[str, Rare]) -> Mapping[str, pa.Array]:
    """Put what a few entries have in other branches in among the columns of those that have a `marketFF`.

    Raises:
        ValueError: an entry has two branches, or one twice.
    """
    if not others:
        return market
    parts = [{name: one.messages} if name == "ltpc" else _named(one.messages) for name, one in others.items()]
    rows = pa.concat_arrays([one.rows for one in others.values()])
    behind = pc.scatter(pa.arange(count, count + len(rows)), rows, max_index=count - 1)
    if behind.null_count != count - len(rows):
        raise ValueError("an entry has two branches where one is allowed, or one twice")
    if len(parts) == 1 and len(rows) == count:
        return parts[0]
    place = pc.coalesce(behind, pa.arange(0, count))
    pieces = [(market, count), *zip(parts, (len(one.rows) for one in others.values()), strict=True)]
    for name, kind in {name: column.type for part in parts for name, column in part.items()}.items():
        whole = pa.concat_arrays([part[name] if name in part else pa.nulls(size, kind) for part, size in pieces])
        market[name] = whole.take(place)
    return market


def _named(messages: pa.StructArray | None) -> dict[str, pa.Array]:
    """Return the fields of a branch under the names they have in Messages.columns."""
    found = fields(messages)
    for name in ("marketLevel", "marketOHLC"):
        if (message := found.pop(name, None)) is not None and message.null_count < len(message):
            found |= fields(message)
    if (quotes := found.pop("firstDepth", None)) is not None:
        found["bidAskQuote"] = one_each(quotes)
    return found


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
