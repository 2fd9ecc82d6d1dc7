"""Batches of rows → InfluxDB line protocol, column by column.

Laws of this module:

- A line is a pure function of its row, the definition in force and the dialect, so a repeat overwrites itself.
- Ticks carry `currentTs` (ms) * 10**6 + `seq` mod 10**6 as time: no two updates of an instrument collapse into one point.
- What cannot be written without changing which series it belongs to is refused by row, never bent into shape.
- No Python runs per row. Tags are built once per distinct series; everything else is Arrow kernels.

Source: docs/influxdb.md; influxdata/line-protocol, `line-protocol.ebnf`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from tickvault.model import TABLES, Batch, Definition, segment_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["Dialect", "Lines", "chunks", "encode_tickvault", "encode_tradedatafeed"]

# pyarrow has no stubs: these names are for the reader.
_Array: TypeAlias = Any
_Tags: TypeAlias = "Mapping[str, str | None]"

_FLOATS: Final = ("ltp", "cp", "atp", "oi", "iv", "tbq", "tsq", "delta", "theta", "gamma", "vega", "rho", "iep", "rp")
_INTEGERS: Final = ("ltq", "vtt", "ltt", "ieq", "iiq_total", "iiq_m")
_RECURRING: Final = frozenset({"received_at", "seq", "cp"})  # the same in a frame, or all day: written once
_TOTALS: Final = frozenset({"oi", "tbq", "tsq"})  # doubles that are counts
_BOOK: Final = ("bid_price", "bid_qty", "ask_price", "ask_qty")
_OHLC: Final = ("open", "high", "low", "close")

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_SPECIAL: Final = re.compile(r"([,= ])")
# The engine of InfluxDB 1 and 2 takes no longer series key (measurement and tags).
_MAX_SERIES_KEY_BYTES: Final = 65_535
_SERIES_KEPT: Final = 20_000  # 5 MB; an instrument has three
_END: Final = 1_000  # behind every number
# Microseconds whose nanoseconds still fit the signed 64 bits of a point's time.
_MAX_TIME_US: Final = 9_223_372_036_854_774

_BAD_SERIES: Final = "line protocol cannot write these tags: empty or too long, control characters or a backslash last"
_BAD_TIME: Final = "line protocol cannot write this time: outside the years 1677 to 2262"


class Dialect(StrEnum):
    """Whose line protocol is written."""

    INFLUX = "influx"
    """InfluxDB 1 and 2: the last write of a point wins."""
    INFLUX3 = "influx3"
    """InfluxDB 3: of two different writes of a point either may stay, so versions of a candle get distinct times."""
    VICTORIA = "victoria"
    """VictoriaMetrics: no strings, no daily candles (it rewrites one sample all day), backslashes doubled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """Encoded lines and where they come from.

    Attributes:
        text: string array of lines without line feeds.
        rows: int64 array: for each line, the index of its row in the batch (see Batch.slice).
        refused: row index → why line protocol has no way to write the row.
    """

    text: _Array
    rows: _Array
    refused: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.text)

    def body(self) -> bytes:
        """Return the lines as a request body."""
        joined = pc.binary_join(pa.ListArray.from_arrays(pa.array([0, len(self)], pa.int32()), self.text), "\n")
        return bytes(joined[0].as_buffer()) if len(self) else b""


def encode_tickvault(batch: Batch, depth: int, dialect: Dialect = Dialect.INFLUX) -> Lines:
    """Encode every row as measurements tick, candle, market_status and gap; times are in ns.

    Args:
        batch: tables of exactly the schemas of the model.
        depth: book levels to write, 0 to 30.
        dialect: what the server understands.
    """
    return _concatenate(
        [
            _ticks(batch, depth, dialect),
            _candles(batch, dialect),
            _market_status(batch, dialect),
            _gaps(batch, dialect),
        ]
    )


def encode_tradedatafeed(batch: Batch, dialect: Dialect = Dialect.INFLUX) -> Lines:
    """Encode the candles as the tradedatafeed recorder does, so that existing buckets go on; times are in ms.

    Unlike its writer this one escapes the tags, so that symbols with blanks arrive.
    """
    table, offset = _table(batch, "candles")

    def series(key: str, symbol: str, interval: str) -> str | None:
        tags = {"feed_name": _key(key.replace(" ", "_")), "trade_symbol": symbol}
        return _series_key(_CONTROL.sub(" ", interval).replace(",", "\\,").replace(" ", "\\ "), tags, dialect)

    fields = [_number(name.title(), table[name], keep_zero=True) for name in _OHLC]
    fields.append(_number("Volume", pc.fill_null(table["volume"], 0).cast(pa.float64()), keep_zero=True, end=""))
    prefix = _per_series(series, table, "instrument_key", "symbol", "interval")
    return _assemble(prefix, fields, pc.divide(_int(table["time"]), 1000), offset, _not_daily(table, dialect))


