"""`tickvault compact` killed at work."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import duckdb
from doubles import AT_MS, DAY_MS, Vault, payload, received
from programs import Running, call

from tickvault import query
from tickvault.sinks.parquet import counting, scan

if TYPE_CHECKING:
    from pathlib import Path


def asked(vault: Vault, sql: str) -> list[Any]:
    with query.connect(vault.path) as db:
        return [row[0] for row in db.execute(sql).fetchall()]


def test_kill_9_in_the_middle_leaves_every_row(tmp_path: Path) -> None:
    """Whenever it comes: queries are right at once, and the next command finishes."""
    vault = Vault(tmp_path / "data")
    vault.open()
    keys = tuple(f"NSE_EQ|{number}" for number in range(20))
    for number in range(1, 41):
        body = payload(number, keys=keys, at_ms=AT_MS + (DAY_MS if number > 20 else 0))
        vault.journal.append([received(number, body)])
        vault.deliver(9)
    vault.drop()
    environ = {"TICKVAULT_DATA_DIR": str(vault.path), "TICKVAULT_DISK_RESERVE": "1MB"}
    expected = asked(vault, "SELECT seq FROM ticks ORDER BY seq, instrument_key")
    assert len(expected) == 800
    for number in range(3):
        one = Running(["compact"], environ, tmp_path, f"compact{number}")
        root = vault.path / "parquet"
        deadline_s = time.monotonic() + 60
        while one.alive and time.monotonic() < deadline_s:
            if len(list(root.rglob("*.c.parquet*"))) > number:
                one.kill()
            time.sleep(0.002)
        one.process.wait(60)
        assert asked(vault, "SELECT seq FROM ticks ORDER BY seq, instrument_key") == expected
    assert call("compact", environ=environ, folder=tmp_path).returncode == 0
    with closing(duckdb.connect()) as db:
        glob = db.execute(f"SELECT count(*) FROM '{vault.path}/parquet/ticks/*/*.parquet'").fetchone()
    assert glob == (800,)
    files = list(scan(vault.path / "parquet"))
    assert len(files) == len(counting(files)) == 6
