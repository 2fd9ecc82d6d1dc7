"""The exchanges' calendar: asked politely, kept on disk, never in the way."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from tickvault.brokers.upstox.calendar import MarketCalendar
from tickvault.errors import ConfigurationError
from tickvault.ledger import Sessions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

TestServer.__test__ = False  # type: ignore[attr-defined]

IST = dt.timezone(dt.timedelta(hours=5, minutes=30))
MONDAY = dt.date(2026, 11, 23)
TUESDAY = dt.date(2026, 11, 24)  # a holiday here


def at(date: dt.date, clock: str) -> int:
    return int(dt.datetime.combine(date, dt.time.fromisoformat(clock), IST).timestamp()) * 10**9


class Broker:
    """Answers as the broker does; `fail` makes it answer something else."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []
        self.agents: set[str] = set()
        self.fail: web.Response | None = None
        self.close = "15:30"
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append((request.path, request.headers.get("Authorization")))
        self.agents.add(request.headers["User-Agent"])
        if self.fail is not None:
            return web.Response(status=self.fail.status, body=self.fail.body)
        return web.json_response({"status": "success", "data": self.data(request)})

    def data(self, request: web.Request) -> list[dict[str, Any]]:
        if request.path == "/v2/market/holidays":
            return [
                {
                    "date": TUESDAY.isoformat(),
                    "holiday_type": "TRADING_HOLIDAY",
                    "description": "",
                    "closed_exchanges": ["NSE"],
                    "open_exchanges": [],
                }
            ]
        date = dt.date.fromisoformat(request.match_info["date"])
        begin, end = at(date, "09:15") // 10**6, at(date, self.close) // 10**6
        return [] if date == TUESDAY else [{"exchange": "NSE", "start_time": begin, "end_time": end}]


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    one = Broker()
    app = web.Application()
    app.router.add_get("/v2/market/holidays", one.answer)
    app.router.add_get("/v2/market/timings/{date}", one.answer)
    async with TestServer(app) as server:
        one.url = str(server.make_url("/"))
        yield one


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def calendar(broker: Broker, tmp_path: Path, session: aiohttp.ClientSession) -> MarketCalendar:
    return MarketCalendar(broker.url, tmp_path, session, wall_ns=lambda: at(MONDAY, "08:00"))


async def test_it_asks_for_holidays_and_the_next_trading_days(
    broker: Broker, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """With the token, under a real name; days that are closed anyway are not asked for."""
    one = calendar(broker, tmp_path, session)
    body = await one.refresh("secret")
    days = ("2026-11-23", "2026-11-25", "2026-11-26")
    assert [path for path, _ in broker.asked] == ["/v2/market/holidays", *(f"/v2/market/timings/{day}" for day in days)]
    assert {token for _, token in broker.asked} == {"Bearer secret"}
    assert all(agent.startswith("tickvault/") for agent in broker.agents)
    assert body is not None
    windows = Sessions.of(body).windows["NSE_EQ"]
    assert (at(MONDAY, "09:00"), at(MONDAY, "15:30")) in windows
    assert not any(at(TUESDAY, "00:00") <= begin < at(TUESDAY, "23:59") for begin, _ in windows)
    assert one.fresh
    assert one.calendar.knows("NSE_EQ")


async def test_what_has_not_changed_is_not_told_again(
    broker: Broker, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """A journal has each calendar once; without a token nothing is sent along."""
    one = calendar(broker, tmp_path, session)
    assert await one.refresh(None) is not None
    assert {token for _, token in broker.asked} == {None}
    assert await one.refresh(None) is None
    broker.close = "15:45"
    assert await one.refresh(None) is not None


FAILURES = [
    web.Response(status=503),
    web.Response(status=401, body=b'{"status": "error", "errors": []}'),
    web.Response(body=b"<html>"),
    web.Response(body=b'{"data": {}}'),
    web.Response(body=b'{"data": [{"date": "never"}]}'),
    web.Response(body=b'{"data": [17]}'),
]


@pytest.mark.parametrize("failure", FAILURES, ids=str)
async def test_without_the_broker_the_copy_serves(
    broker: Broker, tmp_path: Path, session: aiohttp.ClientSession, failure: web.Response
) -> None:
    """A start offline knows the sessions of the day; a failure harms neither the copy nor what is known."""
    told = await calendar(broker, tmp_path, session).refresh(None)
    copy = tmp_path / "calendar.json"
    assert copy.stat().st_mode & 0o777 == 0o600
    before = copy.read_bytes()
    broker.fail = failure
    one = calendar(broker, tmp_path, session)
    assert await one.restore() == told
    assert await one.refresh(None) is None
    assert not one.fresh
    assert one.calendar.knows("NSE_EQ")
    assert copy.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["calendar.json"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"holidays": 1, "timings": []}', '{"holidays": [], "timings": {"x": []}}']
)
async def test_a_damaged_copy_is_as_none(
    broker: Broker, tmp_path: Path, session: aiohttp.ClientSession, content: str
) -> None:
    """Nothing is known, and nothing is told; the next answer replaces it."""
    (tmp_path / "calendar.json").write_text(content)
    broker.fail = web.Response(status=500)
    one = calendar(broker, tmp_path, session)
    assert await one.restore() is None
    assert await one.refresh(None) is None
    broker.fail = None
    assert await one.refresh(None) is not None
    assert "timings" in json.loads((tmp_path / "calendar.json").read_text())


async def test_an_unreachable_broker_is_no_error(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """It is said once in the log, and recording goes on."""
    one = MarketCalendar(f"http://127.0.0.1:{unused_port()}", tmp_path, session)
    assert await one.refresh("secret") is None
    assert not one.fresh


async def test_a_token_goes_nowhere_unencrypted(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """Plain http is for loopback."""
    with pytest.raises(ConfigurationError):
        MarketCalendar("http://example.com", tmp_path, session)


async def test_it_is_kept_in_the_background(broker: Broker, tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """What is new is told, a token or none; cancelling ends it."""
    told: asyncio.Queue[Mapping[str, object]] = asyncio.Queue()

    async def token() -> None:
        return None

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        task = group.create_task(calendar(broker, tmp_path, session).keep(token, told.put), name="calendar")
        assert "sessions" in await told.get()
        task.cancel()
    assert task.cancelled()
    assert {token for _, token in broker.asked} == {None}
