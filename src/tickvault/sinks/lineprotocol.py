"""Batches of rows → InfluxDB line protocol, column by column.

Laws of this module:

- A line is a pure function of its row, the definition in force and the dialect, so a repeat overwrites itself.
- Ticks carry `currentTs` (ms) * 10**6 + `seq` mod 10**6 as time: no two updates of an instrument collapse into one point.
- A row whose series or time cannot be written is refused by its index (sinks/series.py).
- No Python runs per row. Tags are built once per series; everything else is Arrow kernels.
- A kernel costs as much as writing a hundred numbers, and a live batch is small: columns of one type go through it together.

Source: docs/influxdb.md; influxdata/line-protocol, `line-protocol.ebnf`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from tickvault.model import TABLES, Batch
from tickvault.sinks.series import Dialect, candle_series_of_tradedatafeed, instrument_series, plain_series

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

__all__ = ["Lines", "chunks", "encode_tickvault", "encode_tradedatafeed"]

# pyarrow has no stubs: these names are for the reader.
_Array: TypeAlias = Any

_FIELDS: Final = (
    *("ltp", "cp", "atp", "oi", "iv", "tbq", "tsq", "delta", "theta", "gamma", "vega", "rho", "iep", "rp"),
    *("ltq", "vtt", "ltt", "ieq", "iiq_total", "iiq_m"),
)  # of a tick, in this order
_PRICES: Final = ("ltp", "cp", "atp")
_TOTALS: Final = ("oi", "tbq", "tsq")  # doubles that are counts
_RATIOS: Final = ("iv", "delta", "theta", "gamma", "vega", "rho", "iep", "rp")
_COUNTS: Final = ("ltq", "vtt", "ltt", "ieq", "iiq_total", "iiq_m")
_BOOK: Final = ("bid_price", "bid_qty", "ask_price", "ask_qty")
_OHLC: Final = ("open", "high", "low", "close")

_END: Final = 1_000  # behind every number
_NOTHING: Final = pa.scalar(None, pa.string())
_NO_TEXT: Final = pa.array([], pa.string())
# A Python number would be made a scalar, and cast, at each call.
_ZERO: Final = {kind: pa.scalar(0, kind) for kind in (pa.int64(), pa.float64())}
_NULL: Final = {kind: pa.scalar(None, kind) for kind in _ZERO}
# Microseconds whose nanoseconds still fit the signed 64 bits of a point's time.
_MAX_TIME_US: Final = 9_223_372_036_854_774

_BAD_SERIES: Final = "line protocol cannot write these tags: empty or too long, control characters or a backslash last"
_BAD_TIME: Final = "line protocol cannot write this time: outside the years 1677 to 2262"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """Encoded lines and where they come from.

    Attributes:
        text: string array of lines, each with its line feed.
        rows: int64 array: for each line, the index of its row in the batch (see Batch.slice).
        refused: row index → why line protocol has no way to write the row.
    """

    text: _Array
    rows: _Array
    refused: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.text)

    def body(self) -> memoryview:
        """Return the lines as a request body: what Arrow holds one line behind the other, not a copy."""
        if not len(self):
            return memoryview(b"")
        _, offsets, data = self.text.buffers()
        ends = memoryview(offsets).cast("i")
        return memoryview(data).cast("B")[ends[self.text.offset] : ends[self.text.offset + len(self)]]


def encode_tickvault(batch: Batch, depth: int, dialect: Dialect = Dialect.INFLUX) -> Lines:
    """Encode every row as measurements tick, candle, market_status and gap; times are in ns.

    Args:
        batch: tables of exactly the schemas of the model.
        depth: book levels to write, 0 to 30.
        dialect: what the server understands.
    """
    encoders: Mapping[str, Callable[[Batch, Dialect], Lines]] = {
        "ticks": partial(_ticks, depth=depth),
        "candles": _candles,
        "market_status": _market_status,
        "gaps": _gaps,
    }
    return _concatenate([encode(batch, dialect) for name, encode in encoders.items() if batch.tables[name].num_rows])


def encode_tradedatafeed(batch: Batch, dialect: Dialect = Dialect.INFLUX) -> Lines:
    """Encode the candles as the tradedatafeed recorder does, so that existing buckets go on; times are in ms.

    Unlike its writer this one escapes the tags, so that symbols with blanks arrive.
    """
    table, offset = _table(batch, "candles")
    prices = {name.title(): column for name, column in _named(table, _OHLC).items()}
    volume = pc.fill_null(table["volume"], 0).cast(pa.float64())
    fields = [*_numbers(prices).values(), *_numbers({"Volume": volume}).values()]
    prefix = candle_series_of_tradedatafeed(dialect).of(table, "instrument_key", "symbol", "interval")
    return _assemble(prefix, fields, pc.divide(_int(table["time"]), 1000), offset, _not_daily(table, dialect))


def chunks(lines: Lines, max_rows: int = 10_000, max_bytes: int = 4_000_000) -> Iterator[Lines]:
    """Cut lines into request bodies within both bounds; a line longer than max_bytes goes alone."""
    ends = pc.cumulative_sum(pc.binary_length(lines.text).cast(pa.int64())).to_pylist()
    first = sent = 0
    while first < len(lines):
        fitting = bisect_right(ends, sent + max_bytes)
        last = max(first + 1, min(fitting, first + max_rows))
        yield Lines(text=lines.text[first:last], rows=lines.rows[first:last])
        first, sent = last, ends[last - 1]


def _ticks(batch: Batch, dialect: Dialect, *, depth: int) -> Lines:
    table, offset = _table(batch, "ticks")
    prices, quantities = (_levels(table, names, depth) for names in (_BOOK[::2], _BOOK[1::2]))
    written = {
        **_numbers(prices, but_zero=_named(table, _PRICES), recurring=True),
        **_numbers(but_zero=_named(table, _TOTALS), counts=True),
        **_numbers(but_zero=_named(table, _RATIOS)),
        **_numbers(quantities, "i", but_zero={**_named(table, _COUNTS), "ltt": _int(table["ltt"])}),
    }
    levels = [f"{name}_{level}" for name in _BOOK for level in range(1, depth + 1)]
    fields = [
        *(written[name] for name in _FIELDS if name in written),
        pc.if_else(_whole(table["cas_eligible"]), "cas_eligible=true", _NOTHING),
        pc.if_else(pc.equal(_whole(table["kind"]), "snapshot"), "snapshot=true", _NOTHING),
        *(written[name] for name in levels if name in written),
        *_numbers(suffix="i", but_zero={"received_at": _nanoseconds(table["received_at"])}, recurring=True).values(),
        *_seq(table),
    ]
    prefix = instrument_series("tick", batch, dialect).of(table, "instrument_key", "symbol")
    return _assemble(prefix, fields, _distinct_time(table), offset)


def _candles(batch: Batch, dialect: Dialect) -> Lines:
    table, offset = _table(batch, "candles")
    fields = [
        *_numbers(but_zero=_named(table, _OHLC), recurring=True).values(),
        *_numbers(suffix="i", but_zero=_named(table, ["volume"])).values(),
        *_seq(table),
    ]
    time = _nanoseconds(table["time"])
    if dialect is Dialect.INFLUX3:
        time = pc.add(time, _modulo(table["seq"], 1_000_000_000))
    prefix = instrument_series("candle", batch, dialect).of(table, "instrument_key", "symbol", "interval")
    return _assemble(prefix, fields, time, offset, _not_daily(table, dialect))


def _market_status(batch: Batch, dialect: Dialect) -> Lines:
    table, offset = _table(batch, "market_status")
    prefix = plain_series("market_status", dialect, "scope", "segment").of(table, "scope", "segment")
    fields = [*_string("status", table["status"], dialect), *_seq(table)]
    return _assemble(prefix, fields, _distinct_time(table), offset)


def _gaps(batch: Batch, dialect: Dialect) -> Lines:
    table, offset = _table(batch, "gaps")
    planned = pc.if_else(table["planned"], "planned=true", "planned=false")
    fields = [
        *_numbers({"duration_s": table["duration_s"]}).values(),
        *_numbers({"closed_at": _nanoseconds(table["closed_at"])}, "i").values(),
        *_string("detail", table["detail"], dialect),
        planned,
    ]
    tags = ("scope", "subject", "reason")
    prefix = plain_series("gap", dialect, *tags).of(table, *tags)
    return _assemble(prefix, fields, _nanoseconds(table["opened_at"]), offset)


def _assemble(prefix: _Array, fields: Sequence[_Array], time: _Array, offset: int, keep: _Array = None) -> Lines:
    """Join series, fields and time; rows count from `offset`, those that `keep` rules out are not written.

    Every row has a field.
    """
    rows, time = pa.arange(offset, offset + len(prefix)), _whole(time)
    joined = pc.binary_join_element_wise(*map(_whole, fields), ",", null_handling="skip")
    text = pc.binary_join_element_wise(prefix, joined, _digits(time, "\n"), " ", null_handling="skip")
    if prefix.null_count or time.null_count:
        text = pc.if_else(pc.and_(pc.is_valid(prefix), pc.is_valid(time)), text, _NOTHING)
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
        text=pa.concat_arrays([_NO_TEXT, *(part.text for part in parts)]),
        rows=pa.concat_arrays([pa.array([], pa.int64()), *(part.rows for part in parts)]),
        refused={row: why for part in parts for row, why in part.refused.items()},
    )


def _seq(table: pa.Table) -> Iterable[_Array]:
    return _numbers({"seq": table["seq"]}, "i", recurring=True).values()


def _numbers(
    columns: Mapping[str, _Array] = {},
    suffix: str = "",
    *,
    but_zero: Mapping[str, _Array] = {},
    recurring: bool = False,
    counts: bool = False,
) -> dict[str, _Array]:
    """Return `name=value` for each row of columns of one type, null where the value is null, NaN or infinite.

    Args:
        columns: name → values; those without any are left out.
        suffix: stands behind each value.
        but_zero: more of them, null where the value is zero.
        recurring: whether the same values come again and again, so that each is written once.
        counts: whether they are doubles that should be whole numbers, which are written more quickly as such.
    """
    given = {
        name: _whole(column) for name, column in {**but_zero, **columns}.items() if column.null_count < len(column)
    }
    if not given:
        return {}
    values = pa.concat_arrays(list(given.values()))
    count = len(next(iter(given.values())))
    if rows := count * len(but_zero.keys() & given.keys()):
        some = values.slice(0, rows)
        some = pc.if_else(pc.not_equal(some, _ZERO[values.type]), some, _NULL[values.type])
        values = pa.concat_arrays([some, values.slice(rows)])
    if pa.types.is_floating(values.type) and not math.isfinite(pc.sum(values).as_py() or 0.0):
        values = pc.if_else(pc.is_finite(values), values, _NULL[values.type])
    if counts and _are_plain(values):
        values = values.cast(pa.int64())
    if recurring:  # by bits, so that a negative zero stays one
        encoded = values.view(pa.int64()).dictionary_encode()
        text = _digits(encoded.dictionary.view(values.type), suffix).take(encoded.indices)
    else:
        text = _digits(values, suffix)
    return {
        name: pc.binary_replace_slice(text.slice(number * count, count), start=0, stop=0, replacement=f"{name}=")
        for number, name in enumerate(given)  # to join name and value is much slower
    }


def _digits(values: _Array, suffix: str) -> _Array:
    # Arrow writes the shortest digits that read back as the same double, with digits on both sides of a point.
    text = pc.cast(values, pa.string())
    return pc.binary_replace_slice(text, start=_END, stop=_END, replacement=suffix) if suffix else text


def _are_plain(values: _Array) -> bool:
    """Say whether doubles are whole numbers that Arrow writes without an exponent."""
    plain = pc.and_(pc.equal(pc.trunc(values), values), pc.less(pc.abs(values), 1e10))
    return pc.all(plain).as_py() is not False


def _named(table: pa.Table, names: Iterable[str]) -> dict[str, _Array]:
    return {name: table[name] for name in names}


def _levels(table: pa.Table, sides: Sequence[str], depth: int) -> dict[str, _Array]:
    """Return the columns of a book's levels on both sides, `name_1` up to the depth, null where the level is."""
    lists = pa.concat_arrays([_whole(table[name]) for name in sides])
    most = min(depth, pc.max(pc.list_value_length(lists)).as_py() or 0)
    if not most:
        return {}
    levels = pc.list_slice(lists, 0, most, return_fixed_size_list=True)
    found = {}
    for level in range(most):
        both = pc.list_element(levels, level)
        for number, name in enumerate(sides):
            found[f"{name}_{level + 1}"] = both.slice(number * table.num_rows, table.num_rows)
    return found


