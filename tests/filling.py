"""Run on a small disk by tests/contract/test_room.py: journal, state and Parquet meet a disk that is full."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from doubles import AT_NS, Vault, frames_of, received

from tickvault import segments, survey
from tickvault.batching import to_batch
from tickvault.errors import JournalFull, SinkUnavailable
from tickvault.intake import Intake
from tickvault.journal import Fact
from tickvault.ledger import Ledger
from tickvault.model import Batch
from tickvault.reading import JournalReader
from tickvault.room import Room
from tickvault.settings import DiskReserve
from tickvault.sinks.parquet import ParquetSink

MB = 1_000_000
BODY = 20_000


class Ballast:
    """A file that leaves exactly so many bytes free."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ballast"

    def leave(self, count: int) -> None:
        self.path.unlink(missing_ok=True)
        usage = os.statvfs(self.path.parent)
        with self.path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, usage.f_bavail * usage.f_frsize - count))


def frames(number: int, count: int) -> list[object]:
    return [received(number + n, os.urandom(BODY)) for n in range(count)]


def every_write(place: Path) -> None:
    """Each step of an append, a roll, an advance, a Parquet commit and an open meets a full disk, at every size left."""
    vault = Vault(place / "data")
    vault.open()
    vault.journal.max_segment_frames = 5
    vault.append(3)
    ballast = Ballast(place)
    refused = {"append": 0, "advance": 0, "parquet": 0, "open": 0}
    expected = 3
    for left in range(0, 200_000, 8192):
        ballast.leave(left)
        items = frames(1000 + expected, 2)
        try:
            vault.journal.append(items)  # type: ignore[arg-type]
        except JournalFull:
            refused["append"] += 1
            ballast.leave(MB)
            vault.journal.append(items)  # type: ignore[arg-type]
        expected += 2
        ballast.leave(left)
        ballast.leave(MB)
        reader = JournalReader(vault.folder, vault.cursor.seq)
        chunk = reader.read(max_frames=3, max_bytes=10**9)
        reader.close()
        if chunk is not None:
            batch = to_batch(chunk, recorder_id=vault.journal.recorder_id, ledger=Ledger())
            sink = ParquetSink(vault.store)
            refused["parquet"] += _until_room(lambda: asyncio.run(_from_its_beginning(sink, batch)), ballast, left)
            refused["advance"] += _until_room(
                lambda: vault.state.advance(
                    "parquet", batch.hi, generation=vault.cursor.generation, head_seq=vault.journal.last_seq,
                    settled_seq=batch.hi, dead_letters=batch.rejected, notices=(), now_ns=0,
                ), ballast, left,
            )  # fmt: skip
        if left % 5 == 0:
            vault.drop()
            ballast.leave(left)
            refused["open"] += _until_room(vault.open, ballast, left)
            vault.journal.max_segment_frames = 5
        ballast.leave(MB)
    assert [frame.seq for frame in frames_of(vault.folder)] == list(range(1, expected + 1))
    assert list(survey.verify(vault.folder, running=True)) == []
    assert not (vault.folder / "damaged").exists()
    assert not list(survey.lost_ranges(vault.folder))
    print(refused)
    assert all(refused.values()), refused
    vault.drop()


async def _from_its_beginning(sink: ParquetSink, batch: Batch) -> None:
    """Write a batch as a delivery does, after a failure too."""
    await sink.discard()
    await sink.write(batch)


def _until_room(step: object, ballast: Ballast, left: int) -> int:
    ballast.leave(left)
    try:
        step()  # type: ignore[operator]
    except (JournalFull, SinkUnavailable):
        ballast.leave(MB)
        step()  # type: ignore[operator]
        return 1
    return 0


