"""One open connection to the broker: read to its end, subscribed to and kept awake meanwhile.

Laws:
    A message that was read is in the inbox before anything else happens; it is never decoded or judged here.
    The reader is never cancelled by us while it hands a message over: it ends by itself, at the end of the connection
    or at a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import aiohttp
import structlog
from aiohttp import ClientWSTimeout, WSMsgType
from yarl import URL

from tickvault.brokers.upstox.api import USER_AGENT, BrokerUnavailable, Failure, describe
from tickvault.brokers.upstox.plan import Method, chunks, excess, new_guid, request_bytes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

    from tickvault.model import Inbox, Subscription

__all__ = ["Connection", "End", "Patience", "Tally", "connect"]

MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024  # the largest seen has 160 kB; 2,000 keys in one would have 0.7 MB
DEFLATE_WINDOW_BITS: Final = 15
# The first message is market_info, subscribed or not; a second one shows that the subscription is served.
LIVE_FRAMES: Final = 2
CLOSE_S: Final = 0.5  # for a connection that is given up; a polite end has taken place before
# The broker dropping us within 10 s of a wait for room of a second or more is put down to the wait.
HELD_S: Final = 1.0
HELD_RECENTLY_S: Final = 10.0

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


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


@dataclass(slots=True)
class Tally:
    """What all connections of a feed have received.

    Attributes:
        frames: binary messages.
        last_frame_s: monotonic time of the last one.
        held_s: seconds that reading stood still for want of room in the inbox.
    """

    frames: int = 0
    last_frame_s: float | None = None
    held_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a connection ended; journalled."""

    code: int
    reason: str
    detail: str = ""


