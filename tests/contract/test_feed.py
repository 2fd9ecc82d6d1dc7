"""The feed against a scripted broker: whatever the broker does, nothing that was read is lost, and it comes back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import struct
import time
from random import Random
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import WSMsgType, web
from aiohttp.test_utils import TestServer, unused_port
from structlog.testing import capture_logs

from tickvault.brokers.upstox import tokens
from tickvault.brokers.upstox.api import UpstoxApi
from tickvault.brokers.upstox.feed import Feed, FeedState, Patience
from tickvault.brokers.upstox.plan import RateLimit
from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.brokers.upstox.tokens import StaticToken, TokenUrl
from tickvault.errors import FeedUnavailable, TokenRefused
from tickvault.model import Mode, Subscription

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

TestServer.__test__ = False  # type: ignore[attr-defined]

TOKEN = "very-secret-token"
ONE = (Subscription(instrument_key="NSE_EQ|A", mode=Mode.FULL),)

MARKET_INFO = pb.FeedResponse(
    type=pb.market_info, marketInfo=pb.MarketInfo(segmentStatus={"NSE_EQ": pb.NORMAL_OPEN})
).SerializeToString()
SNAPSHOT = pb.FeedResponse(feeds={"NSE_EQ|A": pb.Feed(ltpc=pb.LTPC(ltp=1.5))}).SerializeToString()

Script = Any  # async def script(broker, ws)


class NoJitter(Random):
    """A random source that makes every pause nothing."""

    def uniform(self, a: float, b: float) -> float:
        return 0.0


def quick(**changed: float) -> Patience:
    """Return little patience."""
    little = {"tick_s": 0.02, "observe_s": 0.02, "greet_s": 0.1, "stop_s": 0.5}
    return Patience(**(little | changed))


class MemoryInbox:
    """Keeps what comes; waits for `room`."""

    def __init__(self) -> None:
        self.entries: list[tuple[Any, ...]] = []
        self.room = asyncio.Event()
        self.room.set()

    async def frame(self, received_ns: int, conn: int, payload: bytes) -> None:
        await self.room.wait()
        self.entries.append(("frame", conn, payload, received_ns))

    async def fact(self, kind: str, body: Mapping[str, object]) -> None:
        json.dumps(body)
        self.entries.append((kind, body))

    def frames(self) -> list[bytes]:
        return [entry[2] for entry in self.entries if entry[0] == "frame"]

    def facts(self, state: str) -> list[Mapping[str, Any]]:
        return [entry[1] for entry in self.entries if entry[0] == "conn" and entry[1]["state"] == state]

    def order(self) -> list[str]:
        return [entry[1]["state"] if entry[0] == "conn" else entry[0] for entry in self.entries]


class Broker:
    """Authorizes single-use addresses and plays one script a connection, the last one again and again."""

    def __init__(self) -> None:
        self.scripts: list[Script] = [serve]
        self.authorizing: list[Callable[[], web.Response] | None] = []
        self.tokens: list[str] = []
        self.authorized_s: list[float] = []
        self.token_url_answers: list[str] = [TOKEN]
        self.requests: list[list[tuple[WSMsgType, dict[str, Any]]]] = []
        self.ended: list[tuple[int | None, bool]] = []
        self.stalled = asyncio.Event()
        self.transport: asyncio.Transport | None = None
        self.url = ""
        self._codes: set[str] = set()

    async def authorize(self, request: web.Request) -> web.Response:
        self.tokens.append(request.headers["Authorization"])
        self.authorized_s.append(time.monotonic())
        if self.authorizing and (refuse := self.authorizing.pop(0)) is not None:
            return refuse()
        code = f"very-secret-{len(self.tokens)}"
        self._codes.add(code)
        uri = self.url.replace("http", "ws") + f"feed?requestId=1&code={code}"
        return web.json_response({"status": "success", "data": {"authorized_redirect_uri": uri}})

    async def token(self, request: web.Request) -> web.Response:
        token = self.token_url_answers.pop(0) if len(self.token_url_answers) > 1 else self.token_url_answers[0]
        return web.json_response({"access_token": token}) if token else web.Response(status=503)

    async def feed(self, request: web.Request) -> web.StreamResponse:
        if request.query["code"] not in self._codes:
            return web.Response(status=403)
        self._codes.discard(request.query["code"])
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        if isinstance(script, int):
            return web.Response(status=script)
        ws = web.WebSocketResponse(autoclose=False, timeout=0.2)
        await ws.prepare(request)
        self.transport = request.transport
        self.requests.append([])
        await script(self, ws)
        return ws

    async def subscribed(self, ws: web.WebSocketResponse, messages: int = 1) -> None:
        for _ in range(messages):
            message = await ws.receive()
            self.requests[-1].append((message.type, json.loads(message.data)))


async def serve(broker: Broker, ws: web.WebSocketResponse) -> None:
    """Market status, a snapshot, then nothing until the client closes."""
    await ws.send_bytes(MARKET_INFO)
    await broker.subscribed(ws)
    await ws.send_bytes(SNAPSHOT)
    while (message := await ws.receive()).type in (WSMsgType.BINARY, WSMsgType.TEXT):
        pass
    broker.ended.append((message.data, message.type is WSMsgType.CLOSE))
    await ws.close()


def closing(code: int) -> Script:
    async def script(broker: Broker, ws: web.WebSocketResponse) -> None:
        await ws.send_bytes(MARKET_INFO)
        await broker.subscribed(ws)
        await ws.send_bytes(SNAPSHOT)
        await ws.close(code=code, message=b"bye")

    return script


async def lost(broker: Broker, ws: web.WebSocketResponse) -> None:
    """End without a close frame."""
    await broker.subscribed(ws)
    assert broker.transport
    broker.transport.close()


async def reset(broker: Broker, ws: web.WebSocketResponse) -> None:
    """End with a TCP reset."""
    await broker.subscribed(ws)
    assert broker.transport
    raw = broker.transport.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    broker.transport.abort()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    broker = Broker()
    app = web.Application()
    app.router.add_get("/v3/feed/market-data-feed/authorize", broker.authorize)
    app.router.add_get("/feed", broker.feed)
    app.router.add_get("/token", broker.token)
    async with TestServer(app) as server:
        broker.url = str(server.make_url("/"))
        yield broker


@pytest.fixture
def inbox() -> MemoryInbox:
    return MemoryInbox()


MakeFeed = Any


@pytest.fixture
def make_feed(broker: Broker, session: aiohttp.ClientSession, inbox: MemoryInbox) -> MakeFeed:
    async def subscriptions() -> tuple[Subscription, ...]:
        return ONE

    async def before_subscribe(_: tuple[Subscription, ...]) -> None:
        await inbox.fact("defs", {})

    def make(**changed: Any) -> Feed:
        arguments: dict[str, Any] = {
            "api": UpstoxApi(broker.url, session),
            "tokens": StaticToken(TOKEN),
            "subscriptions": subscriptions,
            "inbox": inbox,
            "before_subscribe": before_subscribe,
            "session": session,
            "random": NoJitter(1),
            "rate": RateLimit(calls=1000),
            "patience": quick(refused_token_s=0.05),
        }
        return Feed(**(arguments | changed))

    return make


async def until(condition: Callable[[], object], within_s: float = 10) -> None:
    """Wait until the condition holds, looking often."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def running(feed: Feed) -> AsyncIterator[asyncio.Event]:
    """Run the feed; stop it at the end, and wait until it has left."""
    stopping = asyncio.Event()
    task = asyncio.create_task(feed.run(stopping))
    try:
        yield stopping
    finally:
        stopping.set()
        async with asyncio.timeout(10):
            await task


