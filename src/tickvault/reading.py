"""Reads a journal's entries in order, from a cursor on, across segments; also while a recorder writes to it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tickvault import archive, segments, survey
from tickvault.errors import JournalDamaged
from tickvault.ledger import KINDS
from tickvault.soundness import index_agrees

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tickvault.model import Definition, Event, Frame

__all__ = ["Chunk", "JournalReader"]

_GOVERNING: Final = (*KINDS, "defs")  # what rows, and rows of gaps, depend on

_CACHE_KB: Final = 256  # a segment is read once, from one end to the other


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A run of journal entries under one set of definitions.

    Attributes:
        lo: first seq covered; `hi` the last. Frames are dense between them but for `lost` ranges.
        events: in force at frames of this run, from before `lo` on, as far as rows depend on them.
        definitions: instrument key → definition in force; the same object as the run's before while none has changed.
        changed: definitions that came into force at `lo`.
    """

    lo: int
    hi: int
    frames: tuple[Frame, ...]
    events: tuple[Event, ...]
    definitions: Mapping[str, Definition]
    changed: tuple[Definition, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the payloads."""
        return sum(len(frame.payload) for frame in self.frames)


class JournalReader:
    """Reads entries in order, from a cursor on, across segments; one thread at a time.

    A reader leaves a segment only when it is sealed and read to its end.
    """

    def __init__(self, folder: Path, after_seq: int) -> None:
        self._folder = folder
        self._after_seq = after_seq
        self._lock = threading.Lock()  # a cancelled task closes while its last read still runs in a thread
        self._path: Path | None = None
        self._db: sqlite3.Connection | None = None
        self._trailing: list[Event] = []  # events behind the last frame of the segment just left
        self._lost: list[tuple[int, int]] = []
        self._definitions: dict[str, Definition] = {}

    @property
    def after_seq(self) -> int:
        """The seq behind which the next chunk begins."""
        return self._after_seq

    def read(self, *, max_frames: int, max_bytes: int) -> Chunk | None:
        """Return the next run of entries, None if there is no further frame yet.

        Raises:
            JournalDamaged: an entry fails its check, or frames are missing without a `lost` event, or SQLite finds the
                segment malformed.
            Refused: a segment may not be read.
        """
        with self._lock:
            return self._read(max_frames, max_bytes)

    def _read(self, max_frames: int, max_bytes: int) -> Chunk | None:
        while True:
            if self._db is None and not self._enter():
                return None
            assert self._db is not None
            assert self._path is not None
            with segments.damage_named(self._path):
                self._db.execute("BEGIN")  # frames and events from one state of the file
                try:
                    chunk = self._read_here(max_frames, max_bytes)
                    sealed = chunk is None and self._finished()
                finally:
                    self._db.execute("COMMIT")
            if chunk is not None:
                return chunk
            if not sealed or not self._leave():
                return None

    def close(self) -> None:
        """Close the connection; waits for a read that is under way."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _enter(self) -> bool:
        """Open the segment that the last frame read is in, or the oldest; False if there is none yet."""
        paths = segments.paths(self._folder)
        # Events behind a segment's last frame govern the first frame of the next one: begin where the cursor stands.
        path = next((path for path in reversed(paths) if int(path.stem) <= self._after_seq), next(iter(paths), None))
        if path is None or not segments.is_born(path):
            return False
        with segments.damage_named(path):
            self._path, self._db = path, _opened(path)
            self._definitions = {}
            events = segments.read_events(self._db, after_seq=0, up_to_seq=self._after_seq + 1, kinds=("defs",))
        # Those that were behind the last frame of a segment that has been pruned.
        self._trailing = list(archive.events(self._folder, _GOVERNING, end=int(path.stem), after_seq=self._after_seq))
        for event in events:
            if event.body.get("carried") or event.after_seq < self._after_seq:
                self._definitions = self._definitions | {
                    one.instrument_key: one for one in segments.definitions_of(event)
                }
        return True

    def _leave(self) -> bool:
        """Go to the segment behind a finished one; False if there is none yet."""
        assert self._path is not None
        behind = [path for path in segments.paths(self._folder) if int(path.stem) > int(self._path.stem)]
        if not behind or not segments.is_born(behind[0]):
            return False
        assert self._db is not None
        with segments.damage_named(self._path):
            self._trailing += segments.read_events(
                self._db, after_seq=self._after_seq, up_to_seq=segments.NO_END, kinds=_GOVERNING
            )
        self._close()
        with segments.damage_named(behind[0]):
            self._path, self._db = behind[0], _opened(behind[0])
        return True

    def _finished(self) -> bool:
        assert self._db is not None
        meta = segments.read_meta(self._db)
        if meta is None or not meta.sealed:
            return False
        if meta.count and (meta.last_seq or 0) > self._after_seq:
            raise JournalDamaged(
                f"{self._path}: frames {self._after_seq + 1} to {meta.last_seq} cannot be found; "
                "run `tickvault journal verify` for the extent",
                path=self._path,
            )
        return True

    def _read_here(self, max_frames: int, max_bytes: int) -> Chunk | None:
        assert self._db is not None
        frames = segments.read_frames(self._db, self._after_seq, max_frames=max_frames, max_bytes=max_bytes)
        if not frames:
            return None
        lo = self._after_seq + 1
        here = segments.read_events(self._db, after_seq=self._after_seq, up_to_seq=frames[-1].seq, kinds=_GOVERNING)
        for event in here:
            if event.kind == "defs" and event.body.get("carried"):  # differs only where a segment before it was lost
                self._definitions = self._definitions | {
                    one.instrument_key: one for one in segments.definitions_of(event)
                }
        events = [event for event in (*self._trailing, *here) if not event.body.get("carried")]
        later = [event.after_seq for event in events if event.kind == "defs" and event.after_seq >= frames[0].seq]
        if later:  # definitions change within: this run ends before they do
            frames = [frame for frame in frames if frame.seq <= later[0]]
            events = [event for event in events if event.after_seq < frames[-1].seq]
        self._check_dense(lo, frames)
        changed = [one for event in events if event.kind == "defs" for one in segments.definitions_of(event)]
        if changed:
            self._definitions = self._definitions | {one.instrument_key: one for one in changed}
        self._after_seq = frames[-1].seq
        self._trailing = []
        return Chunk(
            lo=lo,
            hi=self._after_seq,
            frames=tuple(frames),
            events=tuple(events),
            definitions=self._definitions,
            changed=tuple(changed),
        )

    def _check_dense(self, lo: int, frames: Sequence[Frame]) -> None:
        expected = lo
        for frame in frames:
            if expected != frame.seq and not self._is_lost(expected, frame.seq - 1):
                within = self._path is not None and expected >= int(self._path.stem)
                raise JournalDamaged(
                    f"frames {expected} to {frame.seq - 1} are missing from the journal; "
                    "run `tickvault journal verify` for the extent",
                    path=self._path if within else None,
                )
            expected = frame.seq + 1

    def _is_lost(self, low: int, high: int) -> bool:
        """Tell whether all of a range is known to be lost; what says so may stand anywhere in the journal."""
        if not any(begin <= low and high <= end for begin, end in self._lost):
            self._lost = survey.lost_ranges(self._folder)
        return any(begin <= low and high <= end for begin, end in self._lost)


def _opened(path: Path) -> sqlite3.Connection:
    """Open a segment, unless facts in it would not be found."""
    db = segments.reader(path)
    try:
        db.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
        agrees = index_agrees(db)
    except BaseException:
        db.close()
        raise
    if not agrees:
        db.close()
        raise JournalDamaged(f"{path}: the index of its events is damaged", path=path)
    return db
