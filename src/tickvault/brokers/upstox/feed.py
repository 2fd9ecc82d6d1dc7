"""One connection to the feed, kept open for ever: every message goes to the inbox, whatever happens.

Laws:
    A message that was read is in the inbox before anything else happens; it is never decoded or judged here.
    The reader is never cancelled by us while it hands a message over: it ends by itself, at the end of the connection
    or at a deadline. Only a cancelled `run` cuts it short.
    Every attempt asks for the token, authorizes and connects anew; an authorized address opens once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from typing import TYPE_CHECKING, Final, TypeVar

import aiohttp
import structlog
from aiohttp import ClientWSTimeout, WSMsgType
from yarl import URL

from tickvault.brokers.upstox.api import USER_AGENT, BrokerUnavailable, Failure, UpstoxApi, describe
from tickvault.brokers.upstox.plan import Method, RateLimit, backoff, chunks, excess, new_guid, request_bytes
from tickvault.brokers.upstox.tokens import StaticToken, TokenSource
from tickvault.errors import FeedUnavailable, TokenRefused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from tickvault.model import Inbox, Subscription

__all__ = ["Feed", "FeedState", "Patience"]

MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024  # the largest seen has 160 kB; 2,000 keys in one would have 0.7 MB
DEFLATE_WINDOW_BITS: Final = 15
# The first message is market_info, subscribed or not; a second one shows that the subscription is served.
LIVE_FRAMES: Final = 2
CLOSE_S: Final = 0.5  # for a connection that is given up; a polite end has taken place before
# The broker dropping us within 10 s of a wait for room of a second or more is put down to the wait.
HELD_S: Final = 1.0
HELD_RECENTLY_S: Final = 10.0

_T = TypeVar("_T")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class FeedState(StrEnum):
    """What the feed is doing."""

    IDLE = "idle"
    AUTHORIZING = "authorizing"
    CONNECTING = "connecting"
    SUBSCRIBING = "subscribing"
    LIVE = "live"
    WAITING = "waiting"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long the feed waits for what, in seconds.

    Attributes:
        connect_s: for the WebSocket handshake.
        definitions_s: for `before_subscribe`; then it subscribes without.
        send_s: for one request to leave.
        ping_s: of silence before a ping; with no subscribed trading, silence is normal.
        pong_s: for anything at all after the ping.
        stop_s: for the broker to close after we did.
        refused_token_s: before a token that was refused is tried again; another one is tried at once.
        tick_s: the reader looks up from an idle connection this often.
    """

    connect_s: float = 10.0
    definitions_s: float = 5.0
    send_s: float = 10.0
    ping_s: float = 30.0
    pong_s: float = 10.0
    stop_s: float = 2.0
    refused_token_s: float = 15.0
    tick_s: float = 0.5


@dataclass(slots=True, kw_only=True)
class _Link:
    """One open connection, and what its reader and its subscriber know of each other."""

    ws: aiohttp.ClientWebSocketResponse
    subscriptions: tuple[Subscription, ...]
    heard_s: float
    pinged_s: float | None = None
    held_until_s: float | None = None
    stop_by_s: float | None = None
    unsent: bool = False
    subscribed: bool = False
    frames: int = 0
    live: bool = False
    text_seen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    code: int
    reason: str
    detail: str = ""


@dataclass(slots=True)
class _Refused:
    """The token that was refused last, and when."""

    token: str | None = field(default=None, repr=False)
    at_s: float = 0.0
    words: str = ""