async def test_connection_is_written_down_in_order(make_feed: MakeFeed, inbox: MemoryInbox, broker: Broker) -> None:
    """Opened, read from, defined, subscribed, live; and closed as stopped."""
    feed = make_feed(clock_ns=lambda: 123)
    assert (feed.state, feed.conn) == (FeedState.IDLE, 0)
    async with running(feed):
        await until(lambda: feed.state is FeedState.LIVE)
        assert (feed.conn, feed.frames, feed.reconnects, feed.last_error) == (1, 2, 0, None)
        assert feed.last_frame_s is not None
    assert feed.state is FeedState.STOPPED
    assert inbox.facts("open") == [{"conn": 1, "state": "open", "deflate": True, "keys": 1}]
    assert [entry for entry in inbox.order() if entry != "frame"] == ["open", "defs", "sub", "live", "closed"]
    assert inbox.order().index("sub") < [e[-2] if e[0] == "frame" else "" for e in inbox.entries].index(SNAPSHOT)
    assert inbox.entries[-1][1] == {"conn": 1, "state": "closed", "code": 1000, "reason": "stopped", "detail": ""}
    assert [entry[1:] for entry in inbox.entries if entry[0] == "frame"] == [
        (1, MARKET_INFO, 123),
        (1, SNAPSHOT, 123),
    ]
    assert broker.ended == [(1000, True)]


