"""One journal segment: an SQLite file of frames and events, its checks, and how it is read.

`frames` and `events` carry a CRC over header and payload; a sealed segment's `meta` carries the count, the last seq and
a CRC of those CRCs. A segment without `meta` was never born.
"""

from __future__ import annotations

import datetime as dt
import errno
import json
import os
import sqlite3
import struct
import zlib
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tickvault import pages
from tickvault.durable import sync_folder
from tickvault.errors import JournalDamaged, JournalFull, Refused
from tickvault.model import Definition, Event, Frame

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
__all__ = [
    "Meta",
    "NewEvent",
    "NewFrame",
    "append",
    "begin",
    "crc_of_crcs",
    "create",
    "damage_named",
    "definitions_of",
    "defs_body",
    "event_crc",
    "facts",
    "frame_crc",
    "full_disk_translated",
    "insert_events",
    "is_born",
    "paths",
    "read_events",
    "read_frames",
    "read_meta",
    "reader",
    "reading",
    "seal",
    "tail",
    "writer",
]

SCHEMA_VERSION: Final = 1
MAX_BYTES: Final = 256 * 1024 * 1024  # of one segment: what pruning frees at a time, and what damage can touch
MAX_FRAMES: Final = 1_000_000
NO_END: Final = 2**62  # behind every seq

_SCHEMA: Final = """
CREATE TABLE meta (
  recorder TEXT NOT NULL, first_seq INTEGER NOT NULL, begun_ns INTEGER NOT NULL,
  last_seq INTEGER, count INTEGER, crc INTEGER
) STRICT;
CREATE TABLE frames (
  seq INTEGER PRIMARY KEY, received_ns INTEGER NOT NULL, conn INTEGER NOT NULL, codec INTEGER NOT NULL,
  crc INTEGER NOT NULL, payload BLOB NOT NULL
) STRICT;
CREATE TABLE events (
  id INTEGER PRIMARY KEY, after_seq INTEGER NOT NULL, at_ns INTEGER NOT NULL, boot_ns INTEGER NOT NULL,
  kind TEXT NOT NULL, body BLOB NOT NULL, crc INTEGER NOT NULL
) STRICT;
CREATE INDEX events_told ON events (after_seq) WHERE kind != 'alive';
"""
_DEFINED: Final = tuple(one.name for one in fields(Definition))
_RAW: Final = 0  # codec of a payload stored as received
_FRAME_HEAD: Final = struct.Struct("<qqqq")
_FULL: Final = frozenset({"SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC", "SQLITE_IOERR_SHMSIZE"})
# Of our access to a file, not of its content; the part behind an underscore says more.
_NO_ACCESS: Final = frozenset(
    {"SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_READONLY", "SQLITE_AUTH", "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_NOMEM"}
)
_PATIENCE_MS: Final = 500
_EVENT_HEAD: Final = struct.Struct("<qqq")
# Damage may turn a value into one of another type, which the table's constraints then do not catch.
MISTYPED: Final = (struct.error, TypeError, AttributeError, OverflowError)
NO_CRC: Final = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """A segment's first row. `last_seq`, `count` and `crc` are set when it is sealed."""

    recorder: str
    first_seq: int
    begun_ns: int
    last_seq: int | None
    count: int | None
    crc: int | None

    @property
    def sealed(self) -> bool:
        """Whether nothing will be added to it any more."""
        return self.last_seq is not None


@dataclass(frozen=True, slots=True)
class NewFrame:
    """A frame about to be written; the journal gave it its seq."""

    seq: int
    received_ns: int
    conn: int
    payload: bytes

    def row(self) -> tuple[int, int, int, int, int, bytes]:
        """Return the row of `frames`."""
        crc = frame_crc(self.seq, self.received_ns, self.conn, _RAW, self.payload)
        return self.seq, self.received_ns, self.conn, _RAW, crc, self.payload


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event about to be written."""

    after_seq: int
    at_ns: int
    boot_ns: int
    kind: str
    body: Mapping[str, object]

    def row(self) -> tuple[int, int, int, str, bytes, int]:
        """Return the row of `events`, without its id."""
        body = json.dumps(self.body, separators=(",", ":"), sort_keys=True).encode()
        crc = event_crc(self.after_seq, self.at_ns, self.boot_ns, self.kind, body)
        return self.after_seq, self.at_ns, self.boot_ns, self.kind, body, crc


def paths(folder: Path) -> list[Path]:
    """Return the segment files of a journal folder, oldest first."""
    return sorted(path for path in folder.glob("*.db") if path.stem.isdigit())


class full_disk_translated:  # noqa: N801 - reads as the statement it guards
    """Turns a full disk into JournalFull; a transaction in it has been rolled back."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, exc: BaseException | None, _trace: object) -> None:
        refused = isinstance(exc, sqlite3.OperationalError) and _error_name(exc) in _FULL
        if refused or (isinstance(exc, OSError) and exc.errno in {errno.ENOSPC, errno.EDQUOT}):
            raise JournalFull(
                f"no room for the journal or the state ({exc}); free space on the disk that holds the data folder"
            ) from exc


