"""The journal: every received frame, durable before anything else happens to it.

Laws (docs/durability.md):
* `append` returns after the commit is on the disk; all of a batch or nothing of it.
* `seq` is dense from 1 and is never used twice, whatever was lost: the next one lies behind everything that the journal
  or the state ever knew of. A jump is written down as a `lost` event.
* Facts that rows depend on are events, committed in order with the frames; each segment begins with the definitions
  in force.
* Recovery is part of `open`.

One thread at a time may call a Journal; readers have connections of their own.
"""

from __future__ import annotations

import sqlite3
import threading
import time
import uuid
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from tickvault import segments, wal
from tickvault.errors import JournalDamaged, JournalFull, Refused
from tickvault.ledger import KINDS, Ledger
from tickvault.model import Definition, Event, Frame, Gap
from tickvault.segments import NewEvent, NewFrame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tickvault.state import State

__all__ = [
    "Chunk",
    "Committed",
    "Fact",
    "Journal",
    "JournalReader",
    "Received",
    "Stats",
    "boot_id",
    "events",
    "generations",
    "last_seq_before",
    "ledger",
    "received_ns_behind",
    "stats",
    "verify",
]

_STEP_BACK_NS: Final = 1_000_000_000  # a clock set back by more is believed, and journalled
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_NO_END: Final = 2**62  # behind every seq


@dataclass(frozen=True, slots=True)
class Received:
    """A message from the feed, not yet journalled."""

    received_ns: int
    conn: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact to be journalled as an event."""

    kind: str
    body: Mapping[str, object]
    at_ns: int | None = None  # None: when it is committed


@dataclass(frozen=True, slots=True)
class Committed:
    """What one append made durable: the journal's last seq, and the gaps that its facts opened or closed."""

    last_seq: int
    gaps: tuple[Gap, ...]


RECORD: Final = "record"


