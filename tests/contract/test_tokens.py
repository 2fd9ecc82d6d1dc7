"""Where tokens come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from tickvault.brokers.upstox.tokens import StaticToken, TokenUrl
from tickvault.errors import FeedUnavailable, TokenRefused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TestServer.__test__ = False  # type: ignore[attr-defined]


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def ask(session: aiohttp.ClientSession, *answers: web.Response) -> list[str]:
    """Ask a URL that gives these answers one after the other."""
    left = list(answers)

    async def answer(request: web.Request) -> web.Response:
        assert request.headers["User-Agent"].startswith("tickvault/")
        return left.pop(0)

    app = web.Application()
    app.router.add_get("/token", answer)
    async with TestServer(app) as server:
        source = TokenUrl(str(server.make_url("/token?key=very-secret")), session)
        return [await source.token() for _ in answers]


async def test_token_url_is_asked_each_time(session: aiohttp.ClientSession) -> None:
    """A new token is seen at the next attempt; blanks round it are dropped."""
    answers = [web.json_response({"access_token": token}) for token in ("one", " two\n")]
    assert await ask(session, *answers) == ["one", "two"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda: web.Response(status=503, text="very-secret"), "HTTP 503"),
        (lambda: web.Response(text="<html>"), "without a token"),
        (lambda: web.json_response(["very-secret"]), "without a token"),
        (lambda: web.json_response({"access_token": None}), "without a token"),
        (lambda: web.json_response({"access_token": ""}), "without a token"),
        (lambda: web.json_response({"access_token": "very-secret\r\nX: y"}), "without a token"),
        (lambda: web.Response(text="[" * 100_000), "without a token"),
        (lambda: web.Response(body=b"x" * 1_000_000), "more than"),
        (lambda: web.Response(status=302, headers={"Location": "ftp://somewhere/"}), "redirects"),
        (lambda: web.Response(status=302, headers={"Location": "/token"}), "HTTP 500"),
    ],
)
async def test_no_token_is_a_failed_attempt(session: aiohttp.ClientSession, answer: object, words: str) -> None:
    """Each wrong answer is told in words without secrets."""
    with pytest.raises(FeedUnavailable, match=words) as caught:
        await ask(session, answer())
    assert "very-secret" not in str(caught.value)


async def test_redirect_is_followed(session: aiohttp.ClientSession) -> None:
    """A moved token service goes on working."""
    app = web.Application()

    async def old(_: web.Request) -> web.Response:
        raise web.HTTPFound("/new")

    async def new(_: web.Request) -> web.Response:
        return web.json_response({"access_token": "moved"})

    app.router.add_get("/old", old)
    app.router.add_get("/new", new)
    async with TestServer(app) as server:
        assert await TokenUrl(str(server.make_url("/old")), session).token() == "moved"


async def test_unreachable_token_url(session: aiohttp.ClientSession) -> None:
    """A service that is down is a failed attempt, without its address."""
    with pytest.raises(FeedUnavailable, match="cannot be reached") as caught:
        await TokenUrl(f"http://127.0.0.1:{unused_port()}/?key=very-secret", session).token()
    assert "very-secret" not in str(caught.value)


async def test_static_token() -> None:
    """The token of the settings, without the blanks that copying brings along."""
    assert await StaticToken(" abc\n").token() == "abc"


@pytest.mark.parametrize("secret", ["", "two words", "läuft", "a\nb"])
async def test_static_token_that_no_header_can_carry(secret: str) -> None:
    """It is refused before it is sent, and not quoted."""
    with pytest.raises(TokenRefused) as caught:
        await StaticToken(secret).token()
    assert not secret or secret not in str(caught.value)
