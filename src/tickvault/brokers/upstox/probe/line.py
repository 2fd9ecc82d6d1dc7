"""One open connection of the probe, and everything that came over it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import aiohttp
from aiohttp import WSMsgType
from yarl import URL

from tickvault.brokers.upstox.probe.frames import decoded, shape_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tickvault.brokers.upstox.probe.frames import Frame

__all__ = ["CLOSE_S", "Ended", "Line", "Seen"]

CLOSE_S: Final = 2.0
_MAX_SEEN: Final = 100_000  # an hour at the broker's fastest grid; what comes after is not looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One message: when it came (monotonic s, UTC ms), its kind, size, and the frame if it is one."""

    at_s: float
    at_ms: int
    kind: str
    size: int = 0
    frame: Frame | None = None
    detail: str = ""


class Ended(Exception):
    """The connection that a step works on has ended."""


class Line:
    """One open connection, and everything that came over it."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse, uri: str, opened_s: float) -> None:
        self.ws = ws
        self.uri = uri
        self.opened_s = opened_s
        self.host = URL(uri, encoded=True).host or ""
        self.seen: list[Seen] = []
        self.end: str | None = None
        self._news = asyncio.Condition()

    async def read(self) -> None:
        """Take in messages to the connection's end; answer pings."""
        while self.end is None:
            message = await self.ws.receive()
            match message.type:
                case WSMsgType.BINARY:
                    self._note("frame", len(message.data), frame=decoded(message.data))
                case WSMsgType.PING:
                    self._note("ping", len(message.data))
                    with contextlib.suppress(aiohttp.ClientError, OSError):
                        await self.ws.send_frame(message.data, WSMsgType.PONG)
                case WSMsgType.PONG:
                    self._note("pong", len(message.data))
                case WSMsgType.TEXT:
                    self._note("text", len(message.data), detail=shape_of(message.data))
                case WSMsgType.CLOSE:
                    self.end = f"closed with {message.data or 1005}"
                case _:
                    self.end = "lost without a close frame"
            async with self._news:
                self._news.notify_all()

    async def until(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until something is so; False when the time is over.

        Raises:
            Ended: the connection ends before.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._news:
                await self._news.wait_for(lambda: done() or self.end is not None)
        if done():
            return True
        if self.end is not None:
            raise Ended(self.end)
        return False

    async def send(self, payload: bytes, kind: WSMsgType = WSMsgType.BINARY) -> int:
        """Send one message; return how many were seen before.

        Raises:
            Ended: it cannot be sent.
        """
        mark = len(self.seen)
        try:
            await self.ws.send_frame(payload, kind)
        except (aiohttp.ClientError, OSError) as exc:
            raise Ended(self.end or "lost without a close frame") from exc
        return mark

    async def hang_up(self) -> float | None:
        """Close politely; return how long the server took to answer, None when it did not."""
        start_s = time.monotonic()
        answered = False
        if self.end is None:
            with contextlib.suppress(Ended, TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await self.send(b"\x03\xe8", WSMsgType.CLOSE)
                    async with self._news:
                        await self._news.wait_for(lambda: self.end is not None)
                answered = (self.end or "").startswith("closed")
        took_s = time.monotonic() - start_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self.ws.close()
        return took_s if answered else None

    def _note(self, kind: str, size: int, *, frame: Frame | None = None, detail: str = "") -> None:
        if len(self.seen) < _MAX_SEEN:
            at_ms = time.time_ns() // 1_000_000
            self.seen.append(Seen(at_s=time.monotonic(), at_ms=at_ms, kind=kind, size=size, frame=frame, detail=detail))
