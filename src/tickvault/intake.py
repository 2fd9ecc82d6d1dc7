"""From the feed to the journal: a bounded queue and a group commit.

The reader only enqueues. Whatever is queued is committed as one batch as soon as the previous commit is done; no timer
delays it. At the queue's bound the reader waits, so TCP holds the sender: nothing is dropped here.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import structlog

from tickvault.errors import JournalFull
from tickvault.journal import Fact, Received, boot_id
from tickvault.outbox import Notice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from tickvault.journal import Committed, Journal
    from tickvault.model import Gap
    from tickvault.state import State

__all__ = ["Intake", "Progress", "commit", "disk_notice", "gap_notices", "mend", "reconcile_gaps", "token_notices"]

_log: Final = structlog.get_logger(__name__)
_ALIVE_S: Final = 1.0  # a second without a frame commits a heartbeat
_FULL_PAUSE_S: Final = 1.0
_BATCH_BYTES: Final = 8 * 1024 * 1024  # of one commit
_NAMED: Final = 3  # instruments named in a message


class Progress:
    """How far the journal is, and a way to wait for more.

    Attributes:
        last_seq: the last durable seq.
        ended: nothing more will come.
    """

    def __init__(self, last_seq: int) -> None:
        self.last_seq = last_seq
        self.ended = False
        self._moved = asyncio.Condition()

    async def publish(self, last_seq: int) -> None:
        """Announce that everything up to `last_seq` is durable."""
        async with self._moved:
            self.last_seq = last_seq
            self._moved.notify_all()

    async def end(self) -> None:
        """Announce that nothing more will come."""
        async with self._moved:
            self.ended = True
            self._moved.notify_all()

    async def beyond(self, seq: int, *, timeout_s: float | None) -> None:
        """Wait until the journal holds a frame behind `seq`, nothing more will come, or the time is up."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._moved:
                await self._moved.wait_for(lambda: self.last_seq > seq or self.ended)


class Intake:
    """The queue between reader and journal (model.Inbox), and the task that empties it."""

    def __init__(self, *, max_frames: int, max_bytes: int, wall_ns: Callable[[], int]) -> None:
        self.waits = 0
        self.full = False
        self.held: str | None = None
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        self._wall_ns = wall_ns
        self._items: deque[Received | Fact] = deque()
        self._bytes = 0
        self._closed = False
        self._ending = threading.Event()  # nobody waits for room on the disk any more
        self._alive = Fact("alive", {"boot": boot_id()})
        self._changed = asyncio.Condition()

    @property
    def queued(self) -> int:
        """Number of frames and facts that wait for the journal."""
        return len(self._items)

    def hold(self, reason: str | None) -> None:
        """Journal nothing for the time being, as if the disk were full; None: go on. What is queued then waits."""
        self.held = reason

    async def frame(self, received_ns: int, conn: int, payload: bytes) -> None:
        """Queue one message; waits while the queue is at its bound."""
        await self._put(Received(received_ns, conn, payload), len(payload))

    async def fact(self, kind: str, body: Mapping[str, object]) -> None:
        """Queue one fact; waits while the queue is at its bound."""
        await self._put(Fact(kind, body, self._wall_ns()), 0)

    async def close(self) -> None:
        """Say that nothing more will come; `record` ends when the queue is empty."""
        self._ending.set()
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def record(self, journal: Journal, state: State, executor: Executor, progress: Progress) -> None:
        """Commit what is queued until the queue is closed and empty.

        Raises:
            JournalFull: the disk is full and has remained so to the end; what was queued is lost.

        Guarantees:
            When cancelled, what is queued is still committed before it returns.
        """
        loop = asyncio.get_running_loop()
        try:
            while not (self._closed and not self._items):
                items = await self._take() or [self._alive]
                # Not cancellable half way: the thread finishes its commit, and this task hears of it.
                future = loop.run_in_executor(executor, self._commit_patiently, journal, state, items)
                committed = await asyncio.shield(future)
                await progress.publish(committed.last_seq)
                if journal.log_is_long and not self._items:
                    # By itself SQLite does this within a commit, and the frames in it are announced that much later.
                    await asyncio.shield(loop.run_in_executor(executor, journal.tidy))
        finally:
            self._ending.set()
            rest = list(self._items)
            self._items.clear()
            # Queued behind the commit under way, if there is one: that too is done when this returns.
            executor.submit(lambda: commit(journal, state, rest) if rest else None).result()

    def _commit_patiently(self, journal: Journal, state: State, items: Sequence[Received | Fact]) -> Committed:
        """Commit; on a full disk wait for room. Meanwhile the queue fills, and reading stops at its bound."""
        since_ns, taken = 0, items
        while True:
            held = None if self._ending.is_set() else self.held  # what is queued at the end goes into the reserve
            try:
                committed = journal.wait(held) if held else commit(journal, state, items)
            except JournalFull as exc:
                if self._ending.is_set() and not held:
                    raise
                if not since_ns:
                    _log.error("journal.full", error=str(exc))
                    self.full = True
                    since_ns = self._wall_ns()
                elif items is taken and not self._has_room(1):  # reading stands still: that is a gap
                    full = Fact("disk_full", {"state": "full", "since_ns": since_ns, "detail": str(exc)})
                    room = Fact("disk_full", {"state": "room"})
                    items = [*taken, full, room]
                    if held:  # there is room to say so now
                        with suppress(JournalFull):
                            commit(journal, state, [full])
                            items = [*taken, room]
                self._ending.wait(_FULL_PAUSE_S)
            else:
                if since_ns:
                    self.full = False
                    _log.info("journal.room", waited_s=round((self._wall_ns() - since_ns) / 1e9, 1))
                return committed

    async def _put(self, item: Received | Fact, size: int) -> None:
        async with self._changed:
            if not self._has_room(size):
                self.waits += 1
                await self._changed.wait_for(lambda: self._has_room(size))
            self._items.append(item)
            self._bytes += size
            self._changed.notify_all()

    def _has_room(self, size: int) -> bool:
        return len(self._items) < self._max_frames and (not self._items or self._bytes + size <= self._max_bytes)

    async def _take(self) -> list[Received | Fact]:
        """Take what is queued, up to one commit's worth; empty after a second without anything."""
        try:
            async with asyncio.timeout(_ALIVE_S), self._changed:
                await self._changed.wait_for(lambda: bool(self._items) or self._closed)
                return await self._drain()
        except TimeoutError:
            return []

    async def _drain(self) -> list[Received | Fact]:
        taken: list[Received | Fact] = []
        size = 0
        while self._items and size < _BATCH_BYTES:
            item = self._items.popleft()
            size += len(item.payload) if isinstance(item, Received) else 0
            taken.append(item)
        self._bytes -= size
        self._changed.notify_all()
        return taken


