"""What stays of segments that were pruned: their facts, so that the ledger's fold still begins at the beginning.

`journal/facts.db` holds every event of the segments that are gone, but heartbeats, and definitions that the next
segment begins with anyway. It is written before a segment goes, and read only for segments that are not there any more.

    head     (version, segments, facts, crc)                        how many rows the others have
    segments (first_seq, last_seq, from_ns, to_ns, sinks, crc)      which were pruned; `sinks`: which had stored them
    facts    (first_seq, id, after_seq, at_ns, boot_ns, kind, body, crc)        body: zlib, which checks itself

Every look reads the table from end to end and counts: a page that is skipped is found too.
"""

from __future__ import annotations

import json
import sqlite3
import struct
import zlib
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tickvault import pages, segments
from tickvault.durable import sync_folder
from tickvault.errors import JournalDamaged, Refused
from tickvault.model import Event
from tickvault.salvage import put_in_place

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

__all__ = ["NAME", "Pruned", "events", "keep", "pruned", "salvage", "verify"]

NAME: Final = "facts.db"

_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE head (version INTEGER NOT NULL, segments INTEGER NOT NULL, facts INTEGER NOT NULL, crc INTEGER NOT NULL) STRICT;
CREATE TABLE segments (
  first_seq INTEGER PRIMARY KEY, last_seq INTEGER NOT NULL, from_ns INTEGER NOT NULL, to_ns INTEGER NOT NULL,
  sinks TEXT NOT NULL, crc INTEGER NOT NULL
) STRICT;
CREATE TABLE facts (
  ord INTEGER PRIMARY KEY, first_seq INTEGER NOT NULL, id INTEGER NOT NULL, after_seq INTEGER NOT NULL,
  at_ns INTEGER NOT NULL, boot_ns INTEGER NOT NULL, kind TEXT NOT NULL, body BLOB NOT NULL, crc INTEGER NOT NULL,
  UNIQUE (first_seq, id)
) STRICT;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """A segment that is gone.

    Attributes:
        last_seq: of its frames, or `first_seq` - 1 if it held none.
        from_ns: when its first frame was received, `to_ns` its last; 0 if it held none.
        sinks: which had stored all of it.
    """

    first_seq: int
    last_seq: int
    from_ns: int
    to_ns: int
    sinks: frozenset[str]


def keep(path: Path, sinks: Collection[str]) -> Pruned:
    """Make the facts of a sealed segment durable beside the journal, so that it may go; a repeat changes nothing.

    Args:
        path: the segment.
        sinks: which have stored all of it.

    Raises:
        JournalDamaged: it, or what was kept before, is not whole as far as it is read here.
        JournalFull: no room.
        Refused: a newer version of tickvault wrote what was kept before.
    """
    first_seq, rows = int(path.stem), []
    with segments.reading(path) as db:
        first, last = (
            db.execute(f"SELECT seq, received_ns FROM frames ORDER BY seq {order} LIMIT 1").fetchone()  # noqa: S608
            for order in ("", "DESC")
        )
        last_seq, from_ns, to_ns = (last[0], first[1], last[1]) if last else (first_seq - 1, 0, 0)
        for number, after_seq, at_ns, boot_ns, kind, body in segments.facts(db):
            if (kind == "defs" and after_seq < last_seq) or json.loads(body).get("carried"):
                continue
            head = (first_seq, number, after_seq, at_ns, boot_ns)
            rows.append((*head, kind, zlib.compress(body), _crc(head, kind)))
    kept = Pruned(first_seq=first_seq, last_seq=last_seq, from_ns=from_ns, to_ns=to_ns, sinks=frozenset(sinks))
    span, named = (first_seq, last_seq, from_ns, to_ns), json.dumps(sorted(sinks))
    _store(path.with_name(NAME), [(*span, named, _crc(span, named))], rows)
    return kept