class Journal:
    """The writing end. Made by `open`."""

    def __init__(
        self, folder: Path, state: State, *, recorder_id: str, wall_ns: Callable[[], int], purpose: str = RECORD
    ) -> None:
        self.recorder_id = recorder_id
        self.last_seq = 0
        self.first_seq = 1
        self.last_conn = 0
        self.definitions: dict[str, Definition] = {}
        self.ledger = Ledger()
        self.max_segment_bytes = segments.MAX_BYTES
        self.max_segment_frames = segments.MAX_FRAMES
        self._purpose = purpose
        self.stopped = True
        self._folder = folder
        self._state = state
        self._wall_ns = wall_ns
        self._db: sqlite3.Connection | None = None
        self._last_ns = 0
        self._segment_bytes = 0
        self._segment_first = 1

    @classmethod
    def open(
        cls, folder: Path, state: State, *, wall_ns: Callable[[], int] = time.time_ns, purpose: str = RECORD
    ) -> Self:
        """Open the journal, recovering whatever a crash left.

        Args:
            folder: the journal folder of a data folder that this process has locked.
            state: the state beside it.
            wall_ns: UTC wall clock in ns.
            purpose: `record`, or what else it is opened for; then the time counts as not recorded.

        Raises:
            JournalDamaged: a segment's log is damaged beyond a torn tail.
            Refused: another version, or another recorder, wrote it.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_orphans(folder)
        paths = segments.paths(folder)
        for path in paths:
            if (found := _unreadable(path)) is not None:
                raise JournalDamaged(
                    f"{path}: {found}; nothing was touched. Copy the journal folder to a safe place, then move "
                    f"{path.name}, {path.name}-wal and {path.name}-shm into journal/damaged/ and start again"
                )
        known = state.journal()
        found_id = _recorder_of(paths)
        if known is not None and found_id is not None and known[0] != found_id:
            raise Refused(
                f"state.db belongs to recorder {known[0]}, the journal to {found_id}: files of two data folders are mixed; "
                "restore the state.db that belongs here, or move it away (it will be rebuilt)"
            )
        recorder_id = known[0] if known else found_id or uuid.uuid4().hex[:12]
        journal = cls(folder, state, recorder_id=recorder_id, wall_ns=wall_ns, purpose=purpose)
        journal._recover(paths)
        return journal

    def append(self, items: Sequence[Received | Fact]) -> Committed:
        """Make a batch durable.

        Args:
            items: in order of arrival.

        Raises:
            JournalFull: no room; nothing was written, and the same call may be tried again.
        """
        frames: list[NewFrame] = []
        events: list[NewEvent] = []
        seq, last_ns = self.last_seq, self._last_ns
        for item in items:
            if isinstance(item, Fact):
                events.append(self._event(item, seq))
                continue
            received_ns = max(last_ns + 1, item.received_ns)
            if item.received_ns < last_ns - _STEP_BACK_NS:
                received_ns = item.received_ns
                events.append(self._event(Fact("clock_step", {"from_ns": last_ns, "to_ns": received_ns}), seq))
            seq, last_ns = seq + 1, received_ns
            frames.append(NewFrame(seq, received_ns, item.conn, item.payload))
        self._roll_if_full()
        assert self._db is not None
        segments.append(self._db, frames, events)
        self.last_seq, self._last_ns = seq, last_ns
        self._segment_bytes += sum(len(frame.payload) + 64 for frame in frames)
        gaps: list[Gap] = []
        for event in map(_as_event, events):
            gaps += self.ledger.apply(event)
            if event.kind in {"start", "stop"}:
                self.stopped = event.kind == "stop"
            if event.kind == "defs":
                self._learn(event)
        return Committed(seq, tuple(gaps))

    def define(self, definitions: Mapping[str, Definition]) -> Fact | None:
        """Return the fact that brings changed definitions into force, None if all are in force already."""
        changed = [one for key, one in definitions.items() if self.definitions.get(key) != one]
        return Fact("defs", segments.defs_body(changed)) if changed else None

    def close(self) -> None:
        """Say that it ends, if nobody has; seal what is open, if it holds frames, and close."""
        if not self.stopped:
            with suppress(JournalFull):
                self.append([Fact("stop", {"reason": "ended early"})])
        if self._db is not None:
            if self.last_seq >= self._segment_first:
                segments.seal(self._db)
            self._db.close()
            self._db = None

    def _recover(self, paths: list[Path]) -> None:
        last_ns, clean, readable = 0, False, 0
        unsealed: list[Path] = []
        for path in paths:
            with closing(segments.reader(path)) as db:
                meta = segments.read_meta(db)
                if meta is None:
                    continue  # unborn; `create` makes it anew
                seq, segment_ns = segments.tail(db)
                clean = _ended_cleanly(db, default=clean)
            readable, last_ns = max(readable, seq or meta.first_seq - 1), segment_ns or last_ns
            if not meta.sealed:
                unsealed.append(path)
        born = [path for path in segments.paths(self._folder) if _born(path)]
        self.first_seq = int(born[0].stem) if born else 1
        self.last_seq = max(readable, self._highest_seq(readable))
        for path in unsealed:
            if int(path.stem) <= self.last_seq:  # a newest one without a frame is gone on with
                with closing(segments.writer(path)) as db:
                    segments.seal(db)
        self._last_ns = last_ns
        if born:
            self._carry_over(born[-1])
        self._state.set_journal(self.recorder_id, head_seq=self.last_seq, first_seq=self.first_seq)
        down: dict[str, object] = {"last_ns": last_ns, "clean": clean}
        starts = list(events(self._folder, ("start",)))
        if starts and starts[-1].body.get("purpose", RECORD) != RECORD:  # it was down before that already
            down = {name: starts[-1].body[name] for name in down}
        facts = [Fact("start", {**down, "boot": boot_id()})]
        if self.last_seq > readable:
            lost = {"from": readable + 1, "to": self.last_seq, "reason": "missing from the journal at start"}
            facts.insert(0, Fact("lost", lost))
        self.ledger = ledger(self._folder)
        self._continue_or_begin(born)
        self.append(facts)

    def _highest_seq(self, readable: int) -> int:
        """Return the highest seq that may have been used, as far as the state, or what was set aside, tells."""
        if self._state.journal() is not None:
            return self._state.highest_seq()
        # The state is lost too: a segment that was set aside may have held as many frames as one can.
        aside = [int(path.stem) for path in (self._folder / "damaged").rglob("*.db") if path.stem.isdigit()]
        return max((first_seq + segments.MAX_FRAMES for first_seq in aside if first_seq > readable), default=0)

    def _carry_over(self, newest: Path) -> None:
        """Learn the definitions in force and the last connection number from the newest segment."""
        with closing(segments.reader(newest)) as db:
            for event in segments.read_events(db, after_seq=0, up_to_seq=_NO_END, kinds=("defs", "conn")):
                if event.kind == "defs":
                    self._learn(event)
                elif isinstance(number := event.body.get("conn"), int):
                    self.last_conn = max(self.last_conn, number)
            row = db.execute("SELECT max(conn) FROM frames").fetchone()
            self.last_conn = max(self.last_conn, row[0] or 0)

    def _continue_or_begin(self, born: list[Path]) -> None:
        """Go on in a newest segment that holds no frame yet; otherwise begin the next one."""
        if born and int(born[-1].stem) == self.last_seq + 1:
            self._db = segments.writer(born[-1])
            self._segment_first = self.last_seq + 1
        else:
            self._begin_segment()

    def _begin_segment(self) -> None:
        carried = Fact("defs", segments.defs_body(self.definitions.values(), carried=True))
        events = [self._event(carried, self.last_seq)] if self.definitions else []
        if self.last_conn:
            events.append(
                self._event(Fact("conn", {"conn": self.last_conn, "state": "carried", "carried": True}), self.last_seq)
            )
        first_seq = self.last_seq + 1
        self._db = segments.create(
            self._folder, recorder=self.recorder_id, first_seq=first_seq, begun_ns=self._wall_ns(), events=events
        )
        self._segment_first = first_seq
        self._segment_bytes = 0

    def _roll_if_full(self) -> None:
        count = self.last_seq - self._segment_first + 1
        full = self._segment_bytes >= self.max_segment_bytes or count >= self.max_segment_frames
        if self._db is not None and full and count:
            segments.seal(self._db)
            self._db.close()
            self._db = None  # should the next step fail for want of room, the next call takes it up here
        if self._db is None:
            self._begin_segment()

    def _event(self, fact: Fact, after_seq: int) -> NewEvent:
        boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if fact.kind == "conn" and isinstance(number := fact.body.get("conn"), int):
            self.last_conn = max(self.last_conn, number)
        at_ns = self._wall_ns() if fact.at_ns is None else fact.at_ns
        if fact.kind in {"start", "stop"} and self._purpose != RECORD:
            fact = replace(fact, body={**fact.body, "purpose": self._purpose})
        return NewEvent(after_seq, at_ns, boot_ns, fact.kind, fact.body)

    def _learn(self, event: Event) -> None:
        self.definitions |= {one.instrument_key: one for one in segments.definitions_of(event)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A run of journal entries under one set of definitions.

    Attributes:
        lo: first seq covered; `hi` the last. Frames are dense between them but for `lost` ranges.
        events: in force at frames of this run, from before `lo` on.
        definitions: instrument key → definition in force.
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
        self._definitions: dict[str, Definition] = {}

    @property
    def after_seq(self) -> int:
        """The seq behind which the next chunk begins."""
        return self._after_seq

    def read(self, *, max_frames: int, max_bytes: int) -> Chunk | None:
        """Return the next run of entries, None if there is no further frame yet.

        Raises:
            JournalDamaged: an entry fails its check, or frames are missing without a `lost` event.
        """
        with self._lock:
            return self._read(max_frames, max_bytes)

    def _read(self, max_frames: int, max_bytes: int) -> Chunk | None:
        while True:
            if self._db is None and not self._enter():
                return None
            assert self._db is not None
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
        if path is None or not _born(path):
            return False
        self._path, self._db = path, segments.reader(path)
        self._definitions = {}
        events = segments.read_events(self._db, after_seq=0, up_to_seq=self._after_seq + 1, kinds=("defs",))
        for event in events:
            if event.body.get("carried") or event.after_seq < self._after_seq:
                self._definitions |= {one.instrument_key: one for one in segments.definitions_of(event)}
        return True

    def _leave(self) -> bool:
        """Go to the segment behind a finished one; False if there is none yet."""
        assert self._path is not None
        behind = [path for path in segments.paths(self._folder) if int(path.stem) > int(self._path.stem)]
        if not behind or not _born(behind[0]):
            return False
        assert self._db is not None
        self._trailing += segments.read_events(self._db, after_seq=self._after_seq, up_to_seq=_NO_END)
        self._close()
        self._path, self._db = behind[0], segments.reader(behind[0])
        return True

    def _finished(self) -> bool:
        assert self._db is not None
        meta = segments.read_meta(self._db)
        return meta is not None and meta.sealed and (not meta.count or (meta.last_seq or 0) <= self._after_seq)

    def _read_here(self, max_frames: int, max_bytes: int) -> Chunk | None:
        assert self._db is not None
        frames = segments.read_frames(self._db, self._after_seq, max_frames=max_frames, max_bytes=max_bytes)
        if not frames:
            return None
        lo = self._after_seq + 1
        here = segments.read_events(self._db, after_seq=self._after_seq, up_to_seq=frames[-1].seq)
        for event in here:
            if event.kind == "defs" and event.body.get("carried"):  # differs only where a segment before it was lost
                self._definitions |= {one.instrument_key: one for one in segments.definitions_of(event)}
        events = [event for event in (*self._trailing, *here) if not event.body.get("carried")]
        later = [event.after_seq for event in events if event.kind == "defs" and event.after_seq >= frames[0].seq]
        if later:  # definitions change within: this run ends before they do
            frames = [frame for frame in frames if frame.seq <= later[0]]
            events = [event for event in events if event.after_seq < frames[-1].seq]
        self._check_dense(lo, frames, events)
        changed = [one for event in events if event.kind == "defs" for one in segments.definitions_of(event)]
        self._definitions |= {one.instrument_key: one for one in changed}
        self._after_seq = frames[-1].seq
        self._trailing = []
        return Chunk(
            lo=lo,
            hi=self._after_seq,
            frames=tuple(frames),
            events=tuple(events),
            definitions=dict(self._definitions),
            changed=tuple(changed),
        )

    @staticmethod
    def _check_dense(lo: int, frames: Sequence[Frame], events: Sequence[Event]) -> None:
        lost = [(event.body["from"], event.body["to"]) for event in events if event.kind == "lost"]
        expected = lo
        for frame in frames:
            while expected != frame.seq:
                skipped = next((to for begin, to in lost if begin <= expected <= to), None)  # type: ignore[operator]
                if not isinstance(skipped, int):
                    raise JournalDamaged(
                        f"frames {expected} to {frame.seq - 1} are missing from the journal; "
                        "run `tickvault journal verify` for the extent"
                    )
                expected = skipped + 1
            expected += 1


def events(folder: Path, kinds: Sequence[str], *, up_to_seq: int = _NO_END) -> Iterator[Event]:
    """Yield the events of some kinds that are in force at frame `up_to_seq`, from the oldest segment on."""
    for path in segments.paths(folder):
        if int(path.stem) > up_to_seq or not _born(path):
            continue
        with closing(segments.reader(path)) as db:
            yield from segments.read_events(db, after_seq=0, up_to_seq=up_to_seq, kinds=kinds)


def boot_id() -> str:
    """Return the kernel's name for this boot: `boot_ns` of two events compare only within one."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def generations(folder: Path) -> dict[str, int]:
    """Return sink → generation of its last backward move, for those that ever made one."""
    found = {}
    for event in events(folder, ("cursor_moved",)):
        generation = event.body["generation"]
        assert isinstance(generation, int)
        found[str(event.body["sink"])] = generation
    return found


