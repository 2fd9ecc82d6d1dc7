"""Parquet files: names, folders, modes, and what counts. The protocol as a whole is in the property tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
from doubles import AT_MS, DAY_MS, Vault, payload, received

from tickvault.model import SCHEMAS
from tickvault.sinks.parquet import DataFile, FileSystem, ParquetStore, TableFile, boundary, counting, scan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    vault = Vault(tmp_path / "data")
    vault.open()
    yield vault
    vault.drop()


def files(root: Path, *names: str) -> list[DataFile]:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return list(scan(root))


def name(lo: int, hi: int, *, table: str = "ticks", recorder: str = "r", suffix: str = "") -> str:
    return f"{table}/date=2026-09-01/{recorder}-{lo:016}-{hi:016}{suffix}.parquet"


def ranges(some: list[DataFile]) -> set[tuple[str, str, int, int, bool]]:
    return {(one.table, one.recorder, one.lo, one.hi, one.compacted) for one in some}


def test_a_batch_is_a_file_a_table_and_date(vault: Vault) -> None:
    """By the IST date of the frames; the name says recorder and range; only the owner may read."""
    for number in (1, 2):
        body = payload(number, at_ms=AT_MS + (number - 1) * (DAY_MS - 1000))
        vault.journal.append([received(number, body)])
    vault.deliver(9)
    found = {path.relative_to(vault.path / "parquet").as_posix() for path in (vault.path / "parquet").glob("*/*/*")}
    stem = f"{vault.journal.recorder_id}-{1:016}-{2:016}.parquet"
    days = ("2026-09-01", "2026-09-02")
    assert found == {f"{table}/date={day}/{stem}" for table in ("ticks", "candles", "market_status") for day in days}
    for path in (vault.path / "parquet").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)


def test_a_file_has_exactly_the_schema(vault: Vault) -> None:
    """Read back as it was written, time zones included."""
    vault.append(2, days=False)
    vault.deliver(9)
    for file in vault.store.files():
        assert pq.read_schema(file.path).remove_metadata().equals(SCHEMAS[file.table])


def test_frames_without_rows_make_no_file(vault: Vault) -> None:
    """The cursor says that they were delivered."""
    vault.journal.append([received(1, b"")])
    vault.deliver(9)
    assert vault.store.files() == []
    assert vault.cursor.seq == 1


def test_only_complete_names_count(tmp_path: Path) -> None:
    """Unfinished files, foreign files and names that we do not make are nothing."""
    found = files(
        tmp_path, name(1, 3), name(4, 6) + ".tmp", "ticks/date=2026-09-01/notes.parquet", "ticks/x.parquet",
        name(1, 9, suffix=".c"), name(1, 3, recorder="other"),
    )  # fmt: skip
    assert ranges(found) == {
        ("ticks", "r", 1, 3, False), ("ticks", "r", 1, 9, True), ("ticks", "other", 1, 3, False),
    }  # fmt: skip


def test_a_file_within_a_larger_one_does_not_count(tmp_path: Path) -> None:
    """Of the same folder and recorder; an equal range counts once, compacted first; overlaps both count."""
    found = files(
        tmp_path, name(1, 9, suffix=".c"), name(1, 3), name(4, 6), name(4, 9), name(1, 9), name(8, 12), name(9, 11),
        name(1, 3, table="candles"), name(2, 3, recorder="other"),
    )  # fmt: skip
    assert ranges(counting(found)) == {
        ("ticks", "r", 1, 9, True), ("ticks", "r", 8, 12, False), ("candles", "r", 1, 3, False),
        ("ticks", "other", 2, 3, False),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("after", "start"), [(0, 1), (1, 1), (2, 1), (3, 4), (4, 4), (7, 4), (12, 13), (40, 41), (11, 4)]
)
def test_a_truncation_begins_where_no_file_straddles_it(tmp_path: Path, after: int, start: int) -> None:
    """The boundary goes down until every file lies on one side of it."""
    found = files(tmp_path, name(1, 3), name(4, 8), name(6, 12, table="candles"), name(13, 13))
    assert boundary(found, after) == start


def test_dropping_takes_the_newest_first(vault: Vault) -> None:
    """A crash in between leaves a prefix; folders are made durable."""
    removed: list[int] = []

    class Watched(FileSystem):
        def unlink(self, path: Path) -> None:
            removed.append(int(path.name.split("-")[1]))
            super().unlink(path)

    vault.append(6, days=False)
    vault.deliver_all(2)
    store = ParquetStore(vault.store.root, vault.store.recorder_id, disk=Watched())
    store.drop_from(3)
    assert removed == sorted(removed, reverse=True)
    assert set(removed) == {3, 5}
    assert {file.lo for file in store.files()} == {1}


def test_what_was_named_of_a_batch_that_failed_goes_before_it_comes_anew(vault: Vault) -> None:
    """It comes cut elsewhere, perhaps shorter, and the longer file would count instead."""

    class Refusing(FileSystem):
        def rename(self, source: Path, target: Path) -> None:
            super().rename(source, target)
            if target.name.endswith(f"{6:016}.parquet"):
                raise OSError(28, "No space left on device")

    vault.append(6, days=False)
    store = ParquetStore(vault.store.root, vault.store.recorder_id, disk=Refusing())
    with pytest.raises(OSError, match="No space"):
        store.commit(vault.batch(6))
    store.discard()
    assert {(file.lo, file.hi) for file in store.files()} == {(1, 6)}
    store.commit(vault.batch(4))
    assert {(file.lo, file.hi) for file in store.files()} == {(1, 4)}
    assert not list(store.root.rglob("*.tmp"))


def test_other_recorders_files_are_left_alone(vault: Vault) -> None:
    """Cleaning and dropping touch our own only."""
    theirs = files(vault.path / "parquet", name(1, 3, recorder="other"), name(2, 3, recorder="other"))
    (vault.path / "parquet" / (name(4, 5, recorder="other") + ".tmp")).touch()
    vault.store.clean()
    vault.store.drop_from(1)
    assert all(file.path.exists() for file in theirs)
    assert (vault.path / "parquet" / (name(4, 5, recorder="other") + ".tmp")).exists()


def test_a_file_that_is_shorter_than_what_was_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The footer is read back before the file gets its name."""
    table: pa.Table = SCHEMAS["market_status"].empty_table()
    monkeypatch.setattr(pq, "read_metadata", lambda _: type("Footer", (), {"num_rows": 7}))
    with pytest.raises(OSError, match="holds 7 rows, 0 were written"):
        TableFile(tmp_path / "x.parquet", table.schema).finish()