class damage_named:  # noqa: N801 - reads as the statement it guards
    """Turns what SQLite says while a segment is read into JournalDamaged, JournalFull or Refused, of its path."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, exc: BaseException | None, _trace: object) -> None:
        if not isinstance(exc, (sqlite3.DatabaseError, UnicodeDecodeError)):  # the second: of a damaged schema's text
            return
        name = _error_name(exc)
        if name in _FULL:  # a reader too needs a little room beside the file
            raise JournalFull(f"cannot read {self._path}: {exc}; free space on its disk") from exc
        if "_".join(name.split("_")[:2]) in _NO_ACCESS:
            raise Refused(f"cannot read {self._path}: {exc}; check its permissions, and the room on its disk") from exc
        text = f"{self._path}: {exc}; `tickvault journal verify` tells what is damaged"
        raise JournalDamaged(text, path=self._path) from exc


def _error_name(exc: Exception) -> str:
    return getattr(exc, "sqlite_errorname", "")  # Python's own errors have none: text that is not UTF-8


def path_of(folder: Path, first_seq: int) -> Path:
    """Return where the segment that begins with `first_seq` is."""
    return folder / f"{first_seq:016}.db"


def create(
    folder: Path, *, recorder: str, first_seq: int, begun_ns: int, events: Sequence[NewEvent]
) -> sqlite3.Connection:
    """Create the segment that begins with `first_seq` and return its writing connection.

    Raises:
        JournalFull: the disk is full; what is left of it counts for nothing.
    """
    path = path_of(folder, first_seq)
    unlink(path)
    with full_disk_translated():
        db = writer(path)
        try:
            db.execute("BEGIN IMMEDIATE")
            begin(db, recorder=recorder, first_seq=first_seq, begun_ns=begun_ns)
            insert_events(db, events)
            db.execute("COMMIT")
            sync_folder(folder)
        except BaseException:
            db.close()  # what is left is unborn, and made anew by the next call
            raise
    return db


def begin(db: sqlite3.Connection, *, recorder: str, first_seq: int, begun_ns: int) -> None:
    """Make a segment's tables and its meta row, within a transaction."""
    for statement in _SCHEMA.split(";"):
        db.execute(statement)
    db.execute("INSERT INTO meta VALUES (?, ?, ?, NULL, NULL, NULL)", (recorder, first_seq, begun_ns))
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def writer(path: Path) -> sqlite3.Connection:
    """Open a segment for writing; used by one thread at a time."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.close(fd)
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    db.execute(f"PRAGMA page_size = {pages.PAGE_SIZE}")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA wal_autocheckpoint = 2000")
    db.execute("PRAGMA temp_store = MEMORY")
    return db


def unlink(path: Path) -> None:
    """Remove a segment with its log; a repeat goes on where one was interrupted."""
    # The database last: a log without one is removed at open, one whose log is gone would look whole.
    for suffix in ("-shm", "-wal", ""):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def reader(path: Path) -> sqlite3.Connection:
    """Open a segment for reading; it may be written to meanwhile."""
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None, check_same_thread=False, timeout=30)


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a segment for one look at it.

    Raises:
        JournalDamaged: it is not a database, or SQLite finds it malformed; in the block likewise.
        Refused: it may not be read.
    """
    with damage_named(path), closing(reader(path)) as db:
        yield db


def append(db: sqlite3.Connection, frames: Sequence[NewFrame], events: Sequence[NewEvent]) -> None:
    """Commit frames and events in one transaction: all or nothing, durable on return.

    Raises:
        JournalFull: the disk is full; nothing was written.
    """
    with full_disk_translated():
        db.execute("BEGIN IMMEDIATE")
        try:
            db.executemany("INSERT INTO frames VALUES (?, ?, ?, ?, ?, ?)", [frame.row() for frame in frames])
            insert_events(db, events)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:  # a full disk has rolled back already
                db.execute("ROLLBACK")
            raise


