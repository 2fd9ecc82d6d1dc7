"""Many Parquet files as one, sorted by instrument and time, in bounded memory: what a closed day is kept as.

Rows go through a spool on the disk, in buckets of whole instruments that each fit into memory and become a row group:
what a query reads of one instrument is a row group, however long the day was. The spool has no name, so a kill leaves
nothing of it.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["ORDER", "write_sorted"]

# Table → what its rows are ordered by; rows that agree in the first are kept together.
ORDER: Final[Mapping[str, tuple[str, ...]]] = {
    "ticks": ("instrument_key", "time", "seq"),
    "candles": ("instrument_key", "time", "seq"),
    "market_status": ("segment", "time", "seq"),
    "instruments": ("instrument_key", "valid_from_seq"),
}
_LEVEL: Final = 9  # of zstd
_GROUP_ROWS: Final = 131_072
_HELD_BYTES: Final = 24_000_000  # of rows at a time; ordering them takes as much again
_READ_ROWS: Final = 16_384
# Chosen by measurement on sorted rows (benchmarks/stored.py); zstd makes the most of other numbers as they are.
_RECURRING: Final = frozenset({"ltq", "cp", "delta", "gamma"})
_STEADY: Final = frozenset({"seq", "ltt", "vtt", "valid_from_seq"})
_ROUGH: Final = frozenset({"tbq", "tsq", "bid_price", "ask_price"})


def write_sorted(inputs: Sequence[Path], file: BinaryIO, order: Sequence[str], *, spool_folder: Path) -> int:
    """Write every row of some Parquet files into one, in order; return how many.

    Args:
        inputs: their columns may differ: one that a file has not is null for its rows.
        file: open for writing.
        order: columns; all rows that agree in the first are held in memory at once.
        spool_folder: where there is room for all rows, lightly compressed, for a while.

    Raises:
        OSError, pa.ArrowException: an input cannot be read, or the disk is full; or the columns of two cannot be united.
    """
    schema, key = _united(inputs), order[0]
    held_rows = _rows_held(inputs)
    bucket_of = _buckets(inputs, key, held_rows)
    sorting = [pq.SortingColumn(schema.get_field_index(name)) for name in order]
    written = 0
    with (
        pq.ParquetWriter(file, schema, sorting_columns=sorting, write_page_index=True, **_form(schema)) as writer,
        tempfile.TemporaryFile(dir=spool_folder) as spool,
    ):
        for rows in _in_buckets(_read(inputs, schema, held_rows), schema, key, bucket_of, spool):
            indices = pc.sort_indices(rows, sort_keys=[(name, "ascending") for name in order])
            writer.write_table(rows.take(indices), row_group_size=2 * _GROUP_ROWS)
            written += rows.num_rows
    return written


def _united(inputs: Iterable[Path]) -> pa.Schema:
    """Return a schema that every row fits into."""
    schemas = [pq.read_schema(path).remove_metadata() for path in inputs]
    everywhere = set.intersection(*(set(schema.names) for schema in schemas))
    united = pa.unify_schemas(schemas)
    return pa.schema([field if field.name in everywhere else field.with_nullable(True) for field in united])


def _rows_held(inputs: Iterable[Path]) -> int:
    """Return how many rows may be held at a time, by what the first ones take."""
    for path in inputs:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_READ_ROWS):
                return max(1, min(_GROUP_ROWS, _HELD_BYTES * int(batch.num_rows) // max(1, int(batch.nbytes))))
    return _GROUP_ROWS


def _buckets(inputs: Iterable[Path], key: str, held_rows: int) -> dict[Any, int]:
    """Return value of the key → number of its bucket, in order, so that a bucket has no more rows than may be held."""
    counts: Counter[Any] = Counter()
    for path in inputs:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_GROUP_ROWS, columns=[key]):
                for one in batch.column(0).value_counts():
                    counts[one["values"].as_py()] += one["counts"].as_py()
    bucket_of, bucket, rows = {}, 0, 0
    for value in sorted(counts):
        if rows and rows + counts[value] > held_rows:
            bucket, rows = bucket + 1, 0
        bucket_of[value] = bucket
        rows += counts[value]
    return bucket_of


def _read(inputs: Iterable[Path], schema: pa.Schema, held_rows: int) -> Iterator[pa.Table]:
    """Yield all rows with the columns of the schema, as many at a time as may be held."""
    parts: list[pa.Table] = []
    for path in inputs:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(min(_READ_ROWS, held_rows)):
                parts.append(_with_columns(batch, schema))
                if sum(part.num_rows for part in parts) >= held_rows:
                    yield pa.concat_tables(parts)
                    parts.clear()
    if parts:
        yield pa.concat_tables(parts)


def _with_columns(batch: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
    there = set(batch.schema.names)
    columns = [
        batch.column(field.name) if field.name in there else pa.nulls(batch.num_rows, field.type) for field in schema
    ]
    return pa.table(columns, schema=schema)


def _in_buckets(
    parts: Iterable[pa.Table], schema: pa.Schema, key: str, bucket_of: Mapping[Any, int], spool: BinaryIO
) -> Iterator[pa.Table]:
    """Yield the rows of each bucket, which a spool holds until all are known."""
    values = pa.array(bucket_of.keys(), schema.field(key).type)
    numbers = pa.array(bucket_of.values(), pa.int32())
    held: dict[int, list[int]] = {number: [] for number in bucket_of.values()}
    written = 0
    with pa.ipc.new_file(spool, schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        for part in parts:
            of_row = numbers.take(pc.index_in(part.column(key).combine_chunks(), value_set=values))
            ordered, offset = part.take(pc.sort_indices(of_row)), 0
            for one in sorted(of_row.value_counts().to_pylist(), key=lambda one: int(one["values"])):
                for batch in ordered.slice(offset, one["counts"]).combine_chunks().to_batches():
                    writer.write_batch(batch)
                    held[one["values"]].append(written)
                    written += 1
                offset += one["counts"]
    spool.seek(0)
    with pa.ipc.open_file(spool) as reader:
        for batches in held.values():
            yield pa.Table.from_batches([reader.get_batch(number) for number in batches], schema).combine_chunks()


def _form(schema: pa.Schema) -> dict[str, Any]:
    """Return how columns are encoded and compressed."""
    recurring, encodings = [], {}
    for field in schema:
        is_list = pa.types.is_list(field.type)
        column = f"{field.name}.list.element" if is_list else field.name
        if field.name in _RECURRING or pa.types.is_string(field.type):
            recurring.append(column)
        elif field.name in _STEADY:
            encodings[column] = "DELTA_BINARY_PACKED"
        elif field.name in _ROUGH:
            encodings[column] = "BYTE_STREAM_SPLIT"
    return {
        "compression": "zstd",
        "compression_level": _LEVEL,
        "use_dictionary": recurring,
        "column_encoding": encodings,
    }
