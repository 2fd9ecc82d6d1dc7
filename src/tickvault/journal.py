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

import time
import uuid
from collections import ChainMap
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, Self

import structlog

from tickvault import pages, prune, salvage, segments, survey
from tickvault.durable import make_folder
from tickvault.errors import JournalDamaged, JournalFull
from tickvault.ledger import Ledger
from tickvault.mending import born, ended_cleanly, examine, mend, remove_orphans, undo_births
from tickvault.model import Event
from tickvault.segments import NewEvent, NewFrame

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tickvault.model import Definition, Gap
    from tickvault.state import State

__all__ = ["Committed", "Fact", "Journal", "Received", "boot_id"]

_log: Final = structlog.get_logger(__name__)
_STEP_BACK_NS: Final = 1_000_000_000  # a clock set back by more is believed, and journalled
_STALL_NS: Final = 3_000_000_000  # so long without a commit: the process or the machine stood still
_LOG_BYTES: Final = 4 * 1024 * 1024
_COMMIT_BYTES: Final = 3 * pages.PAGE_SIZE  # that a commit logs besides what it holds
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
        # The last commit, while heartbeats are due: time since boot, and the wall clock's.
        self._committed_ns: tuple[int, int] | None = None
        self._segment_bytes = 0
        self._log_bytes = 0
        self._segment_first = 1
        self._mended: set[Path] = set()

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
            JournalDamaged: a segment could not be mended.
            JournalFull: no room.
            Refused: another version, or another recorder, wrote it.
        """
        make_folder(folder)
        salvage.finish(folder)
        remove_orphans(folder)
        undo_births(folder)
        known = state.journal()
        known_id = known[0] if known else None
        mended: set[Path] = set()
        while True:
            try:
                if known is not None:
                    prune.finish(folder, known[2])
                paths = segments.paths(folder)
                found_id = examine(paths, known_id)
                paths = born(paths, state_known=known is not None)
                recorder_id = found_id or known_id or uuid.uuid4().hex[:12]
                journal = cls(folder, state, recorder_id=recorder_id, wall_ns=wall_ns, purpose=purpose)
                journal._recover(paths)
            except JournalDamaged as exc:
                if exc.path is None or exc.path in mended:
                    raise
                mended.add(exc.path)
                mend(exc.path, str(exc), recorder=known_id)
            else:
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
        if (stalled := self._stalled()) is not None:
            events.append(self._event(stalled, seq))
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
        size = sum(len(frame.payload) + 64 for frame in frames)
        self._segment_bytes += size
        self._log_bytes += size + _COMMIT_BYTES
        gaps = self._fold(map(_as_event, events))
        self._beat(begin=bool(frames) or any(event.kind == "alive" for event in events))
        return Committed(seq, tuple(gaps))

    @property
    def log_is_long(self) -> bool:
        """Whether so much was committed since the last `tidy` that another is due; may be asked from any thread."""
        return self._log_bytes >= _LOG_BYTES

    def tidy(self) -> None:
        """Move what is committed from the segment's log into its file; to be called while nothing waits for a commit.

        Otherwise SQLite does it by itself within a commit, when the log is four times as long.
        """
        if self._db is not None:
            segments.checkpoint(self._db)
        self._log_bytes = 0

    def wait(self, reason: str) -> NoReturn:
        """Take part in waiting for room as a failed append does: it does not stand still.

        Raises:
            JournalFull: always.
        """
        self._beat()
        raise JournalFull(reason)

    def roll(self) -> None:
        """End the segment that is being written, if it holds frames; the next append begins another.

        Raises:
            JournalFull: no room; it goes on.
        """
        if self._db is not None and self.last_seq >= self._segment_first:
            segments.seal(self._db)
            self._db.close()
            self._db = None
            self._begin_segment()

    def _beat(self, *, begin: bool = False) -> None:
        """Note a sign of life; from the first frame or heartbeat on they are due, to the stop."""
        if begin or self._committed_ns is not None:
            self._committed_ns = None if self.stopped else (_boot_ns(), self._wall_ns())

    def _stalled(self) -> Fact | None:
        """Return the fact that nothing was committed for too long, by the time since boot or by the wall clock."""
        if self._committed_ns is None:
            return None
        boot_ns, wall_ns = self._committed_ns
        still_ns, passed_ns = _boot_ns() - boot_ns, self._wall_ns() - wall_ns
        if passed_ns - still_ns > _STALL_NS:  # nobody has lived through the time that it skipped
            return Fact("stalled", {"for_ns": passed_ns, "set_forward_ns": passed_ns - still_ns})
        return Fact("stalled", {"for_ns": still_ns}) if still_ns > _STALL_NS else None

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
        latest = ChainMap(self._defining, self.definitions)
        changed = [one for key, one in definitions.items() if latest.get(key) != one]
        self._defining.update((one.instrument_key, one) for one in changed)
        return Fact("defs", segments.defs_body(changed)) if changed else None

    def forget(self, definitions: Mapping[str, Definition]) -> None:
        """Take back what `define` returned a fact for: it will not be appended."""
        for key in definitions:
            self._defining.pop(key, None)

    def mend(self, path: Path, reason: str) -> tuple[Gap, ...]:
        """Set a damaged segment aside while the recorder runs, and keep what is whole of it; return the gaps.

        The one that is being written to is ended first; the next append begins another, unless it holds no frame yet.

        Raises:
            JournalFull: no room; it is as it was.
        """
        if path in self._mended or self._is_pruned(path):
            return ()
        if self._db is not None and path == self._segment_path():
            self._db.close()
            self._db = None
        empty = path == self._segment_path() and self.last_seq < self._segment_first  # and is gone on with
        try:
            done = mend(path, reason, recorder=self.recorder_id, end_seq=None if empty else self.last_seq)
        finally:
            if empty:
                self._db = segments.writer(path)
        self._mended.add(path)
        return tuple(self._fold(map(_as_event, done.events))) if done is not None else ()

    def _is_pruned(self, path: Path) -> bool:
        """Tell whether a segment is being removed, or is gone: what a reader then meets is no damage."""
        known = self._state.journal()
        return known is not None and path.stem.isdigit() and int(path.stem) < known[2]

    def _segment_path(self) -> Path:
        return segments.path_of(self._folder, self._segment_first)

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
            with suppress(JournalFull):  # should the segment be damaged later, this tells how far it went
                self._state.raise_head_seq(self.last_seq)

    def _recover(self, paths: list[Path]) -> None:
        last_ns, clean, readable = 0, False, 0
        unsealed: list[Path] = []
        for path in paths:
            with segments.reading(path) as db:
                meta = segments.read_meta(db)
                assert meta is not None
                seq, segment_ns = segments.tail(db)
            clean = ended_cleanly(path, default=clean)
            readable, last_ns = max(readable, seq or meta.first_seq - 1), segment_ns or last_ns
            if not meta.sealed:
                unsealed.append(path)
        self.first_seq = int(paths[0].stem) if paths else 1
        self.last_seq = max(readable, self._highest_seq(int(paths[-1].stem) if paths else 0))
        for path in unsealed:
            if int(path.stem) <= self.last_seq:  # a newest one without a frame is gone on with
                with closing(segments.writer(path)) as db:
                    segments.seal(db)
        self._last_ns = last_ns
        if paths:
            self._carry_over(paths[-1])
        self._state.set_journal(self.recorder_id, head_seq=self.last_seq, first_seq=self.first_seq)
        down: dict[str, object] = {"last_ns": last_ns, "clean": clean}
        starts = list(survey.events(self._folder, ("start",)))
        if starts and starts[-1].body.get("purpose", RECORD) != RECORD:  # it was down before that already
            down = {name: starts[-1].body[name] for name in down}
        facts = [Fact("lost", body) for body in survey.holes(self._folder, self.last_seq)]
        if facts:
            _log.warning("journal.missing", lost=[f"{one.body['from']}-{one.body['to']}" for one in facts])
        facts.append(Fact("start", {**down, "boot": boot_id()}))
        self.ledger, told = survey.ledger(self._folder)
        self._continue_or_begin(paths)
        told += self.append(facts).gaps
        self.gaps = tuple({gap.key: gap for gap in told}.values())

    def _highest_seq(self, newest: int) -> int:
        """Return the highest seq that may have been used, as far as the state, or what was set aside, tells."""
        known = self._state.journal()
        if known is not None and known[1] >= newest - 1:
            return self._state.highest_seq()
        # The state is lost too, or of yesterday: what was set aside may have held as many frames as a segment can.
        aside = [int(path.stem) for path in (self._folder / "damaged").rglob("*.db") if path.stem.isdigit()]
        return max(self._state.highest_seq(), *(one + segments.MAX_FRAMES for one in aside if one >= newest), 0)

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
        self._segment_bytes = self._log_bytes = 0

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
