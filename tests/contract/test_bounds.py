"""Nothing that a server answers, however long, packed or nested, takes more memory than its bound: each says so."""

from __future__ import annotations

import asyncio
import contextlib
import tracemalloc
import zlib
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web
from askers import authorize, calendar, check, keys, log_in, master, post, token, write

from tickvault import snapshots
from tickvault.brokers.upstox import instruments
from tickvault.brokers.upstox.dial import connect
from tickvault.brokers.upstox.instruments import InstrumentList
from tickvault.brokers.upstox.selector import read_files
from tickvault.datafolder import Holder
from tickvault.errors import ConfigurationError, TickvaultError
from tickvault.model import Mode
from tickvault.selections import parse_selections
from tickvault.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

MB = 1_000_000
PACKED_MB = 64  # what a packed answer unpacks to
LIST_MB = 2  # the bound of the master list, here
PEAK_MB = 12  # of everything, the server here included; the bounds are below 4 MB, and an answer is held twice


def packed() -> bytes:
    """Return a gzip stream of some 60 kB that unpacks to blanks without end."""
    press = zlib.compressobj(9, wbits=31)
    return b"".join(press.compress(b" " * MB) for _ in range(PACKED_MB)) + press.flush()


class Flood:
    """Answers every request with too much.

    Attributes:
        how: `endless` body, `headers` without end, `packed` body, `nested` JSON; or no HTTP: `noise`, `nothing`.
        url: where it listens.
    """

    def __init__(self, how: str) -> None:
        self.how = how
        self.url = ""
        self._packed = packed()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            await self._flood(writer)
        writer.close()

    async def _flood(self, writer: asyncio.StreamWriter) -> None:
        begin = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        match self.how:
            case "endless":
                writer.write(begin + b"Transfer-Encoding: chunked\r\n\r\n")
                for _ in range(PACKED_MB * MB // 65536):
                    writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                    await writer.drain()
            case "headers":
                writer.write(begin)
                for _ in range(PACKED_MB * MB // 65536):
                    writer.write(b"X-More: " + b"x" * 65526 + b"\r\n")
                    await writer.drain()
            case "packed":
                length = b"Content-Length: %d\r\n\r\n" % len(self._packed)
                writer.write(begin + b"Content-Encoding: gzip\r\n" + length + self._packed)
                await writer.drain()
            case "noise":
                writer.write(b"\x16\x03\x01 Canary, and no line of HTTP\r\n\r\n")
            case "nested":
                body = b'{"data":' + b"[" * 200_000
                writer.write(begin + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@contextlib.asynccontextmanager
async def flood(how: str) -> AsyncIterator[Flood]:
    one = Flood(how)
    server = await asyncio.start_server(one.answer, "127.0.0.1", 0)
    one.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield one
    finally:
        server.close()


@contextlib.contextmanager
def within_bounds() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < PEAK_MB * MB, f"{peak / MB:.1f} MB"


async def status(url: str, _: aiohttp.ClientSession, __: Path) -> object:
    told = await snapshots.ask(Holder(pid=1, http=url.removeprefix("http://")), "Canary")
    if told is None:
        raise TickvaultError("counts as no answer")
    return told


@pytest.mark.parametrize("how", ["endless", "headers", "packed", "nested", "noise", "nothing"])
@pytest.mark.parametrize(
    "ask", [token, keys, authorize, master, calendar, log_in, write, check, post, status], ids=lambda one: one.__name__
)
async def test_too_much_is_refused(
    how: str,
    ask: Callable[[str, aiohttp.ClientSession, Path], Awaitable[object]],
    session: aiohttp.ClientSession,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Everyone we ask answers too much, or no HTTP: an error of ours without a secret, and a bounded memory."""
    monkeypatch.setattr(instruments, "MAX_LIST_BYTES", LIST_MB * MB)
    async with flood(how) as server:
        with within_bounds(), pytest.raises(TickvaultError) as caught:
            await ask(server.url, session, tmp_path)
    assert "Canary" not in str(caught.value)
    assert len(str(caught.value)) < 1000


async def test_a_master_list_that_unpacks_without_end_is_refused(
    session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Its 60 kB are kept nowhere, and unpacked piece by piece."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = packed()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    try:
        with within_bounds(), pytest.raises(TickvaultError, match="not whole"):
            await InstrumentList(url=url, cache_dir=tmp_path, session=session).refresh()
    finally:
        server.close()
    assert list(tmp_path.iterdir()) == []


async def test_a_message_that_unpacks_without_end_ends_the_connection(
    session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A WebSocket's bound is that of the message, not of its packing."""
    monkeypatch.setattr("tickvault.brokers.upstox.dial.MAX_MESSAGE_BYTES", MB)

    async def serve(request: web.BaseRequest) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(compress=True, timeout=1)
        await ws.prepare(request)
        await ws.send_bytes(b" " * (4 * MB))
        return ws

    server = web.Server(serve)
    runner = web.ServerRunner(server)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        ws = await connect(session, f"ws://127.0.0.1:{runner.addresses[0][1]}/", 5)
        message = await ws.receive(5)
        assert message.type in {aiohttp.WSMsgType.ERROR, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING}
        assert ws.close_code == 1009
    finally:
        await runner.cleanup()


def test_files_have_a_bound(tmp_path: Path) -> None:
    """Settings and lists that are too long, or nested without end, are refused by name."""
    long = tmp_path / "long"
    long.write_text("# so long\n" * 500_000)
    with pytest.raises(ConfigurationError, match="more than 4194304 characters"):
        read_files(parse_selections([f"@{long}"], Mode.FULL))
    with pytest.raises(ConfigurationError, match="more than 1000000 characters"):
        load_settings(environ={}, env_file=long)
    for text in ("a = " + "[" * 50_000, ".".join("a" * 3000) + " = 1"):
        nested = tmp_path / "nested.toml"
        nested.write_text(text)
        with pytest.raises(ConfigurationError, match="nested without end"):
            load_settings(environ={}, env_file=None, config_file=nested)
