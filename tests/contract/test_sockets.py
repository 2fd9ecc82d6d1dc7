"""Several sockets in one process, against the simulator: every planned key is served, by the socket it is planned for."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import itertools
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tickvault.brokers.upstox.api import UpstoxApi
from tickvault.brokers.upstox.feed import Feed, FeedState
from tickvault.brokers.upstox.instruments import InstrumentList
from tickvault.brokers.upstox.plan import RateLimit
from tickvault.brokers.upstox.prices import PriceTap
from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.brokers.upstox.selector import Selector, Typed
from tickvault.brokers.upstox.sockets import OfSocket, Sockets
from tickvault.brokers.upstox.tokens import StaticToken
from tickvault.brokers.upstox.waits import Waits
from tickvault.errors import FeedUnavailable, TokenRefused
from tickvault.model import Mode
from tickvault.selections import parse_selections
from tickvault.simulator.server import Simulator
from tickvault.simulator.settings import SimulatorSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

    from tickvault.model import Subscription


class MemoryInbox:
    """Keeps what comes."""

    def __init__(self) -> None:
        self.keys: dict[int, set[str]] = {}
        self.facts: list[tuple[str, Mapping[str, Any]]] = []

    async def frame(self, _received_ns: int, conn: int, payload: bytes) -> None:
        self.keys.setdefault(conn, set()).update(pb.FeedResponse.FromString(payload).feeds)

    async def fact(self, kind: str, body: Mapping[str, object]) -> None:
        self.facts.append((kind, body))

    def of(self, kind: str, state: str | None = None) -> list[Mapping[str, Any]]:
        return [body for one, body in self.facts if one == kind and (state is None or body["state"] == state)]


class Running:
    """Sockets that record a simulator's feed."""

    def __init__(
        self,
        simulator: Simulator,
        session: aiohttp.ClientSession,
        folder: Path,
        texts: list[str],
        rate: RateLimit | None = None,
    ) -> None:
        self.inbox = MemoryInbox()
        self.typed = Typed(parse_selections(texts, Mode.FULL))
        self.now_ns = time.time_ns()
        self.stopping = asyncio.Event()
        self.tap = PriceTap(self.inbox)
        tokens, api = StaticToken("t"), UpstoxApi(simulator.url, session)
        numbers, unlimited = itertools.count(1), RateLimit(calls=60)

        waits = Waits(self.inbox)

        async def before(_subscriptions: tuple[Subscription, ...]) -> None:
            await waits.end(self.selector.unlisted)

        url = f"{simulator.url}/market-quote/instruments/exchange/complete.json.gz"
        self.selector = Selector(
            source=self.typed,
            master=InstrumentList(url=url, cache_dir=folder, session=session),
            prices=self.tap.prices,
            follow=self.tap.follow,
            plus=False,
            wall_ns=lambda: self.now_ns,
        )

        def open_feed(socket: int, subscriptions: Callable[[], Any]) -> Feed:
            return Feed(
                api=api,
                tokens=tokens,
                subscriptions=subscriptions,
                inbox=OfSocket(self.tap, socket),
                before_subscribe=before,
                session=session,
                numbers=numbers,
                socket=socket + 1,
                rate=rate or unlimited,
            )

        self.sockets = Sockets(self.selector, open_feed, waits)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@contextlib.asynccontextmanager
async def running(
    simulator: Simulator, session: aiohttp.ClientSession, folder: Path, *texts: str, rate: RateLimit | None = None
) -> AsyncIterator[Running]:
    one = Running(simulator, session, folder, list(texts), rate)
    await one.selector.prepare()
    async with asyncio.TaskGroup() as group:
        group.create_task(one.sockets.run(one.stopping))
        try:
            yield one
        finally:
            one.stopping.set()