def commit(journal: Journal, state: State, items: Sequence[Received | Fact]) -> Committed:
    """Append to the journal and bring the gap ledger and its events up to date; in the journal's thread."""
    committed = journal.append(items)
    recorder_id, seq = journal.recorder_id, committed.last_seq
    of_tokens = token_notices((one for one in items if isinstance(one, Fact)), recorder_id=recorder_id, seq=seq)
    if committed.gaps or of_tokens:
        notices = gap_notices(committed.gaps, known=state.known(committed.gaps), recorder_id=recorder_id, seq=seq)
        now_ns = max(*(_time_of(gap) for gap in committed.gaps), *(one.from_ns for one in of_tokens), 0)
        try:
            state.put_gaps(committed.gaps, notices=[*notices, *of_tokens], now_ns=now_ns)
        except JournalFull as exc:
            # The items are journalled and must not be again; the next start folds the ledger from them.
            _log.warning("gaps.unwritten", error=str(exc))
    return committed


def mend(journal: Journal, state: State, path: Path, reason: str) -> None:
    """Replace a damaged segment by what is whole in it, and bring the ledger up to date; in the journal's thread.

    Raises:
        JournalFull: no room; it is as it was.
    """
    gaps = journal.mend(path, reason)
    notices = gap_notices(gaps, known=state.gaps(), recorder_id=journal.recorder_id, seq=journal.last_seq)
    state.put_gaps(gaps, notices=notices, now_ns=max(map(_time_of, gaps), default=0))


def reconcile_gaps(journal: Journal, state: State, now_ns: int) -> None:
    """Bring the state's gaps up to the journal's: what a crash kept from being written, and the `start` just made."""
    known = {gap.key: gap for gap in state.gaps()}
    told = {gap.key for gap in journal.gaps}
    changed = [gap for gap in journal.gaps if known.get(gap.key) != gap]
    # Open in the state and not in the journal, which was pruned, or is another one's: nothing will ever close it.
    orphans = [gap for key, gap in known.items() if gap.closed_ns is None and key not in told]
    changed += [replace(gap, closed_ns=max(gap.opened_ns, now_ns)) for gap in orphans]
    if changed:
        notices = gap_notices(changed, known=known.values(), recorder_id=journal.recorder_id, seq=journal.last_seq)
        state.put_gaps(changed, notices=notices, now_ns=now_ns)


