"""From the broker's socket, or from a backlog, into stores, by the whole recorder.

A sender in the benchmark's process plays the broker: it authorizes, and sends ready frames of 200 full_d5 instruments as
fast as `tickvault run` takes them, on two cores together. Time runs from the first frame to the exit of the recorder, which
drains its journal to Parquet before it goes. The backlog is the same journal delivered to an empty Parquet folder, and to a
real InfluxDB 1.6.7. The bare loop posts the bodies that the sink posted to such a server, encoded beforehand, one after
the other over one connection.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from aiohttp import web

from benchmarks.frames import FrameSet, definitions, frames, parse
from benchmarks.rows import Row
from benchmarks.server import influxd
from tickvault.brokers.upstox.api import AUTHORIZE_PATH
from tickvault.delivery import Delivery
from tickvault.intake import Progress
from tickvault.journal import Fact, Journal, Received
from tickvault.rewind import Cursors
from tickvault.sinks.influx import InfluxSink
from tickvault.sinks.parquet import ParquetSink, ParquetStore
from tickvault.state import State

if TYPE_CHECKING:
    from tickvault.model import Sink

__all__ = ["TITLE", "rows"]

TITLE: Final = "Delivering"
_TIMES: Final = 8  # the frames are sent that often
_ROUNDS: Final = 3
_INFLUX_UPDATES: Final = 20_000


def rows(place: Path) -> list[Row]:
    """Measure through files below `place`."""
    of = frames(200)
    measured = []
    for _ in range(_ROUNDS):
        with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=place) as folder:
            l_per_s = of.updates / _timed(lambda: parse(of.payloads))
            live_per_s = asyncio.run(_live(of, Path(folder)))
            drain_per_s = asyncio.run(_drained(of, Path(folder) / "drain"))
            measured.append((live_per_s / l_per_s, drain_per_s / live_per_s, live_per_s, drain_per_s, l_per_s))
    of_l, of_live = (sorted(one[i] for one in measured)[_ROUNDS // 2] for i in (0, 1))
    _, _, live_per_s, drain_per_s, l_per_s = measured[-1]
    found = [
        Row("WebSocket → journal → Parquet", f"{live_per_s:,.0f}/s", f"L {l_per_s:,.0f}/s", of_l, 0.08),
        Row("drain of a backlog to Parquet", f"{drain_per_s:,.0f}/s", f"live {live_per_s:,.0f}/s", of_live, 1.0),
    ]
    return found + _influx(place)


def _timed(do: Any) -> float:
    begun_s = time.perf_counter()
    do()
    return time.perf_counter() - begun_s


async def _live(of: FrameSet, folder: Path) -> float:
    """Return updates a second of a whole recorder that stores what we send."""
    began: list[float] = []
    taken = asyncio.Event()

    async def authorize(request: web.Request) -> web.Response:
        url = f"ws://{request.host}/feed"
        return web.json_response({"status": "success", "data": {"authorized_redirect_uri": url}})

    async def feed(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False, autoping=False)
        await socket.prepare(request)
        await socket.receive()  # its subscription
        began.append(time.perf_counter())
        for _ in range(_TIMES):
            for payload in of.payloads:
                await socket.send_bytes(payload)
        await socket.ping(b"all")
        async for message in socket:
            if message.type is aiohttp.WSMsgType.PONG:
                break
        taken.set()
        async for _ in socket:
            pass
        return socket

    app = web.Application()
    app.router.add_get(f"/{AUTHORIZE_PATH}", authorize)
    app.router.add_get("/feed", feed)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    environment = {
        "PATH": os.environ["PATH"],
        "UPSTOX_ACCESS_TOKEN": "eyJhbGciOiJub25lIn0.e30.x",
        "UPSTOX_API_URL": f"http://127.0.0.1:{port}",
        "UPSTOX_INSTRUMENTS_URL": "off",
        "TICKVAULT_INSTRUMENTS": ",".join(list(definitions())[:1_000]),
        "TICKVAULT_DATA_DIR": str(folder / "data"),
        "TICKVAULT_HTTP": "off",
    }
    command = [str(Path(sys.executable).with_name("tickvault")), "run"]
    with (folder / "said").open("wb") as said:
        child = await asyncio.create_subprocess_exec(*command, env=environment, stdout=said, stderr=said, cwd=folder)
    try:
        async with asyncio.timeout(120):
            await taken.wait()
            child.send_signal(signal.SIGTERM)
            await child.wait()
    finally:
        if child.returncode is None:
            child.kill()
        await runner.cleanup()
    ended_s = time.perf_counter()
    told = (folder / "said").read_text(encoding="utf-8")
    if child.returncode or f"frames stored in parquet  {_TIMES * len(of.frames)}" not in told:
        raise SystemExit(told)
    return _TIMES * of.updates / (ended_s - began[0])


class _Backlog:
    """A journal with frames in it."""

    def __init__(self, folder: Path, of: FrameSet, times: int) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.state, _ = State.open(folder / "state.db")
        self.journal = Journal.open(folder / "journal", self.state)
        if defining := self.journal.define(definitions()):
            self.journal.append([defining])
        for _ in range(times):
            items = [Received(frame.received_ns, 1, frame.payload) for frame in of.frames]
            for first in range(0, len(items), 100):
                self.journal.append(items[first : first + 100])
        self.progress = Progress(self.journal.last_seq)
        self.progress.ended = True

    async def deliver(self, sink: Sink, store: ParquetStore | None = None) -> float:
        """Deliver all of it; return the seconds."""
        cursor = Cursors(self.journal, self.state, self.folder / "journal").open(sink.name, store)

        async def journal_fact(fact: Fact) -> None:
            raise AssertionError(fact)

        delivery = Delivery(
            sink,
            cursor,
            folder=self.folder / "journal",
            recorder_id=self.journal.recorder_id,
            state=self.state,
            progress=self.progress,
            journal_fact=journal_fact,
            wall_ns=time.time_ns,
            rng=Random(1),
            message="stored",
        )
        begun_s = time.perf_counter()
        await delivery.run()
        spent_s = time.perf_counter() - begun_s
        await sink.aclose()
        assert delivery.frames == self.journal.last_seq, delivery.frames
        return spent_s

    def close(self) -> None:
        self.journal.close()
        self.state.close()


async def _drained(of: FrameSet, folder: Path) -> float:
    backlog = _Backlog(folder, of, _TIMES)
    store = ParquetStore(folder / "parquet", backlog.journal.recorder_id)
    spent_s = await backlog.deliver(ParquetSink(store), store)
    backlog.close()
    return _TIMES * of.updates / spent_s


def _influx(place: Path) -> list[Row]:
    of = frames(200, updates=_INFLUX_UPDATES)
    ratios, ours, bare = [], [], []
    for _ in range(_ROUNDS):
        with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=place) as name:
            folder = Path(name)
            sent_s, bodies = asyncio.run(_into_influx(of, folder / "ours"))
            bare_s = asyncio.run(_bare(bodies, folder / "bare"))
            ratios.append(bare_s / sent_s)
            ours.append(of.updates / sent_s)
            bare.append(of.updates / bare_s)
    middle = _ROUNDS // 2
    base = f"bare loop {sorted(bare)[middle]:,.0f}/s"
    return [Row("journal → InfluxDB 1.6.7", f"{sorted(ours)[middle]:,.0f}/s", base, sorted(ratios)[middle], 0.9)]


class _Remembering(InfluxSink):
    """Keeps the bodies that it sends."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.bodies: list[bytes] = []

    async def _post_lines(self, server: Any, body: bytes, precision: str) -> Any:
        if body:
            self.bodies.append(body)
        return await super()._post_lines(server, body, precision)


async def _into_influx(of: FrameSet, folder: Path) -> tuple[float, list[bytes]]:
    backlog = _Backlog(folder, of, 1)
    try:
        with influxd(folder / "server") as url:
            sink = _Remembering(url=url, bucket="ticks")
            return await backlog.deliver(sink), sink.bodies
    finally:
        backlog.close()


async def _bare(bodies: list[bytes], folder: Path) -> float:
    with influxd(folder) as url:
        async with aiohttp.ClientSession() as session:
            async with session.post(f"{url}/query", params={"q": "CREATE DATABASE ticks"}) as answer:
                assert answer.status == 200
            begun_s = time.perf_counter()
            for body in bodies:
                async with session.post(f"{url}/write", params={"db": "ticks", "precision": "n"}, data=body) as answer:
                    assert answer.status == 204, await answer.text()
            return time.perf_counter() - begun_s
