"""An ordinary trading day from the token's end at 03:30 to the morning of the holiday after it, in virtual time.

Pre-open, the pause after it, trading, the closing auction and the close, with three disconnects and a mute half-minute.
Every second of it is lived through, by a simulator and a recorder with all their patience; it only has to be quicker
than 60 times the clock on the wall, and is.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from doubles import FAST
from programs import environ_for
from typer.testing import CliRunner
from virtualtime import VirtualLoop

from tickvault.cli import program
from tickvault.model import IST
from tickvault.pipeline import Recorder
from tickvault.settings import load_settings
from tickvault.simulator import Simulator, SimulatorSettings
from tickvault.survey import events

if TYPE_CHECKING:
    from collections.abc import Iterator

MONDAY, HOLIDAY = dt.date(2026, 10, 5), dt.date(2026, 10, 6)
START, END = "03:29:30", "09:30"
SESSION_S = {"NSE_EQ": 390 * 60, "NSE_FO": 400 * 60, "NSE_INDEX": 390 * 60}
FAULTS = {"09:20": "close", "11:05": "reset", "13:40": "mute", "15:05": "hang_up"}
SCRIPT = f"""
about = "a day with every ordinary trouble"
evidence = "inferred"
source = "three disconnects, a mute half-minute, a token that ends, and a holiday after it"
start = "{MONDAY}T{START}"
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


def ist_ns(day: dt.date, time_of_day: str) -> int:
    """Return a time in India as ns since the epoch."""
    return int(dt.datetime.combine(day, dt.time.fromisoformat(time_of_day), IST).timestamp()) * 10**9


@pytest.fixture
def folder() -> Iterator[Path]:
    """A day has a hundred thousand commits."""
    with tempfile.TemporaryDirectory(dir=FAST) as name:
        yield Path(name)


@pytest.mark.virtual
@pytest.mark.timeout(1800)
async def test_the_ledger_of_a_day_matches_what_was_played(folder: Path) -> None:
    """To the second, with the right verdict, and without anybody's help."""
    script, data = folder / "day.toml", folder / "data"
    script.write_text(SCRIPT)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.set_wall(ist_ns(MONDAY, START))
    async with Simulator(SimulatorSettings(instruments=20, updates_per_second=12.0, script=script)) as simulator:
        environ = environ_for(simulator.url, data, UPSTOX_TOKEN_URL=f"{simulator.url}/token")
        del environ["UPSTOX_ACCESS_TOKEN"]
        recorder, stopping = Recorder(load_settings(environ=environ, env_file=None)), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(recorder.run(stopping))
            while time.time_ns() < ist_ns(HOLIDAY, END):
                await asyncio.sleep(60)
                assert not task.done(), "it goes on for ever"
            stopping.set()
    ends = [event.body["code"] for event in events(data / "journal", ("conn",)) if event.body["state"] == "closed"]
    assert ends[0] == 1008, "the token's end took the connection with it"
    holiday, code = verdict(data, HOLIDAY)
    assert (holiday["complete"], code) == (True, 0), holiday["why"]
    assert {part["session_s"] for part in holiday["segments"]} == {0.0}
    day, code = verdict(data, MONDAY)
    assert (day["complete"], day["hours_known"], code) == (False, True, 1)
    assert {part["segment"]: part["session_s"] for part in day["segments"]} == SESSION_S
    spans = incidents(day["missing"])
    assert len(spans) == len(FAULTS), day["missing"]
    for (at, what), (from_ns, to_ns, reasons) in zip(FAULTS.items(), spans, strict=True):
        begun_s = (from_ns - ist_ns(MONDAY, at)) / 1e9
        lasted_s = (to_ns - from_ns) / 1e9
        # Silence begins with the last data of a segment, and data of one comes every second or so.
        assert (-3 if what == "mute" else -1) < begun_s < 1, (at, what, begun_s)
        if what == "mute":
            assert reasons <= {"silent", "disconnected", "subscription_refused"}
            assert 29 < lasted_s < 50, lasted_s  # at worst the pause before a further attempt came on top
            found_ns = next(one["from_ns"] for one in day["missing"] if one["detail"].startswith("mute"))
            assert (found_ns - from_ns) / 1e9 < 21
        else:
            assert reasons == {"disconnected"}
            assert 0 < lasted_s < 5, lasted_s
    for part in day["segments"]:
        of_segment = [one for one in day["missing"] if part["segment"] in one["segments"]]
        assert len(incidents(of_segment)) == len(FAULTS)
        missing_s = sum(one["to_ns"] - one["from_ns"] for one in of_segment) / 1e9
        assert part["recorded_s"] == pytest.approx(part["session_s"] - missing_s, abs=0.01)


def verdict(data: Path, date: dt.date) -> tuple[Any, int]:
    """Return what `tickvault day` says, and its exit code."""
    done = CliRunner().invoke(program(), ["day", str(date), "--json", "--data-dir", str(data)])
    assert done.stdout, done.stderr
    return json.loads(done.stdout), done.exit_code


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
