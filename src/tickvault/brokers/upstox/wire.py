"""Frames of the Upstox feed to Arrow tables: pure, columnar, and never more than one bad frame lost to view.

Laws:
* A sub-message that is not on the wire gives nulls. Inside a present one, values are as decoded.
* A zero of atp, vtt, oi, iv, tbq, tsq and the auction fields is null: proto3 cannot tell it from "not sent".
* NaN and infinities are nulls. Of duplicate keys in one frame the last wins (the parser yields both).
* No column shares memory with the parser's: one that did would keep all that was parsed alive, ten times the rows.
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
    fields,
    finite,
    int64,
    last_of_each,
    marked,
    named,
    null_if_zero,
    parents,
)
from tickvault.brokers.upstox.entries import Branches, Entries
from tickvault.brokers.upstox.parsing import parse
from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.brokers.upstox.unusable import is_unusable, rejected_candle, rejected_key, rejections, unusable_of
from tickvault.model import SCHEMAS, TABLES, Definition, Frame, Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


__all__ = ["Decoded", "decode", "instrument_rows", "last_versions"]

_EMPTY: Final = {name: schema.empty_table() for name, schema in SCHEMAS.items()}
_DAY_MS: Final = 86_400_000
_IST_US: Final = int(dt.timedelta(hours=5, minutes=30) / dt.timedelta(microseconds=1))
# The last millisecond whose nanosecond count fits an int64 (year 2262): what every store can hold.
_MAX_MS: Final = (2**63 - 1) // 1_000_000

# column → path below marketFF; a zero there is null
_SCALARS: Final[Mapping[str, str]] = {
    "atp": "atp",
    "vtt": "vtt",
    "oi": "oi",
    "iv": "iv",
    "tbq": "tbq",
    "tsq": "tsq",
    "rp": "rp",
    "ieq": "ieq",
    "iiq_total": "iiqTotal",
    "iiq_m": "iiqM",
}
_FIRST_LEVEL_SCALARS: Final = frozenset({"vtt", "oi", "iv"})
_GREEKS: Final = ("delta", "theta", "gamma", "vega", "rho")
_WIRE_TYPES: Final = {
    "ltp": pa.float64(),
    "ltt": pa.int64(),
    "ltq": pa.int64(),
    "cp": pa.float64(),
    "iep": pa.float64(),
}


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
        definitions: instrument key → definition in force at these frames.

    Guarantees:
        A pure function of its arguments. Every frame yields its rows or a Rejected.
    """
    good, messages, rejected = parse(frames)
    if messages is None:
        return Decoded(tables=_EMPTY, days=(), rejected=tuple(rejected), restamped=0)
    received_us = int64([frame.received_ns // 1000 for frame in good])
    seqs = int64([frame.seq for frame in good])
    frame_us, restamped = _frame_times(messages.current_ms, received_us)
    entries, bad_keys = Entries.of(messages, good)
    statuses, bad_segments = _market_status(messages.info, seqs, frame_us, good)
    symbols, branches = entries.symbols(definitions), Branches.of(entries.mode, entries.messages)
    candles, bad_candles = _candles(entries, branches, recorder_id=recorder_id, seqs=seqs, symbols=symbols, frames=good)
    tables = {
        "ticks": _ticks(
            entries,
            branches,
            recorder_id=recorder_id,
            seqs=seqs,
            frame_us=frame_us,
            received_us=received_us,
            types=messages.type,
            symbols=symbols,
        ),
        "candles": candles,
        "market_status": statuses,
    }
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
    keys, intervals = (_whole(candles[name]).dictionary_encode().indices for name in ("instrument_key", "interval"))
    last = last_of_each(keys, intervals, _whole(candles["time"]).cast(pa.int64()))
    return candles if len(last) == candles.num_rows else candles.take(last)


def instrument_rows(valid_from_seq: int, definitions: Sequence[Definition]) -> pa.Table:
    """Return the `instruments` rows of definitions that come into force at a seq."""
    names = SCHEMAS["instruments"].names[1:]
    columns: dict[str, object] = {name: [getattr(item, name) for item in definitions] for name in names}
    return pa.table({"valid_from_seq": [valid_from_seq] * len(definitions), **columns}, schema=SCHEMAS["instruments"])


def _frame_times(current_ms: pa.Array, received_us: pa.Array) -> tuple[pa.Array, int]:
    """Return each frame's time in µs: currentTs, or the receive time where that is 0 or more than a day off."""
    received_ms = pc.divide(received_us, 1000)
    plausible = pc.and_(
        pc.and_(pc.greater_equal(current_ms, pc.subtract(received_ms, _DAY_MS)), pc.not_equal(current_ms, 0)),
        pc.less_equal(current_ms, pc.add(received_ms, _DAY_MS)),
    )
    in_us = pc.multiply(pc.if_else(plausible, current_ms, 0), 1000)
    return pc.if_else(plausible, in_us, received_us), int(pc.sum(pc.invert(plausible)).as_py() or 0)


def _days(seqs: Sequence[int], frame_us: pa.Array) -> tuple[tuple[dt.date, tuple[int, ...]], ...]:
    in_ist = pc.add(frame_us, _IST_US).cast(pa.timestamp("us")).cast(pa.date32(), safe=False)
    days: dict[dt.date, list[int]] = {}
    for seq, day in zip(seqs, in_ist.to_pylist(), strict=True):
        days.setdefault(day, []).append(seq)
    return tuple((day, tuple(of_day)) for day, of_day in days.items())


def _ticks(
    entries: Entries,
    branches: Branches,
    *,
    recorder_id: str,
    seqs: pa.Array,
    frame_us: pa.Array,
    received_us: pa.Array,
    types: pa.Array,
    symbols: pa.Array,
) -> pa.Table:
    count = len(entries)
    columns: dict[str, pa.Array] = {
        "time": frame_us.take(entries.frame),
        "received_at": received_us.take(entries.frame),
        "recorder_id": pa.repeat(recorder_id, count),
        "seq": seqs.take(entries.frame),
        "instrument_key": entries.names.take(entries.codes),
        "symbol": symbols.take(entries.codes),
        "kind": pc.if_else(pc.equal(types, pb.initial_feed), "snapshot", "live").take(entries.frame),
        "mode": named(pb.RequestMode, branches.mode),
        "cas_eligible": branches.value("casEligible", [branches.market], pa.bool_()),
    }
    for name in ("ltp", "ltt", "ltq", "cp", "iep"):
        columns[name] = branches.value(name, branches.ltpc, _WIRE_TYPES[name])
    columns["ltt"] = pc.if_else(_in_range(columns["ltt"]), null_if_zero(columns["ltt"]), None)
    iep = branches.value("iep", [branches.market], pa.float64())
    columns["iep"] = null_if_zero(pc.coalesce(columns["iep"], iep))
    for name, wire_name in _SCALARS.items():
        places = [branches.market, branches.first] if name in _FIRST_LEVEL_SCALARS else [branches.market]
        columns[name] = null_if_zero(branches.value(wire_name, places, SCHEMAS["ticks"].field(name).type))
    for name in _GREEKS:
        columns[name] = branches.value(name, branches.greeks, pa.float64())
    columns |= _book(branches, count)
    return _table("ticks", columns)


def _book(branches: Branches, count: int) -> dict[str, pa.Array]:
    quotes = {"bid_price": "bidP", "ask_price": "askP", "bid_qty": "bidQ", "ask_qty": "askQ"}
    levels = fields(branches.market.get("marketLevel")).get("bidAskQuote")
    first = branches.first.get("firstDepth")
    columns = []
    if levels is not None:
        columns.append(_columns_of(levels, quotes.values()))
    if first is not None:
        columns.append({field: _as_list(first, field) for field in quotes.values()})
    if not columns:
        return {name: pa.nulls(count, SCHEMAS["ticks"].field(name).type) for name in quotes}
    # Merging lists is slow, and needed only where modes are mixed.
    return {
        name: columns[0][field] if len(columns) == 1 else pc.coalesce(*(one[field] for one in columns))
        for name, field in quotes.items()
    }


def _columns_of(levels: pa.ListArray, names: Iterable[str]) -> dict[str, pa.ListArray]:
    """Turn list<struct> into a list<value> for each of these fields, nulls kept."""
    values = levels.flatten()
    lengths = pc.fill_null(pc.list_value_length(levels), 0)
    offsets = pc.cumulative_sum(pa.concat_arrays([pa.array([0], pa.int32()), lengths]))
    missing = levels.is_null()
    return {
        name: pa.ListArray.from_arrays(offsets, finite(copied(pc.struct_field(values, name))), mask=missing)
        for name in names
    }


def _as_list(quotes: pa.StructArray, field: str) -> pa.ListArray:
    """Turn a single quote into a list of one level, null where there is none."""
    values = finite(pc.struct_field(quotes, field))
    offsets = pa.array(range(len(quotes) + 1), pa.int32())
    return pa.ListArray.from_arrays(offsets, values, mask=quotes.is_null())


def _candles(
    entries: Entries,
    branches: Branches,
    *,
    recorder_id: str,
    seqs: pa.Array,
    symbols: pa.Array,
    frames: Sequence[Frame],
) -> tuple[pa.Table, list[Rejected]]:
    parts, rejected = [], []
    for branch in (branches.market, branches.index):
        lists = fields(branch.get("marketOHLC")).get("ohlc")
        if lists is not None:
            part, bad = _candles_of(lists, entries, frames)
            parts.append(part)
            rejected += bad
    if not parts:
        return _EMPTY["candles"], []
    rows = parts[0] if len(parts) == 1 else pa.concat_tables(parts).sort_by("entry").combine_chunks()
    codes, intervals, start_ms = (_whole(rows[name]) for name in ("code", "interval", "start_ms"))
    rows = rows.take(last_of_each(codes, intervals.indices, start_ms))
    columns = {
        "time": pc.multiply(rows["start_ms"], 1000),
        "recorder_id": pa.repeat(recorder_id, len(rows)),
        "instrument_key": entries.names.take(rows["code"]),
        "symbol": symbols.take(rows["code"]),
        **{name: rows[name] for name in ("interval", "open", "high", "low", "close")},
        "volume": rows["vol"],
        "seq": seqs.take(entries.frame.take(rows["entry"])),
    }
    return _table("candles", columns), rejected


def _candles_of(lists: pa.ListArray, entries: Entries, frames: Sequence[Frame]) -> tuple[pa.Table, list[Rejected]]:
    """Return the candles of one branch: entry, code of its key, interval, start_ms and values; and the bad."""
    values, entry = lists.flatten(), pc.list_parent_indices(lists)
    start_ms, intervals = pc.struct_field(values, "ts"), pc.struct_field(values, "interval").dictionary_encode()
    names = intervals.dictionary.to_pylist()
    named = pc.and_(marked([bool(name) for name in names], intervals), pc.not_equal(start_ms, 0))
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
    columns = {name: pc.struct_field(values, name) for name in ("open", "high", "low", "close", "vol")}
    table = pa.table(
        {
            "entry": entry,
            "code": entries.codes.take(entry),
            "interval": intervals,
            "start_ms": start_ms,
            **columns,
        }
    )
    kept = pc.and_(named, storable)
    return table if pc.all(kept).as_py() else table.filter(kept), rejected


def _market_status(
    info: pa.StructArray, seqs: pa.Array, frame_us: pa.Array, frames: Sequence[Frame]
) -> tuple[pa.Table, list[Rejected]]:
    parts: list[pa.Table] = []
    rejected: list[Rejected] = []
    if info.null_count == len(info):
        return _EMPTY["market_status"], []
    scopes = {"segment": "segmentStatus", "cas": "casMarketStatus", "pre_open": "preOpenSessionStatus"}
    for scope, field in scopes.items():
        statuses = pc.struct_field(info, field)
        if not len(statuses.items):
            continue
        keys, frame, values = statuses.keys, parents(statuses), statuses.items
        times = frame_us.take(frame)
        if scope == "segment":
            status = named(pb.MarketStatus, values)
        else:
            status = pc.struct_field(values, "status")
            updated_ms = pc.struct_field(values, "updatedTime")
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
            "seq": seqs.take(frame),
        }
        last = last_of_each(encoded.indices, frame)
        kept = pc.and_(pc.invert(bad), pc.is_in(int64(range(len(keys))), value_set=last))
        parts.append(_table("market_status", columns).filter(kept))
    return pa.concat_tables([_EMPTY["market_status"], *parts]), rejected


def _bad_statuses(frames: Sequence[Frame], of: Sequence[int], keys: pa.Array, rows: Sequence[int]) -> list[Rejected]:
    return rejections(
        frames, rows, of.__getitem__, lambda row: rejected_key(frames[of[row]], "market_status", keys[row].as_py())
    )


def _in_range(ms: pa.Array) -> pa.Array:
    """Return which epoch milliseconds a timestamp of any unit can hold."""
    return pc.and_(pc.greater(ms, -_MAX_MS), pc.less(ms, _MAX_MS))


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks()


def _table(name: str, columns: Mapping[str, pa.Array]) -> pa.Table:
    schema = SCHEMAS[name]
    found = [(finite(columns[field.name]), field.type) for field in schema]
    return pa.table([one if one.type == kind else one.cast(kind) for one, kind in found], schema=schema)
