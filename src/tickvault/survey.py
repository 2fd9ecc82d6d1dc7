"""What a journal folder holds: counted, verified, looked up; also while a recorder writes to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tickvault import segments
from tickvault.errors import JournalDamaged, Refused
from tickvault.ledger import KINDS, Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tickvault.model import Event, Gap

__all__ = [
    "Stats",
    "events",
    "generations",
    "last_seq_before",
    "ledger",
    "received_ns_behind",
    "stats",
    "verify",
]


def events(folder: Path, kinds: Sequence[str], *, up_to_seq: int = segments.NO_END) -> Iterator[Event]:
    """Yield the events of some kinds that are in force at frame `up_to_seq`, from the oldest segment on."""
    for path in segments.paths(folder):
        if int(path.stem) > up_to_seq or not segments.is_born(path):
            continue
        with segments.reading(path) as db:
            yield from segments.read_events(db, after_seq=0, up_to_seq=up_to_seq, kinds=kinds)


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
        with segments.reading(path) as db:
            meta = segments.read_meta(db)
            if meta is None:
                continue
            seq, segment_ns = segments.tail(db)
            held = db.execute("SELECT count(*) FROM frames").fetchone()[0] if meta.count is None else meta.count
        recorder_id, first_seq = meta.recorder, first_seq or meta.first_seq
        frames, last_seq, last_ns = frames + held, max(last_seq, seq or 0), max(last_ns, segment_ns)
        count += 1
        for suffix in ("", "-wal", "-shm"):
            file = path.with_name(path.name + suffix)
            size += file.stat().st_size if file.exists() else 0
    return Stats(
        recorder_id=recorder_id,
        frames=frames,
        first_seq=first_seq,
        last_seq=last_seq,
        last_ns=last_ns,
        bytes=size,
        segments=count,
    )


def verify(folder: Path, *, running: bool, head_seq: int = 0) -> Iterator[str]:
    """Yield what is damaged or missing, in words; nothing if the journal is whole.

    Args:
        folder: the journal folder.
        running: a recorder writes to it: the newest segment's log is then not walked.
        head_seq: the last seq that is known to have been journalled, taken before this is called; 0 if nothing is known.
    """
    paths = segments.paths(folder)
    for number, path in enumerate(paths):
        yield from segments.verify(path, walk=not (running and number == len(paths) - 1))
    previous, unread = None, False
    for path in paths:
        try:
            with segments.reading(path) as db:
                if segments.read_meta(db) is None:
                    continue
                lost = segments.read_events(db, after_seq=0, up_to_seq=segments.NO_END, kinds=("lost",))
                first, last, count = db.execute("SELECT min(seq), max(seq), count(*) FROM frames").fetchone()
        except (JournalDamaged, Refused):
            unread = True  # told above
            continue
        if first is None:
            continue
        begin = int(path.stem) if previous is None else previous + 1
        explained = sum(_lost_within(event, begin, last) for event in lost)
        if last - begin + 1 != count + explained:
            yield f"{path.name}: {last - begin + 1 - count - explained} frames between {begin} and {last} are missing"
        previous, unread = last, False
    if not unread and (previous or 0) < head_seq:
        yield f"frames {(previous or 0) + 1} to {head_seq} are missing: state.db knows of them"


def _lost_within(event: Event, begin: int, end: int) -> int:
    low, high = event.body["from"], event.body["to"]
    assert isinstance(low, int)
    assert isinstance(high, int)
    return max(0, min(high, end) - max(low, begin) + 1)


def received_ns_behind(folder: Path, seq: int) -> int | None:
    """Return when the first frame behind `seq` was received, None if there is none."""
    for path in _from(segments.paths(folder), seq):
        with segments.reading(path) as db:
            if segments.read_meta(db) is None:
                continue
            row = db.execute("SELECT received_ns FROM frames WHERE seq > ? ORDER BY seq LIMIT 1", (seq,)).fetchone()
        if row is not None:
            return row[0] if isinstance(row[0], int) else 0  # damage; who reads the frame finds out
    return None


def last_seq_before(folder: Path, at_ns: int) -> int:
    """Return the seq of the last frame received before a time; 0 if none was."""
    for path in reversed(segments.paths(folder)):
        with segments.reading(path) as db:
            if segments.read_meta(db) is None:
                continue
            begins = db.execute("SELECT received_ns < ? FROM frames ORDER BY seq LIMIT 1", (at_ns,)).fetchone()
            if begins is None or not begins[0]:
                continue  # without looking at the rest: only a clock set back twice could hide something there
            sql = "SELECT seq FROM frames WHERE received_ns < ? ORDER BY seq DESC LIMIT 1"
            return int(db.execute(sql, (at_ns,)).fetchone()[0])
    return 0


def _from(paths: Sequence[Path], seq: int) -> Sequence[Path]:
    """Return the segments that can hold frames behind `seq`."""
    begin = max((number for number, path in enumerate(paths) if int(path.stem) <= seq), default=0)
    return paths[begin:]
