"""Every way in which a store fails on the wire, in front of a real one: all drained, in order, once, nothing parked."""

from __future__ import annotations

import asyncio
import itertools
import re
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest
from delivering import Bench, singly
from servers import Server, influx_query, influxd
from unruly import Gate, Request, answer, retry_date

from tickvault.sinks.influx import InfluxSink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FRAMES = 12
_names = itertools.count()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with influxd(tmp_path_factory.mktemp("influx")) as server:
        yield server


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def over_two_lines(request: Request) -> bytes | None:
    """Return what a proxy with a small limit answers."""
    return answer(413, b"too large") if b"\n" in request.body else None


FAULTS: dict[str, list[Any]] = {
    "503": [answer(503)] * 4,
    "500 with a page": [answer(500, b"<html><h1>Oops", kind="text/html")] * 3,
    "502 and 504 of a proxy": [answer(502, b"<html>", kind="text/html"), answer(504, b"", kind="text/plain")] * 2,
    "429 without a word": [answer(429)] * 3,
    "429 with seconds": [answer(429, headers="Retry-After: 1\r\n")],
    "429 with a date": [lambda _: answer(429, headers=retry_date(1.5))],
    "503 with nonsense": [answer(503, headers="Retry-After: soon\r\n")] * 2,
    "reset in mid-body": ["reset"] * 3,
    "acknowledgement lost": ["lost"] * 3,
    "cut in mid-head": ["cut"] * 3,
    "slow-loris head": ["dribble"] * 2,
    "slow-loris body": ["drip"] * 2,
    "silence": ["silent"] * 2,
    "wrong token 401": [answer(401, b'{"error":"authorization failed"}')] * 3,
    "no right 403": [answer(403, b'{"error":"not authorized to write"}')] * 3,
    "unknown bucket 404": [answer(404, b'{"message":"bucket not found"}')] * 3,
    "413": [over_two_lines] * 99,
    "a login page": [answer(200, b"<html>login", kind="text/html")] * 2,
    "no HTTP": [b"220 mail.example ESMTP\r\n"] * 2,
    "one after the other": ["reset", answer(503), "lost", answer(401), "dribble", answer(429), "cut", answer(500)],
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_store_that_fails_gets_everything_once_and_in_order(bench: Bench, store: Server, name: str) -> None:
    """Each frame is a request; from the third on the fault is played, then requests pass again."""
    bench.append(FRAMES)
    database = f"faults{next(_names)}"
    await asyncio.to_thread(influx_query, store, f"CREATE DATABASE {database}")
    async with Gate(store.url) as gate:
        gate.faults = [None, None, *FAULTS[name]]
        async with aclosing(InfluxSink(url=gate.url, bucket=database, timeout_s=0.5)) as sink:
            sink.policy = singly()  # type: ignore[misc]
            await bench.deliver(sink)
    assert gate.faulted
    assert (bench.cursor(sink).seq, bench.cursor(sink).state, bench.dead()) == (FRAMES, "running", [])
    passed = [int(seq) for body in gate.passed for seq in re.findall(rb"^tick,.*seq=(\d+)i", body, re.MULTILINE)]
    assert list(dict.fromkeys(passed)) == list(range(1, FRAMES + 1)), "nothing overtakes what was refused"
    stored = await asyncio.to_thread(influx_query, store, "SELECT seq, ltp FROM tick", database)
    assert [(row["seq"], row["ltp"]) for row in stored] == [(seq, float(seq)) for seq in range(1, FRAMES + 1)]
    told = bench.state._db.execute("SELECT count(*) FROM outbox WHERE event = 'sink.parked'").fetchone()
    assert told == (0,)
