"""Intake: bounded, in order, and nothing that was queued is lost, whatever ends it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from doubles import AT_NS, frames_of
from structlog.testing import capture_logs

from tickvault import intake as intakes
from tickvault.errors import JournalFull
from tickvault.intake import Intake, Progress
from tickvault.journal import Fact, Journal, Received
from tickvault.model import Gap
from tickvault.state import State
from tickvault.survey import events

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tickvault.journal import Committed


class Gate(Journal):
    """A journal whose appends wait at a gate, and may find the disk full."""

    gate: threading.Event
    full = 0
    batches: list[int]

    def append(self, items: Any) -> Committed:
        if hasattr(self, "gate"):
            assert self.gate.wait(10)
            if self.full:
                self.full -= 1
                raise JournalFull("no room")
            self.batches.append(len(items))
        return super().append(items)


class Desk:
    """A queue, the task that empties it, and where it empties it to."""

    def __init__(self, path: Path, **bounds: Any) -> None:
        self.folder = path / "journal"
        self.state, _ = State.open(path / "state.db", events=None)
        self.journal = Gate.open(self.folder, self.state)
        self.journal.batches = []
        self.journal.gate = threading.Event()
        self.journal.gate.set()
        self.executor = ThreadPoolExecutor(1)
        self.progress = Progress(self.journal.last_seq)
        self.intake = Intake(**{"max_frames": 100, "max_bytes": 10**6, "wall_ns": lambda: AT_NS, **bounds})

    def record(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.intake.record(self.journal, self.state, self.executor, self.progress))

    async def frames(self, *numbers: int, size: int = 8) -> None:
        for number in numbers:
            await self.intake.frame(AT_NS + number, 1, number.to_bytes(size, "big"))

    def journalled(self) -> list[int]:
        return [int.from_bytes(frame.payload, "big") for frame in frames_of(self.folder)]

    def close(self) -> None:
        self.journal.gate.set()
        self.executor.shutdown()
        self.journal.close()
        self.state.close()


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    await asyncio.to_thread(desk.close)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def test_what_is_queued_is_journalled_in_order(desk: Desk) -> None:
    """Facts keep their place between the frames; progress is told once it is durable."""
    task = desk.record()
    await desk.intake.fact("conn", {"conn": 1, "state": "open"})
    await desk.frames(1, 2)
    await desk.intake.fact("conn", {"conn": 1, "state": "closed", "reason": "eof"})
    await desk.frames(3)
    await desk.progress.beyond(2, timeout_s=10)
    assert desk.progress.last_seq > 2
    await desk.intake.close()
    await task
    assert desk.journalled() == [1, 2, 3]
    [closed] = [one for one in events(desk.folder, ("conn",)) if one.body["state"] == "closed"]
    assert (closed.after_seq, closed.at_ns) == (2, AT_NS)
    assert [gap.reason for gap in desk.state.gaps() if gap.closed_ns is None] == ["disconnected"]


async def test_a_group_is_committed_as_soon_as_the_one_before_is_done(desk: Desk) -> None:
    """While a commit is under way what arrives gathers, and is one commit."""
    desk.journal.gate.clear()
    task = desk.record()
    await desk.frames(1)
    await until(lambda: desk.intake.queued == 0)
    await desk.frames(*range(2, 12))
    desk.journal.gate.set()
    await desk.progress.beyond(10, timeout_s=10)
    assert desk.progress.last_seq > 10
    await desk.intake.close()
    await task
    assert desk.journal.batches[:2] == [1, 10]


@pytest.mark.parametrize(("bounds", "fits"), [({"max_frames": 3}, 3), ({"max_bytes": 32}, 4), ({"max_bytes": 5}, 1)])
async def test_at_the_bound_the_reader_waits_and_nothing_is_dropped(
    tmp_path: Path, bounds: dict[str, int], fits: int
) -> None:
    """By frames or by bytes; a frame larger than the bound passes alone."""
    desk = Desk(tmp_path, **bounds)
    feeding = asyncio.create_task(desk.frames(*range(1, 21)))
    await until(lambda: desk.intake.waits == 1)
    assert desk.intake.queued == fits
    task = desk.record()
    async with asyncio.timeout(10):
        await feeding
        await desk.intake.close()
        await task
    assert desk.journalled() == list(range(1, 21))
    assert max(desk.journal.batches) <= fits
    await asyncio.to_thread(desk.close)


async def test_a_cancelled_recorder_still_journals_what_is_queued(desk: Desk) -> None:
    """Both the commit under way and the queue behind it."""
    desk.journal.gate.clear()
    task = desk.record()
    await desk.frames(1)
    await until(lambda: desk.intake.queued == 0)
    await desk.frames(*range(2, 31))
    task.cancel()
    threading.Timer(0.05, desk.journal.gate.set).start()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert desk.journalled() == list(range(1, 31))


@pytest.mark.parametrize("turns", range(8))
async def test_a_recorder_cancelled_at_any_moment_loses_nothing(desk: Desk, turns: int) -> None:
    """Between taking and committing there is no place to be cancelled at."""
    task = desk.record()
    await desk.frames(*range(1, 6))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    if turns:  # before its first step a task is not begun, and its queue is nobody's
        assert desk.journalled() == [1, 2, 3, 4, 5]


async def test_a_feed_that_fails_loses_nothing_that_it_left(desk: Desk) -> None:
    """As the pipeline does it: the failure is caught, the queue closed, and emptied."""

    async def feed() -> None:
        await desk.frames(*range(1, 51))
        raise RuntimeError("broken")

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(desk.intake.record(desk.journal, desk.state, desk.executor, desk.progress))
        try:
            await feed()
        except RuntimeError:
            pass
        finally:
            await desk.intake.close()
    assert desk.journalled() == list(range(1, 51))


async def test_a_full_disk_is_waited_for(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was taken from the queue is committed when there is room, once."""
    monkeypatch.setattr(intakes, "_FULL_PAUSE_S", 0.01)
    desk.journal.full = 3
    task = desk.record()
    await desk.frames(1, 2)
    await desk.progress.beyond(1, timeout_s=10)
    assert desk.progress.last_seq > 1
    await desk.intake.close()
    await task
    assert desk.journalled() == [1, 2]