def ledger(folder: Path, *, up_to_seq: int = _NO_END) -> Ledger:
    """Fold the ledger up to the events in force at frame `up_to_seq`."""
    return Ledger(events(folder, KINDS, up_to_seq=up_to_seq))


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
        with closing(segments.reader(path)) as db:
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


def verify(folder: Path, *, running: bool) -> Iterator[str]:
    """Yield what is damaged or missing, in words; nothing if the journal is whole.

    Args:
        folder: the journal folder.
        running: a recorder writes to it: the newest segment's log is then not walked.
    """
    paths = segments.paths(folder)
    for number, path in enumerate(paths):
        yield from segments.verify(path, walk=not (running and number == len(paths) - 1))
    previous: int | None = None
    for path in paths:
        try:
            if not _born(path):
                continue
            with closing(segments.reader(path)) as db:
                lost = segments.read_events(db, after_seq=0, up_to_seq=_NO_END, kinds=("lost",))
                first, last, count = db.execute("SELECT min(seq), max(seq), count(*) FROM frames").fetchone()
        except (JournalDamaged, sqlite3.DatabaseError):
            continue  # told above
        if first is None:
            continue
        explained = sum(_lost_within(event, previous + 1 if previous is not None else first, last) for event in lost)
        begin = previous + 1 if previous is not None else first
        if last - begin + 1 != count + explained:
            yield f"{path.name}: {last - begin + 1 - count - explained} frames between {begin} and {last} are missing"
        previous = last


