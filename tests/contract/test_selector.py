"""Selections through a day: a list that changes, prices that move, mornings, and what is wrong with any of them."""

from __future__ import annotations

import datetime as dt
import gzip
import json
import threading
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from structlog.testing import capture_logs

from tickvault.brokers.upstox.instruments import InstrumentList
from tickvault.brokers.upstox.planner import plan
from tickvault.brokers.upstox.selector import Selector, Typed, session_date
from tickvault.errors import ConfigurationError, FeedUnavailable
from tickvault.model import Mode
from tickvault.selections import Selection, parse_selection, parse_selections

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

TestServer.__test__ = False  # type: ignore[attr-defined]

IST = dt.timezone(dt.timedelta(hours=5, minutes=30))
SPOT, VIX = "NSE_INDEX|Nifty 50", "NSE_INDEX|India VIX"
FIRST, SECOND = dt.date(2026, 9, 1), dt.date(2026, 9, 8)


def at_ns(day: int, hour: int, minute: int = 0) -> int:
    return int(dt.datetime(2026, 9, day, hour, minute, tzinfo=IST).timestamp()) * 10**9


def plain(key: str, symbol: str, kind: str) -> dict[str, Any]:
    segment = key.partition("|")[0]
    return {"instrument_key": key, "trading_symbol": symbol, "segment": segment, "instrument_type": kind}


def option(expiry: dt.date, strike: float) -> dict[str, Any]:
    last = dt.datetime.combine(expiry, dt.time(23, 59, 59), IST)
    return {
        **plain(f"NSE_FO|{expiry:%d}{strike:g}", f"NIFTY {strike:g} CE {expiry}", "CE"),
        "underlying_symbol": "NIFTY",
        "underlying_key": SPOT,
        "expiry": int(last.timestamp()) * 1000,
        "strike_price": strike,
    }


def rows(strikes: Iterable[float] = (100.0, 200.0, 300.0, 400.0)) -> list[dict[str, Any]]:
    spots = [plain(SPOT, "NIFTY", "INDEX"), plain(VIX, "INDIA VIX", "INDEX"), plain("NSE_EQ|T", "TCS", "EQ")]
    return [*spots, *(option(expiry, strike) for expiry in (FIRST, SECOND) for strike in strikes)]


class Desk:
    """A selector, and everything it depends on, to be changed at will."""

    def __init__(self, session: aiohttp.ClientSession, folder: Path) -> None:
        self.rows = rows()
        self.status = 200
        self.texts: list[str] = []
        self.now_ns = at_ns(1, 9)
        self.prices: dict[str, float] = {}
        self.followed: list[str] = []
        self.down = False
        self._session = session
        self._folder = folder
        self.url = ""

    async def handle(self, _request: web.Request) -> web.StreamResponse:
        if self.status != 200:
            return web.Response(status=self.status)
        return web.Response(body=gzip.compress(json.dumps(self.rows).encode()))

    def selector(self, *texts: str, listed: bool = False, plus: bool = False, master: bool = True) -> Selector:
        self.texts = list(texts)

        class Listed:
            skipped: tuple[str, ...] = ()

            async def __call__(_self) -> tuple[Selection, ...]:
                if self.down:
                    raise FeedUnavailable("down")
                return tuple(parse_selection(text, Mode.FULL, typed=False) for text in self.texts)

        return Selector(
            source=Listed() if listed else Typed(parse_selections(texts, Mode.FULL)),
            master=InstrumentList(url=self.url, cache_dir=self._folder, session=self._session) if master else None,
            prices=lambda: self.prices,
            follow=lambda keys: self.followed.extend(keys),
            plus=plus,
            wall_ns=lambda: self.now_ns,
        )


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with aiohttp.ClientSession() as session:
        one = Desk(session, tmp_path)
        app = web.Application()
        app.router.add_get("/list", one.handle)
        async with TestServer(app) as server:
            one.url = str(server.make_url("/list"))
            yield one


def keys(selector: Selector) -> list[str]:
    return [one.instrument_key for socket in selector.plan.sockets for one in socket]


async def again(selector: Selector) -> None:
    """Review behind a refresh, as half an hour later."""
    assert selector._master is not None
    await selector._master.refresh()
    await selector.review()


def test_a_session_begins_before_the_pre_open() -> None:
    """08:30 in India; the night belongs to the day before."""
    assert session_date(at_ns(1, 8, 29)) == dt.date(2026, 8, 31)
    assert session_date(at_ns(1, 8, 30)) == session_date(at_ns(2, 3, 30)) == FIRST


