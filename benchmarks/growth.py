"""How cost grows: over instruments, updates a second, the length of a backlog and the days stored.

`python -m benchmarks.growth` measures, writes what it measured to benchmarks/growth.md and draws it into docs/img. The
simulator sends from a process of its own to `tickvault run` with Parquet, for 20 s a point; CPU and memory are those of the
whole recorder, from its first frame on to its exit, with which the batch of these seconds is written. A backlog is a journal
of frames of 5 instruments. A stored day is 400 frames of 20 instruments in two batches. Commands are taken in CPU seconds of
the whole process, the start from the command to the first frame in the journal, and each is the median of three.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import datetime as dt
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import duckdb

from benchmarks import plots
from benchmarks.backlog import Backlog
from benchmarks.footprint import cpu_s, first_frame_s, peak_mb, simulator
from benchmarks.frames import frames
from benchmarks.page import about, machine_of, markdown
from benchmarks.plots import Curve
from benchmarks.rows import children_s
from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.model import IST
from tickvault.sinks.parquet import ParquetSink, ParquetStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tickvault.model import Frame

__all__: list[str] = []

_RESULTS: Final = Path(__file__).parent / "growth.md"
_RUN_S: Final = 20.0
_INSTRUMENTS: Final = (10, 100, 1_000, 5_000)
_AT_RATE: Final = 500
_RATES: Final = (250, 1_000, 2_500, 5_000)
_OF_INSTRUMENTS: Final = 1_000
_BACKLOGS: Final = (1_000, 10_000, 100_000)
_DAYS: Final = (1, 8, 32, 96)
_BATCHES: Final = 2  # a stored day
_TIMES: Final = 3
_TOOL: Final = str(Path(sys.executable).with_name("tickvault"))
_MS_A_DAY: Final = 86_400_000


def main() -> None:
    """Measure, write down and draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--place", type=Path, default=Path("build"), help="folder on the disk to measure")
    parser.add_argument("--pictures", type=Path, default=Path("docs/img"), help="folder of the pictures")
    asked = parser.parse_args()
    asked.place.mkdir(parents=True, exist_ok=True)
    measured = machine_of(asked.place, "make bench-plots")
    sections = [f"# Growth\n\n{measured}\n\n{about(sys.modules[__name__])}\n"]
    for measure in (_over_instruments, _over_rates, _over_backlogs, _over_days):
        with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=asked.place) as folder:
            curve = measure(Path(folder).resolve())
        table = [[curve.across, *curve.figures]]
        table += [
            [f"{at:,}", *(f"{of[i]:.3g}" if of[i] < 1_000 else f"{of[i]:,.0f}" for of in curve.figures.values())]
            for i, at in enumerate(curve.points)
        ]
        print(markdown(table), flush=True)
        sections.append(f"## Over {curve.across}\n\n{markdown(table)}")
        plots.draw(curve, asked.pictures)
    _RESULTS.write_text("\n".join(sections), encoding="utf-8")


# -- a whole recorder


@dataclass(slots=True)
class _Run:
    """A recorder; `cpu_s` and `peak_mb` are of all of it, and there when it has ended."""

    pid: int
    begun_s: float
    cpu_s: float = 0.0
    peak_mb: float = 0.0


@contextlib.contextmanager
def _recording(folder: Path, rate: int, instruments: int) -> Iterator[_Run]:
    """Run a recorder on `data` in a folder, with a simulator of its own; stop it."""
    folder.mkdir(exist_ok=True)
    with simulator(folder, rate, instruments) as told, (folder / "said").open("wb") as said:
        environment = {
            "PATH": os.environ["PATH"],
            "TICKVAULT_DATA_DIR": str(folder / "data"),
            "TICKVAULT_HTTP": "off",
            "TICKVAULT_SINKS": "parquet",
            **told,
        }
        begun_s = time.monotonic()
        child = subprocess.Popen([_TOOL, "run"], env=environment, stdout=said, stderr=said, cwd=folder)
        run = _Run(child.pid, begun_s)
        try:
            yield run
        finally:
            child.send_signal(signal.SIGTERM)
            while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                with contextlib.suppress(IndexError):  # it ended meanwhile
                    run.peak_mb = peak_mb(child.pid)  # what wait4 tells is of the forked process, too
                time.sleep(0.02)
            run.cpu_s = cpu_s(child.pid)
            child.wait()
    if child.returncode:
        raise SystemExit((folder / "said").read_text(encoding="utf-8"))


def _footprint(folder: Path, rate: int, instruments: int) -> tuple[float, float, float]:
    """Return CPU ms of 1,000 updates, CPU in % of a core, and the most memory in MB."""
    with _recording(folder, rate, instruments) as run:
        first_frame_s(folder / "data" / "journal", run.begun_s)
        since_s, used_s = time.monotonic(), cpu_s(run.pid)
        time.sleep(_RUN_S)
        share = (cpu_s(run.pid) - used_s) / (time.monotonic() - since_s)
    files = f"{folder}/data/parquet/ticks/**/*.parquet"
    (updates,) = duckdb.execute("SELECT count(*) FROM read_parquet(?)", [files]).fetchone() or (0,)
    return (run.cpu_s - used_s) / updates * 1e6, share * 100, run.peak_mb


