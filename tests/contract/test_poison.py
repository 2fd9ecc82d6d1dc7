"""One row in ten thousand that a store refuses: the others are stored, it is kept, and stored once the cause is mended."""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest
from delivering import Bench
from doubles import AT_MS
from poison import FRAMES, KEYS, POISONED, Scripted, record, redriven, serving
from servers import Server, get, influx_query

from tickvault.model import BatchPolicy
from tickvault.sinks.influx import InfluxSink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


async def test_a_type_conflict_in_influxdb_1(bench: Bench, influx_server: Server) -> None:
    """It counts what it drops and names nothing, so the row is found by halving; its measurement is mended by hand."""
    rows = record(bench)

    def count(field: str, measurement: str) -> int:
        found = influx_query(influx_server, f"SELECT count({field}) FROM {measurement}", "b")
        return int(found[0]["count"]) if found else 0

    def prepare() -> None:
        influx_query(influx_server, "CREATE DATABASE b")
        get(f"{influx_server.url}/write?db=b", f"market_status,scope=x,segment=y status=5i {AT_MS}000000".encode())

    await asyncio.to_thread(prepare)
    async with aclosing(InfluxSink(url=influx_server.url, bucket="b")) as sink:
        await bench.deliver(sink)
        assert await asyncio.to_thread(count, "seq", "tick") == rows - 1
        [(seq, table, key, reason, _)] = bench.dead()
        assert (seq, table, key) == (POISONED, "market_status", "NSE_EQ")
        assert 'field type conflict: input field "status" on measurement "market_status"' in reason
        await redriven(bench, sink)
        assert len(bench.dead()) == 1, "nothing was mended yet"
        await asyncio.to_thread(influx_query, influx_server, "DROP MEASUREMENT market_status", "b")
        await redriven(bench, sink)
        assert bench.dead() == []
    [stored] = await asyncio.to_thread(influx_query, influx_server, "SELECT * FROM market_status", "b")
    assert (stored["status"], stored["seq"]) == ("NORMAL_OPEN", POISONED)
    assert await asyncio.to_thread(count, "seq", "tick") == rows - 1


@pytest.fixture(params=["v2.7.1", "3.11.2"])
async def scripted(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Scripted, InfluxSink]]:
    async with serving(request.param) as (played, url), aclosing(InfluxSink(url=url, bucket="b")) as sink:
        yield played, sink


async def test_a_batch_refused_for_one_line_and_a_line_refused_by_number(
    bench: Bench, scripted: tuple[Scripted, InfluxSink]
) -> None:
    """Version 2 stores nothing of such a batch and it is halved; version 3 numbers the line and nothing is sent twice."""
    store, sink = scripted
    rows = record(bench)
    await bench.deliver(sink)
    assert len(store.points) == rows - 1
    [(seq, table, key, reason, _)] = bench.dead()
    assert (seq, table, key) == (POISONED, "market_status", "NSE_EQ")
    if store.version.startswith("3"):
        assert reason.startswith("invalid column type for column 'status'")
        assert store.requests <= 2 + rows // 5000
    else:
        assert "unable to parse 'market_status,scope=segment" in reason
        assert store.requests <= 40
    assert bench.cursor(sink).seq == FRAMES
    store.mend()
    await redriven(bench, sink)
    assert (len(store.points), bench.dead()) == (rows, [])


@pytest.mark.parametrize("scripted", ["3.11.2"], indirect=True)
async def test_more_lines_than_version_3_numbers_are_all_found(
    bench: Bench, scripted: tuple[Scripted, InfluxSink]
) -> None:
    """It numbers a hundred: from then on there may be others, and the batch is halved. A hundred of 10,000 is not yet too many."""
    store, sink = scripted
    record(bench)
    store.refuses = re.compile(r"^tick,instrument_key=NSE_EQ\|7,")
    small = BatchPolicy(max_rows=20_000, max_bytes=100_000_000, max_wait_s=0.01)
    sink.policy = small  # type: ignore[misc]
    await bench.deliver(sink)
    assert len(bench.dead()) == 0
    assert bench.cursor(sink).state == "parked", "101 of 10,000 is more than 1 %"
    assert "101 of 10000 rows refused" in bench.cursor(sink).detail
    store.refuses = re.compile(r"^tick,instrument_key=NSE_EQ\|7,.*ltp=\d+\.07(?!.*seq=1i)")
    await bench.deliver(sink)
    assert len(bench.dead()) == 100
    assert len(store.points) == FRAMES * KEYS + 1 - 100
    store.mend()
    await redriven(bench, sink)
    assert (len(store.points), bench.dead()) == (FRAMES * KEYS + 1, [])


async def test_a_mapping_that_is_wrong_as_a_whole_empties_nothing(
    bench: Bench, scripted: tuple[Scripted, InfluxSink]
) -> None:
    """Every line refused: the sink is parked, its cursor stays, and a restart with the cause mended delivers all."""
    store, sink = scripted
    rows = record(bench)
    store.refuses = re.compile("")
    await bench.deliver(sink)
    assert (bench.cursor(sink).state, bench.cursor(sink).seq, bench.dead()) == ("parked", 0, [])
    assert "sink.parked" in bench.told()
    assert store.requests < 300, "it is not asked about every row"
    store.mend()
    await bench.deliver(sink)
    assert (bench.cursor(sink).state, len(store.points)) == ("running", rows)
