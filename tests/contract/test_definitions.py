"""Definitions from the master list through the journal to rows: a number that is given to a new contract has two lives."""

from __future__ import annotations

import asyncio
import datetime as dt
import gzip
import json
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from doubles import AT_NS, payload

from tickvault.batching import to_batch
from tickvault.brokers.upstox import definitions as kept
from tickvault.brokers.upstox.definitions import Definitions
from tickvault.brokers.upstox.instruments import InstrumentList
from tickvault.journal import Journal, Received
from tickvault.ledger import Ledger
from tickvault.model import Mode, Subscription
from tickvault.reading import JournalReader
from tickvault.state import State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

    from tickvault.model import Definition

TestServer.__test__ = False  # type: ignore[attr-defined]

KEY = "NSE_FO|45450"
IST = dt.timezone(dt.timedelta(hours=5, minutes=30))


def contract(strike: float, expiry: dt.date, key: str = KEY) -> dict[str, Any]:
    last = dt.datetime.combine(expiry, dt.time(23, 59, 59), IST)
    return {
        "instrument_key": key,
        "trading_symbol": f"NIFTY {strike:g} CE {expiry:%d %b %y}".upper(),
        "segment": "NSE_FO",
        "instrument_type": "CE",
        "expiry": int(last.timestamp()) * 1000,
        "strike_price": strike,
    }


class Lists:
    """Serves one list; every answer has an ETag, and a repeat of it is answered with 304."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.statuses: list[int] = []
        self.delay_s = 0.0

    async def handle(self, request: web.Request) -> web.Response:
        await asyncio.sleep(self.delay_s)
        body = gzip.compress(json.dumps(self.rows).encode(), mtime=0)
        etag = f'"{hash(body)}"'
        answer = (
            web.Response(status=304)
            if request.headers.get("If-None-Match") == etag
            else web.Response(body=body, headers={"ETag": etag})
        )
        self.statuses.append(answer.status)
        return answer


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_a_reused_number_keeps_both_histories_apart(session: aiohttp.ClientSession, tmp_path: Path) -> None:
    """Ticks have the symbol that was in force when they came; `instruments` has both, each from its seq on."""
    lists = Lists()
    app = web.Application()
    app.router.add_get("/list", lists.handle)
    state, _ = State.open(tmp_path / "state.db")
    journal = Journal.open(tmp_path / "journal", state, wall_ns=lambda: AT_NS)

    async def define(found: Mapping[str, Definition]) -> None:
        if fact := journal.define(found):
            journal.append([fact])

    async with TestServer(app) as server:
        master = InstrumentList(url=str(server.make_url("/list")), cache_dir=tmp_path, session=session)
        definitions = Definitions(master, lambda: (KEY,), define)
        wanted = (Subscription(instrument_key=KEY, mode=Mode.FULL),)
        for number, strike in enumerate((24_500.0, 24_500.0, 31_000.0)):
            lists.rows = [contract(strike, dt.date(2026, 9, 1 if strike < 30_000 else 8))]
            await master.refresh()
            await definitions.bring_into_force(wanted)
            journal.append([Received(AT_NS + number, 1, payload(number, keys=(KEY,)))])
    assert lists.statuses == [200, 304, 200]
    ticks, instruments = [], []
    reader, ledger = JournalReader(tmp_path / "journal", 0), Ledger()
    while (chunk := reader.read(max_frames=1000, max_bytes=10**9)) is not None:
        batch = to_batch(chunk, recorder_id=journal.recorder_id, ledger=ledger)
        ticks += batch.tables["ticks"].select(["seq", "symbol"]).to_pylist()
        instruments += batch.tables["instruments"].to_pylist() if "instruments" in batch.tables else []
    reader.close()
    journal.close()
    state.close()
    old, new = "NIFTY 24500 CE 01 SEP 26", "NIFTY 31000 CE 08 SEP 26"
    assert [row["symbol"] for row in ticks] == [old, old, new]
    assert [(row["valid_from_seq"], row["symbol"], row["strike"], row["expiry"]) for row in instruments] == [
        (1, old, 24_500.0, dt.date(2026, 9, 1)),
        (3, new, 31_000.0, dt.date(2026, 9, 8)),
    ]


async def test_sockets_that_open_together_wait_for_one_download(session: aiohttp.ClientSession, tmp_path: Path) -> None:
    """The second one is not told that there is no list while the first one gets it."""
    lists = Lists()
    lists.rows = [contract(24_500.0, dt.date(2026, 9, 1), f"NSE_FO|{number}") for number in (1, 2)]
    lists.delay_s = 0.2
    app = web.Application()
    app.router.add_get("/list", lists.handle)
    found: list[set[str]] = []

    async def keep(definitions: Mapping[str, Definition]) -> None:
        found.append(set(definitions))

    async with TestServer(app) as server:
        master = InstrumentList(url=str(server.make_url("/list")), cache_dir=tmp_path, session=session)
        definitions = Definitions(master, tuple, keep)
        async with asyncio.TaskGroup() as group:
            for number in (1, 2):
                wanted = (Subscription(instrument_key=f"NSE_FO|{number}", mode=Mode.FULL),)
                group.create_task(definitions.bring_into_force(wanted))
    assert found == [{"NSE_FO|1"}, {"NSE_FO|2"}]
    assert lists.statuses == [200]


async def test_what_changes_under_an_open_connection_comes_into_force(
    session: aiohttp.ClientSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list that changes later is journalled without a reconnect, and only when it changes."""
    monkeypatch.setattr(kept, "_PAUSE_S", 0.02)
    lists = Lists()
    lists.rows = [contract(24_500.0, dt.date(2026, 9, 1))]
    app = web.Application()
    app.router.add_get("/list", lists.handle)
    found: list[Mapping[str, Definition]] = []

    async def keep(definitions: Mapping[str, Definition]) -> None:
        found.append(definitions)

    async with TestServer(app) as server:
        now_s = 0.0
        master = InstrumentList(
            url=str(server.make_url("/list")), cache_dir=tmp_path, session=session, monotonic_s=lambda: now_s
        )
        definitions = Definitions(master, lambda: (KEY,), keep)
        await definitions.bring_into_force(())
        async with asyncio.TaskGroup() as group:
            keeper = group.create_task(definitions.keep())
            lists.rows = [contract(31_000.0, dt.date(2026, 9, 8))]
            now_s = 1801.0
            await until(lambda: len(found) == 2, "the new contract")
            now_s = 3603.0
            await until(lambda: lists.statuses[-1] == 304, "a comparison")
            keeper.cancel()
    assert [one[KEY].strike for one in found] == [24_500.0, 31_000.0]
    assert lists.statuses == [200, 200, 304]


