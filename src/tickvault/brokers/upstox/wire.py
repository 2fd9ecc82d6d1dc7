"""Frames of the Upstox feed to Arrow tables: pure, columnar, and never more than one bad frame lost to view.

Laws:
* A sub-message that is not on the wire gives nulls. Inside a present one, values are as decoded.
* A zero of atp, vtt, oi, iv, tbq, tsq and the auction fields is null: proto3 cannot tell it from "not sent".
* NaN and infinities are nulls. Of duplicate keys in one frame the last wins (the parser yields both).
* No column shares memory with the parser's: one that did would keep all that was parsed alive, ten times the rows.
  Columns of one type lie in one piece of memory, and go together.
* Arithmetic on times is bounded before it is done; a time that does not fit gives no row, never a wrapped one.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.compute as pc

from tickvault.brokers.upstox.arrays import (
    copied,
    dense,
    fields,
    int64,
    last_of_each,
    marked,
    named,
    numbers,
    parents,
    within,
)
from tickvault.brokers.upstox.entries import Entries
from tickvault.brokers.upstox.parsing import parse
from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.brokers.upstox.unusable import is_unusable, rejected_candle, rejected_key, rejections, unusable_of
from tickvault.model import SCHEMAS, TABLES, Definition, Frame, Rejected

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tickvault.brokers.upstox.parsing import Rare


__all__ = ["Decoded", "decode", "instrument_rows", "last_versions"]

_TYPES: Final = {name: [(field.name, field.type) for field in schema] for name, schema in SCHEMAS.items()}
_EMPTY: Final = {name: schema.empty_table() for name, schema in SCHEMAS.items()}
_DAY_MS: Final = 86_400_000
_DAY_US: Final = _DAY_MS * 1000
_IST_US: Final = int(dt.timedelta(hours=5, minutes=30) / dt.timedelta(microseconds=1))
_EPOCH_DAY: Final = dt.date(1970, 1, 1).toordinal()
# The last millisecond whose nanosecond count fits an int64 (year 2262): what every store can hold.
_MAX_MS: Final = (2**63 - 1) // 1_000_000

# column → field of MarketFullFeed; a zero there is null
_FLOATS: Final = {name: name for name in ("atp", "oi", "iv", "tbq", "tsq", "rp", "iep")}
_INTS: Final = {"vtt": "vtt", "ieq": "ieq", "iiq_total": "iiqTotal", "iiq_m": "iiqM"}
_BOOK: Final = {"bid_price": "bidP", "ask_price": "askP", "bid_qty": "bidQ", "ask_qty": "askQ"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """What a run of frames holds.

    Attributes:
        tables: every name of TABLES → a table of exactly that schema (instruments and gaps are empty: no frame has any).
        days: IST dates of the decodable frames' times, each with its frames' seqs.
        rejected: frames that do not decode and entries whose key no store can hold.
        restamped: frames whose currentTs was 0 or more than a day off, and which got their receive time instead.
    """

    tables: Mapping[str, pa.Table]
    days: tuple[tuple[dt.date, tuple[int, ...]], ...]
    rejected: tuple[Rejected, ...]
    restamped: int


def decode(frames: Sequence[Frame], *, recorder_id: str, definitions: Mapping[str, Definition]) -> Decoded:
    """Decode frames into the tables.

    Args:
        frames: in order of seq; one set of definitions governs them all.
        recorder_id: of the recorder that received them.
        definitions: instrument key → definition in force at these frames; not to be changed afterwards, since symbols
            are kept for the next run of frames that comes with the same mapping.

    Guarantees:
        A pure function of its arguments. Every frame yields its rows or a Rejected.
    """
    good, messages, rejected = parse(frames)
    if messages is None:
        return Decoded(tables=_EMPTY, days=(), rejected=tuple(rejected), restamped=0)
    frame_us, restamped = _frame_times(messages.current_ms, good)
    entries, bad_keys = Entries.of(messages, good)
    of_frames = {
        "recorder_id": pa.repeat(recorder_id, len(good)),
        "time": int64(frame_us),
        "received_at": int64([frame.received_ns // 1000 for frame in good]),
        "seq": int64([frame.seq for frame in good]),
        "kind": pa.array(["snapshot" if one == pb.initial_feed else "live" for one in messages.types], pa.string()),
    }
    symbols = entries.symbols(definitions)
    statuses, bad_segments = _market_status(messages.info, of_frames, good)
    candles, bad_candles = _candles(entries, of_frames, symbols, good)
    ticks = _ticks(entries, of_frames, symbols)
    tables = {"ticks": ticks, "candles": candles, "market_status": statuses}
    return Decoded(
        tables={name: tables.get(name, _EMPTY[name]) for name in TABLES},
        days=_days([frame.seq for frame in good], frame_us),
        rejected=(*rejected, *bad_keys, *bad_segments, *bad_candles),
        restamped=restamped,
    )


def last_versions(candles: pa.Table) -> pa.Table:
    """Keep, of each (instrument_key, interval, time), the row with the highest seq; the others keep their order.

    Args:
        candles: in order of seq.
    """
    last = last_of_each(*(dense(candles[name].combine_chunks()) for name in ("instrument_key", "interval", "time")))
    return candles if last is None else candles.take(last)


def instrument_rows(valid_from_seq: int, definitions: Sequence[Definition]) -> pa.Table:
    """Return the `instruments` rows of definitions that come into force at a seq."""
    names = SCHEMAS["instruments"].names[1:]
    columns: dict[str, object] = {name: [getattr(item, name) for item in definitions] for name in names}
    return pa.table({"valid_from_seq": [valid_from_seq] * len(definitions), **columns}, schema=SCHEMAS["instruments"])


def _frame_times(current_ms: Sequence[int], frames: Sequence[Frame]) -> tuple[list[int], int]:
    """Return each frame's time in µs: currentTs, or the receive time where that is 0 or more than a day off."""
    times = []
    restamped = 0
    for at_ms, frame in zip(current_ms, frames, strict=True):
        if at_ms and -_DAY_MS <= at_ms - frame.received_ns // 1_000_000 <= _DAY_MS:
            times.append(at_ms * 1000)
        else:
            times.append(frame.received_ns // 1000)
            restamped += 1
    return times, restamped


def _days(seqs: Sequence[int], frame_us: Sequence[int]) -> tuple[tuple[dt.date, tuple[int, ...]], ...]:
    days: dict[int, list[int]] = {}
    for seq, at_us in zip(seqs, frame_us, strict=True):
        days.setdefault((at_us + _IST_US) // _DAY_US, []).append(seq)
    return tuple((dt.date.fromordinal(_EPOCH_DAY + day), tuple(of_day)) for day, of_day in days.items())


def _ticks(entries: Entries, of_frames: Mapping[str, pa.Array], symbols: pa.Array) -> pa.Table:
    count, found = len(entries), entries.columns
    ltpc, greeks = fields(found.get("ltpc")), fields(found.get("optionGreeks"))
    book = found.get("bidAskQuote")
    quotes = {} if book is None else {name: book.values.field(field) for name, field in _BOOK.items()}
    zeroes = {name: found[field] for name, field in (_FLOATS | _INTS).items() if field in found}
    if "iep" in ltpc:
        zeroes["iep"] = pc.coalesce(ltpc["iep"], zeroes["iep"]) if "iep" in zeroes else ltpc["iep"]
    if "ltt" in ltpc:
        zeroes["ltt"] = ltpc["ltt"]
    others = {name: column for name, column in (greeks | ltpc | quotes).items() if name not in zeroes}
    columns: dict[str, pa.Array] = {
        **{name: column.take(entries.frame) for name, column in of_frames.items()},
        "instrument_key": entries.keys.take(entries.codes),
        "symbol": symbols.take(entries.codes),
        "mode": named(pb.RequestMode, entries.mode),
    }
    if "casEligible" in found:
        columns["cas_eligible"] = copied(found["casEligible"])
    for kind in (pa.float64(), pa.int64()):
        columns |= numbers(
            kept={name: column for name, column in others.items() if column.type == kind},
            lost={name: column for name, column in zeroes.items() if column.type == kind},
        )
    if "ltt" in columns and not within(columns["ltt"], -_MAX_MS + 1, _MAX_MS - 1):
        columns["ltt"] = pc.if_else(_in_range(columns["ltt"]), columns["ltt"], None)
    if book is not None:
        shape = _shape(book)
        for name in _BOOK:
            kind = pa.list_(columns[name].type)
            columns[name] = pa.Array.from_buffers(kind, count, shape, children=[columns[name]])
    return _table("ticks", columns, count)


def _shape(lists: pa.ListArray) -> Sequence[pa.Buffer | None]:
    """Return validity and offsets of lists, in memory of their own."""
    missing = lists.is_null() if lists.null_count else None
    shape = pa.ListArray.from_arrays(copied(lists.offsets), pa.nulls(len(lists.values)), mask=missing)
    return tuple(shape.buffers()[:2])


def _candles(
    entries: Entries, of_frames: Mapping[str, pa.Array], symbols: pa.Array, frames: Sequence[Frame]
) -> tuple[pa.Table, list[Rejected]]:
    lists = entries.columns.get("ohlc")
    if lists is None or not len(lists.values):
        return _EMPTY["candles"], []
    values, entry = lists.flatten(), pc.list_parent_indices(lists)
    start_ms, intervals = values.field("ts"), values.field("interval").dictionary_encode()
    names, interval = intervals.dictionary.to_pylist(), intervals.indices
    rows, rejected = _good_candles(start_ms, intervals, names, entry, entries, frames)
    if rows is not None:
        entry, interval, start_ms = (one.take(rows) for one in (entry, interval, start_ms))
    codes = entries.codes.take(entry)
    last = last_of_each((codes, len(entries.names)), (interval, len(names)), dense(start_ms))
    if last is not None:
        rows = last if rows is None else rows.take(last)
        entry, codes = entry.take(last), codes.take(last)
    if rows is not None:
        values = values.take(rows)
    frame = entries.frame.take(entry)
    floats = numbers({name: values.field(name) for name in ("open", "high", "low", "close")}, {})
    ints = numbers({"volume": values.field("vol"), "time": values.field("ts")}, {})
    columns = {
        **floats,
        "volume": ints["volume"],
        "time": pc.multiply(ints["time"], pa.scalar(1000)),
        **{name: of_frames[name].take(frame) for name in ("recorder_id", "seq")},
        "instrument_key": entries.keys.take(codes),
        "symbol": symbols.take(codes),
        "interval": copied(values.field("interval")),
    }
    return _table("candles", columns, len(values)), rejected


def _good_candles(
    start_ms: pa.Array,
    intervals: pa.DictionaryArray,
    names: Sequence[str],
    entry: pa.Array,
    entries: Entries,
    frames: Sequence[Frame],
) -> tuple[pa.Array | None, list[Rejected]]:
    """Return the candles that have a name and a start, None if all have, and of these reject what no store can hold."""
    named = pc.not_equal(start_ms, pa.scalar(0))
    if "" in names:
        named = pc.and_(named, pc.not_equal(intervals.indices, pa.scalar(names.index(""), pa.int32())))
    if within(start_ms, -_MAX_MS + 1, _MAX_MS - 1) and not any(map(is_unusable, names)):
        rows = pc.indices_nonzero(named)
        return None if len(rows) == len(named) else rows, []
    writable = marked([not is_unusable(name) for name in names], intervals)
    storable = pc.and_(_in_range(start_ms), writable)

    def frame_of(row: int) -> int:
        return int(entries.frame[entry[row].as_py()].as_py())

    rejected = rejections(
        frames,
        pc.indices_nonzero(pc.and_(named, pc.invert(storable))).to_pylist(),
        frame_of,
        lambda row: rejected_candle(
            frames[frame_of(row)],
            entries.key(entry[row].as_py()),
            f"candle start {start_ms[row]} beyond what a nanosecond timestamp can hold"
            if writable[row].as_py()
            else f"unusable interval {intervals[row].as_py()!r}: it holds a control character or ends in a backslash",
        ),
    )
    return pc.indices_nonzero(pc.and_(named, storable)), rejected


def _market_status(
    info: Rare | None, of_frames: Mapping[str, pa.Array], frames: Sequence[Frame]
) -> tuple[pa.Table, list[Rejected]]:
    parts: list[pa.Table] = []
    rejected: list[Rejected] = []
    if info is None:
        return _EMPTY["market_status"], []
    scopes = {"segment": "segmentStatus", "cas": "casMarketStatus", "pre_open": "preOpenSessionStatus"}
    for scope, field in scopes.items():
        statuses = info.messages.field(field)
        if not len(statuses.items):
            continue
        keys, frame, values = copied(statuses.keys), info.rows.take(parents(statuses)), statuses.items
        times = of_frames["time"].take(frame)
        if scope == "segment":
            status = named(pb.MarketStatus, values)
        else:
            status = copied(values.field("status"))
            updated_ms = values.field("updatedTime")
            usable = pc.and_(pc.greater(updated_ms, 0), pc.less(updated_ms, _MAX_MS))
            times = pc.if_else(usable, pc.multiply(pc.if_else(usable, updated_ms, 0), 1000), times)
        encoded = keys.dictionary_encode()
        bad = marked(unusable_of(encoded.dictionary.to_pylist()), encoded)
        rejected += _bad_statuses(frames, frame.to_pylist(), keys, pc.indices_nonzero(bad).to_pylist())
        columns = {
            "time": times,
            "scope": pa.repeat(scope, len(keys)),
            "segment": keys,
            "status": status,
            "seq": of_frames["seq"].take(frame),
        }
        last = last_of_each((encoded.indices, len(encoded.dictionary)), (frame, len(frames)))
        kept = pc.invert(bad)
        if last is not None:
            kept = pc.and_(kept, pc.is_in(pa.arange(0, len(keys)), value_set=last))
        parts.append(_table("market_status", columns, len(keys)).filter(kept))
    return pa.concat_tables([_EMPTY["market_status"], *parts]), rejected


def _bad_statuses(frames: Sequence[Frame], of: Sequence[int], keys: pa.Array, rows: Sequence[int]) -> list[Rejected]:
    return rejections(
        frames, rows, of.__getitem__, lambda row: rejected_key(frames[of[row]], "market_status", keys[row].as_py())
    )


def _in_range(ms: pa.Array) -> pa.Array:
    """Return which epoch milliseconds a timestamp of any unit can hold."""
    return pc.and_(pc.greater(ms, -_MAX_MS), pc.less(ms, _MAX_MS))


def _table(name: str, columns: Mapping[str, pa.Array], count: int) -> pa.Table:
    """Return a table of so many rows; a column that is not given is null."""
    arrays = [
        columns[column].view(kind) if column in columns else pa.nulls(count, kind) for column, kind in _TYPES[name]
    ]
    return pa.table(arrays, schema=SCHEMAS[name])
