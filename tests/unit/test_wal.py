"""The walk over a log, on logs that SQLite made here."""

from __future__ import annotations

import shutil
import sqlite3
from typing import TYPE_CHECKING

from tickvault import wal

if TYPE_CHECKING:
    from pathlib import Path


def log_of(tmp_path: Path, commits: int, *, again: int = 0) -> Path:
    """Return a copy of the log of a database with so many commits, `again` of them after the log began anew."""
    db = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("CREATE TABLE t (body BLOB)")
    for round_ in (commits, again):
        for _ in range(round_):
            db.execute("INSERT INTO t VALUES (randomblob(3000))")
        if round_ == commits and again:
            db.execute("PRAGMA wal_checkpoint(RESTART)")
    shutil.copy(tmp_path / "a.db-wal", tmp_path / "copy-wal")
    db.close()
    return tmp_path / "copy-wal"


def test_no_log_and_an_empty_one_are_whole(tmp_path: Path) -> None:
    """Nothing to read is nothing damaged."""
    assert wal.damage(tmp_path / "none-wal") is None
    (tmp_path / "empty-wal").touch()
    assert wal.damage(tmp_path / "empty-wal") is None


def test_frames_of_an_older_generation_behind_the_newest_are_whole(tmp_path: Path) -> None:
    """A log that began anew still holds older frames behind; their salts tell."""
    log = log_of(tmp_path, 30, again=3)
    assert wal.damage(log) is None
    body = bytearray(log.read_bytes())
    body[32 + 30] ^= 1
    log.write_bytes(body)
    assert wal.damage(log) is not None


def test_a_header_that_fails_its_checksum_is_damage(tmp_path: Path) -> None:
    """Without its header nothing in a log can be told apart."""
    log = log_of(tmp_path, 3)
    body = bytearray(log.read_bytes())
    body[16] ^= 1
    log.write_bytes(body)
    assert wal.damage(log) == "the log's header fails its checksum"