def chunks(lines: Lines, max_rows: int = 5000, max_bytes: int = 4_000_000) -> Iterator[Lines]:
    """Cut lines into request bodies within both bounds; a line longer than max_bytes goes alone."""
    ends = pc.cumulative_sum(pc.add(pc.binary_length(lines.text).cast(pa.int64()), 1)).to_pylist()
    first = sent = 0
    while first < len(lines):
        fitting = bisect_right(ends, sent + max_bytes)
        last = max(first + 1, min(fitting, first + max_rows))
        yield Lines(text=lines.text[first:last], rows=lines.rows[first:last])
        first, sent = last, ends[last - 1]


def _ticks(batch: Batch, depth: int, dialect: Dialect) -> Lines:
    table, offset = _table(batch, "ticks")

    def series(key: str, symbol: str) -> str | None:
        return _instrument_series("tick", key, symbol, None, batch.definitions.get(key), dialect)

    fields = [_number(name, table[name]) for name in _FLOATS]
    fields += [_number(name, _int(table[name]), "i") for name in _INTEGERS]
    fields += [_true("cas_eligible", table["cas_eligible"]), _true("snapshot", pc.equal(table["kind"], "snapshot"))]
    for name in _BOOK:
        fields += _levels(name, table[name], depth)
    fields += [_number("received_at", _nanoseconds(table["received_at"]), "i"), _seq(table)]
    return _assemble(_per_series(series, table, "instrument_key", "symbol"), fields, _distinct_time(table), offset)


def _candles(batch: Batch, dialect: Dialect) -> Lines:
    table, offset = _table(batch, "candles")

    def series(key: str, symbol: str, interval: str) -> str | None:
        return _instrument_series("candle", key, symbol, interval, batch.definitions.get(key), dialect)

    fields = [_number(name, table[name]) for name in _OHLC]
    fields += [_number("volume", table["volume"], "i"), _seq(table)]
    time = _nanoseconds(table["time"])
    if dialect is Dialect.INFLUX3:
        time = pc.add(time, _modulo(table["seq"], 1_000_000_000))
    prefix = _per_series(series, table, "instrument_key", "symbol", "interval")
    return _assemble(prefix, fields, time, offset, _not_daily(table, dialect))


def _market_status(batch: Batch, dialect: Dialect) -> Lines:
    table, offset = _table(batch, "market_status")

    def series(scope: str, segment: str) -> str | None:
        return _series_key("market_status", {"scope": scope, "segment": segment}, dialect)

    fields = [_string("status", table["status"], dialect), _seq(table)]
    return _assemble(_per_series(series, table, "scope", "segment"), fields, _distinct_time(table), offset)


def _gaps(batch: Batch, dialect: Dialect) -> Lines:
    table, offset = _table(batch, "gaps")

    def series(scope: str, subject: str | None, reason: str) -> str | None:
        return _series_key("gap", {"scope": scope, "subject": subject, "reason": reason}, dialect)

    planned = pc.if_else(table["planned"], "planned=true", "planned=false")
    fields = [
        _number("duration_s", table["duration_s"], keep_zero=True),
        _number("closed_at", _nanoseconds(table["closed_at"]), "i", keep_zero=True),
        _string("detail", table["detail"], dialect),
        planned,
    ]
    prefix = _per_series(series, table, "scope", "subject", "reason")
    return _assemble(prefix, fields, _nanoseconds(table["opened_at"]), offset)


@lru_cache(_SERIES_KEPT)  # a batch has most of the last one's series, and each costs as much as several rows
def _instrument_series(
    measurement: str, key: str, symbol: str, interval: str | None, definition: Definition | None, dialect: Dialect
) -> str | None:
    tags = _instrument_tags(key, symbol, definition)
    return _series_key(measurement, {**tags, "interval": interval}, dialect)


def _instrument_tags(key: str, symbol: str, definition: Definition | None) -> _Tags:
    tags: dict[str, str | None] = {"instrument_key": _key(key), "symbol": symbol, "segment": segment_of(key)}
    if definition is None:
        return tags
    tags["segment"] = definition.segment or tags["segment"]
    if definition.expiry or definition.option_type:
        tags["underlying"] = definition.underlying_symbol
        tags["expiry"] = definition.expiry.isoformat() if definition.expiry else None
        tags["strike"] = repr(float(definition.strike)).removesuffix(".0") if definition.strike else None
        tags["option_type"] = definition.option_type
    return tags


