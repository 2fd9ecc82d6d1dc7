"""One open connection to the broker: read to its end, and meanwhile whatever the session wants done.

Laws:
    A message that was read is in the inbox before anything else happens; then a copy goes to the supervisor, which may
    lose it. The reader waits for the inbox and for nothing else.
    The reader is never cancelled by us while it hands a message over: it ends by itself, at the end of the connection
    or when the session abandons it.
    Nothing is decided here: events go to the session, and what it answers is done.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, assert_never

import aiohttp
import structlog
from aiohttp import WSMsgType

from tickvault.brokers.upstox.dial import CLOSE_S
from tickvault.brokers.upstox.events import Due, Opened, Plain
from tickvault.brokers.upstox.observe import RawFrame, Sight
from tickvault.brokers.upstox.plan import MAX_KEYS, Method, chunks, excess, new_guid, request_bytes
from tickvault.brokers.upstox.session import SessionPatience
from tickvault.brokers.upstox.transitions import Do, State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

    from tickvault.brokers.upstox.events import Action, Event
    from tickvault.brokers.upstox.plan import SubscribeRequest
    from tickvault.brokers.upstox.session import Session
    from tickvault.brokers.upstox.supervision import Supervision
    from tickvault.model import Inbox, Mode, Subscription

__all__ = ["Change", "Connection", "End", "Patience", "Tally"]

# The broker dropping us within 10 s of a wait for room of a second or more is put down to the wait.
HELD_S: Final = 1.0
HELD_RECENTLY_S: Final = 10.0
# What came while we did not read is read and seen this long after.
CATCH_UP_S: Final = 2.0

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience(SessionPatience):
    """How long the feed waits for what, in seconds: what the session has, and more.

    Attributes:
        connect_s: for the WebSocket handshake.
        definitions_s: for `before_subscribe`; then it subscribes without.
        send_s: for one request to leave.
        refused_token_s: for another token than one that was refused, before the attempt begins anew without asking the
            broker.
        renewal_s: between two looks for another token before the session.
        tick_s: the reader looks up from an idle connection this often.
        observe_s: frames are observed in groups of so much time.
    """

    connect_s: float = 10.0
    definitions_s: float = 5.0
    send_s: float = 10.0
    refused_token_s: float = 300.0
    renewal_s: float = 30.0
    tick_s: float = 0.5
    observe_s: float = 0.25


@dataclass(slots=True)
class Tally:
    """What all connections of a feed have received.

    Attributes:
        frames: binary messages.
        last_frame_s: monotonic time of the last one.
        held_s: seconds that reading stood still for want of room in the inbox.
        unobserved: messages that the supervisor was too slow for; recorded like all others.
    """

    frames: int = 0
    last_frame_s: float | None = None
    held_s: float = 0.0
    unobserved: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What an open connection is to serve besides, and what no longer."""

    new: tuple[Subscription, ...] = ()
    gone: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a connection ended; journalled."""

    code: int
    reason: str
    detail: str = ""


@dataclass(slots=True, kw_only=True)
class Connection:
    """One open connection, and what its tasks know of each other.

    Attributes:
        ws: the WebSocket, closed by `run`.
        number: of the connection, in the journal.
        subscriptions: what to subscribe to; `requests` the messages that do it.
        inbox: gets every binary message, and the facts `conn` (live), `sub`, `unsub` and `watch`.
        before_subscribe: called, already read from, before the subscriptions are sent.
        session: told what happens; says what to do.
        supervision: sees what comes.
        on_live: called each time that the session becomes live, with whether subscribed keys deliver; again when they do.
        tally: counts on.
        clock_ns: UTC wall clock in ns.
        monotonic_s: monotonic clock in s.
        random: source of request ids.
        patience: how long to wait for what.
        changes: what is to be subscribed to and unsubscribed from besides, later.
    """

    ws: aiohttp.ClientWebSocketResponse
    number: int
    subscriptions: tuple[Subscription, ...]
    requests: tuple[SubscribeRequest, ...]
    inbox: Inbox
    before_subscribe: Callable[[tuple[Subscription, ...]], Awaitable[None]]
    session: Session
    supervision: Supervision
    on_live: Callable[[bool], None]
    tally: Tally
    clock_ns: Callable[[], int]
    monotonic_s: Callable[[], float]
    random: Random
    patience: Patience
    changes: asyncio.Queue[Change] = field(default_factory=asyncio.Queue, init=False)
    _asked: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _sight: Sight = field(default_factory=Sight, init=False)
    _came: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _over: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _requested: asyncio.Queue[Action] = field(default_factory=asyncio.Queue, init=False)
    _controls: asyncio.Queue[Action] = field(default_factory=asyncio.Queue, init=False)
    _holding_since_s: float | None = field(default=None, init=False)
    _held_until_s: float | None = field(default=None, init=False)
    _closing: Action | None = field(default=None, init=False)
    _abandoned: End | None = field(default=None, init=False)
    _text_seen: bool = field(default=False, init=False)
    _is_served: bool = field(default=False, init=False)
    _told_live: bool = field(default=False, init=False)

    async def run(self, stopping: asyncio.Event) -> End:
        """Read and subscribe until the connection ends, and say how it did; `stopping` asks the broker for that end."""
        self.supervision.connected(self.number, self.requests, self.monotonic_s(), self.clock_ns())
        self._tell(Opened(len(self.requests)))
        async with asyncio.TaskGroup() as group:
            subscriber = group.create_task(self._subscribe(), name="feed:subscribe")
            amender = group.create_task(self._amend(), name="feed:amend")
            controller = group.create_task(self._control_connection(), name="feed:control")
            farewell = group.create_task(self._bid_farewell(stopping), name="feed:farewell")
            group.create_task(self._supervise(), name="feed:supervise")
            end = await self._read()
            self._over.set()
            self._came.set()
            for task in (subscriber, amender, controller, farewell):
                task.cancel()
        return end

    def renew(self) -> None:
        """Have the session close this connection for one with another token."""
        self._tell(Plain.RENEWED)

    async def aclose(self) -> None:
        """Give the connection up, at once."""
        # aiohttp's own timeout starts again with every message, and a broker that goes on sending holds it for ever.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self.ws.close()

    def _tell(self, event: Event) -> None:
        """Tell the session what happened, and see to what it wants done."""
        before = self.session.state
        for action in self.session.on(event, self.monotonic_s()):
            match action.do:
                case Do.DEFINE | Do.SUBSCRIBE:
                    self._requested.put_nowait(action)
                case Do.PING | Do.CLOSE:
                    self._controls.put_nowait(action)
                    self._closing = action if action.do is Do.CLOSE else self._closing
                case Do.ABANDON:
                    self._abandoned = End(code=1006, reason=action.reason, detail=action.detail)
                case Do.WAIT:
                    pass  # session.timer_s has it
                case Do.PREPARE | Do.AUTHORIZE | Do.CONNECT:
                    raise AssertionError(action)  # never while a connection is open
                case _:
                    assert_never(action.do)
        if self.session.state is not before:
            self.supervision.moved(before, self.session.state, self.clock_ns())
            if self.session.state in (State.SNAPSHOTS, State.LIVE):
                self._asked.set()
        served = self.supervision.delivers
        if self.session.state is State.LIVE and (self.session.state is not before or served is not self._is_served):
            self._is_served = served
            self.on_live(served)

    async def _subscribe(self) -> None:
        while True:
            action = await self._requested.get()
            if action.do is Do.DEFINE:
                await self._define(self.subscriptions)
                self._tell(Plain.DEFINED)
                continue
            request = self.requests[action.request]
            if await self._request(Method.SUB, request.mode, request.keys):
                self.supervision.subscribed(action.request, self.monotonic_s())
                self._tell(Plain.SENT)

    async def _define(self, subscriptions: tuple[Subscription, ...]) -> None:
        try:
            async with asyncio.timeout(self.patience.definitions_s):
                await self.before_subscribe(subscriptions)
        except TimeoutError:
            log.warning("feed.definitions_late", conn=self.number)
        if over := excess(subscriptions):
            log.warning("feed.over_limit", conn=self.number, keys={mode.value: count for mode, count in over.items()})

    async def _amend(self) -> None:
        """Subscribe to more and unsubscribe from some, once everything was asked for that was wanted at first."""
        await self._asked.wait()
        while True:
            try:
                async with asyncio.timeout(self.patience.tick_s):
                    change = await self.changes.get()
            except TimeoutError:
                await self._ask_again()
                continue
            # First what goes: the broker counts, and ignores what is one too many.
            for start in range(0, len(change.gone), MAX_KEYS):
                keys = change.gone[start : start + MAX_KEYS]
                self.supervision.drop(keys, self.monotonic_s(), self.clock_ns())
                await self._request(Method.UNSUB, None, keys)
            if not change.new:
                continue
            await self._define(change.new)
            requests = chunks(change.new)
            first = self.supervision.extend(requests, self.monotonic_s(), self.clock_ns())
            for number, request in enumerate(requests, first):
                if await self._request(Method.SUB, request.mode, request.keys):
                    self.supervision.subscribed(number, self.monotonic_s())

    async def _ask_again(self) -> None:
        """Make the requests that brought nothing, while others did, once more: the broker has ignored some."""
        missed = self.supervision.overdue(self.monotonic_s()) if self.session.state is State.LIVE else ()
        if missed:
            keys = sum(len(request.keys) for request in missed)
            log.warning("feed.unanswered", conn=self.number, requests=len(missed), keys=keys)
        for request in missed:
            await self._request(Method.UNSUB, None, request.keys)
            await self._request(Method.SUB, request.mode, request.keys)

    async def _request(self, method: Method, mode: Mode | None, keys: tuple[str, ...]) -> bool:
        """Send one request; return whether it left."""
        guid = new_guid(self.random)
        # The fact first: the snapshot that answers the request must come after it in the journal.
        named = {} if mode is None else {"mode": mode.value}
        await self.inbox.fact(method.value, {"conn": self.number, **named, "keys": list(keys), "guid": guid})
        try:
            async with asyncio.timeout(self.patience.send_s):
                await self.ws.send_bytes(request_bytes(guid, method, mode, keys))
        except TimeoutError:
            self._abandoned = End(code=1006, reason="silent", detail="it does not take our requests")
            return False
        except (aiohttp.ClientError, OSError):
            return False  # the connection is gone, and the reader comes to its end by itself
        return True

    async def _control_connection(self) -> None:
        while True:
            if (await self._controls.get()).do is Do.PING:
                await self._control(b"", WSMsgType.PING)
            else:
                # Not ws.close(): it throws away what is still to be read. The reader reads on to the broker's answer.
                await self._control(b"\x03\xe8", WSMsgType.CLOSE)

    async def _bid_farewell(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self._tell(Plain.STOP)

    async def _read(self) -> End:
        while True:
            if self.session.state is State.CLOSING:
                self._tell(Due())
            if self._abandoned is not None:
                return self._abandoned
            try:
                message = await self.ws.receive(timeout=self.patience.tick_s)
            except TimeoutError:
                self._tell(Plain.IDLE)
                continue
            if (end := await self._handle(message)) is not None:
                return end
            self._tell(Plain.HEARD)

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
        received_s, received_ns = self.monotonic_s(), self.clock_ns()
        self._holding_since_s = received_s
        await self.inbox.frame(received_ns, self.number, payload)
        self._holding_since_s, now_s = None, self.monotonic_s()
        if now_s - received_s >= HELD_S:
            self._held_until_s = now_s
        self.tally.held_s += now_s - received_s
        self.tally.frames += 1
        self.tally.last_frame_s = received_s
        frame = RawFrame(conn=self.number, received_ns=received_ns, received_s=received_s, payload=payload)
        self._sight.put(frame)
        self._came.set()

    async def _supervise(self) -> None:
        """Observe what came, in groups; the frames of a connection that is not live yet, at once."""
        while True:
            over, lost = self._over.is_set(), self._sight.lost
            frames, self._sight.lost = self._sight.take(), 0
            self._came.clear()
            self.tally.unobserved += lost
            seen = await asyncio.to_thread(self.supervision.observe, frames) if frames else []
            reading = self._is_reading() and not lost
            if lost:
                self.supervision.overlook()
            for event in self.supervision.digest(seen, self.monotonic_s(), self.clock_ns(), reading=reading):
                self._tell(event)
            # While we do not read, the absence of data says nothing; definitions and requests go on.
            if not over and (reading or self.session.state is State.GREETING):
                self._tell(Due(expected=self.supervision.expects(self.clock_ns())))
            if self.session.state is State.LIVE and not self._told_live:
                self._told_live = True
                await self.inbox.fact("conn", {"conn": self.number, "state": "live"})
            for fact in self.supervision.take_facts():
                await self.inbox.fact("watch", fact)
            if over:
                return
            await self._wait(self._came)
            if self.session.state is State.LIVE:
                await self._wait(self._over)

    async def _wait(self, event: asyncio.Event) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.patience.observe_s):
                await event.wait()

    def _is_reading(self) -> bool:
        """Whether what the broker sends is read without delay, so that its absence means something."""
        now_s = self.monotonic_s()
        if self._holding_since_s is not None and now_s - self._holding_since_s >= self.patience.observe_s:
            return False
        return self._held_until_s is None or now_s - self._held_until_s >= CATCH_UP_S

    async def _control(self, payload: bytes, kind: WSMsgType) -> None:
        # A connection that takes no more may still have messages to read; the reader comes to its end by itself.
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with asyncio.timeout(self.patience.send_s):
                await self.ws.send_frame(payload, kind)

    def _dropped(self, code: int, reason: str, detail: str) -> End:
        if self._closing is not None:
            return End(code=code, reason=self._closing.reason, detail=self._closing.detail)
        held = self._held_until_s is not None and self.monotonic_s() - self._held_until_s < HELD_RECENTLY_S
        return End(code=code, reason="overrun" if held else reason, detail=detail)
