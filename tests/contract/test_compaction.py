"""Closed days become one file a table; the protocol against crashes is in the property tests."""

from __future__ import annotations

import fcntl
import json
import threading
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
from doubles import Vault, until
from programs import call

from tickvault import query
from tickvault.compaction import Compacted, Job, Left, Stored, plan
from tickvault.errors import Refused
from tickvault.sinks.parquet import DataFile, locked, reading, scan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FIRST, SECOND = "2026-09-01", "2026-09-02"
KNOWN = Stored(recorder_id="r", seq=100, generation=0)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    """Two days, delivered in five batches."""
    vault = Vault(tmp_path / "data")
    vault.open()
    vault.append(14)
    vault.deliver_all(3)
    yield vault
    vault.drop()


def file(lo: int, hi: int, *, date: str = FIRST, compacted: bool = False, recorder: str = "r") -> DataFile:
    from pathlib import Path

    name = f"{recorder}-{lo:016}-{hi:016}{'.c' * compacted}.parquet"
    return DataFile(
        path=Path(f"ticks/date={date}/{name}"), table="ticks", date=date, recorder=recorder, lo=lo, hi=hi,
        compacted=compacted,
    )  # fmt: skip


def ranges(jobs: list[Job]) -> list[list[tuple[int, int]]]:
    return [[(one.lo, one.hi) for one in job.inputs] for job in jobs]


def rows(vault: Vault, table: str = "ticks") -> list[int]:
    """What a plain glob finds."""
    paths = (vault.path / "parquet").glob(f"{table}/*/*.parquet")
    return sorted(seq for path in paths for seq in pq.ParquetFile(path).read(["seq"])["seq"].to_pylist())


def asked(vault: Vault, sql: str = "SELECT seq FROM ticks ORDER BY seq") -> list[Any]:
    with query.connect(vault.path) as db:
        return [row[0] for row in db.execute(sql).fetchall()]


def test_what_is_to_be_done() -> None:
    """Files of closed days, as far as they are stored for good; a day that is one file already is done."""
    files = [file(1, 4), file(5, 9), file(10, 12, date=SECOND), file(101, 110), file(1, 4, recorder="other")]
    assert ranges(plan(files, KNOWN, before=SECOND)) == [[(1, 4), (5, 9)]]
    assert ranges(plan(files, KNOWN, before="2026-09-03")) == [[(1, 4), (5, 9)], [(10, 12)]]
    assert plan(files, KNOWN, before=FIRST) == []
    assert plan([file(1, 9, compacted=True)], KNOWN, before=SECOND) == []
    assert plan([file(1, 9, date="soon")], KNOWN, before=SECOND) == []


def test_what_a_crash_left_shadowed_goes() -> None:
    """Without writing the day again."""
    whole, left = file(1, 9, compacted=True), file(5, 9)
    assert plan([whole, left], KNOWN, before=SECOND) == [Job(inputs=(whole,), shadowed=(left,))]


def test_a_file_never_reaches_across_another_day() -> None:
    """A frame that comes late would otherwise make it impossible to rewind into any day since."""
    files = [file(1, 4), file(5, 9), file(10, 20, date=SECOND), file(21, 22), file(23, 24)]
    assert ranges(plan(files, KNOWN, before=SECOND)) == [[(1, 4), (5, 9)], [(21, 22), (23, 24)]]
    midnight = [file(1, 4), file(5, 9), file(5, 9, date=SECOND), file(10, 12)]
    assert ranges(plan(midnight, KNOWN, before=SECOND)) == [[(1, 4), (5, 9), (10, 12)]]


def test_a_day_is_one_file_a_table_with_the_same_rows(vault: Vault) -> None:
    """Sorted by instrument and time, 0600; queries, the glob and the ledger of sizes say the same as before."""
    before = rows(vault), rows(vault, "candles"), asked(vault)
    done = vault.compact()
    assert {(one.date, one.table) for one in done} == {
        (date, table) for date in (FIRST, SECOND) for table in ("ticks", "candles", "market_status")
    }
    assert all(isinstance(one, Compacted) and one.bytes_after > 0 for one in done)
    assert (rows(vault), rows(vault, "candles"), asked(vault)) == before
    files = list(scan(vault.path / "parquet"))
    assert len(files) == 6
    assert all(one.compacted and one.path.stat().st_mode & 0o777 == 0o600 for one in files)
    assert vault.compact() == []


def test_today_is_not_touched(vault: Vault) -> None:
    """The second day is not over: only the first is one file."""
    vault.compact(days=1)
    assert {one.date for one in scan(vault.path / "parquet") if one.compacted} == {FIRST}


def test_what_comes_late_joins_its_day(vault: Vault) -> None:
    """A compacted day takes in another file."""
    vault.compact()
    vault.append(4)
    vault.deliver(9)
    vault.compact()
    assert len(list(scan(vault.path / "parquet"))) == 6
    assert rows(vault) == [seq for seq in range(1, 19) if seq % 7]


def test_files_behind_a_rewind_are_stored_again(vault: Vault) -> None:
    """The compacted day goes as a whole and comes again as a whole."""
    before = rows(vault)
    vault.compact()
    vault.rewind(10)
    assert vault.cursor.seq == 0
    assert asked(vault) == before
    vault.deliver_all(5)
    assert rows(vault) == before