def gap_notices(gaps: Sequence[Gap], *, known: Iterable[Gap], recorder_id: str, seq: int) -> list[Notice]:
    """Return the webhook events of gaps, one when each opens and one when it closes.

    Their ids follow from the gap, so that a repeat is the same event. A gap in `known` that only tells more of its cause
    now is no event: an outage in which the broker fails in changing ways is one. Instruments that go, or come back, at
    one moment are one event: there may be thousands.
    """
    notices: list[Notice] = []
    together: dict[tuple[str, int, str], list[Gap]] = {}
    told = {(gap.scope, gap.subject, gap.opened_ns): gap.closed_ns for gap in known}
    for gap in gaps:
        key = (gap.scope, gap.subject, gap.opened_ns)
        if key in told and (told[key] is None) == (gap.closed_ns is None):
            continue
        told[key] = gap.closed_ns
        event = "gap.opened" if gap.closed_ns is None else "gap.closed"
        if gap.scope == "instrument":
            together.setdefault((event, _time_of(gap), gap.reason), []).append(gap)
            continue
        name = f"{recorder_id}:{event}:{gap.scope}:{gap.subject}:{gap.opened_ns}"
        message = f"{gap.scope} gap: {gap.reason}" + (f" ({gap.detail})" if gap.detail else "")
        notices.append(_notice(event, name, seq, gap.opened_ns, _time_of(gap), message))
    for (event, at_ns, reason), some in together.items():
        some.sort(key=lambda one: one.subject)
        name = f"{recorder_id}:{event}:instrument:{some[0].subject}:{at_ns}:{len(some)}"
        subjects = ", ".join(one.subject for one in some[:_NAMED]) + (", …" if len(some) > _NAMED else "")
        message = f"instrument gap: {reason} ({len(some):,}: {subjects})"
        notices.append(_notice(event, name, seq, min(one.opened_ns for one in some), at_ns, message))
    return notices


def disk_notice(text: str, *, recorder_id: str, seq: int, at_ns: int) -> Notice:
    """Return the webhook event of a disk that has less free than its reserve."""
    return _notice("disk.low", f"{recorder_id}:disk.low:{at_ns}", seq, at_ns, at_ns, text)


def token_notices(facts: Iterable[Fact], *, recorder_id: str, seq: int) -> list[Notice]:
    """Return the webhook events of what is journalled of tokens; a warning that comes again after a restart is the same."""
    notices = []
    for fact in facts:
        body, at_ns = fact.body, fact.at_ns or 0
        match fact.kind, body.get("state"), body.get("reason"):
            case "conn", "failed", "token_rejected" if not body.get("again"):
                event, name, to_ns = "token.rejected", str(at_ns), at_ns
                message = f"{body.get('detail')}; nothing is recorded until there is another: `tickvault token set`"
            case "token", "refused", _:
                event, name, to_ns = "token.rejected", str(at_ns), at_ns
                message = f"{body.get('detail')}; recording goes on with the token before it: `tickvault token set`"
            case "token", "expiring", _:
                event, name = "token.expiring", f"{body.get('expires_ns')}:{body.get('mark')}"
                to_ns = int(str(body.get("expires_ns")))
                message = f"the access token ends at {body.get('ends')}; put a new one in place: `tickvault token set`"
            case _:
                continue
        notices.append(_notice(event, f"{recorder_id}:{event}:{name}", seq, at_ns, to_ns, message))
    return notices


def _notice(event: str, name: str, seq: int, from_ns: int, to_ns: int, message: str) -> Notice:
    """Return an event that no sink is behind, with an id that follows from its name."""
    return Notice(
        event=event,
        sink="",
        high_water_seq=seq,
        rows=0,
        from_ns=from_ns,
        to_ns=to_ns,
        message=message,
        id=str(uuid.uuid5(uuid.NAMESPACE_OID, name)),
    )


def _time_of(gap: Gap) -> int:
    return gap.opened_ns if gap.closed_ns is None else gap.closed_ns
