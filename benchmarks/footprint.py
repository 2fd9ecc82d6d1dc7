"""What a recorder takes of a machine, at the pace of a market's opening and at ten times that.

The simulator sends from a process of its own; `tickvault run` stores to Parquet, and at the higher rate to a real InfluxDB
1.6.7 too. CPU and memory are those of the whole recorder, once its start is over. Only then a probe in its loop wakes every
2 ms, which itself costs some 3 % of a core: the CPU time of the loop's thread in one turn of the loop is how long it was
blocked, whatever else the machine did. Meanwhile the InfluxDB is killed, and comes back half a minute later on the same files.
The rate is what the Parquet files have of the seconds whose CPU was measured. The start is from the command to the first frame in the journal, the simulator being there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import duckdb

from benchmarks.rows import Row
from benchmarks.server import free_port, influxd

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["TITLE", "cpu_s", "first_frame_s", "peak_mb", "recorded", "rows", "simulator"]

TITLE: Final = "Footprint"
_RUN_S: Final = 65.0  # longer than a batch of Parquet
_SETTLED_S: Final = 10.0  # what a start does once is not what a day is like
_PROBE_AFTER_S: Final = 85.0  # from the command on; the start is less than the rest of it
_OUTAGE_S: Final = 30.0
_FLAT: Final = 1.1  # what is called flat through an outage


def rows(place: Path) -> list[Row]:
    """Measure through files below `place`."""
    with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=place) as folder:
        found = _measure(Path(folder).resolve() / "opening", 540, 3_500, influx=False, targets=(0.03, 150.0))
        return found + _measure(Path(folder).resolve() / "heavy", 5_000, 5_000, influx=True, targets=(0.15, 250.0))


def _measure(folder: Path, rate: int, instruments: int, *, influx: bool, targets: tuple[float, float]) -> list[Row]:
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        environment = {"PATH": os.environ["PATH"], "TICKVAULT_DATA_DIR": str(folder / "data"), "TICKVAULT_HTTP": "off"}
        server = stack.enter_context(influxd(folder / "server")) if influx else None
        if server:
            environment |= {"INFLUX_URL": server.url, "INFLUX_BUCKET": "ticks", "TICKVAULT_SINKS": "parquet,influx"}
        environment |= stack.enter_context(simulator(folder, rate, instruments))
        command = [sys.executable, "-m", "benchmarks.probed", str(folder / "probe"), str(_PROBE_AFTER_S), "run"]
        environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
        said = stack.enter_context((folder / "said").open("wb"))
        begun_s = time.monotonic()
        child = subprocess.Popen(command, env=environment, stdout=said, stderr=said, cwd=folder)
        try:
            start_s = first_frame_s(folder / "data" / "journal", begun_s)
            time.sleep(_SETTLED_S)
            used_s, since_s = cpu_s(child.pid), time.time()
            time.sleep(_RUN_S)
            spent_s, until_s = cpu_s(child.pid) - used_s, time.time()
            before_mb = peak_mb(child.pid)
            time.sleep(max(0.0, begun_s + _PROBE_AFTER_S - time.monotonic()))
            if server:
                server.stop()
                time.sleep(_OUTAGE_S)
                server.start()
            time.sleep(max(0.0, begun_s + _PROBE_AFTER_S + _RUN_S - time.monotonic()))
            after_mb = peak_mb(child.pid)
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(60)
    if child.returncode:
        raise SystemExit((folder / "said").read_text(encoding="utf-8"))
    probe = json.loads((folder / "probe").read_text(encoding="utf-8"))
    busy, late = probe["busy_ms"], probe["late_ms"]
    cpu, base = spent_s / (until_s - since_s), f"recorded {recorded(folder / 'data', since_s, until_s):,.0f}/s"
    of = f"{rate}/s, Parquet{' and InfluxDB' if influx else ''}"
    most = f"peak memory in MB at {of}"
    found = [
        Row(f"CPU of a core at {of}", f"{cpu:.1%}", base, cpu, targets[0], at_most=True),
        Row(most, f"{before_mb:.0f} MB", base, before_mb, targets[1], at_most=True),
    ]
    if server:
        before = f"before {before_mb:.0f} MB"
        found += [
            Row(f"{most}, after an outage", f"{after_mb:.0f} MB", before, after_mb, targets[1], at_most=True),
            Row(f"{most}, after by before", f"{after_mb:.0f} MB", before, after_mb / before_mb, _FLAT, at_most=True),
        ]
    return [
        *found,
        Row(
            f"loop blocked, longest, ms, at {of}",
            f"of a turn p99.9 {busy['p999']:.2f}, longest {busy['max']:.2f} ms",
            f"late by p99 {late['p99']:.1f}, most {late['max']:.0f} ms; longest of one: {probe['longest'][0]:.1f} by {probe['longest'][1]}",
            busy["max"],
            5.0,
            at_most=True,
        ),
        Row(
            f"start to first durable frame in s, {instruments} instruments",
            f"{start_s:.1f} s",
            "",
            start_s,
            3.0,
            at_most=True,
        ),
    ]


@contextlib.contextmanager
def simulator(folder: Path, rate: int, instruments: int) -> Iterator[dict[str, str]]:
    """Run a simulator; yield what a recorder has to be told of it."""
    port = free_port()
    tool = str(Path(sys.executable).with_name("tickvault"))
    command = [tool, "simulate", "--port", str(port), "--instruments", str(instruments)]
    command += ["--updates-per-second", str(rate), "--start", "10:00"]
    with (folder / "simulator").open("w+b") as said:
        child = subprocess.Popen(command, stdout=said, stderr=said)
        try:
            deadline_s = time.monotonic() + 60
            while "run" not in (folder / "simulator").read_text(encoding="utf-8"):
                if time.monotonic() > deadline_s or child.poll() is not None:
                    raise SystemExit("the simulator does not start")
                time.sleep(0.1)
            url = f"http://127.0.0.1:{port}"
            yield {
                "UPSTOX_API_URL": url,
                "UPSTOX_TOKEN_URL": f"{url}/token",
                "TICKVAULT_INSTRUMENTS_URL": f"{url}/instruments",
                "UPSTOX_INSTRUMENTS_URL": f"{url}/market-quote/instruments/exchange/complete.json.gz",
            }
        finally:
            child.kill()


def first_frame_s(journal: Path, begun_s: float, *, after_seq: int = 0) -> float:
    """Return the seconds until the journal holds a frame behind a seq."""
    while time.monotonic() - begun_s < 60:
        for path in journal.glob("*.db"):
            with (
                contextlib.suppress(sqlite3.Error),
                contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db,
            ):
                if db.execute("SELECT count(*) FROM frames WHERE seq > ?", (after_seq,)).fetchone()[0]:
                    return time.monotonic() - begun_s
        time.sleep(0.02)
    raise SystemExit("no frame within a minute")


def recorded(data: Path, since_s: float, until_s: float) -> float:
    """Return the updates a second that the Parquet files have of a time of our clock."""
    asked = "SELECT count(*) FROM read_parquet(?) WHERE epoch(received_at) BETWEEN ? AND ?"
    (count,) = duckdb.execute(asked, [f"{data}/parquet/ticks/**/*.parquet", since_s, until_s]).fetchone() or (0,)
    return float(count / (until_s - since_s))


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mb(pid: int) -> float:
    """Return the most memory in MB that was resident of a process so far."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return float(status.partition("VmHWM:")[2].split()[0]) / 1e3
