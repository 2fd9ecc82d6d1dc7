"""A trading day at 60 times its pace, the programs as a user starts them, every clock of theirs hurried (fasttime).

From the token's end at 03:30 over pre-open, the pause after it, trading, the closing auction and the close, with three
disconnects and a mute half-minute, into a holiday. Around each fault time runs only ten times as fast, so that a hiccup
of a busy machine is not seconds; where nothing trades it flies.
"""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fasttime
import pytest
from programs import CLEAN, Running, environ_for
from servers import wait_until

IST = dt.timezone(dt.timedelta(hours=5, minutes=30))
PROGRAM = (sys.executable, fasttime.__file__)
MONDAY, HOLIDAY = dt.date(2026, 10, 5), dt.date(2026, 10, 6)
SESSION_S = {"NSE_EQ": 45 * 60, "NSE_FO": 55 * 60, "NSE_INDEX": 45 * 60}  # from 09:00
HOURS = {"NSE": "09:45", "BSE": "09:45", "NFO": "09:55", "BFO": "09:55"}
FAULTS = {"09:18": "close", "09:20": "reset", "09:22": "mute", "09:25": "hang_up"}
SCRIPT = f"""
about = "a day with every ordinary trouble"
evidence = "inferred"
source = "three disconnects, a mute half-minute, a token that ends, and a holiday after it"
start = "{MONDAY}T03:29:30"
[calendar.hours]
{"".join(f'{name} = ["09:15", "{until}"]' + chr(10) for name, until in HOURS.items())}
[[calendar.holidays]]
date = "{HOLIDAY}"
closed = ["NSE", "BSE", "NFO", "BFO", "CDS", "BCD", "MCX", "NSCOM"]
[[steps]]
at = "03:30"
do = "expire_token"
sockets = "close"
""" + "".join(
    f'[[steps]]\nat = "{at}"\ndo = "{what}"\n' + ("seconds = 30.0\n" if what == "mute" else "")
    for at, what in FAULTS.items()
)


def ist_ns(day: dt.date, time_of_day: str, plus_s: float = 0.0) -> int:
    """Return a time in India as ns since the epoch."""
    at = dt.datetime.combine(day, dt.time.fromisoformat(time_of_day), IST)
    return int(at.timestamp()) * 10**9 + int(plus_s * 1e9)


def clock() -> fasttime.Clock:
    """Return the day's clock, from now on."""
    start_ns = ist_ns(MONDAY, "03:29:30")
    # It stands all but still while the programs start: the simulator counts from its own start.
    pace = [(start_ns, 0.01), (start_ns + 50_000_000, 60.0)]
    pace += [(ist_ns(MONDAY, "03:31"), 3600.0), (ist_ns(MONDAY, "08:58"), 60.0)]
    for at, what in FAULTS.items():
        pace += [(ist_ns(MONDAY, at, -10), 10.0), (ist_ns(MONDAY, at, 50 if what == "mute" else 15), 60.0)]
    pace += [(ist_ns(MONDAY, "09:57"), 7200.0), (ist_ns(HOLIDAY, "09:58"), 60.0)]
    return fasttime.Clock(time.time_ns(), tuple(pace))


@pytest.mark.hurried
@pytest.mark.timeout(400)
def test_the_ledger_of_a_day_matches_what_was_played(tmp_path: Path) -> None:
    """To the second, with the right verdict, and without anybody's help."""
    script, data, hurried = tmp_path / "day.toml", tmp_path / "data", clock()
    script.write_text(SCRIPT)
    words = ["--port", "0", "--instruments", "40", "--updates-per-second", "40", "--script", str(script)]
    fast = {fasttime.NAME: str(hurried)}
    simulated = Running(["simulate", *words], fast, tmp_path, "simulator", PROGRAM)
    recording = None
    try:
        wait_until(lambda: "listening on" in simulated.said() or not simulated.alive, "the simulator listens")
        assert simulated.alive, simulated.said()
        url = simulated.said().split("listening on ")[1].split()[0]
        environ = {**environ_for(url, data), **fast, "UPSTOX_TOKEN_URL": f"{url}/token"}
        del environ["UPSTOX_ACCESS_TOKEN"]
        recording = Running(["run"], environ, tmp_path, "recorder", PROGRAM)
        end_ns = ist_ns(HOLIDAY, "10:00")
        wait_until(lambda: hurried.simulated(time.time_ns()) > end_ns or not recording.alive, "the day passes", 300)
        assert recording.stop() == 0, recording.said()
    finally:
        for one in (simulated, recording):
            if one is not None and one.alive:
                one.kill()
    assert '"code": 1008' in recording.said()  # the token's end took the connection with it
    holiday, code = verdict(data, HOLIDAY, fast)
    assert (holiday["complete"], code) == (True, 0), holiday["why"]
    assert {part["session_s"] for part in holiday["segments"]} == {0.0}
    day, code = verdict(data, MONDAY, fast)
    assert (day["complete"], day["hours_known"], code) == (False, True, 1)
    assert {part["segment"]: part["session_s"] for part in day["segments"]} == SESSION_S
    spans = incidents(day["missing"])
    assert len(spans) == len(FAULTS), day["missing"]
    for (at, what), (from_ns, to_ns, reasons) in zip(FAULTS.items(), spans, strict=True):
        begun_s = (from_ns - ist_ns(MONDAY, at)) / 1e9
        lasted_s = (to_ns - from_ns) / 1e9
        assert abs(begun_s) < 2, (at, what, begun_s)
        if what == "mute":
            assert reasons <= {"silent", "disconnected", "subscription_refused"}
            assert 28 < lasted_s < 50, lasted_s  # at worst the pause before a further attempt came on top
            found_ns = next(one["from_ns"] for one in day["missing"] if one["detail"].startswith("mute"))
            assert (found_ns - from_ns) / 1e9 < 21
        else:
            assert reasons == {"disconnected"}
            assert 0 < lasted_s < 10, lasted_s
    for part in day["segments"]:
        of_segment = [one for one in day["missing"] if part["segment"] in one["segments"]]
        assert len(incidents(of_segment)) == len(FAULTS)
        missing_s = sum(one["to_ns"] - one["from_ns"] for one in of_segment) / 1e9
        assert part["recorded_s"] == pytest.approx(part["session_s"] - missing_s, abs=0.01)


def verdict(data: Path, date: dt.date, fast: dict[str, str]) -> tuple[Any, int]:
    """Return what `tickvault day` says, and its exit code."""
    done = subprocess.run(
        [*PROGRAM, "day", str(date), "--json", "--data-dir", str(data)],
        env={**CLEAN, **fast},
        cwd=data.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout), done.returncode


def incidents(missing: list[dict[str, Any]]) -> list[tuple[int, int, set[str]]]:
    """Join what follows on without a pause: (from, to, reasons)."""
    joined: list[tuple[int, int, set[str]]] = []
    for one in sorted(missing, key=lambda one: one["from_ns"]):
        if joined and one["from_ns"] <= joined[-1][1]:  # one segment may be served a little before another
            from_ns, to_ns, reasons = joined.pop()
            joined.append((from_ns, max(to_ns, one["to_ns"]), reasons | {one["reason"]}))
        else:
            joined.append((one["from_ns"], one["to_ns"], {one["reason"]}))
    return joined
