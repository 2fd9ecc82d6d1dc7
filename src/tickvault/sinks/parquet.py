"""Parquet files whose names are the manifest (docs/durability.md).

    parquet/<table>/date=YYYY-MM-DD/<recorder>-<lo>-<hi>.parquet        date: IST date of the frame's time

A file is complete when it has its name. A file whose range lies within another's of the same folder and recorder is
shadowed and does not count. `FileSystem` is every operation on the disk, so that a test can crash between any two.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, ParamSpec

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tickvault.durable import sync_folder
from tickvault.errors import SinkUnavailable
from tickvault.model import BatchPolicy
from tickvault.sinks.sorting import ORDER, write_sorted

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from tickvault.model import Batch

__all__ = [
    "STORED",
    "DataFile",
    "FileSystem",
    "ParquetSink",
    "ParquetStore",
    "TableFile",
    "boundary",
    "counting",
    "locked",
    "reading",
    "recurring",
    "scan",
]

STORED: Final = (
    "ticks",
    "candles",
    "market_status",
    "instruments",
)  # gaps live in the state: they change when they close
_NAME: Final = re.compile(r"(?P<recorder>[0-9a-z]+)-(?P<lo>\d{16})-(?P<hi>\d{16})(?P<compacted>\.c)?\.parquet")
# Numbers that seldom come twice: a dictionary of them costs time, and more bytes than it saves (benchmarks/results.md).
_UNIQUE: Final = frozenset(
    {"ltt", "ltq", "atp", "vtt", "oi", "iv", "tbq", "tsq", "delta", "theta", "gamma", "vega", "rho"}
)
_P = ParamSpec("_P")
_SEQ_COLUMN: Final = {"instruments": "valid_from_seq"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """One complete file, as its name tells."""

    path: Path
    table: str
    date: str
    recorder: str
    lo: int
    hi: int
    compacted: bool


class TableFile:
    """A Parquet file that is being written: rows go to the disk as they come, a row group a call."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.rows = 0
        self._file = open(path, "wb", opener=_private)  # noqa: SIM115 - open until it is closed
        self._writer = pq.ParquetWriter(self._file, schema, compression="zstd", use_dictionary=recurring(schema))

    def write(self, rows: pa.Table) -> None:
        """Append rows."""
        self._writer.write_table(rows)
        self.rows += rows.num_rows

    def finish(self) -> None:
        """Complete and fsync the file, then read its footer back."""
        with self._file:
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
        _check_rows(self.path, self.rows)

    def abandon(self) -> None:
        """Let go of the file, whatever state it is in."""
        with suppress(OSError, pa.ArrowException):
            self._writer.close()
        self._writer.is_open = False  # or it would try once more when it is collected
        with suppress(OSError):
            self._file.close()


class FileSystem:
    """The disk operations of the protocol, each atomic or repeatable."""

    def write(self, file: TableFile, rows: pa.Table) -> None:
        """Append rows to a file."""
        file.write(rows)

    def finish(self, file: TableFile) -> None:
        """Make a file complete and durable, and check it."""
        file.finish()

    def write_sorted(self, path: Path, inputs: Sequence[DataFile]) -> None:
        """Write and fsync a file with all rows of others of one table, in order, then read its footer back."""
        rows = sum(pq.read_metadata(one.path).num_rows for one in inputs)
        with open(path, "wb", opener=_private) as file:
            write_sorted([one.path for one in inputs], file, ORDER[inputs[0].table], spool_folder=path.parent)
            file.flush()
            os.fsync(file.fileno())
        _check_rows(path, rows)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file its name."""
        source.rename(target)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        path.unlink(missing_ok=True)

    def make_folder(self, path: Path) -> bool:
        """Create a folder; False if it is there."""
        if path.is_dir():
            return False
        path.mkdir(mode=0o700)
        return True

    def sync_folder(self, path: Path) -> None:
        """Make a folder's entries durable."""
        sync_folder(path)


