"""Sets a damaged segment aside and keeps what is whole of it (docs/durability.md).

    <first_seq>.db.tmp      being filled with every frame and fact whose checksum holds
    <first_seq>.salvaged    complete, and durable: from here on it is finished, by the next open if need be
    damaged/<first_seq>/    `.db`, `-wal` and `-shm` together, moved there and left there
    <first_seq>.db          at last; no log of that name is left that SQLite could replay into it

Frames that are missing are a `lost` event in the new file, so there is no moment at which they are unexplained.
"""

from __future__ import annotations

import itertools
import json
import re
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tickvault import pages, segments
from tickvault.durable import sync_file, sync_folder
from tickvault.errors import JournalDamaged, Refused
from tickvault.segments import NewEvent

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from tickvault.model import Definition

__all__ = ["Salvaged", "definitions_behind", "finish", "put_in_place", "salvage", "set_aside", "told"]

_SUFFIXES: Final = ("-wal", "-shm", "-journal", "")
_RECORDER: Final = re.compile(rb"[0-9a-f]{12}")

_Fact = tuple[int, int, int, int, str, bytes]  # id and what segments.event_crc is over


@dataclass(frozen=True, slots=True, kw_only=True)
class Salvaged:
    """What became of a damaged segment.

    Attributes:
        frames: how many were whole.
        lost: ranges of seqs that were not, ends included.
        facts_missing: whether events are gone too, as far as can be told.
        kept: where the damaged files are.
        events: the `lost` events that tell of it.
    """

    path: Path
    frames: int
    lost: tuple[tuple[int, int], ...]
    facts_missing: bool
    kept: Path
    events: tuple[NewEvent, ...]


def salvage(
    path: Path,
    reason: str,
    *,
    recorder: str,
    begun_ns: int,
    end_seq: int | None,
    between_ns: tuple[int, int] = (0, 0),
    definitions: Collection[Definition] = (),
    sealed: bool = True,
) -> Salvaged:
    """Replace a damaged segment with one of what is whole in it.

    Args:
        path: the segment; nobody writes to it.
        reason: what is wrong with it, for the ledger.
        recorder: to whom it belongs.
        begun_ns: when it was begun.
        end_seq: the last seq it is known to have held; None: what is found says.
        between_ns: when the last frame before it was received, and the first one behind it.
        definitions: in force where it begins.
        sealed: whether it is complete; the newest may be gone on with.

    Raises:
        JournalFull: no room; nothing has changed.
    """
    first_seq = int(path.stem)
    temporary = path.with_name(f"{path.name}.tmp")
    _remove(temporary)
    with segments.full_disk_translated(), closing(sqlite3.connect(temporary, isolation_level=None)) as db:
        temporary.chmod(0o600)
        for pragma in (f"page_size = {pages.PAGE_SIZE}", "journal_mode = OFF", "synchronous = OFF"):
            db.execute(f"PRAGMA {pragma}")  # a crash leaves a file that is begun anew
        db.execute("BEGIN IMMEDIATE")
        segments.begin(db, recorder=recorder, first_seq=first_seq, begun_ns=begun_ns)
        facts = _copy_frames(path, db, first_seq, segments.NO_END if end_seq is None else end_seq)
        last = db.execute("SELECT max(seq) FROM frames").fetchone()[0]
        lost = _lost(db, first_seq, max(end_seq or 0, last or 0), reason, between_ns)
        events = [NewEvent(*fact[1:5], json.loads(fact[5])) for fact in facts]
        if definitions and not any(one.kind == "defs" and one.after_seq < first_seq for one in events):
            at_ns, boot_ns = (events[0].at_ns, events[0].boot_ns) if events else (0, 0)
            events.insert(
                0, NewEvent(first_seq - 1, at_ns, boot_ns, "defs", segments.defs_body(definitions, carried=True))
            )
        merged = sorted([*events, *lost], key=lambda one: one.after_seq)  # stable: a loss behind the facts before it
        segments.insert_events(db, merged)
        db.execute("COMMIT")
        count = int(db.execute("SELECT count(*) FROM frames").fetchone()[0])
        if sealed:
            segments.seal(db)
        db.execute("PRAGMA journal_mode = WAL")
    kept = put_in_place(temporary)
    numbers = [fact[0] for fact in facts]
    return Salvaged(
        path=path,
        frames=count,
        lost=tuple((int(str(one.body["from"])), int(str(one.body["to"]))) for one in lost),
        facts_missing=numbers != list(range(1, len(numbers) + 1)),
        kept=kept,
        events=tuple(lost),
    )


