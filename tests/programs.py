"""Runs tickvault as a user does: in processes of its own, on a fresh folder, told by its environment."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
from servers import wait_until

from tickvault import snapshots

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PROGRAM = Path(sys.executable).with_name("tickvault")
# What a developer has set must not reach a test.
CLEAN = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR", "CI"}}


class Running:
    """A started command, its output going to a file."""

    def __init__(
        self,
        words: list[str],
        environ: Mapping[str, str],
        folder: Path,
        name: str,
        program: tuple[str, ...] = (str(PROGRAM),),
    ) -> None:
        self.output = folder / f"{name}.out"
        self.errors = folder / f"{name}.err"
        with self.output.open("ab") as out, self.errors.open("ab") as err:
            self.process = subprocess.Popen(
                [*program, *words], env={**CLEAN, **environ}, cwd=folder, stdout=out, stderr=err
            )

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def said(self) -> str:
        """Return everything it wrote."""
        return self.output.read_text() + self.errors.read_text()

    def kill(self) -> None:
        """SIGKILL it."""
        self.process.kill()
        self.process.wait(10)

    def stop(self, within_s: float = 60) -> int:
        """SIGTERM it and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)


def call(
    *words: str, environ: Mapping[str, str], folder: Path, within_s: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [str(PROGRAM), *words],
        env={**CLEAN, **environ},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
    )


def fed(
    words: list[str],
    given: str,
    environ: Mapping[str, str],
    folder: Path,
    program: tuple[str, ...] = (str(PROGRAM),),
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end with something on its stdin."""
    return subprocess.run(
        [*program, *words],
        env={**CLEAN, **environ},
        cwd=folder,
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def simulator(folder: Path, *words: str) -> Iterator[tuple[str, Running]]:
    """Run `tickvault simulate` and give its address."""
    process = Running(["simulate", "--port", "0", *words], {}, folder, "simulator")
    try:
        wait_until(lambda: "listening on" in process.said() or not process.alive, "the simulator listens")
        found = re.search(r"listening on (http://\S+)", process.said())
        assert found, process.said()
        yield found[1], process
    finally:
        if process.alive:
            process.kill()


def environ_for(url: str, data_dir: Path, **more: str) -> dict[str, str]:
    """Return settings that record everything a simulator lists."""
    return {
        "UPSTOX_ACCESS_TOKEN": "test-token",
        "UPSTOX_API_URL": url,
        "UPSTOX_INSTRUMENTS_URL": f"{url}/market-quote/instruments/exchange/complete.json.gz",
        "TICKVAULT_INSTRUMENTS_URL": f"{url}/instruments",
        "TICKVAULT_DATA_DIR": str(data_dir),
        "TICKVAULT_HTTP": "off",
        **more,
    }


@contextmanager
def recorder(folder: Path, environ: Mapping[str, str], *words: str) -> Iterator[Running]:
    """Run `tickvault run`."""
    process = Running(["run", *words], environ, folder, "recorder")
    try:
        yield process
    finally:
        if process.alive:
            process.kill()


def stats(data_dir: Path) -> dict[str, Any]:
    """Return `journal stats --json`; all zero before the folder is there."""
    if not (data_dir / "journal").is_dir():
        return {"last_seq": 0, "sinks": {}}
    done = call("journal", "stats", "--json", "--data-dir", str(data_dir), environ={}, folder=data_dir)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def peek(data_dir: Path) -> dict[str, Any]:
    """Return what `stats` does, without a process for it: for conditions that are polled."""
    if not (data_dir / "journal").is_dir():
        return {"last_seq": 0, "sinks": {}}
    one = snapshots.take(data_dir)
    sinks = {name: {"cursor_seq": sink.cursor_seq, "state": sink.state} for name, sink in one.sinks.items()}
    return {"last_seq": one.last_seq, "sinks": sinks}


def globbed(data_dir: Path, table: str) -> list[dict[str, Any]]:
    """Return the rows that a plain DuckDB glob over a table's folder gives."""
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        pattern = str(data_dir / "parquet" / table / "**" / "*.parquet")
        rows: list[dict[str, Any]] = db.sql(f"SELECT * FROM '{pattern}' ORDER BY seq").to_arrow_table().to_pylist()
        return rows
