"""The feed against the simulator and its faults: what is silent is found, what is quiet is left alone, keys are told."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from tickvault.brokers.upstox.accounts import Why
from tickvault.brokers.upstox.api import UpstoxApi
from tickvault.brokers.upstox.feed import Feed, FeedState, Patience
from tickvault.brokers.upstox.findings import Condition
from tickvault.brokers.upstox.phases import Phase
from tickvault.brokers.upstox.sockets import OfSocket
from tickvault.brokers.upstox.tokens import StaticToken
from tickvault.model import Mode, Subscription
from tickvault.simulator import Simulator, SimulatorSettings
from tickvault.simulator import script as do
from tickvault.simulator.frames import market_info
from tickvault.simulator.rules import Rules

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

pytestmark = [pytest.mark.virtual, pytest.mark.timeout(120)]
SEGMENTS = ("NSE_EQ", "NSE_FO", "NSE_INDEX")  # that the simulator's first twenty instruments trade in


class Inbox:
    """Counts frames and keeps facts."""

    def __init__(self) -> None:
        self.frames = 0
        self.facts: list[tuple[str, Mapping[str, Any]]] = []

    async def frame(self, received_ns: int, conn: int, payload: bytes) -> None:
        self.frames += 1

    async def fact(self, kind: str, body: Mapping[str, object]) -> None:
        json.dumps(body)
        self.facts.append((kind, body))

    def ends(self) -> list[tuple[str, int]]:
        """Return reason and code of each connection that has ended."""
        bodies = [body for kind, body in self.facts if (kind, body.get("state")) == ("conn", "closed")]
        return [(body["reason"], body["code"]) for body in bodies]

    def watched(self) -> list[str]:
        """Return the states that were told."""
        return [body["state"] for kind, body in self.facts if kind == "watch"]


async def until(condition: Callable[[], object], within_s: float = 900.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.05)


async def a_while(seconds: float) -> None:
    """Let time pass in which nothing is to happen."""
    end_s = time.monotonic() + seconds
    await until(lambda: time.monotonic() >= end_s)


@contextlib.asynccontextmanager
async def recording(
    simulator: Simulator, *wanted: Subscription, inbox: Inbox | OfSocket | None = None, **changed: Any
) -> AsyncIterator[Feed]:
    """Run a feed on a simulator; stop it at the end, and wait until it has left."""

    async def subscriptions() -> tuple[Subscription, ...]:
        return wanted or subscribed(simulator.instrument_keys)

    async def before_subscribe(_: tuple[Subscription, ...]) -> None:
        pass

    async with aiohttp.ClientSession() as session:
        arguments: dict[str, Any] = {
            "api": UpstoxApi(simulator.url, session),
            "tokens": StaticToken("token"),
            "subscriptions": subscriptions,
            "inbox": inbox or Inbox(),
            "before_subscribe": before_subscribe,
            "session": session,
        }
        feed, stopping = Feed(**(arguments | changed)), asyncio.Event()
        task = asyncio.create_task(feed.run(stopping))
        try:
            yield feed
        finally:
            stopping.set()
            async with asyncio.timeout(10):
                await task


def subscribed(keys: tuple[str, ...], mode: Mode = Mode.FULL) -> tuple[Subscription, ...]:
    return tuple(Subscription(instrument_key=key, mode=mode) for key in keys)


@contextlib.asynccontextmanager
async def exchange(*steps: do.Step, **changed: Any) -> AsyncIterator[Simulator]:
    """Start a simulator; what its script has at second 0 has happened when anybody comes."""
    settings: dict[str, Any] = {"instruments": 20, "updates_per_second": 40.0}
    async with Simulator(SimulatorSettings(**(settings | changed), script=steps)) as simulator:
        await asyncio.sleep(0.01)
        yield simulator


async def test_working_feed_says_nothing() -> None:
    """Live, every key delivers, statuses are known, no fact and no warning."""
    inbox = Inbox()
    with capture_logs() as logs:
        async with exchange() as simulator, recording(simulator, inbox=inbox) as feed:
            await until(lambda: feed.keys.delivering == 20 and feed.state is FeedState.LIVE)
            await until(lambda: feed.frames > 40 and feed.watch.state is Condition.FRESH)
            assert feed.statuses["segment"]["NSE_EQ"] == "NORMAL_OPEN"
            assert set(feed.watch.due) == set(SEGMENTS)
            assert (feed.keys.problems, feed.conn, feed.unobserved) == ({}, 1, 0)
            assert set(feed.phases.values()) == {Phase.OPEN}
    assert feed.phases == {}, "nobody tells any more when that changes"
    assert inbox.watched() == []
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == []


async def test_mute_is_found_and_reconnected() -> None:
    """The socket answers pings all the while; data that comes back ends it."""
    inbox = Inbox()
    async with (
        exchange(do.Mute(at_s=120.0, seconds=60.0)) as simulator,
        recording(simulator, inbox=inbox) as feed,
    ):
        await until(lambda: inbox.ends())
        assert inbox.ends()[0][0] == "mute"
        await until(lambda: feed.conn >= 2 and feed.state is FeedState.LIVE and feed.watch.state is Condition.FRESH)
        await until(lambda: inbox.watched()[-1:] == ["fresh"])
    assert inbox.watched()[0] == "silent"
    first = next(body for kind, body in inbox.facts if kind == "watch")
    assert set(first) == {"conn", "state", "since_ns", "segments", "detail"}
    assert first["conn"] == 1


@pytest.mark.parametrize("status", ["NORMAL_CLOSE", "PRE_OPEN_END"])
async def test_halt_with_a_status_is_left_alone(status: str) -> None:
    """The market says that it is closed, or pauses: silence is normal, however long; pongs keep the connection."""
    steps = [do.MarketStatus(at_s=60.0, segment=one, status=status) for one in SEGMENTS]
    inbox = Inbox()
    async with (
        exchange(*steps, do.Halt(at_s=60.1, seconds=3600.0)) as simulator,
        recording(simulator, inbox=inbox) as feed,
    ):
        await until(lambda: feed.statuses.get("segment", {}).get("NSE_INDEX") == status)
        await a_while(600.0)
        assert (feed.conn, feed.state, feed.watch.state) == (1, FeedState.LIVE, Condition.USUAL)
    assert inbox.watched() == []


async def test_closed_market_is_live_and_quiet() -> None:
    """Connected on a Sunday: snapshots come, and nothing after them."""
    steps = [do.MarketStatus(at_s=0.0, segment=one, status="CLOSING_END") for one in SEGMENTS]
    inbox = Inbox()
    async with exchange(*steps, updates_per_second=0.0) as simulator, recording(simulator, inbox=inbox) as feed:
        await until(lambda: feed.state is FeedState.LIVE and feed.keys.delivering == 20)
        await a_while(600.0)
        assert (feed.conn, feed.watch.state) == (1, Condition.USUAL)
    assert inbox.watched() == []


async def test_a_connection_that_brings_nothing_is_not_called_live() -> None:
    """While nothing is due it is quiet; it is live when data comes."""
    steps = [do.MarketStatus(at_s=0.0, segment=one, status="CLOSING_END") for one in SEGMENTS]
    steps += [do.MarketStatus(at_s=60.0, segment=one, status="NORMAL_OPEN") for one in SEGMENTS]
    with capture_logs() as logs:
        async with exchange(*steps, do.NoSnapshot(at_s=0.0, seconds=600.0)) as simulator, recording(simulator) as feed:
            await until(lambda: feed.state is FeedState.LIVE)
            assert feed.keys.delivering == 0
            await until(lambda: feed.keys.delivering > 0)
            assert feed.conn == 1
    said = [one["event"] for one in logs if one["event"] in ("feed.open", "feed.quiet", "feed.live")]
    assert said == ["feed.open", "feed.quiet", "feed.live"]


async def test_stall_is_given_up() -> None:
    """A peer that died without a word is found by its silence or its missing pong, whichever is first."""
    inbox = Inbox()
    async with (
        exchange(do.Stall(at_s=60.0, seconds=120.0)) as simulator,
        recording(simulator, inbox=inbox) as feed,
    ):
        await until(lambda: feed.conn >= 2 and feed.watch.state is Condition.FRESH)
    assert inbox.ends()[0][0] in ("silent", "mute")


async def test_brown_out_is_tried_once_and_told() -> None:
    """A trickle: one new connection, then an alarm; and its end."""
    inbox = Inbox()
    async with exchange(do.Slow(at_s=180.0, seconds=180.0, factor=20.0)) as simulator:
        equities = tuple(key for key in simulator.instrument_keys if key.startswith("NSE_EQ"))
        async with recording(simulator, *subscribed(equities), inbox=inbox) as feed:
            await until(lambda: "brown_out" in inbox.watched())
            await until(lambda: feed.watch.state is Condition.BROWN_OUT)
            await until(lambda: "usual" in inbox.watched())
            assert feed.conn == 2
    assert inbox.watched() == ["brown_out", "usual"]
    assert [reason for reason, _ in inbox.ends()] == ["brown_out", "stopped"]


async def test_closed_with_1000_and_reset() -> None:
    """Both are failures: a new connection follows, and all its keys are asked for again."""
    inbox = Inbox()
    async with (
        exchange(do.Close(at_s=20.0, code=1000), do.Reset(at_s=60.0)) as simulator,
        recording(simulator, inbox=inbox) as feed,
    ):
        await until(lambda: feed.conn == 3 and feed.state is FeedState.LIVE)
        await until(lambda: feed.keys.delivering == 20)
    assert inbox.ends()[:2] == [("closed", 1000), ("lost", 1006)]


async def test_garbage_is_recorded_and_changes_nothing() -> None:
    """What does not decode is no data and no end."""
    async with exchange(do.Garbage(at_s=0.5, every_s=0.1)) as simulator, recording(simulator) as feed:
        await until(lambda: feed.frames > 30 and feed.state is FeedState.LIVE)
        assert feed.conn == 1


async def test_subscription_that_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """As text it is not taken: only market_info comes; found, told once, tried again, and its end told."""

    async def as_text(self: aiohttp.ClientWebSocketResponse, data: bytes, compress: int | None = None) -> None:
        await self.send_str(data.decode())

    inbox = Inbox()
    async with exchange() as simulator:
        with monkeypatch.context() as patch:
            patch.setattr(aiohttp.ClientWebSocketResponse, "send_bytes", as_text)
            async with recording(simulator, inbox=inbox) as feed:
                await until(lambda: len(inbox.ends()) >= 2)
                assert feed.watch.state is Condition.REFUSED
                patch.undo()
                await until(lambda: "served" in inbox.watched())
                await until(lambda: feed.state is FeedState.LIVE)
    assert [reason for reason, _ in inbox.ends()][:2] == ["mute", "mute"]
    assert inbox.watched() == ["refused", "served"]


async def test_wrong_keys_are_reported() -> None:
    """A derivative by its symbol, an unknown one after its time; in the log with their names, once."""
    wrong = subscribed(("NSE_FO|NIFTY18NOV2025PE25950", "NSE_EQ|INE000000000"))
    with capture_logs() as logs:
        async with (
            exchange() as simulator,
            recording(simulator, *subscribed(simulator.instrument_keys), *wrong) as feed,
        ):
            await until(lambda: set(feed.keys.problems) == {Why.EMPTY, Why.NEVER})
            assert feed.keys.problems[Why.EMPTY].sample == ("NSE_FO|NIFTY18NOV2025PE25950",)
            assert feed.keys.problems[Why.NEVER].sample == ("NSE_EQ|INE000000000",)
            await until(lambda: feed.state is FeedState.LIVE)
            assert feed.conn == 1
    told = [(entry["why"], entry["count"]) for entry in logs if entry["event"] == "feed.keys_silent"]
    assert sorted(told) == [("empty", 1), ("never", 1)]


async def test_keys_over_the_cap_are_reported() -> None:
    """2,000 in full are served; the others are told, and the connection is kept."""
    async with exchange(instruments=2100, updates_per_second=500.0) as simulator, recording(simulator) as feed:
        await until(lambda: Why.OVER_LIMIT in feed.keys.problems)
        await until(lambda: feed.state is FeedState.LIVE)
        assert (feed.keys.problems[Why.OVER_LIMIT].count, feed.keys.delivering) == (100, 2000)
        assert len(feed.keys.problems[Why.OVER_LIMIT].sample) == 20
        assert feed.conn == 1


async def test_full_d30_without_plus_is_reported() -> None:
    """Its keys are silent while the others deliver."""
    async with exchange(rules=Rules(plus=False)) as simulator:
        keys = simulator.instrument_keys
        async with recording(simulator, *subscribed(keys[:15]), *subscribed(keys[15:], Mode.FULL_D30)) as feed:
            await until(lambda: Why.NO_PLUS in feed.keys.problems)
            assert feed.keys.problems[Why.NO_PLUS].count == 5
            assert feed.conn == 1


async def test_keys_that_a_reconnection_loses_are_missing_until_another_brings_them_back() -> None:
    """Told once each way, with the keys; the connection itself is live all the while."""
    inbox = Inbox()

    def told(state: str) -> list[list[str]]:
        return [body["keys"] for kind, body in inbox.facts if (kind, body.get("state")) == ("watch", state)]

    async with exchange() as simulator, recording(simulator, inbox=inbox) as feed:
        await until(lambda: feed.state is FeedState.LIVE and feed.keys.delivering == 20)
        ordinary, simulator._rules = simulator._rules, replace(simulator._rules, unseen=10)
        await simulator.drop_connections()
        lost = [key for number, key in enumerate(simulator.instrument_keys, 1) if number % 10 == 0]
        await until(lambda: sorted(itertools.chain(*told("missing"))) == sorted(lost))
        assert feed.state is FeedState.LIVE
        assert told("delivering") == []
        simulator._rules = ordinary
        await simulator.drop_connections()
        await until(lambda: sorted(itertools.chain(*told("delivering"))) == sorted(lost))
        assert sorted(itertools.chain(*told("missing"))) == sorted(lost)


async def test_keys_that_come_and_go_on_an_open_connection() -> None:
    """More are asked for, others given back, on the same connection; both are facts, and the books agree."""
    inbox = Inbox()
    async with exchange() as simulator:
        keys = simulator.instrument_keys
        async with recording(simulator, *subscribed(keys[:10]), inbox=inbox) as feed:
            assert not feed.change(subscribed(keys[10:12]), ())
            await until(lambda: feed.keys.delivering == 10 and feed.state is FeedState.LIVE)
            assert feed.change(subscribed(keys[12:]), keys[:3])
            await until(lambda: (feed.keys.subscribed, feed.keys.delivering) == (15, 15))
            assert feed.conn == 1
            await until(lambda: feed.keys.oldest and feed.keys.oldest[0][0] not in keys[:3])
    asked = [(kind, tuple(body["keys"])) for kind, body in inbox.facts if kind in ("sub", "unsub")]
    assert asked == [("sub", keys[:10]), ("unsub", keys[:3]), ("sub", keys[12:])]


async def test_a_request_that_is_ignored_later_is_made_once_more() -> None:
    """Strikes that join an open connection are asked for again as the first keys are, and not a third time."""
    inbox = Inbox()
    async with exchange(do.Deaf(at_s=0.0, seconds=600.0, chunk=2)) as simulator:
        keys = simulator.instrument_keys
        async with recording(simulator, *subscribed(keys[:10]), inbox=inbox) as feed:
            await until(lambda: feed.keys.delivering == 10 and feed.state is FeedState.LIVE)
            assert feed.change(subscribed(keys[10:]), ())
            await until(lambda: feed.keys.delivering == 20)
            assert feed.change(subscribed(("NSE_EQ|INE000000000",)), ())
            await until(lambda: Why.NEVER in feed.keys.problems)
            await a_while(60.0)
            assert feed.conn == 1
    wrong = ("NSE_EQ|INE000000000",)
    asked = [(kind, tuple(body["keys"])) for kind, body in inbox.facts if kind in ("sub", "unsub")]
    again = [("sub", keys[10:]), ("unsub", keys[10:]), ("sub", keys[10:])]
    assert asked == [("sub", keys[:10]), *again, ("sub", wrong), ("unsub", wrong), ("sub", wrong)]


async def test_feeds_beside_each_other() -> None:
    """They share the numbers of connections, and those of the second say that they are its own."""
    numbers, inbox = itertools.count(7), Inbox()
    async with exchange() as simulator:
        keys = simulator.instrument_keys
        async with (
            recording(simulator, *subscribed(keys[:10]), inbox=inbox, numbers=numbers) as one,
            recording(simulator, *subscribed(keys[10:]), inbox=OfSocket(inbox, 1), numbers=numbers, socket=2) as other,
        ):
            await until(lambda: one.state is other.state is FeedState.LIVE)
            assert {one.conn, other.conn} == {7, 8}
            assert (one.reconnects, other.reconnects) == (0, 0)
            second = other.conn
    named = {body["conn"] for kind, body in inbox.facts if kind == "conn" and body.get("socket") == 2}
    assert named == {second}


async def test_schema_drift_is_told_once() -> None:
    """A field and a status that nobody knows: recorded, told, and no end."""
    frame = market_info(1, {"NSE_EQ": "NORMAL_OPEN"})
    frame.marketInfo.segmentStatus["NSE_NEW"] = 42  # type: ignore[assignment]
    with capture_logs() as logs:
        async with exchange(updates_per_second=0.0) as simulator, recording(simulator) as feed:
            await until(lambda: feed.state is FeedState.LIVE)
            for _ in range(100):
                simulator.push(frame.SerializeToString() + b"\x98\x06\x01")
                before = feed.frames
                await until(lambda before=before: feed.frames > before)
            await until(lambda: feed.statuses.get("segment", {}).get("NSE_NEW") == "42")
            assert feed.conn == 1
    novelties = [what for entry in logs if entry["event"] == "feed.novelty" for what in entry["what"]]
    assert sorted(novelties) == ["FeedResponse field 99", "MarketStatus 42"]


async def test_observing_never_holds_the_reader() -> None:
    """An observer that is far too slow loses frames, counted; every one of them is recorded all the same."""
    inbox = Inbox()
    patience = Patience(observe_s=0.5)
    async with (
        exchange(instruments=5, updates_per_second=5000.0) as simulator,
        recording(simulator, inbox=inbox, patience=patience) as feed,
    ):
        await until(lambda: feed.unobserved > 20)
        assert (feed.conn, inbox.frames) == (1, feed.frames)
    assert inbox.watched() == []
