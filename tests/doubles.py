"""What tests of the durable core share: small frames, a disk and a state that crash where told, an open data folder."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tickvault import compaction, prune
from tickvault.batching import to_batch
from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.journal import Fact, Journal, Received
from tickvault.ledger import Ledger
from tickvault.reading import JournalReader
from tickvault.rewind import Cursors
from tickvault.sinks.parquet import FileSystem, ParquetStore, TableFile
from tickvault.state import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from tickvault.compaction import Compacted, Left
    from tickvault.journal import Committed
    from tickvault.model import Batch, Frame
    from tickvault.sinks.parquet import DataFile
    from tickvault.state import Cursor

AT_MS = 1_788_234_300_000  # 2026-09-01 09:15 IST
AT_NS = AT_MS * 1_000_000
DAY_MS = 86_400_000

# Files that must be synced but need not survive a power cut: memory is fast, and a crash here is an exception.
FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def payload(number: int, *, keys: tuple[str, ...] = ("NSE_EQ|A",), at_ms: int = AT_MS) -> bytes:
    """Return a frame of one small trade a key, a candle of the first key and one segment's status."""
    message = pb.FeedResponse(type=pb.live_feed, currentTs=at_ms)
    for key in keys:
        message.feeds[key].requestMode = pb.full_d5
        message.feeds[key].fullFeed.marketFF.ltpc.ltp = float(number)
    message.feeds[keys[0]].fullFeed.marketFF.marketOHLC.ohlc.add(interval="1d", open=float(number), ts=at_ms)
    message.marketInfo.segmentStatus["NSE_EQ"] = pb.NORMAL_OPEN
    return message.SerializeToString()


def received(number: int, body: bytes | None = None, *, conn: int = 1) -> Received:
    """Return the number-th message of a day."""
    return Received(AT_NS + number * 1_000_000, conn, payload(number) if body is None else body)


def frames_of(folder: Path, after_seq: int = 0) -> list[Frame]:
    """Return every frame of a journal folder behind a seq."""
    reader = JournalReader(folder, after_seq)
    found: list[Frame] = []
    try:
        while (chunk := reader.read(max_frames=1000, max_bytes=10**9)) is not None:
            found += chunk.frames
    finally:
        reader.close()
    return found


