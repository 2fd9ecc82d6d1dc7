"""Data folders of every released version open in this one, and those of a later one are refused by name.

`tools/record_folder.py` made the folders: a killed recorder's, with everything that a folder can hold, and what the
version of the time answered.
"""

from __future__ import annotations

import csv
import json
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
from doubles import Vault
from programs import call, environ_for, globbed, recorder, simulator, stats
from servers import wait_until

from tickvault import archive
from tickvault.model import SCHEMAS
from tickvault.sinks.parquet import scan

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDERS = sorted((Path(__file__).parents[1] / "data" / "folders").glob("*.tar.xz"))
LATEST = max(FOLDERS, key=lambda path: [int(part) for part in path.name.removesuffix(".tar.xz").split(".")])
KEPT = {"TICKVAULT_RETAIN": "99999d"}  # however old the folder is by now
ORDERS = {
    "ticks": "seq, instrument_key",
    "candles": "seq, instrument_key, interval, time",
    "market_status": "seq, scope, segment",
    "instruments": "valid_from_seq, instrument_key",
}


def unpacked(archive: Path, folder: Path) -> tuple[Path, Path]:
    """Unpack a recorded folder; return it, and what is expected of it."""
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder / "data", folder / "expected"


def rows_of(text: str) -> list[list[str]]:
    return list(csv.reader(text.splitlines()))


def expected_rows(expected: Path, table: str) -> tuple[list[str], list[list[str]]]:
    names, *rows = rows_of((expected / f"{table}.csv").read_text(encoding="utf-8"))
    return names, rows


def queried(data: Path, table: str, names: list[str], order: str, where: str = "true") -> list[list[str]]:
    sql = f"SELECT {', '.join(names)} FROM {table} WHERE {where} ORDER BY {order}"
    done = call("query", sql, "--format", "csv", environ={"TICKVAULT_DATA_DIR": str(data)}, folder=data.parent)
    assert done.returncode == 0, done.stderr
    return rows_of(done.stdout)[1:]


@pytest.mark.parametrize("archive", FOLDERS, ids=lambda path: path.name)
def test_a_recorded_folder_is_read(archive: Path, tmp_path: Path) -> None:
    """Every reading command answers before any recorder has touched it, and queries as the version that wrote it."""
    data, expected = unpacked(archive, tmp_path)
    environ = {"TICKVAULT_DATA_DIR": str(data)}
    verified = call("journal", "verify", environ=environ, folder=tmp_path)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    known = json.loads((expected / "stats.json").read_text(encoding="utf-8"))
    assert {name: stats(data)[name] for name in known} == known
    for table, order in ORDERS.items():
        names, rows = expected_rows(expected, table)
        assert rows
        assert queried(data, table, names, order) == rows
    # What became of one may be known better by now; that there was one stays known.
    names = ["opened_at", "scope", "subject"]
    columns, gaps = expected_rows(expected, "gaps")
    picked = [[gap[columns.index(name)] for name in names] for gap in gaps]
    assert [gap for gap in picked if gap not in queried(data, "gaps", names, "opened_at, scope, subject")] == []
    for words in (["status"], ["status", "--json"], ["day"], ["token", "show"]):
        done = call(*words, environ=environ, folder=tmp_path)
        assert done.returncode == (1 if words == ["day"] else 0), done.stderr
        assert done.stderr == ""


@pytest.mark.parametrize("archive", FOLDERS, ids=lambda path: path.name)
def test_a_recorded_folder_is_gone_on_with(archive: Path, tmp_path: Path) -> None:
    """A recorder takes it over, sequence numbers go on, and a rewind delivers all of it again."""
    data, expected = unpacked(archive, tmp_path)
    known = json.loads((expected / "stats.json").read_text(encoding="utf-8"))
    with simulator(tmp_path, "--instruments", "6") as (url, _):
        environ = environ_for(url, data, TICKVAULT_SINKS="parquet", **KEPT)
        with recorder(tmp_path, environ) as running:
            wait_until(lambda: stats(data)["last_seq"] >= known["last_seq"] + 5 or not running.alive, "it goes on")
            assert running.stop() == 0, running.said()
        moved = call("rewind", "--sink", "parquet", "--to-seq", "0", environ=environ, folder=tmp_path)
        assert moved.returncode == 0, moved.stderr
        with recorder(tmp_path, environ) as running:
            wait_until(lambda: running.said().count("recorder.started") == 2, "it has started again")
            assert running.stop() == 0, running.said()
    after = stats(data)
    assert (after["recorder_id"], after["first_seq"]) == (known["recorder_id"], 1)
    assert after["sinks"]["parquet"]["lag_frames"] == 0
    verified = call("journal", "verify", environ=environ, folder=tmp_path)
    assert verified.returncode == 0, verified.stdout
    names, rows = expected_rows(expected, "ticks")
    assert queried(data, "ticks", names, ORDERS["ticks"], f"seq <= {known['last_seq']}") == rows
    stored = [(row["seq"], row["instrument_key"]) for row in globbed(data, "ticks") if row["seq"] <= known["last_seq"]]
    at = {name: names.index(name) for name in ("seq", "instrument_key")}
    assert sorted(stored) == sorted((int(row[at["seq"]]), row[at["instrument_key"]]) for row in rows)