def test_a_rewind_that_a_pruned_day_forbids_says_what_is_possible(vault: Vault) -> None:
    """The day is one file, and the journal no longer holds its beginning."""
    vault.drop()
    vault.open()
    vault.append(4)
    vault.prune()
    vault.deliver(9)
    vault.compact()
    before = rows(vault)
    with pytest.raises(Refused, match=r"begins at 1 \(2026-09-01, compacted\).*first frame 15; the lowest .* is 18"):
        vault.rewind(16)
    assert rows(vault) == before
    vault.append(1)
    vault.rewind(18)


def test_a_damaged_file_leaves_its_day_alone(vault: Vault) -> None:
    """It is named, with the way out; other days and tables are compacted, no row is lost."""
    before = set(scan(vault.path / "parquet"))
    bad = next(one for one in before if one.table == "ticks" and one.date == FIRST and one.lo > 3)
    whole = bad.path.read_bytes()
    bad.path.write_bytes(whole[:40] + bytes(40) + whole[80:])
    left = [one for one in vault.compact() if isinstance(one, Left)]
    assert [(one.date, one.table) for one in left] == [(FIRST, "ticks")]
    assert f"{bad.path} is damaged" in left[0].reason
    assert f"--to-seq {bad.lo - 1}" in left[0].reason
    after = set(scan(vault.path / "parquet"))
    assert {one for one in before if (one.date, one.table) == (FIRST, "ticks")} <= after
    assert not list((vault.path / "parquet").rglob("*.tmp"))
    assert sum(one.compacted for one in after) == 5


def test_a_query_that_runs_is_not_disturbed(vault: Vault) -> None:
    """Its files stay; the day is left for later, and says so."""
    with reading(vault.path / "parquet"):
        left = vault.compact()
        assert left
        assert all(isinstance(one, Left) and "queries have held the files" in one.reason for one in left)
    assert not [one for one in vault.compact() if isinstance(one, Left)]


def test_two_do_not_compact_at_once(vault: Vault) -> None:
    """The second is refused."""
    with locked(vault.path / "parquet" / ".compacting") as free:
        assert free
        with pytest.raises(Refused, match="somebody else compacts"):
            vault.compact()


def test_a_rewind_meanwhile_wins(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was set back while the new file was written is not brought back by it."""
    from tickvault.sinks.parquet import FileSystem

    write = FileSystem.write_sorted

    def meanwhile(self: FileSystem, path: Path, inputs: list[DataFile]) -> None:
        write(self, path, inputs)
        monkeypatch.setattr(FileSystem, "write_sorted", write)
        vault.rewind(0)

    monkeypatch.setattr(FileSystem, "write_sorted", meanwhile)
    found = vault.compact()
    assert all(isinstance(one, Left) for one in found)
    assert list(scan(vault.path / "parquet")) == []
    vault.deliver_all(5)
    assert rows(vault) == [seq for seq in range(1, 15) if seq % 7]


def test_a_reader_beside_compaction_is_always_right(tmp_path: Path) -> None:
    """Queries while batches are stored and compacted again and again: the same rows each time, more as they come."""
    vault = Vault(tmp_path / "data")
    vault.open()
    vault.append(30)
    expected = [seq for seq in range(1, 31) if seq % 7]
    answers, over = [], threading.Event()

    def ask() -> None:
        while not over.is_set():
            answers.append(asked(vault))

    reader = threading.Thread(target=ask)
    reader.start()
    try:
        for _ in range(10):
            vault.deliver(3)
            vault.compact()
        until(lambda: len(answers) > 3, "some answers", 30)
    finally:
        over.set()
        reader.join(30)
    assert all(answer == expected for answer in answers)
    vault.compact()
    assert rows(vault) == expected
    vault.drop()


def test_the_command(vault: Vault, tmp_path: Path) -> None:
    """A table of what was done; then nothing is to be done; also while a recorder has the folder."""
    environ = {"TICKVAULT_DATA_DIR": str(vault.path), "TICKVAULT_DISK_RESERVE": "1MB"}
    before = rows(vault)
    (vault.path / "lock").touch()
    with (vault.path / "lock").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        one = call("compact", "--date", FIRST, environ=environ, folder=tmp_path)
    assert (one.returncode, one.stderr) == (0, "")
    assert "2026-09-01" in one.stdout
    assert "2026-09-02" not in one.stdout
    told = json.loads(call("compact", "--json", environ=environ, folder=tmp_path).stdout)
    assert {row["date"] for row in told["compacted"]} == {SECOND}
    assert told["left"] == []
    again = call("compact", environ=environ, folder=tmp_path)
    assert (again.returncode, "nothing to do" in again.stdout) == (0, True)
    assert rows(vault) == before


def test_the_command_says_what_is_wrong(vault: Vault, tmp_path: Path) -> None:
    """With the exit codes of all commands: 2 for what was typed, 1 for what cannot be done."""
    environ = {"TICKVAULT_DATA_DIR": str(vault.path)}
    for words, code, said in (
        (("--date", "yesterday"), 2, "expected a date such as"),
        (("--date", "2999-01-01"), 2, "is not over"),
        (("--date", "2020-01-01"), 1, "stored are days from 2026-09-01 to 2026-09-02"),
        (("--data-dir", str(tmp_path / "none")), 1, "nothing is recorded in"),
    ):
        done = call("compact", *words, environ=environ, folder=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1)
        assert said in done.stderr
