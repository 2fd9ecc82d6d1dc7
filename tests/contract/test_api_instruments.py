"""The master list's copy on disk, and the instruments URL."""

from __future__ import annotations

import asyncio
import gzip
import json
import stat
import threading
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from structlog.testing import capture_logs

from tickvault.brokers.upstox import masterlist
from tickvault.brokers.upstox.instruments import InstrumentList, definitions, read_copy
from tickvault.brokers.upstox.keylist import InstrumentsUrl
from tickvault.errors import FeedUnavailable
from tickvault.model import Definition, Mode
from tickvault.selections import Key, parse_selection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

TestServer.__test__ = False  # type: ignore[attr-defined]

KEY = "NSE_EQ|INE839G01010"


def listing(symbol: str = "JOCIL", key: str = KEY) -> bytes:
    return json.dumps([{"instrument_key": key, "trading_symbol": symbol}]).encode()


class ListServer:
    """Serves one list under its ETag; `answer` replaces it."""

    def __init__(self) -> None:
        self.body = gzip.compress(listing())
        self.etag = '"1"'
        self.requests: list[web.Request] = []
        self.answer: Callable[[], Awaitable[web.StreamResponse]] | None = None
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if self.answer is not None:
            return await self.answer()
        if request.headers.get("If-None-Match") == self.etag:
            return web.Response(status=304)
        return web.Response(body=self.body, headers={"ETag": self.etag})


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def server() -> AsyncIterator[ListServer]:
    served = ListServer()
    app = web.Application()
    app.router.add_get("/list", served.handle)
    async with TestServer(app) as running:
        served.url = str(running.make_url("/list?key=very-secret"))
        yield served


@pytest.fixture
def master(server: ListServer, session: aiohttp.ClientSession, tmp_path: Path) -> InstrumentList:
    return InstrumentList(url=server.url, cache_dir=tmp_path / "data", session=session)


async def hanging() -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


def answering(**arguments: Any) -> Callable[[], Awaitable[web.StreamResponse]]:
    async def answer() -> web.StreamResponse:
        return web.Response(**arguments)

    return answer


async def test_download_is_kept_privately(master: InstrumentList, server: ListServer, tmp_path: Path) -> None:
    """The copy is the list as served, for its owner only, with nothing left beside it."""
    assert await master.refresh()
    copy = tmp_path / "data" / "instruments.json.gz"
    assert copy.read_bytes() == server.body
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert sorted(path.name for path in copy.parent.iterdir()) == ["instruments.json.gz", "instruments.json.gz.etag"]
    assert server.requests[0].headers["User-Agent"].startswith("tickvault/")


async def test_unchanged_list_is_not_downloaded_again(master: InstrumentList, server: ListServer) -> None:
    """The ETag is sent along; a new list comes when there is one."""
    assert [await master.refresh(), await master.refresh()] == [True, False]
    server.body, server.etag = gzip.compress(listing("NEW")), '"2"'
    assert await master.refresh()
    assert (await master.lookup([KEY]))[KEY].symbol == "NEW"


async def test_lookup(master: InstrumentList) -> None:
    """Known keys have their definitions, before and after the copy is there."""
    assert await master.lookup([KEY]) == {}
    await master.refresh()
    for _ in range(2):  # the second time from memory
        found = await master.lookup([KEY, "NSE_EQ|NONE"])
        assert found == {KEY: Definition(instrument_key=KEY, symbol="JOCIL")}


async def test_plain_json_is_compressed(master: InstrumentList, server: ListServer) -> None:
    """A server that undoes the compression, or has none, serves as well."""
    server.body = listing()
    assert await master.refresh()
    assert KEY in await master.lookup([KEY])


@pytest.mark.parametrize(
    "answer",
    [
        answering(status=503),
        answering(text="<html>maintenance</html>"),
        answering(body=gzip.compress(listing())[:-9]),
        answering(body=gzip.compress(b"[]")),
    ],
)
async def test_bad_download_leaves_the_copy(
    master: InstrumentList, server: ListServer, answer: Callable[[], Awaitable[web.StreamResponse]]
) -> None:
    """Only a whole list replaces the copy."""
    await master.refresh()
    server.answer = answer
    with pytest.raises(FeedUnavailable, match="the instrument list") as caught:
        await master.refresh()
    assert "very-secret" not in str(caught.value)
    assert KEY in await master.lookup([KEY])


async def test_a_row_whose_key_is_no_text_costs_itself_alone(master: InstrumentList, server: ListServer) -> None:
    """A list or an object cannot be among the keys that are compared with the list before."""
    server.body = gzip.compress(
        json.dumps([{"instrument_key": [1]}, {"instrument_key": {}}, *json.loads(listing())]).encode()
    )
    assert await master.refresh()
    assert KEY in await master.lookup([KEY])


