"""Many files as one: every row once, in order, in row groups of whole instruments, whatever columns the files have."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tickvault.model import SCHEMAS
from tickvault.sinks import sorting
from tickvault.sinks.sorting import ORDER, write_sorted

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = pa.schema([pa.field("key", pa.string(), nullable=False), pa.field("seq", pa.int64(), nullable=False)])


def merged(folder: Path, *tables: pa.Table) -> pq.ParquetFile:
    """Write tables as files, and those as one."""
    paths = []
    for number, table in enumerate(tables):
        paths.append(folder / f"{number}.parquet")
        pq.write_table(table, paths[-1])
    with (folder / "whole").open("wb") as file:
        assert write_sorted(paths, file, ("key", "seq"), spool_folder=folder) == sum(one.num_rows for one in tables)
    return pq.ParquetFile(folder / "whole")


def test_every_table_has_an_order() -> None:
    """Of columns that it has."""
    for table, order in ORDER.items():
        assert set(order) <= set(SCHEMAS[table].names)


@pytest.mark.parametrize("held", [1, 40, 10_000])
def test_every_row_comes_once_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    """However little memory there is; a key's rows are never parted between row groups."""
    monkeypatch.setattr(sorting, "_GROUP_ROWS", held)
    rng = random.Random(held)
    rows = [(rng.choice("abcdef"), seq) for seq in range(300)]
    tables = [pa.table(list(zip(*rows[at : at + 70], strict=True)), schema=SCHEMA) for at in range(0, 300, 70)]
    whole = merged(tmp_path, *tables)
    assert whole.schema_arrow == SCHEMA
    assert [tuple(row.values()) for row in whole.read().to_pylist()] == sorted(rows)
    groups = [set(whole.read_row_group(i)["key"].to_pylist()) for i in range(whole.num_row_groups)]
    if held == 40:
        assert len(groups) > 3
    if held > 1:
        assert sum(map(len, groups)) == 6


def test_columns_that_a_file_has_not_are_null(tmp_path: Path) -> None:
    """Files of older and newer versions: no column is lost, none is invented."""
    older = pa.table({"key": ["b"], "seq": [1], "gone": [1.5]})
    newer = pa.table([["a"], [2], ["x"]], schema=SCHEMA.append(pa.field("new", pa.string(), nullable=False)))
    whole = merged(tmp_path, older, newer)
    assert whole.read().to_pylist() == [
        {"key": "a", "seq": 2, "gone": None, "new": "x"},
        {"key": "b", "seq": 1, "gone": 1.5, "new": None},
    ]


def test_columns_of_different_types_are_not_joined(tmp_path: Path) -> None:
    """Rather none than a value that is another one afterwards."""
    with pytest.raises(pa.ArrowException):
        merged(tmp_path, pa.table({"key": ["a"], "seq": [1]}), pa.table({"key": ["a"], "seq": [1.5]}))


def test_nothing_is_left_of_the_spool(tmp_path: Path) -> None:
    """It has no name, so that a kill leaves nothing either."""
    merged(tmp_path, pa.table({"key": ["a"], "seq": [1]}))
    assert {path.name for path in tmp_path.iterdir()} == {"0.parquet", "whole"}
