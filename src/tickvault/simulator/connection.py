"""One client's WebSocket: takes its requests, sends it snapshots and conflated updates."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from aiohttp import WSMsgType, web

from tickvault.simulator.script import AimedTimed, Deaf, Mute, NoSnapshot, Stall, Timed
from tickvault.simulator.subscriptions import Answer, parse_request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tickvault.simulator.subscriptions import Subscriptions

__all__ = ["Connection", "Venue", "reset"]

_QUEUED: Final = 256  # snapshots and hand-made frames; at the bound requests wait, and TCP holds the client
_POLL_S: Final = 0.02
_CLOSE_S: Final = 5.0

T = TypeVar("T", bound=Timed)
A = TypeVar("A", bound=AimedTimed)


def reset(transport: asyncio.Transport | None) -> None:
    """End a TCP connection with RST instead of FIN."""
    if transport is None:
        return
    raw = transport.get_extra_info("socket")
    if raw is not None:
        # Lingering for 0 s makes the kernel send RST.
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class Venue(Protocol):
    """What a connection asks of the exchange behind it; every connection calls it from a task of its own."""

    def holds(self, kind: type[T]) -> T | None:
        """Return the fault of this kind that is in force."""

    def subscribed(self, answer: Answer) -> None:
        """Note what the connection now wants; called before the answer waits to be sent."""

    async def tell(self, connection: Connection, item: bytes | Answer | None) -> None:
        """Send a frame as it is, a snapshot, or what has changed (None), and nothing when nothing has."""


class Connection:
    """One open WebSocket.

    Attributes:
        number: counts connections from 1.
        subscriptions: what it has asked for.
        dirty: position → parts changed since it was last told.
        gone: set when it has ended.
        held: a live frame that is to follow the next one.
    """

    def __init__(
        self,
        number: int,
        request: web.Request,
        socket: web.WebSocketResponse,
        subscriptions: Subscriptions,
        venue: Venue,
        ping_after_s: float,
    ) -> None:
        """Take over a WebSocket whose handshake is done."""
        self.number, self.subscriptions = number, subscriptions
        self.dirty: dict[int, int] = {}
        self.gone = asyncio.Event()
        self._request, self._socket, self._venue = request, socket, venue
        self._ping_after_s = ping_after_s
        # bytes: a frame as it is; Answer: a snapshot; None: whatever is dirty by then.
        self._queue: asyncio.Queue[bytes | Answer | None] = asyncio.Queue(_QUEUED)
        self._awaited: set[int] = set()  # snapshot not sent yet
        self._flushing = False
        self._requests = 0
        self.held: bytes | None = None
        self._telling = asyncio.Lock()  # held from the log to the socket
        self._closing = False

    async def run(self) -> None:
        """Serve until either side closes."""
        async with asyncio.TaskGroup() as tasks:
            sender = tasks.create_task(self._send(), name=f"simulator-send-{self.number}")
            await self._receive()
            sender.cancel()

    def offer(self, payload: bytes) -> bool:
        """Queue a frame as it is; False if the client is too far behind for that."""
        try:
            self._queue.put_nowait(payload)
        except asyncio.QueueFull:
            return False
        return True

    def mark(self, changes: Mapping[int, int]) -> None:
        """Note what has changed; it is sent, merged, as soon as the client takes it."""
        modes, awaited, dirty = self.subscriptions.modes, self._awaited, self.dirty
        for position, parts in changes.items():
            if position in modes and position not in awaited:
                dirty[position] = dirty.get(position, 0) | parts
        if dirty and not self._flushing:
            self._flushing = self._offer_flush()

    def take_dirty(self) -> dict[int, int]:
        """Hand over what has changed, and start collecting anew."""
        taken, self.dirty, self._flushing = self.dirty, {}, False
        return taken

    def told(self, answer: Answer) -> None:
        """Note that a snapshot is about to be sent: what changed before it is in it."""
        self._awaited.difference_update(answer.positions)
        for position in answer.positions:
            self.dirty.pop(position, None)

    async def send(self, payload: bytes) -> None:
        """Send one data frame; waits while TCP holds us."""
        await self._socket.send_bytes(payload)

    async def close(self, code: int) -> None:
        """Close with a close frame, behind the frame that is being logged; a client that does not answer is cut off."""
        self._closing = True
        try:
            async with asyncio.timeout(_CLOSE_S):
                async with self._telling:
                    await self._socket.close(code=code)
        except TimeoutError:
            self.abort()

    def abort(self) -> None:
        """Reset the TCP connection: the client sees neither a close frame nor an orderly end."""
        reset(self._request.transport)

    def hang_up(self) -> None:
        """End the TCP connection in order: the client sees an end, and no close frame."""
        if (transport := self._request.transport) is not None:
            transport.close()

    async def say(self, text: str) -> None:
        """Send a text message."""
        with contextlib.suppress(ConnectionResetError):
            await self._socket.send_str(text)

    def holds(self, kind: type[A]) -> A | None:
        """Return the fault of this kind that is in force for this connection."""
        step = self._venue.holds(kind)
        return step if step is not None and step.conn in {0, self.number} else None

    def hold_reading(self, *, hold: bool) -> None:
        """Stop taking bytes from the socket, pings included, or go on."""
        transport = self._request.transport
        if transport is not None and not transport.is_closing():
            (transport.pause_reading if hold else transport.resume_reading)()

    async def _receive(self) -> None:
        async for message in self._socket:
            # A text frame is ignored, even with a well-formed request in it.
            request = parse_request(message.data) if message.type is WSMsgType.BINARY else None
            if request is None:
                continue
            self._requests += 1
            if (deaf := self.holds(Deaf)) is not None and deaf.chunk in {0, self._requests}:
                continue
            answer = self.subscriptions.apply(request)
            self._venue.subscribed(answer)
            if (missing := self.holds(NoSnapshot)) is not None and missing.chunk in {0, self._requests}:
                continue
            if answer.positions or answer.malformed:
                self._awaited.update(answer.positions)
                await self._queue.put(answer)

    async def _send(self) -> None:
        # ConnectionResetError: the client is gone; the receiving side sees it too and ends the connection.
        with contextlib.suppress(ConnectionResetError):
            while True:
                item = await self._next()
                await self._audible()
                async with self._telling:
                    if self._closing:
                        return
                    await self._venue.tell(self, item)

    async def _next(self) -> bytes | Answer | None:
        while True:
            try:
                async with asyncio.timeout(self._ping_after_s):
                    return await self._queue.get()
            except TimeoutError:
                if self.holds(Stall) is None:
                    await self._socket.ping()

    async def _audible(self) -> None:
        waited_s = 0.0
        while (stalled := self.holds(Stall) is not None) or self.holds(Mute) is not None:
            await asyncio.sleep(_POLL_S)
            waited_s += _POLL_S
            if waited_s >= self._ping_after_s and not stalled:
                waited_s = 0.0
                await self._socket.ping()

    def _offer_flush(self) -> bool:
        try:
            self._queue.put_nowait(None)
        except asyncio.QueueFull:
            return False
        return True
