"""From the socket to where others read: how long until an update can be read from InfluxDB 1.6.7.

The simulator sends, `tickvault run` writes to a real server, and from it the updates of a few instruments are asked for
every 20 ms: each has the time at which the recorder received it. An answer's time is that at which it was asked for, 20 ms and
a query later than it could have been, and that counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Final

from benchmarks.footprint import first_frame_s, simulator
from benchmarks.rows import Row
from benchmarks.server import influxd

__all__ = ["TITLE", "rows"]

TITLE: Final = "Readable"
_RUN_S: Final = 30.0
_SETTLED_S: Final = 8.0
_EVERY_S: Final = 0.02
_ASKED: Final = 8  # instruments
_BEHIND_NS: Final = 5_000_000_000  # of the market's time, what is asked for again


def rows(place: Path) -> list[Row]:
    """Measure through files below `place`."""
    found = []
    with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=place) as folder:
        for rate, instruments in ((540, 3_500), (5_000, 5_000)):
            waited_s = sorted(_waited_s(Path(folder).resolve() / f"{rate}", rate, instruments))
            p50, p99 = (waited_s[int(len(waited_s) * of)] * 1e3 for of in (0.5, 0.99))
            found.append(
                Row(
                    f"receive → readable in InfluxDB at {rate}/s, p99 in ms",
                    f"p50 {p50:.0f} p99 {p99:.0f} ms",
                    f"{len(waited_s):,} updates",
                    p99,
                    300.0,
                    at_most=True,
                )
            )
    return found


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
            return _watch(url)
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(60)


def _watch(url: str) -> list[float]:
    """Return how long each update took that came while we looked."""
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
                waited_s.append((now_ns - at_ns) / 1e9)
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