def finish(folder: Path) -> None:
    """Finish, or forget, a salvage that a crash interrupted; before anything else looks at the folder."""
    for path in folder.glob("*.db.tmp*"):
        path.unlink()
    for ready in folder.glob("*.salvaged"):
        _exchange(ready)


def told(path: Path) -> tuple[str | None, int]:
    """Return to whom a damaged segment says it belongs, and when it was begun; not covered by a checksum."""
    for _, values in pages.rows(path):
        match values:
            case [bytes(name), int(_), int(begun_ns), _, _, _] if _RECORDER.fullmatch(name):
                return name.decode(), begun_ns
    return None, 0


def definitions_behind(path: Path) -> list[Definition]:
    """Return the definitions in force at the end of a segment, as far as it can be read."""
    found: dict[str, Definition] = {}
    with suppress(JournalDamaged, Refused), segments.reading(path) as db:
        for event in segments.read_events(db, after_seq=0, up_to_seq=segments.NO_END, kinds=("defs",)):
            found |= {one.instrument_key: one for one in segments.definitions_of(event)}
    return list(found.values())


def put_in_place(temporary: Path) -> Path:
    """Set a damaged file of the journal aside for the one of what is whole in it; return where it is now.

    Args:
        temporary: `<name>.db.tmp`, complete.
    """
    with segments.full_disk_translated():
        sync_file(temporary)
        ready = temporary.with_suffix("").with_suffix(".salvaged")
        temporary.rename(ready)
        sync_folder(ready.parent)
        return _exchange(ready)


def set_aside(path: Path) -> Path:
    """Move a file and what belongs to it into `damaged/`, together; return the folder."""
    present = [name for suffix in _SUFFIXES if (path.with_name(name := path.name + suffix)).exists()]
    damaged = path.parent / "damaged"
    number = 1
    folder = damaged / path.stem
    while any((folder / name).exists() for name in present):
        number += 1
        folder = damaged / f"{path.stem}.{number}"
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True)
        sync_folder(damaged)
        sync_folder(path.parent)
    for name in present:
        path.with_name(name).rename(folder / name)
        sync_folder(folder)
    sync_folder(path.parent)
    return folder


def _exchange(ready: Path) -> Path:
    path = ready.with_suffix(".db")
    kept = set_aside(path)
    ready.rename(path)
    sync_folder(path.parent)
    return kept


def _copy_frames(path: Path, db: sqlite3.Connection, first_seq: int, end_seq: int) -> list[_Fact]:
    """Copy every whole frame; return every whole event, in order, each once."""
    facts: dict[tuple[int, int, int, str, bytes], int] = {}
    for rowid, values in pages.rows(path):
        match values:
            case [None, int(received_ns), int(conn), int(codec), int(crc), bytes(payload)]:
                whole = crc == segments.frame_crc(rowid, received_ns, conn, codec, payload)
                if whole and first_seq <= rowid <= end_seq:
                    row = (rowid, received_ns, conn, codec, crc, payload)
                    db.execute("INSERT OR REPLACE INTO frames VALUES (?, ?, ?, ?, ?, ?)", row)
            case [None, int(after_seq), int(at_ns), int(boot_ns), bytes(kind), bytes(body), int(crc)]:
                try:
                    fact = (after_seq, at_ns, boot_ns, kind.decode(), body)
                except UnicodeDecodeError:
                    continue
                if crc == segments.event_crc(*fact):
                    facts[fact] = min(rowid, facts.get(fact, rowid))
    return sorted(((number, *fact) for fact, number in facts.items()), key=lambda one: (one[1], one[0]))


def _lost(
    db: sqlite3.Connection, first_seq: int, end_seq: int, reason: str, between_ns: tuple[int, int]
) -> list[NewEvent]:
    """Return an event for every range of frames that is missing, with the times of its neighbours."""
    found = []
    before_seq, before_ns = first_seq - 1, between_ns[0]
    rows = db.execute("SELECT seq, received_ns FROM frames ORDER BY seq")
    for seq, received_ns in itertools.chain(rows, [(end_seq + 1, between_ns[1])]):
        if seq > before_seq + 1:
            from_ns, to_ns = before_ns or received_ns, received_ns or before_ns
            body = {"from": before_seq + 1, "to": seq - 1, "reason": reason, "from_ns": from_ns, "to_ns": to_ns}
            found.append(NewEvent(before_seq, from_ns, 0, "lost", body))
        before_seq, before_ns = seq, received_ns
    return found


def _remove(temporary: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        temporary.with_name(temporary.name + suffix).unlink(missing_ok=True)