async def test_a_strike_listed_in_the_day_joins_and_one_delisted_stays(desk: Desk) -> None:
    """Within a session the keys only grow, at their places."""
    selector = desk.selector("chain:NIFTY:1")
    await selector.prepare()
    before = keys(selector)
    assert before == [SPOT, VIX, *(f"NSE_FO|01{strike}" for strike in (100, 200, 300, 400))]
    desk.rows = rows([200.0, 300.0, 400.0, 500.0])
    await again(selector)
    assert keys(selector) == [*before, "NSE_FO|01500"]


async def test_the_morning_begins_anew(desk: Desk) -> None:
    """At 08:30 what has expired leaves and the next expiry comes, with the list of that morning."""
    selector = desk.selector("chain:NIFTY:1")
    await selector.prepare()
    desk.now_ns = at_ns(2, 8, 29)
    await selector.review()
    assert "NSE_FO|01100" in keys(selector)
    desk.now_ns, desk.rows = at_ns(2, 8, 30), rows([100.0, 600.0])
    assert "NSE_FO|01100" in {one.instrument_key for one in await selector.subscriptions(0)}
    await selector.review()
    assert keys(selector) == [SPOT, VIX, "NSE_FO|08100", "NSE_FO|08600"]


async def test_a_window_waits_for_the_price_then_follows_it(desk: Desk) -> None:
    """Until the spot has a price there is only the spot; strikes that leave the window stay."""
    selector = desk.selector("chain:NIFTY:weekly:atm+-0")
    await selector.prepare()
    assert (keys(selector), desk.followed[-1], selector.pause_s) == ([SPOT, VIX], SPOT, 1.0)
    desk.prices = {SPOT: 190.0}
    await selector.review()
    assert keys(selector)[2:] == ["NSE_FO|01200"]
    desk.prices = {SPOT: 310.0}
    await selector.review()
    assert keys(selector)[2:] == ["NSE_FO|01200", "NSE_FO|01300"]
    assert selector.pause_s == 5.0


async def test_a_restart_within_the_session_keeps_strikes(desk: Desk) -> None:
    """What was subscribed to before is held, as far as it belongs to the chain."""
    selector = desk.selector("chain:NIFTY:weekly:atm+-0")
    await selector.prepare()
    selector.hold(["NSE_FO|01400", "NSE_FO|08400", "NSE_EQ|GONE"])
    await selector.review()
    assert keys(selector) == [SPOT, VIX, "NSE_FO|01400"]


async def test_bad_lines_of_a_file_are_skipped_and_said_once(desk: Desk, tmp_path: Path) -> None:
    """A line that means nothing, one that names nothing: the rest is recorded."""
    (tmp_path / "keys.txt").write_text("NSE_EQ:TCS\nfoo\nNSE_EQ:TSC\n@more\n")
    selector = desk.selector(f"@{tmp_path}/keys.txt", "NSE_EQ|A")
    with capture_logs() as logs:
        await selector.prepare()
        await selector.review()
    assert keys(selector) == ["NSE_EQ|T", "NSE_EQ|A"]
    assert len(selector.skipped) == 3
    assert "did you mean TCS?" in selector.skipped[2]
    assert [one["count"] for one in logs if one["event"] == "selections.skipped"] == [3]


async def test_a_file_that_goes_away_later_costs_nothing(desk: Desk, tmp_path: Path) -> None:
    """At the start it is a mistake; in the morning the last one stays in force."""
    path = tmp_path / "keys.txt"
    selector = desk.selector(f"@{path}")
    with pytest.raises(ConfigurationError, match=r"keys\.txt cannot be read"):
        await selector.prepare()
    path.write_text("# nothing yet")
    await selector.prepare()
    with pytest.raises(FeedUnavailable, match="nothing to subscribe to: no keys"):
        await selector.subscriptions(0)
    path.write_text("NSE_EQ|A,NSE_EQ|B")
    assert len(await selector.subscriptions(0)) == 2
    path.unlink()
    desk.now_ns = at_ns(2, 9)
    await selector.review()
    assert keys(selector) == ["NSE_EQ|A", "NSE_EQ|B"]
    assert "cannot be read" in selector.skipped[0]