class _UnwritableKeyError(Exception):
    """An instrument key that no escaping can carry; changing it would put its rows into another series."""


def _key(key: str) -> str:
    if not key or key.endswith("\\") or _CONTROL.search(key):
        raise _UnwritableKeyError
    return key


def _series_key(measurement: str, tags: _Tags, dialect: Dialect) -> str | None:
    """Return escaped measurement and tags, sorted; None when it is longer than servers take."""
    # Only instrument keys name a series; in descriptive tags a control character or a last backslash is worth a blank.
    cleaned = {name: _CONTROL.sub(" ", value).rstrip("\\") for name, value in sorted(tags.items()) if value}
    escaped = (f",{name}={_escape(value, dialect)}" for name, value in cleaned.items() if value)
    series = measurement + "".join(escaped)
    return series if measurement and len(series.encode()) <= _MAX_SERIES_KEY_BYTES else None


def _escape(value: str, dialect: Dialect) -> str:
    # InfluxDB takes a backslash as it is; VictoriaMetrics reads two as one, and loses the line where one stands
    # before an escaped character.
    doubled = value.replace("\\", "\\\\") if dialect is Dialect.VICTORIA else value
    return _SPECIAL.sub(r"\\\1", doubled)


def _per_series(build: Callable[..., str | None], table: pa.Table, *names: str) -> _Array:
    """Return for each row what `build` makes of the named columns, calling it once per distinct combination."""
    parts = [_whole(table[name]).dictionary_encode(null_encoding="encode") for name in names]
    code = pa.repeat(pa.scalar(0, pa.int64()), table.num_rows)
    for part in parts:
        code = pc.add(pc.multiply(code, max(1, len(part.dictionary))), part.indices.cast(pa.int64()))
    grouped = code.dictionary_encode()
    values = [part.dictionary.to_pylist() for part in parts]
    series = [_build(build, values, combined) for combined in grouped.dictionary.to_pylist()]
    return pa.array(series, pa.string()).take(grouped.indices)


def _build(build: Callable[..., str | None], values: list[list[Any]], code: int) -> str | None:
    chosen = []
    for column in reversed(values):
        code, index = divmod(code, len(column))
        chosen.append(column[index])
    try:
        return build(*reversed(chosen))
    except _UnwritableKeyError:
        return None


def _assemble(prefix: _Array, fields: Sequence[_Array], time: _Array, offset: int, keep: _Array = None) -> Lines:
    """Join series, fields and time; rows count from `offset`, those that `keep` rules out are not written.

    Every row has the last field; the others bring the comma behind them, so that one join does for all.
    """
    rows, time = pa.arange(offset, offset + len(prefix)), _whole(time)
    parts = (prefix, " ", *map(_whole, fields), " ", pc.cast(time, pa.string()))
    text = pc.binary_join_element_wise(*parts, "", null_handling="skip")
    if prefix.null_count or time.null_count:
        text = pc.if_else(pc.and_(pc.is_valid(prefix), pc.is_valid(time)), text, pa.scalar(None, pa.string()))
    if keep is not None:
        text, rows, prefix = text.filter(keep), rows.filter(keep), prefix.filter(keep)
    refused: dict[int, str] = {}
    if text.null_count:
        bad = pc.is_null(text)
        reasons = pc.if_else(pc.is_null(prefix), _BAD_SERIES, _BAD_TIME).filter(bad)
        refused = dict(zip(rows.filter(bad).to_pylist(), reasons.to_pylist(), strict=True))
        text, rows = text.filter(pc.is_valid(text)), rows.filter(pc.is_valid(text))
    return Lines(text=text, rows=rows, refused=refused)


def _concatenate(parts: Sequence[Lines]) -> Lines:
    return Lines(
        text=pa.concat_arrays([part.text for part in parts]),
        rows=pa.concat_arrays([part.rows for part in parts]),
        refused={row: why for part in parts for row, why in part.refused.items()},
    )


def _seq(table: pa.Table) -> _Array:
    return _number("seq", table["seq"], "i", keep_zero=True, end="")


def _number(name: str, column: _Array, suffix: str = "", *, keep_zero: bool = False, end: str = ",") -> _Array:
    """Return `name=value,` for each row; null where the value is null, NaN, infinite or a zero not to be kept."""
    column = _whole(column)
    keep = pc.is_finite(column)
    if not keep_zero:
        keep = pc.and_(keep, pc.not_equal(column, 0))
    values = pc.if_else(keep, column, pa.scalar(None, column.type))
    if name in _RECURRING:
        encoded = values.dictionary_encode()
        return _written(f"{name}=", encoded.dictionary, suffix + end).take(encoded.indices)
    if name in _TOTALS and _are_plain(values):
        values = values.cast(pa.int64())  # quicker to write
    return _written(f"{name}=", values, suffix + end)


