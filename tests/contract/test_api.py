"""Asking the broker for a feed: every answer it may give, and no secret in what we say of it."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from tickvault.brokers.upstox.api import BrokerUnavailable, Failure, UpstoxApi
from tickvault.errors import ConfigurationError, TokenRefused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

TestServer.__test__ = False  # type: ignore[attr-defined]

TOKEN = "eyJ0.very-secret.token"
CODE = "very-secret-code"
URI = f"wss://wsfeeder-api.upstox.com/market-data-feeder/v3/upstox-developer-api/feeds?requestId=1&code={CODE}"


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def authorize(
    session: aiohttp.ClientSession, answer: Callable[[], web.Response], seen: list[web.Request] | None = None
) -> str:
    async def handle(request: web.Request) -> web.Response:
        if seen is not None:
            seen.append(request)
        return answer()

    app = web.Application()
    app.router.add_get("/v3/feed/market-data-feed/authorize", handle)
    async with TestServer(app) as server:
        return await UpstoxApi(str(server.make_url("/")), session).authorize(TOKEN)


def authorized(**data: object) -> Callable[[], web.Response]:
    return lambda: web.json_response({"status": "success", "data": data})


def error(status: int, headers: dict[str, str] | None = None, **fields: object) -> Callable[[], web.Response]:
    body = {"status": "error", "errors": [fields]}
    return lambda: web.json_response(body, status=status, headers=headers)


@pytest.mark.parametrize(
    "data",
    [
        {"authorized_redirect_uri": URI},
        {"authorizedRedirectUri": URI},
        {"authorized_redirect_uri": URI, "authorizedRedirectUri": "wss://deprecated/"},
    ],
)
async def test_address_is_read_in_both_spellings(session: aiohttp.ClientSession, data: dict[str, object]) -> None:
    """The documented spelling wins; the deprecated one will do."""
    assert await authorize(session, authorized(**data)) == URI


async def test_request_is_what_the_broker_documents(session: aiohttp.ClientSession) -> None:
    """The token goes into a header, and the User-Agent is one that the CDN lets through."""
    seen: list[web.Request] = []
    await authorize(session, authorized(authorized_redirect_uri=URI), seen)
    headers = seen[0].headers
    assert headers["Authorization"] == f"Bearer {TOKEN}"
    assert headers["Accept"] == "application/json"
    assert headers["User-Agent"].startswith("tickvault/")
    assert not seen[0].query_string


@pytest.mark.parametrize(
    "answer",
    [
        error(401, error_code="UDAPI100050", message="Invalid token used to access API"),
        error(401, errorCode="UDAPI100050", message=f"Invalid token {TOKEN}"),
        error(400, error_code="UDAPI100016", message="Invalid credentials"),
        error(403, error_code="UDAPI100067", message="Not for extended tokens"),
        error(403, errorCode="UDAPI100073", message="Inactive"),
        lambda: web.Response(status=401, text="<html>"),
    ],
)
async def test_refused_token(session: aiohttp.ClientSession, answer: Callable[[], web.Response]) -> None:
    """What another token would cure is told apart, by code and by status."""
    with pytest.raises(TokenRefused, match=r"HTTP 40\d") as caught:
        await authorize(session, answer)
    assert "very-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "retry_after_s"),
    [
        (error(429, error_code="UDAPI10005", message="Too many"), None),
        (error(429, headers={"Retry-After": "7"}, error_code="UDAPI10005"), 7),
        (error(429, headers={"Retry-After": "99999"}), 300),
        (error(429, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}), None),
        (error(400, errorCode="UDAPI100099"), None),
    ],
)
async def test_rate_limit(
    session: aiohttp.ClientSession, answer: Callable[[], web.Response], retry_after_s: float | None
) -> None:
    """Too many requests is a reason of its own, with the pause that was asked for, within reason."""
    with pytest.raises(BrokerUnavailable) as caught:
        await authorize(session, answer)
    assert (caught.value.reason, caught.value.retry_after_s) == (Failure.RATE_LIMITED, retry_after_s)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (error(500, error_code="UDAPI100500", message="Something went wrong"), "HTTP 500 UDAPI100500 Something went"),
        (error(403, message="line\nbreak\x1b[0m"), r"HTTP 403 line break \[0m$"),
        (lambda: web.Response(status=403, text=f"<html>{CODE}"), "HTTP 403$"),
        (lambda: web.Response(status=503), "HTTP 503$"),
        (lambda: web.json_response({"errors": "none"}, status=404), "HTTP 404$"),
        (lambda: web.Response(status=302, headers={"Location": "https://elsewhere/"}), "HTTP 302$"),
        (lambda: web.Response(status=403, text="<p>error code: 1010</p>"), "Cloudflare"),
        (lambda: web.json_response({"error_code": 1010}, status=403), "Cloudflare"),
        (lambda: web.Response(text="{"), "without an address"),
        (authorized(), "without an address"),
        (authorized(authorized_redirect_uri=17), "without an address"),
        (authorized(authorized_redirect_uri=f"{URI}\r\nX: y"), "without an address"),
        (authorized(authorized_redirect_uri=URI.replace("wss", "ws")), "not wss"),
        (authorized(authorized_redirect_uri=URI.replace("wss", "https")), "not wss"),
        (authorized(authorized_redirect_uri=f"ws://127.0.0.1@elsewhere/?code={CODE}"), "not wss"),
        (authorized(authorized_redirect_uri=f"ws://localhost.elsewhere/?code={CODE}"), "not wss"),
        (authorized(authorized_redirect_uri="wss://[/"), "not wss"),
    ],
)
async def test_refusal(session: aiohttp.ClientSession, answer: Callable[[], web.Response], words: str) -> None:
    """Anything else is a refusal in the broker's words, in one line, without secrets."""
    with pytest.raises(BrokerUnavailable, match=words) as caught:
        await authorize(session, answer)
    assert caught.value.reason is Failure.REFUSED
    assert "very-secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_plain_feed_on_loopback(session: aiohttp.ClientSession) -> None:
    """A simulator on this machine may do without TLS."""
    uri = f"ws://127.0.0.1:9/feed?code={CODE}"
    assert await authorize(session, authorized(authorized_redirect_uri=uri)) == uri


