"""A store that fails in every way a store, a proxy or a network can, one after the other, while the feed goes on.

A gate stands before a real InfluxDB and makes every write fail: by answers, by resets, by silence. The recorder's memory is
read all the time. Then the weather is good, the backlog has to drain, and both stores are held against what was sent.
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import programs
from servers import influxd, wait_until
from unruly import Gate, answer, retry_date

from proof.kills import compare
from proof.rig import HURRIED, Answer, recording
from tickvault.state import read_view

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from unruly import Request

QUESTION: Final = "a store that fails"
MARKET: Final = ("--instruments", "100", "--updates-per-second", "500")
_LOOK_S: Final = 0.3
SETTLED_S: Final = 10.0  # until allocators have what they need
GROWTH_MB: Final = 60.0  # of about 130: room for batches that are halved, none for a backlog
WEATHERS: Final[dict[str, Callable[[Request], bytes | str | None]]] = {
    "away": lambda _: "reset",
    "503": lambda _: answer(503),
    "500 with a page": lambda _: answer(500, b"<html>", kind="text/html"),
    "429": lambda _: answer(429),
    "429, Retry-After in seconds": lambda _: answer(429, headers="Retry-After: 2\r\n"),
    "429, Retry-After as a date": lambda _: answer(429, headers=retry_date(2)),
    "slow-loris head": lambda _: "dribble",
    "slow-loris body": lambda _: "drip",
    "silence": lambda _: "silent",
    "acknowledgement lost": lambda _: "lost",
    "wrong token": lambda _: answer(401, b'{"error":"authorization failed"}'),
    "no right": lambda _: answer(403, b'{"error":"not authorized"}'),
    "unknown bucket": lambda _: answer(404, b'{"message":"bucket not found"}'),
    "413": lambda request: answer(413) if request.body.count(b"\n") > 100 else None,
}


def ask(place: Path, *, minutes: float = 21.0) -> Answer:
    """Let the weathers be bad for so long altogether; then let everything arrive, and count."""
    data, log = place / "data", place / "sent.log"
    found = Answer(ran=f"{len(WEATHERS)} kinds of failure, {minutes:g} min")
    each_s = minutes * 60 / len(WEATHERS)
    most_mb, first_mb = 0.0, 0.0
    with (
        influxd(place / "influx") as influx,
        _gate(influx.url) as gate,
        programs.simulator(place, *MARKET, "--log", str(log)) as (url, simulated),
    ):
        environ = programs.environ_for(url, data, INFLUX_URL=gate.url, INFLUX_BUCKET="market", PROOF_PATIENCE="short")
        with recording(place, environ, program=HURRIED) as recorder:
            wait_until(lambda: _reached(data) > 0, "InfluxDB has the first rows", 60)
            time.sleep(min(SETTLED_S, each_s))
            first_mb = _memory_mb(recorder.process.pid)
            for name, weather in WEATHERS.items():
                gate.weather, before = weather, gate.faulted
                until_s = time.monotonic() + each_s
                while time.monotonic() < until_s:
                    most_mb = max(most_mb, _memory_mb(recorder.process.pid))
                    time.sleep(0.2)
                wait_until(lambda before=before: gate.faulted > before, f"{name}: a write meets it", 60)
            behind = programs.peek(data)["last_seq"] - _reached(data)
            gate.weather = None
            simulated.stop()
            wait_until(
                lambda: _reached(data) == programs.peek(data)["last_seq"],
                "the backlog is delivered",
                300 + minutes * 60,
            )
            if recorder.stop():
                found.wrong.append(recorder.said()[-500:])
        compare(found, data, log, influx)
    found.figures |= {
        "writes that failed": gate.faulted,
        "frames behind at the worst": behind,
        "memory MB (before, most)": f"{first_mb:.0f}, {most_mb:.0f}",
    }
    if most_mb - first_mb > GROWTH_MB:
        found.wrong.append(f"memory grows from {first_mb:.0f} to {most_mb:.0f} MB")
    if "sink.parked" in recorder.said():
        found.wrong.append("the sink was parked")
    return found


@contextmanager
def _gate(store: str) -> Iterator[Gate]:
    """Run a gate in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    gate = Gate(store)
    try:
        asyncio.run_coroutine_threadsafe(gate.__aenter__(), loop).result(10)
        yield gate
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(gate.__aexit__())
        loop.close()


def _reached(data: Path) -> int:
    """Return InfluxDB's cursor; seldom, since the gate answers in a thread of this very process."""
    time.sleep(_LOOK_S)
    view = read_view(data / "state.db")
    return next((one.seq for one in view.cursors if one.sink == "influx"), 0) if view else 0


def _memory_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024