class Bench:
    """A recorder's intake and room on the small disk, driven by hand."""

    def __init__(self, place: Path, *, drop_oldest: bool) -> None:
        self.vault = Vault(place / "data")
        self.vault.open()
        self.vault.journal.max_segment_frames = 50
        self.intake = Intake(max_frames=10, max_bytes=10**9, wall_ns=lambda: AT_NS)
        self.room = Room(
            self.vault.folder, self.vault.state, self.intake, sinks=["parquet"], retain_s=10**6,
            reserve=DiskReserve(percent=None, bytes=4 * MB), drop_oldest=drop_oldest, roll=self.roll,
            journal_fact=self.fact, mend=self.mend, wall_ns=lambda: AT_NS,
        )  # fmt: skip

    async def roll(self) -> None:
        self.vault.journal.roll()

    async def fact(self, fact: Fact) -> None:
        self.vault.journal.append([fact])

    async def mend(self, path: Path, reason: str) -> None:
        self.vault.journal.mend(path, reason)

    def fill(self) -> int:
        """Append until less than the reserve is free; return how many frames."""
        count = 0
        while not self.room._missing():
            self.vault.journal.append(frames(self.vault.journal.last_seq, 10))  # type: ignore[arg-type]
            count += 10
        return count

    def deliver(self) -> None:
        last = self.vault.journal.last_seq
        self.vault.state.advance(
            "parquet", last, generation=self.vault.cursor.generation, head_seq=last, settled_seq=last,
            dead_letters=(), notices=(), now_ns=0,
        )  # fmt: skip


async def stop_and_go_on(place: Path) -> None:
    """Below the reserve intake is held and nothing undelivered goes; delivered, it goes, and intake goes on."""
    bench = Bench(place, drop_oldest=False)
    count = bench.fill()
    await bench.room.look()
    assert bench.intake.held is not None
    assert len(frames_of(bench.vault.folder)) == count
    bench.deliver()
    await bench.room.look()
    await bench.room.look()
    assert bench.intake.held is None
    assert 1 < int(segments.paths(bench.vault.folder)[0].stem) <= count + 1
    bench.vault.journal.append(frames(0, 1))  # type: ignore[arg-type]
    assert list(survey.verify(bench.vault.folder, running=True)) == []
    bench.vault.drop()


async def tell(place: Path) -> None:
    """That the disk is low is told even when at first there is no room to write that down, and told once."""
    bench = Bench(place, drop_oldest=False)
    bench.vault.state._events = None
    bench.fill()
    ballast = Ballast(place)
    ballast.leave(0)
    for _ in range(2):
        await bench.room.look()
        assert bench.intake.held is not None
        assert bench.vault.state.outbox_count() == 0
    ballast.leave(MB)
    for _ in range(2):
        await bench.room.look()
        assert [one.event for one in bench.vault.state.heads()] == ["disk.low"]
    bench.vault.drop()


async def drop(place: Path) -> None:
    """When asked for, the oldest undelivered segment goes, counted, in the ledger; sinks step over it."""
    bench = Bench(place, drop_oldest=True)
    count = bench.fill()
    for _ in range(3):
        await bench.room.look()
    assert bench.intake.held is None
    [(low, high)] = survey.lost_ranges(bench.vault.folder)
    assert (low, high % 50) == (1, 0)
    assert [frame.seq for frame in frames_of(bench.vault.folder)] == list(range(high + 1, count + 1))
    told = survey.ledger(bench.vault.folder)[1]
    assert any(gap.reason == "lost" and "drop_oldest" in gap.detail for gap in told)
    assert list(survey.verify(bench.vault.folder, running=True)) == []
    bench.vault.drop()
    bench.vault.open()
    assert next(iter(frames_of(bench.vault.folder, bench.vault.cursor.seq))).seq == high + 1
    bench.vault.drop()


if __name__ == "__main__":
    where, what = Path(sys.argv[1]), sys.argv[2]
    if what == "every_write":
        every_write(where)
    else:
        asyncio.run({"stop": stop_and_go_on, "drop": drop, "tell": tell}[what](where))
