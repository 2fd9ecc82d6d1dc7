"""Which series a row belongs to: measurement and tags, escaped for line protocol, built once for each.

Tags are a pure function of the row's keys, the definition in force and the dialect; what cannot be written without changing
which series it names is refused, never bent into shape.

Source: docs/influxdb.md; influxdata/line-protocol, `line-protocol.ebnf`.
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from tickvault.model import Definition, segment_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tickvault.model import Batch

__all__ = ["Dialect", "Series", "candle_series_of_tradedatafeed", "instrument_series", "plain_series"]

_Array: TypeAlias = Any  # pyarrow has no stubs: these names are for the reader
_Tags: TypeAlias = "Mapping[str, str | None]"
_Build: TypeAlias = "Callable[..., str | None]"

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_SPECIAL: Final = re.compile(r"([,= ])")
# The engine of InfluxDB 1 and 2 takes no longer series key (measurement and tags).
_MAX_SERIES_KEY_BYTES: Final = 65_535
_SERIES_KEPT: Final = 20_000  # of a measurement, 4 MB; an instrument has a tick and two candles
_NO_TEXT: Final = pa.array([], pa.string())


class Dialect(StrEnum):
    """Whose line protocol is written."""

    INFLUX = "influx"
    """InfluxDB 1 and 2: the last write of a point wins."""
    INFLUX3 = "influx3"
    """InfluxDB 3: of two different writes of a point either may stay, so versions of a candle get distinct times."""
    VICTORIA = "victoria"
    """VictoriaMetrics: no strings, no daily candles (it rewrites one sample all day), backslashes doubled."""


class Series:
    """Series of rows, each built once.

    Args:
        build: returns the series for the values of some columns, None where line protocol cannot write it.
    """

    def __init__(self, build: _Build) -> None:
        self._build = build
        self._kept = _NO_TEXT, _NO_TEXT  # what each was built from, and the series

    def of(self, table: pa.Table, *names: str) -> _Array:
        """Return for each row what is built from the named columns, null where it is not.

        A line feed, which separates them here, makes a key unwritable; elsewhere it is as good as a blank.
        """
        columns = [
            table[name] if name == "instrument_key" else pc.replace_substring(table[name], "\n", " ") for name in names
        ]
        rows = pc.binary_join_element_wise(
            *(column.combine_chunks() for column in columns), "\n", null_handling="replace", null_replacement=""
        )
        known, series = self._kept if len(self._kept[0]) < _SERIES_KEPT else (_NO_TEXT, _NO_TEXT)
        found = pc.index_in(rows, value_set=known)
        if found.null_count:
            new = rows.filter(pc.is_null(found)).unique()
            built = [self._built(one.split("\n"), len(names)) for one in new.to_pylist()]
            known, series = pa.concat_arrays([known, new]), pa.concat_arrays([series, pa.array(built, pa.string())])
            self._kept = known, series
            found = pc.index_in(rows, value_set=known)
        return series.take(found)

    def _built(self, values: Sequence[str], count: int) -> str | None:
        try:
            return self._build(*values) if len(values) == count else None
        except _UnwritableKeyError:
            return None


def plain_series(measurement: str, dialect: Dialect, *tags: str) -> Series:
    """Return series of a measurement whose tags are columns."""
    return Series(lambda *values: _series_key(measurement, dict(zip(tags, values, strict=True)), dialect))


@lru_cache(2)
def candle_series_of_tradedatafeed(dialect: Dialect) -> Series:
    """Return the series of candles by key, symbol and interval as the tradedatafeed recorder names them."""

    def build(key: str, symbol: str, interval: str) -> str | None:
        tags = {"feed_name": _key(key.replace(" ", "_")), "trade_symbol": symbol}
        return _series_key(_CONTROL.sub(" ", interval).replace(",", "\\,").replace(" ", "\\ "), tags, dialect)

    return Series(build)


def instrument_series(measurement: str, batch: Batch, dialect: Dialect) -> Series:
    """Return the series of instruments, by key and symbol, and interval where there is one."""
    return _kept(measurement, _Under(batch.definitions), dialect)


class _Under:
    """Definitions, equal to none but themselves."""

    def __init__(self, definitions: Mapping[str, Definition]) -> None:
        self.definitions = definitions

    def __hash__(self) -> int:
        return id(self.definitions)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Under) and self.definitions is other.definitions


@lru_cache(4)  # a batch has most of the last one's series, and to build one costs more than to write a row
def _kept(measurement: str, under: _Under, dialect: Dialect) -> Series:
    def build(key: str, symbol: str, interval: str | None = None) -> str | None:
        tags = _instrument_tags(key, symbol, under.definitions.get(key))
        return _series_key(measurement, {**tags, "interval": interval}, dialect)

    return Series(build)


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
