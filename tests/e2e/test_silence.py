"""A real recorder and a broker that falls silent: found, replaced, told; what it does not serve is named."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from programs import call, environ_for, recorder, simulator
from servers import wait_until

from tickvault import survey

if TYPE_CHECKING:
    from pathlib import Path

# Data comes back by itself after 20 s: a connection that is replaced before has been found mute within these.
pytestmark = pytest.mark.hurried
SCRIPT = """
[[steps]]
at_s = 12.0
do = "mute"
seconds = 20.0

[[steps]]
at_s = 40.0
do = "close"
code = 1000
"""


STATES = ("silent", "fresh")


def logged(said: str, event: str) -> list[dict[str, Any]]:
    """Return the log lines of an event."""
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def watched(said: str, state: str) -> set[str]:
    """Return the segments that were told to be in a state."""
    return {segment for line in logged(said, "feed.watch") if line["state"] == state for segment in line["segments"]}


async def metrics(address: str) -> str:
    """GET /metrics."""
    async with aiohttp.ClientSession() as session, session.get(f"{address}/metrics") as answer:
        return await answer.text()


async def test_mute_connection_is_replaced_and_wrong_keys_are_named(tmp_path: Path) -> None:
    """It answers pings all the while; two keys that it does not serve are told by status, metrics and check."""
    (tmp_path / "script.toml").write_text(SCRIPT)
    words = ("--script", "script.toml", "--instruments", "30", "--updates-per-second", "100")
    with simulator(tmp_path, *words) as (url, _):
        async with aiohttp.ClientSession() as session, session.get(f"{url}/instruments") as answer:
            listed = (await answer.json())["instruments"]
        wrong = ["NSE_EQ|INE000000000", "NSE_FO|NIFTY18NOV2025PE25950"]
        environ = environ_for(url, tmp_path / "data", TICKVAULT_HTTP="127.0.0.1:0")
        del environ["TICKVAULT_INSTRUMENTS_URL"]
        environ["TICKVAULT_INSTRUMENTS"] = ",".join([*listed, *wrong])
        with recorder(tmp_path, environ) as process:

            def feed() -> dict[str, Any]:
                done = call("status", "--json", "--data-dir", str(tmp_path / "data"), environ={}, folder=tmp_path)
                return (json.loads(done.stdout)["feed"] or {}) if done.returncode == 0 else {}

            wait_until(lambda: len(logged(process.said(), "feed.keys_silent")) == 2, "both keys are told", 30)
            told = feed()
            assert told["keys"]["problems"] == {"empty": [wrong[1]], "never": [wrong[0]]}
            assert (told["keys"]["subscribed"], told["keys"]["delivering"]) == (32, 30)
            assert told["market"]["phases"]["NSE_EQ"] == "open"
            assert told["market"]["statuses"]["segment"]["NSE_EQ"] == "NORMAL_OPEN"

            shown = call("status", "--data-dir", str(tmp_path / "data"), environ={}, folder=tmp_path).stdout
            assert "30 of 32 deliver; 1 empty (NSE_FO|NIFTY18NOV2025PE25950); 1 never (NSE_EQ|INE000000000)" in shown
            page = await metrics(logged(process.said(), "status.serving")[0]["url"].rstrip("/"))
            assert 'tickvault_keys_silent{why="never"} 1.0' in page
            assert 'tickvault_market_phase{phase="open",segment="NSE_EQ"} 1.0' in page
            checked = call("check", environ=environ, folder=tmp_path)
            assert checked.returncode == 1
            row = next(line for line in checked.stdout.splitlines() if "30 of 32 deliver" in line)
            assert "✘" in row
            assert "look up those that never came" in row

            wait_until(lambda: logged(process.said(), "feed.watch"), "the silence is found", 60)
            wait_until(lambda: len(logged(process.said(), "feed.live")) == 2, "another connection serves", 30)
            wait_until(lambda: watched(process.said(), "fresh") >= {"NSE_EQ", "NSE_FO"}, "data is fresh again", 30)
            wait_until(lambda: len(logged(process.said(), "feed.live")) == 3, "a polite close is a failure too", 30)
            assert process.stop() == 0
        said = process.said()
    assert watched(said, "silent") == watched(said, "fresh")
    facts = [event.body for event in survey.events(tmp_path / "data" / "journal", ("watch",))]
    told = {state: {one for fact in facts if fact["state"] == state for one in fact["segments"]} for state in STATES}
    assert told == {"silent": watched(said, "silent"), "fresh": watched(said, "fresh")}
    assert facts[0]["since_ns"] < facts[-1]["since_ns"]
    sql = "SELECT subject FROM gaps WHERE scope = 'segment' AND reason = 'silent' AND closed_at IS NOT NULL"
    words = ("query", sql, "--format", "json", "--data-dir", str(tmp_path / "data"))
    gaps = call(*words, environ={}, folder=tmp_path).stdout.splitlines()
    assert {json.loads(line)["subject"] for line in gaps} == watched(said, "silent")
    assert [(line["reason"], line["code"]) for line in logged(said, "feed.closed")] == [
        ("mute", 1000),
        ("closed", 1000),
        ("stopped", 1000),
    ]
    assert [line["why"] for line in logged(said, "feed.keys_silent")] == ["empty", "never"]