async def connect(session: aiohttp.ClientSession, uri: str, timeout_s: float) -> aiohttp.ClientWebSocketResponse:
    """Return the WebSocket at an authorized address, which opens once.

    Raises:
        BrokerUnavailable: it does not open; no message has the address.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await session.ws_connect(
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


@dataclass(slots=True, kw_only=True)
class Connection:
    """One open connection, and what its reader and its subscriber know of each other.

    Attributes:
        ws: the WebSocket, closed by `run`.
        number: of the connection, in the journal.
        subscriptions: what to subscribe to.
        inbox: gets every binary message, and the facts `sub`.
        before_subscribe: called, already read from, before the subscriptions are sent.
        on_live: called once, when the subscription is served.
        tally: counts on.
        clock_ns: UTC wall clock in ns.
        monotonic_s: monotonic clock in s.
        random: source of request ids.
        patience: how long to wait for what.
        heard_s: monotonic time of the last sign of life.
        live: whether the subscription was served.
    """

    ws: aiohttp.ClientWebSocketResponse
    number: int
    subscriptions: tuple[Subscription, ...]
    inbox: Inbox
    before_subscribe: Callable[[tuple[Subscription, ...]], Awaitable[None]]
    on_live: Callable[[], None]
    tally: Tally
    clock_ns: Callable[[], int]
    monotonic_s: Callable[[], float]
    random: Random
    patience: Patience
    heard_s: float
    live: bool = False
    _frames: int = field(default=0, init=False)
    _pinged_s: float | None = field(default=None, init=False)
    _held_until_s: float | None = field(default=None, init=False)
    _stop_by_s: float | None = field(default=None, init=False)
    _unsent: bool = field(default=False, init=False)
    _subscribed: bool = field(default=False, init=False)
    _text_seen: bool = field(default=False, init=False)

    async def run(self, stopping: asyncio.Event) -> End:
        """Read and subscribe until the connection ends, and say how it did; `stopping` asks the broker for that end."""
        async with asyncio.TaskGroup() as group:
            subscriber = group.create_task(self._subscribe(), name="feed:subscribe")
            farewell = group.create_task(self._bid_farewell(stopping), name="feed:farewell")
            end = await self._read()
            subscriber.cancel()
            farewell.cancel()
        return end

    async def aclose(self) -> None:
        """Give the connection up, at once."""
        # aiohttp's own timeout starts again with every message, and a broker that goes on sending holds it for ever.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self.ws.close()

    async def _subscribe(self) -> None:
        try:
            async with asyncio.timeout(self.patience.definitions_s):
                await self.before_subscribe(self.subscriptions)
        except TimeoutError:
            log.warning("feed.definitions_late", conn=self.number)
        if over := excess(self.subscriptions):
            log.warning("feed.over_limit", conn=self.number, keys={mode.value: count for mode, count in over.items()})
        self._subscribed = True
        for request in chunks(self.subscriptions):
            guid, mode = new_guid(self.random), request.mode
            # The fact first: the snapshot that answers the request must come after it in the journal.
            body = {"conn": self.number, "mode": mode.value, "keys": list(request.keys), "guid": guid}
            await self.inbox.fact("sub", body)
            try:
                async with asyncio.timeout(self.patience.send_s):
                    await self.ws.send_bytes(request_bytes(guid, Method.SUB, mode, request.keys))
            except TimeoutError:
                self._unsent = True
                return
            except (aiohttp.ClientError, OSError):
                return  # the connection is gone, and the reader comes to its end by itself

    async def _bid_farewell(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self._stop_by_s = self.monotonic_s() + self.patience.stop_s
        # Not ws.close(): it throws away what is still to be read. The reader reads on to the broker's answer.
        await self._control(b"\x03\xe8", WSMsgType.CLOSE)

    async def _read(self) -> End:
        while True:
            if self._stop_by_s is not None and self.monotonic_s() >= self._stop_by_s:
                return End(code=1006, reason="stopped")
            if self._unsent:
                return End(code=1006, reason="silent", detail="it does not take our requests")
            try:
                message = await self.ws.receive(timeout=self.patience.tick_s)
            except TimeoutError:
                if await self._idle():
                    return End(code=1006, reason="silent", detail="no answer to a ping")
                continue
            if (end := await self._handle(message)) is not None:
                return end
            self.heard_s, self._pinged_s = self.monotonic_s(), None

    async def _handle(self, message: aiohttp.WSMessage) -> End | None:
        match message.type:
            case WSMsgType.BINARY:
                await self._take(message.data)
            case WSMsgType.PING:
                await self._control(message.data, WSMsgType.PONG)
            case WSMsgType.TEXT if not self._text_seen:
                # Data is binary; text has not been seen but may hold an error in words (documented nowhere).
                self._text_seen = True
                log.warning("feed.text", conn=self.number, text=message.data[:200])
            case WSMsgType.TEXT | WSMsgType.PONG:
                pass
            case WSMsgType.CLOSE:
                return self._dropped(message.data or 1005, "closed", str(message.extra or "")[:200])
            case WSMsgType.ERROR:
                return End(code=self.ws.close_code or 1006, reason="protocol", detail=str(message.data)[:200])
            case _:
                # aiohttp calls an end without a close frame 1000; RFC 6455 calls it 1006.
                return self._dropped(1006, "lost", "")
        return None

    async def _take(self, payload: bytes) -> None:
        received_s = self.monotonic_s()
        await self.inbox.frame(self.clock_ns(), self.number, payload)
        now_s = self.monotonic_s()
        if now_s - received_s >= HELD_S:
            self._held_until_s = now_s
        self.tally.held_s += now_s - received_s
        self.tally.frames += 1
        self.tally.last_frame_s = received_s
        self._frames += 1
        if self._subscribed and not self.live and self._frames >= LIVE_FRAMES:
            self.live = True
            self.on_live()

    async def _idle(self) -> bool:
        """Ping a silent connection; return whether it is dead."""
        now_s = self.monotonic_s()
        if self._pinged_s is not None:
            return now_s - self._pinged_s >= self.patience.pong_s
        if now_s - self.heard_s >= self.patience.ping_s:
            self._pinged_s = now_s
            await self._control(b"", WSMsgType.PING)
        return False

    async def _control(self, payload: bytes, kind: WSMsgType) -> None:
        # A connection that takes no more may still have messages to read; the reader comes to its end by itself.
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with asyncio.timeout(self.patience.send_s):
                await self.ws.send_frame(payload, kind)

    def _dropped(self, code: int, reason: str, detail: str) -> End:
        held = self._held_until_s is not None and self.monotonic_s() - self._held_until_s < HELD_RECENTLY_S
        return End(code=code, reason="overrun" if held else reason, detail=detail)
