"""What the recorder must remember besides the journal: cursors, dead letters, the outbox, gaps.

Laws (docs/durability.md):
* A cursor, the dead letters of its batch and the events that tell of it move in one transaction: the commit point of a
  delivery. `advance` changes nothing when the generation has moved on.
* Before a batch is first sent, its end is committed as `attempted_seq`: a seq that left the process is never used again.
* What a sink is sent again takes the place of the dead letters it had from there.
* A full disk is JournalFull, another program that holds the file StateHeld, and nothing has changed.
* journal_mode=TRUNCATE with synchronous=EXTRA: a committed transaction survives power loss. Losing the file costs
  delivering again, never data.
"""

from __future__ import annotations

import sqlite3
import threading
import uuid
import zlib
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Self

import structlog

from tickvault import deadletters, outbox
from tickvault.errors import Refused, StateHeld
from tickvault.model import Gap
from tickvault.segments import full_disk_translated

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from pathlib import Path

    from tickvault.deadletters import Letter
    from tickvault.model import Rejected
    from tickvault.outbox import Notice, Outgoing

__all__ = ["Cursor", "State", "View", "open_reader", "read_view"]

_log: Final = structlog.get_logger(__name__)
SCHEMA_VERSION: Final = 1

_SCHEMA: Final = """
CREATE TABLE journal (recorder TEXT NOT NULL, head_seq INTEGER NOT NULL, first_seq INTEGER NOT NULL) STRICT;
CREATE TABLE cursors (
  sink TEXT PRIMARY KEY, seq INTEGER NOT NULL, attempted_seq INTEGER NOT NULL, settled_seq INTEGER NOT NULL,
  generation INTEGER NOT NULL, drop_from INTEGER, rewind_to INTEGER, state TEXT NOT NULL, detail TEXT NOT NULL
) STRICT;
CREATE TABLE dead_letters (
  sink TEXT NOT NULL, seq INTEGER NOT NULL, tbl TEXT NOT NULL, instrument_key TEXT NOT NULL, reason TEXT NOT NULL,
  body BLOB NOT NULL, at_ns INTEGER NOT NULL, PRIMARY KEY (sink, seq, tbl, instrument_key)
) STRICT;
CREATE TABLE outbox (
  ord INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, event TEXT NOT NULL, sink TEXT NOT NULL, body TEXT NOT NULL,
  not_before_ns INTEGER NOT NULL, attempts INTEGER NOT NULL
) STRICT;
CREATE TABLE gaps (
  scope TEXT NOT NULL, subject TEXT NOT NULL, opened_ns INTEGER NOT NULL, closed_ns INTEGER, reason TEXT NOT NULL,
  planned INTEGER NOT NULL, detail TEXT NOT NULL, PRIMARY KEY (scope, subject, opened_ns)
) STRICT;
-- When the receiver last took a sink's data.stored, so that the interval between two holds over restarts.
CREATE TABLE notified (sink TEXT PRIMARY KEY, at_ns INTEGER NOT NULL) STRICT;
"""
# Came later, and is made in files that lack it.
_ASKED: Final = """
CREATE TABLE IF NOT EXISTS redrives (
  sink TEXT NOT NULL, seq INTEGER NOT NULL, tbl TEXT NOT NULL, instrument_key TEXT NOT NULL,
  PRIMARY KEY (sink, seq, tbl, instrument_key)
) STRICT;
"""
# Written with every transaction: SQLite does not notice a bit that flips in a value.
_CHECKS: Final = "CREATE TABLE IF NOT EXISTS checks (one INTEGER PRIMARY KEY, crc INTEGER NOT NULL) STRICT;"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """How far one sink has come.

    Attributes:
        seq: the last delivered; 0 = none.
        attempted_seq: the last that may have left the process.
        settled_seq: the last that the store is known to keep through a crash of its own.
        generation: counts backward moves.
        drop_from: a truncation of the Parquet store is under way from here.
        rewind_to: a rewind was asked for and is not carried out yet.
        state: `running`, `retrying`, `misconfigured` or `parked`; `detail` says why.
    """

    sink: str
    seq: int
    attempted_seq: int
    settled_seq: int
    generation: int
    drop_from: int | None
    rewind_to: int | None
    state: str
    detail: str


