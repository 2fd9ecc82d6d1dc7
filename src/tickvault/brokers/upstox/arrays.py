"""What Arrow's kernels lack, each for a whole column; pure."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "copied",
    "dense",
    "fields",
    "finite",
    "int64",
    "last_of_each",
    "marked",
    "named",
    "null_if_zero",
    "numbers",
    "one_each",
    "parents",
    "within",
]

_MOST_CODES: Final = 2**62
_MOST_SHORT: Final = 2**31
_SPARSE: Final = 8  # codes a row, up to which a place for each is cheaper than to number them anew
# A Python number would be made a scalar, and cast, at each call: twice what the rest of it takes with a few hundred rows.
_ZEROS: Final = {pa.int64(): pa.scalar(0, pa.int64()), pa.float64(): pa.scalar(0, pa.float64())}
_NULLS: Final = {kind: pa.scalar(None, kind) for kind in _ZEROS}


def parents(mapping: pa.MapArray) -> pa.Array:
    """Return, for each entry of a map column, the index of its row."""
    # list_parent_indices aborts the process on a MapArray, so it is given the same offsets as a list.
    return pc.list_parent_indices(pa.ListArray.from_arrays(mapping.offsets, mapping.keys))


def dense(values: pa.Array) -> tuple[pa.Array, int]:
    """Return numbers from 0 on, one a distinct value, and how many there are."""
    encoded = values.dictionary_encode()
    return encoded.indices, len(encoded.dictionary)


def last_of_each(*columns: tuple[pa.Array, int]) -> pa.Array | None:
    """Return, of each combination of values, the last row, in order; None if no combination comes twice.

    Args:
        columns: whole numbers from 0 on, and a number above all of them, as `dense` gives them.
    """
    count = len(columns[0][0])
    kind = pa.int32() if math.prod(above for _, above in columns) < _MOST_SHORT else pa.int64()
    code, size = columns[0]
    for column, above in columns[1:]:
        if size * above >= _MOST_CODES:  # numbered anew, both stay below the number of rows
            code, size = dense(code)
        if above > 1:
            code, size = pc.add(pc.multiply(_as(kind, code), pa.scalar(above, kind)), _as(kind, column)), size * above
    if size > _SPARSE * count:
        code, size = dense(code)
    last = pc.inverse_permutation(code, max_index=size - 1) if size else code
    return None if size - last.null_count == count else last.drop_null().sort()


def _as(kind: pa.DataType, column: pa.Array) -> pa.Array:
    return column if column.type == kind else column.cast(kind)


def marked(marks: Sequence[bool], encoded: pa.DictionaryArray) -> pa.Array:
    """Return of each row the mark of its value; there is one mark a distinct value."""
    if len(set(marks)) == 1:
        return pa.repeat(marks[0], len(encoded))
    return pa.array(marks, pa.bool_()).take(encoded.indices)


def named(enum: Any, numbers: pa.Array) -> pa.Array:
    """Return each enum number's wire name; an unknown number as its digits."""
    encoded = numbers.dictionary_encode()
    known = _names(enum)
    names = [known.get(number, str(number)) for number in encoded.dictionary.to_pylist()]
    return pa.array(names, pa.string()).take(encoded.indices)


@cache
def _names(enum: Any) -> Mapping[int, str]:
    return {number: name for name, number in enum.items()}


def numbers(kept: Mapping[str, pa.Array], lost: Mapping[str, pa.Array]) -> dict[str, pa.Array]:
    """Return columns of one type in memory of their own: NaN and infinities are nulls, and so is a zero in `lost`.

    Those of either kind are treated as one column, end to end: a kernel costs more by the call than by the row.
    """
    found = _parts(kept, finite(_end_to_end(kept))) if kept else {}
    return found | _parts(lost, null_if_zero(finite(_end_to_end(lost)))) if lost else found


def _end_to_end(columns: Mapping[str, pa.Array]) -> pa.Array:
    some = list(columns.values())
    return pa.concat_arrays([*some, some[0].slice(0, 0)])  # of a single array it makes no copy


def _parts(columns: Mapping[str, pa.Array], one: pa.Array) -> dict[str, pa.Array]:
    ends = itertools.accumulate(map(len, columns.values()))
    return {
        name: one.slice(end - len(column), len(column))
        for (name, column), end in zip(columns.items(), ends, strict=True)
    }


def null_if_zero(values: pa.Array) -> pa.Array:
    """Return numbers without their zeros."""
    return pc.if_else(pc.not_equal(values, _ZEROS[values.type]), values, _NULLS[values.type])


def finite(values: pa.Array) -> pa.Array:
    """Return values, null where they are NaN or infinite."""
    if not pa.types.is_floating(values.type):
        return values
    if math.isfinite(pc.sum(values).as_py() or 0.0):  # a single one that is not would not leave the sum finite
        return values
    return pc.if_else(pc.is_finite(values), values, None)


def within(values: pa.Array, least: int, most: int) -> bool:
    """Say whether all integers, but the nulls, are from `least` to `most`."""
    ends = pc.min_max(values)
    low, high = ends["min"].as_py(), ends["max"].as_py()
    return low is None or least <= low <= high <= most


def copied(values: pa.Array) -> pa.Array:
    """Return the same values in memory of their own."""
    half = len(values) // 2
    return pa.concat_arrays([values.slice(0, half), values.slice(half)])  # of two it makes a third; of one it need not


def int64(values: Sequence[int]) -> pa.Array:
    """Return integers as an int64 array."""
    return pa.array(values, pa.int64())


def fields(messages: pa.StructArray | None) -> dict[str, pa.Array]:
    """Return the fields of messages, null where the message is; none when there is no message."""
    if messages is None or messages.null_count == len(messages) > 0:
        return {}
    return dict(zip(messages.type.names, messages.flatten(), strict=True))


def one_each(values: pa.Array) -> pa.ListArray:
    """Return lists of one value, as the parser makes lists, and null where the value is."""
    kind = pa.list_(pa.field("item", values.type, nullable=False))
    offsets = pa.arange(0, len(values) + 1).cast(pa.int32())
    return pa.ListArray.from_arrays(offsets, values, type=kind, mask=values.is_null())
