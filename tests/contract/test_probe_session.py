"""The probe against the simulator, and against a broker that ends the session."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import aiohttp
import pytest

from tickvault.brokers.upstox.api import UpstoxApi
from tickvault.brokers.upstox.probe import Pace, Sheet, run_probe, steps
from tickvault.errors import FeedUnavailable, TokenRefused
from tickvault.simulator import Simulator, SimulatorSettings
from tickvault.simulator.script import Close, Forbid, RejectToken, RotateToken

TOKEN = "very-secret-token"
PACE = Pace(answer_s=0.4, observe_s=1.5, idle_s=0.6, age_s=0.5)


async def probed(simulator: Simulator, *, sockets: bool = False, expired_key: str | None = None) -> Sheet:
    async with aiohttp.ClientSession() as session:
        return await run_probe(
            UpstoxApi(simulator.url, session),
            session,
            TOKEN,
            keys=simulator.instrument_keys[:6],
            pace=PACE,
            sockets=sockets,
            expired_key=expired_key,
            say=lambda text: None,
            rng=Random(1),
        )


def by_step(sheet: Sheet) -> dict[str, dict[str, Any]]:
    return {one.step: {"answer": one.answer, **one.facts} for one in sheet.findings}


async def test_what_the_simulator_does_is_found() -> None:
    """Every step has its finding, and each is what behaviours.py says of the simulator."""
    settings = SimulatorSettings(instruments=20, updates_per_second=50, ping_after_s=0.2)
    async with Simulator(settings) as simulator:
        sheet = await probed(simulator, sockets=True, expired_key="NSE_FO|888888888")
        port = str(simulator.port)
    found = by_step(sheet)
    assert list(found) == [step.name for step in steps(sockets=True)]
    assert found["open"]["deflate"] is False
    assert found["open"]["first_message"] == "frame"
    assert found["open"]["statuses"]["NSE_EQ"] == "NORMAL_OPEN"
    assert (found["subscribe"]["snapshot_frames"], found["subscribe"]["snapshot_entries"]) == (1, 6)
    assert found["ping"]["pong_ms"] is not None
    assert found["observe"]["live_frames"] > 2
    assert sum(one["entries"] for one in found["observe"]["fields"].values()) >= found["observe"]["live_frames"]
    assert found["observe"]["grid"]["fits"]["150"] >= 0
    assert (found["duplicates"]["keys_sent"], found["duplicates"]["snapshot_entries"]) == (12, 6)
    assert found["resubscribe"]["snapshot_frames"] == 1
    assert found["change_mode"]["modes"] == {"ltpc": 6}
    assert found["unsub"]["answer"].startswith("no answer")
    assert found["unlisted key"]["snapshot_entries"] == 0
    assert found["expired key"]["snapshot_entries"] == 0
    assert found["idle"]["pings"] >= 2
    assert found["close"]["end"] == "closed with 1000"
    assert found["used address"]["result"] == "HTTP 401"
    assert found["old address"]["result"] == "opens"
    assert found["old address"]["age_s"] >= PACE.age_s
    assert found["sockets"]["results"] == ["opens", "opens", "opens"]
    assert found["sockets"]["ends"] == [None, None, None]
    texts = sheet.json() + sheet.markdown()
    for secret in (TOKEN, "requestId", "code=", port, *simulator.instrument_keys):
        assert secret not in texts
    assert json.loads(sheet.json())["feed_host"] == "127.0.0.1"


async def test_without_leave_no_second_connection_is_opened() -> None:
    """The steps that could disturb another program are left out."""
    async with Simulator(SimulatorSettings(instruments=20, ping_after_s=0.2)) as simulator:
        found = by_step(await probed(simulator))
    assert "sockets" not in found
    assert "expired key" not in found


async def test_a_connection_that_ends_is_a_finding() -> None:
    """What needs it says so; the rest goes on."""
    settings = SimulatorSettings(instruments=20, script=(Close(at_s=0.8, code=1008),))
    async with Simulator(settings) as simulator:
        found = by_step(await probed(simulator))
    assert found["observe"]["answer"] == "not measured: the connection was closed with 1008"
    assert found["close"]["answer"] == "not measured: the connection was closed with 1008"
    assert found["used address"]["result"] == "HTTP 401"
    assert found["old address"]["result"] == "opens"


async def test_a_token_that_is_taken_back_is_a_finding() -> None:
    """The second address is not to be had; the first connection is measured to its end."""
    settings = SimulatorSettings(instruments=20, ping_after_s=0.2, script=(RotateToken(at_s=0.5),))
    async with Simulator(settings) as simulator:
        found = by_step(await probed(simulator, sockets=True))
    assert found["close"]["end"] == "closed with 1000"
    assert found["old address"]["answer"].startswith("not measured")
    assert found["sockets"]["answer"].startswith("not measured: the broker refuses the token")


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (RejectToken(at_s=0, seconds=60), TokenRefused),
        (Forbid(at_s=0, seconds=60), FeedUnavailable),
    ],
)
async def test_no_session_no_sheet(fault: Any, kind: type[Exception]) -> None:
    """A token that is refused, or a feed that does not open, is an error as with every other command."""
    async with Simulator(SimulatorSettings(instruments=20, script=(fault,))) as simulator:
        async with aiohttp.ClientSession() as session, session.get(f"{simulator.url}/token"):
            pass  # by its answer the script's first step has been taken
        with pytest.raises(kind) as caught:
            await probed(simulator)
    assert "very-secret" not in str(caught.value)
