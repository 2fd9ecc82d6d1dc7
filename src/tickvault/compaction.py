"""Closed days of the Parquet store, rewritten into one sorted file a table (docs/durability.md).

Nothing that counts is touched until the new file is whole: it is written under a temporary name, gets its own while no
query reads and no cursor moves, and only then do the files that it replaces go. A crash in between leaves those
shadowed. May run beside a recorder, and be killed at any time.

`python -m tickvault.compaction DATA_DIR NOW_NS RESERVE_BYTES` is how a recorder has it done: in a process of its own, of the
lowest priority, that gives all its memory back.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import shutil
import sys
import time
from bisect import bisect_right
from collections import defaultdict
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.parquet as pq

from tickvault import survey
from tickvault.errors import Refused, TickvaultError
from tickvault.model import IST
from tickvault.sinks.parquet import DataFile, FileSystem, counting, locked, scan
from tickvault.state import read_view

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["ENVIRONMENT", "Compacted", "Job", "Left", "Stored", "compact", "plan", "stored"]

# Of the process: the pool that keeps least of what was freed (benchmarks/stored.py).
ENVIRONMENT: Final = {"ARROW_DEFAULT_MEMORY_POOL": "jemalloc"}
_SINK: Final = "parquet"
_READING_S: Final = 20.0  # that queries get to end before a day is left for later
_LOOK_S: Final = 0.05
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d")
_SPOOLED: Final = (
    4  # bytes on the disk, for a while, for one of the inputs: the spool and the new file (benchmarks/stored.py)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """How far the store is complete: frames up to `seq` of a recorder; another `generation` is another history."""

    recorder_id: str
    seq: int
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Files of one folder that become one.

    Attributes:
        inputs: they count, oldest first; a single one that is compacted stays, and only `shadowed` goes.
        shadowed: what a crash left of an earlier time.
    """

    inputs: tuple[DataFile, ...]
    shadowed: tuple[DataFile, ...]

    @property
    def target(self) -> Path:
        """The name of the new file."""
        first = self.inputs[0]
        if len(self.inputs) == 1 and first.compacted:
            return first.path
        hi = max(one.hi for one in self.inputs)
        return first.path.with_name(f"{first.recorder}-{first.lo:016}-{hi:016}.c.parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compacted:
    """What was done to one table of one day; sizes in bytes."""

    date: str
    table: str
    files: int
    rows: int
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """A table of a day that stays as it is, and why."""

    date: str
    table: str
    reason: str


def plan(files: Iterable[DataFile], known: Stored, *, before: str) -> list[Job]:
    """Return what there is to do in closed days, oldest first. Pure.

    A compacted file never reaches across files of another day: a frame that comes weeks late would otherwise make one
    file of all that is between, and no day in it could be rewound.

    Args:
        files: all there are.
        known: what is stored for good; files beyond it, and those of other recorders, stay.
        before: IST date; days from it on are open.
    """
    own = [file for file in files if file.recorder == known.recorder_id]
    live = counting(own)
    count = set(live)
    folders: defaultdict[tuple[str, str], list[DataFile]] = defaultdict(list)
    for file in own:
        folders[file.date, file.table].append(file)
    jobs = []
    for (date, _), of_folder in sorted(folders.items()):
        if date >= before or not _DATE.fullmatch(date):
            continue
        others = sorted((file.lo, file.hi) for file in live if file.date != date)
        inputs = sorted(
            (file for file in of_folder if file in count and file.hi <= known.seq), key=lambda file: file.lo
        )
        for run in _runs(inputs, others):
            hi = max(one.hi for one in run)
            shadowed = [file for file in of_folder if file not in count and run[0].lo <= file.lo and file.hi <= hi]
            if len(run) > 1 or not run[0].compacted or shadowed:
                jobs.append(Job(inputs=tuple(run), shadowed=tuple(shadowed)))
    return jobs


def _runs(inputs: Sequence[DataFile], others: Sequence[tuple[int, int]]) -> Iterator[list[DataFile]]:
    """Part the files of a folder, oldest first, where a file of another day lies between two."""
    run: list[DataFile] = []
    for file in inputs:
        if run:
            hi = max(one.hi for one in run)
            behind = bisect_right(others, (hi + 1,))
            if behind < len(others) and others[behind][1] < file.lo:
                yield run
                run = []
        run.append(file)
    if run:
        yield run


def stored(data_dir: Path) -> Stored | None:
    """Return how far the store is complete; None while nobody can tell, or it is being set back.

    Raises:
        Refused, JournalDamaged: state or journal cannot be read.
    """
    view = read_view(data_dir / "state.db")
    cursor = next((one for one in view.cursors if one.sink == _SINK), None) if view else None
    if view is None or cursor is None or cursor.drop_from is not None or cursor.rewind_to is not None:
        return None
    if cursor.generation < survey.generations(data_dir / "journal").get(_SINK, 0):
        return None
    return Stored(recorder_id=view.recorder_id, seq=cursor.seq, generation=cursor.generation)


def compact(
    data_dir: Path,
    *,
    now_ns: int,
    reserve_bytes: int,
    date: dt.date | None = None,
    disk: FileSystem | None = None,
    reading_s: float = _READING_S,
) -> Iterator[Compacted | Left]:
    """Compact closed days and yield what was done, one table of a day after the other; today is never touched.

    Args:
        data_dir: a data folder, whether or not a recorder runs on it.
        now_ns: UTC wall clock.
        reserve_bytes: what is to stay free on the disk.
        date: only that one; None: all.
        disk: how files are written.
        reading_s: how long queries that run get to end.

    Raises:
        Refused: somebody else compacts, or the disk refuses.
        JournalDamaged: the journal cannot be read, so that nobody knows what is stored for good.
    """
    root, disk = data_dir / "parquet", disk or FileSystem()
    if not root.is_dir() or (known := stored(data_dir)) is None:
        return
    today = dt.datetime.fromtimestamp(now_ns / 1e9, IST).date()
    with locked(root / ".compacting") as free:
        if not free:
            raise Refused(f"somebody else compacts {root} just now; wait until that is done")
        for job in plan(scan(root), known, before=today.isoformat()):
            if date is not None and job.inputs[0].date != date.isoformat():
                continue
            try:
                yield _carry_out(job, data_dir, known, disk, reserve_bytes=reserve_bytes, reading_s=reading_s)
            except _Later as exc:
                yield _left(job, str(exc))
            except FileNotFoundError:
                yield _left(job, "its files have changed meanwhile; compact again")
            except OSError as exc:
                if exc.errno is not None:
                    raise Refused(
                        f"cannot write to {root}: {exc.strerror}; nothing was lost, mend that and compact again"
                    ) from exc
                yield _left(job, _unreadable(job, exc))
            except pa.ArrowException as exc:
                yield _left(job, _unreadable(job, exc))


class _Later(Exception):
    """It cannot be done just now."""


def _carry_out(
    job: Job, data_dir: Path, known: Stored, disk: FileSystem, *, reserve_bytes: int, reading_s: float
) -> Compacted:
    root, target = data_dir / "parquet", job.target
    before = sum(one.path.stat().st_size for one in job.inputs)
    if target == job.inputs[0].path:
        _swap(job, None, data_dir, known, disk, reading_s)
    else:
        if shutil.disk_usage(root).free - _SPOOLED * before < reserve_bytes:
            raise _Later(
                f"it needs {_SPOOLED * before / 1e6:,.0f} MB free above TICKVAULT_DISK_RESERVE for a while; make room"
            )
        temporary = target.with_name(f"{target.name}.tmp")
        try:
            disk.write_sorted(temporary, job.inputs)
            _swap(job, temporary, data_dir, known, disk, reading_s)
        except (Exception, KeyboardInterrupt):
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    return Compacted(
        date=job.inputs[0].date,
        table=job.inputs[0].table,
        files=len(job.inputs),
        rows=pq.read_metadata(target).num_rows,
        bytes_before=before,
        bytes_after=target.stat().st_size,
    )


def _swap(job: Job, temporary: Path | None, data_dir: Path, known: Stored, disk: FileSystem, reading_s: float) -> None:
    """Put the new file in the place of its inputs, while nobody reads or removes any."""
    deadline_s = time.monotonic() + reading_s
    while True:
        with locked(data_dir / "parquet" / ".lock") as free:
            if free:
                now = stored(data_dir)
                if now is None or now.generation != known.generation or now.seq < known.seq:
                    raise _Later("the store was set back meanwhile; compact again when it has been delivered")
                if temporary is not None:
                    disk.rename(temporary, job.target)
                    disk.sync_folder(job.target.parent)
                for file in (*job.shadowed, *job.inputs):
                    if file.path != job.target:
                        disk.unlink(file.path)
                disk.sync_folder(job.target.parent)
                return
        if time.monotonic() >= deadline_s:
            raise _Later("queries have held the files all the time; compact again when they are done")
        time.sleep(_LOOK_S)


def _left(job: Job, reason: str) -> Left:
    return Left(date=job.inputs[0].date, table=job.inputs[0].table, reason=reason)


def _unreadable(job: Job, exc: Exception) -> str:
    """Say which file cannot be read, after something could not be."""
    for one in job.inputs:
        try:
            with pq.ParquetFile(one.path) as file:
                for _ in file.iter_batches():
                    pass
        except (OSError, pa.ArrowException) as found:
            return (
                f"{one.path} is damaged ({_line(found)}), so the files beside it stay as they are too; "
                f"`tickvault rewind --sink {_SINK} --to-seq {one.lo - 1}` stores it again while the journal has that"
            )
    return f"its files cannot be joined ({_line(exc)}); they stay as they are"


def _line(exc: Exception) -> str:
    return str(exc).partition("\n")[0].rstrip(".")


def _main() -> int:
    """Compact all, printing a JSON object a line; 1 and a line on stderr if it cannot be done."""
    os.nice(19)
    with suppress(OSError):  # rather this process than the recorder, when memory runs out
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    try:
        for one in compact(Path(sys.argv[1]), now_ns=int(sys.argv[2]), reserve_bytes=int(sys.argv[3])):
            print(json.dumps(asdict(one)), flush=True)  # noqa: T201 - what the recorder reads
    except (TickvaultError, OSError) as exc:
        print(exc, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
