"""Compaction by the command, killed at work, and by a recorder."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import duckdb
from doubles import AT_MS, DAY_MS, Vault, payload, received
from programs import Running, call, environ_for
from structlog.testing import capture_logs

from tickvault import nightwork, query
from tickvault.pipeline import Recorder
from tickvault.settings import load_settings
from tickvault.simulator import Simulator, SimulatorSettings
from tickvault.simulator.calendar import Calendar
from tickvault.sinks.parquet import counting, scan

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

SUNDAY = dt.datetime(2026, 10, 4, 12, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=30)))


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


async def test_a_recorder_compacts_while_nothing_trades(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Sunday, once it has the exchanges' calendar; not if the settings say so."""
    monkeypatch.setattr(nightwork, "_LOOK_S", 0.1)
    vault = Vault(tmp_path / "data")
    vault.open()
    vault.append(9)
    vault.deliver_all(3)
    vault.drop()
    begin_ns, begun_ns = int(SUNDAY.timestamp()) * 10**9, time.monotonic_ns()
    stopping = asyncio.Event()
    async with Simulator(
        SimulatorSettings(port=0, instruments=5, start="2026-10-04T12:00:00", calendar=Calendar())
    ) as simulator:
        environ = environ_for(simulator.url, vault.path)
        settings = load_settings(environ=environ, env_file=None)
        recorder = Recorder(settings, wall_ns=lambda: begin_ns + time.monotonic_ns() - begun_ns)
        with capture_logs() as logs:
            running = asyncio.create_task(recorder.run(stopping))
            async with asyncio.timeout(90):
                while sum(log["event"] == "parquet.compacted" for log in logs) < 6:
                    await asyncio.sleep(0.05)
                stopping.set()
                await running
    assert not [log for log in logs if log["event"] == "parquet.not_compacted"]
    assert sum(file.compacted for file in scan(vault.path / "parquet")) == 6