async def test_reading_does_not_wait_for_definitions(make_feed: MakeFeed, inbox: MemoryInbox, broker: Broker) -> None:
    """Messages arrive while definitions are looked up, which takes no longer than allowed."""

    async def never(_: tuple[Subscription, ...]) -> None:
        await until(lambda: inbox.frames() == [MARKET_INFO])
        await asyncio.Event().wait()

    feed = make_feed(before_subscribe=never, patience=quick(definitions_s=0.2))
    with capture_logs() as logs:
        async with running(feed):
            await until(lambda: feed.state is FeedState.LIVE)
    assert "feed.definitions_late" in [entry["event"] for entry in logs]


async def test_subscriptions_are_replayed_on_every_connection(
    make_feed: MakeFeed, inbox: MemoryInbox, broker: Broker
) -> None:
    """Each connection gets every key again: binary frames, at most 500 keys each, facts alike."""
    wanted = tuple(Subscription(instrument_key=f"NSE_EQ|{n}", mode=Mode.FULL) for n in range(1100))
    wanted += (Subscription(instrument_key="NSE_INDEX|Nifty 50", mode=Mode.LTPC),)

    async def subscriptions() -> tuple[Subscription, ...]:
        return wanted

    async def script(broker: Broker, ws: web.WebSocketResponse) -> None:
        await broker.subscribed(ws, messages=4)
        await ws.close(code=1000)

    broker.scripts = [script]
    async with running(make_feed(subscriptions=subscriptions)):
        await until(lambda: len(broker.requests) >= 3)
    for requests in broker.requests[:2]:
        assert {kind for kind, _ in requests} == {WSMsgType.BINARY}
        assert [(body["method"], body["data"]["mode"]) for _, body in requests] == [
            ("sub", "full"),
            ("sub", "full"),
            ("sub", "full"),
            ("sub", "ltpc"),
        ]
        assert [len(body["data"]["instrumentKeys"]) for _, body in requests] == [500, 500, 100, 1]
        sent = [key for _, body in requests for key in body["data"]["instrumentKeys"]]
        assert sent == [subscription.instrument_key for subscription in wanted]
    first = [entry[1] for entry in inbox.entries if entry[0] == "sub" and entry[1]["conn"] == 1]
    assert [(fact["guid"], fact["mode"], fact["keys"]) for fact in first] == [
        (body["guid"], body["data"]["mode"], body["data"]["instrumentKeys"]) for _, body in broker.requests[0]
    ]


@pytest.mark.parametrize(
    ("script", "code", "reason"),
    [
        (closing(1000), 1000, "closed"),
        (closing(1001), 1001, "closed"),
        (closing(1011), 1011, "closed"),
        (lost, 1006, "lost"),
        (reset, 1006, "lost"),
    ],
)
async def test_reconnects(
    make_feed: MakeFeed, inbox: MemoryInbox, broker: Broker, script: Script, code: int, reason: str
) -> None:
    """However a connection ends, 1000 included, a new one follows, with an address of its own."""
    broker.scripts = [script, script, serve]
    feed = make_feed(numbers=itertools.count(7))
    async with running(feed):
        await until(lambda: feed.state is FeedState.LIVE and feed.conn == 9)
    ends = [(fact["conn"], fact["code"], fact["reason"]) for fact in inbox.facts("closed")]
    assert ends == [(7, code, reason), (8, code, reason), (9, 1000, "stopped")]
    assert feed.reconnects == 2
    assert len(broker.tokens) == 3
    assert inbox.facts("failed") == []


async def test_words_of_the_close_frame_are_kept(make_feed: MakeFeed, inbox: MemoryInbox, broker: Broker) -> None:
    """What the broker says when it closes is in the journal."""
    broker.scripts = [closing(1008), serve]
    async with running(make_feed()):
        await until(lambda: inbox.facts("closed"))
    assert inbox.facts("closed")[0]["detail"] == "bye"