def _lost_within(event: Event, begin: int, end: int) -> int:
    low, high = event.body["from"], event.body["to"]
    assert isinstance(low, int)
    assert isinstance(high, int)
    return max(0, min(high, end) - max(low, begin) + 1)


def _as_event(new: NewEvent) -> Event:
    return Event(after_seq=new.after_seq, at_ns=new.at_ns, boot_ns=new.boot_ns, kind=new.kind, body=new.body)


def _born(path: Path) -> bool:
    with closing(segments.reader(path)) as db:
        return segments.read_meta(db) is not None


def _unreadable(path: Path) -> str | None:
    """Return what keeps a segment from being opened, None if nothing does. Its log is walked before SQLite sees it."""
    if (found := wal.damage(path.with_name(path.name + "-wal"))) is not None:
        return found
    try:
        _born(path)
    except sqlite3.OperationalError:
        raise  # no access, not damage
    except sqlite3.DatabaseError as exc:
        return str(exc)
    return None


def _recorder_of(paths: Sequence[Path]) -> str | None:
    for path in reversed(paths):
        with closing(segments.reader(path)) as db:
            meta = segments.read_meta(db)
        if meta is not None:
            return meta.recorder
    return None


def _ended_cleanly(db: sqlite3.Connection, *, default: bool) -> bool:
    row = db.execute("SELECT kind FROM events WHERE kind IN ('start', 'stop') ORDER BY id DESC LIMIT 1").fetchone()
    return default if row is None else bool(row[0] == "stop")