async def until(condition: Callable[[], object], what: str, within_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, f"{what}: not within {within_s} s"
        await asyncio.sleep(0.005)


async def test_thousands_of_definitions_leave_the_loop_room(session: aiohttp.ClientSession, tmp_path: Path) -> None:
    """They are journalled in parts, and between two of them whatever else is due has its turn."""
    lists = Lists()
    keys = [f"NSE_FO|{number}" for number in range(1_000)]
    lists.rows = [contract(24_500.0, dt.date(2026, 9, 1), key) for key in keys]
    app = web.Application()
    app.router.add_get("/list", lists.handle)
    told: list[str] = []
    parts: list[int] = []
    turns: set[int] = set()

    async def keep(definitions: Mapping[str, Definition]) -> None:
        told.extend(definitions)
        parts.append(len(definitions))
        asyncio.get_running_loop().call_soon(turns.add, len(parts))

    async with TestServer(app) as server:
        master = InstrumentList(url=str(server.make_url("/list")), cache_dir=tmp_path, session=session)
        wanted = tuple(Subscription(instrument_key=key, mode=Mode.FULL) for key in keys)
        await Definitions(master, tuple, keep).bring_into_force(wanted)
    assert told == keys
    assert max(parts) <= 200
    assert turns == set(range(1, len(parts) + 1)), "each before the next part"


async def test_what_could_not_be_journalled_in_time_is_journalled_later(
    session: aiohttp.ClientSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the queue has no room the subscribe goes ahead without its definitions; they follow when there is room."""
    monkeypatch.setattr("tickvault.brokers.upstox.definitions._PAUSE_S", 0.01)
    lists = Lists()
    lists.rows = [contract(24_500.0, dt.date(2026, 9, 1))]
    app = web.Application()
    app.router.add_get("/list", lists.handle)
    room = asyncio.Event()
    waiting = asyncio.Event()
    told: list[str] = []

    async def keep(definitions: Mapping[str, Definition]) -> None:
        waiting.set()
        await room.wait()
        told.extend(definitions)

    async with TestServer(app) as server:
        master = InstrumentList(url=str(server.make_url("/list")), cache_dir=tmp_path, session=session)
        definitions = Definitions(master, lambda: (KEY,), keep)
        asked = asyncio.create_task(definitions.bring_into_force((Subscription(instrument_key=KEY, mode=Mode.FULL),)))
        await asyncio.wait_for(waiting.wait(), 20)
        asked.cancel()
        await asyncio.wait([asked])
        room.set()
        keeper = asyncio.create_task(definitions.keep())
        async with asyncio.timeout(20):
            while not told:
                await asyncio.sleep(0.002)
        keeper.cancel()
        await asyncio.wait([keeper])
    assert told == [KEY]