def _store(path: Path, spans: Sequence[tuple[Any, ...]], rows: Sequence[tuple[Any, ...]]) -> None:
    with segments.full_disk_translated(), segments.damage_named(path), closing(_writer(path)) as db:
        db.execute("BEGIN IMMEDIATE")
        db.executemany(
            "INSERT OR REPLACE INTO facts (first_seq, id, after_seq, at_ns, boot_ns, kind, body, crc)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
        db.executemany("INSERT OR REPLACE INTO segments VALUES (?, ?, ?, ?, ?, ?)", spans)
        counts = db.execute("SELECT (SELECT count(*) FROM segments), (SELECT count(*) FROM facts)").fetchone()
        db.execute("DELETE FROM head")
        db.execute("INSERT INTO head VALUES (?, ?, ?, ?)", (_VERSION, *counts, _crc((_VERSION, *counts))))
        db.execute(f"PRAGMA user_version = {_VERSION}")
        db.execute("COMMIT")


def pruned(folder: Path) -> list[Pruned]:
    """Return the segments that were pruned, oldest first; some may be there still, when a crash came between.

    Raises:
        JournalDamaged: a row fails its check.
    """
    found = []
    with _reading(
        folder, "segments", "SELECT first_seq, last_seq, from_ns, to_ns, sinks, crc FROM segments NOT INDEXED"
    ) as rows:
        for *span, named, crc in rows:
            if _crc(span, named) != crc:
                raise _damaged(folder, "a row fails its checksum")
            first_seq, last_seq, from_ns, to_ns = span
            sinks = frozenset(json.loads(named))
            found.append(Pruned(first_seq=first_seq, last_seq=last_seq, from_ns=from_ns, to_ns=to_ns, sinks=sinks))
    return sorted(found, key=lambda one: one.first_seq)


def events(
    folder: Path,
    kinds: Collection[str] = (),
    *,
    begin: int = 0,
    end: int = segments.NO_END,
    after_seq: int = 0,
    up_to_seq: int = segments.NO_END,
) -> Iterator[Event]:
    """Yield kept events in order, as segments.read_events does: those with after_seq <= their `after_seq` < up_to_seq.

    Args:
        folder: the journal folder.
        kinds: which; none: all.
        begin: of the segments that began with this seq or later,
        end: and before this one.
        after_seq: lowest `after_seq` of an event.
        up_to_seq: the `after_seq` of all is lower.

    Raises:
        JournalDamaged: an event fails its CRC.
    """
    wanted = f"kind IN ({', '.join('?' * len(kinds))})" if kinds else "true"
    sql = (
        f"SELECT first_seq, id, after_seq, at_ns, boot_ns, kind, iif({wanted}, body, NULL), crc FROM facts NOT INDEXED"  # noqa: S608
    )
    found = []
    with _reading(folder, "facts", sql, *kinds) as rows:
        for *head, kind, packed, crc in rows:
            if _crc(head, kind) != crc:
                raise _damaged(folder, "a row fails its checksum")
            if packed is not None and begin <= head[0] < end and after_seq <= head[2] < up_to_seq:
                found.append((head, kind, packed))
    for (_, _, seq, at_ns, boot_ns), kind, packed in sorted(found):
        try:
            body = json.loads(zlib.decompress(packed))
        except (zlib.error, TypeError) as exc:
            raise _damaged(folder, f"a fact after frame {seq}: {exc}") from exc
        yield Event(after_seq=seq, at_ns=at_ns, boot_ns=boot_ns, kind=kind, body=body)


def verify(folder: Path) -> Iterator[str]:
    """Yield what is damaged or cannot be read, in words; nothing if all is whole, or nothing was ever pruned."""
    try:
        pruned(folder)
        for _ in events(folder):
            pass
    except (JournalDamaged, Refused) as exc:
        yield str(exc)


def salvage(folder: Path) -> tuple[Path, int]:
    """Set the file aside with what is damaged in it, and keep the rows that are whole in a new one.

    Returns:
        Where it is now, and how many facts were kept.

    Raises:
        JournalFull: no room; nothing has changed.
    """
    path = folder / NAME
    spans, rows = [], []
    for rowid, values in pages.rows(path):
        match values:
            case [None, int(last_seq), int(from_ns), int(to_ns), bytes(named), int(crc)]:
                span = (rowid, last_seq, from_ns, to_ns)
                if crc == _crc(span, text := named.decode(errors="replace")):
                    spans.append((*span, text, crc))
            case [
                None,
                int(first_seq),
                int(number),
                int(after_seq),
                int(at_ns),
                int(boot_ns),
                bytes(kind),
                bytes(),
                int(crc),
            ]:
                head = (first_seq, number, after_seq, at_ns, boot_ns)
                if crc == _crc(head, text := kind.decode(errors="replace")) and _unpacks(values[7]):
                    rows.append((*head, text, values[7], crc))
    temporary = path.with_name(f"{NAME}.tmp")
    temporary.unlink(missing_ok=True)
    _store(temporary, spans, rows)
    return put_in_place(temporary), len(rows)


def _writer(path: Path) -> sqlite3.Connection:
    fresh = not path.exists()
    if fresh:
        path.touch(mode=0o600)
    db = sqlite3.connect(path, isolation_level=None, timeout=30)
    try:
        db.execute(f"PRAGMA page_size = {pages.PAGE_SIZE}")
        db.execute("PRAGMA journal_mode = TRUNCATE")
        db.execute("PRAGMA synchronous = EXTRA")
        _check_version(db, path)
        if not db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
            sync_folder(path.parent)
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def _reading(folder: Path, table: str, sql: str, *values: str) -> Iterator[list[tuple[Any, ...]]]:
    """Read a whole table; it is empty when nothing was ever pruned."""
    path = folder / NAME
    if not path.exists():
        yield []
        return
    # Not `mode=ro`: after a kill the first reader may have to roll back what was left half done.
    with (
        segments.damage_named(path),
        closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, isolation_level=None, timeout=30)) as db,
    ):
        db.execute("PRAGMA query_only = 1")
        db.execute("BEGIN")
        _check_version(db, path)
        if not db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            yield []  # a crash while it was begun
            return
        head, *more = db.execute("SELECT version, segments, facts, crc FROM head").fetchall() or [(0, 0, 0, None)]
        if more:
            raise _damaged(folder, "it has several heads")
        rows = db.execute(sql, values).fetchall()
        if head[3] not in (None, _crc(head[:3])) or len(rows) != head[1 if table == "segments" else 2]:
            raise _damaged(folder, "rows are missing")
        yield rows


def _check_version(db: sqlite3.Connection, path: Path) -> None:
    """Refuse a newer version's file before anything of it is looked at: what it is made of is not known here."""
    if (version := db.execute("PRAGMA user_version").fetchone()[0]) > _VERSION:
        raise Refused(
            f"{path} was written by a newer tickvault (version {version}, this one knows {_VERSION}); "
            "upgrade this installation, or use another TICKVAULT_DATA_DIR"
        )


def _unpacks(packed: object) -> bool:
    try:
        json.loads(zlib.decompress(packed))  # type: ignore[arg-type]
    except (zlib.error, TypeError, ValueError):
        return False
    return True


def _crc(numbers: Sequence[int], text: str = "") -> int:
    try:
        return zlib.crc32(text.encode(), zlib.crc32(struct.pack(f"<{len(numbers)}q", *numbers)))
    except segments.MISTYPED:
        return -1


def _damaged(folder: Path, what: str) -> JournalDamaged:
    path = folder / NAME
    return JournalDamaged(f"{path}: {what}; the next `tickvault run` sets the file aside", path=path)
