"""Removes segments that nobody needs any more (docs/durability.md).

Two steps a segment, oldest first: its facts are kept and the state's `first_seq` is raised, in a transaction that reads
all cursors again; then its files go. A crash between them is finished at the next open.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tickvault import archive, segments, survey
from tickvault.durable import sync_folder

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from tickvault.state import State

__all__ = ["Freed", "finish", "oldest", "prune"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Freed:
    """What pruning removed; `first_seq` is where the journal begins now, None if nothing went."""

    segments: int = 0
    bytes: int = 0
    first_seq: int | None = None


def prune(
    folder: Path,
    state: State,
    sinks: Collection[str],
    *,
    before_ns: int | None,
    bytes_wanted: int | None = None,
    up_to_seq: int = segments.NO_END,
) -> Freed:
    """Remove segments that are sealed, old enough, and behind what every sink in use still needs; never the newest.

    Args:
        folder: the journal folder; a recorder may write to it.
        state: the state beside it.
        sinks: those in use; no other holds a segment.
        before_ns: only segments whose last commit is older; None: whatever their age.
        bytes_wanted: stop when so much is freed; None: remove all that may go.
        up_to_seq: no segment that holds frames behind it.

    Raises:
        JournalDamaged: a segment is not whole; it stays, and so do those behind it.
        JournalFull: no room to keep its facts.
    """
    freed = Freed()
    for path, behind in itertools.pairwise(_born(folder)):
        if bytes_wanted is not None and freed.bytes >= bytes_wanted:
            break
        needed = state.held_from(sinks)
        first_seq = int(behind.stem)
        if first_seq - 1 > up_to_seq or (needed is not None and needed < first_seq) or not _is_old(path, before_ns):
            break
        size = survey.size_of(path)
        stored = {cursor.sink for cursor in state.cursors() if cursor.settled_seq >= first_seq - 1}
        archive.keep(path, stored)
        if not state.raise_first_seq(first_seq, sinks):
            break
        _remove(path)
        freed = Freed(segments=freed.segments + 1, bytes=freed.bytes + size, first_seq=first_seq)
    return freed


def oldest(folder: Path, state: State, sinks: Collection[str]) -> dict[str, object] | None:
    """Return, as the body of a `lost` event, what removing the oldest segment costs; None if nothing, or it is the only one.

    Args:
        folder: the journal folder.
        state: the state beside it.
        sinks: those in use; what they all have stored costs nothing.
    """
    born = list(itertools.islice(_born(folder), 2))
    if len(born) < 2 or not _is_old(born[0], None):
        return None
    low, high = max(int(born[0].stem), state.held_from(sinks) or 0), int(born[1].stem) - 1
    if low > high:
        return None
    with segments.reading(born[0]) as db:
        sql = "SELECT min(received_ns), max(received_ns) FROM frames WHERE seq >= ?"
        from_ns, to_ns = db.execute(sql, (low,)).fetchone()
    reason = "not delivered, and removed to make room: TICKVAULT_DISK_FULL is drop_oldest"
    return {"from": low, "to": high, "reason": reason, "from_ns": from_ns or 0, "to_ns": to_ns or 0}


def finish(folder: Path, first_seq: int) -> None:
    """Remove what a crash kept pruning from removing; no process reads the folder as a recorder does.

    Args:
        folder: the journal folder.
        first_seq: where the journal begins, as the state has it.
    """
    paths = segments.paths(folder)
    kept = {one.first_seq for one in archive.pruned(folder)} if len(paths) > 1 else set()
    for path, behind in itertools.pairwise(paths):
        if int(path.stem) in kept and int(behind.stem) <= first_seq:
            _remove(path)


def _born(folder: Path) -> Iterator[Path]:
    """Yield the segments that hold anything, oldest first; one is looked into when it is its turn, a week has hundreds."""
    return (path for path in segments.paths(folder) if segments.is_born(path))


def _is_old(path: Path, before_ns: int | None) -> bool:
    """Tell whether a segment is sealed, and its last commit older than a time."""
    with segments.reading(path) as db:
        meta = segments.read_meta(db)
        _, last_ns = segments.tail(db)
    return meta is not None and meta.sealed and (before_ns is None or last_ns < before_ns)


def _remove(path: Path) -> None:
    segments.unlink(path)
    sync_folder(path.parent)
