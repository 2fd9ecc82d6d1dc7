"""The official SDK's own streamer against the simulator."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import pytest

from tickvault.simulator import Simulator, SimulatorSettings

# The SDK's address is fixed in its code, so `WebSocketApp` is replaced in that process by one that goes to ours; it
# follows the redirect, sends its requests and decodes with its own generated code.
STREAM = """
import json, os, sys, threading, warnings
warnings.simplefilter("ignore")
import websocket
real = websocket.WebSocketApp
def redirected(url, **options):
    assert url == "wss://api.upstox.com/v3/feed/market-data-feed", url
    return real(url.replace("wss://api.upstox.com", sys.argv[1].replace("http", "ws", 1)), **options)
websocket.WebSocketApp = redirected
import upstox_client
configuration = upstox_client.Configuration()
configuration.access_token = "sdk-token"
client = upstox_client.ApiClient(configuration)
streamer = upstox_client.MarketDataStreamerV3(client, json.loads(sys.argv[2]), sys.argv[3])
wanted, lock = {"market_info", None, "live_feed"}, threading.Lock()
def show(message):
    with lock:
        kind = message.get("type")
        if kind in wanted:
            wanted.discard(kind)
            print(json.dumps(message), flush=True)
        if not wanted:
            os._exit(0)
def fail(error):
    print("error:", error, file=sys.stderr, flush=True)
streamer.on("message", show)
streamer.on("error", fail)
streamer.auto_reconnect(False)
streamer.connect()
"""


async def stream(sim: Simulator, keys: list[str], mode: str) -> dict[str | None, dict[str, Any]]:
    """Return the SDK's first decoded message of each type."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STREAM, sim.url, json.dumps(keys), mode,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(60):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    messages = [json.loads(line) for line in out.decode().splitlines()]
    return {message.get("type"): message for message in messages}


@pytest.mark.parametrize("mode", ["ltpc", "option_greeks", "full", "full_d30"])
async def test_the_official_streamer_decodes_our_frames(mode: str) -> None:
    """Market info, a snapshot without a type on the wire, and live updates, in every mode."""
    async with Simulator(SimulatorSettings(instruments=60, updates_per_second=300.0)) as sim:
        keys = [sim.instrument_keys[0], sim.instrument_keys[3], sim.instrument_keys[-1]]
        messages = await stream(sim, keys, mode)
    info, snapshot, live = messages["market_info"], messages[None], messages["live_feed"]
    assert len(info["marketInfo"]["segmentStatus"]) == 11
    assert snapshot["feeds"].keys() == set(keys)
    assert live["feeds"].keys() <= set(keys)
    option, index = snapshot["feeds"][keys[2]], snapshot["feeds"][keys[0]]
    match mode:
        case "ltpc":
            assert option["ltpc"]["cp"] > 0
        case "option_greeks":
            assert option["firstLevelWithGreeks"]["optionGreeks"]["vega"] > 0
        case _:
            assert len(option["fullFeed"]["marketFF"]["marketLevel"]["bidAskQuote"]) == (
                30 if mode == "full_d30" else 5
            )
            assert index["fullFeed"]["indexFF"]["ltpc"]["ltp"] > 0
            assert snapshot["feeds"][keys[1]]["fullFeed"]["marketFF"]["optionGreeks"] == {}
