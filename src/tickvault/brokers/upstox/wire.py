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
from typing import TYPE_CHECKING, Any, Final

import ptars
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf.message import DecodeError

from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.model import SCHEMAS, TABLES, Definition, Frame, Rejected

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Decoded", "decode", "instrument_rows", "last_versions"]

_HANDLER: Final = ptars.HandlerPool([pb.FeedResponse.DESCRIPTOR.file]).get_for_message(pb.FeedResponse.DESCRIPTOR)

_DAY_MS: Final = 86_400_000
_IST_US: Final = int(dt.timedelta(hours=5, minutes=30) / dt.timedelta(microseconds=1))
# The last millisecond whose nanosecond count fits an int64 (year 2262): what every store can hold.
_MAX_MS: Final = (2**63 - 1) // 1_000_000
_UNUSABLE: Final = r"\p{Cc}|\\$"  # no line protocol, file name or terminal can hold it
_BAD_KEY: Final = rf"^$|{_UNUSABLE}"

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
_MARKET: Final = ("fullFeed", "marketFF")
_INDEX: Final = ("fullFeed", "indexFF")
_FIRST: Final = ("firstLevelWithGreeks",)


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
    good, columns, rejected = _parse(frames)
    if columns is None or not good:
        empty = {name: schema.empty_table() for name, schema in SCHEMAS.items()}
        return Decoded(tables=empty, days=(), rejected=tuple(rejected), restamped=0)
    received_us = _int64([frame.received_ns // 1000 for frame in good])
    seqs = _int64([frame.seq for frame in good])
    frame_us, restamped = _frame_times(columns.column("currentTs"), received_us)
    entries, bad_keys = _Entries.of(columns.column("feeds"), good)
    statuses, bad_segments = _market_status(columns.column("marketInfo"), seqs, frame_us, good)
    symbols = _symbols(entries.keys, definitions)
    candles, bad_candles = _candles(entries, recorder_id=recorder_id, seqs=seqs, symbols=symbols, frames=good)
    tables = {
        "ticks": _ticks(
            entries,
            recorder_id=recorder_id,
            seqs=seqs,
            frame_us=frame_us,
            received_us=received_us,
            types=columns.column("type"),
            symbols=symbols,
        ),
        "candles": candles,
        "market_status": statuses,
    }
    return Decoded(
        tables={name: tables.get(name, SCHEMAS[name].empty_table()) for name in TABLES},
        days=_days([frame.seq for frame in good], frame_us),
        rejected=(*rejected, *bad_keys, *bad_segments, *bad_candles),
        restamped=restamped,
    )


def last_versions(candles: pa.Table) -> pa.Table:
    """Keep, of each (instrument_key, interval, time), the row with the highest seq; the others keep their order."""
    numbered = candles.append_column("row", _int64(range(candles.num_rows))).sort_by("seq")
    newest = numbered.group_by(["instrument_key", "interval", "time"], use_threads=False).aggregate([("row", "last")])
    return candles.take(newest.column("row_last").combine_chunks().sort())


def instrument_rows(valid_from_seq: int, definitions: Sequence[Definition]) -> pa.Table:
    """Return the `instruments` rows of definitions that come into force at a seq."""
    names = SCHEMAS["instruments"].names[1:]
    columns: dict[str, object] = {name: [getattr(item, name) for item in definitions] for name in names}
    return pa.table({"valid_from_seq": [valid_from_seq] * len(definitions), **columns}, schema=SCHEMAS["instruments"])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entries:
    """The feed entries of all frames, one row each, duplicates and unusable keys gone.

    Attributes:
        keys: instrument key of each entry.
        frame: index of the frame each entry came in.
        values: the Feed messages.
    """

    keys: pa.Array
    frame: pa.Array
    values: pa.StructArray

    @classmethod
    def of(cls, feeds: pa.MapArray, frames: Sequence[Frame]) -> tuple[_Entries, list[Rejected]]:
        entries = cls(keys=feeds.keys, frame=_parents(feeds), values=feeds.items)
        bad = pc.match_substring_regex(entries.keys, _BAD_KEY)
        rejected = [
            _rejected_key(frames[entries.frame[row].as_py()], "ticks", entries.keys[row].as_py())
            for row in pc.indices_nonzero(bad).to_pylist()
        ]
        if rejected:
            entries = entries.take(pc.indices_nonzero(pc.invert(bad)))
        return entries._without_duplicates(), rejected

    def take(self, rows: pa.Array) -> _Entries:
        return _Entries(keys=self.keys.take(rows), frame=self.frame.take(rows), values=self.values.take(rows))

    def _without_duplicates(self) -> _Entries:
        last = _last_of_each(self.keys, self.frame)
        return self if len(last) == len(self.keys) else self.take(last)

    def field(self, *path: str) -> pa.Array:
        return pc.struct_field(self.values, list(path))


def _parse(frames: Sequence[Frame]) -> tuple[list[Frame], pa.RecordBatch | None, list[Rejected]]:
    """Parse all frames at once; when that fails, find the ones that do not parse by bisection."""
    try:
        return list(frames), _columns([frame.payload for frame in frames]), []
    except ValueError:
        pass
    good: list[Frame] = []
    payloads: list[bytes] = []
    rejected: list[Rejected] = []
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
    return good, _columns(payloads) if good else None, rejected


def _columns(payloads: Sequence[bytes]) -> pa.RecordBatch:
    """Parse messages into columns.

    Raises:
        ValueError: one of them does not parse.
    """
    try:
        return _HANDLER.list_to_record_batch(payloads)
    except BaseException as exc:
        if type(exc).__name__ != "PanicException":
            raise
        raise ValueError(f"the parser failed: {exc}") from exc  # a panic in Rust is no Exception, and would end us


def _readable(payloads: Sequence[bytes]) -> Sequence[bytes]:
    """Return messages as the parser takes them: a single one that it cannot read, as the reference would write it.

    A map entry without a value is valid, and the parser panics at it (ptars 0.0.25).

    Raises:
        ValueError: one of them is no message, or any of several cannot be read.
    """
    try:
        _columns(payloads)
    except ValueError:
        if len(payloads) > 1:
            raise
        try:
            payloads = [pb.FeedResponse.FromString(payloads[0]).SerializeToString()]
        except DecodeError as exc:
            raise ValueError(str(exc)) from exc
        _columns(payloads)
    return payloads


def _rejected_frame(frame: Frame, reason: str) -> Rejected:
    return Rejected(seq=frame.seq, table="frame", instrument_key="", reason=reason, body=frame.payload)


def _rejected_key(frame: Frame, table: str, key: str) -> Rejected:
    reason = f"unusable key {key!r}: a key is not empty, holds no control characters and does not end in a backslash"
    return Rejected(seq=frame.seq, table=table, instrument_key=key, reason=reason, body=_piece(frame, table, key))


def _piece(frame: Frame, table: str, key: str) -> bytes:
    """Return the frame with nothing in it but what is rejected: it may come with every frame, and beside much else."""
    try:
        whole = pb.FeedResponse.FromString(frame.payload)
    except DecodeError:
        return frame.payload
    piece = pb.FeedResponse(type=whole.type, currentTs=whole.currentTs)
    if table == "market_status":
        piece.marketInfo.CopyFrom(whole.marketInfo)
    elif key in whole.feeds:
        piece.feeds[key].CopyFrom(whole.feeds[key])
    return piece.SerializeToString()


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
    entries: _Entries,
    *,
    recorder_id: str,
    seqs: pa.Array,
    frame_us: pa.Array,
    received_us: pa.Array,
    types: pa.Array,
    symbols: pa.Array,
) -> pa.Table:
    count = len(entries.keys)
    columns: dict[str, pa.Array] = {
        "time": frame_us.take(entries.frame),
        "received_at": received_us.take(entries.frame),
        "recorder_id": pa.repeat(recorder_id, count),
        "seq": seqs.take(entries.frame),
        "instrument_key": _copied(entries.keys),
        "symbol": symbols,
        "kind": pc.if_else(pc.equal(types, pb.initial_feed), "snapshot", "live").take(entries.frame),
        "mode": _names(pb.RequestMode, entries.field("requestMode")),
        "cas_eligible": _copied(entries.field(*_MARKET, "casEligible")),
    }
    for name in ("ltp", "ltt", "ltq", "cp", "iep"):
        paths = (("ltpc",), (*_MARKET, "ltpc"), (*_INDEX, "ltpc"), (*_FIRST, "ltpc"))
        columns[name] = pc.coalesce(*(entries.field(*path, name) for path in paths))
    columns["ltt"] = pc.if_else(_in_range(columns["ltt"]), _null_if_zero(columns["ltt"]), None)
    columns["iep"] = _null_if_zero(pc.coalesce(columns["iep"], entries.field(*_MARKET, "iep")))
    for name, wire_name in _SCALARS.items():
        value = entries.field(*_MARKET, wire_name)
        if name in _FIRST_LEVEL_SCALARS:
            value = pc.coalesce(value, entries.field(*_FIRST, wire_name))
        columns[name] = _null_if_zero(value)
    for name in _GREEKS:
        columns[name] = pc.coalesce(*(entries.field(*path, "optionGreeks", name) for path in (_MARKET, _FIRST)))
    columns |= _book(entries)
    return _table("ticks", columns)


def _book(entries: _Entries) -> dict[str, pa.Array]:
    levels = entries.field(*_MARKET, "marketLevel", "bidAskQuote")
    first = entries.field(*_FIRST, "firstDepth")
    quotes = {"bid_price": "bidP", "ask_price": "askP", "bid_qty": "bidQ", "ask_qty": "askQ"}
    return {name: pc.coalesce(_column_of(levels, field), _as_list(first, field)) for name, field in quotes.items()}


def _column_of(levels: pa.ListArray, field: str) -> pa.ListArray:
    """Turn list<struct> into list<value of one field>, nulls kept."""
    values = _finite(pc.struct_field(levels.flatten(), field))
    lengths = pc.fill_null(pc.list_value_length(levels), 0)
    offsets = pc.cumulative_sum(pa.concat_arrays([pa.array([0], pa.int32()), lengths]))
    return pa.ListArray.from_arrays(offsets, values, mask=levels.is_null())


def _as_list(quotes: pa.StructArray, field: str) -> pa.ListArray:
    """Turn a single quote into a list of one level, null where there is none."""
    values = _finite(pc.struct_field(quotes, field))
    offsets = pa.array(range(len(quotes) + 1), pa.int32())
    return pa.ListArray.from_arrays(offsets, values, mask=quotes.is_null())


def _candles(
    entries: _Entries, *, recorder_id: str, seqs: pa.Array, symbols: pa.Array, frames: Sequence[Frame]
) -> tuple[pa.Table, list[Rejected]]:
    paths = ((*_MARKET, "marketOHLC", "ohlc"), (*_INDEX, "marketOHLC", "ohlc"))
    lists = pc.coalesce(*(entries.field(*path) for path in paths))
    values, entry = lists.flatten(), pc.list_parent_indices(lists)
    start_ms, interval = pc.struct_field(values, "ts"), pc.struct_field(values, "interval")
    named = pc.and_(pc.not_equal(interval, ""), pc.not_equal(start_ms, 0))
    writable = pc.invert(pc.match_substring_regex(interval, _UNUSABLE))
    storable = pc.and_(_in_range(start_ms), writable)
    rejected = [
        _rejected_candle(
            frames[entries.frame[entry[row].as_py()].as_py()],
            entries.keys[entry[row].as_py()].as_py(),
            f"candle start {start_ms[row]} beyond what a nanosecond timestamp can hold"
            if writable[row].as_py()
            else f"unusable interval {interval[row].as_py()!r}: it holds a control character or ends in a backslash",
        )
        for row in pc.indices_nonzero(pc.and_(named, pc.invert(storable))).to_pylist()
    ]
    rows = pc.indices_nonzero(pc.and_(named, storable))
    values, entry = values.take(rows), entry.take(rows)
    table = _table(
        "candles",
        {
            "time": pc.multiply(start_ms.take(rows), 1000),
            "recorder_id": pa.repeat(recorder_id, len(rows)),
            "instrument_key": entries.keys.take(entry),
            "symbol": symbols.take(entry),
            "interval": interval.take(rows),
            **{name: pc.struct_field(values, name) for name in ("open", "high", "low", "close")},
            "volume": pc.struct_field(values, "vol"),
            "seq": seqs.take(entries.frame.take(entry)),
        },
    )
    return last_versions(table), rejected


def _rejected_candle(frame: Frame, key: str, reason: str) -> Rejected:
    body = _piece(frame, "candles", key)
    return Rejected(seq=frame.seq, table="candles", instrument_key=key, reason=reason, body=body)


def _market_status(
    info: pa.StructArray, seqs: pa.Array, frame_us: pa.Array, frames: Sequence[Frame]
) -> tuple[pa.Table, list[Rejected]]:
    parts: list[pa.Table] = []
    rejected: list[Rejected] = []
    scopes = {"segment": "segmentStatus", "cas": "casMarketStatus", "pre_open": "preOpenSessionStatus"}
    for scope, field in scopes.items():
        statuses = pc.struct_field(info, field)
        if not len(statuses.items):
            continue
        keys, frame, values = statuses.keys, _parents(statuses), statuses.items
        times = frame_us.take(frame)
        if scope == "segment":
            status = _names(pb.MarketStatus, values)
        else:
            status = pc.struct_field(values, "status")
            updated_ms = pc.struct_field(values, "updatedTime")
            usable = pc.and_(pc.greater(updated_ms, 0), pc.less(updated_ms, _MAX_MS))
            times = pc.if_else(usable, pc.multiply(pc.if_else(usable, updated_ms, 0), 1000), times)
        bad = pc.match_substring_regex(keys, _BAD_KEY)
        rejected += [
            _rejected_key(frames[frame[row].as_py()], "market_status", keys[row].as_py())
            for row in pc.indices_nonzero(bad).to_pylist()
        ]
        columns = {
            "time": times,
            "scope": pa.repeat(scope, len(keys)),
            "segment": keys,
            "status": status,
            "seq": seqs.take(frame),
        }
        kept = pc.and_(pc.invert(bad), pc.is_in(_int64(range(len(keys))), value_set=_last_of_each(keys, frame)))
        parts.append(_table("market_status", columns).filter(kept))
    return pa.concat_tables([SCHEMAS["market_status"].empty_table(), *parts]), rejected


def _parents(mapping: pa.MapArray) -> pa.Array:
    """Return, for each entry of a map column, the index of its row."""
    # list_parent_indices aborts the process on a MapArray, so it is given the same offsets as a list.
    lengths = pc.subtract(mapping.offsets.slice(1), mapping.offsets.slice(0, len(mapping)))
    offsets = pc.cumulative_sum(pa.concat_arrays([pa.array([0], pa.int32()), lengths]))
    return pc.list_parent_indices(pa.ListArray.from_arrays(offsets, mapping.keys))


def _last_of_each(keys: pa.Array, frame: pa.Array) -> pa.Array:
    """Return the row of the last entry of each key in each frame, in order."""
    rows = pa.table({"key": keys, "frame": frame, "row": _int64(range(len(keys)))})
    return rows.group_by(["key", "frame"]).aggregate([("row", "max")]).column("row_max").combine_chunks().sort()


def _symbols(keys: pa.Array, definitions: Mapping[str, Definition]) -> pa.Array:
    encoded = keys.dictionary_encode()
    known = [definitions.get(key) for key in encoded.dictionary.to_pylist()]
    names = [
        item.symbol if item is not None and item.symbol else key
        for key, item in zip(encoded.dictionary.to_pylist(), known, strict=True)
    ]
    return pa.array(names, pa.string()).take(encoded.indices)


def _names(enum: Any, numbers: pa.Array) -> pa.Array:
    """Return each enum number's wire name; an unknown number as its digits."""
    encoded = numbers.dictionary_encode()
    known = {number: name for name, number in enum.items()}
    names = [known.get(number, str(number)) for number in encoded.dictionary.to_pylist()]
    return pa.array(names, pa.string()).take(encoded.indices)


def _in_range(ms: pa.Array) -> pa.Array:
    """Return which epoch milliseconds a timestamp of any unit can hold."""
    return pc.and_(pc.greater(ms, -_MAX_MS), pc.less(ms, _MAX_MS))


def _null_if_zero(values: pa.Array) -> pa.Array:
    return pc.if_else(pc.not_equal(values, 0), values, None)


def _finite(values: pa.Array) -> pa.Array:
    if not pa.types.is_floating(values.type):
        return values
    finite = pc.is_finite(values)
    return values if pc.all(finite).as_py() is not False else pc.if_else(finite, values, None)


def _copied(values: pa.Array) -> pa.Array:
    return values.take(_int64(range(len(values))))


def _int64(values: Sequence[int]) -> pa.Array:
    return pa.array(values, pa.int64())


def _table(name: str, columns: Mapping[str, pa.Array]) -> pa.Table:
    schema = SCHEMAS[name]
    return pa.table([_finite(columns[field.name]).cast(field.type) for field in schema], schema=schema)