def _written(before: str, values: _Array, behind: str) -> _Array:
    """Return `before`, the number and what stands behind it for each row, null for null."""
    # Arrow writes the shortest digits that read back as the same double, with digits on both sides of a point.
    return _surrounded(before, pc.cast(values, pa.string()), behind)


def _surrounded(before: str, text: _Array, behind: str) -> _Array:
    text = pc.binary_replace_slice(text, start=0, stop=0, replacement=before)  # much quicker than to join the three
    return pc.binary_replace_slice(text, start=_END, stop=_END, replacement=behind) if behind else text


def _are_plain(values: _Array) -> bool:
    """Say whether doubles other than zero are integers that Arrow writes without an exponent."""
    plain = pc.and_(pc.equal(pc.trunc(values), values), pc.less(pc.abs(values), 1e10))
    return pc.all(plain).as_py() is not False


def _levels(name: str, column: _Array, depth: int) -> list[_Array]:
    """Return one column per book level: `name_1=…,` up to the depth, null where the level or its value is."""
    lists = _whole(column)
    offsets = lists.offsets
    first = offsets[0].as_py()
    values = lists.values.slice(first, offsets[-1].as_py() - first)
    values = pc.if_else(pc.is_finite(values), values, pa.scalar(None, values.type))
    behind = "i," if pa.types.is_integer(values.type) else ","
    # Prices recur, from level to level and in the next update; by bits, so that a negative zero stays one.
    bits = values.view(pa.int64()).dictionary_encode()
    digits = pc.cast(bits.dictionary.view(values.type), pa.string())
    starts, lengths = pc.subtract(offsets[:-1], first), pc.list_value_length(lists)
    nowhere = pa.scalar(None, starts.type)
    found = []
    for level in range(min(depth, pc.max(lengths).as_py() or 0)):
        place = pc.if_else(pc.greater(lengths, level), pc.add(starts, level), nowhere)
        found.append(_surrounded(f"{name}_{level + 1}=", digits.take(bits.indices.take(place)), behind))
    return found


def _true(name: str, column: _Array) -> _Array:
    return pc.if_else(_whole(column), f"{name}=true,", pa.scalar(None, pa.string()))


def _string(name: str, column: _Array, dialect: Dialect) -> _Array:
    text = _whole(column)
    if dialect is Dialect.VICTORIA:  # it would store a string as a series of zeros
        return pa.nulls(len(text), pa.string())
    text = pc.replace_substring(text, "\\", "\\\\")
    text = pc.replace_substring(text, '"', '\\"')
    text = pc.replace_substring_regex(text, r"[\x00-\x1f\x7f]", " ")
    filled = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
    return pc.binary_join_element_wise(f'{name}="', filled, '",', "")


def _distinct_time(table: pa.Table) -> _Array:
    """Return `time` (ms) * 10**6 + `seq` mod 10**6."""
    in_range_ns = _nanoseconds(table["time"])
    whole_ms = pc.multiply(pc.divide(in_range_ns, 1_000_000), 1_000_000)
    return pc.add(whole_ms, _modulo(table["seq"], 1_000_000))


def _nanoseconds(column: _Array) -> _Array:
    """Return a µs column in ns; null where that does not fit 64 bits, instead of a wrapped time."""
    micros = _int(column)
    fits = pc.and_(pc.less_equal(micros, _MAX_TIME_US), pc.greater_equal(micros, -_MAX_TIME_US))
    return pc.multiply(pc.if_else(fits, micros, pa.scalar(None, pa.int64())), 1000)


def _modulo(column: _Array, divisor: int) -> _Array:
    whole = _whole(column)
    return pc.subtract(whole, pc.multiply(pc.divide(whole, divisor), divisor))


def _int(column: _Array) -> _Array:
    return _whole(column).cast(pa.int64())


def _whole(column: _Array) -> _Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _not_daily(table: pa.Table, dialect: Dialect) -> _Array:
    return pc.not_equal(_whole(table["interval"]), "1d") if dialect is Dialect.VICTORIA else None


def _table(batch: Batch, name: str) -> tuple[pa.Table, int]:
    """Return the table and the row index of its first row."""
    return batch.tables[name], sum(batch.tables[other].num_rows for other in TABLES[: TABLES.index(name)])
