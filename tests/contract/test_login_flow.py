"""A login against a broker that is as strict as the real one: the callback, the exchange, every refusal."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port
from yarl import URL

from tickvault.brokers.upstox.login import Callback, Client, dialog_url, exchange
from tickvault.errors import ConfigurationError, FeedUnavailable, Refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TestServer.__test__ = False  # type: ignore[attr-defined]

TOKEN = "header.very-secret-token.signature"
CODE = "very-secret-code"
SECRET = "very-secret-client"


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def client(port: int = 8485, api_url: str = "https://api.upstox.com", **changed: Any) -> Client:
    values = {"client_id": "app-key", "client_secret": SECRET, "redirect_uri": f"http://127.0.0.1:{port}/callback"}
    return Client(**{**values, "api_url": api_url, **changed})


def error(status: int, **fields: object) -> web.Response:
    return web.json_response({"status": "error", "errors": [fields]}, status=status)


async def exchanged(session: aiohttp.ClientSession, answer: web.Response, forms: list[Any] | None = None) -> str:
    async def handle(request: web.Request) -> web.Response:
        assert request.content_type == "application/x-www-form-urlencoded"
        assert request.headers["User-Agent"].startswith("tickvault/")
        assert request.headers["Accept"] == "application/json"
        if forms is not None:
            forms.append(dict(await request.post()))
        return answer

    app = web.Application()
    app.router.add_post("/v2/login/authorization/token", handle)
    async with TestServer(app) as server:
        return await exchange(session, client(api_url=str(server.make_url("")).rstrip("/")), CODE)


async def test_exchange_is_what_the_broker_documents(session: aiohttp.ClientSession) -> None:
    """A form, and a flat answer, of which the token alone is taken."""
    forms: list[Any] = []
    answer = web.json_response({"email": "a@b", "user_id": "AB1234", "access_token": TOKEN, "extended_token": "other"})
    assert await exchanged(session, answer, forms) == TOKEN
    assert forms == [
        {
            "code": CODE,
            "client_id": "app-key",
            "client_secret": SECRET,
            "redirect_uri": "http://127.0.0.1:8485/callback",
            "grant_type": "authorization_code",
        }
    ]


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (lambda: error(401, errorCode="UDAPI100057", message=f"Invalid {CODE}"), Refused, "good for one try"),
        (lambda: error(401, error_code="UDAPI100068"), ConfigurationError, "UPSTOX_CLIENT_ID and UPSTOX_REDIRECT_URI"),
        (lambda: error(401, error_code="UDAPI100069", message=SECRET), ConfigurationError, "UPSTOX_CLIENT_SECRET"),
        (lambda: error(401, error_code="UDAPI100070"), ConfigurationError, "UPSTOX_REDIRECT_URI has to be the same"),
        (lambda: error(400, error_code="UDAPI100016"), ConfigurationError, "compare UPSTOX_CLIENT_ID"),
        (lambda: error(403, error_code="UDAPI100073"), ConfigurationError, "inactive"),
        (lambda: error(429, error_code="UDAPI10005"), Refused, "wait a minute"),
        (lambda: web.Response(status=429), Refused, "wait a minute"),
        (lambda: web.Response(status=503, text=SECRET), FeedUnavailable, "in a minute"),
        (lambda: web.Response(status=403, text="<html>"), Refused, "HTTP 403"),
        (lambda: web.Response(status=302, headers={"Location": "/elsewhere"}), Refused, "HTTP 302"),
        (lambda: web.Response(text="<html>"), FeedUnavailable, "no token"),
        (lambda: web.Response(text="[" * 50_000), FeedUnavailable, "no token"),
        (lambda: web.json_response({"access_token": "two words"}), FeedUnavailable, "no token"),
        (lambda: web.Response(body=b"x" * 200_000), FeedUnavailable, "more than"),
        (lambda: web.json_response({"status": "error", "errors": "none"}, status=400), Refused, "HTTP 400"),
    ],
)
async def test_each_refusal_has_its_next_step(
    session: aiohttp.ClientSession, answer: Any, kind: type[Exception], words: str
) -> None:
    """What to correct, and no secret, whatever the broker quotes."""
    with pytest.raises(kind, match=words) as caught:
        await exchanged(session, answer())
    assert "very-secret" not in str(caught.value)


async def test_broker_that_cannot_be_reached(session: aiohttp.ClientSession) -> None:
    """Nothing was sent, so the code is not used up."""
    with pytest.raises(FeedUnavailable, match=r"the code was not sent.*log in again"):
        await exchange(session, client(api_url=f"http://127.0.0.1:{unused_port()}"), CODE)


async def test_browser_brings_the_code(session: aiohttp.ClientSession) -> None:
    """One good answer counts; a favicon, another path, a foreign or missing state, and a second answer do not."""
    port = unused_port()
    base = f"http://127.0.0.1:{port}"
    async with Callback(client(port), "mine") as callback:
        assert callback.port == port
        for path, status in (
            ("/favicon.ico", 404),
            ("/callback", 400),
            ("/callback?code=evil&state=theirs", 400),
            (f"/callback?code={CODE}&state=mine", 200),
            ("/callback?code=second&state=mine", 410),
        ):
            async with session.get(base + path) as answer:
                assert answer.status == status
                assert "very-secret" not in await answer.text()
                assert answer.headers.get("Cache-Control") == "no-store"
        assert await callback.code(5) == CODE
    with pytest.raises(aiohttp.ClientConnectionError):
        await session.get(base)


async def test_dialog_that_says_no(session: aiohttp.ClientSession) -> None:
    """The owner declines: the wait ends at once."""
    async with Callback(client(8485), "mine", port=0) as callback:
        async with session.get(f"http://127.0.0.1:{callback.port}/callback?error=access_denied&state=mine") as answer:
            assert answer.status == 400
        with pytest.raises(Refused, match="without a login"):
            await callback.code(5)


async def test_nobody_comes() -> None:
    """The wait has an end, and the next step is said."""
    async with Callback(client(8485), "mine", port=0) as callback:
        with pytest.raises(Refused, match="--paste"):
            await callback.code(0.05)


async def test_port_that_is_taken() -> None:
    """Said before the user is sent to the broker."""
    async with Callback(client(8485), "mine", port=0) as callback:
        with pytest.raises(Refused, match="cannot listen"):
            async with Callback(client(callback.port), "mine"):
                pass


@pytest.mark.parametrize("redirect", ["https://example.com/callback", "http://192.168.1.5:80/", "https://127.0.0.1/cb"])
async def test_redirect_to_elsewhere_needs_a_port(redirect: str) -> None:
    """A redirect URI of another machine, or with TLS, is served only when told where it is forwarded to."""
    with pytest.raises(ConfigurationError, match="--paste"):
        Callback(client(redirect_uri=redirect), "mine")
    async with Callback(client(redirect_uri=redirect), "mine", port=0) as callback:
        assert callback.port > 0


async def test_whole_login(session: aiohttp.ClientSession) -> None:
    """Dialog, redirect, exchange: a browser and a broker of our own go the whole way."""
    port = unused_port()
    issued: list[str] = []

    async def dialog(request: web.Request) -> web.Response:
        issued.append(CODE)
        target = URL(request.query["redirect_uri"]).with_query(code=CODE, state=request.query["state"])
        raise web.HTTPFound(target)

    async def token(request: web.Request) -> web.Response:
        form = await request.post()
        if form["code"] not in issued or form["client_secret"] != SECRET:
            return error(401, error_code="UDAPI100057")
        issued.remove(str(form["code"]))
        return web.json_response({"access_token": TOKEN})

    app = web.Application()
    app.router.add_get("/v2/login/authorization/dialog", dialog)
    app.router.add_post("/v2/login/authorization/token", token)
    async with TestServer(app) as server:
        user = client(port, api_url=str(server.make_url("")).rstrip("/"))
        async with Callback(user, "mine") as callback, asyncio.TaskGroup() as group:
            browser = group.create_task(session.get(dialog_url(user, "mine")), name="browser")
            code = await callback.code(5)
        assert browser.result().status == 200
        browser.result().release()
        assert await exchange(session, user, code) == TOKEN
        with pytest.raises(Refused, match="good for one try"):
            await exchange(session, user, code)
