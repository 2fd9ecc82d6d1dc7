"""Looks at the segments of a journal before they are used, and replaces those that are damaged by what is whole in them."""

from __future__ import annotations

import sqlite3
import uuid
from collections import Counter
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Final

import structlog

from tickvault import archive, segments, soundness
from tickvault.errors import JournalDamaged, Refused
from tickvault.salvage import Salvaged, definitions_behind, salvage, set_aside, told

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["born", "ended_cleanly", "examine", "mend", "remove_orphans", "undo_births"]

_log: Final = structlog.get_logger(__name__)


def examine(paths: Sequence[Path], known_id: str | None, *, walk: bool = True) -> str | None:
    """Pass segments that can be used, and return the recorder that wrote them; None if there is none.

    Args:
        paths: the segments, oldest first.
        known_id: the recorder that the state belongs to; None if there is no state.
        walk: walk the logs too; only while no process writes to them.

    Raises:
        JournalDamaged: one of them is damaged; nothing was touched.
        Refused: another version, or another recorder, wrote it.
    """
    likely_id = known_id or _recorder_of(paths)
    for path in paths:
        if (found := soundness.doubt(path, likely_id, walk=walk)) is not None:
            raise JournalDamaged(
                f"{path}: {found}; the next `tickvault run` sets it aside and keeps what is whole", path=path
            )
    found_id = likely_id if known_id is None else _recorder_of(paths)
    if known_id is not None and found_id is not None and known_id != found_id:
        raise Refused(
            f"state.db belongs to recorder {known_id}, the journal to {found_id}: files of two data folders are mixed; "
            "restore the state.db that belongs here, or move it away (it will be rebuilt)"
        )
    return found_id


def mend(path: Path, reason: str, *, recorder: str | None, end_seq: int | None = None) -> Salvaged | None:
    """Set a damaged file of the journal aside and put what is whole of it in its place.

    Args:
        path: a segment that nobody writes to, or the file of kept facts.
        reason: what is wrong with it.
        recorder: to whom the journal belongs; None if the state does not tell.
        end_seq: the last seq of the newest segment; None: what is found says, and it may be gone on with.

    Returns:
        What was salvaged; None for kept facts.

    Raises:
        JournalFull: no room; nothing has changed.
    """
    reason = reason.removeprefix(f"{path}: ").partition("; ")[0]
    if path.name == archive.NAME:
        kept, count = archive.salvage(path.parent)
        _log.warning("facts.salvaged", error=reason, facts=count, kept=str(kept))
        return None
    paths = segments.paths(path.parent)
    before = [one for one in paths if int(one.stem) < int(path.stem)]
    behind = [one for one in paths if int(one.stem) > int(path.stem)]
    told_id, begun_ns = told(path)
    recorder = recorder or _recorder_of(paths) or told_id or uuid.uuid4().hex[:12]
    between_ns = _ends_ns(before[-1:])[1], _ends_ns(behind[:1])[0]
    done = salvage(
        path,
        reason,
        recorder=recorder,
        end_seq=int(behind[0].stem) - 1 if behind else end_seq,
        begun_ns=begun_ns or between_ns[0],
        between_ns=(between_ns[0] or begun_ns, between_ns[1]),
        definitions=definitions_behind(before[-1]) if before else (),
        sealed=bool(behind) or end_seq is not None,
    )
    _log.warning(
        "journal.salvaged",
        segment=path.name,
        error=reason,
        frames=done.frames,
        lost=[f"{low}-{high}" for low, high in done.lost],
        facts_missing=done.facts_missing,
        kept=str(done.kept),
    )
    return done


def born(paths: Sequence[Path], *, state_known: bool) -> list[Path]:
    """Return the segments that have their meta; the others hold nothing, and are removed from readers' way.

    Args:
        paths: segments that were examined.
        state_known: otherwise they are set aside instead: nothing else says that a log which is gone held nothing.
    """
    found = []
    for path in paths:
        if segments.is_born(path):
            found.append(path)
        elif state_known:
            segments.unlink(path)
        else:
            set_aside(path)
    return found


def ended_cleanly(path: Path, *, default: bool) -> bool:
    """Tell whether the last run that a segment tells of was stopped; `default` if it tells of none."""
    sql = "SELECT kind FROM events WHERE kind IN ('start', 'stop') ORDER BY id DESC LIMIT 1"
    with segments.reading(path) as db:
        row = db.execute(sql).fetchone()
    return default if row is None else bool(row[0] == "stop")


def remove_orphans(folder: Path) -> None:
    """Remove logs without a database: SQLite would replay them into the next file of that name."""
    for suffix in ("-wal", "-shm"):
        for path in folder.glob(f"*.db{suffix}"):
            if not path.with_name(path.name.removesuffix(suffix)).exists():
                path.unlink()


def undo_births(folder: Path) -> None:
    """Roll back what a power cut interrupted before a segment's log was there; nothing can be read beside it.

    A new file is told by a rollback journal that it has a log; its removal is durable before anything is committed.
    """
    for path in folder.glob("[0-9]*.db-journal"):
        segment = path.with_name(path.name.removesuffix("-journal"))
        if segment.exists():
            with suppress(JournalDamaged), segments.damage_named(segment), closing(sqlite3.connect(segment)) as db:
                db.execute("PRAGMA user_version")  # SQLite plays it back before it reads anything
        path.unlink(missing_ok=True)


def _recorder_of(paths: Sequence[Path]) -> str | None:
    """Return to whom most of the segments belong, as far as they can be read; of two as frequent, the newer one."""
    found: list[str] = []
    for path in reversed(paths):
        with suppress(JournalDamaged), segments.reading(path) as db:
            meta = segments.read_meta(db)
            found += [meta.recorder] if meta is not None else []
    return Counter(found).most_common(1)[0][0] if found else None


def _ends_ns(paths: Sequence[Path]) -> tuple[int, int]:
    """Return when the first of these segments begins and ends; 0 where that cannot be told."""
    for path in paths:
        with suppress(JournalDamaged), segments.reading(path) as db:
            first = db.execute("SELECT received_ns FROM frames ORDER BY seq LIMIT 1").fetchone()
            meta, (_, last_ns) = segments.read_meta(db), segments.tail(db)
            if meta is not None:
                return first[0] if first else meta.begun_ns, last_ns
    return 0, 0