async def test_endless_answer(session: aiohttp.ClientSession) -> None:
    """An answer without an end is given up."""
    with pytest.raises(BrokerUnavailable, match="more than"):
        await authorize(session, lambda: web.Response(body=b"x" * 1_000_000))


async def test_broker_down(session: aiohttp.ClientSession) -> None:
    """Nobody at the address: unreachable, and the same words each time."""
    api = UpstoxApi(f"http://127.0.0.1:{unused_port()}", session)
    with pytest.raises(
        BrokerUnavailable, match=r"cannot be reached: (Connect call failed|Connection refused)"
    ) as caught:
        await api.authorize(TOKEN)
    assert caught.value.reason is Failure.UNREACHABLE


@pytest.mark.parametrize("base", ["http://api.upstox.com", "ftp://127.0.0.1", "api.upstox.com", "http://10.0.0.1", ""])
async def test_base_address_must_be_tls(session: aiohttp.ClientSession, base: str) -> None:
    """The token goes nowhere in the clear."""
    with pytest.raises(ConfigurationError, match="UPSTOX_API_URL"):
        UpstoxApi(base, session)


@pytest.mark.parametrize(
    "base",
    ["https://api.upstox.com/", "http://localhost:1", "http://sim.localhost:1", "http://[::1]:1", "http://127.1.2.3"],
)
async def test_base_address_on_loopback_or_with_tls(session: aiohttp.ClientSession, base: str) -> None:
    """TLS anywhere, or plain on this machine."""
    assert UpstoxApi(base, session)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
async def test_certificate_is_verified(session: aiohttp.ClientSession, tmp_path: Path) -> None:
    """A certificate that nobody vouches for is not accepted, and said to be the cause."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    making: list[Any] = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run([*making, "-keyout", key, "-out", cert], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server = TestServer(web.Application(), scheme="https")
    await server.start_server(ssl=context)
    try:
        with pytest.raises(BrokerUnavailable, match="its certificate is not accepted"):
            await UpstoxApi(f"https://localhost:{server.port}", session).authorize(TOKEN)
    finally:
        await server.close()
