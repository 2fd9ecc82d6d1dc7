"""From the broker's socket, or from a backlog, into stores, by the whole recorder.

A sender in the benchmark's process plays the broker: it authorizes, and sends ready frames of 200 full_d5 instruments as
fast as `tickvault run` takes them, on two cores together. Time runs from the first frame to the exit of the recorder, which
drains its journal to the store before it goes. The backlog is the same frames in a journal, delivered to an empty Parquet
folder, or to a fresh InfluxDB 1.6.7. The bare loop posts the bodies that delivery posts, encoded beforehand, with the same
client, one after the other over one connection, to such a server. Every round does each piece of work twice, in one order and
back again; a ratio is the median of the rounds'.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.backlog import Backlog
from benchmarks.broker import recorded_s
from benchmarks.frames import FrameSet, frames, parse
from benchmarks.rows import Row, ratio, there_and_back
from benchmarks.server import client, create_database, influxd, post
from tickvault.sinks.influx import InfluxSink
from tickvault.sinks.parquet import ParquetSink, ParquetStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from tickvault.sinks.influx_http import Body

__all__ = ["TITLE", "rows"]

TITLE: Final = "Delivering"
_TIMES: Final = 12  # the frames are sent that often
_PARSED: Final = 20  # times that L parses them
_PARQUET_ROUNDS: Final = 2
_INFLUX_ROUNDS: Final = 2
_INFLUX_UPDATES: Final = 120_000  # beside it a recorder's start and end are little


def rows(place: Path) -> list[Row]:
    """Measure through files below `place`."""
    return _parquet(place) + _influx(place)


def _parquet(place: Path) -> list[Row]:
    of = frames(200)
    updates = _TIMES * of.updates
    spent = there_and_back(
        {
            "L": lambda: _timed(lambda: [parse(of.payloads) for _ in range(_PARSED)]) / _PARSED * _TIMES,
            "live": lambda: _in(place, lambda folder: recorded_s(of.payloads * _TIMES, folder, {})),
            "drain": lambda: _in(place, lambda folder: _drained_s(of, folder / "drain")),
        },
        _PARQUET_ROUNDS,
    )
    l_per_s, live_per_s, drain_per_s = (f"{updates / statistics.median(of):,.0f}/s" for of in spent.values())
    live, drain = ratio(spent["L"], spent["live"]), ratio(spent["live"], spent["drain"])
    return [
        Row("WebSocket → journal → Parquet", live_per_s, f"L {l_per_s}", live, 0.08),
        Row("drain of a backlog to Parquet", drain_per_s, f"live {live_per_s}", drain, 1.0),
    ]


def _influx(place: Path) -> list[Row]:
    of = frames(200, updates=_INFLUX_UPDATES)
    bodies: list[Body] = []
    _in(place, lambda folder: _into_influx_s(of, folder, bodies))
    spent = there_and_back(
        {
            "bare": lambda: _in(place, lambda folder: _bare_s(bodies, folder)),
            "backlog": lambda: _in(place, lambda folder: _into_influx_s(of, folder)),
            "live": lambda: _in(place, lambda folder: _live_into_influx_s(of, folder)),
        },
        _INFLUX_ROUNDS,
    )
    bare, backlog, live = (f"{of.updates / statistics.median(one):,.0f}/s" for one in spent.values())
    return [
        Row("journal → InfluxDB 1.6.7", backlog, f"bare loop {bare}", ratio(spent["bare"], spent["backlog"]), 0.9),
        Row(
            "WebSocket → journal → InfluxDB 1.6.7", live, f"bare loop {bare}", ratio(spent["bare"], spent["live"]), 0.9
        ),
    ]


def _timed(do: Callable[[], object]) -> float:
    begun_s = time.perf_counter()
    do()
    return time.perf_counter() - begun_s


def _in(place: Path, work: Callable[[Path], Any]) -> float:
    """Do a piece of work in a folder of its own; return its seconds."""
    with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=place) as folder:
        return float(asyncio.run(work(Path(folder).resolve())))


def _backlog(of: FrameSet, folder: Path, times: int) -> Backlog:
    backlog = Backlog(folder)
    backlog.append(itertools.chain.from_iterable([of.frames] * times))
    return backlog


async def _drained_s(of: FrameSet, folder: Path) -> float:
    backlog = _backlog(of, folder, _TIMES)
    store = ParquetStore(folder / "parquet", backlog.recorder_id)
    spent_s = await backlog.deliver(ParquetSink(store), store)
    backlog.close()
    return spent_s


class _Remembering(InfluxSink):
    """Keeps the bodies that it sends."""

    def __init__(self, bodies: list[Body], **settings: Any) -> None:
        super().__init__(**settings)
        self._bodies = bodies

    async def _post_lines(self, server: Any, body: Body, precision: str) -> Any:
        self._bodies.append(body)
        return await super()._post_lines(server, body, precision)


async def _into_influx_s(of: FrameSet, folder: Path, bodies: list[Body] | None = None) -> float:
    backlog = _backlog(of, folder / "ours", 1)
    with influxd(folder / "server") as server:
        settings: dict[str, Any] = {"url": server.url, "bucket": "ticks"}
        await create_database(server.url)
        sink = InfluxSink(**settings) if bodies is None else _Remembering(bodies, **settings)
        spent_s = await backlog.deliver(sink)
    backlog.close()
    return spent_s


async def _live_into_influx_s(of: FrameSet, folder: Path) -> float:
    with influxd(folder / "server") as server:
        await create_database(server.url)
        settings = {"TICKVAULT_SINKS": "influx", "INFLUX_URL": server.url, "INFLUX_BUCKET": "ticks"}
        return await recorded_s(of.payloads, folder, settings)


async def _bare_s(bodies: list[Body], folder: Path) -> float:
    with influxd(folder / "server") as server:
        await create_database(server.url)
        http = client(server.url)
        begun_s = time.perf_counter()
        for body in bodies:
            await post(http, body)
        spent_s = time.perf_counter() - begun_s
        await http.aclose()
        return spent_s