def contracts(*numbers: int) -> bytes:
    """Return a list of options that never expire."""
    rows = [{"instrument_key": f"BSE_FO|{n}", "segment": "BSE_FO", "trading_symbol": f"S{n}"} for n in numbers]
    return gzip.compress(json.dumps(rows).encode())


async def test_a_list_that_has_lost_much_is_used_with_what_it_has_lost(
    master: InstrumentList, server: ListServer, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """By key and as a whole, also by the next program without network, until a list has it all again."""
    folder = tmp_path / "data"
    for tag, (numbers, lost) in enumerate([(range(20), 0), (range(10), 10), (range(9), 11), (range(15), 5)]):
        server.body, server.etag = contracts(*numbers), f'"{tag}"'
        with capture_logs() as logs:
            assert await master.refresh()
        assert [one["rows"] for one in logs] == ([{"BSE_FO": lost}] if lost else [])
        assert (await master.lookup(["BSE_FO|19"]))["BSE_FO|19"].symbol == "S19"
        assert await master.read(lambda rows: len(list(rows))) == 20
        assert read_copy(folder, lambda rows: len({row.instrument_key for row in rows})) == 20
    another = InstrumentList(url=server.url, cache_dir=folder, session=session)
    assert not await another.refresh()
    assert another.lost == {"BSE_FO": 5}
    server.body, server.etag = contracts(*range(20)), '"whole"'
    with capture_logs() as logs:
        await master.refresh()
    assert [one["event"] for one in logs] == ["instruments.whole"]
    assert master.lost == {}
    assert sorted(path.name for path in folder.iterdir()) == ["instruments.json.gz", "instruments.json.gz.etag"]


async def test_damaged_rows_that_were_kept_cost_a_download(
    master: InstrumentList, server: ListServer, tmp_path: Path
) -> None:
    """Like a damaged copy."""
    await master.refresh()
    (tmp_path / "data" / "instruments.kept.json.gz").write_bytes(b"damaged")
    assert await master.lookup(["NSE_EQ|NONE"]) == {}
    assert await master.refresh()
    assert KEY in await master.lookup([KEY])
    assert not (tmp_path / "data" / "instruments.kept.json.gz").exists()


async def test_damaged_copy_is_downloaded_again(master: InstrumentList, tmp_path: Path) -> None:
    """Damage on the disk costs one download, not every symbol for ever."""
    await master.refresh()
    (tmp_path / "data" / "instruments.json.gz").write_bytes(b"\x1f\x8bdamaged")
    with capture_logs() as logs:
        assert await master.lookup([KEY]) == {}
    assert [entry["event"] for entry in logs] == ["instruments.damaged"]
    assert await master.refresh()
    assert KEY in await master.lookup([KEY])


async def test_definitions_wait_no_longer_than_told(
    server: ListServer, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """A list that does not come leaves the recorder without symbols, in time, and says so."""
    server.answer = hanging
    begin_s = time.monotonic()
    with capture_logs() as logs:
        assert await definitions([KEY], url=server.url, cache_dir=tmp_path, session=session, timeout_s=0.3) == {}
    assert time.monotonic() - begin_s < 2
    assert [entry["event"] for entry in logs] == ["instruments.unavailable"]


@pytest.mark.parametrize("answer", [hanging, answering(status=500)])
async def test_definitions_from_the_copy(
    server: ListServer, session: aiohttp.ClientSession, tmp_path: Path, answer: Any
) -> None:
    """With no network the last copy serves."""
    assert KEY in await definitions([KEY], url=server.url, cache_dir=tmp_path, session=session)
    server.answer = answer
    with capture_logs() as logs:
        found = await definitions([KEY], url=server.url, cache_dir=tmp_path, session=session, timeout_s=1)
    assert KEY in found
    assert [entry["event"] for entry in logs] == ["instruments.from_copy"]


async def test_reconnects_do_not_wait_for_a_list_that_does_not_come(
    server: ListServer, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """After a failure the next connections do without a download for five minutes."""
    now_s = 1000.0
    master = InstrumentList(url=server.url, cache_dir=tmp_path, session=session, monotonic_s=lambda: now_s)
    server.answer = answering(status=500)
    for _ in range(3):
        await master.definitions([KEY])
    assert len(server.requests) == 1
    now_s += 301
    server.answer = None
    assert KEY in await master.definitions([KEY])
    assert master.fresh
    now_s += 1799
    await master.definitions([KEY])
    assert len(server.requests) == 2


async def test_refresh_later(master: InstrumentList, server: ListServer) -> None:
    """What did not come in time can be had later, while recording."""
    server.answer = hanging
    assert await master.definitions([KEY], timeout_s=0.1) == {}
    assert not master.fresh
    server.answer = None
    assert await master.refresh()
    assert KEY in await master.lookup([KEY])


async def test_a_list_that_was_downloaded_is_read_once(
    server: ListServer, session: aiohttp.ClientSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To see that it is whole, and for what it says of the keys: the real one takes a second each time."""
    readings: list[int] = []
    rows = masterlist.rows

    def counted(gz_bytes: bytes, *args: Any) -> Iterator[object]:
        readings.append(len(gz_bytes))
        return rows(gz_bytes, *args)

    monkeypatch.setattr(masterlist, "rows", counted)
    master = InstrumentList(url=server.url, cache_dir=tmp_path, session=session)
    for symbol in ("JOCIL", "OTHER"):
        server.body, server.etag = gzip.compress(listing(symbol)), f'"{symbol}"'
        assert await master.refresh([KEY])
        assert (await master.lookup([KEY]))[KEY].symbol == symbol
    assert len(readings) == 2
    assert await master.lookup([KEY, "NSE_EQ|OTHER"]) == await master.lookup([KEY])
    assert len(readings) == 3, "for a key that nobody asked for before"


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (["NSE_EQ|A"], [("NSE_EQ|A", Mode.FULL)]),
        (["NSE_EQ|A@ltpc", "NSE_EQ|B", "NSE_EQ|A"], [("NSE_EQ|A", Mode.LTPC), ("NSE_EQ|B", Mode.FULL)]),
        (["INFY", 7, None, "NSE_EQ|A@deep", "NSE_EQ|\ud800", "NSE_EQ|B"], [("NSE_EQ|B", Mode.FULL)]),
    ],
)
async def test_instruments_url(
    server: ListServer, session: aiohttp.ClientSession, items: list[object], expected: list[tuple[str, Mode]]
) -> None:
    """Usable keys are taken once each, in order; the others are skipped."""
    server.body = json.dumps({"instruments": items}).encode()
    source = InstrumentsUrl(server.url, session, Mode.FULL)
    selections = await source()
    assert [(one.what, one.mode) for one in selections] == [(Key(key), mode) for key, mode in expected]
    assert len(source.skipped) == (0 if len(items) < 4 else 5)


async def test_a_list_of_thousands_is_read_beside_the_loop(
    server: ListServer, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parsing each of them takes the event loop's time otherwise, at every reconnect."""
    threads: set[int] = set()

    def seen(*args: Any, **kwargs: Any) -> Any:
        threads.add(threading.get_ident())
        return parse_selection(*args, **kwargs)

    monkeypatch.setattr("tickvault.brokers.upstox.keylist.parse_selection", seen)
    server.body = json.dumps({"instruments": ["NSE_EQ|A"]}).encode()
    await InstrumentsUrl(server.url, session, Mode.FULL)()
    assert threads
    assert threading.get_ident() not in threads


async def test_malformed_keys_are_told_once(server: ListServer, session: aiohttp.ClientSession) -> None:
    """The same bad key is not told at every reconnect."""
    server.body = json.dumps({"instruments": ["INFY", "NSE_EQ|A"]}).encode()
    source = InstrumentsUrl(server.url, session, Mode.FULL)
    with capture_logs() as logs:
        await source()
        await source()
    assert [(entry["event"], entry["examples"]) for entry in logs] == [("instruments_url.keys_skipped", ["INFY"])]


@pytest.mark.parametrize(
    "answer",
    [
        answering(status=500),
        answering(text="no list"),
        answering(text='{"instruments": "NSE_EQ|A"}'),
        answering(text='{"instruments": []}'),
    ],
)
async def test_last_good_list_is_kept(
    server: ListServer, session: aiohttp.ClientSession, answer: Callable[[], Awaitable[web.StreamResponse]]
) -> None:
    """A failure of the URL changes nothing; before a first good list it is a failed attempt."""
    source = InstrumentsUrl(server.url, session, Mode.FULL)
    server.answer = answer
    with pytest.raises(FeedUnavailable, match="the instruments URL") as caught:
        await source()
    assert "very-secret" not in str(caught.value)
    server.answer = answering(text='{"instruments": ["NSE_EQ|A"]}')
    good = await source()
    server.answer = answer
    with capture_logs() as logs:
        assert await source() == good
        assert await source() == good
    assert [entry["event"] for entry in logs] == ["instruments_url.failed"]
