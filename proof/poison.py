"""One row in ten thousand that a store refuses: every other one stored, that one kept, and stored once the cause is mended.

InfluxDB 1.6.7 is the real one and counts what it refuses; InfluxDB 2, which refuses the whole request, and 3, which numbers
the line, are servers that answer by script.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from delivering import Bench
from doubles import AT_MS
from poison import record, redriven, serving
from servers import get, influx_query, influxd

from proof.rig import Answer
from tickvault.sinks.influx import InfluxSink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

QUESTION: Final = "poison"
MEASUREMENTS: Final = ("tick", "market_status")


@dataclass(frozen=True, slots=True)
class _Store:
    """Where it is, how many points it has, and what mends it."""

    url: str
    count: Callable[[], int]
    mend: Callable[[], object]


def ask(place: Path) -> Answer:
    """Deliver ten thousand rows to each of three stores, redrive in vain, mend, redrive."""
    answer = Answer()
    for name, store in (("InfluxDB 1.6.7", _influx_1), ("2", _scripted("v2.7.1")), ("3", _scripted("3.11.2"))):
        folder = place / name
        folder.mkdir()
        asyncio.run(_poisoned(answer, name, folder, store))
    return answer


async def _poisoned(answer: Answer, name: str, place: Path, opened: Callable[..., object]) -> None:
    bench = Bench(place)
    rows = record(bench)
    async with AsyncExitStack() as stack:
        store: _Store = await stack.enter_async_context(opened(place))  # type: ignore[arg-type]
        sink = await stack.enter_async_context(aclosing(InfluxSink(url=store.url, bucket="b")))
        await bench.deliver(sink)
        stored, dead = await asyncio.to_thread(store.count), bench.dead()
        await redriven(bench, sink)
        again = len(bench.dead())
        await asyncio.to_thread(store.mend)
        await redriven(bench, sink)
        left, at_last = len(bench.dead()), await asyncio.to_thread(store.count)
    bench.close()
    answer.ran = f"{rows:,} rows to each of three stores"
    answer.lost += max(0, rows - at_last)
    answer.twice += max(0, at_last - rows)
    answer.figures[name] = f"{stored:,} stored, {len(dead)} dead letter, {at_last:,} after redrive"
    if (stored, len(dead), again, left) != (rows - 1, 1, 1, 0):
        answer.wrong.append(f"{name}: {stored} of {rows} stored; letters {len(dead)}, then {again}, in the end {left}")


@asynccontextmanager
async def _influx_1(place: Path) -> AsyncIterator[_Store]:
    with influxd(place / "influx") as influx:
        influx_query(influx, "CREATE DATABASE b")
        get(f"{influx.url}/write?db=b", f"market_status,scope=x,segment=y status=5i {AT_MS}000000".encode())

        def count() -> int:
            found = [influx_query(influx, f"SELECT count(seq) FROM {name}", "b") for name in MEASUREMENTS]
            return sum(int(one[0]["count"]) for one in found if one)

        yield _Store(influx.url, count, lambda: influx_query(influx, "DROP MEASUREMENT market_status", "b"))


def _scripted(version: str) -> Callable[..., object]:
    @asynccontextmanager
    async def opened(_: Path) -> AsyncIterator[_Store]:
        async with serving(version) as (played, url):
            yield _Store(url, lambda: len(played.points), played.mend)

    return opened
