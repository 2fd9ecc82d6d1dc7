"""A feed whose token is refused, replaced or about to end, against the simulator: it goes on, in the same process."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from tickvault.brokers.upstox import tokens as module
from tickvault.brokers.upstox.api import UpstoxApi
from tickvault.brokers.upstox.feed import Feed, FeedState, Patience
from tickvault.brokers.upstox.plan import RateLimit
from tickvault.brokers.upstox.token_files import store_token
from tickvault.brokers.upstox.tokens import Tokens, TokenUrl
from tickvault.errors import FeedUnavailable, TokenRefused
from tickvault.intake import token_notices
from tickvault.journal import Fact
from tickvault.model import IST, Mode, Subscription
from tickvault.simulator import Simulator, SimulatorSettings
from tickvault.simulator.script import RotateToken

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

EARLY, TRADING = (int(dt.datetime(2026, 11, 23, hour, 20, tzinfo=IST).timestamp()) * 10**9 for hour in (8, 10))


class Inbox:
    """Keeps the facts."""

    def __init__(self) -> None:
        self.facts: list[Mapping[str, Any]] = []
        self.of_tokens: list[Fact] = []

    async def frame(self, received_ns: int, conn: int, payload: bytes) -> None:
        pass

    async def fact(self, kind: str, body: Mapping[str, object]) -> None:
        if kind == "conn":
            self.facts.append(body)
        if kind == "token":
            self.of_tokens.append(Fact(kind, body, at_ns=1))

    def of(self, state: str) -> list[Any]:
        return [(fact["conn"], fact["reason"]) for fact in self.facts if fact["state"] == state]


class Api(UpstoxApi):
    """The broker's API, and which tokens it was asked with."""

    def __init__(self, base_url: str, session: aiohttp.ClientSession) -> None:
        super().__init__(base_url, session)
        self.tried: list[str] = []

    async def authorize(self, token: str) -> str:
        self.tried.append(token)
        return await super().authorize(token)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@contextlib.asynccontextmanager