async def test_refused_handshake(make_feed: MakeFeed, inbox: MemoryInbox, broker: Broker) -> None:
    """Each attempt authorizes anew; the same failure is one fact, another one another; no secret in either."""
    broker.scripts = [403, 403, 403, 429, serve]
    feed = make_feed()
    with capture_logs() as logs:
        async with running(feed):
            await until(lambda: feed.state is FeedState.LIVE)
    assert [(fact["conn"], fact["reason"], fact["detail"].split(" although")[0]) for fact in inbox.facts("failed")] == [
        (1, "refused", "the feed refuses the connection: HTTP 403"),
        (1, "rate_limited", "the feed refuses the connection: HTTP 429"),
    ]
    assert "`tickvault login`" in inbox.facts("failed")[0]["detail"]
    assert len(broker.tokens) == 5
    assert feed.conn == 1
    assert "very-secret" not in repr(logs)
    assert "very-secret" not in repr(inbox.entries)


async def test_broker_down(make_feed: MakeFeed, inbox: MemoryInbox, session: aiohttp.ClientSession) -> None:
    """Nobody there is one fact, and the feed goes on trying; stopping it is prompt."""
    attempts = 0

    async def subscriptions() -> tuple[Subscription, ...]:
        nonlocal attempts
        attempts += 1
        return ONE

    api = UpstoxApi(f"http://127.0.0.1:{unused_port()}", session)
    async with running(make_feed(api=api, subscriptions=subscriptions)):
        await until(lambda: attempts > 5)
    assert [fact["reason"] for fact in inbox.facts("failed")] == ["unreachable"]


async def test_static_token_refused_at_once_ends_it(make_feed: MakeFeed, inbox: MemoryInbox, broker: Broker) -> None:
    """The very first authorize refuses the only token there is: nothing can come of going on."""
    broker.authorizing = [lambda: web.Response(status=401)]
    feed = make_feed()
    with pytest.raises(TokenRefused, match="HTTP 401") as caught:
        await feed.run(asyncio.Event())
    assert "very-secret" not in str(caught.value)
    assert feed.state is FeedState.STOPPED
    assert [fact["reason"] for fact in inbox.facts("failed")] == ["token_rejected"]


