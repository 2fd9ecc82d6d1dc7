"""A whole session, squeezed, at ten times the rate measured at an open: nothing grows.

The simulator plays an ordinary day, 09:00 to 16:00, in the minutes there are: pre-open, the pause after it, the open, a
lull, trading, the closing auction, the close. 540 updates a second were measured at the open; a session at that rate,
which no session keeps up, brings 12 million. The simulator sends ten times as many a second, and a third of that in the
lull. Every second the recorder's memory and open files are read from /proc and its lag from its status; the slopes are
those of the afternoon's trading, by least squares. Then the feed ends, and the lag must be 0.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import statistics
import time
import urllib.request
import zlib
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import programs
from servers import free_ports, influxd, wait_until

from proof.rig import Answer
from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.model import IST
from tickvault.reading import JournalReader
from tickvault.simulator.calendar import DAY_S, Calendar

if TYPE_CHECKING:
    from collections.abc import Sequence

QUESTION: Final = "soak"
OPENING_HZ: Final = 540.0
SESSION: Final = (32_400.0, 57_600.0)  # seconds after 00:00 in India: 09:00 to 16:00
LULL: Final = (36_000.0, 41_400.0)  # 10:00 to 11:30, at a third of the rate
JUDGED: Final = (45_000.0, 54_900.0)  # 12:30, when allocators have what they need, to 15:15, when an auction begins
START_S: Final = 20.0  # for the programs to start in before the session does
SHORTEST_S: Final = 480.0  # of a session: in less no slope is judged
MOST_MB: Final = 600.0
GROWTH_FILES_AN_HOUR: Final = 60.0  # one a minute: what is opened for a moment is seen now and then
GROWTH_MB_AN_HOUR: Final = 10.0  # what still counts as flat: over a session a fifth more of 300 MB
_COUNTS: Final = """
SELECT (SELECT count(*) FROM ticks) AS updates,
  (SELECT count(*) FROM (SELECT DISTINCT seq, instrument_key FROM ticks)) AS different,
  (SELECT max(n) FROM (SELECT count(*) AS n FROM ticks GROUP BY epoch(received_at)::BIGINT // 10)) AS busiest,
  (SELECT count(DISTINCT status) FROM market_status WHERE segment = 'NSE_EQ') AS statuses
"""


@dataclass(slots=True)
class _Watched:
    """Of every second: its time, resident memory in MB, open files, frames that wait for the slowest sink."""

    at_s: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    files: list[float] = field(default_factory=list)
    lag: list[float] = field(default_factory=list)

    def slope_an_hour(self, values: Sequence[float], from_s: float, to_s: float) -> float:
        """Return the growth between two times."""
        judged = [(at_s, value) for at_s, value in zip(self.at_s, values, strict=True) if from_s <= at_s < to_s]
        return statistics.linear_regression(*zip(*judged, strict=True)).slope * 3600


def ask(place: Path, *, minutes: float = 25.0, times: float = 10.0, instruments: int = 1500) -> Answer:
    """Record a session squeezed into so many minutes, at so many times the opening rate."""
    data, log, script = place / "data", place / "sent.log", place / "session.json"
    rate, session_s = OPENING_HZ * times, minutes * 60
    [port] = free_ports(1)
    _before_midnight(START_S + session_s)
    begun_s = time.monotonic() + START_S
    script.write_text(json.dumps(_session(session_s)), encoding="utf-8")
    market = ("--instruments", str(instruments), "--updates-per-second", str(rate), "--log", str(log))
    with (
        influxd(place / "influx") as influx,
        programs.simulator(place, *market, "--script", str(script)) as (url, simulated),
    ):
        stores = {"INFLUX_URL": influx.url, "INFLUX_BUCKET": "market", "TICKVAULT_HTTP": f"127.0.0.1:{port}"}
        environ = programs.environ_for(url, data, **stores)
        with programs.recorder(place, environ) as recorder:
            wait_until(lambda: _status(port) is not None, "the status is served", 60)
            seen = _watch(recorder.process.pid, port, begun_s, session_s)
            simulated.stop()
            wait_until(lambda: _lag(port) == 0, "everything is delivered", 300 + session_s)
            lag_at_end = _lag(port)
            code = recorder.stop()
            said = recorder.said()
    answer = Answer()
    updates, distinct, busiest, statuses = _counted(place, data)
    twice = updates - distinct
    frames, on_the_wire, entries = _held(log, data)
    answer.lost, answer.twice = max(0, entries - updates), twice + max(0, updates - entries)
    answer.ran = f"a session in {minutes:g} min at {rate:,.0f} updates/s"
    answer.figures = {
        "updates": updates,
        "updates/s (busiest 10 s)": busiest // 10,
        "statuses of the cash market": statuses,
        "frames": frames,
        "frames on the wire when a connection ended": on_the_wire,
        "memory MB (median, most)": f"{statistics.median(seen.memory_mb):.0f}, {max(seen.memory_mb):.0f}",
        "open files (most)": f"{max(seen.files):.0f}",
        "lag in frames (most, at the end)": f"{max(seen.lag):.0f}, {lag_at_end}",
    }
    if code:
        answer.wrong.append(said[-500:])
    if max(seen.memory_mb) > MOST_MB:
        answer.wrong.append(f"memory reaches {max(seen.memory_mb):.0f} MB")
    if session_s >= SHORTEST_S:
        judged = [_squeezed(at_s, session_s) for at_s in JUDGED]
        memory, files = (seen.slope_an_hour(values, *judged) for values in (seen.memory_mb, seen.files))
        answer.figures |= {"memory MB/h": f"{memory:+.1f}", "open files/h": f"{files:+.1f}"}
        if memory > GROWTH_MB_AN_HOUR or files > GROWTH_FILES_AN_HOUR:
            answer.wrong.append(f"in an hour memory grows by {memory:.0f} MB, and {files:.0f} files more are open")
    return answer


def _now_s() -> float:
    """Return the seconds since 00:00 in India."""
    now = dt.datetime.now(IST)
    return (now - now.replace(hour=0, minute=0, second=0, microsecond=0)).total_seconds()


def _before_midnight(needed_s: float) -> None:
    """Wait for the next day if too little of this one is left: a session has a date."""
    while (left_s := DAY_S - _now_s()) <= needed_s:
        time.sleep(min(left_s, 1.0))


def _squeezed(at_s: float, session_s: float) -> float:
    """Return when a time of the day comes, in seconds after the session's begin."""
    return (at_s - SESSION[0]) * session_s / (SESSION[1] - SESSION[0])


def _session(session_s: float) -> dict[str, object]:
    """Return a script of an ordinary day that begins in START_S and lasts so long."""
    calendar = Calendar(weekend=frozenset()).squeezed(_now_s() + START_S, session_s)
    assert calendar.phases is not None
    hours = {name: [_time(one.start_s), _time(one.end_s)] for name, one in calendar.hours.items()}
    from_s, to_s = (_squeezed(at_s, session_s) for at_s in LULL)
    lull = {"do": "slow", "at_s": START_S + from_s, "seconds": to_s - from_s, "factor": 3.0}
    return {"calendar": {"weekend": [], "hours": hours, "phases": asdict(calendar.phases)}, "steps": [lull]}


def _time(at_s: float) -> str:
    minutes, seconds = divmod(at_s, 60)
    return f"{int(minutes) // 60:02}:{int(minutes) % 60:02}:{min(seconds, 59.999):06.3f}"


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


def _watch(pid: int, port: int, begun_s: float, session_s: float) -> _Watched:
    """Watch until the session that begins at a time of the monotonic clock is over."""
    seen = _Watched()
    while (at_s := time.monotonic() - begun_s) < session_s:
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


def _counted(place: Path, data: Path) -> list[int]:
    """Return the rows of ticks, the different ones, those of the busiest ten seconds, and the cash market's statuses."""
    words = ("query", _COUNTS, "--format", "csv", "--data-dir", str(data))
    done = programs.call(*words, environ={}, folder=place, within_s=600)
    assert done.returncode == 0, done.stderr
    return [int(number) for number in done.stdout.splitlines()[1].split(",")]
