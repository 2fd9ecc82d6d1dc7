"""What a recorder takes of a machine, at the pace of a market's opening and at ten times that.

The simulator sends from a process of its own; `tickvault run` stores to Parquet, and at the higher rate to a real InfluxDB
1.6.7 too. CPU and memory are those of the whole recorder, once its start is over. Only then a probe in its loop wakes every
2 ms, which itself costs some 3 % of a core: the time that the loop's thread computed between two wakes is how long it was
blocked, whatever else the machine did.
The start is from the command to the first frame in the journal, the simulator being there.
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

from benchmarks.rows import Row
from benchmarks.server import free_port, influxd

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["TITLE", "rows"]

TITLE: Final = "Footprint"
_RUN_S: Final = 75.0  # longer than a batch of Parquet
_SETTLED_S: Final = 10.0  # what a start does once is not what a day is like
_PROBE_AFTER_S: Final = 100.0  # from the command on; the start is less than the rest of it


def rows(place: Path) -> list[Row]:
    """Measure through files below `place`."""
    with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=place) as folder:
        found = _measure(Path(folder).resolve() / "opening", 540, 3_500, influx=False, targets=(0.03, 150.0))
        return found + _measure(Path(folder).resolve() / "heavy", 5_000, 5_000, influx=True, targets=(0.15, 250.0))


def _measure(folder: Path, rate: int, instruments: int, *, influx: bool, targets: tuple[float, float]) -> list[Row]:
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        environment = {"PATH": os.environ["PATH"], "TICKVAULT_DATA_DIR": str(folder / "data"), "TICKVAULT_HTTP": "off"}
        if influx:
            environment |= {"INFLUX_URL": stack.enter_context(influxd(folder / "server")).url, "INFLUX_BUCKET": "ticks"}
            environment["TICKVAULT_SINKS"] = "parquet,influx"
        environment |= stack.enter_context(_simulator(folder, rate, instruments))
        command = [sys.executable, "-m", "benchmarks.probed", str(folder / "probe"), str(_PROBE_AFTER_S), "run"]
        environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
        said = stack.enter_context((folder / "said").open("wb"))
        begun_s = time.monotonic()
        child = subprocess.Popen(command, env=environment, stdout=said, stderr=said, cwd=folder)
        try:
            start_s = _first_frame_s(folder / "data" / "journal", begun_s)
            time.sleep(_SETTLED_S)
            cpu_s, since_s = _cpu_s(child.pid), time.monotonic()
            time.sleep(_RUN_S)
            cpu, peak_mb = (_cpu_s(child.pid) - cpu_s) / (time.monotonic() - since_s), _peak_mb(child.pid)
            time.sleep(max(0.0, begun_s + _PROBE_AFTER_S + _RUN_S - time.monotonic()))
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(60)
    if child.returncode:
        raise SystemExit((folder / "said").read_text(encoding="utf-8"))
    probe = json.loads((folder / "probe").read_text(encoding="utf-8"))
    busy, late = probe["busy_ms"], probe["late_ms"]
    of = f"{rate}/s, Parquet{' and InfluxDB' if influx else ''}"
    return [
        Row(f"CPU of a core at {of}", f"{cpu:.1%}", "", cpu, targets[0], at_most=True),
        Row(f"peak memory in MB at {of}", f"{peak_mb:.0f} MB", "", peak_mb, targets[1], at_most=True),
        Row(
            f"loop blocked, longest, ms, at {of}",
            f"p99.9 {busy['p999']:.2f}, longest {busy['max']:.2f} ms",
            f"late by p99 {late['p99']:.1f}, most {late['max']:.0f} ms",
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
def _simulator(folder: Path, rate: int, instruments: int) -> Iterator[dict[str, str]]:
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


def _first_frame_s(journal: Path, begun_s: float) -> float:
    """Return the seconds until the journal holds a frame."""
    while time.monotonic() - begun_s < 60:
        for path in journal.glob("*.db"):
            with (
                contextlib.suppress(sqlite3.Error),
                contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db,
            ):
                if db.execute("SELECT count(*) FROM frames").fetchone()[0]:
                    return time.monotonic() - begun_s
        time.sleep(0.02)
    raise SystemExit("no frame within a minute")


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return float(status.partition("VmHWM:")[2].split()[0]) / 1e3