async def until(condition: Callable[[], object], what: str, within_s: float = 15.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, f"{what}: not within {within_s} s"
        await asyncio.sleep(0.02)


async def test_two_sockets_serve_what_one_cannot(session: aiohttp.ClientSession, tmp_path: Path) -> None:
    """2,100 keys in full: each socket gets a snapshot of each of its keys, and comes back with them by itself."""
    async with Simulator(SimulatorSettings(instruments=2100, updates_per_second=50.0)) as simulator:
        async with running(simulator, session, tmp_path, *simulator.instrument_keys) as one:
            inbox = one.inbox
            await until(lambda: [len(inbox.keys.get(conn, ())) for conn in (1, 2)] == [2000, 100], "snapshots")
            assert inbox.keys[1] | inbox.keys[2] == set(simulator.instrument_keys)
            assert [body.get("socket", 1) for body in inbox.of("conn", "open")] == [1, 2]
            first, second = inbox.of("conn", "wanted")
            assert first == {"state": "wanted", "segments": ["NSE_EQ", "NSE_FO", "NSE_INDEX"]}
            assert second == {"state": "wanted", "segments": ["NSE_FO"], "socket": 2}
            assert {(body["conn"], body.get("socket", 1)) for body in inbox.of("sub")} == {(1, 1), (2, 2)}
            await simulator.drop_connections()
            await until(lambda: len(inbox.of("conn", "open")) == 4, "both are back")
            sockets = {body["conn"]: body.get("socket", 1) for body in inbox.of("conn", "open")}
            assert sorted(sockets) == [1, 2, 3, 4]
            back = {sockets[conn]: conn for conn in (3, 4)}
            await until(lambda: all(len(inbox.keys.get(conn, ())) >= 100 for conn in (3, 4)), "snapshots again")
            await until(lambda: inbox.keys[back[1]] == inbox.keys[1], "the first socket's keys")
            assert inbox.keys[back[2]] == inbox.keys[2]
        assert [feed.state for feed in one.sockets.feeds] == [FeedState.STOPPED] * 2
        assert one.sockets.frames == sum(feed.frames for feed in one.sockets.feeds)


async def test_strikes_join_the_open_connection(session: aiohttp.ClientSession, tmp_path: Path) -> None:
    """The spot brings a price, the price the strikes round it, without a new connection."""
    async with (
        Simulator(SimulatorSettings(instruments=400, updates_per_second=200.0)) as simulator,
        running(simulator, session, tmp_path, "chain:NIFTY:weekly:atm+-2") as one,
    ):
        await until(lambda: len(one.inbox.keys.get(1, ())) == 3 + 2 * 5, "the window is served")
        assert [len(body["keys"]) for body in one.inbox.of("sub")] == [3, 10]
        assert len(one.inbox.of("conn", "open")) == 1


async def test_what_waits_for_the_master_list_is_told(
    session: aiohttp.ClientSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is opened; and that it waits no longer not before what came of it is being subscribed to."""
    refresh, down = InstrumentList.refresh, [True]

    async def maybe(self: InstrumentList) -> bool:
        if down[0]:
            raise FeedUnavailable("503")
        return await refresh(self)

    monkeypatch.setattr(InstrumentList, "refresh", maybe)
    monkeypatch.setattr(Selector, "pause_s", 0.05)
    async with (
        Simulator(SimulatorSettings(instruments=400, updates_per_second=200.0)) as simulator,
        running(simulator, session, tmp_path, "NSE_EQ|INE002A01018", "future:NIFTY:1") as one,
    ):
        await until(lambda: one.inbox.of("sub"), "the key is subscribed to")
        assert one.inbox.facts[0] == (
            "watch",
            {
                "state": "waiting",
                "segments": ["NSE_FO"],
                "detail": "future:NIFTY:1 waits for the master list",
            },
        )
        down[0] = False
        assert one.selector._master is not None
        await one.selector._master.refresh()
        await until(lambda: len(one.inbox.of("sub")) == 2, "the future is subscribed to")
        assert one.inbox.of("watch", "resolved") == [{"state": "resolved", "segments": ["NSE_FO"]}]
        assert len(one.inbox.of("watch", "waiting")) == 1


async def test_growth_opens_a_second_socket_and_a_morning_drops_what_left(
    session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """What no longer fits on the first socket goes to a second; what is no longer wanted is unsubscribed from."""
    async with Simulator(SimulatorSettings(instruments=2100, updates_per_second=50.0)) as simulator:
        first, rest = simulator.instrument_keys[:1990], simulator.instrument_keys[1990:]
        async with running(simulator, session, tmp_path, *first) as one:
            await until(lambda: len(one.inbox.keys.get(1, ())) == 1990, "the first keys")
            one.typed.selections = parse_selections([*first[5:], *rest], Mode.FULL)
            one.now_ns += int(dt.timedelta(days=1).total_seconds()) * 10**9
            await one.selector.review()
            one.sockets.apply()
            await until(lambda: len(one.inbox.keys.get(1, ())) == 1990 + 15, "the first socket is full")
            assert set(one.inbox.of("unsub")[0]["keys"]) == set(first[:5])
            assert [len(socket) for socket in one.selector.plan.sockets] == [2000, 95]
            await until(lambda: len(one.inbox.keys.get(2, ())) == 95, "the second socket")


async def test_a_socket_whose_keys_have_left_is_closed(session: aiohttp.ClientSession, tmp_path: Path) -> None:
    """Given back to the account, and nobody's outage; opened again when the plan needs it."""
    async with Simulator(SimulatorSettings(instruments=2100, updates_per_second=50.0)) as simulator:
        keys = simulator.instrument_keys
        async with running(simulator, session, tmp_path, *keys) as one:

            async def want(*wanted: str) -> None:
                one.typed.selections = parse_selections(list(wanted), Mode.FULL)
                one.now_ns += int(dt.timedelta(days=1).total_seconds()) * 10**9
                await one.selector.review()
                one.sockets.apply()

            await until(lambda: len(one.inbox.keys.get(2, ())) == 100, "both serve")
            await until(lambda: all(feed.state is FeedState.LIVE for feed in one.sockets.feeds), "both are live")
            await want(*keys[:2000])
            await until(lambda: one.inbox.of("unsub"), "its keys are given back")
            assert len(one.sockets.feeds) == 2
            one.sockets.apply()
            await until(lambda: len(one.sockets.feeds) == 1, "it is closed")
            assert [(body["socket"], body["reason"]) for body in one.inbox.of("conn", "closed")] == [(2, "stopped")]
            frames = one.sockets.frames
            assert frames > one.sockets.feeds[0].frames
            one.sockets.apply()
            assert len(one.sockets.feeds) == 1, "it stays closed"
            await want(*keys)
            await until(lambda: len(one.inbox.keys.get(3, ())) == 100, "it serves again")
            assert one.sockets.frames > frames
        assert [body["conn"] for body in one.inbox.of("conn", "open") if body.get("socket") == 2] == [2, 3]


class Noted(RateLimit):
    """A rate limit that remembers its calls."""

    def __init__(self, calls: int, window_s: float) -> None:
        super().__init__(calls, window_s)
        self.called_s: list[float] = []

    def note(self, now_s: float) -> None:
        super().note(now_s)
        self.called_s.append(now_s)


async def test_all_sockets_have_one_limit_of_authorize_calls(session: aiohttp.ClientSession, tmp_path: Path) -> None:
    """However often both connections drop, no window has more calls than the limit."""
    async with Simulator(SimulatorSettings(instruments=2001, updates_per_second=0.0)) as simulator:
        rate = Noted(calls=3, window_s=1.0)
        async with running(simulator, session, tmp_path, *simulator.instrument_keys, rate=rate) as one:
            for _ in range(3):
                opened = len(one.inbox.of("conn", "open"))
                await until(lambda: len(one.inbox.of("conn", "open")) >= opened + 2, "both are open")
                await simulator.drop_connections()
        calls_s = rate.called_s
    assert len(calls_s) >= 6
    assert all(fourth - first >= 1.0 for first, fourth in zip(calls_s, calls_s[3:], strict=False))


async def test_a_refused_token_ends_all_of_them(session: aiohttp.ClientSession, tmp_path: Path) -> None:
    """The first socket says that the only token is no good; the others stop too."""
    settings = SimulatorSettings(instruments=2100, updates_per_second=0.0, tokens=frozenset({"another"}))
    async with Simulator(settings) as simulator:
        one = Running(simulator, session, tmp_path, list(simulator.instrument_keys))
        await one.selector.prepare()
        with pytest.raises(TokenRefused):
            await one.sockets.run(one.stopping)
    assert len(one.sockets.feeds) == 2
