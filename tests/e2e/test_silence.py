"""A real recorder and a broker that falls silent: found, replaced, told; what it does not serve is named."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import aiohttp
from programs import call, environ_for, recorder
from servers import wait_until

from tickvault import survey
from tickvault.simulator import Simulator, SimulatorSettings
from tickvault.simulator.script import Mute

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

STATES = ("silent", "fresh")


def logged(said: str, event: str) -> list[dict[str, Any]]:
    """Return the log lines of an event."""
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def watched(said: str, state: str) -> set[str]:
    """Return the segments that were told to be in a state."""
    return {segment for line in logged(said, "feed.watch") if line["state"] == state for segment in line["segments"]}


def is_fresh(said: str) -> bool:
    """Whether all that was silent is no more."""
    return watched(said, "fresh") >= watched(said, "silent") | {"NSE_EQ", "NSE_FO"}


async def until(probe: Callable[[], bool], what: str) -> None:
    """Wait, and let the simulator go on."""
    await asyncio.to_thread(wait_until, probe, what, 90)


async def metrics(address: str) -> str:
    """GET /metrics."""
    async with aiohttp.ClientSession() as session, session.get(f"{address}/metrics") as answer:
        return await answer.text()


async def test_mute_connection_is_replaced_and_wrong_keys_are_named(tmp_path: Path) -> None:
    """It answers pings all the while; two keys that it does not serve are told by status, metrics and check."""
    data = ("--data-dir", str(tmp_path / "data"))
    async with Simulator(SimulatorSettings(instruments=30)) as simulator:
        wrong = ["NSE_EQ|INE000000000", "NSE_FO|NIFTY18NOV2025PE25950"]
        environ = environ_for(simulator.url, tmp_path / "data", TICKVAULT_HTTP="127.0.0.1:0")
        del environ["TICKVAULT_INSTRUMENTS_URL"]
        environ["TICKVAULT_INSTRUMENTS"] = ",".join([*simulator.instrument_keys, *wrong])
        with recorder(tmp_path, environ) as process:

            def lines(event: str) -> list[dict[str, Any]]:
                return logged(process.said(), event)

            async def asked(*words: str) -> subprocess.CompletedProcess[str]:
                return await asyncio.to_thread(call, *words, environ=environ, folder=tmp_path)

            await until(lambda: len(lines("feed.keys_silent")) == 2, "both keys are told")
            told = json.loads((await asked("status", "--json", *data)).stdout)["feed"]
            assert told["keys"]["problems"] == {"empty": [wrong[1]], "never": [wrong[0]]}
            assert (told["keys"]["subscribed"], told["keys"]["delivering"]) == (32, 30)
            assert told["market"]["phases"]["NSE_EQ"] == "open"
            assert told["market"]["statuses"]["segment"]["NSE_EQ"] == "NORMAL_OPEN"

            shown = (await asked("status", *data)).stdout
            assert "30 of 32 deliver; 1 empty (NSE_FO|NIFTY18NOV2025PE25950); 1 never (NSE_EQ|INE000000000)" in shown
            page = await metrics(lines("status.serving")[0]["url"].rstrip("/"))
            assert 'tickvault_keys_silent{why="never"} 1.0' in page
            assert 'tickvault_market_phase{phase="open",segment="NSE_EQ"} 1.0' in page
            checked = await asked("check")
            assert checked.returncode == 1
            row = next(line for line in checked.stdout.splitlines() if "30 of 32 deliver" in line)
            assert "✘" in row
            assert "look up those that never came" in row

            simulator.play(Mute(at_s=0.0, conn=1, seconds=600.0))
            await until(lambda: bool(lines("feed.watch")), "the silence is found")
            await until(lambda: len(lines("feed.live")) == 2, "another connection serves")
            await until(lambda: is_fresh(process.said()), "data is fresh again")
            await simulator.drop_connections(code=1000)
            await until(lambda: len(lines("feed.live")) == 3, "a polite close is a failure too")
            assert await asyncio.to_thread(process.stop) == 0
        said = process.said()
    assert watched(said, "silent") == watched(said, "fresh")
    facts = [event.body for event in survey.events(tmp_path / "data" / "journal", ("watch",))]
    told = {state: {one for fact in facts if fact["state"] == state for one in fact["segments"]} for state in STATES}
    assert told == {"silent": watched(said, "silent"), "fresh": watched(said, "fresh")}
    assert facts[0]["since_ns"] < facts[-1]["since_ns"]
    sql = "SELECT subject FROM gaps WHERE scope = 'segment' AND reason = 'silent' AND closed_at IS NOT NULL"
    words = ("query", sql, "--format", "json", *data)
    gaps = (await asyncio.to_thread(call, *words, environ={}, folder=tmp_path)).stdout.splitlines()
    assert {json.loads(line)["subject"] for line in gaps} == watched(said, "silent")
    assert [(line["reason"], line["code"]) for line in logged(said, "feed.closed")] == [
        ("mute", 1000),
        ("closed", 1000),
        ("stopped", 1000),
    ]
    assert [line["why"] for line in logged(said, "feed.keys_silent")] == ["empty", "never"]