class ParquetStore:
    """The files of one recorder below a `parquet` folder."""

    def __init__(self, root: Path, recorder_id: str, *, disk: FileSystem | None = None) -> None:
        self.root = root
        self.recorder_id = recorder_id
        self._disk = disk or FileSystem()
        self._staged: dict[tuple[str, dt.date], TableFile] = {}
        self._named_from: int | None = None  # the batch whose files may have got their names, but for its end

    def files(self) -> list[DataFile]:
        """Return this recorder's complete files, shadowed ones included."""
        return [file for file in scan(self.root) if file.recorder == self.recorder_id]

    def last_with(self, ranges: Iterable[tuple[int, int]], from_seq: int) -> int:
        """Return where the last file ends that begins at `from_seq` or later and has rows of these frames; 0 if none.

        Args:
            ranges: of seqs, ends included.
            from_seq: of the first file that counts.
        """
        found = 0
        for low, high in ranges:
            for file in self.files():
                if file.hi <= found or file.lo < from_seq or not (file.lo <= high and low <= file.hi):
                    continue
                if file.table in _SEQ_COLUMN:  # definitions come into force at a frame, and are not of it
                    continue
                with suppress(OSError, pa.ArrowException):  # nothing can be read from it
                    found = file.hi if _has_rows(file.path, low, high) else found
        return found

    def stage(self, part: Batch) -> None:
        """Write rows of the batch that the next `commit` completes; they do not count before."""
        if self._named_from is not None:
            self.drop_from(self._named_from)
            self._named_from = None
        for table, date, rows in _parts(part):
            file = self._staged.get((table, date))
            if file is None:
                path = self._folder(table, date) / f"{self.recorder_id}-{part.lo:016}.parquet.tmp"
                file = self._staged[table, date] = TableFile(path, rows.schema)
            self._disk.write(file, rows)

    def commit(self, batch: Batch) -> None:
        """Store every row of a batch, staged ones included: all files written and checked, then named, then made durable.

        Guarantees:
            A crash leaves files that lie behind the cursor, and `truncate` removes them, or none.
        """
        self.stage(batch)
        for file in self._staged.values():
            self._disk.finish(file)
        self._named_from = batch.lo
        for file in self._staged.values():
            final = file.path.with_name(f"{self.recorder_id}-{batch.lo:016}-{batch.hi:016}.parquet")
            self._disk.rename(file.path, final)
        for folder in {file.path.parent for file in self._staged.values()}:
            self._disk.sync_folder(folder)
        self._staged, self._named_from = {}, None

    def discard(self) -> None:
        """Forget what was staged; of a batch that was not committed to its end the named files go at the next `stage`."""
        staged, self._staged = self._staged, {}
        for file in staged.values():
            file.abandon()
            with suppress(OSError):  # what stays is written over, or goes at the next start
                self._disk.unlink(file.path)

    def clean(self) -> None:
        """Remove what never counted: unfinished and shadowed files. Folders that a crash left are durable then."""
        for folder in (self.root, *self.root.glob("*/")):
            if folder.is_dir():
                self._disk.sync_folder(folder.parent)
                self._disk.sync_folder(folder)
        for path in self.root.glob(f"*/date=*/{self.recorder_id}-*.tmp"):
            self._disk.unlink(path)
        files = self.files()
        for file in set(files) - set(counting(files)):
            self._disk.unlink(file.path)

    def drop_from(self, seq: int) -> None:
        """Remove every file that begins at `seq` or later, newest first."""
        files = sorted((file for file in self.files() if file.lo >= seq), key=lambda file: file.lo, reverse=True)
        for file in files:
            self._disk.unlink(file.path)
        for folder in {file.path.parent for file in files}:
            self._disk.sync_folder(folder)

    def _folder(self, table: str, date: dt.date) -> Path:
        folder = self.root
        for part in ("", table, f"date={date.isoformat()}"):
            parent, folder = folder, folder / part if part else folder
            if self._disk.make_folder(folder):
                self._disk.sync_folder(parent)
        return folder