def _string(name: str, column: _Array, dialect: Dialect) -> list[_Array]:
    if dialect is Dialect.VICTORIA:  # it would store a string as a series of zeros
        return []
    text = _whole(column)
    text = pc.replace_substring(text, "\\", "\\\\")
    text = pc.replace_substring(text, '"', '\\"')
    text = pc.replace_substring_regex(text, r"[\x00-\x1f\x7f]", " ")
    filled = pc.if_else(pc.equal(text, ""), _NOTHING, text)
    return [pc.binary_join_element_wise(f'{name}="', filled, '"', "")]


def _distinct_time(table: pa.Table) -> _Array:
    """Return `time` (ms) * 10**6 + `seq` mod 10**6."""
    in_range_ns = _nanoseconds(table["time"])
    whole_ms = pc.multiply(pc.divide(in_range_ns, 1_000_000), 1_000_000)
    return pc.add(whole_ms, _modulo(table["seq"], 1_000_000))


def _nanoseconds(column: _Array) -> _Array:
    """Return a µs column in ns; null where that does not fit 64 bits, instead of a wrapped time."""
    micros = _int(column)
    fits = pc.and_(pc.less_equal(micros, _MAX_TIME_US), pc.greater_equal(micros, -_MAX_TIME_US))
    return pc.multiply(pc.if_else(fits, micros, _NULL[pa.int64()]), 1000)


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
