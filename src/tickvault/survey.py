"""What a journal folder holds: counted, verified, looked up; also while a recorder writes to it."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from tickvault import archive, segments, soundness
from tickvault.errors import JournalDamaged, Refused
from tickvault.ledger import KINDS, Ledger

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tickvault.model import Event, Gap
    from tickvault.segments import Meta

__all__ = [
    "Stats",
    "begun_ns",
    "events",
    "generations",
    "holes",
    "last_seq_before",
    "ledger",
    "received_ns_behind",
    "stats",
    "verify",
]

_T = TypeVar("_T")
# For the files of a segment to go one after the other.
_GOING_LOOKS: Final = 5
_GOING_S: Final = 0.02


def events(folder: Path, kinds: Sequence[str], *, up_to_seq: int = segments.NO_END) -> Iterator[Event]:
    """Yield the events of some kinds that are in force at frame `up_to_seq`, from the beginning on.

    Pruned segments count, as far as their facts were kept: all but heartbeats and definitions.
    """
    paths = segments.paths(folder)
    first_seq = int(paths[0].stem) if paths else segments.NO_END
    yield from archive.events(folder, kinds, end=first_seq, up_to_seq=up_to_seq)
    for path in paths:
        if int(path.stem) > up_to_seq:
            continue
        try:
            with segments.reading(path) as db:
                if segments.read_meta(db) is None:
                    continue
                found = segments.read_events(db, after_seq=0, up_to_seq=up_to_seq, kinds=kinds)
        except (JournalDamaged, Refused):
            if not _is_gone(path):
                raise
            begin = int(path.stem)
            yield from archive.events(folder, kinds, begin=begin, end=begin + 1, up_to_seq=up_to_seq)
        else:
            yield from found


def generations(folder: Path) -> dict[str, int]:
    """Return sink → generation of its last backward move, for those that ever made one."""
    found = {}
    for event in events(folder, ("cursor_moved",)):
        generation = event.body["generation"]
        assert isinstance(generation, int)
        found[str(event.body["sink"])] = generation
    return found


def ledger(folder: Path, *, up_to_seq: int = segments.NO_END) -> tuple[Ledger, list[Gap]]:
    """Fold the ledger up to the events in force at frame `up_to_seq`; return it, and every gap each time it changed."""
    folded = Ledger()
    told = [gap for event in events(folder, KINDS, up_to_seq=up_to_seq) for gap in folded.apply(event)]
    return folded, told


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What a journal folder holds."""

    recorder_id: str | None
    frames: int
    first_seq: int
    last_seq: int
    last_ns: int
    bytes: int
    segments: int


def stats(folder: Path) -> Stats:
    """Count a journal; also while a recorder writes to it."""
    recorder_id, frames, first_seq, last_seq, last_ns, size, count = None, 0, 0, 0, 0, 0, 0
    for path in segments.paths(folder):
        if (found := _look(path, _counted)) is None:
            continue
        meta, seq, segment_ns, held = found
        recorder_id, first_seq = meta.recorder, first_seq or meta.first_seq
        frames, last_seq, last_ns = frames + held, max(last_seq, seq or 0), max(last_ns, segment_ns)
        count, size = count + 1, size + size_of(path)
    return Stats(
        recorder_id=recorder_id,
        frames=frames,
        first_seq=first_seq,
        last_seq=last_seq,
        last_ns=last_ns,
        bytes=size,
        segments=count,
    )


def size_of(path: Path) -> int:
    """Return the bytes that a segment takes, its log included; 0 if it is gone."""
    size = 0
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            size += path.with_name(path.name + suffix).stat().st_size
    return size


def begun_ns(path: Path) -> int | None:
    """Return when a segment was begun; None if it was never born, or is gone."""
    return _look(path, lambda _, meta: meta.begun_ns)


def _counted(db: sqlite3.Connection, meta: Meta) -> tuple[Meta, int | None, int, int]:
    held = db.execute("SELECT count(*) FROM frames").fetchone()[0] if meta.count is None else meta.count
    return meta, *segments.tail(db), held


