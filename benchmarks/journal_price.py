"""What it costs to make a frame durable before anything else happens to it (docs/adr/0001-the-journal-is-the-bus.md).

The recorder's own intake (queue, group commit, one writer thread) runs against four keepers of frames: the journal as
it is, the journal with SQLite told not to sync, a plain file that is synced after each batch, and a plain file that is
not. Rounds are interleaved, so that whatever else the machine does falls on all four.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tickvault import segments
from tickvault.intake import Intake, Progress
from tickvault.journal import Committed, Journal, Received
from tickvault.state import State

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence

    from tickvault.journal import Fact

__all__ = ["TITLE", "Result", "measure", "table"]

TITLE: Final = "The price of the journal"
ROUNDS: Final = 5
SMALL_BYTES: Final = 2_000  # a live frame with a handful of updates
LARGE_BYTES: Final = 80_000  # a live frame with a few hundred
FLOOD_BYTES: Final = 60_000_000  # of one flood
PACE_HZ: Final = 500  # frames a second while latency is measured
PACED_FRAMES: Final = 1_000


@dataclass(slots=True)
class Result:
    """What one keeper did, over all rounds.

    Attributes:
        latency_s: per frame, from handing it to the intake until the keeper has it.
        small_per_s: frames a second of a flood of small frames, per round; `large_per_s` of large ones.
        cpu_s: CPU seconds per small frame of a flood, per round.
        growth: bytes on the disk per byte received, small frames.
    """

    latency_s: list[float] = field(default_factory=list)
    small_per_s: list[float] = field(default_factory=list)
    large_per_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    growth: list[float] = field(default_factory=list)


class _File:
    """Appends frames to a file, as a recorder without a journal would."""

    def __init__(self, path: Path, *, sync: bool) -> None:
        self.recorder_id, self.last_seq = "0" * 12, 0
        self._file = path.open("ab", buffering=0)
        self._sync = sync

    def append(self, items: Sequence[Received | Fact]) -> Committed:
        """Write a batch in one call."""
        payloads = [item.payload for item in items if isinstance(item, Received)]
        data = b"".join(len(payload).to_bytes(4, "little") + payload for payload in payloads)
        while data:
            data = data[self._file.write(data) :]
        if self._sync:
            os.fdatasync(self._file.fileno())
        self.last_seq += len(payloads)
        return Committed(self.last_seq, ())

    def close(self) -> None:
        self._file.close()


@contextmanager
def _journal(folder: Path, synchronous: str) -> Iterator[tuple[Journal, State]]:
    real = segments.writer

    def writer(path: Path) -> sqlite3.Connection:
        db = real(path)
        db.execute(f"PRAGMA synchronous = {synchronous}")
        return db

    segments.writer = writer
    state, _ = State.open(folder / "state.db")
    journal = Journal.open(folder / "journal", state)
    try:
        yield journal, state
    finally:
        journal.close()
        state.close()
        segments.writer = real


@contextmanager
def _file(folder: Path, *, sync: bool) -> Iterator[tuple[_File, State]]:
    state, _ = State.open(folder / "state.db")
    keeper = _File(folder / "frames", sync=sync)
    try:
        yield keeper, state
    finally:
        keeper.close()
        state.close()


KEEPERS: Final = {
    "journal, synchronous=FULL": lambda folder: _journal(folder, "FULL"),
    "journal, synchronous=OFF": lambda folder: _journal(folder, "OFF"),
    "plain file, fdatasync a batch": lambda folder: _file(folder, sync=True),
    "plain file, no sync": lambda folder: _file(folder, sync=False),
}
BASE: Final = "plain file, no sync"


def measure(place: Path) -> dict[str, Result]:
    """Run every keeper ROUNDS times, in an order that changes, in temporary folders below `place`."""
    results = {name: Result() for name in KEEPERS}
    rng = random.Random(1)
    for _ in range(ROUNDS):
        for name in rng.sample(sorted(KEEPERS), len(KEEPERS)):
            _round(KEEPERS[name], results[name], place, rng)
    return results


def _round(keeper: Callable[[Path], object], result: Result, place: Path, rng: random.Random) -> None:
    small, large = rng.randbytes(SMALL_BYTES), rng.randbytes(LARGE_BYTES)
    with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=place) as folder:
        cpu_s = time.process_time()
        count = FLOOD_BYTES // SMALL_BYTES
        elapsed_s = asyncio.run(_run(keeper, Path(folder), lambda intake: _flood(intake, small, count)))[0]
        result.cpu_s.append((time.process_time() - cpu_s) / count)
        result.small_per_s.append(count / elapsed_s)
        stored = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        result.growth.append(stored / FLOOD_BYTES)
    with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=place) as folder:
        count = FLOOD_BYTES // LARGE_BYTES
        elapsed_s = asyncio.run(_run(keeper, Path(folder), lambda intake: _flood(intake, large, count)))[0]
        result.large_per_s.append(count / elapsed_s)
    with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=place) as folder:
        result.latency_s += asyncio.run(_run(keeper, Path(folder), lambda intake: _paced(intake, small)))[1]


async def _run(keeper: Callable, folder: Path, send: Callable) -> tuple[float, list[float]]:  # type: ignore[type-arg]
    """Send frames through the intake; return the seconds until the last was kept, and the latency of each."""
    with keeper(folder) as (journal, state), ThreadPoolExecutor(1) as executor:
        intake = Intake(max_frames=10_000, max_bytes=64_000_000, wall_ns=time.time_ns)
        first = journal.last_seq
        progress = _Timed(first)
        start_s = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            group.create_task(intake.record(journal, state, executor, progress), name="record")
            sent_s = await send(intake)
            await intake.close()
    kept_s = progress.kept_s
    return kept_s[-1] - start_s, [kept - sent for sent, kept in zip(sent_s, kept_s, strict=True)]


class _Timed(Progress):
    """Notes when each frame was published as kept."""

    def __init__(self, last_seq: int) -> None:
        super().__init__(last_seq)
        self.kept_s: list[float] = []

    async def publish(self, last_seq: int) -> None:
        self.kept_s += [time.perf_counter()] * (last_seq - self.last_seq)
        await super().publish(last_seq)


async def _flood(intake: Intake, payload: bytes, count: int) -> list[float]:
    sent_s = []
    for _ in range(count):
        sent_s.append(time.perf_counter())
        await intake.frame(time.time_ns(), 1, payload)
    return sent_s


async def _paced(intake: Intake, payload: bytes) -> list[float]:
    sent_s = []
    start_s = time.perf_counter()
    for number in range(PACED_FRAMES):
        await asyncio.sleep(max(0.0, start_s + number / PACE_HZ - time.perf_counter()))
        sent_s.append(time.perf_counter())
        await intake.frame(time.time_ns(), 1, payload)
    return sent_s


def table(results: dict[str, Result]) -> list[list[str]]:
    """Return headers and rows; in brackets the ratio to the plain file without sync."""
    base = results[BASE]
    headers = [
        "keeper",
        f"p50 ms at {PACE_HZ}/s",
        "p99 ms",
        "frames/s of 2 kB",
        "MB/s of 80 kB",
        "CPU µs a frame",
        "disk",
    ]
    rows = []
    for name, one in results.items():
        p50, p99 = _quantiles(one.latency_s)
        base50, base99 = _quantiles(base.latency_s)
        small, large = statistics.median(one.small_per_s), statistics.median(one.large_per_s)
        cpu = statistics.median(one.cpu_s)
        rows.append(
            [
                name,
                f"{p50 * 1e3:.2f} ({p50 / base50:.1f}×)",
                f"{p99 * 1e3:.2f} ({p99 / base99:.1f}×)",
                f"{small:,.0f} ({small / statistics.median(base.small_per_s):.2f}×)",
                f"{large * LARGE_BYTES / 1e6:,.0f} ({large / statistics.median(base.large_per_s):.2f}×)",
                f"{cpu * 1e6:.0f} ({cpu / statistics.median(base.cpu_s):.1f}×)",
                f"{statistics.median(one.growth):.2f}×",
            ]
        )
    return [headers, *rows]


def _quantiles(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