def checkpoint(db: sqlite3.Connection) -> None:
    """Move what is committed from the log into the file, as far as no reader needs it where it is."""
    with suppress(sqlite3.OperationalError):  # a full disk: it is durable where it is, and the next commit says so
        db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()


def seal(db: sqlite3.Connection) -> None:
    """Move the log into the file and write down what the segment holds; nothing is added afterwards.

    Raises:
        JournalFull: the disk is full; it is not sealed.
    """
    with full_disk_translated():
        # A reader with an old snapshot keeps the log from being emptied; that harms nothing, waiting for it would.
        db.execute(f"PRAGMA busy_timeout = {_PATIENCE_MS}")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.execute(
            "UPDATE meta SET count = (SELECT count(*) FROM frames), crc = ?,"
            " last_seq = (SELECT coalesce(max(seq), first_seq - 1) FROM frames)",
            (crc_of_crcs(db),),
        )


def read_meta(db: sqlite3.Connection) -> Meta | None:
    """Return the segment's meta; None if it was never born.

    Raises:
        Refused: a newer version of tickvault wrote it.
        JournalDamaged: its values are not of their types.
    """
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise Refused(
            f"{_file(db)} was written by a newer tickvault (version {version}, this one knows {SCHEMA_VERSION}); "
            "upgrade this installation, or use another TICKVAULT_DATA_DIR"
        )
    if version == 0:
        return None
    row = db.execute("SELECT recorder, first_seq, begun_ns, last_seq, count, crc FROM meta").fetchone()
    if row is None:
        return None
    if not isinstance(row[0], str) or not all(isinstance(value, int) for value in row[1:] if value is not None):
        raise _damaged(db, "its meta row is damaged")
    return Meta(**dict(zip(Meta.__slots__, row, strict=True)))


def is_born(path: Path) -> bool:
    """Tell whether a segment has its meta; without, a crash left it and nothing is in it."""
    with reading(path) as db:
        return read_meta(db) is not None


def tail(db: sqlite3.Connection) -> tuple[int | None, int]:
    """Return (last seq, time in ns of the last commit) of a segment.

    Raises:
        JournalDamaged: its values are not of their types.
    """
    seq, received_ns = db.execute("SELECT seq, received_ns FROM frames ORDER BY seq DESC LIMIT 1").fetchone() or (
        None,
        0,
    )
    event = db.execute("SELECT after_seq, at_ns FROM events ORDER BY id DESC LIMIT 1").fetchone()
    if not all(isinstance(value, int) for value in (received_ns, *(event or ()))):
        raise _damaged(db, "its last rows are damaged")
    behind = event is not None and event[0] >= (seq or 0)
    return seq, event[1] if behind else received_ns


def read_frames(db: sqlite3.Connection, after_seq: int, *, max_frames: int, max_bytes: int) -> list[Frame]:
    """Return the frames behind `after_seq`, at least one if there is any, within the bounds.

    Raises:
        JournalDamaged: a frame fails its CRC.
    """
    frames: list[Frame] = []
    size = 0
    rows = db.execute(
        "SELECT seq, received_ns, conn, codec, crc, payload FROM frames WHERE seq > ? ORDER BY seq LIMIT ?",
        (after_seq, max_frames),
    )
    with closing(rows):  # an open one would keep its snapshot, and the log could not be emptied
        for seq, received_ns, conn, codec, crc, payload in rows:
            if frame_crc(seq, received_ns, conn, codec, payload) != crc or codec != _RAW:
                raise _damaged(db, f"frame {seq} fails its checksum")
            if frames and size + len(payload) > max_bytes:
                break
            size += len(payload)
            frames.append(Frame(seq=seq, received_ns=received_ns, conn=conn, payload=payload))
    return frames