async def test_token_refused_later_is_waited_for(
    make_feed: MakeFeed, inbox: MemoryInbox, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once started, a refused token never ends the recording; it is not tried again, however often it is offered."""
    monkeypatch.setattr(tokens, "_URL_PAUSE_S", 0.02)
    broker.scripts = [closing(1000), serve]
    broker.authorizing = [None, lambda: web.Response(status=401)]
    offered = [TOKEN] * 12

    class Offering:
        async def token(self) -> str:
            return offered.pop(0) if offered else "another"

    feed = make_feed(tokens=Offering())
    async with running(feed):
        await until(lambda: feed.conn == 2 and feed.state is FeedState.LIVE)
    assert [fact["reason"] for fact in inbox.facts("failed")] == ["token_rejected"]
    assert broker.tokens == [f"Bearer {TOKEN}"] * 2 + ["Bearer another"]


async def test_token_url_is_asked_at_every_attempt(
    make_feed: MakeFeed,
    inbox: MemoryInbox,
    broker: Broker,
    session: aiohttp.ClientSession,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A refused token is not sent again; a new one is tried at once."""
    monkeypatch.setattr(tokens, "_URL_PAUSE_S", 0.02)
    broker.authorizing = [lambda: web.Response(status=401)]
    broker.token_url_answers = ["old", "old", "old", "", "new"]
    url = TokenUrl(f"{broker.url}token", session)
    feed = make_feed(tokens=tokens.Tokens(url=url), patience=quick())
    async with running(feed):
        await until(lambda: feed.state is FeedState.LIVE)
    assert broker.tokens == ["Bearer old", "Bearer new"]
    assert [fact["reason"] for fact in inbox.facts("failed")] == ["token_rejected"]


async def test_pause_that_the_broker_asks_for(make_feed: MakeFeed, broker: Broker) -> None:
    """Retry-After is waited for, back-off or not."""
    broker.authorizing = [lambda: web.Response(status=429, headers={"Retry-After": "1"})]
    feed = make_feed()
    begin_s = time.monotonic()
    async with running(feed):
        await until(lambda: feed.state is FeedState.LIVE)
    assert time.monotonic() - begin_s >= 1


async def test_authorize_calls_are_bounded(make_feed: MakeFeed, broker: Broker) -> None:
    """A connection that dies at once, again and again, does not use up the account's requests."""
    broker.scripts = [closing(1000)]
    feed = make_feed(rate=RateLimit(calls=2, window_s=0.5))
    begin_s = time.monotonic()
    async with running(feed):
        await until(lambda: feed.conn == 5)
    assert time.monotonic() - begin_s >= 1


async def test_subscriptions_that_cannot_be_had(make_feed: MakeFeed, inbox: MemoryInbox, broker: Broker) -> None:
    """Without a list there is no attempt on the broker; it is asked for again."""
    answers = [FeedUnavailable("no list"), FeedUnavailable("no list"), None]

    async def subscriptions() -> tuple[Subscription, ...]:
        if (answer := answers.pop(0)) is not None:
            raise answer
        return ONE

    feed = make_feed(subscriptions=subscriptions)
    async with running(feed):
        await until(lambda: feed.state is FeedState.LIVE)
    assert [fact["detail"] for fact in inbox.facts("failed")] == ["no list"]
    assert len(broker.tokens) == 1


async def test_slow_inbox_holds_the_broker(make_feed: MakeFeed, inbox: MemoryInbox, broker: Broker) -> None:
    """While the inbox has no room reading stops and TCP holds the sender; nothing is dropped, nor taken for silence."""
    noise = Random(1).randbytes(65_536)  # what deflate cannot shrink
    frames = [struct.pack(">I", n) + noise for n in range(400)]

    async def script(broker: Broker, ws: web.WebSocketResponse) -> None:
        await broker.subscribed(ws)
        for frame in frames:
            sending = asyncio.ensure_future(ws.send_bytes(frame))
            if not (await asyncio.wait({sending}, timeout=0.5))[0]:
                broker.stalled.set()
            await sending
        await ws.receive()

    broker.scripts = [script]
    inbox.room.clear()
    feed = make_feed(patience=quick(ping_s=0.1, pong_s=0.1, stop_s=0.5))
    async with running(feed):
        await asyncio.wait_for(broker.stalled.wait(), 20)
        assert inbox.frames() == []
        inbox.room.set()
        await until(lambda: len(inbox.frames()) >= len(frames), 20)
        assert feed.conn == 1
        assert feed.held_s > 0.4
    assert inbox.frames() == frames


async def test_dropped_for_not_reading_is_an_overrun(make_feed: MakeFeed, inbox: MemoryInbox, broker: Broker) -> None:
    """A connection that the broker ends right after reading stood still was ended by us, in effect."""
    closed = asyncio.Event()

    async def script(broker: Broker, ws: web.WebSocketResponse) -> None:
        await ws.send_bytes(b"one")
        await ws.send_bytes(b"two")
        await ws.close(code=1008)
        closed.set()

    broker.scripts = [script, serve]
    inbox.room.clear()
    now_s = 0.0
    feed = make_feed(monotonic_s=lambda: now_s)
    async with running(feed):
        await asyncio.wait_for(closed.wait(), 10)
        now_s += 5
        inbox.room.set()
        await until(lambda: inbox.facts("closed"))
    assert inbox.frames()[:2] == [b"one", b"two"]
    assert (inbox.facts("closed")[0]["code"], inbox.facts("closed")[0]["reason"]) == (1008, "overrun")


async def test_silent_connection_is_given_up(make_feed: MakeFeed, inbox: MemoryInbox, broker: Broker) -> None:
    """A broker that answers no ping is gone, whatever TCP says."""
    given_up = asyncio.Event()

    async def mute(broker: Broker, ws: web.WebSocketResponse) -> None:
        await given_up.wait()

    broker.scripts = [mute, serve]
    feed = make_feed(patience=quick(ping_s=0.1, pong_s=0.1))
    async with running(feed):
        await until(lambda: feed.state is FeedState.LIVE)
        given_up.set()
    end = inbox.facts("closed")[0]
    assert (end["code"], end["reason"], end["detail"]) == (1006, "silent", "no answer to a ping")


async def test_quiet_market_is_no_silence(make_feed: MakeFeed, broker: Broker) -> None:
    """Without data, pongs show that the connection lives."""
    feed = make_feed(patience=quick(ping_s=0.05, pong_s=0.05))
    pongs = 0

    async def script(broker: Broker, ws: web.WebSocketResponse) -> None:
        nonlocal pongs
        await ws.send_bytes(MARKET_INFO)
        await broker.subscribed(ws)
        await ws.send_bytes(SNAPSHOT)
        while True:
            message = await ws.receive()
            if message.type is WSMsgType.PING:
                pongs += 1
                await ws.pong(message.data)
            elif message.type is not WSMsgType.BINARY:
                return

    broker.scripts = [script]
    app_autoping = web.WebSocketResponse.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            web.WebSocketResponse, "__init__", lambda self, **kw: app_autoping(self, **(kw | {"autoping": False}))
        )
        async with running(feed):
            await until(lambda: pongs >= 4)
            assert (feed.conn, feed.state) == (1, FeedState.LIVE)