def until(condition: Any, what: str = "the condition", within_s: float = 10.0) -> None:
    """Poll until the condition holds; fail when it never does."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {within_s} s"
        time.sleep(0.005)


class Crash(BaseException):
    """The process ends here."""


@dataclass(slots=True)
class Fuse:
    """Counts operations and crashes before the one it is set to."""

    left: int | None = None
    done: int = 0

    def burn(self) -> None:
        self.done += 1
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None
                raise Crash


class CrashingDisk(FileSystem):
    """A file system whose every operation may be the first one not done; a write may also be torn."""

    def __init__(self, fuse: Fuse) -> None:
        self.fuse = fuse

    def write(self, file: TableFile, rows: pa.Table) -> None:
        self.fuse.burn()
        super().write(file, rows)

    def finish(self, file: TableFile) -> None:
        try:
            self.fuse.burn()
        except Crash:
            file.path.write_bytes(b"PAR1 torn")
            raise
        super().finish(file)

    def write_sorted(self, path: Path, inputs: Sequence[DataFile]) -> None:
        self.fuse.burn()
        try:
            self.fuse.burn()
        except Crash:
            path.write_bytes(b"PAR1 torn")
            raise
        super().write_sorted(path, inputs)

    def rename(self, source: Path, target: Path) -> None:
        self.fuse.burn()
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self.fuse.burn()
        super().unlink(path)

    def make_folder(self, path: Path) -> bool:
        self.fuse.burn()
        return super().make_folder(path)

    def sync_folder(self, path: Path) -> None:
        self.fuse.burn()
        super().sync_folder(path)


class CrashingState(State):
    """A state whose every transaction may be the first one not made."""

    fuse = Fuse()

    def _transaction(self) -> Any:
        self.fuse.burn()
        return super()._transaction()


class CrashingJournal(Journal):
    """A journal whose every append may be the first one not made."""

    fuse = Fuse()

    def append(self, items: Any) -> Committed:
        self.fuse.burn()
        return super().append(items)


@dataclass(slots=True)
class Vault:
    """A data folder with a Parquet sink, driven by hand: everything a recorder does to it, one step at a time."""

    path: Path
    fuse: Fuse = field(default_factory=Fuse)
    number: int = 0
    state: State = field(init=False)
    journal: Journal = field(init=False)
    store: ParquetStore = field(init=False)
    cursors: Cursors = field(init=False)

    @property
    def folder(self) -> Path:
        return self.path / "journal"

    @property
    def cursor(self) -> Cursor:
        cursor = self.state.cursor("parquet")
        assert cursor is not None
        return cursor

    def open(self) -> None:
        state = type("_State", (CrashingState,), {"fuse": self.fuse})
        journal = type("_Journal", (CrashingJournal,), {"fuse": self.fuse})
        self.path.mkdir(exist_ok=True)
        self.state, _ = state.open(self.path / "state.db")
        self.journal = journal.open(self.folder, self.state, wall_ns=lambda: AT_NS + self.number * 1_000_000)
        self.store = ParquetStore(self.path / "parquet", self.journal.recorder_id, disk=CrashingDisk(self.fuse))
        self.cursors = Cursors(self.journal, self.state, self.folder)
        self.cursors.open("parquet", self.store)

    def drop(self) -> None:
        """Let go of the files as a killed process does: nothing is sealed, nothing written."""
        if hasattr(self, "state"):
            self.state.close()
        if hasattr(self, "store"):
            for file in self.store._staged.values():
                file.abandon()
        journal = getattr(self, "journal", None)
        if journal is not None and journal._db is not None:
            journal._db.close()
            journal._db = None

    def append(self, count: int, *, days: bool = True) -> None:
        items: list[Received | Fact] = []
        for _ in range(count):
            self.number += 1
            at_ms = AT_MS + (DAY_MS if days and self.number % 3 == 0 else 0)
            body = b"\xff broken" if self.number % 7 == 0 else payload(self.number, at_ms=at_ms)
            items.append(received(self.number, body))
        self.journal.append(items)

    def batch(self, max_frames: int) -> Batch | None:
        """Return what is behind the cursor; None when there is nothing."""
        reader = JournalReader(self.folder, self.cursor.seq)
        try:
            chunk = reader.read(max_frames=max_frames, max_bytes=10**9)
        finally:
            reader.close()
        return chunk and to_batch(chunk, recorder_id=self.journal.recorder_id, ledger=Ledger())

    def deliver(self, max_frames: int) -> bool:
        """Deliver one batch, in two parts; False when there is nothing."""
        cursor, batch = self.cursor, self.batch(max_frames)
        if batch is None:
            return False
        self.state.attempt("parquet", batch.hi)
        self.store.stage(batch.slice(0, batch.rows // 2))
        self.store.commit(batch.slice(batch.rows // 2, batch.rows))
        self.state.advance(
            "parquet",
            batch.hi,
            generation=cursor.generation,
            head_seq=self.journal.last_seq,
            settled_seq=batch.hi,
            dead_letters=batch.rejected,
            notices=(),
            now_ns=AT_NS,
        )
        return True

    def deliver_all(self, max_frames: int) -> None:
        """Deliver what there is, in batches of so many frames."""
        while self.deliver(max_frames):
            pass

    def rewind(self, to_seq: int) -> None:
        self.cursors.rewind("parquet", to_seq, self.store)

    def compact(self, *, days: int = 3) -> list[Compacted | Left]:
        """Compact what is older than so many days behind the first."""
        now_ns = AT_NS + days * DAY_MS * 1_000_000
        return list(
            compaction.compact(self.path, now_ns=now_ns, reserve_bytes=0, disk=CrashingDisk(self.fuse), reading_s=0)
        )

    def prune(self) -> None:
        """Remove what of the journal is delivered."""
        prune.prune(self.folder, self.state, ["parquet"], before_ns=None)

    def lose_state(self) -> None:
        (self.path / "state.db").unlink(missing_ok=True)
        (self.path / "state.db-journal").unlink(missing_ok=True)

    def restore_state(self, copy: Path) -> None:
        self.lose_state()
        shutil.copy(copy, self.path / "state.db")
