"""What a day takes on the disk, and what a question costs, before and after compaction.

A simulated day: 1,000,000 updates of 1,000 instruments, a frame of 200 of them taken at random every few seconds from
the opening to the close, with the jitter of a network. It is stored as the recorder stores it and then compacted. The
same day ten times over, moved by fractions of a second, is the 10 M updates. Bars are those of a minute of one
instrument: first, highest, lowest and last price, and volume. Compaction runs in a process of its own, on one core.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.columns import decoded
from benchmarks.frames import day_frames
from benchmarks.rows import Row
from tickvault.batching import joined
from tickvault.compaction import ENVIRONMENT
from tickvault.sinks import sorting
from tickvault.sinks.parquet import ParquetStore, recurring

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["TITLE", "rows"]

TITLE: Final = "Stored days"
UPDATES: Final = 1_000_000
_TIMES: Final = 10
_READ_FRAMES: Final = 50
_FILE_ROWS: Final = 250_000  # the Parquet sink's batch
_ROUNDS: Final = 5
_BARS: Final = (
    "SELECT time_bucket(INTERVAL '1 minute', time::TIMESTAMP) AS minute, first(ltp ORDER BY time, seq), max(ltp), min(ltp),"
    " last(ltp ORDER BY time, seq), max(vtt) - min(vtt) FROM read_parquet({files}) WHERE instrument_key = ? GROUP BY 1"
)


def rows(place: Path) -> list[Row]:
    """Measure through files below `place`; about 2 GB for a while."""
    with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=place) as folder:
        root = Path(folder)
        store = ParquetStore(root / "first", "0123456789ab")
        _store(store)
        before, after = 0, 0
        for table in sorting.ORDER:
            inputs = [file.path for file in store.files() if file.table == table]
            if inputs:
                _compact(table, inputs, root / f"{table}.parquet")
                before += sum(path.stat().st_size for path in inputs)
                after += (root / f"{table}.parquet").stat().st_size
        found = [
            Row(
                "Parquet after compaction, an update, B",
                f"{after / UPDATES:.1f} B",
                f"as first written {before / UPDATES:.1f} B",
                after / UPDATES,
                60,
                at_most=True,
            )
        ]
        found += _choices(root / "ticks.parquet")
        many = list(_many([file.path for file in store.files() if file.table == "ticks"], root / "many"))
        spent_s, cpu_s, peak_mb = _compact("ticks", many, root / "whole.parquet")
        found.append(
            Row(
                f"compacting {UPDATES * _TIMES / 1e6:.0f} M updates, peak memory in MB",
                f"{peak_mb:.0f} MB",
                f"{spent_s:.0f} s, {cpu_s:.0f} s of a core",
                peak_mb,
            )
        )
        key = pq.ParquetFile(root / "whole.parquet").read_row_group(0, ["instrument_key"])[0][0].as_py()
        took_s, scattered_s = _asked([root / "whole.parquet"], key), _asked(many, key)
        found.append(
            Row(
                f"minute bars of one instrument out of {UPDATES * _TIMES / 1e6:.0f} M updates, s",
                f"{took_s:.3f} s",
                f"as first written {scattered_s:.2f} s",
                took_s,
                0.5,
                at_most=True,
            )
        )
        return found


def _store(store: ParquetStore) -> None:
    """Store the day in batches as the sink does."""
    parts, held = [], 0
    for frames in day_frames(UPDATES, _READ_FRAMES):
        parts.append(decoded(frames))
        held += parts[-1].rows
        if held >= _FILE_ROWS:
            store.commit(joined(parts))
            parts, held = [], 0
    if parts:
        store.commit(joined(parts))


def _many(paths: Iterable[Path], folder: Path) -> Iterable[Path]:
    """Write the files some times over, as other frames at other times."""
    folder.mkdir()
    paths = list(paths)
    for number in range(_TIMES):
        for path in paths:
            table = pq.ParquetFile(path).read()
            for name, by in (("time", number * 97_000), ("received_at", number * 97_000), ("seq", number * UPDATES)):
                at = table.schema.get_field_index(name)
                field = table.schema.field(at)
                table = table.set_column(at, field, pc.add(table[name].cast(pa.int64()), by).cast(field.type))
            target = folder / f"{number}-{path.name}"
            pq.write_table(table, target, compression="zstd", use_dictionary=recurring(table.schema))
            yield target


def _choices(path: Path) -> list[Row]:
    """Return what sorted rows take when written in other ways, and how long that takes."""
    file = pq.ParquetFile(path)
    table = file.read_row_groups(range(0, file.num_row_groups, max(1, file.num_row_groups // 4)))
    form = sorting._form(table.schema)
    ways = {
        "as chosen": form,
        "zstd 3": form | {"compression_level": 3},
        "zstd 6": form | {"compression_level": 6},
        "zstd 12": form | {"compression_level": 12},
        "a dictionary for what recurs, no other encoding": {
            "compression": "zstd", "compression_level": form["compression_level"],
            "use_dictionary": recurring(table.schema),
        },
        "a dictionary for all": {"compression": "zstd", "compression_level": form["compression_level"]},
    }  # fmt: skip
    found = []
    for name, way in ways.items():
        sink = pa.BufferOutputStream()
        begun_s = time.process_time()
        pq.write_table(table, sink, **way)
        spent_s = time.process_time() - begun_s
        size = sink.getvalue().size / table.num_rows
        found.append(
            Row(
                f"choice: sorted rows, {name}",
                f"{size:.1f} B a row",
                f"{spent_s / table.num_rows * 1e6:.1f} µs a row",
                size,
            )
        )
    return found


def _asked(paths: list[Path], key: str) -> float:
    """Return the seconds that the bars of one instrument take."""
    files = "[" + ", ".join(f"'{path}'" for path in paths) + "]"
    spent_s = []
    for _ in range(_ROUNDS):
        with duckdb.connect() as db:
            begun_s = time.perf_counter()
            assert db.execute(_BARS.format(files=files), [key]).fetchall()
            spent_s.append(time.perf_counter() - begun_s)
    return statistics.median(spent_s)


def _compact(table: str, inputs: list[Path], target: Path) -> tuple[float, float, float]:
    """Sort files into one in a process of its own; return its seconds, CPU seconds and peak memory in MB."""
    begun_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.stored", table, str(target)],
        input="\n".join(map(str, inputs)),
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    cpu_s, peak_mb = map(float, done.stdout.split())
    return time.monotonic() - begun_s, cpu_s, peak_mb


def _sort(table: str, target: Path) -> None:
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    with target.open("wb") as file:
        inputs = [Path(line) for line in sys.stdin.read().splitlines()]
        sorting.write_sorted(inputs, file, sorting.ORDER[table], spool_folder=target.parent)
    # Not ru_maxrss, which begins with what the parent had.
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    peak_kb = next(line.split()[1] for line in status if line.startswith("VmHWM"))
    print(time.process_time(), int(peak_kb) / 1000)


if __name__ == "__main__":
    _sort(sys.argv[1], Path(sys.argv[2]))
