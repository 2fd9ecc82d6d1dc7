"""Plays a script of the simulator to a whole recorder in this process and in virtual time, and keeps what comes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import aiohttp
import simulated
from doubles import frames_of
from programs import environ_for
from structlog.testing import capture_logs

from tickvault import journal, pipeline
from tickvault.brokers.upstox import definitions, instruments
from tickvault.brokers.upstox.calendar import MarketCalendar
from tickvault.brokers.upstox.feed import Feed, FeedState
from tickvault.brokers.upstox.instruments import InstrumentList
from tickvault.brokers.upstox.plan import RateLimit
from tickvault.pipeline import Outcome, Recorder
from tickvault.settings import load_settings
from tickvault.simulator import Simulator, SimulatorSettings, load_script
from tickvault.survey import events, ledger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
    from pathlib import Path

    import pytest

    from tickvault.model import Event

FACTS = ("conn", "sub", "unsub", "watch", "token", "calendar", "defs", "start", "stop")
# A Monday on which everything is open round the clock; no token is renewed at eleven.
MONDAY = "2026-10-05T11:00"


class NotedLimit(RateLimit):
    """A rate limit that tells its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.called_s: list[float] = []

    def note(self, now_s: float) -> None:
        super().note(now_s)
        self.called_s.append(now_s)

    @property
    def is_kept(self) -> bool:
        """Whether no window had more calls than it may."""
        later = zip(self.called_s, self.called_s[self.calls :], strict=False)
        return all(last_s - first_s >= self.window_s for first_s, last_s in later)