class Feed:
    """Receives from the broker until told to stop.

    Args:
        api: authorizes.
        tokens: asked once an attempt.
        subscriptions: what to subscribe to; asked once an attempt. FeedUnavailable: a failed attempt.
        inbox: gets every binary message, and the facts `conn` (open, closed, failed) and `sub`.
        before_subscribe: called with each connection open and already read from, before its subscriptions are sent.
        session: the program's HTTP session; not closed here. TLS is verified as it says.
        clock_ns: UTC wall clock in ns.
        monotonic_s: monotonic clock in s.
        random: source of jitter and of request ids.
        first_conn: number of the first connection that opens.
        rate: bounds the authorize calls; shared when several feeds use one account.
        patience: how long to wait for what.

    Attributes:
        state: what it is doing.
        conn: number of the connection that is open, or was last; first_conn - 1 before any.
        frames: binary messages received.
        last_frame_s: monotonic time of the last one.
        reconnects: connections opened after the first.
        held_s: seconds that reading stood still for want of room in the inbox.
        last_error: the last failure in one line, without secrets; None once live.
    """

    def __init__(
        self,
        *,
        api: UpstoxApi,
        tokens: TokenSource,
        subscriptions: Callable[[], Awaitable[tuple[Subscription, ...]]],
        inbox: Inbox,
        before_subscribe: Callable[[tuple[Subscription, ...]], Awaitable[None]],
        session: aiohttp.ClientSession,
        clock_ns: Callable[[], int] = time.time_ns,
        monotonic_s: Callable[[], float] = time.monotonic,
        random: Random | None = None,
        first_conn: int = 1,
        rate: RateLimit | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.state = FeedState.IDLE
        self.conn = first_conn - 1
        self.frames = 0
        self.last_frame_s: float | None = None
        self.reconnects = 0
        self.held_s = 0.0
        self.last_error: str | None = None
        self._api = api
        self._tokens = tokens
        self._subscriptions = subscriptions
        self._inbox = inbox
        self._before_subscribe = before_subscribe
        self._session = session
        self._clock_ns = clock_ns
        self._monotonic_s = monotonic_s
        self._random = random or Random()  # noqa: S311 - jitter, not a secret
        self._first_conn = first_conn
        self._rate = rate or RateLimit()
        self._patience = patience or Patience()
        self._refused = _Refused()
        self._failed: tuple[Failure, str] | None = None

    async def run(self, stopping: asyncio.Event) -> None:
        """Receive until `stopping` is set; then everything read is in the inbox, and the connection is closed.

        Raises:
            TokenRefused: at the very first attempt, of a static token. Later it waits for the token to be accepted.
        """
        delays, first = backoff(self._random), True
        while not stopping.is_set():
            outcome = await _unless(stopping, self._attempt())
            retry_after_s = 0.0
            if isinstance(outcome, _Link):
                await self._hold(outcome, stopping)
                if outcome.live:
                    delays = backoff(self._random)
            elif outcome is not None:
                await self._note_failure(outcome)
                if first and isinstance(outcome, TokenRefused) and isinstance(self._tokens, StaticToken):
                    self.state = FeedState.STOPPED
                    raise outcome
                if isinstance(outcome, FeedUnavailable):
                    retry_after_s = outcome.retry_after_s or 0.0
            first = False
            self.state = FeedState.WAITING
            await _sleep(stopping, max(next(delays), retry_after_s))
        self.state = FeedState.STOPPED
        log.info("feed.stopped", conn=self.conn, frames=self.frames)

    async def _attempt(self) -> _Link | TokenRefused | FeedUnavailable:
        """Open a connection, or return why not; its last await is the one that opens it, so none is left over."""
        try:
            await asyncio.sleep(self._rate.delay_s(self._monotonic_s()))
            self.state = FeedState.AUTHORIZING
            subscriptions = await self._subscriptions()
            uri = await self._authorize()
            self.state = FeedState.CONNECTING
            return _Link(ws=await self._connect(uri), subscriptions=subscriptions, heard_s=self._monotonic_s())
        except (TokenRefused, FeedUnavailable) as exc:
            return exc

    async def _authorize(self) -> str:
        token = await self._tokens.token()
        now_s = self._monotonic_s()
        if token == self._refused.token and now_s - self._refused.at_s < self._patience.refused_token_s:
            raise TokenRefused(self._refused.words)
        self._rate.note(now_s)
        try:
            return await self._api.authorize(token)
        except TokenRefused as exc:
            self._refused = _Refused(token, self._monotonic_s(), str(exc))
            raise

    async def _connect(self, uri: str) -> aiohttp.ClientWebSocketResponse:
        try:
            async with asyncio.timeout(self._patience.connect_s):
                return await self._session.ws_connect(
                    URL(uri, encoded=True),
                    headers={"User-Agent": USER_AGENT},
                    timeout=ClientWSTimeout(ws_close=CLOSE_S),
                    compress=DEFLATE_WINDOW_BITS,
                    max_msg_size=MAX_MESSAGE_BYTES,
                    # Pings are our own (_idle): aiohttp's heartbeat counts the time that we do not read as silence,
                    # and then throws away what it holds. A slow disk would cost frames.
                    heartbeat=None,
                    autoping=False,
                )
        except aiohttp.WSServerHandshakeError as exc:
            reason = Failure.RATE_LIMITED if exc.status == 429 else Failure.REFUSED
            # Without its cause, whose text has the authorized address.
            raise BrokerUnavailable(f"the feed refuses the connection: HTTP {exc.status}", reason=reason) from None
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            raise BrokerUnavailable(f"the feed cannot be reached: {describe(exc)}", reason=Failure.UNREACHABLE) from exc

    async def _note_failure(self, exc: TokenRefused | FeedUnavailable) -> None:
        if isinstance(exc, TokenRefused):
            reason = Failure.TOKEN_REJECTED
        else:
            reason = exc.reason if isinstance(exc, BrokerUnavailable) else Failure.UNREACHABLE
        self.last_error = str(exc)
        if (reason, self.last_error) == self._failed:
            return  # an outage of a night is one fact, not a thousand
        self._failed = (reason, self.last_error)
        log.warning("feed.failed", conn=self.conn + 1, reason=reason.value, error=self.last_error)
        body = {"conn": self.conn + 1, "state": "failed", "reason": reason.value, "detail": self.last_error}
        await self._inbox.fact("conn", body)

    async def _hold(self, link: _Link, stopping: asyncio.Event) -> None:
        """Read and subscribe until the connection ends; write down its beginning and its end."""
        self.conn += 1
        self.reconnects = self.conn - self._first_conn
        self.state, self._failed = FeedState.SUBSCRIBING, None
        deflate = bool(link.ws.compress)
        try:
            await self._inbox.fact("conn", {"conn": self.conn, "state": "open", "deflate": deflate})
            log.info("feed.open", conn=self.conn, deflate=deflate, keys=len(link.subscriptions))
            async with asyncio.TaskGroup() as group:
                subscriber = group.create_task(self._subscribe(link), name="feed:subscribe")
                farewell = group.create_task(self._bid_farewell(link, stopping), name="feed:farewell")
                end = await self._read(link)
                subscriber.cancel()
                farewell.cancel()
        finally:
            # aiohttp's own timeout starts again with every message, and a broker that goes on sending holds it for ever.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await link.ws.close()
        if stopping.is_set():
            end = _End(code=1000, reason="stopped")
        else:
            self.last_error = f"connection {self.conn} ended: {end.reason}, code {end.code} {end.detail}".rstrip()
        ending = {"code": end.code, "reason": end.reason, "detail": end.detail}
        (log.info if stopping.is_set() else log.warning)("feed.closed", conn=self.conn, **ending)
        await self._inbox.fact("conn", {"conn": self.conn, "state": "closed", **ending})

    async def _subscribe(self, link: _Link) -> None:
        try:
            async with asyncio.timeout(self._patience.definitions_s):
                await self._before_subscribe(link.subscriptions)
        except TimeoutError:
            log.warning("feed.definitions_late", conn=self.conn)
        if over := excess(link.subscriptions):
            log.warning("feed.over_limit", conn=self.conn, keys={mode.value: count for mode, count in over.items()})
        link.subscribed = True
        for request in chunks(link.subscriptions):
            guid, mode = new_guid(self._random), request.mode
            # The fact first: the snapshot that answers the request must come after it in the journal.
            body = {"conn": self.conn, "mode": mode.value, "keys": list(request.keys), "guid": guid}
            await self._inbox.fact("sub", body)
            try:
                async with asyncio.timeout(self._patience.send_s):
                    await link.ws.send_bytes(request_bytes(guid, Method.SUB, mode, request.keys))
            except TimeoutError:
                link.unsent = True
                return
            except (aiohttp.ClientError, OSError):
                return  # the connection is gone, and the reader comes to its end by itself

    async def _bid_farewell(self, link: _Link, stopping: asyncio.Event) -> None:
        await stopping.wait()
        link.stop_by_s = self._monotonic_s() + self._patience.stop_s
        # Not ws.close(): it throws away what is still to be read. The reader reads on to the broker's answer.
        await self._control(link, b"\x03\xe8", WSMsgType.CLOSE)

    async def _read(self, link: _Link) -> _End:
        ws = link.ws
        while True:
            now_s = self._monotonic_s()
            if link.stop_by_s is not None and now_s >= link.stop_by_s:
                return _End(code=1006, reason="stopped")
            if link.unsent:
                return _End(code=1006, reason="silent", detail="it does not take our requests")
            try:
                message = await ws.receive(timeout=self._patience.tick_s)
            except TimeoutError:
                if await self._idle(link):
                    return _End(code=1006, reason="silent", detail="no answer to a ping")
                continue
            match message.type:
                case WSMsgType.BINARY:
                    await self._take(link, message.data)
                case WSMsgType.PING:
                    await self._control(link, message.data, WSMsgType.PONG)
                case WSMsgType.TEXT if not link.text_seen:
                    # Data is binary; text has not been seen but may hold an error in words (documented nowhere).
                    link.text_seen = True
                    log.warning("feed.text", conn=self.conn, text=message.data[:200])
                case WSMsgType.TEXT | WSMsgType.PONG:
                    pass
                case WSMsgType.CLOSE:
                    return self._dropped(link, message.data or 1005, "closed", str(message.extra or "")[:200])
                case WSMsgType.ERROR:
                    return _End(code=ws.close_code or 1006, reason="protocol", detail=str(message.data)[:200])
                case _:
                    # aiohttp calls an end without a close frame 1000; RFC 6455 calls it 1006.
                    return self._dropped(link, 1006, "lost", "")
            link.heard_s, link.pinged_s = self._monotonic_s(), None

    async def _take(self, link: _Link, payload: bytes) -> None:
        received_s = self._monotonic_s()
        await self._inbox.frame(self._clock_ns(), self.conn, payload)
        now_s = self._monotonic_s()
        if now_s - received_s >= HELD_S:
            link.held_until_s = now_s
        self.held_s += now_s - received_s
        self.frames += 1
        self.last_frame_s = received_s
        link.frames += 1
        if link.subscribed and not link.live and link.frames >= LIVE_FRAMES:
            link.live = True
            self.state, self.last_error = FeedState.LIVE, None
            log.info("feed.live", conn=self.conn)

    async def _idle(self, link: _Link) -> bool:
        """Ping a silent connection; return whether it is dead."""
        now_s = self._monotonic_s()
        if link.pinged_s is not None:
            return now_s - link.pinged_s >= self._patience.pong_s
        if now_s - link.heard_s >= self._patience.ping_s:
            link.pinged_s = now_s
            await self._control(link, b"", WSMsgType.PING)
        return False

    async def _control(self, link: _Link, payload: bytes, kind: WSMsgType) -> None:
        # A connection that takes no more may still have messages to read; the reader comes to its end by itself.
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with asyncio.timeout(self._patience.send_s):
                await link.ws.send_frame(payload, kind)

    def _dropped(self, link: _Link, code: int, reason: str, detail: str) -> _End:
        held = link.held_until_s is not None and self._monotonic_s() - link.held_until_s < HELD_RECENTLY_S
        return _End(code=code, reason="overrun" if held else reason, detail=detail)


async def _unless(stopping: asyncio.Event, work: Coroutine[None, None, _T]) -> _T | None:
    """Return what the work returns, or give it up and return None when `stopping` is set first."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work, name="feed:attempt")
        stop = group.create_task(stopping.wait(), name="feed:stopping")
        await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
        task.cancel()
        stop.cancel()
    return None if task.cancelled() else task.result()


async def _sleep(stopping: asyncio.Event, delay_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(delay_s):
            await stopping.wait()