def test_the_newest_folder_has_the_form_of_today(tmp_path: Path) -> None:
    """Whoever changes the form of a file raises its version, migrates, and records a folder anew."""
    data, _ = unpacked(LATEST, tmp_path / "recorded")
    vault = Vault(tmp_path / "fresh")
    vault.open()
    vault.append(10)
    vault.journal.close()
    vault.drop()

    def form(path: Path) -> tuple[int, list[tuple[str, str]]]:
        with closing(sqlite3.connect(path)) as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            return version, db.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()

    segment = "journal/0000000000000001.db"
    for name in ("state.db", segment):
        assert form(data / name) == form(vault.path / name), f"{name}: run tools/record_folder.py"
    files = list(scan(data / "parquet"))
    assert {file.table for file in files} == set(ORDERS)
    for file in files:
        assert pq.read_schema(file.path).equals(SCHEMAS[file.table]), f"{file.table}: run tools/record_folder.py"


def newer_segment(data: Path) -> str:
    with closing(sqlite3.connect(data / "journal" / "0000000000000001.db")) as db:
        db.execute("PRAGMA user_version = 7")
    return "0000000000000001.db"


def newer_state(data: Path) -> str:
    with closing(sqlite3.connect(data / "state.db")) as db:
        db.execute("PRAGMA user_version = 7")
    return "state.db"


def newer_facts(data: Path) -> str:
    """Prune the first segment as a later version might, which keeps its facts in another form."""
    path = data / "journal" / "0000000000000001.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "_VERSION", 7)
        archive.keep(path, ["parquet", "influx"])
    with closing(sqlite3.connect(path.with_name(archive.NAME))) as db:
        db.execute("ALTER TABLE head RENAME COLUMN crc TO sum")
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    return archive.NAME


@pytest.mark.parametrize("makes_newer", [newer_segment, newer_state, newer_facts])
def test_a_folder_of_a_later_version_is_refused_by_every_command(
    makes_newer: Callable[[Path], str], tmp_path: Path
) -> None:
    """One line: which file, which version, what to do. Nothing in the folder has changed."""
    data, _ = unpacked(LATEST, tmp_path)
    named = makes_newer(data)
    before = contents(data)
    environ = environ_for("http://127.0.0.1:9", data, TICKVAULT_INSTRUMENTS="NSE_EQ|A", **KEPT)
    environ |= {"TICKVAULT_INSTRUMENTS_URL": "", "UPSTOX_INSTRUMENTS_URL": "off"}
    for words in (
        ["run"], ["status"], ["query", "SELECT 1"], ["journal", "stats"], ["journal", "verify"], ["day"], ["check"],
        ["rewind", "--sink", "parquet", "--to-seq", "0"],
    ):  # fmt: skip
        if makes_newer is newer_facts and words in (["status"], ["journal", "stats"]):
            continue  # they do not read what was pruned
        done = call(*words, environ=environ, folder=tmp_path)
        said = done.stdout + done.stderr
        assert done.returncode == 1, (words, said)
        told = [line for line in said.splitlines() if "newer tickvault" in line]
        assert len(told) == 1, (words, said)
        assert named in told[0]
        assert "version 7" in told[0]
        assert "upgrade this installation" in told[0]
        assert "bug" not in said
    assert contents(data) == before


def contents(data: Path) -> dict[str, bytes]:
    """Return what a folder holds, but for locks, what SQLite makes anew, and when the broker was asked, which it counts."""
    return {
        str(path.relative_to(data)): path.read_bytes()
        for path in data.rglob("*")
        if path.is_file()
        and path.name not in {"lock", ".lock", "authorize.json"}
        and not path.name.endswith(("-shm", "-wal", "-journal"))
    }


@pytest.mark.parametrize("text", ['{"version": 7}', "[7]", "[" * 200_000], ids=["object", "list", "deep"])
def test_caches_of_a_later_version_are_made_anew(text: str, tmp_path: Path) -> None:
    """What can be had again has no version: another form counts as no copy."""
    data, _ = unpacked(LATEST, tmp_path)
    caches = ("authorize.json", "baseline.json", "calendar.json", "instruments.json.gz", "lock")
    for name in caches:
        (data / name).write_text(text)
    before = stats(data)["last_seq"]
    with simulator(tmp_path, "--instruments", "6") as (url, _):
        environ = environ_for(url, data, TICKVAULT_SINKS="parquet", **KEPT)
        with recorder(tmp_path, environ) as running:
            wait_until(lambda: stats(data)["last_seq"] > before or not running.alive, "it records")
            assert running.stop() == 0, running.said()
    assert "Traceback" not in running.said()
    for name in ("calendar.json", "instruments.json.gz", "authorize.json"):
        assert (data / name).read_bytes() != text.encode()