async def test_pings_are_answered(make_feed: MakeFeed, broker: Broker) -> None:
    """The broker's pings, one before any subscription, get their pongs."""
    answered = asyncio.Event()

    async def script(broker: Broker, ws: web.WebSocketResponse) -> None:
        await ws.ping(b"")
        await ws.ping(b"marked")
        ws._autoping = False  # so that receive returns the pongs
        pongs = []
        while len(pongs) < 2:
            message = await ws.receive()
            if message.type is WSMsgType.PONG:
                pongs.append(bytes(message.data))
        if pongs == [b"", b"marked"]:
            answered.set()
        await ws.close()

    broker.scripts = [script, serve]
    async with running(make_feed()):
        await asyncio.wait_for(answered.wait(), 10)


async def test_text_is_told_once_and_not_journalled(make_feed: MakeFeed, inbox: MemoryInbox, broker: Broker) -> None:
    """Only binary frames are data."""

    async def script(broker: Broker, ws: web.WebSocketResponse) -> None:
        await ws.send_str('{"status":"failed"}')
        await ws.send_str("again")
        await serve(broker, ws)

    broker.scripts = [script]
    feed = make_feed()
    with capture_logs() as logs:
        async with running(feed):
            await until(lambda: feed.state is FeedState.LIVE)
    assert inbox.frames() == [MARKET_INFO, SNAPSHOT]
    assert [entry["text"] for entry in logs if entry["event"] == "feed.text"] == ['{"status":"failed"}']


