"""A TCP gate in front of a real store that makes writes fail as networks, proxies and servers do, then lets them through."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Gate", "Request", "answer", "retry_date"]

_DRIBBLE_S = 0.02


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came, its body only as far as it was read: the first half when a fault is chosen."""

    head: bytes
    body: bytes

    @property
    def is_write(self) -> bool:
        """Whether it is for a database to store, or for a webhook to take."""
        path = self.head.partition(b" HTTP/")[0]
        return path.startswith(b"POST ") and any(word in path for word in (b"/write", b"/hook"))


def answer(status: int, body: bytes = b"{}", *, kind: str = "application/json", headers: str = "") -> bytes:
    """Return an answer as it goes over the wire."""
    head = f"HTTP/1.1 {status} Said\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


def retry_date(seconds: float) -> str:
    """Return a Retry-After that is a date."""
    at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
    return f"Retry-After: {at:%a, %d %b %Y %H:%M:%S} GMT\r\n"


class Gate:
    """Listens; plays a fault for each write while there are any, and hands everything else on.

    Attributes:
        faults: for the next writes, in order: bytes are an answer; `reset` hangs up in the middle of the body, `lost`
            after the store has taken it, `cut` in the middle of the answer's head; `dribble` sends a header a byte at a
            time for ever, `drip` a body; `silent` nothing at all; a callable chooses by the request, None lets it pass.
        weather: chooses for a write when no faults are left.
        passed: bodies of the writes that the store has taken, in order.
        faulted: how many writes met a fault.
    """

    def __init__(self, store: str) -> None:
        url = URL(store)
        self._store = (url.host or "127.0.0.1", url.port or 80)
        self.faults: list[bytes | str | Callable[[Request], bytes | str | None] | None] = []
        self.weather: Callable[[Request], bytes | str | None] | None = None
        self.passed: list[bytes] = []
        self.faulted = 0
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**20)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while (head := await reader.readuntil(b"\r\n\r\n")) and await self._one(head, reader, writer):
                pass
        writer.close()

    async def _one(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Deal with one request; False ends the connection."""
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        request = Request(head, await reader.readexactly(length // 2))
        fault = None
        if request.is_write:
            fault = self.faults.pop(0) if self.faults else self.weather
        if callable(fault):
            fault = fault(request)
        if fault == "reset":
            self.faulted += 1
            _reset(writer)
            return False
        request = Request(head, request.body + await reader.readexactly(length - length // 2))
        if fault is None:
            writer.write(await self._from_store(request))
            return True
        self.faulted += 1
        match fault:
            case bytes():
                writer.write(fault)
            case "lost":
                await self._from_store(request)
                _reset(writer)
                return False
            case "cut":
                writer.write(b"HTTP/1.1 204 No Con")
                return False
            case "dribble":
                writer.write(b"HTTP/1.1 204 No Content\r\nX-Slow: ")
                await _for_ever(writer)
            case "drip":
                writer.write(b"HTTP/1.1 500 Said\r\nContent-Length: 1000000\r\n\r\n")
                await _for_ever(writer)
            case "silent":
                await reader.read(1)
            case _:
                raise AssertionError(fault)
        return True

    async def _from_store(self, request: Request) -> bytes:
        reader, writer = await asyncio.open_connection(*self._store)
        lines = [line for line in request.head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
        writer.write(b"\r\n".join([lines[0], b"Connection: close", *lines[1:]]) + request.body)
        reply = await reader.read()
        writer.close()
        if request.is_write and reply.startswith(b"HTTP/1.1 20"):
            self.passed.append(request.body)
        return reply.replace(b"Connection: close\r\n", b"")


async def _for_ever(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(_DRIBBLE_S)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Hang up so that the other side sees a reset and no end."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
