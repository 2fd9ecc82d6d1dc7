"""Closed days are compacted beside the recorder, in a process of their own, while nothing trades."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
from doubles import AT_NS, DAY_MS, Vault
from structlog.testing import capture_logs

from tickvault import nightwork
from tickvault.nightwork import NightWork
from tickvault.settings.tree import DiskReserve
from tickvault.sinks.parquet import locked, scan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NOW_NS = AT_NS + 3 * DAY_MS * 1_000_000


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vault]:
    monkeypatch.setattr(nightwork, "_LOOK_S", 0.02)
    vault = Vault(tmp_path / "data")
    vault.open()
    vault.append(9)
    vault.deliver_all(3)
    yield vault
    vault.drop()


def work(vault: Vault, quiet: Callable[[int], bool] = lambda _: True) -> NightWork:
    reserve = DiskReserve(percent=None, bytes=1)
    return NightWork(vault.path, reserve=reserve, quiet=quiet, wall_ns=lambda: NOW_NS)


async def until_logged(logs: list[dict[str, object]], count: int) -> None:
    async with asyncio.timeout(60):
        while len(logs) < count:
            await asyncio.sleep(0.01)


async def test_closed_days_are_compacted_once(vault: Vault) -> None:
    """With a line in the log for each table; then there is nothing to do, and no process is started."""
    one = work(vault)
    with capture_logs() as logs:
        task = asyncio.create_task(one.keep())
        await until_logged(logs, 6)
        task.cancel()
        await asyncio.wait([task])
    assert {log["event"] for log in logs} == {"parquet.compacted"}
    files = await asyncio.to_thread(lambda: list(scan(vault.path / "parquet")))
    assert len(files) == 6
    assert all(file.compacted for file in files)
    assert not one._is_due()


async def test_not_while_a_market_trades(vault: Vault) -> None:
    """Nothing is begun, and what was begun is killed: the files stay as they are, whole."""
    looks = iter([True])
    with capture_logs() as logs:
        task = asyncio.create_task(work(vault, lambda _: next(looks, False)).keep())
        await until_logged(logs, 1)
        task.cancel()
        await asyncio.wait([task])
    events = [log["event"] for log in logs]
    assert events[-1] == "parquet.compaction_ended"
    vault.store.clean()
    paths = (vault.path / "parquet").glob("ticks/*/*.parquet")
    rows = sorted(seq for path in paths for seq in pq.ParquetFile(path).read(["seq"])["seq"].to_pylist())
    assert rows == [seq for seq in range(1, 10) if seq % 7]


async def test_not_before_the_day_is_stored(vault: Vault) -> None:
    """A sink that lags would have the day written again for each batch that comes."""
    vault.append(1)
    assert not work(vault)._is_due()
    vault.deliver(3)
    assert work(vault)._is_due()


async def test_a_stop_does_not_wait(vault: Vault) -> None:
    """The process goes with the task, and can leave nothing but a temporary file."""
    task = asyncio.create_task(work(vault).keep())
    async with asyncio.timeout(60):
        while not await asyncio.to_thread((vault.path / "parquet" / ".compacting").exists):
            await asyncio.sleep(0.001)
    task.cancel()
    async with asyncio.timeout(5):
        await asyncio.wait([task])
    with locked(vault.path / "parquet" / ".compacting") as free:
        assert free


async def test_what_cannot_be_done_is_told_once(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged file is named; nobody is told of it again each hour."""
    monkeypatch.setattr(nightwork, "_AGAIN_S", 0.0)
    bad = max((one for one in vault.store.files() if one.table == "ticks"), key=lambda one: one.hi)
    bad.path.write_bytes(b"PAR1 not at all")
    with capture_logs() as logs:
        one = work(vault)
        await one._compact()
        await one._compact()
    told = [log for log in logs if log["event"] == "parquet.not_compacted"]
    assert len(told) == 1
    assert str(bad.path) in told[0]["reason"]


async def test_one_who_compacts_already_is_told_of(vault: Vault) -> None:
    """As the command says it."""
    with locked(vault.path / "parquet" / ".compacting"), capture_logs() as logs:
        await work(vault)._compact()
    assert "somebody else compacts" in str(logs[0]["error"])


async def test_without_a_process_to_be_had_recording_goes_on(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told, and tried again in an hour; an exception here would end the recorder."""
    monkeypatch.setattr("sys.executable", str(vault.path / "no python"))
    with capture_logs() as logs:
        task = asyncio.create_task(work(vault).keep())
        await until_logged(logs, 1)
        assert not task.done()
        task.cancel()
        await asyncio.wait([task])
    assert logs[0]["event"] == "parquet.not_compacted"
