"""InfluxSink against a server that answers by script: InfluxDB 2 and 3, overload, resets, redirects."""

from __future__ import annotations

import asyncio
import datetime as dt
import gzip
import json
import socket
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.test_utils import TestServer
from servers import AT_MS, KEY, batch_of, candle, tick

from tickvault.errors import BatchRejected, BatchTooLarge, SinkError, SinkMisconfigured, SinkUnavailable
from tickvault.sinks.influx import InfluxSink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BATCH = batch_of(ticks=[tick()])
BIG = batch_of(ticks=[tick(seq=seq, ltp=1.5) for seq in range(1, 1001)])
PING_V2 = {"X-Influxdb-Version": "v2.7.1", "X-Influxdb-Build": "OSS"}


class Script:
    """An InfluxDB 2 whose writes answer as told.

    Attributes:
        answers: what the next writes get; 204 when it is used up. A string names a fault: `reset` or `slow`.
        ping: what /ping answers.
        paths: of every write.
        requests: every write: query, headers, body.
    """

    def __init__(self) -> None:
        self.answers: list[web.Response | str] = []
        self.paths: list[str] = []
        self.ping: web.Response | str = web.Response(status=204, headers=PING_V2)
        self.requests: list[tuple[dict[str, str], Any, bytes]] = []
        self.probes: list[str] = []
        self.url = ""

    async def write(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.paths.append(request.path)
        self.requests.append((dict(request.query), request.headers.copy(), body))
        return await self._play(request, self.answers.pop(0) if self.answers else web.Response(status=204))

    async def probe(self, request: web.Request) -> web.Response:
        self.probes.append(request.path)
        if request.path == "/ping":
            return await self._play(request, self.ping)
        return web.Response(status=404)

    async def _play(self, request: web.Request, answer: web.Response | str) -> web.Response:
        if answer == "slow":
            await asyncio.sleep(30)
        if isinstance(answer, str):
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        # A response object serves once.
        return web.Response(status=answer.status, headers=answer.headers, body=answer.body)


@pytest.fixture
async def script() -> AsyncIterator[Script]:
    played = Script()
    app = web.Application(client_max_size=50_000_000)
    app.router.add_post("/api/v2/write", played.write)
    app.router.add_post("/api/v3/write_lp", played.write)
    app.router.add_get("/{path:.*}", played.probe)
    async with TestServer(app, shutdown_timeout=0) as server:
        played.url = str(server.make_url("/"))
        yield played


@pytest.fixture
async def sink(script: Script) -> AsyncIterator[InfluxSink]:
    sink = InfluxSink(url=script.url, bucket="b k", org="o&g", token="hush", timeout_s=0.5)
    yield sink
    await sink.aclose()


def said(status: int, message: str = "", **headers: str) -> web.Response:
    text = json.dumps({"code": "any", "message": message})
    return web.Response(status=status, text=text, content_type="application/json", headers=headers)


async def error_of(sink: InfluxSink, batch: Any = BATCH) -> SinkError:
    with pytest.raises(SinkError) as caught:
        await sink.write(batch)
    assert "hush" not in str(caught.value)
    return caught.value


async def test_v2_write(script: Script, sink: InfluxSink) -> None:
    """Token, organisation, bucket and ns; the server is asked who it is once."""
    await sink.write(BATCH)
    await sink.write(BATCH)
    query, headers, body = script.requests[0]
    assert query == {"org": "o&g", "bucket": "b k", "precision": "ns"}
    assert headers["Authorization"] == "Token hush"
    assert "Content-Encoding" not in headers
    assert body.startswith(f"tick,instrument_key={KEY},".encode())
    assert script.probes.count("/ping") == 1


async def test_a_large_body_comes_whole(script: Script) -> None:
    """And its length before it, though it goes out in pieces."""
    sink = InfluxSink(url=script.url, bucket="b", org="o", token="hush")
    await sink.write(batch_of(ticks=[tick(seq=seq, ltp=1.5, symbol="NIFTY" * 100) for seq in range(1, 2001)]))
    await sink.aclose()
    ((_, headers, body),) = script.requests
    assert len(body) == int(headers["Content-Length"]) > 1_000_000
    assert "Transfer-Encoding" not in headers
    assert [line.count(b"tick,instrument_key=") for line in body.splitlines()] == [1] * 2000


async def test_tradedatafeed_is_sent_in_ms(script: Script) -> None:
    sink = InfluxSink(url=script.url, bucket="b", layouts=("tradedatafeed", "tickvault"))
    await sink.write(batch_of(candles=[candle(close=1.5)]))
    await sink.aclose()
    assert [query["precision"] for query, _, _ in script.requests] == ["ms", "ns"]
    assert script.requests[0][2].endswith(f" {AT_MS}\n".encode())


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (said(400, "unable to parse 'x': why"), BatchRejected),
        (said(422, "failure writing points to database: partial write: field type conflict dropped=1"), BatchRejected),
        (said(401, "unauthorized access"), SinkMisconfigured),
        (said(403, "insufficient permissions for write"), SinkMisconfigured),
        (said(404, 'bucket "b k" not found'), SinkMisconfigured),
        (said(413, "too large"), BatchTooLarge),
        (said(500, "internal error"), SinkUnavailable),
        (said(503, "starting"), SinkUnavailable),
        ("slow", SinkUnavailable),
        ("reset", SinkUnavailable),
    ],
)
async def test_refusals(script: Script, sink: InfluxSink, answer: Any, error: type[SinkError]) -> None:
    """Each is sorted, and the same batch is accepted afterwards."""
    script.answers = [answer]
    raised = await error_of(sink)
    assert type(raised) is error or isinstance(raised, error)
    if isinstance(raised, BatchRejected):
        assert raised.rejected is None
    await sink.write(BATCH)
    assert script.requests[0][2] == script.requests[1][2]