def _extent(db: sqlite3.Connection, lost: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """Return the last seq and the number of frames but for those that count as lost, None if there is no frame."""
    last, count = db.execute("SELECT max(seq), count(*) FROM frames").fetchone()
    here = "SELECT count(*) FROM frames WHERE seq BETWEEN ? AND ?"
    return (last, count - sum(db.execute(here, one).fetchone()[0] for one in lost)) if count else None


def _look(path: Path, use: Callable[[sqlite3.Connection, Meta], _T]) -> _T | None:
    """Return what `use` finds in a segment; None if it was never born, or is gone."""
    try:
        with segments.reading(path) as db:
            meta = segments.read_meta(db)
            return None if meta is None else use(db, meta)
    except (JournalDamaged, Refused):
        if not _is_gone(path):
            raise
        return None


def _is_gone(path: Path) -> bool:
    """Tell whether a segment was pruned since the folder was listed; its log goes before it does."""
    for _ in range(_GOING_LOOKS):
        if not path.exists():
            return True
        time.sleep(_GOING_S)
    return not path.exists()


def verify(folder: Path, *, running: bool, head_seq: int = 0) -> Iterator[str]:
    """Yield what is damaged or missing, in words; nothing if the journal is whole.

    Args:
        folder: the journal folder.
        running: a recorder writes to it: the newest segment's log is then not walked.
        head_seq: the last seq that is known to have been journalled, taken before this is called; 0 if nothing is known.
    """
    paths = segments.paths(folder)
    for number, path in enumerate(paths):
        yield from soundness.verify(path, walk=not (running and number == len(paths) - 1))
    yield from archive.verify(folder)
    previous: int | None = None
    unread = False
    lost: Sequence[tuple[int, int]] = ()
    with suppress(JournalDamaged, Refused):
        lost = lost_ranges(folder)
        previous = 0
        for one in archive.pruned(folder):
            for low, high in _unexplained(previous + 1, one.first_seq - 1, lost):
                yield f"frames {low} to {high} are missing: {archive.NAME} does not say that they were pruned"
            previous = max(previous, one.last_seq)
    for path in paths:
        try:
            found = _look(path, lambda db, _: _extent(db, lost))
        except (JournalDamaged, Refused):
            unread = True  # told above
            continue
        if found is None:
            if not path.exists():  # pruned meanwhile
                previous = None
            continue
        last, count = found
        begin = int(path.stem) if previous is None else min(previous + 1, int(path.stem))
        explained = sum(max(0, min(high, last) - max(low, begin) + 1) for low, high in lost)
        if last - begin + 1 != count + explained:
            yield f"{path.name}: {last - begin + 1 - count - explained} frames between {begin} and {last} are missing"
        previous, unread = last, False
    previous = max(previous or 0, *(high for low, high in lost if low <= (previous or 0) + 1), 0)
    if not unread and previous < head_seq:
        yield f"frames {previous + 1} to {head_seq} are missing: state.db knows of them"


def lost_ranges(folder: Path) -> list[tuple[int, int]]:
    """Return the ranges of seqs, ends included and apart from one another, that will not come."""
    told = [(event.body["from"], event.body["to"]) for event in events(folder, ("lost",))]
    found: list[tuple[int, int]] = []
    for low, high in sorted((low, high) for low, high in told if isinstance(low, int) and isinstance(high, int)):
        if found and low <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(found[-1][1], high)
        else:
            found.append((low, high))
    return found


def holes(folder: Path, last_seq: int) -> list[dict[str, object]]:
    """Return, as bodies of `lost` events, the ranges from 1 on that are in no segment and that nothing explains yet.

    Args:
        folder: the journal folder; every segment has been looked at.
        last_seq: the last seq that may have been used.
    """
    previous, previous_ns = 0, 0
    found: list[dict[str, object]] = []
    lost = lost_ranges(folder)
    ends = [(one.first_seq, one.from_ns, one.last_seq, one.to_ns) for one in archive.pruned(folder)]
    ends += [(int(path.stem), *end) for path in segments.paths(folder) if (end := _look(path, _end)) is not None]
    for first_seq, begun_ns, seq, last_ns in [*ends, (last_seq + 1, 0, last_seq, 0)]:
        for low, high in _unexplained(previous + 1, first_seq - 1, lost):
            body: dict[str, object] = {"from": low, "to": high, "reason": "missing from the journal at start"}
            if begun_ns:
                body |= {"from_ns": previous_ns or begun_ns, "to_ns": begun_ns}
            found.append(body)
        previous, previous_ns = max(previous, seq), last_ns or begun_ns or previous_ns
    return found


def _end(db: sqlite3.Connection, meta: Meta) -> tuple[int, int, int]:
    seq, last_ns = segments.tail(db)
    return meta.begun_ns, seq or meta.first_seq - 1, last_ns


def _unexplained(low: int, high: int, lost: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the parts of a range that are not lost."""
    for begin, end in lost:
        if begin > low and low <= min(high, begin - 1):
            yield low, min(high, begin - 1)
        low = max(low, end + 1) if begin <= high else low
    if low <= high:
        yield low, high


def received_ns_behind(folder: Path, seq: int) -> int | None:
    """Return when the first frame behind `seq` was received, None if there is none."""

    def first(db: sqlite3.Connection, _: Meta) -> tuple[object] | None:
        sql = "SELECT received_ns FROM frames WHERE seq > ? ORDER BY seq LIMIT 1"
        row: tuple[object] | None = db.execute(sql, (seq,)).fetchone()
        return row

    for path in _from(segments.paths(folder), seq):
        if (row := _look(path, first)) is not None:
            return row[0] if isinstance(row[0], int) else 0  # damage; who reads the frame finds out
    return None


def last_seq_before(folder: Path, at_ns: int) -> int:
    """Return the seq of the last frame received before a time; 0 if none was."""

    def last(db: sqlite3.Connection, _: Meta) -> int | None:
        begins = db.execute("SELECT received_ns < ? FROM frames ORDER BY seq LIMIT 1", (at_ns,)).fetchone()
        if begins is None or not begins[0]:
            return None  # without looking at the rest: only a clock set back twice could hide something there
        sql = "SELECT seq FROM frames WHERE received_ns < ? ORDER BY seq DESC LIMIT 1"
        return int(db.execute(sql, (at_ns,)).fetchone()[0])

    for path in reversed(segments.paths(folder)):
        if (found := _look(path, last)) is not None:
            return found
    return 0


def _from(paths: Sequence[Path], seq: int) -> Sequence[Path]:
    """Return the segments that can hold frames behind `seq`."""
    begin = max((number for number, path in enumerate(paths) if int(path.stem) <= seq), default=0)
    return paths[begin:]
