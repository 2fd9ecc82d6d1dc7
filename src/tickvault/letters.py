"""Refused rows as the bytes of a dead letter, and back. Pure.

A row's letter is one JSON object a line: the row's columns and, under `definition`, what tags are made of. It is enough
to write the row again when the journal no longer holds its frame.
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import pyarrow as pa

from tickvault.model import SCHEMAS, Definition, Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tickvault.model import Batch

__all__ = ["addressee", "letter_of", "merged", "rows_of"]

_DEFINITION = "definition"


def addressee(row: Mapping[str, object]) -> str:
    """Return what a row is about: the `instrument_key` of its letter."""
    return str(row.get("instrument_key") or row.get("segment") or row.get("scope") or "")


def letter_of(batch: Batch, index: int, words: str) -> Rejected:
    """Return the letter of a row of a batch that a store refused in these words."""
    table, row = batch.row(index)
    seq = row.get("seq", row.get("valid_from_seq", batch.hi))
    assert isinstance(seq, int)
    key = addressee(row)
    definition = batch.definitions.get(key)
    if definition is not None:
        row |= {_DEFINITION: {name: value for name, value in asdict(definition).items() if value is not None}}
    body = json.dumps(row, default=str, separators=(",", ":")).encode()
    return Rejected(seq=seq, table=table, instrument_key=key, reason=words, body=body)


def merged(letters: Iterable[Rejected]) -> list[Rejected]:
    """Join the letters of rows that share a place: two candles of one instrument in one frame, two scopes of a segment."""
    found: dict[tuple[int, str, str], Rejected] = {}
    for one in letters:
        place = one.seq, one.table, one.instrument_key
        first = found.get(place)
        if first is not None:
            one = Rejected(
                seq=one.seq,
                table=one.table,
                instrument_key=one.instrument_key,
                reason=first.reason,
                body=first.body + b"\n" + one.body,
            )
        found[place] = one
    return list(found.values())


def rows_of(table: str, body: bytes) -> tuple[pa.Table, Mapping[str, Definition]]:
    """Return the rows that a letter holds, and the definitions that were in force.

    Args:
        table: one of TABLES.
        body: as `letter_of` and `merged` made it.

    Raises:
        ValueError: it holds no rows of that table.
    """
    try:
        return _parsed(SCHEMAS[table], [json.loads(line) for line in body.splitlines()])
    except (pa.ArrowException, AttributeError, KeyError, TypeError) as exc:
        raise ValueError(f"expected rows of {table}, one JSON object a line: {exc}") from exc


def _parsed(schema: pa.Schema, lines: list[dict[str, object]]) -> tuple[pa.Table, Mapping[str, Definition]]:
    rows, definitions = [], {}
    for row in lines:
        rows.append({field.name: _typed(row.get(field.name), field.type) for field in schema})
        if isinstance(told := row.get(_DEFINITION), dict):
            expiry = told.get("expiry")
            definitions[addressee(row)] = Definition(
                **told | {"expiry": None if expiry is None else dt.date.fromisoformat(expiry)}
            )
    return pa.Table.from_pylist(rows, schema=schema), definitions


def _typed(value: object, kind: pa.DataType) -> object:
    if not isinstance(value, str):
        return value
    if pa.types.is_timestamp(kind):
        return dt.datetime.fromisoformat(value)
    return dt.date.fromisoformat(value) if pa.types.is_date(kind) else value
