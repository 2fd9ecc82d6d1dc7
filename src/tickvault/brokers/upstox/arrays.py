"""What Arrow's kernels lack, each for a whole column; pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "copied",
    "fields",
    "finite",
    "int64",
    "last_of_each",
    "marked",
    "named",
    "null_if_zero",
    "parents",
    "spread",
]

_MOST_CODES: Final = 2**62


def parents(mapping: pa.MapArray) -> pa.Array:
    """Return, for each entry of a map column, the index of its row."""
    # list_parent_indices aborts the process on a MapArray, so it is given the same offsets as a list.
    lengths = pc.subtract(mapping.offsets.slice(1), mapping.offsets.slice(0, len(mapping)))
    offsets = pc.cumulative_sum(pa.concat_arrays([pa.array([0], pa.int32()), lengths]))
    return pc.list_parent_indices(pa.ListArray.from_arrays(offsets, mapping.keys))


def last_of_each(*columns: pa.Array) -> pa.Array:
    """Return, of each combination of values of integer columns, the last row, in order."""
    count = len(columns[0])
    if not count:
        return int64([])
    code, size = pa.repeat(pa.scalar(0, pa.int64()), count), 1
    for column in columns:
        ends = pc.min_max(column).as_py()
        span = ends["max"] - ends["min"] + 1
        if size * span < _MOST_CODES:
            numbers = pc.subtract(column.cast(pa.int64()), ends["min"])
        else:  # numbered anew, both stay below the number of rows
            encoded, dense = column.dictionary_encode(), code.dictionary_encode()
            numbers, span = encoded.indices.cast(pa.int64()), len(encoded.dictionary)
            code, size = dense.indices.cast(pa.int64()), len(dense.dictionary)
        code, size = pc.add(pc.multiply(code, span), numbers), size * span
    code = code.dictionary_encode()
    if len(code.dictionary) == count:
        return pa.arange(0, count)
    return pc.inverse_permutation(code.indices, max_index=len(code.dictionary) - 1).sort()


def marked(marks: Sequence[bool], encoded: pa.DictionaryArray) -> pa.Array:
    """Return of each row the mark of its value; there is one mark a distinct value."""
    if len(set(marks)) == 1:
        return pa.repeat(marks[0], len(encoded))
    return pa.array(marks, pa.bool_()).take(encoded.indices)


def named(enum: Any, numbers: pa.Array) -> pa.Array:
    """Return each enum number's wire name; an unknown number as its digits."""
    encoded = numbers.dictionary_encode()
    known = {number: name for name, number in enum.items()}
    names = [known.get(number, str(number)) for number in encoded.dictionary.to_pylist()]
    return pa.array(names, pa.string()).take(encoded.indices)


def null_if_zero(values: pa.Array) -> pa.Array:
    """Return numbers without their zeros."""
    return pc.if_else(pc.not_equal(values, 0), values, None)


def finite(values: pa.Array) -> pa.Array:
    """Return values, null where they are NaN or infinite."""
    if not pa.types.is_floating(values.type):
        return values
    if math.isfinite(pc.sum(values).as_py() or 0.0):  # a single one that is not would not leave the sum finite
        return values
    return pc.if_else(pc.is_finite(values), values, None)


def copied(values: pa.Array) -> pa.Array:
    """Return the same values in memory of their own."""
    half = len(values) // 2
    return pa.concat_arrays([values.slice(0, half), values.slice(half)])  # of two it makes a third; of one it need not


def int64(values: Sequence[int]) -> pa.Array:
    """Return integers as an int64 array."""
    return pa.array(values, pa.int64())


def fields(messages: pa.StructArray | None) -> Mapping[str, pa.Array]:
    """Return the fields of messages, null where the message is; none when there is no message."""
    if messages is None or messages.null_count == len(messages) > 0:
        return {}
    return dict(zip((field.name for field in messages.type), messages.flatten(), strict=True))


def spread(values: pa.Array, present: pa.Array) -> pa.Array:
    """Put values, in order, where `present` says so; null elsewhere."""
    if len(values) == len(present):
        return values
    place = pc.subtract(pc.cumulative_sum(present.cast(pa.int64())), 1)
    return values.take(pc.if_else(present, place, None))
