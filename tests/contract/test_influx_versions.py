"""Which version of a candle a store holds, asked of the real servers before an old one is sent again."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from servers import AT_MS, Server, batch_of, candle, get, tick

from tickvault.errors import SinkError, SinkMisconfigured, SinkUnavailable
from tickvault.model import TakesAgain
from tickvault.sinks.influx import InfluxSink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

STRANGE = "NSE_FO|A, B=C 'q' \"d\" \\n x"
KEYS = ("NSE_EQ|INE531E01026", STRANGE, "NSE_INDEX|Nifty 50")


@pytest.mark.parametrize("layouts", [("tickvault",), ("tradedatafeed", "tickvault")])
async def test_influxdb_says_which_version_it_has(influx_server: Server, layouts: tuple[str, ...]) -> None:
    """By instrument, interval and start; the same one again is not newer, and of what is not there none is."""
    sink = InfluxSink(url=influx_server.url, bucket="candles of x", layouts=layouts)
    async with aclosing(sink):
        assert isinstance(sink, TakesAgain)
        rows = [
            candle(instrument_key=key, seq=7, close=1.5, interval=interval) for key in KEYS for interval in ("I1", "1d")
        ]
        assert await sink.outdated(batch_of(candles=rows)) == set(), "nor in a database that is not there"
        await sink.write(batch_of(candles=rows))
        for seq, outdated in ((6, set(range(1, 7))), (7, set()), (8, set())):
            again = [dict(row, seq=seq) for row in rows]
            assert await sink.outdated(batch_of(ticks=[tick()], candles=again)) == outdated
        elsewhere = [dict(row, seq=1, interval="I30") for row in rows]
        assert await sink.outdated(batch_of(candles=elsewhere * 10)) == set()


async def test_in_the_layout_without_a_seq_what_is_there_stays(influx_server: Server) -> None:
    """Nobody can tell which is newer, and all but the refused ones came in order."""
    sink = InfluxSink(url=influx_server.url, bucket="b", layouts=("tradedatafeed",))
    async with aclosing(sink):
        rows = [candle(instrument_key=key, seq=7, close=1.5) for key in KEYS]
        await sink.write(batch_of(candles=rows[:2]))
        assert await sink.outdated(batch_of(candles=[dict(row, seq=9) for row in rows])) == {0, 1}


async def test_victoria_metrics_says_which_version_it_has(victoria_server: Server) -> None:
    sink = InfluxSink(url=victoria_server.url, bucket="b")
    async with aclosing(sink):
        rows = [candle(instrument_key=key, seq=7, close=1.5) for key in KEYS]
        await sink.write(batch_of(candles=rows[:2]))
        await asyncio.to_thread(get, f"{victoria_server.url}/internal/force_flush")
        assert await sink.outdated(batch_of(candles=[dict(row, seq=6) for row in rows])) == {0, 1}
        assert await sink.outdated(batch_of(candles=[dict(row, seq=7) for row in rows])) == set()


class Store:
    """A server that says what it is and what it is asked to say."""

    def __init__(self) -> None:
        self.ping: dict[str, str] = {"X-Influxdb-Version": "v2.7.1"}
        self.answer = web.Response()
        self.asked: list[dict[str, str]] = []

    async def handle(self, request: web.Request) -> web.Response:
        if request.path == "/ping":
            return web.Response(status=204, headers=self.ping)
        if request.path != "/query":
            return web.Response(status=404)
        self.asked.append({**request.query, "auth": request.headers.get("Authorization", "")})
        return web.Response(status=self.answer.status, body=self.answer.body, headers=self.answer.headers)


@pytest.fixture
async def store() -> AsyncIterator[tuple[Store, InfluxSink]]:
    played, app = Store(), web.Application()
    app.router.add_route("*", "/{path:.*}", played.handle)
    async with TestServer(app, shutdown_timeout=0) as server:
        sink = InfluxSink(url=str(server.make_url("/")), bucket="b k", org="o", token="hush")
        async with aclosing(sink):
            yield played, sink


async def test_influxdb_2_is_asked_in_influxql_with_its_token(store: tuple[Store, InfluxSink]) -> None:
    """Twenty candles a question: it goes in the address."""
    played, sink = store

    def results(seqs: list[int | None]) -> web.Response:
        values = [
            [{"name": "candle", "columns": ["time", "max"], "values": [[1, seq]]}] if seq else None for seq in seqs
        ]
        told = [{"statement_id": n} | ({"series": one} if one else {}) for n, one in enumerate(values)]
        return web.json_response({"results": told})

    played.answer = results([None, 9] * 10)
    assert await sink.outdated(batch_of(candles=[candle(seq=5, close=1.0)] * 40)) == set(range(1, 40, 2))
    assert len(played.asked) == 2
    asked = played.asked[0]
    assert (asked["db"], asked["epoch"], asked["auth"]) == ("b k", "ns", "Token hush")
    assert asked["q"].split("; ")[0] == (
        "SELECT max(seq) FROM candle WHERE instrument_key = 'NSE_EQ|INE531E01026' AND interval = 'I1' "
        f"AND time = {AT_MS}000000"
    )


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (401, {"message": "hush may not read"}, SinkMisconfigured),
        (404, {"message": "no dbrp"}, SinkMisconfigured),
        (200, {"results": [{"error": "not authorized"}]}, SinkMisconfigured),
        (200, {"results": []}, SinkMisconfigured),
        (200, [], SinkMisconfigured),
        (503, {}, SinkUnavailable),
        (429, {}, SinkUnavailable),
    ],
)
async def test_a_store_that_does_not_let_us_read_gets_no_candle_again(
    store: tuple[Store, InfluxSink], status: int, body: Any, error: type[SinkError]
) -> None:
    """It is told what to do; nothing is guessed."""
    played, sink = store
    played.answer = web.Response(status=status, text=json.dumps(body))
    with pytest.raises(error) as caught:
        await sink.outdated(batch_of(candles=[candle(seq=5)]))
    assert "hush" not in str(caught.value)
    assert await sink.outdated(batch_of(ticks=[tick()])) == set(), "ticks need no question"


async def test_influxdb_3_has_every_version(store: tuple[Store, InfluxSink]) -> None:
    """Each has a time of its own there, so none is unsaid."""
    played, sink = store
    played.ping = {"X-Influxdb-Version": "3.11.2"}
    assert list(await sink.outdated(batch_of(candles=[candle(seq=5)]))) == []
    assert played.asked == []