@dataclass(slots=True, kw_only=True)
class Played:
    """A recorder that a script is played to.

    Attributes:
        simulator: the broker.
        recorder: ours; `task` runs it.
        logs: what it says.
        limit: of its authorize calls.
        data: its data folder.
        refreshed: of each comparison of its master list, whether it was another one.
        calendars: what it knows of the exchanges' hours; one.
        guests: plain clients; `guest` connects another one.
        outcome: what it says it did, when it has stopped; `facts`, `gaps` and their `subjects` are then the journal's.
        missing: connection → frames at its end that were sent and did not arrive; what did is what was sent, in order.
    """

    simulator: Simulator
    recorder: Recorder
    logs: list[Any]
    limit: NotedLimit
    data: Path
    refreshed: list[bool]
    calendars: list[MarketCalendar]
    guests: list[contextlib.AsyncExitStack]
    guest: Callable[[], Awaitable[None]]
    begin: Callable[[], None]
    task: asyncio.Task[Outcome]
    outcome: Outcome = field(default_factory=Outcome)
    facts: list[Event] = field(default_factory=list)
    gaps: list[tuple[str, str]] = field(default_factory=list)
    subjects: set[str] = field(default_factory=set)
    frames: Mapping[int, list[bytes]] = field(default_factory=dict)
    missing: Mapping[int, int] = field(default_factory=dict)

    @property
    def calendar(self) -> MarketCalendar:
        return self.calendars[0]

    @property
    def feeds(self) -> list[Feed]:
        sockets = self.recorder._sockets
        return sockets.feeds if sockets else []

    @property
    def feed(self) -> Feed:
        return self.feeds[0]

    @property
    def alarms(self) -> set[str]:
        """The events that it warned of."""
        return {one["event"] for one in self.logs if one["log_level"] not in ("debug", "info")}

    def said(self, event: str) -> list[Any]:
        return [one for one in self.logs if one["event"] == event]

    def of(self, kind: str, state: str | None = None) -> list[Mapping[str, Any]]:
        return [one.body for one in self.facts if one.kind == kind and state in (None, one.body.get("state"))]

    async def until(self, condition: Callable[[], object], what: str, within_s: float = 900.0) -> None:
        """Wait; time is a failure, and so is an end of the recorder."""
        try:
            async with asyncio.timeout(within_s):
                while not condition():
                    assert not self.task.done(), f"{what}: the recorder ended: {self.task}"
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"{what}: not within {within_s} s; it said: {self.logs[-12:]}") from None

    async def live(self, opened: int = 1) -> None:
        """Wait until so many connections have been opened, and the last ones serve."""

        def serves() -> bool:
            return len(self.said("feed.open")) >= opened and all(one.state is FeedState.LIVE for one in self.feeds)

        await self.until(serves, f"live for the {opened}. time")

    async def more(self, frames: int = 6) -> None:
        """Wait for some more frames."""
        upto = sum(feed.frames for feed in self.feeds) + frames
        await self.until(lambda: sum(feed.frames for feed in self.feeds) >= upto, f"{frames} more frames")

    def look(self, log: Path) -> None:
        """Read what is left in the journal, and hold it against what was sent."""
        folder = self.data / "journal"
        sent, frames = defaultdict(list), defaultdict(list)
        for line in log.read_text().splitlines():
            one = json.loads(line)
            sent[one["conn"]].append(base64.b64decode(one["payload"]))
        for frame in frames_of(folder):
            frames[frame.conn].append(frame.payload)
        self.frames, self.missing = frames, {}
        for conn, got in frames.items():
            sources = [number for number, of in sent.items() if of[: len(got)] == got]
            assert sources, f"connection {conn}: other frames than were sent"
            self.missing[conn] = len(sent.pop(sources[0])) - len(got)
        self.facts = list(events(folder, FACTS))
        closed = [one for one in ledger(folder)[1] if one.closed_ns is not None]
        self.gaps = [(one.scope, one.reason) for one in closed]
        self.subjects = {one.subject for one in closed}


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Let a recorder look at lists again soon: scripts change them within seconds."""
    for module, name in (
        (definitions, "_PAUSE_S"), (instruments, "RETRY_AFTER_S"), (instruments, "REFRESH_AFTER_S"),
    ):  # fmt: skip
        patch.setattr(module, name, 2.0)


@contextlib.asynccontextmanager
async def playing(
    name: str,
    folder: Path,
    patch: pytest.MonkeyPatch,
    *,
    begin: str = "live",
    speed: float | None = 1.0,
    choose: Callable[[tuple[str, ...]], Iterable[str]] = tuple,
    environ: Mapping[str, str] | None = None,
    guests: int = 0,
    **settings: Any,
) -> AsyncIterator[Played]:
    """Record from a simulator, play a built-in script to it, stop at the end of the block, and look at what is left.

    Args:
        name: of the script.
        folder: an empty one.
        patch: looks on, and lets lists be compared often.
        begin: when the script does: before the `start` of the recorder, when its first `feed` is made and is about to
            authorize, or when the caller calls `begin`, the feed being `live`.
        speed: of the simulation, whose wall clock is the recorder's too; None: the script's own.
        choose: what to record, of the simulator's instruments.
        environ: more of the recorder's settings.
        guests: so many other clients are connected before.
        settings: of the simulator.
    """
    script, log = load_script(name), folder / "sent.log"
    pace = speed or script.speed or 1.0
    patch.setattr(journal, "_STALL_NS", int(pace * 3e9))  # a wall clock that runs fast is not one that is set
    begun = False

    def play() -> None:
        nonlocal begun
        if not begun:
            begun = True
            simulator.play(*script.steps)

    def make_feed(**arguments: Any) -> Feed:
        if begin == "feed":
            play()
        return Feed(**arguments)

    limit = NotedLimit()
    refreshed: list[bool] = []
    calendars: list[MarketCalendar] = []

    async def refresh(self: InstrumentList, keys: Collection[str] = ()) -> bool:
        refreshed.append(await ordinary_refresh(self, keys))
        return refreshed[-1]

    def make_calendar(*arguments: Any, **named: Any) -> MarketCalendar:
        calendars.append(MarketCalendar(*arguments, **named))
        return calendars[-1]

    ordinary_refresh = InstrumentList.refresh
    patch.setattr(InstrumentList, "refresh", refresh)
    patch.setattr(pipeline, "MarketCalendar", make_calendar)
    patch.setattr(pipeline, "Feed", make_feed)
    patch.setattr(pipeline, "RememberedLimit", lambda *_, **__: limit)
    shorten(patch)
    given = {"instruments": 20, "updates_per_second": 40.0, "start": script.start or MONDAY}
    stopping = asyncio.Event()
    with capture_logs() as logs:
        async with contextlib.AsyncExitStack() as stack:
            simulator = await stack.enter_async_context(
                Simulator(
                    SimulatorSettings(**{**given, **settings}, log=log, speed=pace, script=replace(script, steps=()))
                )
            )
            http = await stack.enter_async_context(aiohttp.ClientSession())
            there: list[contextlib.AsyncExitStack] = []

            async def guest() -> None:
                there.append(await stack.enter_async_context(contextlib.AsyncExitStack()))
                await there[-1].enter_async_context(simulated.feed(simulator, http))

            for _ in range(guests):
                await guest()
            if begin == "start":
                play()
            environs = environ_for(
                simulator.url,
                folder / "data",
                UPSTOX_TOKEN_URL=f"{simulator.url}/token",
                TICKVAULT_INSTRUMENTS=",".join(choose(simulator.instrument_keys)),
                **(environ or {}),
            )
            del environs["TICKVAULT_INSTRUMENTS_URL"]
            if not (environ or {}).get("UPSTOX_ACCESS_TOKEN"):
                del environs["UPSTOX_ACCESS_TOKEN"]
            chosen = load_settings(environ=environs, env_file=None)
            began_ns, since_ns = time.monotonic_ns(), simulator.now_ms() * 1_000_000  # its clock, but finer
            recorder = Recorder(chosen, wall_ns=lambda: since_ns + int((time.monotonic_ns() - began_ns) * pace))
            played = Played(
                simulator=simulator, recorder=recorder, logs=logs, limit=limit, data=folder / "data",
                refreshed=refreshed, calendars=calendars, guests=there, guest=guest, begin=play,
                task=asyncio.create_task(recorder.run(stopping), name="recorder"),
            )  # fmt: skip
            try:
                yield played
            finally:
                stopping.set()
                await asyncio.wait((played.task,), timeout=30)
            played.outcome = played.task.result()
    await asyncio.to_thread(played.look, log)