async def test_a_disk_that_stays_full_does_not_keep_a_recorder_from_ending(desk: Desk) -> None:
    """Asked to end, it says that what is queued is lost, and ends."""
    desk.journal.full = 10**6
    task = desk.record()
    await desk.frames(1)
    await until(lambda: desk.journal.full < 10**6)
    await desk.intake.close()
    async with asyncio.timeout(10):
        with pytest.raises(JournalFull):
            await task
    desk.journal.full = 0


async def test_room_for_frames_but_not_for_gaps_journals_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger can be folded again; the frames must not be appended again."""

    def full(*_: object, **__: object) -> None:
        raise JournalFull("no room")

    monkeypatch.setattr(desk.state, "put_gaps", full)
    task = desk.record()
    await desk.intake.fact("conn", {"conn": 1, "state": "open"})
    await desk.frames(1, 2)
    await desk.intake.close()
    await task
    assert desk.journalled() == [1, 2]


async def test_a_quiet_second_is_journalled_as_alive(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the end of a killed recorder is known to the second."""
    monkeypatch.setattr(intakes, "_ALIVE_S", 0.01)
    task = desk.record()
    await until(lambda: len(list(events(desk.folder, ("alive",)))) >= 3)
    await desk.intake.close()
    await task


async def test_a_full_disk_at_which_reading_stood_still_is_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first commit that failed to the one that did not."""
    monkeypatch.setattr(intakes, "_FULL_PAUSE_S", 0.01)
    desk = Desk(tmp_path, max_frames=1)
    task = desk.record()
    desk.journal.gate.clear()
    await desk.frames(1)
    reader = asyncio.create_task(desk.frames(2, 3))
    await until(lambda: desk.intake.waits > 0)
    desk.journal.full = 3
    desk.journal.gate.set()
    with capture_logs() as logs:
        await reader
        await desk.intake.close()
        await task
    assert [one["event"] for one in logs] == ["journal.full", "journal.room"]
    assert desk.journalled() == [1, 2, 3]
    facts = list(events(desk.folder, ("disk_full",)))
    await asyncio.to_thread(desk.close)
    assert [(one.after_seq, one.body["state"]) for one in facts] == [(1, "full"), (1, "room")]


async def test_waiting_for_progress_ends_with_the_time_or_the_frame() -> None:
    """A waiter hears of a frame behind its own, and of nothing else."""
    progress = Progress(5)
    await progress.beyond(4, timeout_s=None)
    await progress.beyond(5, timeout_s=0.01)
    waiting = asyncio.create_task(progress.beyond(6, timeout_s=None))
    await asyncio.sleep(0)
    await progress.publish(6)
    await asyncio.sleep(0)
    assert not waiting.done()
    await progress.publish(7)
    await waiting


async def test_waiting_for_progress_ends_with_intake() -> None:
    """When nothing more will come nobody waits for it, neither then nor later."""
    progress = Progress(5)
    waiting = asyncio.create_task(progress.beyond(5, timeout_s=None))
    await asyncio.sleep(0)
    await progress.end()
    await waiting
    await progress.beyond(5, timeout_s=None)


def test_the_gap_of_a_notice_gives_it_its_id() -> None:
    """The same gap found again is the same event."""
    gap = Gap(scope="connection", subject="feed", opened_ns=5, closed_ns=None, reason="r", planned=False, detail="d")
    [one] = intakes.gap_notices([gap], known=(), recorder_id="r", seq=1)
    [two] = intakes.gap_notices([gap], known=(), recorder_id="r", seq=9)
    [other] = intakes.gap_notices([gap], known=(), recorder_id="s", seq=1)
    assert one.id == two.id != other.id
    assert (one.event, one.message) == ("gap.opened", "connection gap: r (d)")


def test_a_gap_is_told_of_when_it_opens_and_when_it_closes() -> None:
    """What is learnt of its cause in between is no event: it would come under an id that has been dealt with."""
    gap = Gap(scope="connection", subject="feed", opened_ns=5, closed_ns=None, reason="r", planned=False, detail="d")
    other, closed = replace(gap, detail="another cause"), replace(gap, closed_ns=9)

    def told(gaps: list[Gap], known: list[Gap]) -> list[str]:
        return [one.event for one in intakes.gap_notices(gaps, known=known, recorder_id="r", seq=1)]

    assert told([gap, other, closed], []) == ["gap.opened", "gap.closed"]
    assert told([other], [gap]) == []
    assert told([other, closed], [gap]) == ["gap.closed"]
    assert told([replace(closed, detail="x")], [closed]) == []
    assert told([replace(gap, opened_ns=6)], [gap]) == ["gap.opened"]


def test_what_is_queued_is_what_is_journalled() -> None:
    """The two kinds of items."""
    assert Received(1, 2, b"x").payload == b"x"
    assert Fact("alive", {}).at_ns is None


def test_instruments_that_go_and_come_together_are_one_event() -> None:
    """There may be thousands; each moment's are told once, under an id that follows from them."""
    gaps = [
        Gap(
            scope="instrument", subject=f"NSE_EQ|{n:04}", opened_ns=5 + n % 2, closed_ns=None, reason="r", planned=False,
            detail="d",
        )
        for n in range(5000)
    ]  # fmt: skip
    one, two = intakes.gap_notices(gaps, known=(), recorder_id="r", seq=1)
    assert (one.event, one.from_ns, one.to_ns) == ("gap.opened", 5, 5)
    assert one.message == "instrument gap: r (2,500: NSE_EQ|0000, NSE_EQ|0002, NSE_EQ|0004, …)"
    again = intakes.gap_notices(gaps[::-1], known=(), recorder_id="r", seq=1)
    assert {other.id for other in again} == {one.id, two.id}
    over = [replace(gap, closed_ns=9) for gap in gaps]
    [closed] = intakes.gap_notices(over, known=gaps, recorder_id="r", seq=1)
    assert (closed.event, closed.from_ns, closed.to_ns) == ("gap.closed", 5, 9)
    assert closed.id not in {one.id, two.id}


