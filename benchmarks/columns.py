"""Frames to columns and on, on one core, against L.

L is the rate at which protobuf's C parser (`FeedResponse.FromString`, nothing else) parses the same frames in the same
run. An update is one instrument's entry with all the rows it yields, candles included. Every piece of work is done once
a round, in turns. Conversions are timed in CPU seconds, files in seconds of the wall clock, fsync included. Memory
is had as a recorder has it, and lines and files are made of as many frames as it reads at a time.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from benchmarks.frames import FrameSet, definitions, frames, parse
from benchmarks.rows import Row, alternate, ratio
from tickvault import memory
from tickvault.batching import joined
from tickvault.brokers.upstox.wire import decode
from tickvault.model import Batch, Mode
from tickvault.sinks.lineprotocol import chunks, encode_tickvault
from tickvault.sinks.parquet import ParquetStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tickvault.model import Frame

__all__ = ["TITLE", "decoded", "rows"]

TITLE: Final = "Columns"
ROUNDS: Final = 7
_FILE_UPDATES: Final = 60_000  # about what a batch of the Parquet sink holds
_READ_BYTES: Final = 2_000_000  # decoded at a time, as by the recorder
_RECORDER: Final = "0123456789ab"


def rows(place: Path) -> list[Row]:
    """Measure with frames of 200 and of 20 instruments, and of ltpc."""
    one_core()
    memory.settle()
    memory.keep_room()
    found: list[Row] = []
    for of in (frames(200), frames(20), frames(200, Mode.LTPC)):
        found += _conversions(of)
    return found + _files(frames(200, updates=_FILE_UPDATES), place)


def one_core() -> None:
    """Let this process, and Arrow in it, use one core."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)


def _conversions(of: FrameSet) -> list[Row]:
    payloads = of.payloads
    spent = alternate(
        {
            "L": lambda: parse(payloads),
            "columns": lambda: decoded(of.frames),
            "lines": lambda: [
                part.body() for some in _reads(of.frames) for part in chunks(encode_tickvault(decoded(some), 5))
            ],
        },
        ROUNDS,
    )
    bound = of.name == "200 × full_d5"  # the targets are for these frames
    return [
        against_l(f"frames → Arrow tables, {of.name}", of, spent, "columns", 0.30 if bound else None),
        against_l(f"frames → line protocol, {of.name}", of, spent, "lines", 0.09 if bound else None),
    ]


def _files(of: FrameSet, place: Path) -> list[Row]:
    payloads = of.payloads
    with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=place) as folder:
        numbers = itertools.count()

        def write() -> None:
            store = ParquetStore(Path(folder) / f"{next(numbers)}", _RECORDER)
            store.commit(joined([decoded(part) for part in _reads(of.frames)]))

        spent = alternate({"L": lambda: parse(payloads), "files": write}, ROUNDS, time.perf_counter)
        size = sum(path.stat().st_size for path in (Path(folder) / "0").rglob("*.parquet"))
    per_update = size / of.updates
    return [
        against_l(f"frames → Parquet on disk, {of.name}", of, spent, "files", 0.15),
        Row("Parquet as first written, an update", f"{per_update:.0f} B", "", per_update),
    ]


def against_l(what: str, of: FrameSet, spent: dict[str, list[float]], name: str, target: float | None) -> Row:
    """Return the row of a piece of work that was timed beside `L`."""
    rate, base = (of.updates / statistics.median(spent[one]) for one in (name, "L"))
    return Row(what, f"{rate:,.0f}/s", f"L {base:,.0f}/s", ratio(spent["L"], spent[name]), target)


def decoded(of: Sequence[Frame]) -> Batch:
    """Return the rows of frames, as the recorder decodes them."""
    decoded = decode(of, recorder_id=_RECORDER, definitions=definitions())
    return Batch(
        recorder_id=_RECORDER,
        lo=of[0].seq,
        hi=of[-1].seq,
        tables=decoded.tables,
        definitions=definitions(),
        days=decoded.days,
    )


def _reads(of: Sequence[Frame]) -> Iterator[Sequence[Frame]]:
    """Cut frames as the recorder reads them."""
    per_read = max(1, _READ_BYTES // len(of[0].payload))
    for first in range(0, len(of), per_read):
        yield of[first : first + per_read]
