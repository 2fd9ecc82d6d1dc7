"""Ten times the rate measured at an open, for as long as it takes to bring a session's updates: nothing grows.

540 updates a second were measured at the open; a session at that rate, which no session keeps up, brings 12 million. The
simulator sends ten times as many a second. Every second the recorder's memory and open files are read from /proc and its
lag from its status; the slopes are those of the second half, by least squares. Then the feed ends, and the lag must be 0.
"""

from __future__ import annotations

import base64
import json
import statistics
import time
import urllib.request
import zlib
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import programs
from servers import free_ports, influxd, wait_until

from proof.rig import Answer
from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.reading import JournalReader

if TYPE_CHECKING:
    from collections.abc import Sequence

QUESTION: Final = "soak"
OPENING_HZ: Final = 540.0
SETTLED_S: Final = 120.0  # until allocators have what they need: in less no slope is judged
MOST_MB: Final = 600.0
GROWTH_FILES_AN_HOUR: Final = 60.0  # one a minute: what is opened for a moment is seen now and then
GROWTH_MB_AN_HOUR: Final = 10.0  # what still counts as flat: over a session a fifth more of 300 MB


@dataclass(slots=True)
class _Watched:
    """Of every second: its time, resident memory in MB, open files, frames that wait for the slowest sink."""

    at_s: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    files: list[float] = field(default_factory=list)
    lag: list[float] = field(default_factory=list)

    def slope_an_hour(self, values: Sequence[float]) -> float:
        """Return the growth of the second half."""
        half = len(values) // 2
        return statistics.linear_regression(self.at_s[half:], values[half:]).slope * 3600


def ask(place: Path, *, minutes: float = 25.0, times: float = 10.0, instruments: int = 1500) -> Answer:
    """Record for so long at so many times the opening rate."""
    data, log = place / "data", place / "sent.log"
    rate = OPENING_HZ * times
    [port] = free_ports(1)
    market = ("--instruments", str(instruments), "--updates-per-second", str(rate), "--log", str(log))
    with influxd(place / "influx") as influx, programs.simulator(place, *market) as (url, simulated):
        stores = {"INFLUX_URL": influx.url, "INFLUX_BUCKET": "market", "TICKVAULT_HTTP": f"127.0.0.1:{port}"}
        environ = programs.environ_for(url, data, **stores)
        with programs.recorder(place, environ) as recorder:
            wait_until(lambda: _status(port) is not None, "the status is served", 60)
            seen = _watch(recorder.process.pid, port, minutes * 60)
            simulated.stop()
            wait_until(lambda: _lag(port) == 0, "everything is delivered", 300 + minutes * 60)
            lag_at_end = _lag(port)
            code = recorder.stop()
            said = recorder.said()
    answer = Answer()
    updates = _counted(place, data, "SELECT count(*) FROM ticks")
    twice = updates - _counted(place, data, "SELECT count(*) FROM (SELECT DISTINCT seq, instrument_key FROM ticks)")
    frames, on_the_wire, entries = _held(log, data)
    answer.lost, answer.twice = max(0, entries - updates), twice + max(0, updates - entries)
    answer.ran = f"{minutes:g} min at {updates / (minutes * 60):,.0f} updates/s"
    memory, files = seen.slope_an_hour(seen.memory_mb), seen.slope_an_hour(seen.files)
    answer.figures = {
        "updates": updates,
        "frames": frames,
        "frames on the wire when a connection ended": on_the_wire,
        "memory MB (median of 2nd half, most)": f"{statistics.median(seen.memory_mb[len(seen.memory_mb) // 2 :]):.0f}, {max(seen.memory_mb):.0f}",
        "memory MB/h": f"{memory:+.1f}",
        "open files (most)": f"{max(seen.files):.0f}",
        "open files/h": f"{files:+.1f}",
        "lag in frames (most, at the end)": f"{max(seen.lag):.0f}, {lag_at_end}",
    }
    if code:
        answer.wrong.append(said[-500:])
    if max(seen.memory_mb) > MOST_MB:
        answer.wrong.append(f"memory reaches {max(seen.memory_mb):.0f} MB")
    if minutes * 60 > 4 * SETTLED_S and (memory > GROWTH_MB_AN_HOUR or files > GROWTH_FILES_AN_HOUR):
        answer.wrong.append(f"in an hour memory grows by {memory:.0f} MB, and {files:.0f} files more are open")
    return answer


def _held(log: Path, data: Path) -> tuple[int, int, int]:
    """Hold the journal against the log, frame by frame.

    Returns:
        Frames that are there, those missing at the ends of connections, and the entries of those that are there.

    Raises:
        ValueError: frames of a connection are not the first ones that were sent on one.
    """
    sent: dict[int, list[int]] = defaultdict(list)
    with log.open("rb") as lines:
        for line in lines:
            one = json.loads(line)
            sent[one["conn"]].append(zlib.crc32(base64.b64decode(one["payload"])))
    kept: dict[int, list[int]] = defaultdict(list)
    entries = 0
    reader = JournalReader(data / "journal", 0)
    while (chunk := reader.read(max_frames=100, max_bytes=10**8)) is not None:
        for frame in chunk.frames:
            kept[frame.conn].append(zlib.crc32(frame.payload))
            entries += len(pb.FeedResponse.FromString(frame.payload).feeds)
    reader.close()
    on_the_wire = sum(map(len, sent.values())) - sum(map(len, kept.values()))
    for conn, got in kept.items():
        source = next((number for number, of in sent.items() if of[: len(got)] == got), None)
        if source is None:
            raise ValueError(
                f"connection {conn}: the {len(got)} frames in the journal are not the first of any that were sent"
            )
        del sent[source]
    return sum(map(len, kept.values())), on_the_wire, entries


def _watch(pid: int, port: int, duration_s: float) -> _Watched:
    seen = _Watched()
    started_s = time.monotonic()
    while (at_s := time.monotonic() - started_s) < duration_s:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
        resident_kb = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
        seen.at_s.append(at_s)
        seen.memory_mb.append(resident_kb / 1024)
        seen.files.append(len(list(Path(f"/proc/{pid}/fd").iterdir())))
        seen.lag.append(_lag(port))
        time.sleep(1.0)
    return seen


def _status(port: int) -> dict[str, object] | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status", timeout=10) as answer:
            return json.loads(answer.read())
    except OSError:
        return None


def _lag(port: int) -> int:
    """Return how many frames wait for the slowest sink."""
    status = _status(port) or {}
    return max((one["lag_frames"] for one in status["sinks"].values()), default=0)


def _counted(place: Path, data: Path, sql: str) -> int:
    words = ("query", sql, "--format", "csv", "--data-dir", str(data))
    done = programs.call(*words, environ={}, folder=place, within_s=600)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[1])
