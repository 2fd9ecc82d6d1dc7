"""No secret goes where the settings did not say: redirects, and names that begin to mean another machine."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from askers import authorize, calendar, check, keys, log_in, master, post, token, write
from servers import batch_of, tick
from structlog.testing import capture_logs
from yarl import URL

from tickvault.brokers.upstox.api import UpstoxApi, _redirected
from tickvault.errors import FeedUnavailable, SinkUnavailable, TickvaultError
from tickvault.resolving import GuardedResolver
from tickvault.settings import load_settings, plain_hosts
from tickvault.sinks.influx import InfluxSink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path


@contextlib.asynccontextmanager
async def answering(text: str) -> AsyncIterator[tuple[int, list[str]]]:
    """Run a server that answers everything so; give its port, and the heads of requests as they come."""
    heads: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                heads.append(head.decode())
                writer.write(text.encode())
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], heads
    finally:
        server.close()


@pytest.mark.parametrize(
    ("url", "target", "allowed"),
    [
        ("https://a/x", "https://b/y", True),
        ("https://a/x", "/y", True),
        ("https://a/x", "http://a/y", False),
        ("https://a/x", "http://127.0.0.1/y", False),
        ("https://a/x", "file:///etc/passwd", False),
        ("http://a/x", "https://b/y", True),
        ("http://a:1/x", "http://a:2/y", True),
        ("http://a/x", "http://A/y", True),
        ("http://a/x", "//b/y", False),
        ("http://10.0.0.1/x", "http://8.8.8.8/y", False),
        ("http://127.0.0.1/x", "http://10.0.0.1/y", False),
    ],
)
def test_where_a_redirect_may_lead(url: str, target: str, allowed: bool) -> None:
    """Anywhere by TLS, never from TLS to plain text, and in plain text to the same host only."""
    if allowed:
        assert _redirected(URL(url), target, "it").scheme in {"http", "https"}
        return
    with pytest.raises(FeedUnavailable, match="refused"):
        _redirected(URL(url), target, "it")


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
@pytest.mark.parametrize(
    "ask", [token, keys, authorize, master, calendar, log_in, write, check, post], ids=lambda one: one.__name__
)
async def test_another_host_gets_nothing(
    status: str, ask: Callable[[str, aiohttp.ClientSession, Path], Awaitable[object]], tmp_path: Path
) -> None:
    """In plain text no redirect is followed to it, whoever asked; no token, code, row or event goes there."""
    async with aiohttp.ClientSession() as session, answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as other:
        location = f"http://localhost:{other[0]}/elsewhere"
        redirect = f"HTTP/1.1 {status}\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
        async with answering(redirect) as (port, heads):
            with pytest.raises(TickvaultError), capture_logs():
                await ask(f"http://127.0.0.1:{port}", session, tmp_path)
            assert heads
        assert other[1] == []


async def test_a_redirect_on_the_same_host_carries_no_credentials() -> None:
    """The user in the first address is not told to the second port."""
    body = '{"access_token":"t"}'
    found = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    async with aiohttp.ClientSession() as session, answering(found) as (second, second_heads):
        redirect = f"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{second}/t\r\nContent-Length: 0\r\n\r\n"
        async with answering(redirect) as (first, first_heads):
            given = await token(f"http://user:Canary@127.0.0.1:{first}", session, None)  # type: ignore[arg-type]
    assert given == "t"
    assert "Authorization: Basic" in first_heads[0]
    assert "authorization" not in second_heads[0].lower()
    assert "canary" not in second_heads[0].lower()


class Moving(AbstractResolver):
    """Names that mean whatever was set last."""

    def __init__(self) -> None:
        self.address = "127.0.0.1"

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host=self.address, port=port, family=socket.AF_INET, proto=0, flags=0)]

    async def close(self) -> None:
        pass


@contextlib.asynccontextmanager
async def moved(address: str, **environ: str) -> AsyncIterator[aiohttp.ClientSession]:
    """Give a session by these settings, in which every name means an address."""
    names = Moving()
    names.address = address
    resolver = GuardedResolver(plain_hosts(load_settings(environ=environ, env_file=None)), names)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=resolver)) as session:
        yield session


@pytest.mark.parametrize("address", ["8.8.8.8", "100.64.0.1", "2606:2800::1"])
async def test_a_plain_name_that_becomes_public_is_not_spoken_to(address: str) -> None:
    """Private at the start, public now: refused before a connection, for a store as for a service."""
    url = "http://db.internal:8086"
    async with moved(address, INFLUX_URL=url, UPSTOX_TOKEN_URL="http://Tokens.internal./t?key=Canary") as session:
        sink = InfluxSink(url=url, bucket="b", token="Canary", session=session)
        with pytest.raises(SinkUnavailable, match=r"not private any more.*TICKVAULT_ALLOW_PLAINTEXT") as caught:
            await sink.write(batch_of(ticks=[tick()]))
        assert "Canary" not in str(caught.value)
        with pytest.raises(FeedUnavailable, match="not private any more") as told:
            await token("http://tokens.internal", session, None)  # type: ignore[arg-type]
        assert "Canary" not in str(told.value)


async def test_the_brokers_name_in_plain_text_stays_loopback() -> None:
    """A private address is too far for it."""
    url = "http://sim.localhost:1"
    async with moved("10.0.0.1", UPSTOX_API_URL=url) as session:
        with pytest.raises(TickvaultError, match="not loopback any more"):
            await UpstoxApi(url, session).authorize("Canary")


@pytest.mark.parametrize(
    "environ",
    [
        {"INFLUX_URL": "http://db:PORT"},  # loopback is nearer than private
        {"INFLUX_URL": "http://db:PORT", "TICKVAULT_ALLOW_PLAINTEXT": "db"},
        {},
    ],
)
async def test_other_names_are_spoken_to(environ: dict[str, Any]) -> None:
    """What is near enough, what the user allows, and what no rule is about."""
    async with answering("HTTP/1.1 204 No Content\r\nX-Influxdb-Version: v2.7.1\r\n\r\n") as (port, heads):
        environ = {name: text.replace("PORT", str(port)) for name, text in environ.items()}
        async with moved("127.0.0.1", **environ) as session:
            sink = InfluxSink(url=f"http://db:{port}", bucket="b", token="t", session=session)
            await sink.write(batch_of(ticks=[tick()]))
        assert any(head.startswith("POST /api/v2/write") for head in heads)