async def test_retry_after_is_passed_on(script: Script, sink: InfluxSink) -> None:
    date = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=3600)
    as_date = date.strftime("%a, %d %b %Y %H:%M:%S GMT")
    script.answers = [said(429, **{"Retry-After": "7"}), said(503, **{"Retry-After": as_date}), said(503)]
    waits = [getattr(await error_of(sink), "retry_after_s", "none asked") for _ in range(3)]
    assert waits == [7.0, pytest.approx(3600, abs=5), None]


async def test_points_outside_the_retention_of_v2_are_counted_and_passed(script: Script, sink: InfluxSink) -> None:
    """Newer servers say it in other words; what they have stored is the rest."""
    words = "failure writing points to database: partial write: dropped 4 points outside retention policy of duration"
    script.answers = [said(422, f"{words} 24h0m0s - oldest point x dropped because it violates")]
    await sink.write(BATCH)
    assert sink.beyond_retention == 4


async def test_secrets_in_an_answer_are_blotted_out(script: Script, sink: InfluxSink) -> None:
    script.answers = [said(401, "token hush is unknown")]
    assert "token *** is unknown" in str(await error_of(sink))


async def test_an_endless_answer_is_read_to_a_bound(script: Script, sink: InfluxSink) -> None:
    script.answers = [web.Response(status=400, body=b"unable to parse " * 500_000)]
    assert len(str(await error_of(sink))) < 500


async def test_resets_of_one_body_mean_too_large_only_while_the_server_answers_otherwise(
    script: Script, sink: InfluxSink
) -> None:
    """A server that refuses a size may hang up before its 413 is read; a restart looks alike once or twice."""
    script.answers = ["reset"] * 9
    assert [isinstance(await error_of(sink, BIG), BatchTooLarge) for _ in range(3)] == [False, False, True]
    await error_of(sink, BIG.slice(0, 900))
    script.ping = "reset"
    raised = [await error_of(sink, BIG.slice(0, 900)) for _ in range(4)]
    assert all(isinstance(each, SinkUnavailable) for each in raised)


async def test_resets_of_a_small_body_never_mean_too_large(script: Script, sink: InfluxSink) -> None:
    script.answers = ["reset"] * 6
    assert all([isinstance(await error_of(sink), SinkUnavailable) for _ in range(6)])


async def test_every_chunk_has_to_be_acknowledged(script: Script, sink: InfluxSink) -> None:
    """Eleven thousand rows are two requests; the second one's refusal is the batch's."""
    script.answers = [web.Response(status=204), said(503)]
    rows = [tick(seq=seq) for seq in range(1, 11_001)]
    assert isinstance(await error_of(sink, batch_of(ticks=rows)), SinkUnavailable)
    assert [body.count(b"\n") for _, _, body in script.requests] == [10_000, 1_000]


async def test_redirects_are_not_followed(script: Script, sink: InfluxSink) -> None:
    """The credentials stay with the host they were given for."""
    for target in ("http://127.0.0.1:9/api/v2/write", "/elsewhere"):
        script.answers = [web.Response(status=307, headers={"Location": target})]
        assert isinstance(await error_of(sink), SinkMisconfigured)
    assert len(script.requests) == 2
    assert "/elsewhere" not in script.probes


PING_V3 = {"version": "3.11.2", "revision": "x"}


async def test_influxdb_3_gets_a_time_for_each_version_of_a_candle(script: Script) -> None:
    """Of two writes of one point it may keep either."""
    script.ping = web.json_response(PING_V3)
    sink = InfluxSink(url=script.url, bucket="b")
    await sink.write(batch_of(candles=[candle(seq=5, close=1.5), candle(seq=6, close=1.5)]))
    await sink.aclose()
    [(_, _, body)] = script.requests
    assert [line.split()[-1] for line in body.decode().splitlines()] == [f"{AT_MS}00000{seq}" for seq in (5, 6)]


