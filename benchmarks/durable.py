"""What durability costs beside the least that it could.

Appends to the journal run in turns with plain SQLite that inserts the same 80 KB blobs in the same batches, with the same
page size, WAL and `synchronous=FULL`. For the latency frames of 80 KB come at an even pace, 50 a second, a dozen times that
of one socket; in turns with a second of that a plain file beside the journal is appended to and synced at the same pace:
once for all that came during the sync before.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from benchmarks.rows import Row, ratio
from tickvault.intake import Intake, Progress
from tickvault.journal import Journal, Received
from tickvault.state import State

__all__ = ["TITLE", "rows"]

TITLE: Final = "Durability"
_ROUNDS: Final = 7
_BLOB_BYTES: Final = 80_000
_BATCH: Final = 20
_BATCHES: Final = 20
_PACE_HZ: Final = 50
_PACED: Final = 50  # frames of one turn
_TURNS: Final = 16


def rows(place: Path) -> list[Row]:
    """Measure on the disk that holds `place`."""
    return [_append(place), _latency(place)]


def _append(place: Path) -> Row:
    blobs = [random.Random(1).randbytes(_BLOB_BYTES) for _ in range(_BATCH)]
    ours, plain = [], []
    for number in range(_ROUNDS + 1):
        with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=place) as folder:
            ours_s, plain_s = _journal_s(Path(folder), blobs), _plain_s(Path(folder), blobs)
        if number:
            ours.append(ours_s)
            plain.append(plain_s)
    per_s = [_BATCH * _BATCHES * _BLOB_BYTES / 1e6 / sorted(one)[len(one) // 2] for one in (ours, plain)]
    return Row("journal append", f"{per_s[0]:.0f} MB/s", f"plain SQLite {per_s[1]:.0f} MB/s", ratio(plain, ours), 0.8)


def _journal_s(folder: Path, blobs: list[bytes]) -> float:
    state, _ = State.open(folder / "state.db")
    journal = Journal.open(folder / "journal", state)
    begun_s = time.perf_counter()
    for _ in range(_BATCHES):
        journal.append([Received(time.time_ns(), 1, blob) for blob in blobs])
    spent_s = time.perf_counter() - begun_s
    journal.close()
    state.close()
    return spent_s


def _plain_s(folder: Path, blobs: list[bytes]) -> float:
    db = sqlite3.connect(folder / "plain.db", isolation_level=None)
    for pragma in ("page_size = 8192", "journal_mode = WAL", "synchronous = FULL", "wal_autocheckpoint = 2000"):
        db.execute(f"PRAGMA {pragma}")
    db.execute("CREATE TABLE frames (seq INTEGER PRIMARY KEY, body BLOB NOT NULL)")
    begun_s = time.perf_counter()
    for number in range(_BATCHES):
        db.execute("BEGIN")
        db.executemany(
            "INSERT INTO frames VALUES (?, ?)", [(number * _BATCH + i, blob) for i, blob in enumerate(blobs)]
        )
        db.execute("COMMIT")
    spent_s = time.perf_counter() - begun_s
    db.close()
    return spent_s


def _latency(place: Path) -> Row:
    with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=place) as folder:
        ours, bare = asyncio.run(_paced(Path(folder)))
    ours99, bare99 = (sorted(one)[int(len(one) * 0.99)] * 1e3 for one in (ours, bare))
    ours50, bare50 = (sorted(one)[len(one) // 2] * 1e3 for one in (ours, bare))
    return Row(
        "receive → durable, p99 minus that of a bare fsync, ms",
        f"p50 {ours50:.2f} p99 {ours99:.2f} ms",
        f"fsync p50 {bare50:.2f} p99 {bare99:.2f} ms",
        ours99 - bare99,
        3.0,
        at_most=True,
    )


async def _paced(folder: Path) -> tuple[list[float], list[float]]:
    """Return the seconds from each frame's arrival until it was announced as durable, and those of bare syncs."""
    payload = random.Random(1).randbytes(_BLOB_BYTES)
    state, _ = State.open(folder / "state.db")
    journal = Journal.open(folder / "journal", state)
    file = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT)
    intake = Intake(max_frames=10_000, max_bytes=64_000_000, wall_ns=time.time_ns)
    progress = Progress(journal.last_seq)
    ours: list[float] = []
    bare: list[float] = []
    with ThreadPoolExecutor(1) as executor:
        async with asyncio.TaskGroup() as group:
            group.create_task(intake.record(journal, state, executor, progress), name="record")
            for _ in range(_TURNS):
                ours += await _durable_s(intake, progress, payload)
                bare += await asyncio.to_thread(_synced_s, file, payload)
            await intake.close()
    os.close(file)
    journal.close()
    state.close()
    return ours, bare


async def _durable_s(intake: Intake, progress: Progress, payload: bytes) -> list[float]:
    """Hand frames over at their pace, whether or not those before are durable."""
    sent_s: list[float] = []
    done_s: list[float] = []
    first = progress.last_seq

    async def see() -> None:
        while len(done_s) < _PACED:
            await progress.beyond(first + len(done_s), timeout_s=None)
            done_s.extend([time.perf_counter()] * (progress.last_seq - first - len(done_s)))

    seeing = asyncio.create_task(see())
    begun_s = time.perf_counter()
    for number in range(_PACED):
        await asyncio.sleep(max(0.0, begun_s + number / _PACE_HZ - time.perf_counter()))
        sent_s.append(time.perf_counter())
        await intake.frame(time.time_ns(), 1, payload)
    await seeing
    return [done - sent for sent, done in zip(sent_s, done_s, strict=True)]


def _synced_s(file: int, payload: bytes) -> list[float]:
    """Write and sync what has come at the same pace; what comes meanwhile is in the next sync, as in a commit of ours."""
    spent_s: list[float] = []
    begun_s = time.perf_counter()
    while len(spent_s) < _PACED:
        due_s = [begun_s + number / _PACE_HZ for number in range(len(spent_s), _PACED)]
        if (pause_s := due_s[0] - time.perf_counter()) > 0:
            time.sleep(pause_s)
            due_s[0] = time.perf_counter()
        came_s = due_s[: max(1, sum(one <= time.perf_counter() for one in due_s))]
        for _ in came_s:
            os.write(file, payload)
        os.fsync(file)
        spent_s += [time.perf_counter() - one for one in came_s]
    return spent_s