async def test_held_it_journals_nothing_and_says_so_where_reading_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gap is open while it is held, since the reserve has room for that; what waits is journalled afterwards."""
    monkeypatch.setattr(intakes, "_FULL_PAUSE_S", 0.01)
    desk = Desk(tmp_path, max_frames=1)
    desk.intake.hold("less than the reserve is free")
    task = desk.record()
    reader = asyncio.create_task(desk.frames(1, 2, 3))
    await until(lambda: any(gap.closed_ns is None and gap.reason == "disk_full" for gap in desk.state.gaps()))
    assert desk.journalled() == []
    desk.intake.hold(None)
    await reader
    await desk.intake.close()
    await task
    assert desk.journalled() == [1, 2, 3]
    assert not any(gap.closed_ns is None and gap.reason == "disk_full" for gap in desk.state.gaps())
    await asyncio.to_thread(desk.close)


async def test_what_is_queued_at_the_end_goes_into_the_reserve(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held to the end, a stop loses nothing."""
    monkeypatch.setattr(intakes, "_FULL_PAUSE_S", 0.01)
    desk.intake.hold("less than the reserve is free")
    task = desk.record()
    await desk.frames(1, 2, 3)
    await until(lambda: desk.intake.full)
    await desk.intake.close()
    await task
    assert desk.journalled() == [1, 2, 3]


async def test_frames_are_announced_before_the_log_is_tidied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moving the log into the file takes as long as twenty commits; nobody who waits for a commit waits for it."""
    begun, gate = threading.Event(), threading.Event()
    tidy = Journal.tidy

    def slow(journal: Journal) -> None:
        begun.set()
        assert gate.wait(10)
        tidy(journal)

    monkeypatch.setattr(Journal, "tidy", slow)
    desk = Desk(tmp_path, max_bytes=10**8)
    recording = desk.record()
    await desk.frames(1, size=5_000_000)
    assert await asyncio.to_thread(begun.wait, 10)
    assert desk.progress.last_seq == 1
    await desk.frames(2)
    gate.set()
    await desk.progress.beyond(1, timeout_s=10)
    assert not desk.journal.log_is_long
    await desk.intake.close()
    await recording
    assert desk.journalled() == [1, 2]
    desk.close()