@pytest.mark.parametrize("api", ["auto", "v3"])
async def test_v3_write(script: Script, api: str) -> None:
    """Its own path, a bearer token, the bucket as database, the good lines of a bad request to be kept."""
    script.ping = web.json_response(PING_V3)
    sink = InfluxSink(
        url=script.url, bucket="b k", token="hush", username="u", api=api, layouts=("tradedatafeed", "tickvault")
    )
    await sink.write(batch_of(ticks=[tick()], candles=[candle(close=1.5)]))
    await sink.aclose()
    assert script.paths == ["/api/v3/write_lp"] * 2
    assert [query for query, _, _ in script.requests] == [
        {"db": "b k", "precision": unit, "accept_partial": "true"} for unit in ("millisecond", "nanosecond")
    ]
    assert {headers["Authorization"] for _, headers, _ in script.requests} == {"Bearer hush"}


async def test_v3_names_the_lines_it_refuses(script: Script) -> None:
    """The others are stored; nothing is sent again."""
    script.ping = web.json_response(PING_V3)
    why = "invalid column type for column 'ltp', expected iox::column_type::field::string, got float"
    told = {"original_line": "tick…", "line_number": 2, "error_message": why}
    refusal = {"error": "partial write of line protocol occurred", "data": [told]}
    script.answers = [web.json_response(refusal, status=400)]
    sink = InfluxSink(url=script.url, bucket="b")
    with pytest.raises(BatchRejected) as caught:
        await sink.write(batch_of(ticks=[tick(seq=seq) for seq in (1, 2, 3)]))
    await sink.aclose()
    assert caught.value.rejected == {1: why}


async def test_check_takes_v3s_complaint_about_an_empty_body_for_a_yes(script: Script) -> None:
    script.ping = web.json_response(PING_V3)
    script.answers = [web.json_response({"error": "incoming write was empty"}, status=400)]
    sink = InfluxSink(url=script.url, bucket="b")
    assert "InfluxDB 3.11.2" in await sink.check()
    await sink.aclose()


async def test_a_server_that_does_not_say_who_it_is_is_asked_again_only_while_it_is_unwell(script: Script) -> None:
    """Until then v2 is assumed."""
    sink = InfluxSink(url=script.url, bucket="b")
    script.ping = web.Response(status=503)
    for status, asked in ((503, 1), (404, 2), (404, 2)):
        script.ping = web.Response(status=status)
        await sink.write(BATCH)
        assert script.probes.count("/ping") == asked
    await sink.aclose()
    assert len(script.requests) == 3


async def test_check_takes_the_complaint_about_an_empty_body_for_a_yes(script: Script, sink: InfluxSink) -> None:
    script.answers = [said(400, "writing requires points"), said(401, "unauthorized access")]
    assert "InfluxDB 2.7.1" in await sink.check()
    with pytest.raises(SinkMisconfigured, match="INFLUX_TOKEN"):
        await sink.check()
    assert [body for _, _, body in script.requests] == [b"", b""]


async def test_check_takes_no_web_page_for_a_yes(script: Script, sink: InfluxSink) -> None:
    """This is what a TLS port says to plain HTTP."""
    script.answers = [web.Response(status=400, text="<html>", content_type="text/html")]
    with pytest.raises(SinkMisconfigured, match="web page"):
        await sink.check()


async def test_a_proxy_in_front_of_a_dead_server_does_not_unsay_who_it_was(script: Script) -> None:
    """The 20 s of VictoriaMetrics count after its outage; until it answers itself nothing is concluded."""
    sink = InfluxSink(url=script.url, bucket="b")
    script.ping = web.Response(status=204, headers={"X-Server-Hostname": "vm"})
    await sink.write(BATCH)
    script.ping, script.answers = web.Response(status=502), ["reset", said(502)]
    for _ in range(2):
        await error_of(sink)
        assert sink.settle_s == 20.0
    script.ping = web.Response(status=204, headers=PING_V2)
    await sink.write(BATCH)
    assert sink.settle_s == 0.0
    await sink.aclose()


class LoopbackResolver(AbstractResolver):
    """Every name is this machine."""

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
        where = {"hostname": host, "host": "127.0.0.1", "port": port}
        return [ResolveResult(**where, family=socket.AF_INET, proto=0, flags=0)]  # type: ignore[typeddict-item]

    async def close(self) -> None:
        """Nothing is held."""


async def test_bodies_are_compressed_unless_they_stay_on_this_machine(script: Script) -> None:
    """Over a given session, which is left open."""
    connector = aiohttp.TCPConnector(resolver=LoopbackResolver())
    async with aiohttp.ClientSession(connector=connector) as session:
        sink = InfluxSink(url=script.url.replace("127.0.0.1", "influx.test"), bucket="b", session=session)
        await sink.write(BIG)
        await sink.aclose()
        assert not session.closed
    [(_, headers, body)] = script.requests
    assert headers["Content-Encoding"] == "gzip"
    # The test's server has unpacked it already.
    assert (gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body).count(b"\n") == 1000


async def test_a_port_that_nobody_listens_on_is_unavailable(sink: InfluxSink) -> None:
    with socket.socket() as placeholder:
        placeholder.bind(("127.0.0.1", 0))
        lonely = InfluxSink(url=f"http://user:hush@127.0.0.1:{placeholder.getsockname()[1]}", bucket="b")
        assert isinstance(await error_of(lonely), SinkUnavailable)
        await lonely.aclose()