def _over_instruments(place: Path) -> Curve:
    found = [_footprint(place / f"{count}", _AT_RATE, count) for count in _INSTRUMENTS]
    figures = {"CPU of 1,000 updates, ms": [one[0] for one in found], "peak memory, MB": [one[2] for one in found]}
    return Curve("growth-instruments", f"instruments, {_AT_RATE} updates/s", _INSTRUMENTS, figures, logarithmic=True)


def _over_rates(place: Path) -> Curve:
    found = [_footprint(place / f"{rate}", rate, _OF_INSTRUMENTS) for rate in _RATES]
    names = ("CPU of 1,000 updates, ms", "CPU before the exit, % of a core", "peak memory, MB")
    figures = {name: [one[i] for one in found] for i, name in enumerate(names)}
    return Curve("growth-rate", f"updates/s, {_OF_INSTRUMENTS:,} instruments", _RATES, figures, logarithmic=False)


# -- what waits, and what is stored


def _over_backlogs(place: Path) -> Curve:
    of = frames(5, updates=5_000).frames
    per_s: list[float] = []
    for length in _BACKLOGS:
        backlog = Backlog(place / f"{length}")
        for _ in range(length // len(of)):
            backlog.append(of)
        store = ParquetStore(backlog.folder / "parquet", backlog.recorder_id)
        per_s.append(length / asyncio.run(backlog.deliver(ParquetSink(store), store)))
        backlog.close()
    return Curve("growth-backlog", "frames of backlog", _BACKLOGS, {"drained, frames/s": per_s}, logarithmic=True)


def _over_days(place: Path) -> Curve:
    today = dt.datetime.now(IST).date()
    asked = {
        "query of one day, CPU s": [
            "query",
            f"SELECT symbol, avg(ltp) FROM ticks WHERE time >= TIMESTAMPTZ '{today - dt.timedelta(1)} 00:00+05:30'"
            f" AND time < TIMESTAMPTZ '{today} 00:00+05:30' GROUP BY 1",
        ],
        "query of all days, CPU s": ["query", "SELECT symbol, avg(ltp) FROM ticks GROUP BY 1"],
        "status, CPU s": ["status"],
        "day, CPU s": ["day", f"{today - dt.timedelta(1)}"],
    }
    figures: dict[str, list[float]] = {name: [] for name in (*asked, "start, CPU s", "disk, MB")}
    for days in _DAYS:
        data = place / f"{days}" / "data"
        _store(data, days)
        starts_s = []
        for _ in range(_TIMES):
            last_seq = _last_seq(data / "journal")
            with _recording(data.parent, 100, 50) as run:
                first_frame_s(data / "journal", run.begun_s, after_seq=last_seq)
                starts_s.append(cpu_s(run.pid))
        figures["start, CPU s"].append(statistics.median(starts_s))
        for name, arguments in asked.items():
            figures[name].append(statistics.median(_command_s(data, arguments) for _ in range(_TIMES)))
        size = sum(path.stat().st_size for path in (data / "parquet").rglob("*") if path.is_file())
        figures["disk, MB"].append(size / 1e6)
    return Curve("growth-days", "days stored", _DAYS, figures, logarithmic=False)


def _store(data: Path, days: int) -> None:
    """Store some days up to yesterday."""
    backlog, of = Backlog(data), frames(20, updates=8_000).frames
    store = ParquetStore(data / "parquet", backlog.recorder_id)
    first = dt.datetime.now(IST).date() - dt.timedelta(days)
    begin = dt.datetime.fromtimestamp(of[0].received_ns / 1e9, IST).date()
    for day in range(days):
        moved = [_moved(frame, (first - begin).days + day) for frame in of]
        for part in range(_BATCHES):
            backlog.append(moved[part::_BATCHES])
            asyncio.run(backlog.deliver(ParquetSink(store), store))
    backlog.close()


def _moved(frame: Frame, days: int) -> Frame:
    message = pb.FeedResponse.FromString(frame.payload)
    message.currentTs += days * _MS_A_DAY
    received_ns = frame.received_ns + days * _MS_A_DAY * 1_000_000
    return dataclasses.replace(frame, received_ns=received_ns, payload=message.SerializeToString())


def _last_seq(journal: Path) -> int:
    found = [0]
    for path in journal.glob("*.db"):
        with (
            contextlib.suppress(sqlite3.Error),  # it is being pruned, or holds no frames
            contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db,
        ):
            found += [seq for (seq,) in db.execute("SELECT max(seq) FROM frames") if seq]
    return max(found)


def _command_s(data: Path, arguments: list[str]) -> float:
    environment = {"PATH": os.environ["PATH"], "TICKVAULT_DATA_DIR": str(data)}
    before_s = children_s()
    ended = subprocess.run([_TOOL, *arguments], env=environment, cwd=data.parent, capture_output=True, text=True)
    if ended.returncode not in (0, 1):  # 1: the day is not complete, no recorder runs
        raise SystemExit(ended.stderr)
    return children_s() - before_s


if __name__ == "__main__":
    main()
