"""The exchanges' master list, read a row at a time.

Its 54 MB of JSON as Python objects would take 290 MB. Slow all the same: call it on a thread.
"""

from __future__ import annotations

import codecs
import datetime as dt
import json
import math
import re
import zlib
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from unicodedata import category

import structlog

from tickvault.model import IST, Definition

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

__all__ = ["DamagedListError", "parse", "rows", "scan"]

MAX_JSON_BYTES: Final = 1024 * 1024 * 1024
MAX_ROW_CHARS: Final = 1024 * 1024  # a row has some 500
CHUNK_BYTES: Final = 256 * 1024
_BETWEEN_ROWS: Final = re.compile(r"[\s,\[]*")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class DamagedListError(ValueError):
    """The list is not whole."""


def parse(
    gz_bytes: bytes,
    keys: Collection[str],
    *,
    halted: Callable[[], bool] = lambda: False,
    listed: set[str] | None = None,
) -> dict[str, Definition]:
    """Return the definitions of the wanted keys; a key that the list lacks is left out. Slow: call it on a thread.

    Args:
        gz_bytes: the master list as downloaded: gzip of a JSON array of objects.
        keys: instrument keys.
        halted: asked now and then; True ends the work with what was found.
        listed: gets every key that the list has; it is then read to its end, otherwise until all wanted ones are found.

    Raises:
        ValueError: the list is not whole. A single row with values of other types is skipped, and counted in the log.
    """
    wanted, found, skipped = set(keys), dict[str, Definition](), 0
    for row in rows(gz_bytes, halted):
        if not isinstance(row, dict) or not isinstance(key := row.get("instrument_key"), str):
            skipped += 1
            continue
        if listed is not None:
            listed.add(key)
        if key in wanted:
            try:
                found[key] = _definition(key, row)
            except (TypeError, ValueError, OverflowError):
                skipped += 1
            wanted.discard(key)
        if not wanted and listed is None:
            break
    if skipped:
        log.warning("instruments.rows_skipped", rows=skipped)
    return found


def scan(gz_bytes: bytes, *, halted: Callable[[], bool] = lambda: False) -> Iterator[Definition]:
    """Yield the whole list, a row at a time: what the caller forgets is gone. Slow: call it on a thread.

    Raises:
        ValueError: as `parse`.
    """
    skipped = 0
    for row in rows(gz_bytes, halted):
        if isinstance(row, dict) and isinstance(key := row.get("instrument_key"), str):
            try:
                yield _definition(key, row)
                continue
            except (TypeError, ValueError, OverflowError):
                pass
        skipped += 1
    if skipped:
        log.warning("instruments.rows_skipped", rows=skipped)


def rows(gz_bytes: bytes, halted: Callable[[], bool] = lambda: False) -> Iterator[object]:
    """Yield the list as it is written, a row at a time.

    Raises:
        DamagedListError: it is not whole.
    """
    scan, text, start = json.JSONDecoder().raw_decode, "", 0
    for piece in _texts(gz_bytes):
        if halted():
            return
        text, start = text[start:] + piece, 0
        while True:
            between = _BETWEEN_ROWS.match(text, start)
            begin = between.end() if between else start
            try:
                row, start = scan(text, begin)
            except ValueError:
                break  # the row goes on in the next piece
            except RecursionError as exc:
                raise DamagedListError("expected rows without deep nesting") from exc
            yield row
        if len(text) - start > MAX_ROW_CHARS + CHUNK_BYTES:
            raise DamagedListError("expected a JSON array of objects")
    if text[start:].strip(" \r\n\t,") != "]":
        raise DamagedListError("expected a JSON array, and its end")


def _texts(gz_bytes: bytes) -> Iterator[str]:
    inflate, decode, total = zlib.decompressobj(wbits=31), codecs.getincrementaldecoder("utf-8")().decode, 0
    data = gz_bytes
    try:
        while not inflate.eof:
            piece = inflate.decompress(data, CHUNK_BYTES)
            data = inflate.unconsumed_tail
            total += len(piece)
            if not piece and not data and not inflate.eof:
                raise DamagedListError("expected the end of the gzip stream")
            if total > MAX_JSON_BYTES:
                raise DamagedListError(f"expected at most {MAX_JSON_BYTES} bytes")
            yield decode(piece)
    except zlib.error as exc:
        raise DamagedListError("expected gzip") from exc


def _definition(key: str, row: Mapping[str, object]) -> Definition:
    instrument_type = _text(row, "instrument_type")
    option_type = instrument_type if instrument_type in ("CE", "PE") else None
    tick_paise, lot_size, expiry_ms = (_number(row, name) for name in ("tick_size", "lot_size", "expiry"))
    return Definition(
        instrument_key=key,
        symbol=_text(row, "trading_symbol"),
        segment=_text(row, "segment"),
        instrument_type=instrument_type,
        underlying_key=_text(row, "underlying_key"),
        underlying_symbol=_text(row, "underlying_symbol"),
        expiry=_expiry(expiry_ms) if expiry_ms else None,
        strike=_number(row, "strike_price") if option_type else None,  # a future's is always 0.0
        option_type=option_type,
        lot_size=None if lot_size is None else _int64(lot_size),
        tick_size=None if tick_paise is None else tick_paise / 100,
        isin=_text(row, "isin"),
        name=_text(row, "name"),
    )


@lru_cache(maxsize=1024)
def _expiry(expiry_ms: float) -> dt.date:
    return dt.datetime.fromtimestamp(expiry_ms / 1000, IST).date()


def _text(row: Mapping[str, object], name: str) -> str | None:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise TypeError(name)
    if value and not value.isprintable():  # half a character cannot be stored, and a control one steers a terminal
        return "".join(" " if category(one) in {"Cc", "Cs"} else one for one in value)
    return value or None


def _number(row: Mapping[str, object], name: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(name)
    if not math.isfinite(number := float(value)):
        raise ValueError(name)
    return number


def _int64(number: float) -> int:
    if not -(2.0**63) <= number < 2.0**63:
        raise ValueError(number)
    return int(number)
