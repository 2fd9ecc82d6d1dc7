"""An open market, an hour in a minute: a brown-out is told within two minutes, a lull at noon is no alarm.

The programs as a user starts them, every clock of theirs hurried (fasttime).
"""

from __future__ import annotations

import datetime as dt
import json
import sys
import time
import urllib.request
from typing import TYPE_CHECKING

import fasttime
import pytest
from programs import Running, environ_for
from servers import wait_until

from tickvault.survey import events

if TYPE_CHECKING:
    from pathlib import Path

IST = dt.timezone(dt.timedelta(hours=5, minutes=30))
MONDAY = dt.date(2026, 10, 5)
PROGRAM = (sys.executable, fasttime.__file__)
BROWN, BROWN_S = "11:40", 300.0  # at once a sixth
LULL = {"11:52": 1.5, "11:56": 2.2, "12:00": 3.3, "12:04": 5.0}  # ever fewer, a fifth in the end
END = "12:10"
STEPS = [(BROWN, BROWN_S, 6.0), *((at, 240.0, factor) for at, factor in LULL.items())]
SCRIPT = f"""
about = "a brown-out, and a lull"
evidence = "inferred"
source = "an overloaded sender, and trading at noon"
start = "{MONDAY}T11:28"
""" + "".join(f'[[steps]]\nat = "{at}"\ndo = "slow"\nseconds = {s}\nfactor = {factor}\n' for at, s, factor in STEPS)


def ist_ns(time_of_day: str) -> int:
    """Return a time of that Monday in India as ns since the epoch."""
    return int(dt.datetime.combine(MONDAY, dt.time.fromisoformat(time_of_day), IST).timestamp()) * 10**9


def clock() -> fasttime.Clock:
    """Return the day's clock, from now on; it stands all but still while the simulator starts."""
    start_ns = ist_ns("11:28")
    pace = [(start_ns, 0.01), (start_ns + 50_000_000, 60.0), (ist_ns("11:39"), 15.0), (ist_ns("11:43"), 60.0)]
    return fasttime.Clock(time.time_ns(), tuple(pace))


@pytest.mark.hurried
@pytest.mark.timeout(300)
def test_a_brown_out_is_told_and_a_lull_is_not(tmp_path: Path) -> None:
    """One new connection is tried and no more; the ledger has when it began and ended."""
    script, data, hurried = tmp_path / "noon.toml", tmp_path / "data", clock()
    script.write_text(SCRIPT)
    fast = {fasttime.NAME: str(hurried)}
    words = ["--port", "0", "--instruments", "40", "--updates-per-second", "40", "--script", str(script)]
    running = [Running(["simulate", *words], fast, tmp_path, "simulator", PROGRAM)]
    try:
        simulated = running[0]
        wait_until(lambda: "listening on" in simulated.said() or not simulated.alive, "the simulator listens")
        assert simulated.alive, simulated.said()
        url = simulated.said().split("listening on ")[1].split()[0]
        with urllib.request.urlopen(f"{url}/instruments", timeout=10) as answer:
            keys = [key for key in json.load(answer)["instruments"] if key.startswith("NSE_EQ")]
        environ = {**environ_for(url, data), **fast, "TICKVAULT_INSTRUMENTS": ",".join(keys)}
        del environ["TICKVAULT_INSTRUMENTS_URL"]
        recording = Running(["run"], environ, tmp_path, "recorder", PROGRAM)
        running.append(recording)
        end_ns = ist_ns(END)
        wait_until(lambda: hurried.simulated(time.time_ns()) > end_ns or not recording.alive, "noon passes", 200)
        assert recording.stop() == 0, recording.said()
    finally:
        for one in running:
            if one.alive:
                one.kill()
    told = [
        (event.body["state"], (event.at_ns - ist_ns(BROWN)) / 1e9) for event in events(data / "journal", ("watch",))
    ]
    assert [state for state, _ in told] == ["brown_out", "usual"], told
    assert 0 < told[0][1] <= 120
    assert BROWN_S < told[1][1] < BROWN_S + 120
    closed = [event.body["reason"] for event in events(data / "journal", ("conn",)) if event.body["state"] == "closed"]
    assert closed == ["brown_out", "stopped"]
    assert recording.said().count('"feed.open"') == 2
