"""Whether a segment is whole: at a glance, before it is opened, or with every checksum."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from tickvault import segments, wal
from tickvault.errors import JournalDamaged, Refused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tickvault.segments import Meta

__all__ = ["doubt", "index_agrees", "verify"]


def doubt(path: Path, recorder: str | None, *, walk: bool) -> str | None:
    """Return what keeps a segment from being used, None if nothing does.

    A sealed segment is looked at, not read: who reads it checks every row. One that a crash left open is read, because
    where it ends is where the journal goes on.

    Args:
        path: the segment.
        recorder: to whom it should belong; None if that is not known.
        walk: walk its log before SQLite sees it; only while no process writes to it.

    Raises:
        Refused: it may not be read, or a newer version wrote it.
    """
    if walk and (found := wal.damage(path.with_name(path.name + "-wal"))) is not None:
        return found
    try:
        with segments.reading(path) as db:
            meta = segments.read_meta(db)
            if meta is None:
                return None if _is_empty(db) else "it has no meta row"
            if meta.first_seq != int(path.stem):
                return f"it says that it begins with frame {meta.first_seq}"
            if recorder is not None and _nearly(meta.recorder, recorder):
                return f"it says that it belongs to recorder {meta.recorder}"
            if not meta.sealed:
                return next(_rows(path.name, db, meta), None) or _holes(db, meta) or _unwritable(db) if walk else None
            if not index_agrees(db):
                return "the index of its events is damaged"
            if meta.last_seq != (segments.tail(db)[0] or meta.first_seq - 1):
                return f"it was sealed with frame {meta.last_seq}, and does not end there"
    except JournalDamaged as exc:
        return str(exc.__cause__ or exc)
    return None


def index_agrees(db: sqlite3.Connection) -> bool:
    """Tell whether the index of events has what their table has; SQLite itself never compares them."""
    sums = "count(*), sum(id), sum(after_seq), sum((id * 31 + after_seq) % 1000003)"
    table, index = (
        db.execute(f"SELECT {sums} FROM events {which} WHERE kind != 'alive'").fetchone()  # noqa: S608 - constants
        for which in ("NOT INDEXED", "INDEXED BY events_told")
    )
    return bool(table == index)


def verify(path: Path, *, walk: bool) -> Iterator[str]:
    """Yield what is damaged in a segment, in words; nothing if it is whole.

    Args:
        path: the segment file.
        walk: also walk its log; only for a segment that no process writes to.
    """
    try:
        if walk and (found := wal.damage(path.with_name(path.name + "-wal"))) is not None:
            yield f"{path.name}: {found}"
        with closing(segments.reader(path)) as db:
            db.execute("BEGIN")
            meta = segments.read_meta(db)
            if meta is not None:
                yield from _rows(path.name, db, meta)
    except (Refused, JournalDamaged) as exc:
        yield str(exc)
    except (sqlite3.DatabaseError, UnicodeDecodeError, OSError) as exc:
        yield f"{path.name}: {exc}"


def _rows(name: str, db: sqlite3.Connection, meta: Meta) -> Iterator[str]:
    count, last_seq = 0, meta.first_seq - 1
    for seq, received_ns, conn, codec, crc, payload in db.execute(
        "SELECT seq, received_ns, conn, codec, crc, payload FROM frames"
    ):
        if seq <= last_seq:
            yield f"{name}: frame {seq} stands behind frame {last_seq}"
        count, last_seq = count + 1, seq
        if segments.frame_crc(seq, received_ns, conn, codec, payload) != crc:
            yield f"{name}: frame {seq} fails its checksum"
    if last_seq != (segments.tail(db)[0] or meta.first_seq - 1):
        yield f"{name}: it does not end with frame {last_seq}"
    for number, after_seq, at_ns, boot_ns, kind, body, crc in db.execute(
        "SELECT id, after_seq, at_ns, boot_ns, kind, body, crc FROM events NOT INDEXED"
    ):
        if segments.event_crc(after_seq, at_ns, boot_ns, kind, body) != crc:
            yield f"{name}: event {number} ({kind}) fails its checksum"
    if not index_agrees(db):
        yield f"{name}: the index of its events is damaged"
    if meta.sealed and (meta.count, meta.last_seq) != (count, last_seq):
        yield f"{name}: sealed with {meta.count} frames up to {meta.last_seq}, holds {count} up to {last_seq}"
    if meta.sealed and meta.crc != segments.crc_of_crcs(db):
        yield f"{name}: the checksums differ from those it was sealed with"


def _holes(db: sqlite3.Connection, meta: Meta) -> str | None:
    """Return how many frames are missing from a segment without an event in it that says so."""
    count, last_seq = db.execute("SELECT count(*), max(seq) FROM frames").fetchone()
    told = segments.read_events(db, after_seq=0, up_to_seq=segments.NO_END, kinds=("lost",))
    ranges = ((int(str(one.body["from"])), int(str(one.body["to"]))) for one in told)
    lost = sum(high - low + 1 for low, high in ranges if meta.first_seq <= low and high < (last_seq or 0))
    missing = (last_seq or meta.first_seq - 1) - meta.first_seq + 1 - count - lost
    return f"{missing} of its frames are missing" if missing else None


def _unwritable(db: sqlite3.Connection) -> str | None:
    """Return why a segment that can be read cannot be sealed: what no read comes by, such as the space that is free."""
    found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    return None if found == "ok" else " ".join(str(found).split())


def _is_empty(db: sqlite3.Connection) -> bool:
    return not db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]


def _nearly(found: str, expected: str) -> bool:
    """Tell whether two names differ in one character: that is damage, where another name is another recorder."""
    return len(found) == len(expected) and sum(a != b for a, b in zip(found, expected, strict=True)) == 1