async def test_oversized_message(
    make_feed: MakeFeed, inbox: MemoryInbox, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message beyond the bound ends the connection; what came before it is kept."""
    monkeypatch.setattr("tickvault.brokers.upstox.dial.MAX_MESSAGE_BYTES", 1000)

    async def script(broker: Broker, ws: web.WebSocketResponse) -> None:
        await ws.send_bytes(MARKET_INFO)
        await ws.send_bytes(b"x" * 2000)
        await ws.receive()

    broker.scripts = [script, serve]
    feed = make_feed()
    async with running(feed):
        await until(lambda: feed.state is FeedState.LIVE)
    assert inbox.frames()[0] == MARKET_INFO
    assert (inbox.facts("closed")[0]["code"], inbox.facts("closed")[0]["reason"]) == (1009, "protocol")


async def test_stopping_takes_in_what_is_still_on_the_way(
    make_feed: MakeFeed, inbox: MemoryInbox, broker: Broker
) -> None:
    """What the broker sends before it answers the close is recorded."""

    async def script(broker: Broker, ws: web.WebSocketResponse) -> None:
        await ws.send_bytes(MARKET_INFO)
        await broker.subscribed(ws)
        await ws.send_bytes(SNAPSHOT)
        assert (await ws.receive()).type is WSMsgType.CLOSE
        for n in range(100):
            await ws.send_bytes(b"late %d" % n)
        await ws.close()

    broker.scripts = [script]
    feed = make_feed()
    async with running(feed):
        await until(lambda: feed.state is FeedState.LIVE)
    assert inbox.frames()[2:] == [b"late %d" % n for n in range(100)]
    assert inbox.facts("closed")[0]["reason"] == "stopped"


async def test_stopping_hands_over_what_was_read(make_feed: MakeFeed, inbox: MemoryInbox, broker: Broker) -> None:
    """A message that waits for room when the stop comes is not thrown away."""
    feed = make_feed()
    inbox.room.clear()
    async with running(feed) as stopping:
        await until(lambda: broker.requests and broker.requests[0])
        stopping.set()
        await until(lambda: broker.ended)
        inbox.room.set()
    assert inbox.frames() == [MARKET_INFO, SNAPSHOT]


async def test_stopping_does_not_wait_for_a_mute_broker(
    make_feed: MakeFeed, inbox: MemoryInbox, broker: Broker
) -> None:
    """A broker that neither closes nor falls silent is left after the allowed time."""
    left = asyncio.Event()

    async def script(broker: Broker, ws: web.WebSocketResponse) -> None:
        await broker.subscribed(ws)
        with contextlib.suppress(ConnectionError):
            while not left.is_set():
                await ws.send_bytes(SNAPSHOT)
                await asyncio.sleep(0.001)

    broker.scripts = [script]
    feed = make_feed(patience=quick(stop_s=0.2))
    async with running(feed) as stopping:
        await until(lambda: feed.state is FeedState.LIVE)
        stopping.set()
        begin_s = time.monotonic()
        await until(lambda: feed.state is FeedState.STOPPED)
        assert time.monotonic() - begin_s < 2
        left.set()
    assert inbox.order()[-1] == "closed"


@pytest.mark.parametrize("stage", ["subscriptions", "token", "authorize", "handshake", "definitions", "pause"])
async def test_stopping_is_prompt_at_every_stage(
    make_feed: MakeFeed, inbox: MemoryInbox, broker: Broker, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Wherever an attempt hangs, a stop ends it."""
    reached, released = asyncio.Event(), asyncio.Event()

    async def hang(*_: Any) -> Any:
        reached.set()
        await released.wait()

    class HangingToken:
        token = hang

    async def failed(*_: Any) -> None:
        reached.set()

    changed: dict[str, Any] = {}
    match stage:
        case "subscriptions":
            changed["subscriptions"] = hang
        case "token":
            changed["tokens"] = HangingToken()
        case "definitions":
            changed["before_subscribe"] = hang
        case "pause":
            broker.authorizing = [lambda: web.Response(status=429, headers={"Retry-After": "200"})]
            monkeypatch.setattr(inbox, "fact", failed)

    async with hanging_server(stage, reached, released) as url, aiohttp.ClientSession() as session:
        if stage in ("authorize", "handshake"):
            changed |= {"api": UpstoxApi(url, session), "session": session}
        feed = make_feed(**changed)
        async with running(feed) as stopping:
            await asyncio.wait_for(reached.wait(), 10)
            stopping.set()
            begin_s = time.monotonic()
            await until(lambda: feed.state is FeedState.STOPPED)
            assert time.monotonic() - begin_s < 2
        released.set()


@contextlib.asynccontextmanager
async def hanging_server(stage: str, reached: asyncio.Event, released: asyncio.Event) -> AsyncIterator[str]:
    """Serve a broker that hangs at the stage named."""

    async def authorize(request: web.Request) -> web.Response:
        if stage == "authorize":
            reached.set()
            await released.wait()
        uri = f"ws://{request.host}/feed?code=very-secret"
        return web.json_response({"data": {"authorized_redirect_uri": uri}})

    async def feed(request: web.Request) -> web.Response:
        reached.set()
        await released.wait()
        return web.Response(status=503)

    app = web.Application()
    app.router.add_get("/v3/feed/market-data-feed/authorize", authorize)
    app.router.add_get("/feed", feed)
    async with TestServer(app) as server:
        yield str(server.make_url("/"))


async def test_cancelling_is_not_swallowed(make_feed: MakeFeed, inbox: MemoryInbox) -> None:
    """A second signal cancels, and that is the end."""
    feed = make_feed()
    task = asyncio.create_task(feed.run(asyncio.Event()))
    await until(lambda: feed.state is FeedState.LIVE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_keys_beyond_the_limit_are_told(make_feed: MakeFeed, broker: Broker) -> None:
    """The broker ignores them without a word, so we say it."""

    async def subscriptions() -> tuple[Subscription, ...]:
        return tuple(Subscription(instrument_key=f"NSE_FO|{n}", mode=Mode.FULL_D30) for n in range(60))

    with capture_logs() as logs:
        async with running(make_feed(subscriptions=subscriptions)):
            await until(lambda: broker.requests and broker.requests[0])
    assert [entry["keys"] for entry in logs if entry["event"] == "feed.over_limit"] == [{"full_d30": 10}]