def read_events(db: sqlite3.Connection, *, after_seq: int, up_to_seq: int, kinds: Iterable[str] = ()) -> list[Event]:
    """Return the events with after_seq < their `after_seq` + 1 ≤ up_to_seq: those in force at frames in that range.

    Raises:
        JournalDamaged: an event fails its CRC.
    """
    wanted = tuple(kinds)
    kind_filter = f"AND kind IN ({', '.join('?' * len(wanted))})" if wanted else ""
    if wanted and "alive" not in wanted:
        kind_filter += " AND kind != 'alive'"  # a quiet night has thousands, and an index without them
    sql = f"SELECT after_seq, at_ns, boot_ns, kind, body, crc FROM events WHERE after_seq >= ? AND after_seq < ? {kind_filter} ORDER BY id"  # noqa: S608 - placeholders only
    rows = db.execute(sql, (after_seq, up_to_seq, *wanted)).fetchall()
    events = []
    for seq, at_ns, boot_ns, kind, body, crc in rows:
        if event_crc(seq, at_ns, boot_ns, kind, body) != crc:
            raise _damaged(db, f"an event after frame {seq} fails its checksum")
        events.append(Event(after_seq=seq, at_ns=at_ns, boot_ns=boot_ns, kind=kind, body=json.loads(body)))
    return events


def facts(db: sqlite3.Connection) -> Iterator[tuple[int, int, int, int, str, bytes]]:
    """Yield (id, after_seq, at_ns, boot_ns, kind, body) of every event but heartbeats, in order.

    Raises:
        JournalDamaged: an event fails its CRC.
    """
    sql = "SELECT id, after_seq, at_ns, boot_ns, kind, body, crc FROM events WHERE kind != 'alive' ORDER BY id"
    for number, seq, at_ns, boot_ns, kind, body, crc in db.execute(sql).fetchall():
        if event_crc(seq, at_ns, boot_ns, kind, body) != crc:
            raise _damaged(db, f"an event after frame {seq} fails its checksum")
        yield number, seq, at_ns, boot_ns, kind, body


def defs_body(definitions: Iterable[Definition], *, carried: bool = False) -> dict[str, object]:
    """Return the body of a `defs` event; `carried` marks the copy that begins a segment."""
    rows = []
    for definition in definitions:
        row = {name: value for name in _DEFINED if (value := getattr(definition, name)) is not None}
        if definition.expiry is not None:
            row["expiry"] = definition.expiry.isoformat()
        rows.append(row)
    return {"carried": carried, "definitions": rows}


def definitions_of(event: Event) -> list[Definition]:
    """Return the definitions that a `defs` event brings into force."""
    found = []
    rows = event.body["definitions"]
    assert isinstance(rows, list)
    for row in rows:
        expiry = dt.date.fromisoformat(row["expiry"]) if "expiry" in row else None
        found.append(Definition(**{**row, "expiry": expiry}))
    return found


def _damaged(db: sqlite3.Connection, what: str) -> JournalDamaged:
    path = _file(db)
    return JournalDamaged(f"{path}: {what}; run `tickvault journal verify` for the extent", path=Path(path))


def _file(db: sqlite3.Connection) -> str:
    """Return the path of the segment that is open."""
    return str(db.execute("PRAGMA database_list").fetchone()[2])


def insert_events(db: sqlite3.Connection, events: Sequence[NewEvent]) -> None:
    """Add events in order, within a transaction."""
    db.executemany(
        "INSERT INTO events (after_seq, at_ns, boot_ns, kind, body, crc) VALUES (?, ?, ?, ?, ?, ?)",
        [event.row() for event in events],
    )


def frame_crc(seq: int, received_ns: int, conn: int, codec: int, payload: bytes) -> int:
    """Return the CRC of a frame; NO_CRC if these are not its types."""
    try:
        return zlib.crc32(payload, zlib.crc32(_FRAME_HEAD.pack(seq, received_ns, conn, codec)))
    except MISTYPED:
        return NO_CRC


def event_crc(after_seq: int, at_ns: int, boot_ns: int, kind: str, body: bytes) -> int:
    """Return the CRC of an event; NO_CRC if these are not its types."""
    try:
        return zlib.crc32(body, zlib.crc32(kind.encode(), zlib.crc32(_EVENT_HEAD.pack(after_seq, at_ns, boot_ns))))
    except MISTYPED:
        return NO_CRC


def crc_of_crcs(db: sqlite3.Connection) -> int:
    """Return the CRC of a segment's CRCs; NO_CRC if one is not of its type."""
    crc = 0
    for table, key in (("frames", "seq"), ("events", "id")):
        for (one,) in db.execute(f"SELECT crc FROM {table} ORDER BY {key}"):  # noqa: S608 - two constants
            try:
                crc = zlib.crc32(one.to_bytes(4, "little"), crc)
            except MISTYPED:
                return NO_CRC
    return crc
