"""An open market in virtual time: a brown-out is told within two minutes, a lull at noon is no alarm."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from typing import TYPE_CHECKING

import pytest
from programs import environ_for
from virtualtime import VirtualLoop

from tickvault.pipeline import Recorder
from tickvault.settings import load_settings
from tickvault.simulator import Simulator, SimulatorSettings
from tickvault.survey import events

if TYPE_CHECKING:
    from pathlib import Path

IST = dt.timezone(dt.timedelta(hours=5, minutes=30))
MONDAY = dt.date(2026, 10, 5)
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


@pytest.mark.virtual
@pytest.mark.timeout(300)
async def test_a_brown_out_is_told_and_a_lull_is_not(tmp_path: Path) -> None:
    """One new connection is tried and no more; the ledger has when it began and ended."""
    script, data = tmp_path / "noon.toml", tmp_path / "data"
    script.write_text(SCRIPT)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.set_wall(ist_ns("11:28"))
    async with Simulator(SimulatorSettings(instruments=40, updates_per_second=40.0, script=script)) as simulator:
        keys = [key for key in simulator.instrument_keys if key.startswith("NSE_EQ")]
        environ = {**environ_for(simulator.url, data), "TICKVAULT_INSTRUMENTS": ",".join(keys)}
        del environ["TICKVAULT_INSTRUMENTS_URL"]
        recorder, stopping = Recorder(load_settings(environ=environ, env_file=None)), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(recorder.run(stopping))
            await asyncio.sleep((ist_ns(END) - time.time_ns()) / 1e9)
            stopping.set()
    told = [
        (event.body["state"], (event.at_ns - ist_ns(BROWN)) / 1e9) for event in events(data / "journal", ("watch",))
    ]
    assert [state for state, _ in told] == ["brown_out", "usual"], told
    assert 0 < told[0][1] <= 120
    assert BROWN_S < told[1][1] < BROWN_S + 120
    closed = [event.body["reason"] for event in events(data / "journal", ("conn",)) if event.body["state"] == "closed"]
    assert closed == ["brown_out", "stopped"]
