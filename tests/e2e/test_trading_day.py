"""Whole trading days: the recorder on a simulator whose clock runs fast, ended by the close."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from programs import call, environ_for

from tickvault import day as days
from tickvault import journal
from tickvault.ledger import KINDS, State, intervals
from tickvault.pipeline import Recorder
from tickvault.settings import load_settings
from tickvault.simulator import Simulator, SimulatorSettings
from tickvault.simulator.calendar import Calendar, Holiday
from tickvault.survey import events

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tickvault.pipeline import Outcome

IST = dt.timezone(dt.timedelta(hours=5, minutes=30))
MONDAY = dt.date(2026, 10, 5)
EXCHANGES = ("NSE", "BSE", "NFO", "BFO", "CDS", "BCD", "MCX")
SPEED = 3600  # an hour a second


def fast_clock(start: str) -> Callable[[], int]:
    """Return a wall clock that starts at a time in India and runs as fast as the simulator's."""
    begin_ns = int(dt.datetime.fromisoformat(f"{start}+05:30").timestamp()) * 10**9
    begun_ns = time.monotonic_ns()
    return lambda: begin_ns + (time.monotonic_ns() - begun_ns) * SPEED


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wall clock that runs so fast is not one that is set."""
    monkeypatch.setattr(journal, "_STALL_NS", 3 * SPEED * 10**9)


async def record(folder: Path, start: str, **played: Any) -> tuple[Outcome, int]:
    """Record from a time on until the close; return what was done, and what time it is then."""
    settings = SimulatorSettings(port=0, instruments=20, updates_per_second=200, start=start, speed=SPEED, **played)
    async with Simulator(settings) as simulator:
        environ = environ_for(simulator.url, folder / "data")
        recorder = Recorder(load_settings(environ=environ, env_file=None), wall_ns=(clock := fast_clock(start)))
        async with asyncio.timeout(60):
            return await recorder.run(asyncio.Event(), until_close=True), clock()


@pytest.mark.virtual
async def test_a_day_is_recorded_from_before_the_open_to_the_close(tmp_path: Path) -> None:
    """It ends by itself, every second of the sessions is recorded, and the night behind it is nobody's loss."""
    outcome, now_ns = await record(tmp_path, "2026-10-05T00:30:00", calendar=Calendar())
    assert outcome.received > 0
    assert dt.datetime.fromtimestamp(now_ns / 1e9, IST).date() == MONDAY
    day = await asyncio.to_thread(days.look, tmp_path / "data", MONDAY, now_ns=now_ns)
    assert day.hours_known
    assert day.why == ()
    assert {part.segment: part.session_s for part in day.segments}["NSE_EQ"] == (6 * 60 + 30) * 60
    assert all(part.recorded_s == part.session_s for part in day.segments)
    told = list(events(tmp_path / "data" / "journal", KINDS))
    later = intervals(told, now_ns, now_ns + 3600 * 10**9)
    assert {one.state for one in later} == {State.CLOSED}


@pytest.mark.virtual
async def test_on_a_holiday_there_is_nothing_to_wait_for(tmp_path: Path) -> None:
    """It ends at once, and the day is complete."""
    calendar = Calendar(holidays=(Holiday(day=MONDAY, description="Diwali", closed=EXCHANGES),))
    _, now_ns = await record(tmp_path, "2026-10-05T04:00:00", calendar=calendar)
    assert dt.datetime.fromtimestamp(now_ns / 1e9, IST).hour < 12
    day = await asyncio.to_thread(days.look, tmp_path / "data", MONDAY, now_ns=now_ns)
    assert (day.complete, day.why, {part.session_s for part in day.segments}) == (True, (), {0})


@pytest.mark.virtual
async def test_a_special_session_on_a_sunday_is_one(tmp_path: Path) -> None:
    """It is waited for, recorded and judged by the hours that it has; derivatives have none."""
    outcome, now_ns = await record(tmp_path, "2026-11-08T09:00:00", script="muhurat")
    assert outcome.received > 0
    assert dt.datetime.fromtimestamp(now_ns / 1e9, IST).hour >= 19
    day = await asyncio.to_thread(days.look, tmp_path / "data", dt.date(2026, 11, 8), now_ns=now_ns)
    assert day.why == ()
    sessions_s = {part.segment: part.session_s for part in day.segments}
    assert (sessions_s["NSE_EQ"], sessions_s["NSE_FO"]) == (75 * 60, 0)


async def test_the_command_prints_the_verdict_and_exits_0(tmp_path: Path) -> None:
    """Whatever it says; the copy of the calendar is there for a day without the broker."""
    holidays = tuple(Holiday(day=number, closed=EXCHANGES) for number in (0, 1))  # the day may end meanwhile
    calendar = Calendar(weekend=frozenset(), holidays=holidays)
    async with Simulator(SimulatorSettings(port=0, instruments=5, calendar=calendar)) as simulator:
        environ = environ_for(simulator.url, tmp_path / "data")
        done = await asyncio.to_thread(call, "run", "--until", "close", environ=environ, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert " COMPLETE" in done.stdout
    assert "recorder.trading_over" in done.stderr
    assert "holidays" in json.loads((tmp_path / "data" / "calendar.json").read_text())
    again = await asyncio.to_thread(call, "run", "--until", "close", environ=environ, folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "calendar.unavailable" in again.stderr
