"""From the socket to where others read: how long until an update can be read from InfluxDB 1.6.7.

The simulator sends, `tickvault run` writes to a real server, and from it the updates of a few instruments are asked for
every 20 ms: each has the time at which the recorder received it. An answer's time is that at which it was asked for, 20 ms and
a query later than it could have been, and that counts. The bare loop is what the server allows: once the recorder is gone, the
same updates are posted to such a server over one connection, encoded beforehand, at the pace and with the waits of a store that
is always free, and asked for in the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.footprint import first_frame_s, simulator
from benchmarks.rows import Row
from benchmarks.server import client, create_database, influxd, post
from tickvault.batching import to_batch
from tickvault.ledger import Ledger
from tickvault.reading import JournalReader
from tickvault.sinks.influx import InfluxSink
from tickvault.sinks.lineprotocol import encode_tickvault

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["TITLE", "rows"]

TITLE: Final = "Readable"
_RUN_S: Final = 30.0
_SETTLED_S: Final = 8.0
_EVERY_S: Final = 0.02
_ASKED: Final = 8  # instruments
_BEHIND_NS: Final = 5_000_000_000  # of the market's time, what is asked for again
_LIMIT_MS: Final = 300.0


def rows(place: Path) -> list[Row]:
    """Measure through files below `place`."""
    found = []
    with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=place) as folder:
        for rate, instruments in ((540, 3_500), (5_000, 5_000)):
            within = Path(folder).resolve() / f"{rate}"
            ours = _figures(_waited_s(within, rate, instruments))
            bare = _figures(_waited_for_bare_s(within))
            found.append(
                Row(
                    f"receive → readable in InfluxDB at {rate}/s, p99 in ms",
                    str(ours),
                    f"bare loop {bare}",
                    ours.p99_ms,
                    _LIMIT_MS,
                    at_most=True,
                )
            )
    return found


@dataclass(frozen=True, slots=True)
class _Figures:
    count: int
    p50_ms: float
    p99_ms: float

    def __str__(self) -> str:
        return f"p50 {self.p50_ms:.0f} p99 {self.p99_ms:.0f} ms of {self.count:,}"


def _figures(waited_s: list[float]) -> _Figures:
    p50_ms, p99_ms = (sorted(waited_s)[int(len(waited_s) * of)] * 1e3 for of in (0.5, 0.99))
    return _Figures(len(waited_s), p50_ms, p99_ms)


def _waited_s(folder: Path, rate: int, instruments: int) -> list[float]:
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(influxd(folder / "server")).url
        environment = {
            "PATH": os.environ["PATH"],
            "TICKVAULT_DATA_DIR": str(folder / "data"),
            "TICKVAULT_HTTP": "off",
            "TICKVAULT_SINKS": "parquet,influx",
            "INFLUX_URL": url,
            "INFLUX_BUCKET": "ticks",
            **stack.enter_context(simulator(folder, rate, instruments)),
        }
        said = stack.enter_context((folder / "said").open("wb"))
        command = [str(Path(sys.executable).with_name("tickvault")), "run"]
        begun_s = time.monotonic()
        child = subprocess.Popen(command, env=environment, stdout=said, stderr=said, cwd=folder)
        try:
            first_frame_s(folder / "data" / "journal", begun_s)
            time.sleep(_SETTLED_S)
            return _watch(url, later_ns=0)
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(60)


def _waited_for_bare_s(folder: Path) -> list[float]:
    """Post what the recorder in this folder has journalled."""
    bodies = list(_bodies(folder / "data" / "journal"))
    enough = threading.Event()
    with influxd(folder / "bare") as server, ThreadPoolExecutor(1) as thread:
        asyncio.run(create_database(server.url))
        later_ns = time.time_ns() - bodies[0][0]
        posting = thread.submit(asyncio.run, _post_in_time(server.url, bodies, later_ns, enough))
        try:
            time.sleep(_SETTLED_S)
            return _watch(server.url, later_ns=later_ns)
        finally:
            enough.set()
            posting.result()


def _bodies(journal: Path) -> Iterator[tuple[int, memoryview]]:
    """Yield what was received in every wait of a store that is always free, and the time when it goes."""
    wait_ns = int((InfluxSink.policy.min_wait_s or InfluxSink.policy.max_wait_s) * 1e9)
    reader = JournalReader(journal, 0)
    while (chunk := reader.read(max_frames=2_000, max_bytes=2_000_000)) is not None:
        for number, frames in itertools.groupby(chunk.frames, lambda frame: frame.received_ns // wait_ns):
            part = replace(chunk, frames=tuple(frames), events=(), changed=())
            batch = to_batch(part, recorder_id="bare", ledger=Ledger())
            yield (number + 1) * wait_ns, encode_tickvault(batch, 5).body()
    reader.close()


async def _post_in_time(
    url: str, bodies: Iterable[tuple[int, memoryview]], later_ns: int, enough: threading.Event
) -> None:
    http = client(url)
    for due_ns, body in bodies:
        if enough.is_set():
            break
        await asyncio.sleep((due_ns + later_ns - time.time_ns()) / 1e9)
        await post(http, body)
    await http.aclose()


def _watch(url: str, *, later_ns: int) -> list[float]:
    """Return how long each update took that came while we looked, received so much later than it says."""
    keys = _busiest(url)
    named = " OR ".join(f"instrument_key = '{key}'" for key in keys)
    query = f"SELECT received_at, instrument_key FROM tick WHERE ({named}) AND time > "  # the market's time, not ours
    rows = _ask(url, f"{query}0")
    known, waited_s = {(at, key) for _, at, key in rows}, []
    newest_ns = max(time_ns for time_ns, _, _ in rows)
    until_s = time.monotonic() + _RUN_S
    while time.monotonic() < until_s:
        time.sleep(_EVERY_S)
        rows = _ask(url, f"{query}{newest_ns - _BEHIND_NS}")
        now_ns = time.time_ns()
        for time_ns, at_ns, key in rows:
            if (at_ns, key) not in known:
                known.add((at_ns, key))
                waited_s.append((now_ns - at_ns - later_ns) / 1e9)
                newest_ns = max(newest_ns, time_ns)
    return waited_s


def _busiest(url: str) -> list[str]:
    """Return the instruments that have the most points so far."""
    found = _series(url, "SELECT count(seq) FROM tick GROUP BY instrument_key")
    return [one["tags"]["instrument_key"] for one in sorted(found, key=lambda one: -one["values"][0][1])[:_ASKED]]


def _ask(url: str, query: str) -> list[Any]:
    return [row for one in _series(url, query) for row in one["values"]]


def _series(url: str, query: str) -> list[dict[str, Any]]:
    given = urllib.parse.urlencode({"db": "ticks", "epoch": "ns", "q": query})
    with urllib.request.urlopen(f"{url}/query?{given}", timeout=10) as answer:
        (result,) = json.load(answer)["results"]
    return list(result.get("series", []))