class ParquetSink:
    """Delivers batches to a ParquetStore (model.Sink).

    A repeat is harmless because `truncate` at open removes what an unfinished delivery left. Takes batches in parts
    (model.TakesParts): what of a batch is in memory is a row group.
    """

    name = "parquet"
    tables = STORED
    policy = BatchPolicy(max_rows=250_000, max_bytes=64_000_000, max_wait_s=60.0, by_date=True)

    def __init__(self, store: ParquetStore) -> None:
        self._store = store
        self._writing = threading.Lock()

    async def write(self, batch: Batch) -> None:
        """Store the batch's rows.

        Raises:
            SinkUnavailable: the disk refuses; what was half written is left for `clean`.
        """
        await self._in_store(self._store.commit, batch)

    async def stage(self, part: Batch) -> None:
        """Write rows of the batch under way (model.TakesParts).

        Raises:
            SinkUnavailable: the disk refuses.
        """
        await self._in_store(self._store.stage, part)

    async def discard(self) -> None:
        """Forget what was staged (model.TakesParts)."""
        await self._in_store(self._store.discard)

    async def aclose(self) -> None:
        """Wait for a write that was cancelled: its thread goes on, and must not name files that a next recorder cleans."""
        await self.discard()

    async def _in_store(self, change: Callable[_P, None], *args: _P.args, **kwargs: _P.kwargs) -> None:
        def alone() -> None:
            with self._writing:
                change(*args, **kwargs)

        try:
            await asyncio.to_thread(alone)
        except OSError as exc:
            raise SinkUnavailable(f"cannot write to {self._store.root}: {exc.strerror or exc}") from exc


def scan(root: Path) -> Iterator[DataFile]:
    """Yield every complete file of every recorder below a `parquet` folder."""
    for path in root.glob("*/date=*/*.parquet"):
        name = _NAME.fullmatch(path.name)
        if name is None:
            continue
        yield DataFile(
            path=path,
            table=path.parent.parent.name,
            date=path.parent.name.removeprefix("date="),
            recorder=name["recorder"],
            lo=int(name["lo"]),
            hi=int(name["hi"]),
            compacted=name["compacted"] is not None,
        )


def counting(files: Iterable[DataFile]) -> list[DataFile]:
    """Return the files that count: those not shadowed by a larger one of the same folder and recorder."""
    kept: list[DataFile] = []
    by_folder = sorted(
        files, key=lambda file: (str(file.path.parent), file.recorder, file.lo, -file.hi, not file.compacted)
    )
    for file in by_folder:
        last = kept[-1] if kept else None
        shadowed = (
            last is not None
            and (last.path.parent, last.recorder) == (file.path.parent, file.recorder)
            and last.lo <= file.lo
            and file.hi <= last.hi
        )
        if not shadowed:
            kept.append(file)
    return kept


def boundary(files: Iterable[DataFile], after_seq: int) -> int:
    """Return where a truncation behind `after_seq` must begin so that no file straddles it."""
    ranges = [(file.lo, file.hi) for file in files]
    start = after_seq + 1
    while True:
        lower = min((lo for lo, hi in ranges if lo < start <= hi), default=start)
        if lower == start:
            return start
        start = lower


def _parts(batch: Batch) -> Iterator[tuple[str, dt.date, pa.Table]]:
    """Yield (table, IST date, rows) for every table and date that has rows."""
    for name in STORED:
        table = batch.tables[name]
        if not table.num_rows:
            continue
        if len(batch.days) == 1:
            yield name, batch.days[0][0], table
            continue
        seqs = table.column(_SEQ_COLUMN.get(name, "seq"))
        for date, of_date in batch.days:
            rows = table.filter(pc.is_in(seqs, value_set=pa.array(of_date, pa.int64())))
            if rows.num_rows:
                yield name, date, rows


def recurring(schema: pa.Schema) -> list[str]:
    """Return the Parquet columns whose values recur."""
    columns = [field for field in schema if field.name not in _UNIQUE]
    return [f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name for field in columns]


@contextmanager
def reading(root: Path) -> Iterator[None]:
    """Keep compaction from swapping files while they are listed and read, or removed."""
    try:
        fd = os.open(root / ".lock", os.O_RDONLY | os.O_CREAT, 0o600)
    except OSError:
        yield  # there is no folder, or one that cannot be written to and is not being compacted either
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        yield
    finally:
        os.close(fd)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Have a lock file for oneself; false, at once, while anybody else has it."""
    fd = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(fd)


def _has_rows(path: Path, low: int, high: int) -> bool:
    """Tell whether a file, which may be that of a whole day, has rows of some frames."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=["seq"]):
            seqs = batch.column(0)
            if pc.any(pc.and_(pc.greater_equal(seqs, low), pc.less_equal(seqs, high))).as_py():
                return True
    return False


def _check_rows(path: Path, rows: int) -> None:
    stored = pq.read_metadata(path).num_rows
    if stored != rows:
        raise OSError(f"{path} holds {stored} rows, {rows} were written")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
