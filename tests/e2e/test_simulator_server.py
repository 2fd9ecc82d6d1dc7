"""The simulator as its clients see it, over loopback."""

from __future__ import annotations

import asyncio
import base64
import gzip
import itertools
import json
import socket
import threading
import time
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from simulated import AUTHORIZE, DEADLINE_S, Client, address, initial, live

from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.errors import ConfigurationError, Refused
from tickvault.simulator import Simulator, SimulatorSettings, framelog, serve
from tickvault.simulator.script import (
    Auction,
    Close,
    Deaf,
    Forbid,
    Garbage,
    Halt,
    MarketStatus,
    Mute,
    Raw,
    Refuse,
    RejectToken,
    Reset,
    RotateToken,
    Slow,
    Stall,
    Step,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

BEARER = {"Authorization": "Bearer token"}
DIRECT = "/v3/feed/market-data-feed"


@asynccontextmanager
async def simulating(**settings: Any) -> AsyncIterator[tuple[Simulator, aiohttp.ClientSession]]:
    settings.setdefault("updates_per_second", 200.0)
    async with Simulator(SimulatorSettings(**settings)) as sim, aiohttp.ClientSession() as http:
        yield sim, http


@asynccontextmanager
async def connected(**settings: Any) -> AsyncIterator[tuple[Simulator, Client]]:
    async with simulating(**settings) as (sim, http), http.ws_connect(await address(sim, http), max_msg_size=0) as ws:
        yield sim, Client(ws)


async def status(http: aiohttp.ClientSession, url: str, **options: Any) -> int:
    async with http.get(url, allow_redirects=False, **options) as response:
        return response.status


async def eventually(check: Callable[[], Any]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not check():
            await asyncio.sleep(0.01)


async def test_authorize_gives_an_address_in_both_casings() -> None:
    """Both fields hold the same single-use address."""
    async with simulating() as (sim, http), http.get(sim.url + AUTHORIZE, headers=BEARER) as response:
        body = await response.json()
    data = body["data"]
    assert body["status"] == "success"
    assert data["authorized_redirect_uri"] == data["authorizedRedirectUri"]
    assert data["authorized_redirect_uri"].startswith(f"ws://127.0.0.1:{sim.port}/market-data-feeder/v3/")
    assert "requestId=" in data["authorized_redirect_uri"]
    assert "code=" in data["authorized_redirect_uri"]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer "}, {"Authorization": "Bearer wrong"}])
@pytest.mark.parametrize("path", [AUTHORIZE, DIRECT])
async def test_without_a_good_token_401_in_the_brokers_envelope(path: str, headers: dict[str, str]) -> None:
    """UDAPI100050, every field in both casings, no data."""
    async with simulating(tokens=frozenset({"right"})) as (sim, http), http.get(sim.url + path, headers=headers) as r:
        body = await r.json()
    assert r.status == 401
    (error,) = body["errors"]
    assert body.keys() == {"status", "errors"}
    assert error["errorCode"] == error["error_code"] == "UDAPI100050"
    assert error["message"]
    assert {"propertyPath", "property_path", "invalidValue", "invalid_value"} <= set(error)


async def test_an_address_is_good_for_one_handshake() -> None:
    """The second use is refused, and so is an invented address."""
    async with simulating() as (sim, http):
        uri = await address(sim, http)
        async with http.ws_connect(uri):
            pass
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await http.ws_connect(uri)
        assert refused.value.status == 401
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await http.ws_connect(uri.partition("?")[0])


async def test_the_direct_handshake_is_redirected() -> None:
    """302 to an address that works."""
    async with simulating() as (sim, http):
        async with http.get(sim.url + DIRECT, headers=BEARER, allow_redirects=False) as response:
            assert response.status == 302
        async with http.ws_connect(response.headers["Location"]) as ws:
            assert (await Client(ws).frame()).type == pb.Type.market_info


async def test_lists_and_token() -> None:
    """The key list, the token, and the master list with its ETag."""
    async with simulating(instruments=30) as (sim, http):
        async with http.get(sim.url + "/instruments") as response:
            assert (await response.json()) == {"instruments": list(sim.instrument_keys)}
        async with http.get(sim.url + "/token") as response:
            assert (await response.json()) == {"access_token": "simulator-token"}
        master = sim.url + "/market-quote/instruments/exchange/complete.json.gz"
        async with http.get(master) as response:
            rows = json.loads(gzip.decompress(await response.read()))
            etag = response.headers["ETag"]
        assert [row["instrument_key"] for row in rows] == list(sim.instrument_keys)
        assert await status(http, master, headers={"If-None-Match": etag}) == 304
        assert await status(http, master, headers={"If-None-Match": '"other"'}) == 200


async def test_market_info_comes_first_and_unasked() -> None:
    """Eleven segments, before any subscription."""
    async with connected() as (_, client):
        first = await client.frame()
    assert first.type == pb.Type.market_info
    assert len(first.marketInfo.segmentStatus) == 11
    assert abs(first.currentTs - time.time() * 1000) < 5000


async def test_one_snapshot_for_each_sub_then_conflated_updates() -> None:
    """Each sub message has its own initial_feed with its keys, then live frames carry several instruments."""
    async with connected(instruments=60) as (sim, client):
        keys = sim.instrument_keys
        await client.request("sub", keys[:20], "full")
        await client.request("sub", keys[20:50], "full")
        await client.request("sub", ["NSE_EQ|NONE"], "full")
        frames = [await client.frame() for _ in range(12)]
    snapshots = [frame for frame in frames if initial(frame)]
    assert [set(frame.feeds) for frame in snapshots] == [set(keys[:20]), set(keys[20:50])]
    assert b"\x08\x00" not in client.received[1][:2]
    lives = [frame for frame in frames if live(frame)]
    assert max(len(frame.feeds) for frame in lives) > 5
    assert set().union(*(frame.feeds for frame in lives)) <= set(keys[:50])
    assert [f.currentTs for f in frames] == sorted(f.currentTs for f in frames)


async def test_modes_on_the_wire() -> None:
    """Each mode is answered in its own branch; change_mode and a default mode too."""
    async with connected(instruments=100) as (sim, client):
        option = sim.instrument_keys[-1]
        for mode, branch in (
            ("full", "fullFeed"),
            ("ltpc", "ltpc"),
            ("option_greeks", "firstLevelWithGreeks"),
            ("full_d30", "fullFeed"),
        ):
            await client.request("sub" if mode == "full" else "change_mode", [option], mode)
            feed = (await client.until(initial)).feeds[option]
            assert feed.WhichOneof("FeedUnion") == branch
        assert len(feed.fullFeed.marketFF.marketLevel.bidAskQuote) == 30
        await client.request("sub", ["NSE_INDEX|Nifty 50"])
        assert (await client.until(initial)).feeds["NSE_INDEX|Nifty 50"].WhichOneof("FeedUnion") == "ltpc"


async def test_text_and_nonsense_are_ignored_and_the_connection_stays() -> None:
    """Only the binary request is answered."""
    async with connected() as (sim, client):
        await client.request("sub", sim.instrument_keys[:1], "full", text=True)
        await client.ws.send_bytes(b"\xff{")
        await client.request("sub", sim.instrument_keys[1:2], "full")
        snapshot = await client.until(initial)
    assert list(snapshot.feeds) == [sim.instrument_keys[1]]
    assert [pb.FeedResponse.FromString(p).type for p in client.received] == [pb.Type.market_info, pb.Type.initial_feed]


async def test_unsub_ends_updates() -> None:
    """After unsub and one round trip no frame has the key."""
    async with connected() as (sim, client):
        gone, kept = sim.instrument_keys[3:5]
        await client.request("sub", [gone, kept], "full")
        await client.request("unsub", [gone])
        await client.request("sub", [kept], "full")
        await client.until(initial)
        await client.until(initial)
        for _ in range(5):
            assert set((await client.frame()).feeds) == {kept}


async def test_a_wrong_key_gets_an_empty_entry() -> None:
    """In the snapshot, beside the good one."""
    wrong = "NSE_FO|NIFTY18NOV2025PE25950"
    async with connected() as (sim, client):
        await client.request("sub", [wrong, sim.instrument_keys[0]], "full")
        snapshot = await client.until(initial)
    full = snapshot.feeds[wrong].fullFeed.marketFF
    assert full.HasField("ltpc")
    assert full.ltpc == pb.LTPC()
    assert snapshot.feeds[sim.instrument_keys[0]].fullFeed.indexFF.ltpc.ltp > 0


@pytest.mark.parametrize(("instruments", "rate"), [(100, 400.0), (10, 1000.0)])
async def test_the_rate_is_what_was_asked_whatever_the_number(instruments: int, rate: float) -> None:
    """Over two seconds, within a fifth, and the counters agree with what arrived."""
    async with connected(instruments=instruments, updates_per_second=rate) as (sim, client):
        await client.request("sub", sim.instrument_keys, "full")
        await client.until(live)
        start_s, updates = time.monotonic(), 0
        while time.monotonic() < start_s + 2.0:
            updates += len((await client.frame()).feeds)
        measured = updates / (time.monotonic() - start_s)
        assert measured == pytest.approx(rate, rel=0.2)
        assert sim.frames_sent >= len(client.received)
        assert sim.updates_sent >= updates


async def test_two_connections_get_each_its_own() -> None:
    """Connections do not see one another's keys."""
    async with (
        simulating() as (sim, http),
        http.ws_connect(await address(sim, http)) as one,
        http.ws_connect(await address(sim, http)) as two,
    ):
        clients = [(Client(one), sim.instrument_keys[:5]), (Client(two), sim.instrument_keys[5:10])]
        for client, keys in clients:
            await client.request("sub", keys, "full")
        for client, keys in clients:
            await client.until(initial)
            assert set((await client.until(live)).feeds) <= set(keys)


async def test_a_client_that_does_not_read_holds_up_nobody() -> None:
    """Others keep their rate; it can be dropped; and the end does not wait for it."""
    async with simulating(updates_per_second=20_000.0) as (sim, http):
        stuck, quick = [Client(await http.ws_connect(await address(sim, http), max_msg_size=0)) for _ in range(2)]
        await stuck.request("sub", sim.instrument_keys, "full_d30")
        await quick.request("sub", sim.instrument_keys[:5], "ltpc")
        await quick.until(initial)
        for _ in range(100):
            await quick.until(live)
        await quick.ws.close()
        async with asyncio.timeout(DEADLINE_S):
            await sim.drop_connections()
        again = Client(await http.ws_connect(await address(sim, http), max_msg_size=0))
        await again.request("sub", sim.instrument_keys[50:], "full_d30")
        sent = sim.frames_sent
        await eventually(lambda: sim.frames_sent > sent + 3)
        ending_s = time.monotonic()
    assert time.monotonic() - ending_s < 5


async def test_an_idle_connection_is_pinged() -> None:
    """Without data to send the server sends ping control frames."""
    async with (
        asyncio.timeout(DEADLINE_S),
        simulating(updates_per_second=0.0, ping_after_s=0.05) as (sim, http),
        http.ws_connect(await address(sim, http), autoping=False) as ws,
    ):
        while (await ws.receive()).type is not aiohttp.WSMsgType.PING:
            pass


async def test_the_log_has_every_frame_received(tmp_path: Path) -> None:
    """In order, by connection, also after a reset in the middle; and it is appended to."""
    path = tmp_path / "frames.jsonl"
    path.write_text("")
    async with simulating(log=path, updates_per_second=2000.0) as (sim, http):
        clients = []
        for _ in range(2):
            client = Client(await http.ws_connect(await address(sim, http), max_msg_size=0))
            clients.append(client)
            await client.request("sub", sim.instrument_keys, "full")
            for _ in range(20):
                await client.frame()
        await sim.drop_connections()
        for client in clients:
            await client.end()
    logged: dict[int, list[bytes]] = {1: [], 2: []}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        assert entry.keys() == {"sent_ns", "conn", "payload"}
        logged[entry["conn"]].append(base64.b64decode(entry["payload"]))
    for number, client in enumerate(clients, 1):
        assert logged[number][: len(client.received)] == client.received


async def test_what_is_logged_while_it_closes_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that the log had and the close overtook was missing from what a recorder is held against."""
    path = tmp_path / "frames.jsonl"
    writing, goes_on = threading.Event(), threading.Event()
    write = framelog._write_all

    def slowly(file: int, line: bytes) -> None:
        write(file, line)
        if armed:
            writing.set()
            assert goes_on.wait(DEADLINE_S)

    armed = False
    monkeypatch.setattr(framelog, "_write_all", slowly)
    async with simulating(log=path) as (sim, http):
        client = Client(await http.ws_connect(await address(sim, http), max_msg_size=0))
        await client.request("sub", sim.instrument_keys, "full")
        await client.frame()
        armed = True
        await eventually(writing.is_set)
        async with asyncio.TaskGroup() as tasks:
            ending = tasks.create_task(client.end())
            tasks.create_task(sim.drop_connections(code=1001))
            for _ in range(10):  # turns of the loop: enough for a close to be sent
                await asyncio.sleep(0)
            goes_on.set()
        assert ending.result().type is aiohttp.WSMsgType.CLOSE
    logged = [base64.b64decode(json.loads(line)["payload"]) for line in path.read_text().splitlines()]
    assert client.received == logged


async def test_hand_made_frames_are_sent_and_logged(tmp_path: Path) -> None:
    """To every connection, unaltered."""
    async with connected(log=tmp_path / "log") as (sim, client):
        await client.frame()
        sim.push(b"\x18\x2a")
        assert (await client.frame()).currentTs == 42
    assert base64.b64encode(b"\x18\x2a").decode() in (tmp_path / "log").read_text()


async def test_drop_connections_resets_or_closes() -> None:
    """A TCP reset without a code, a close frame with one; then nobody is connected."""
    for code, ended in ((None, aiohttp.WSMsgType.CLOSED), (1012, aiohttp.WSMsgType.CLOSE)):
        async with connected() as (sim, client):
            await client.frame()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(sim.drop_connections(code))
                message = await client.end()
            assert message.type in {ended, aiohttp.WSMsgType.ERROR}
            assert client.ws.close_code == (1012 if code else 1006)


async def test_stopping_closes_connections_with_1001() -> None:
    """A client sees an orderly end."""
    async with aiohttp.ClientSession() as http:
        async with Simulator(SimulatorSettings()) as sim:
            client = Client(await http.ws_connect(await address(sim, http)))
            await client.frame()
            async with asyncio.TaskGroup() as tasks:
                ended = tasks.create_task(client.end())
                tasks.create_task(sim.drop_connections(1001))
        assert ended.result().data == 1001


async def test_an_error_in_the_body_comes_out_as_it_is() -> None:
    """Not wrapped in a group."""
    with pytest.raises(LookupError):
        async with Simulator(SimulatorSettings()):
            raise LookupError


async def test_a_port_in_use_is_refused_with_the_next_step() -> None:
    """The message names the address and what to do."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Refused, match=f"127.0.0.1:{port} is in use; .* --port"):
            async with Simulator(SimulatorSettings(port=port)):
                pass


async def test_files_that_cannot_be_used_are_configuration_errors(tmp_path: Path) -> None:
    """A log in a folder that is not there, a script that is not there."""
    with pytest.raises(ConfigurationError, match="--log"):
        async with Simulator(SimulatorSettings(log=tmp_path / "no" / "log")):
            pass
    with pytest.raises(ConfigurationError, match="--script"):
        async with Simulator(SimulatorSettings(script=tmp_path / "none.toml")):
            pass


async def test_serve_runs_until_told_to_stop() -> None:
    """It reports readiness once, and returns when the event is set."""
    ready: list[str] = []
    stopping = asyncio.Event()
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(serve(SimulatorSettings(), stopping, lambda sim: ready.append(sim.url)))
        await eventually(lambda: ready)
        stopping.set()
    assert ready[0].startswith("http://127.0.0.1:")


# What follows is each scripted fault as a client sees it.


async def scripted(client: Client, sim: Simulator, first: int = 0, last: int = 20) -> None:
    await client.request("sub", sim.instrument_keys[first:last], "full")
    await client.until(initial)


@pytest.mark.parametrize(("step", "code"), [(Close(at_s=0.3, code=1000), 1000), (Reset(at_s=0.3), 1006)])
async def test_close_and_reset(step: Step, code: int) -> None:
    """The socket ends with the code; a reset has none."""
    async with connected(script=(step,)) as (sim, client):
        await scripted(client, sim)
        await client.end()
        assert client.ws.close_code == code


async def test_a_script_is_read_from_a_file(tmp_path: Path) -> None:
    """As the command line gives it."""
    path = tmp_path / "faults.toml"
    path.write_text('[[steps]]\nat_s = 0.2\ndo = "close"\ncode = 1013\n')
    async with connected(script=path) as (_sim, client):
        await client.end()
        assert client.ws.close_code == 1013


async def test_garbage_and_raw_frames() -> None:
    """Bytes that do not decode, and bytes as given."""
    raw = base64.b64encode(pb.FeedResponse(currentTs=7).SerializeToString()).decode()
    async with connected(script=(Garbage(at_s=0.2, size=50), Raw(at_s=0.3, payload=raw))) as (_, client):
        await client.frame()
        broken = await client.payload()
        assert (await client.frame()).currentTs == 7
    assert len(broken) == 50
    with pytest.raises(Exception, match="pars"):
        pb.FeedResponse.FromString(broken)


async def test_mute_holds_data_back_and_still_answers_pings() -> None:
    """Nothing for its seconds, then everything that changed, once."""
    async with connected(script=(Mute(at_s=0.5, seconds=1.0),), updates_per_second=1000.0) as (sim, client):
        await scripted(client, sim)
        arrivals: list[float] = []
        async with asyncio.timeout(DEADLINE_S):
            while not arrivals or arrivals[-1] - arrivals[0] < 1.8:
                await client.frame()
                arrivals.append(time.monotonic())
                await client.ws.ping()
    assert max(b - a for a, b in itertools.pairwise(arrivals)) > 0.7


async def test_a_stalled_server_answers_nothing() -> None:
    """Not even pings, until it is over."""
    pongs: list[float] = []
    async with (
        asyncio.timeout(DEADLINE_S),
        simulating(script=(Stall(at_s=0.3, seconds=1.0),), updates_per_second=1000.0) as (sim, http),
        http.ws_connect(await address(sim, http), autoping=False) as ws,
    ):
        while len(pongs) < 2 or pongs[-1] - pongs[0] < 1.6:
            await ws.ping()
            while (message := await ws.receive()).type is not aiohttp.WSMsgType.PONG:
                assert message.type is not aiohttp.WSMsgType.CLOSED
            pongs.append(time.monotonic())
            await asyncio.sleep(0.02)
    assert max(b - a for a, b in itertools.pairwise(pongs)) > 0.7


async def test_a_deaf_server_ignores_requests() -> None:
    """A subscription sent meanwhile is lost; one sent later is not."""
    async with connected(script=(Deaf(at_s=0.0, seconds=0.5),), updates_per_second=0.0) as (sim, client):

        async def ask() -> None:
            for key in sim.instrument_keys:
                await client.request("sub", [key], "full")
                await asyncio.sleep(0.05)

        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(ask())
            (first,) = (await client.until(initial)).feeds
            asking.cancel()
    assert first not in sim.instrument_keys[:2]


async def test_slow_thins_the_stream() -> None:
    """With a large factor next to nothing comes."""
    async with connected(script=(Slow(at_s=0.0, seconds=60, factor=50),), updates_per_second=1000.0) as (sim, client):
        await scripted(client, sim)
        sent, until_s = sim.updates_sent, time.monotonic() + 1.0
        await eventually(lambda: time.monotonic() > until_s)
        assert sim.updates_sent - sent < 200


async def test_halt_stops_a_segment_only() -> None:
    """Equities stand still, options go on."""
    async with connected(script=(Halt(at_s=0.0, seconds=60, segment="NSE_EQ"),)) as (sim, client):
        await scripted(client, sim, 0, 100)
        changed: Counter[str] = Counter()
        for _ in range(5):
            changed.update(key.partition("|")[0] for key in (await client.until(live)).feeds)
    assert changed["NSE_EQ"] == 0
    assert changed["NSE_FO"] > 0


async def test_an_auction_shows_indicative_prices() -> None:
    """Equities in live frames carry iep."""
    async with connected(script=(Auction(at_s=0.0, seconds=60),)) as (sim, client):
        await scripted(client, sim)
        key = "NSE_EQ|INE531E01026"
        frame = await client.until(lambda f: live(f) and key in f.feeds)
    assert frame.feeds[key].fullFeed.marketFF.ltpc.iep.value > 0


async def test_a_status_change_is_told_and_remembered() -> None:
    """To those connected, and first thing to those who come later; auction statuses as text."""
    steps = (
        MarketStatus(at_s=0.2, segment="NSE_EQ", status="CLOSING_END"),
        MarketStatus(at_s=0.2, segment="NSE_EQ", status="CAS_LM_START", scope="cas"),
        MarketStatus(at_s=0.2, segment="NSE_EQ", status="PRE_OPEN_M_END", scope="pre_open"),
    )
    async with simulating(script=steps) as (sim, http):
        async with http.ws_connect(await address(sim, http)) as ws:
            told = await Client(ws).until(lambda f: len(f.marketInfo.preOpenSessionStatus) > 0)
        async with http.ws_connect(await address(sim, http)) as ws:
            later = await Client(ws).frame()
    assert told.marketInfo.segmentStatus["NSE_EQ"] == pb.MarketStatus.CLOSING_END
    assert told.marketInfo.casMarketStatus["NSE_EQ"].status == "CAS_LM_START"
    assert told.marketInfo.preOpenSessionStatus["NSE_EQ"].updatedTime > 0
    assert later.marketInfo == told.marketInfo


async def test_token_and_handshake_faults() -> None:
    """401, 503 and 429 on authorize, 403 on the handshake; each ends by itself."""
    steps = (
        RejectToken(at_s=0.0, seconds=0.5),
        Refuse(at_s=0.5, seconds=0.5),
        Refuse(at_s=1.0, seconds=0.3, status=429),
    )
    seen: list[int] = []
    async with simulating(script=steps) as (sim, http):
        async with asyncio.timeout(DEADLINE_S):
            while 200 not in seen or seen[-1] != 200 or len(set(seen)) < 4:
                seen.append(await status(http, sim.url + AUTHORIZE, headers=BEARER))
                await asyncio.sleep(0.02)
    assert [s for s in dict.fromkeys(seen) if s != 200] == [401, 503, 429]

    async with simulating(script=(Forbid(at_s=0.0, seconds=60),)) as (sim, http):
        uri = await address(sim, http)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await http.ws_connect(uri)
        assert refused.value.status == 403


async def test_a_rotated_token_replaces_the_old_one() -> None:
    """The old one is refused, the one that /token gives from now on is taken."""
    async with simulating(script=(RotateToken(at_s=0.0),)) as (sim, http):
        async with asyncio.timeout(DEADLINE_S):
            while await status(http, sim.url + AUTHORIZE, headers=BEARER) != 401:
                await asyncio.sleep(0.01)
        async with http.get(sim.url + "/token") as response:
            token = (await response.json())["access_token"]
        assert token == "simulator-token-2"
        assert await address(sim, http, token)