class State:
    """The writing connection to `state.db`; safe to call from any thread, one call at a time."""

    def __init__(
        self, connection: sqlite3.Connection, *, notify_interval_ns: int, events: frozenset[str] | None
    ) -> None:
        self._db = connection
        self._lock = threading.Lock()
        self._notify_interval_ns = notify_interval_ns
        self._events = events

    @classmethod
    def open(
        cls, path: Path, *, notify_interval_ns: int = 0, events: frozenset[str] | None = frozenset()
    ) -> tuple[Self, bool]:
        """Open or create the file.

        Args:
            path: `state.db` of a data folder that this process has locked.
            notify_interval_ns: least time between two data.stored of a sink.
            events: kinds of events to keep for the webhook; None = all. Keyed `event` or `event:sink`.

        Returns:
            The state, and whether it is new: then the caller rebuilds what it can from the journal.

        Raises:
            Refused: a newer version of tickvault wrote it.
        """
        fresh = not path.exists() or path.stat().st_size == 0
        connection = None
        try:
            connection = _connect(path)
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == SCHEMA_VERSION:
                _check_header(path)
                _check(connection)
            elif version == 0 and connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                raise sqlite3.DatabaseError("it has tables and no version")  # noqa: TRY301 - as SQLite says the like
        except (sqlite3.DatabaseError, UnicodeDecodeError) as exc:  # what is damaged may be quoted in the message
            if connection is not None:
                connection.close()
            if _of_access(exc):
                raise Refused(f"cannot open {path}: {exc}; check the folder's permissions and free space") from exc
            # Not a database any more. Kept for inspection; the journal brings everything back.
            kept = path.with_name(f"state.db.damaged-{uuid.uuid4().hex[:8]}")
            path.rename(kept)
            _log.warning("state.set_aside", error=str(exc), kept=str(kept))
            path.with_name("state.db-journal").unlink(missing_ok=True)
            connection, version, fresh = _connect(path), 0, True
        if version > SCHEMA_VERSION:
            connection.close()
            raise _newer(path, version)
        lacking = _ASKED + _CHECKS
        if version == 0:
            fresh = True
            path.chmod(0o600)
            lacking += f"{_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION};"
        with full_disk_translated():
            connection.executescript(f"BEGIN; {lacking} COMMIT;")  # together: each by itself is synced four times
        return cls(connection, notify_interval_ns=notify_interval_ns, events=events), fresh

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, full_disk_translated():
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("INSERT OR REPLACE INTO checks VALUES (1, ?)", (_crc(self._db),))
                self._db.execute("COMMIT")
            except BaseException as exc:
                if self._db.in_transaction:  # a full disk has rolled back already
                    self._db.execute("ROLLBACK")
                if getattr(exc, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                    raise StateHeld(
                        "another program has state.db open in a transaction; nothing is lost, but end that transaction "
                        "or close the program"
                    ) from exc
                raise

    # -- the journal's row

    def journal(self) -> tuple[str, int, int] | None:
        """Return (recorder_id, head_seq, first_seq), None before `set_journal`."""
        with self._lock:
            row = self._db.execute("SELECT recorder, head_seq, first_seq FROM journal").fetchone()
        return None if row is None else (row[0], row[1], row[2])

    def set_journal(self, recorder_id: str, *, head_seq: int, first_seq: int) -> None:
        """Record the recorder and what its journal holds."""
        with self._transaction() as db:
            db.execute("DELETE FROM journal")
            db.execute("INSERT INTO journal VALUES (?, ?, ?)", (recorder_id, head_seq, first_seq))

    def raise_head_seq(self, head_seq: int) -> None:
        """Record how far the journal goes, as every `advance` does."""
        with self._transaction() as db:
            db.execute("UPDATE journal SET head_seq = max(head_seq, ?)", (head_seq,))

    def raise_first_seq(self, first_seq: int, sinks: Collection[str]) -> bool:
        """Record that the journal begins with `first_seq` from now on: the commit point of pruning what lies before.

        Args:
            first_seq: of the oldest segment that stays.
            sinks: those that must have everything before it, for good.

        Returns:
            False, and nothing has changed, when one of them may still need something before it.
        """
        with self._transaction() as db:
            held = {cursor.sink: _held_from(cursor) for cursor in _cursors(db)}
            if any(held.get(sink, 0) < first_seq for sink in sinks):
                return False
            db.execute("UPDATE journal SET first_seq = max(first_seq, ?)", (first_seq,))
        return True

    def held_from(self, sinks: Collection[str]) -> int | None:
        """Return the first seq that one of these sinks may still need, None if none of them needs any."""
        held = {cursor.sink: _held_from(cursor) for cursor in self.cursors()}
        return min((held.get(sink, 0) for sink in sinks), default=None)

    def highest_seq(self) -> int:
        """Return the highest seq any row here knows of: none up to it may be used again."""
        with self._lock:
            row = self._db.execute(
                "SELECT max((SELECT coalesce(max(head_seq), 0) FROM journal),"
                " (SELECT coalesce(max(max(seq, attempted_seq)), 0) FROM cursors))"
            ).fetchone()
        return int(row[0])

    # -- cursors

    def cursor(self, sink: str) -> Cursor | None:
        """Return a sink's cursor, None if it never had one."""
        return next((cursor for cursor in self.cursors() if cursor.sink == sink), None)

    def cursors(self) -> list[Cursor]:
        """Return all cursors."""
        with self._lock:
            return _cursors(self._db)

    def put_cursor(self, sink: str, seq: int, *, generation: int = 0) -> None:
        """Create a sink's cursor, or set one whose state was lost; attempted_seq never falls."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO cursors VALUES (?1, ?2, ?2, ?2, ?3, NULL, NULL, 'running', '') ON CONFLICT (sink) DO UPDATE"
                " SET seq = ?2, settled_seq = ?2, generation = ?3, drop_from = NULL, rewind_to = NULL",
                (sink, seq, generation),
            )

    def attempt(self, sink: str, hi: int) -> None:
        """Commit that frames up to `hi` are about to leave the process."""
        with self._transaction() as db:
            db.execute("UPDATE cursors SET attempted_seq = max(attempted_seq, ?) WHERE sink = ?", (hi, sink))

    def advance(
        self,
        sink: str,
        hi: int,
        *,
        generation: int,
        head_seq: int,
        settled_seq: int,
        dead_letters: Sequence[Rejected],
        notices: Sequence[Notice],
        now_ns: int,
    ) -> bool:
        """Move a cursor forward, with everything that its batch caused; the commit point of a delivery.

        Returns:
            False, and nothing has changed, when the cursor is of another generation: reload it.
        """
        with self._transaction() as db:
            deadletters.forget(db, sink, hi, generation)
            moved = db.execute(
                "UPDATE cursors SET seq = ?, settled_seq = ?, state = 'running', detail = ''"
                " WHERE sink = ? AND generation = ?",
                (hi, settled_seq, sink, generation),
            ).rowcount
            if not moved:
                return False
            db.execute("UPDATE journal SET head_seq = max(head_seq, ?)", (head_seq,))
            deadletters.put(db, sink, dead_letters, now_ns)
            for notice in notices:
                self._enqueue(db, notice, now_ns)
        return True

    # -- dead letters

    def asked(self, sink: str, limit: int) -> list[Letter]:
        """Return the first letters of a sink that are to be sent again, by seq."""
        with self._lock:
            return deadletters.asked(self._db, sink, limit)

    def redriven(
        self,
        sink: str,
        sent: Sequence[Letter],
        *,
        refused: Sequence[Rejected],
        notices: Sequence[Notice] = (),
        now_ns: int,
    ) -> None:
        """Remove letters that were sent again, with what asked for them; what was refused again stays, in new words."""
        with self._transaction() as db:
            deadletters.remove(db, sent)
            deadletters.put(db, sink, refused, now_ns)
            for notice in notices:
                self._enqueue(db, notice, now_ns)

    # -- conditions and moves

    def set_condition(
        self, sink: str, state: str, detail: str, *, notices: Sequence[Notice] = (), now_ns: int = 0
    ) -> None:
        """Record how a sink is doing, and the events that tell of it."""
        with self._transaction() as db:
            db.execute("UPDATE cursors SET state = ?, detail = ? WHERE sink = ?", (state, detail, sink))
            for notice in notices:
                self._enqueue(db, notice, now_ns)

    def ask_rewind(self, sink: str, to_seq: int) -> None:
        """Record that a sink's cursor is to go back to `to_seq`; its owner journals the move, then makes it."""
        with self._transaction() as db:
            db.execute("UPDATE cursors SET rewind_to = ? WHERE sink = ?", (to_seq, sink))

    def move_back(self, sink: str, seq: int, *, generation: int, drop_from: int | None) -> None:
        """Set a cursor back, the move being journalled already; `drop_from` begins a truncation of files."""
        with self._transaction() as db:
            db.execute(
                "UPDATE cursors SET seq = ?1, settled_seq = min(settled_seq, ?1), generation = ?2, drop_from = ?3,"
                " rewind_to = NULL, state = 'running', detail = '' WHERE sink = ?4",
                (seq, generation, drop_from, sink),
            )

    def files_dropped(self, sink: str) -> None:
        """Record that the truncation begun by `move_back` is complete."""
        with self._transaction() as db:
            db.execute("UPDATE cursors SET drop_from = NULL WHERE sink = ?", (sink,))

    # -- gaps

    def put_gaps(self, gaps: Sequence[Gap], *, notices: Sequence[Notice] = (), now_ns: int = 0) -> None:
        """Write gaps (a fold over the journal's events), and the events that tell of them."""
        with self._transaction() as db:
            db.executemany(
                "INSERT OR REPLACE INTO gaps VALUES (?, ?, ?, ?, ?, ?, ?)",
                [tuple(getattr(one, name) for name in Gap.__slots__) for one in gaps],
            )
            for notice in notices:
                self._enqueue(db, notice, now_ns)

    def gaps(self) -> tuple[Gap, ...]:
        """Return all gaps, oldest first."""
        with self._lock:
            return _gaps(self._db)

    def known(self, gaps: Iterable[Gap]) -> tuple[Gap, ...]:
        """Return those of some gaps that are written, as they are."""
        sql = "SELECT * FROM gaps WHERE scope = ? AND subject = ? AND opened_ns = ?"
        with self._lock:
            return tuple(_gap(row) for gap in gaps for row in self._db.execute(sql, gap.key))

    # -- outbox

    def _enqueue(self, db: sqlite3.Connection, notice: Notice, now_ns: int) -> None:
        if self._events is None or self._events & {notice.event, f"{notice.event}:{notice.sink}"}:
            outbox.put(db, notice, now_ns)

    def heads(self) -> list[Outgoing]:
        """Return the first event of every lane, oldest first; kinds that are not wanted any more are passed over."""
        with self._lock:
            return outbox.heads(self._db, interval_ns=self._notify_interval_ns, wanted=self._events)

    def mark_attempt(self, outgoing: Outgoing) -> Outgoing:
        """Record that an event is about to be tried, and return it as it is to be sent: its body never changes again."""
        with self._transaction() as db:
            return outbox.mark_attempt(db, outgoing)

    def postpone(self, outgoing: Outgoing, not_before_ns: int) -> None:
        """Record that an event was not taken, and when it is to be tried again."""
        with self._transaction() as db:
            outbox.postpone(db, outgoing, not_before_ns)

    def delivered(self, outgoing: Outgoing, now_ns: int) -> None:
        """Remove an event that its receiver has taken; the interval until its sink's next data.stored begins."""
        with self._transaction() as db:
            outbox.delivered(db, outgoing, now_ns)

    def outbox_count(self) -> int:
        """Return how many events wait."""
        with self._lock:
            return outbox.count(self._db)


def _newer(path: Path, version: int) -> Refused:
    return Refused(
        f"{path} was written by a newer tickvault (state version {version}, this one knows {SCHEMA_VERSION}); "
        "upgrade this installation, or use another TICKVAULT_DATA_DIR"
    )


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    try:
        connection.execute("PRAGMA journal_mode = TRUNCATE")
        connection.execute("PRAGMA synchronous = EXTRA")
    except BaseException:
        connection.close()
        raise
    return connection


def _check_header(path: Path) -> None:
    """Raise DatabaseError where the file says that another version of SQLite is needed: to write, it may be, only."""
    with path.open("rb") as file:
        if (needed := file.read(20)[18:]) != b"\x01\x01":
            raise sqlite3.DatabaseError(f"it is to be written and read by versions {needed.hex(' ')} of its form")


def _check(connection: sqlite3.Connection) -> None:
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(found)
    with closing(sqlite3.connect(":memory:")) as like:
        like.executescript(_SCHEMA)
        if lacking := _columns(like) - _columns(connection):  # the schema is text, and bits flip in it too
            raise sqlite3.DatabaseError(f"it has no {', '.join(sorted(map('.'.join, lacking)))}")
    _check_rows(connection)


def _columns(db: sqlite3.Connection) -> set[tuple[str, str]]:
    """Return every table with each of its columns."""
    query = "SELECT t.name, c.name FROM sqlite_schema AS t, pragma_table_info(t.name) AS c WHERE t.type = 'table'"
    return set(db.execute(query))


def _check_rows(db: sqlite3.Connection) -> None:
    """Compare what decides on delivery with its checksum; a file of before there were checksums passes."""
    if not db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'checks'").fetchone()[0]:
        return
    row = db.execute("SELECT crc FROM checks").fetchone()
    if row is not None and row[0] != _crc(db):
        raise sqlite3.DatabaseError("the cursors fail their checksum")


def _crc(db: sqlite3.Connection) -> int:
    # Not a sink's condition: that is also changed by who resumes a parked one (deadletters.resume).
    marks = "SELECT sink, seq, attempted_seq, settled_seq, generation, drop_from, rewind_to FROM cursors ORDER BY sink"
    return zlib.crc32(repr([db.execute(sql).fetchall() for sql in ("SELECT * FROM journal", marks)]).encode())


def _of_access(exc: Exception) -> bool:
    """Tell whether SQLite could not get at a file, rather than make sense of it."""
    return isinstance(exc, sqlite3.OperationalError) and getattr(exc, "sqlite_errorcode", 0) != sqlite3.SQLITE_ERROR


def _cursors(db: sqlite3.Connection) -> list[Cursor]:
    columns = ", ".join(Cursor.__slots__)
    rows = db.execute(f"SELECT {columns} FROM cursors ORDER BY sink").fetchall()  # noqa: S608 - names of our own class
    return [Cursor(**dict(zip(Cursor.__slots__, row, strict=True))) for row in rows]


def _held_from(cursor: Cursor) -> int:
    """Return the first seq that a sink may still need: behind what its store keeps, or what it is to go back to."""
    marks = (
        cursor.settled_seq,
        cursor.seq,
        cursor.rewind_to,
        None if cursor.drop_from is None else cursor.drop_from - 1,
    )
    return min(mark for mark in marks if mark is not None) + 1


def _gaps(db: sqlite3.Connection) -> tuple[Gap, ...]:
    return tuple(_gap(row) for row in db.execute("SELECT * FROM gaps ORDER BY opened_ns").fetchall())


def _gap(row: tuple[Any, ...]) -> Gap:
    gap = Gap(**dict(zip(Gap.__slots__, row, strict=True)))
    return replace(gap, planned=bool(gap.planned))


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What another process sees of the state, from one read transaction."""

    recorder_id: str
    head_seq: int
    first_seq: int
    cursors: tuple[Cursor, ...]
    gaps: tuple[Gap, ...]
    dead_letters: int
    outbox: int


def open_reader(path: Path) -> sqlite3.Connection:
    """Open the file for reading beside a running recorder.

    Not `mode=ro`: after a kill the first reader may have to roll back what the recorder left half done.
    """
    connection = sqlite3.connect(f"file:{path}?mode=rw", uri=True, isolation_level=None, timeout=30)
    connection.execute("PRAGMA query_only = 1")
    return connection


def read_view(path: Path) -> View | None:
    """Return the state as of now; None when there is none (a new folder, or a lost file).

    Raises:
        Refused: it cannot be read, or a newer version of tickvault wrote it.
    """
    if not path.exists():
        return None
    db = None
    try:
        db = open_reader(path)
        db.execute("BEGIN")
        if (version := db.execute("PRAGMA user_version").fetchone()[0]) > SCHEMA_VERSION:
            raise _newer(path, version)
        row = db.execute("SELECT recorder, head_seq, first_seq FROM journal").fetchone()
        if row is None:
            return None
        _check_rows(db)
        return View(
            recorder_id=row[0],
            head_seq=row[1],
            first_seq=row[2],
            cursors=tuple(_cursors(db)),
            gaps=_gaps(db),
            dead_letters=db.execute("SELECT count(*) FROM dead_letters").fetchone()[0],
            outbox=outbox.count(db),
        )
    except (sqlite3.DatabaseError, UnicodeDecodeError) as exc:
        if "no such table" in str(exc):
            return None
        if isinstance(exc, sqlite3.OperationalError):
            raise Refused(f"cannot read {path}: {exc}; check the folder's permissions and free space") from exc
        raise Refused(
            f"{path} is damaged ({exc}); the next `tickvault run` sets it aside and rebuilds it from the journal"
        ) from exc
    finally:
        if db is not None:
            db.close()