def _remove_orphans(folder: Path) -> None:
    """Remove logs without a database: SQLite would replay them into the next file of that name."""
    for suffix in ("-wal", "-shm"):
        for path in folder.glob(f"*.db{suffix}"):
            if not path.with_name(path.name.removesuffix(suffix)).exists():
                path.unlink()


def received_ns_behind(folder: Path, seq: int) -> int | None:
    """Return when the first frame behind `seq` was received, None if there is none."""
    for path in _from(segments.paths(folder), seq):
        with closing(segments.reader(path)) as db:
            if segments.read_meta(db) is None:
                continue
            row = db.execute("SELECT received_ns FROM frames WHERE seq > ? ORDER BY seq LIMIT 1", (seq,)).fetchone()
        if row is not None:
            return int(row[0])
    return None


def last_seq_before(folder: Path, at_ns: int) -> int:
    """Return the seq of the last frame received before a time; 0 if none was."""
    found = 0
    for path in segments.paths(folder):
        with closing(segments.reader(path)) as db:
            if segments.read_meta(db) is None:
                continue
            row = db.execute("SELECT max(seq) FROM frames WHERE received_ns < ?", (at_ns,)).fetchone()
        found = max(found, row[0] or 0)
    return found


def _from(paths: Sequence[Path], seq: int) -> Sequence[Path]:
    """Return the segments that can hold frames behind `seq`."""
    begin = max((number for number, path in enumerate(paths) if int(path.stem) <= seq), default=0)
    return paths[begin:]
