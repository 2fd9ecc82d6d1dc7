"""Ten thousand rows of which one is poison, and servers that refuse it as InfluxDB 2 and 3 do."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from doubles import AT_MS, AT_NS, received

from tickvault import deadletters
from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.deadletters import Choice
from tickvault.redrive import Redrive

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from delivering import Bench

FRAMES, KEYS = 101, 99  # and one status: ten thousand rows
POISONED = 57


def frame(number: int) -> bytes:
    """Return a frame of 99 instruments; one frame has a status besides."""
    message = pb.FeedResponse(type=pb.live_feed, currentTs=AT_MS)
    for key in range(KEYS):
        full = message.feeds[f"NSE_EQ|{key}"].fullFeed.marketFF
        full.ltpc.ltp = number + key / 100
    if number == POISONED:
        message.marketInfo.segmentStatus["NSE_EQ"] = pb.NORMAL_OPEN
    return message.SerializeToString()


def record(bench: Bench) -> int:
    """Journal the rows; return how many they are."""
    bench.journal.append([received(number, frame(number)) for number in range(1, FRAMES + 1)])
    return FRAMES * KEYS + 1


async def redriven(bench: Bench, sink: Any) -> None:
    """Ask for every letter, and send them."""
    deadletters.ask(bench.path / "state.db", Choice())
    await Redrive(
        sink,
        folder=bench.folder,
        recorder_id=bench.journal.recorder_id,
        state=bench.state,
        writing=asyncio.Lock(),
        message="stored",
        wall_ns=lambda: AT_NS,
    ).carry_out()


class Scripted:
    """An InfluxDB 2 or 3 as its source says it answers a line that it cannot store.

    Attributes:
        refuses: which lines.
        points: series and time → fields.
    """

    def __init__(self, version: str) -> None:
        self.version = version
        self.refuses = re.compile("^market_status")
        self.points: dict[tuple[str, str], str] = {}
        self.requests = 0

    def mend(self) -> None:
        """Refuse nothing any more."""
        self.refuses = re.compile("^nothing")

    async def ping(self, _: web.Request) -> web.Response:
        return web.Response(status=204, headers={"X-Influxdb-Version": self.version})

    async def whole_or_nothing(self, request: web.Request) -> web.Response:
        """Refuse the batch for one line, as version 2 does for what it cannot parse."""
        lines = await self._lines(request)
        if bad := next((line for line in lines if self.refuses.match(line)), None):
            return web.json_response({"code": "invalid", "message": f"unable to parse '{bad}': no"}, status=400)
        self._store(lines)
        return web.Response(status=204)

    async def line_numbers(self, request: web.Request) -> web.Response:
        """Store the good lines and number the others, a hundred of them."""
        assert request.query["accept_partial"] == "true"
        lines = await self._lines(request)
        bad = [number for number, line in enumerate(lines, 1) if self.refuses.match(line)]
        self._store([line for line in lines if not self.refuses.match(line)])
        if not bad:
            return web.Response(status=204)
        why = "invalid column type for column 'status', expected iox::column_type::field::integer"
        told = [{"original_line": lines[n - 1], "line_number": n, "error_message": why} for n in bad[:100]]
        return web.json_response({"error": "partial write of line protocol occurred", "data": told}, status=400)

    async def _lines(self, request: web.Request) -> list[str]:
        self.requests += 1
        return (await request.text()).splitlines()

    def _store(self, lines: list[str]) -> None:
        for line in lines:
            series, fields, time = re.split(r"(?<!\\) ", line)
            self.points[series, time] = fields


@asynccontextmanager
async def serving(version: str) -> AsyncIterator[tuple[Scripted, str]]:
    """Serve such a server, and give its address."""
    played, app = Scripted(version), web.Application(client_max_size=50_000_000)
    app.router.add_get("/ping", played.ping)
    app.router.add_post("/api/v2/write", played.whole_or_nothing)
    app.router.add_post("/api/v3/write_lp", played.line_numbers)
    async with TestServer(app, shutdown_timeout=0) as server:
        yield played, str(server.make_url("/"))
