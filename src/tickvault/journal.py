"""The journal: every received frame, durable before anything else happens to it.

Laws (docs/durability.md):
* `append` returns after the commit is on the disk; all of a batch or nothing of it.
* `seq` is dense from 1 and is never used twice, whatever was lost: the next one lies behind everything that the journal
  or the state ever knew of. A jump is written down as a `lost` event.
* Facts that rows depend on are events, committed in order with the frames; each segment begins with the definitions
  in force.
* Recovery is part of `open`.

One thread at a time may call a Journal. Readers have connections of their own: `reading` for its frames in order,
`survey` for what it holds.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from tickvault import prune, segments, survey, wal
from tickvault.durable import make_folder
from tickvault.errors import JournalDamaged, JournalFull, Refused
from tickvault.ledger import Ledger
from tickvault.model import Event
from tickvault.segments import NewEvent, NewFrame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tickvault.model import Definition, Gap
    from tickvault.state import State

__all__ = ["Committed", "Fact", "Journal", "Received", "boot_id", "examine"]

_STEP_BACK_NS: Final = 1_000_000_000  # a clock set back by more is believed, and journalled
_STALL_NS: Final = 3_000_000_000  # so long without a commit: the process or the machine stood still
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


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
        self._defining: dict[str, Definition] = {}  # in facts that were asked for, committed or not yet
        self.ledger = Ledger()
        self.gaps: tuple[Gap, ...] = ()  # all that the journal told when it was opened, as they then were
        self.max_segment_bytes = segments.MAX_BYTES
        self.max_segment_frames = segments.MAX_FRAMES
        self._purpose = purpose
        self.stopped = True
        self._folder = folder
        self._state = state
        self._wall_ns = wall_ns
        self._db: sqlite3.Connection | None = None
        self._last_ns = 0  # of the last frame or heartbeat
        self._committed_boot_ns: int | None = None  # the last commit, while heartbeats are due
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
        make_folder(folder)
        _remove_orphans(folder)
        _undo_births(folder)
        known = state.journal()
        if known is not None:
            prune.finish(folder, known[2])
        paths = segments.paths(folder)
        found_id = examine(paths, known[0] if known else None)
        recorder_id = found_id or (known[0] if known else uuid.uuid4().hex[:12])
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
        still_ns = 0 if self._committed_boot_ns is None else _boot_ns() - self._committed_boot_ns
        if still_ns > _STALL_NS:
            events.append(self._event(Fact("stalled", {"for_ns": still_ns}), seq))
        for item in items:
            at_ns = self._time_of(item)
            in_order = isinstance(item, Received) or item.kind == "alive"  # other facts may have waited elsewhere
            if in_order and at_ns < last_ns - _STEP_BACK_NS:
                events.append(self._event(Fact("clock_step", {"from_ns": last_ns, "to_ns": at_ns}), seq))
                last_ns = at_ns - 1
            if isinstance(item, Received):
                seq, last_ns = seq + 1, max(last_ns + 1, at_ns)
                frames.append(NewFrame(seq, last_ns, item.conn, item.payload))
                continue
            events.append(self._event(replace(item, at_ns=at_ns), seq))
            last_ns = max(last_ns, at_ns) if in_order else last_ns
        try:
            self._roll_if_full()
            assert self._db is not None
            segments.append(self._db, frames, events)
        except JournalFull:
            self._beat()  # it does not stand still, it has no room
            raise
        self.last_seq, self._last_ns = seq, last_ns
        self._segment_bytes += sum(len(frame.payload) + 64 for frame in frames)
        gaps = self._fold(map(_as_event, events))
        self._beat(begin=bool(frames) or any(event.kind == "alive" for event in events))
        return Committed(seq, tuple(gaps))

    def _beat(self, *, begin: bool = False) -> None:
        """Note a sign of life; from the first frame or heartbeat on they are due, to the stop."""
        if begin or self._committed_boot_ns is not None:
            self._committed_boot_ns = None if self.stopped else _boot_ns()

    def _time_of(self, item: Received | Fact) -> int:
        if isinstance(item, Received):
            return item.received_ns
        return self._wall_ns() if item.at_ns is None else item.at_ns

    def _fold(self, events: Iterable[Event]) -> list[Gap]:
        """Learn what was just committed; return the gaps that it opened or closed."""
        gaps: list[Gap] = []
        for event in events:
            gaps += self.ledger.apply(event)
            if event.kind in {"start", "stop"}:
                self.stopped = event.kind == "stop"
            if event.kind == "defs":
                self._learn(event)
        return gaps if self.stopped else gaps + self.ledger.passed(self._last_ns)

    def define(self, definitions: Mapping[str, Definition]) -> Fact | None:
        """Return the fact that brings changed definitions into force, to be appended; None if none has changed.

        What a fact returned before will bring into force counts, appended yet or not.
        """
        latest = {**self.definitions, **self._defining}
        changed = [one for key, one in definitions.items() if latest.get(key) != one]
        self._defining.update((one.instrument_key, one) for one in changed)
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
            with segments.reading(path) as db:
                meta = segments.read_meta(db)
                if meta is None:
                    continue  # unborn; `create` makes it anew
                seq, segment_ns = segments.tail(db)
                clean = _ended_cleanly(db, default=clean)
            readable, last_ns = max(readable, seq or meta.first_seq - 1), segment_ns or last_ns
            if not meta.sealed:
                unsealed.append(path)
        born = [path for path in segments.paths(self._folder) if segments.is_born(path)]
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
        starts = list(survey.events(self._folder, ("start",)))
        if starts and starts[-1].body.get("purpose", RECORD) != RECORD:  # it was down before that already
            down = {name: starts[-1].body[name] for name in down}
        facts = [Fact("start", {**down, "boot": boot_id()})]
        if self.last_seq > readable:
            lost = {"from": readable + 1, "to": self.last_seq, "reason": "missing from the journal at start"}
            facts.insert(0, Fact("lost", lost))
        self.ledger, told = survey.ledger(self._folder)
        self._continue_or_begin(born)
        told += self.append(facts).gaps
        self.gaps = tuple({gap.key: gap for gap in told}.values())

    def _highest_seq(self, readable: int) -> int:
        """Return the highest seq that may have been used, as far as the state, or what was set aside, tells."""
        if self._state.journal() is not None:
            return self._state.highest_seq()
        # The state is lost too: a segment that was set aside may have held as many frames as one can.
        aside = [int(path.stem) for path in (self._folder / "damaged").rglob("*.db") if path.stem.isdigit()]
        return max((first_seq + segments.MAX_FRAMES for first_seq in aside if first_seq > readable), default=0)

    def _carry_over(self, newest: Path) -> None:
        """Learn the definitions in force and the last connection number from the newest segment."""
        with segments.reading(newest) as db:
            for event in segments.read_events(db, after_seq=0, up_to_seq=segments.NO_END, kinds=("defs", "conn")):
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
        if fact.kind == "conn" and isinstance(number := fact.body.get("conn"), int):
            self.last_conn = max(self.last_conn, number)
        at_ns = self._wall_ns() if fact.at_ns is None else fact.at_ns
        if fact.kind in {"start", "stop"} and self._purpose != RECORD:
            fact = replace(fact, body={**fact.body, "purpose": self._purpose})
        return NewEvent(after_seq, at_ns, _boot_ns(), fact.kind, fact.body)

    def _learn(self, event: Event) -> None:
        self.definitions |= {one.instrument_key: one for one in segments.definitions_of(event)}


def _boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Return the kernel's name for this boot: `boot_ns` of two events compare only within one."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _as_event(new: NewEvent) -> Event:
    return Event(after_seq=new.after_seq, at_ns=new.at_ns, boot_ns=new.boot_ns, kind=new.kind, body=new.body)


def examine(paths: Sequence[Path], known_id: str | None, *, walk: bool = True) -> str | None:
    """Pass segments that can be opened, and return the recorder that wrote them; None if there is none.

    Args:
        paths: the segments, oldest first.
        known_id: the recorder that the state belongs to; None if there is no state.
        walk: walk the logs too; only while no process writes to them.

    Raises:
        JournalDamaged: a segment's log is damaged beyond a torn tail, or it is no database.
        Refused: another version, or another recorder, wrote it.
    """
    for path in paths:
        if (found := _unreadable(path, walk=walk)) is not None:
            raise JournalDamaged(
                f"{path}: {found}; nothing was touched. Copy the journal folder to a safe place, then move "
                f"{path.name}, {path.name}-wal and {path.name}-shm into journal/damaged/ and start again"
            )
    found_id = _recorder_of(paths)
    if known_id is not None and found_id is not None and known_id != found_id:
        raise Refused(
            f"state.db belongs to recorder {known_id}, the journal to {found_id}: files of two data folders are mixed; "
            "restore the state.db that belongs here, or move it away (it will be rebuilt)"
        )
    return found_id


def _unreadable(path: Path, *, walk: bool) -> str | None:
    """Return what keeps a segment from being opened, None if nothing does. Its log is walked before SQLite sees it."""
    if walk and (found := wal.damage(path.with_name(path.name + "-wal"))) is not None:
        return found
    try:
        segments.is_born(path)
    except JournalDamaged as exc:
        return str(exc.__cause__)  # in SQLite's words; the caller names the file
    return None


def _recorder_of(paths: Sequence[Path]) -> str | None:
    for path in reversed(paths):
        with segments.reading(path) as db:
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


def _undo_births(folder: Path) -> None:
    """Roll back what a power cut interrupted before a segment's log was there; nothing can be read beside it.

    A new file is told by a rollback journal that it has a log; its removal is durable before anything is committed.
    """
    for path in folder.glob("[0-9]*.db-journal"):
        segment = path.with_name(path.name.removesuffix("-journal"))
        if segment.exists():
            with segments.damage_named(segment), closing(sqlite3.connect(segment)) as db:
                db.execute("PRAGMA user_version")  # SQLite plays it back before it reads anything
        path.unlink(missing_ok=True)