async def test_what_a_user_typed_must_exist(desk: Desk) -> None:
    """By the list as it is now; one that may be old proves nothing, and somebody else's list is never fatal."""
    with pytest.raises(ConfigurationError, match=r"NSE_EQ:TSC: NSE_EQ lists no 'TSC'; did you mean TCS\?; correct it"):
        await desk.selector("NSE_EQ:TSC").prepare()
    await desk.selector("NSE_EQ:TSC", listed=True).prepare()
    desk.status = 503
    selector = desk.selector("NSE_EQ:TSC", "NSE_EQ:TCS")
    await selector.prepare()
    assert keys(selector) == ["NSE_EQ|T"]


async def test_too_many_keys(desk: Desk) -> None:
    """Typed keys are refused with the arithmetic; of somebody else's list what fits is recorded, and the rest said."""
    many = [f"NSE_EQ|K{number}" for number in range(4_412)]
    with pytest.raises(ConfigurationError, match=r"412 of 4,412 keys do not fit on the 2 sockets"):
        await desk.selector(*many).prepare()
    selector = desk.selector(*many, listed=True)
    with capture_logs() as logs:
        await selector.prepare()
    assert [len(socket) for socket in selector.plan.sockets] == [2000, 2000]
    assert [one["what"] for one in logs if one["event"] == "plan.refused"] == [selector.refused]
    plus = desk.selector(*many, plus=True)
    await plus.prepare()
    assert (len(plus.plan.sockets), plus.refused) == (3, None)


async def test_without_any_list_keys_are_recorded_and_the_rest_waits(desk: Desk) -> None:
    """The list comes later, and with it the rest."""
    desk.status = 503
    selector = desk.selector("NSE_EQ|A", "NSE_EQ:TCS")
    await selector.prepare()
    assert keys(selector) == ["NSE_EQ|A"]
    assert "wait for the master list" in selector.skipped[0]
    desk.status = 200
    await again(selector)
    assert (keys(selector), selector.skipped) == (["NSE_EQ|A", "NSE_EQ|T"], ())


async def test_nothing_to_subscribe_to_is_a_failed_attempt(desk: Desk) -> None:
    """The feed tries again, until there is something."""
    desk.status = 503
    selector = desk.selector("NSE_EQ:TCS")
    await selector.prepare()
    with pytest.raises(FeedUnavailable, match="nothing to subscribe to: NSE_EQ:TCS wait for the master list"):
        await selector.subscriptions(0)
    desk.status = 200
    await again(selector)
    assert [one.instrument_key for one in await selector.subscriptions(0)] == ["NSE_EQ|T"]
    assert await selector.subscriptions(1) == ()


async def test_a_source_that_is_down_at_the_start(desk: Desk) -> None:
    """It is asked again at each attempt; a list read later is taken."""
    selector = desk.selector("NSE_EQ|A", listed=True)
    desk.down = True
    await selector.prepare()
    with pytest.raises(FeedUnavailable):
        await selector.subscriptions(0)
    desk.down = False
    assert len(await selector.subscriptions(0)) == 1
    desk.texts.append("NSE_EQ|B")
    assert len(await selector.subscriptions(0)) == 2


async def test_while_something_waits_nobody_knows_what_has_to_close(desk: Desk) -> None:
    """Keys beside a symbol, a symbol alone; without any list to come, keys are all there is."""
    desk.status = 503
    some, none = desk.selector("NSE_EQ|A", "NSE_EQ:TCS"), desk.selector("NSE_EQ:TCS")
    for one in (some, none):
        assert one.waiting
        await one.prepare()
        assert one.waiting
    desk.status = 200
    for one in (some, none):
        await again(one)
        assert not one.waiting
    never = desk.selector("NSE_EQ|A", "NSE_EQ:TCS", master=False)
    await never.prepare()
    assert not never.waiting


async def test_thousands_of_keys_are_planned_beside_the_loop(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """At start, at a reconnect and at each review: what they come to, and where they go, is a thread's work."""
    threads: set[int] = set()

    def seen(*args: Any, **kwargs: Any) -> Any:
        threads.add(threading.get_ident())
        return plan(*args, **kwargs)

    monkeypatch.setattr("tickvault.brokers.upstox.selector.plan", seen)
    one = desk.selector(SPOT, "NSE_EQ|INE000000001")
    await one.prepare()
    await one.subscriptions(0)
    await one.review()
    assert one.planned == (SPOT, "NSE_EQ|INE000000001")
    assert threads
    assert threading.get_ident() not in threads
