"""SQL over everything that was recorded: the Parquet files up to the cursor, and the journal behind it, decoded.

Rule (docs/durability.md): no row twice, none missing, fresh to the last commit; or an error, never a short answer.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import duckdb
import pyarrow as pa

from tickvault import coverage, survey
from tickvault.batching import gap_rows, joined, to_batch
from tickvault.datafolder import recorded
from tickvault.errors import JournalDamaged, Refused
from tickvault.ledger import Ledger, carriers
from tickvault.model import SCHEMAS
from tickvault.reading import JournalReader
from tickvault.sinks.parquet import STORED, boundary, counting, reading, scan
from tickvault.state import read_view

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tickvault.model import Batch

__all__ = ["VIEWS", "connect"]

VIEWS: Final = tuple(SCHEMAS)

_TRIES: Final = 2
_TAIL_BYTES: Final = 16_000_000  # decoded at a time
_MEMORY_LIMIT: Final = "1GB"
_SINK: Final = "parquet"
_TAIL: Final = "journal_tail"
_CARRIED: Final = pa.schema(
    {"instrument_key": pa.string(), "subject": pa.string(), "from_us": pa.int64(), "to_us": pa.int64()}
)


class _Moved(Exception):
    """The recorder moved on between two looks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sources:
    files: Mapping[str, list[str]]
    tail: Mapping[str, pa.Table]
    carried: pa.Table


@contextmanager
def connect(data_dir: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a DuckDB connection with the views ticks, candles, market_status, instruments and gaps, and coverage(…).

    Args:
        data_dir: a data folder, whether or not a recorder runs on it.

    Raises:
        Refused: there is nothing recorded there, or it changes faster than it can be read.
        JournalDamaged: a segment cannot be read, or frames behind the cursor are damaged or missing.
    """
    parquet = recorded(data_dir) / "parquet"
    with reading(parquet):
        for attempt in range(_TRIES):
            try:
                sources = _sources(data_dir, parquet)
                break
            except (_Moved, FileNotFoundError, JournalDamaged) as exc:
                if attempt == _TRIES - 1 and isinstance(exc, JournalDamaged):
                    raise
                if attempt == _TRIES - 1:
                    raise Refused(f"the store changed while it was read ({exc}); run the query again") from exc
        db = duckdb.connect(config={"memory_limit": _MEMORY_LIMIT})
        try:
            db.execute("SET TimeZone = 'Asia/Kolkata'")
            db.execute(f"CREATE SCHEMA {_TAIL}")  # so that SHOW TABLES shows the five views and nothing else
            for name in SCHEMAS:
                _view(db, name, sources)
            db.from_arrow(sources.carried).create(f"{_TAIL}.carried")
            coverage.register(db)
            yield db
        finally:
            db.close()


def _sources(data_dir: Path, parquet: Path) -> _Sources:
    folder = data_dir / "journal"
    view = read_view(data_dir / "state.db")
    generation = survey.generations(folder).get(_SINK, 0)
    # State older than the journal's last backward move says nothing about the files that are there now.
    cursors = [one for one in view.cursors if one.sink == _SINK and one.generation >= generation] if view else []
    stored = cursors[0].seq if cursors else 0
    stats = survey.stats(folder)
    if view is not None and not cursors and not generation and not any(scan(parquet)):
        stored = max(
            0, stats.first_seq - 1
        )  # nothing was ever stored here: what is left of the journal is all there is
    recorder_id = stats.recorder_id or (view.recorder_id if view is not None else "")
    found = counting(scan(parquet))
    # State restored from yesterday may stand within a day that is one file by now: the journal has that day too, or nobody.
    start = boundary([file for file in found if file.recorder == recorder_id], stored)
    straddled, stored = start <= stored, start - 1
    if stats.first_seq > stored + 1 and (straddled or not (cursors and stats.frames)):
        raise _Moved(f"nothing says where frames {stored + 1} to {stats.first_seq - 1} are; the next start finds out")
    files: dict[str, list[str]] = {name: [] for name in STORED}
    for file in found:
        if file.table in files and (file.recorder != recorder_id or file.hi <= stored):
            files[file.table].append(str(file.path))
    if survey.generations(folder).get(_SINK, 0) != generation:
        raise _Moved("the files were rewound")
    tail = _tail(folder, recorder_id, stored, stats.last_seq)
    gaps = gap_rows(view.gaps if view is not None else ())
    return _Sources(files=files, tail={**tail, "gaps": gaps}, carried=_carried(folder))


def _carried(folder: Path) -> pa.Table:
    """Return which connection carried what; nothing while there was only one."""
    found = []
    if any("socket" in event.body for event in survey.events(folder, ("conn",))):
        found = carriers(survey.events(folder, ("start", "sub", "unsub")))
    rows = [(one.instrument_key, one.subject, one.from_ns // 1000, one.to_ns // 1000) for one in found]
    return pa.table(dict(zip(_CARRIED.names, zip(*rows, strict=True) if rows else ((),) * 4, strict=True)), _CARRIED)


def _tail(folder: Path, recorder_id: str, after_seq: int, last_seq: int) -> Mapping[str, pa.Table]:
    """Decode the frames behind the cursor, dense to the last one seen."""
    parts: list[Batch] = []
    reader = JournalReader(folder, after_seq)
    try:
        while reader.after_seq < last_seq:
            chunk = reader.read(max_frames=100_000, max_bytes=_TAIL_BYTES)
            if chunk is None:
                raise _Moved(f"frames {reader.after_seq + 1} to {last_seq} are gone from the journal")
            parts.append(to_batch(chunk, recorder_id=recorder_id, ledger=Ledger()))
    finally:
        reader.close()
    if not parts:
        return {name: SCHEMAS[name].empty_table() for name in STORED}
    whole = joined(parts)
    return {name: whole.tables[name] for name in STORED}


def _view(db: duckdb.DuckDBPyConnection, name: str, sources: _Sources) -> None:
    db.execute(f"SET schema = '{_TAIL}'")
    db.from_arrow(sources.tail[name]).create_view(name)
    db.execute("SET schema = 'main'")
    columns = ", ".join(SCHEMAS[name].names)
    union = f"SELECT {columns} FROM {_TAIL}.{name}"  # noqa: S608 - our own names
    files = sources.files.get(name, [])
    if files:
        listed = ", ".join("'" + path.replace("'", "''") + "'" for path in files)
        union += (
            f" UNION ALL BY NAME SELECT {columns}"  # noqa: S608 - our own names
            f" FROM read_parquet([{listed}], union_by_name = true, hive_partitioning = false)"
        )
    if name == "candles":
        union = (
            f"SELECT * FROM ({union}) QUALIFY row_number() OVER"  # noqa: S608 - our own names
            " (PARTITION BY instrument_key, interval, time ORDER BY seq DESC) = 1"
        )
    db.execute(f"CREATE VIEW {name} AS {union}")