async def fed(
    simulator: Simulator,
    session: aiohttp.ClientSession,
    tokens: Any,
    *,
    now_ns: int = TRADING,
    untried: bool = True,
    **patience: float,
) -> AsyncIterator[tuple[Feed, Api, Inbox]]:
    """Run a feed from a simulator; stop it at the end."""
    api, inbox, stopping = Api(simulator.url, session), Inbox(), asyncio.Event()

    async def subscriptions() -> tuple[Subscription, ...]:
        return (Subscription(instrument_key=simulator.instrument_keys[0], mode=Mode.FULL),)

    async def before_subscribe(_: tuple[Subscription, ...]) -> None:
        pass

    feed = Feed(
        api=api,
        tokens=tokens,
        subscriptions=subscriptions,
        inbox=inbox,
        before_subscribe=before_subscribe,
        session=session,
        clock_ns=lambda: now_ns,
        untried=untried,
        rate=RateLimit(calls=1000),
        patience=Patience(tick_s=0.02, stop_s=0.5, renewal_s=0.05, **patience),
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(feed.run(stopping), name="feed")
        try:
            yield feed, api, inbox
        finally:
            stopping.set()


async def until(condition: Callable[[], object], within_s: float = 15) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


def accepting(*tokens: str, **more: Any) -> SimulatorSettings:
    return SimulatorSettings(instruments=3, updates_per_second=50, tokens=frozenset(tokens), **more)


async def test_refused_later_it_waits_for_token_set(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """The broker takes the token back and drops us: one call with the old token, and the next one with the new."""
    script = (RotateToken(at_s=0.5),)
    async with Simulator(accepting("first", script=script)) as simulator:
        tokens = Tokens(access_token="first", data_dir=tmp_path)
        async with fed(simulator, session, tokens) as (feed, api, inbox):
            await until(lambda: feed.state is FeedState.LIVE)
            url = TokenUrl(f"{simulator.url}/token", session)
            async with asyncio.timeout(10):
                while await url.token() == "first":
                    await asyncio.sleep(0.02)
            await simulator.drop_connections()
            await until(lambda: inbox.of("failed"))
            await asyncio.sleep(1)  # what must not happen meanwhile: another call with the refused token
            assert api.tried == ["first", "first"]
            await asyncio.to_thread(store_token, tmp_path, "simulator-token-2")
            await until(lambda: feed.conn == 2 and feed.state is FeedState.LIVE, 5)
            assert api.tried == ["first", "first", "simulator-token-2"]
            assert inbox.of("failed") == [(2, "token_rejected")]


@pytest.mark.parametrize("place", [".env", ".env with a file", "the file that a setting names"])
async def test_a_file_that_changes_is_read_again(tmp_path: Path, session: aiohttp.ClientSession, place: str) -> None:
    """As soon as it has another token, that one is tried."""
    env_file, secret = tmp_path / ".env", tmp_path / "secret"
    env_file.write_text("UPSTOX_ACCESS_TOKEN=old\n")
    secret.write_text("old\n")
    async with Simulator(accepting("new")) as simulator:
        store_token(tmp_path, "older")  # another place to try: the first refusal is not the end
        tokens = Tokens(access_token="old", env_file=env_file, token_file=secret, data_dir=tmp_path)
        async with fed(simulator, session, tokens) as (feed, api, _):
            await until(lambda: sorted(api.tried) == ["old", "older"])
            if place == ".env":
                env_file.write_text("OTHER=1\nUPSTOX_ACCESS_TOKEN='new'\n")
            elif place == ".env with a file":
                (tmp_path / "another").write_text("new\n")
                env_file.write_text(f"UPSTOX_ACCESS_TOKEN_FILE={tmp_path / 'another'}\n")
            else:
                secret.write_text("new\n")
            await until(lambda: feed.state is FeedState.LIVE, 5)
            assert api.tried[2:] == ["new"]


async def test_the_token_url_is_asked_while_waiting(
    tmp_path: Path, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only with a changed token the broker is asked again."""
    monkeypatch.setattr(module, "_URL_PAUSE_S", 0.1)

    class Service:
        answers = ["stale"] * 5 + ["good"]

        async def token(self) -> str:
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    async with (
        Simulator(accepting("good")) as simulator,
        fed(simulator, session, Tokens(data_dir=tmp_path, url=Service())) as (feed, api, inbox),
    ):
        await until(lambda: feed.state is FeedState.LIVE)
        assert api.tried == ["stale", "good"]
        assert inbox.of("failed") == [(1, "token_rejected")]


def test_questions_to_the_url_are_15_s_apart() -> None:
    """As promised."""
    assert module._URL_PAUSE_S == 15


async def test_the_first_refusal_of_the_only_token_of_the_settings_ends_it(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """Nobody but the user can mend it."""
    async with Simulator(accepting("good")) as simulator:
        with pytest.raises(ExceptionGroup) as caught:
            async with fed(simulator, session, Tokens(access_token="bad", data_dir=tmp_path)) as (feed, _, _):
                await until(lambda: feed.state is FeedState.STOPPED)
        assert caught.group_contains(TokenRefused)


async def test_where_something_was_recorded_the_first_refusal_is_waited_for_too(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """A machine that restarts with a dead token in its settings: told once, and another one is taken."""
    tokens = Tokens(access_token="bad", data_dir=tmp_path)
    async with (
        Simulator(accepting("good")) as simulator,
        fed(simulator, session, tokens, untried=False, refused_token_s=0.1) as (feed, api, inbox),
    ):
        await until(lambda: inbox.of("failed") == [(1, "token_rejected")])
        await asyncio.to_thread(store_token, tmp_path, "good")
        await until(lambda: feed.state is FeedState.LIVE)
        assert api.tried == ["bad", "good"]
        assert inbox.of("failed") == [(1, "token_rejected")]


async def test_a_stored_token_that_is_refused_is_waited_for(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """Each refused token is asked with once and told of once, however often the attempt begins anew."""
    store_token(tmp_path, "bad")
    async with (
        Simulator(accepting("good")) as simulator,
        fed(simulator, session, Tokens(data_dir=tmp_path), refused_token_s=0.1) as (feed, api, inbox),
    ):
        await until(lambda: inbox.of("failed") == [(1, "token_rejected")])
        await asyncio.to_thread(store_token, tmp_path, "bad-too")
        await until(lambda: len(inbox.of("failed")) == 2)
        await asyncio.to_thread(store_token, tmp_path, "bad")
        await asyncio.sleep(0.5)  # several attempts
        assert api.tried == ["bad", "bad-too"]
        await asyncio.to_thread(store_token, tmp_path, "good")
        await until(lambda: feed.state is FeedState.LIVE, 5)
        assert api.tried == ["bad", "bad-too", "good"]
        assert len(inbox.of("failed")) == 2


async def test_two_feeds_ask_with_a_refused_token_once(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """What one was told counts for the other; each tells the ledger, and one of them the webhook."""
    store_token(tmp_path, "bad")
    tokens = Tokens(data_dir=tmp_path)
    async with Simulator(accepting("good")) as simulator, fed(simulator, session, tokens) as (_, api, inbox):
        await until(lambda: inbox.of("failed"))
        async with fed(simulator, session, tokens) as (other, api_too, inbox_too):
            await until(lambda: inbox_too.of("failed") == [(1, "token_rejected")])
            assert (api.tried, api_too.tried) == (["bad"], [])
            facts = [Fact("conn", fact) for fact in (*inbox.facts, *inbox_too.facts) if fact["state"] == "failed"]
            assert len(token_notices(facts, recorder_id="r", seq=1)) == 1
            await asyncio.to_thread(store_token, tmp_path, "good")
            await until(lambda: other.state is FeedState.LIVE, 5)


async def test_a_url_that_is_down_is_asked_seldom(
    tmp_path: Path, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at each attempt, by however many feeds; the attempts fail with its last words."""
    monkeypatch.setattr(module, "_URL_PAUSE_S", 1.0)
    asked_s: list[float] = []

    class Down:
        async def token(self) -> str:
            asked_s.append(time.monotonic())
            if len(asked_s) > 4:
                return "good"
            raise FeedUnavailable("the token URL is down")

    tokens = Tokens(data_dir=tmp_path, url=Down())
    async with Simulator(accepting("good")) as simulator, fed(simulator, session, tokens) as (first, _, inbox):
        async with fed(simulator, session, tokens) as (second, _, inbox_too):
            await until(lambda: first.state is FeedState.LIVE is second.state)
        assert inbox.of("failed") == inbox_too.of("failed") == [(1, "unreachable")]
    assert all(later_s - earlier_s >= 0.99 for earlier_s, later_s in pairwise(asked_s[:5]))


async def test_a_token_that_is_put_in_place_ends_the_wait_for_the_url(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """While no place has a token at all, the pauses grow; a stored one is taken at once."""

    class Down:
        async def token(self) -> str:
            raise FeedUnavailable("down")

    async with (
        Simulator(accepting("good")) as simulator,
        fed(simulator, session, Tokens(data_dir=tmp_path, url=Down())) as (feed, api, inbox),
    ):
        await until(lambda: inbox.of("failed") == [(1, "unreachable")])
        await asyncio.sleep(4)  # by now it pauses for several seconds
        await asyncio.to_thread(store_token, tmp_path, "good")
        await until(lambda: feed.state is FeedState.LIVE, 3)
        assert api.tried == ["good"]


async def test_before_the_session_it_moves_onto_another_token(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """The broker accepts both: the connection is closed and the next one opened with the new token."""
    store_token(tmp_path, "old")
    async with (
        Simulator(accepting("old", "new")) as simulator,
        fed(simulator, session, Tokens(data_dir=tmp_path), now_ns=EARLY) as (feed, api, inbox),
    ):
        await until(lambda: feed.state is FeedState.LIVE)
        await asyncio.to_thread(store_token, tmp_path, "new")
        await until(lambda: feed.conn == 2 and feed.state is FeedState.LIVE)
        assert inbox.of("closed") == [(1, "renewed")]
        assert api.tried == ["old", "new", "new"]


async def test_a_token_that_is_refused_moves_nothing(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """The connection that works is kept; the bad token is asked with once, and the webhook told of it."""
    store_token(tmp_path, "old")
    async with Simulator(accepting("old")) as simulator:
        with capture_logs() as logs:
            async with fed(simulator, session, Tokens(data_dir=tmp_path), now_ns=EARLY) as (feed, api, inbox):
                await until(lambda: feed.state is FeedState.LIVE)
                await asyncio.to_thread(store_token, tmp_path, "bad-one")
                await until(lambda: "bad-one" in api.tried)
                await asyncio.sleep(0.3)  # several looks
                assert (feed.conn, feed.state, api.tried) == (1, FeedState.LIVE, ["old", "bad-one"])
        assert [one["event"] for one in logs if "renewal" in one["event"]] == ["feed.renewal_refused"]
        assert inbox.of("closed") == [(1, "stopped")]
    (notice,) = token_notices(inbox.of_tokens, recorder_id="r", seq=1)
    assert notice.event == "token.rejected"
    assert "recording goes on with the token before it" in notice.message
    assert "bad-one" not in repr(notice)


async def test_in_the_session_nothing_moves(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """A connection that works is worth more than a newer token."""
    store_token(tmp_path, "old")
    async with (
        Simulator(accepting("old", "new")) as simulator,
        fed(simulator, session, Tokens(data_dir=tmp_path), now_ns=TRADING) as (feed, api, _),
    ):
        await until(lambda: feed.state is FeedState.LIVE)
        await asyncio.to_thread(store_token, tmp_path, "new")
        await asyncio.sleep(0.5)  # several looks
        assert (feed.conn, api.tried) == (1, ["old"])
