"""Every script that comes with the simulator, seen on the wire by a plain client."""

from __future__ import annotations

import asyncio
import datetime as dt
import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from google.protobuf.message import DecodeError
from programs import call
from simulated import AUTHORIZE, DEADLINE_S, Client, address, feed, initial, live

from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.simulator import Simulator, SimulatorSettings, script_names
from tickvault.simulator.calendar import ist_date
from tickvault.simulator.strange import UNKNOWN_ENUM, UNKNOWN_FIELD

MASTER = "/market-quote/instruments/exchange/complete.json.gz"
COVERED: set[str] = set()


def plays(*names: str) -> pytest.MarkDecorator:
    """Run a test with each of these scripts."""
    COVERED.update(names)
    return pytest.mark.parametrize("name", names)


@asynccontextmanager
async def playing(name: str, **settings: Any) -> AsyncIterator[tuple[Simulator, aiohttp.ClientSession]]:
    settings.setdefault("updates_per_second", 300.0)
    async with Simulator(SimulatorSettings(script=name, **settings)) as sim, aiohttp.ClientSession() as http:
        yield sim, http


async def quiet(client: Client, seconds: float = 0.7) -> bool:
    """Say whether no data comes for some time, before the deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                message = await asyncio.wait_for(client.ws.receive(), seconds)
            except TimeoutError:
                return True
            if message.type not in {aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.PING, aiohttp.WSMsgType.PONG}:
                return False
            if message.type is aiohttp.WSMsgType.BINARY:
                client.received.append(message.data)


async def wait_for(client: Client, kind: aiohttp.WSMsgType) -> aiohttp.WSMessage:
    async with asyncio.timeout(DEADLINE_S):
        while (message := await client.ws.receive()).type is not kind:
            assert message.type is aiohttp.WSMsgType.BINARY, message
    return message


async def got(http: aiohttp.ClientSession, url: str, token: str = "token", **headers: str) -> tuple[int, bytes, Any]:
    async with http.get(url, headers={"Authorization": f"Bearer {token}", **headers}) as response:
        return response.status, await response.read(), response.headers


async def until_status(http: aiohttp.ClientSession, url: str, wanted: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while (await got(http, url))[0] != wanted:
            await asyncio.sleep(0.05)


# How connections end


@plays("close-1000", "close-1008", "close-1011")
async def test_the_server_closes(name: str) -> None:
    """With the script's code."""
    async with playing(name, speed=10.0) as (sim, http), feed(sim, http) as client:
        await client.end()
        assert client.ws.close_code == int(name.removeprefix("close-"))


@plays("close-1006", "reset")
async def test_a_connection_ends_without_a_close_frame(name: str) -> None:
    """Which a client calls 1006."""
    async with playing(name, speed=10.0) as (sim, http), feed(sim, http) as client:
        await client.end()
        assert client.ws.close_code == 1006


@plays("close-again-and-again", "close-every-minute")
async def test_the_server_closes_again_and_again(name: str) -> None:
    """Each connection, however often one comes back."""
    async with playing(name, speed=20.0 if name.endswith("again") else 200.0) as (sim, http):
        for _ in range(3):
            async with feed(sim, http) as client:
                await client.end()
                assert client.ws.close_code == 1000


# Silence


@plays("mute")
async def test_a_mute_socket_answers_pings(name: str) -> None:
    """Data stops, pongs come."""
    async with playing(name, speed=5.0) as (sim, http), feed(sim, http, autoping=False) as client:
        await client.request("sub", sim.instrument_keys[:20], "full")
        await client.until(live)
        assert await quiet(client)
        await client.ws.ping()
        await wait_for(client, aiohttp.WSMsgType.PONG)


@plays("mute-one-socket")
async def test_one_socket_of_two_is_mute(name: str) -> None:
    """The other one goes on."""
    async with playing(name, speed=5.0) as (sim, http), feed(sim, http) as first, feed(sim, http) as second:
        for client in (first, second):
            await client.request("sub", sim.instrument_keys[:20], "full")
            await client.until(live)
        async with asyncio.timeout(DEADLINE_S):
            while not await silent_beside(first, second):
                pass


async def silent_beside(first: Client, second: Client) -> bool:
    """Say whether `second` got five frames in which `first` got none."""
    waiting = asyncio.ensure_future(first.ws.receive())
    for _ in range(5):
        await second.frame()
    if waiting.done():
        return False
    waiting.cancel()
    return True


@plays("deaf")
async def test_a_deaf_broker_sends_market_info_only(name: str) -> None:
    """No snapshot, no error, no close."""
    async with playing(name) as (sim, http), feed(sim, http) as client:
        await client.request("sub", sim.instrument_keys[:20], "full")
        assert await quiet(client)
        assert [pb.FeedResponse.FromString(p).type for p in client.received] == [pb.market_info]


@plays("stall")
async def test_a_stalled_connection_answers_nothing(name: str) -> None:
    """TCP is open; neither data nor pongs nor pings."""
    async with (
        playing(name, speed=5.0, ping_after_s=0.2) as (sim, http),
        feed(sim, http, autoping=False) as client,
    ):
        await client.request("sub", sim.instrument_keys[:20], "full")
        await client.until(live)
        await quiet(client)
        await client.ws.ping()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.ws.receive(), 1.0)
        assert not client.ws.closed


@plays("brown-out")
async def test_in_a_brown_out_a_few_updates_come(name: str) -> None:
    """Far fewer than before, and no end."""
    async with playing(name, speed=2.0) as (sim, http), feed(sim, http) as client:
        await client.request("sub", sim.instrument_keys, "full")
        reading = asyncio.ensure_future(client.end())
        await asyncio.sleep(2.0)
        before = sim.updates_sent
        await asyncio.sleep(2.0)
        assert sim.updates_sent - before < 0.3 * 300 * 2.0
        assert not reading.done()
        reading.cancel()


@plays("quiet-market")
async def test_a_quiet_market_has_pings(name: str) -> None:
    """No data, and the server pings."""
    async with (
        playing(name, speed=5.0, ping_after_s=0.3) as (sim, http),
        feed(sim, http, autoping=False) as client,
    ):
        await client.request("sub", sim.instrument_keys[:20], "full")
        await wait_for(client, aiohttp.WSMsgType.PING)
        await wait_for(client, aiohttp.WSMsgType.PING)


@plays("stale-snapshot")
async def test_a_snapshot_after_a_reset_may_be_stale(name: str) -> None:
    """Its last trades are from before the reset, and updates come again."""
    async with playing(name) as (sim, http):
        async with feed(sim, http) as client:
            await client.request("sub", sim.instrument_keys, "full")
            await client.end()
        async with feed(sim, http) as client:
            await client.request("sub", sim.instrument_keys, "full")
            snapshot = await client.until(initial)
            await client.until(live)
    ltt = max(f.fullFeed.marketFF.ltpc.ltt or f.fullFeed.indexFF.ltpc.ltt for f in snapshot.feeds.values())
    assert ltt < snapshot.currentTs - 1_000


@plays("unseen-keys")
async def test_some_keys_are_never_seen(name: str) -> None:
    """Neither in the snapshot nor later."""
    async with playing(name, instruments=30) as (sim, http), feed(sim, http) as client:
        await client.request("sub", sim.instrument_keys, "full")
        unseen = set(sim.instrument_keys[9::10])
        assert set((await client.until(initial)).feeds) == set(sim.instrument_keys) - unseen
        for _ in range(5):
            assert not set((await client.frame()).feeds) & unseen


# Requests


@plays("steady")
async def test_a_steady_feed_begins_in_the_brokers_order(name: str) -> None:
    """market_info, snapshot, updates; a text request, a key in the wrong case and one that is none are ignored."""
    async with playing(name) as (sim, http), feed(sim, http) as client:
        await client.request("sub", sim.instrument_keys[:3], "full", text=True)
        await client.request("sub", ["NSE_INDEX|nifty 50", "NSE_EQ|INE000000000"], "full")
        await client.request("sub", sim.instrument_keys[5:9], "full")
        types = [(await client.frame()).type for _ in range(3)]
        assert types == [pb.market_info, pb.initial_feed, pb.live_feed]
        assert set(pb.FeedResponse.FromString(client.received[1]).feeds) == set(sim.instrument_keys[5:9])


@plays("steady")
async def test_keys_over_the_limit_get_nothing(name: str) -> None:
    """2,000 in full, in messages of 500; the rest neither a snapshot nor a word."""
    async with playing(name, instruments=2_050) as (sim, http), feed(sim, http) as client:
        for first in range(0, 2_050, 500):
            await client.request("sub", sim.instrument_keys[first : first + 500], "full")
        got_keys: set[str] = set()
        async with asyncio.timeout(DEADLINE_S):
            while len(got_keys) < 2_000:
                got_keys |= set((await client.until(initial)).feeds)
        for _ in range(3):
            assert set((await client.frame()).feeds) <= set(sim.instrument_keys[:2_000])
    assert got_keys == set(sim.instrument_keys[:2_000])


@plays("steady")
async def test_a_wrong_key_gets_an_entry_of_empty_messages(name: str) -> None:
    """And a contract that never traded has neither price nor time."""
    wrong = "NSE_FO|NIFTY18NOV2025PE25950"
    market = {
        "instruments": 400,
        "updates_per_second": 1.0,
        "start": "2026-10-05T11:00",
    }  # none of them trades meanwhile
    async with playing(name, **market) as (sim, http), feed(sim, http) as client:
        await client.request("sub", [wrong, *sim.instrument_keys], "full")
        feeds = (await client.until(initial)).feeds
    assert feeds[wrong].fullFeed.marketFF.HasField("ltpc")
    assert not feeds[wrong].fullFeed.marketFF.ltpc.ListFields()
    never = [f.fullFeed.marketFF for k, f in feeds.items() if k.startswith("NSE_FO") and k != wrong]
    assert any(not one.ltpc.ltt and one.ltpc.cp > 0 for one in never)


@plays("no-plus")
async def test_thirty_levels_need_plus(name: str) -> None:
    """Nothing for any key, no error, no close; full is served."""
    async with playing(name) as (sim, http), feed(sim, http) as client:
        await client.request("sub", sim.instrument_keys[:5], "full_d30")
        assert await quiet(client)
        assert len(client.received) == 1
        await client.request("sub", sim.instrument_keys[:5], "full")
        assert set((await client.frame()).feeds) == set(sim.instrument_keys[:5])


@plays("missing-snapshot", "missing-chunk")
async def test_a_chunk_is_not_answered(name: str) -> None:
    """No snapshot for the second request; updates come unless it was lost whole."""
    async with playing(name, updates_per_second=1_000.0) as (sim, http), feed(sim, http) as client:
        first, second = set(sim.instrument_keys[:8]), set(sim.instrument_keys[8:16])
        await client.request("sub", sorted(first), "full")
        await client.request("sub", sorted(second), "full")
        frames = [await client.frame() for _ in range(12)]
    assert [set(f.feeds) for f in frames if f.type == pb.initial_feed] == [first]
    told = {key for f in frames if f.type == pb.live_feed for key in f.feeds}
    assert bool(told & second) == (name == "missing-snapshot")


@plays("expired-keys-silent", "expired-keys-empty")
async def test_an_expired_contract(name: str) -> None:
    """Nothing, or an empty entry."""
    async with playing(name) as (sim, http), feed(sim, http) as client:
        await client.request("sub", ["NSE_FO|99999", sim.instrument_keys[0]], "full")
        feeds = (await client.until(initial)).feeds
    assert ("NSE_FO|99999" in feeds) == name.endswith("empty")


@plays("two-modes-last", "two-modes-first")
async def test_a_key_in_two_modes(name: str) -> None:
    """Is served in one of them."""
    async with playing(name) as (sim, http), feed(sim, http) as client:
        key = sim.instrument_keys[4]
        await client.request("sub", [key], "ltpc")
        await client.until(initial)
        await client.request("sub", [key], "full")
        assert await wait_mode(client, key, "fullFeed" if name.endswith("last") else "ltpc")


async def wait_mode(client: Client, key: str, branch: str) -> bool:
    """Say whether the fifth frame from now has an entry in this branch."""
    for _ in range(4):
        await client.until(lambda f: key in f.feeds)
    frame = await client.until(lambda f: key in f.feeds)
    return frame.feeds[key].WhichOneof("FeedUnion") == branch


@plays("change-mode-silent")
async def test_change_mode_has_no_answer(name: str) -> None:
    """Updates are in the new mode, and no snapshot comes."""
    async with playing(name) as (sim, http), feed(sim, http) as client:
        key = sim.instrument_keys[4]
        await client.request("sub", [key], "ltpc")
        await client.until(initial)
        await client.request("change_mode", [key], "full")
        frame = await client.until(lambda f: f.feeds[key].WhichOneof("FeedUnion") == "fullFeed")
        assert live(frame)


@plays("text-refusal")
async def test_the_server_says_a_text(name: str) -> None:
    """JSON that names no request."""
    async with playing(name, speed=5.0) as (sim, http), feed(sim, http) as client:
        message = await wait_for(client, aiohttp.WSMsgType.TEXT)
    assert json.loads(message.data)["status"] == "failed"


# Frames


async def odd_frame(
    name: str, odd: Callable[[pb.FeedResponse], bool], **settings: Any
) -> tuple[pb.FeedResponse, bytes]:
    async with playing(name, speed=5.0, **settings) as (sim, http), feed(sim, http) as client:
        await client.request("sub", sim.instrument_keys, "full")
        frame = await client.until(odd)
        return frame, client.received[-1]


@plays("unknown-type", "unknown-mode", "unknown-status", "unknown-field")
async def test_frames_of_a_later_protocol(name: str) -> None:
    """Numbers and fields that are not in the .proto, and the data with them."""
    odd: dict[str, Callable[[pb.FeedResponse], bool]] = {
        "unknown-type": lambda f: f.type == UNKNOWN_ENUM,
        "unknown-mode": lambda f: any(e.requestMode == UNKNOWN_ENUM for e in f.feeds.values()),
        "unknown-status": lambda f: f.marketInfo.segmentStatus.get("GIFT_FO") == UNKNOWN_ENUM,
        "unknown-field": lambda f: f.SerializeToString().count(UNKNOWN_FIELD) == 1 + len(f.feeds),
    }
    frame, _ = await odd_frame(name, lambda f: bool(f.feeds) and odd[name](f))
    assert frame.feeds


@plays("zero-scalars")
async def test_scalars_may_be_missing(name: str) -> None:
    """No cp and no totals in live entries that have a price."""

    def zeros(frame: pb.FeedResponse) -> bool:
        full = [e.fullFeed.marketFF for e in frame.feeds.values() if e.fullFeed.HasField("marketFF")]
        return live(frame) and bool(full) and all(e.ltpc.cp == e.vtt == e.oi == e.atp == e.tbq == 0 for e in full)

    frame, _ = await odd_frame(name, zeros)
    assert any(e.fullFeed.marketFF.ltpc.ltp for e in frame.feeds.values())


@plays("reordered-frames", "duplicate-frames")
async def test_frames_out_of_order_and_twice(name: str) -> None:
    """An earlier frame after a later one; the same bytes again."""
    async with playing(name, speed=10.0) as (sim, http), feed(sim, http) as client:
        await client.request("sub", sim.instrument_keys, "full")
        await client.until(initial)
        first, before = await client.frame(), b""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                before = client.received[-1]
                frame = await client.frame()
                back, again = frame.currentTs < first.currentTs, client.received[-1] == before
                if back if name.startswith("reordered") else again:
                    return
                first = frame


@plays("book-only", "trade-only", "quotes-only")
async def test_entries_of_one_kind_of_part(name: str) -> None:
    """Book without price, price without book, or all of it and nothing traded."""
    async with playing(name, instruments=20) as (sim, http), feed(sim, http) as client:
        keys = [key for key in sim.instrument_keys if not key.startswith("NSE_INDEX")]
        await client.request("sub", keys, "full")
        before = {k: f.fullFeed.marketFF.vtt for k, f in (await client.until(initial)).feeds.items()}
        entries = [(k, f.fullFeed.marketFF) for _ in range(5) for k, f in (await client.until(live)).feeds.items()]
    assert entries
    for key, entry in entries:
        parts = entry.HasField("ltpc"), entry.HasField("marketLevel"), entry.HasField("optionGreeks")
        if name == "book-only":
            assert parts == (False, True, False)
        elif name == "trade-only":
            assert parts == (True, False, False)
        else:
            assert parts == (True, True, True)
            assert entry.vtt == before[key]


@plays("garbage")
async def test_frames_that_do_not_decode(name: str) -> None:
    """Among those that do."""
    async with playing(name, speed=5.0) as (sim, http), feed(sim, http) as client:
        await client.request("sub", sim.instrument_keys, "full")
        with pytest.raises(DecodeError):
            await client.until(lambda _: False)
        await client.until(live)


# Doors


@plays("authorize-401", "authorize-403", "authorize-429", "authorize-500", "authorize-503")
async def test_authorize_refuses_for_a_time(name: str) -> None:
    """In the envelope, both casings, no data; then it does not."""
    async with playing(name, speed=4.0) as (sim, http):
        status, body, headers = await got(http, sim.url + AUTHORIZE)
        document = json.loads(body)
        assert status == int(name.removeprefix("authorize-"))
        assert document["status"] == "error"
        assert "data" not in document
        assert {"errorCode", "error_code"} <= set(document["errors"][0])
        assert "Retry-After" not in headers
        await until_status(http, sim.url + AUTHORIZE, 200)


@plays("error-snake", "error-camel", "token-not-for-feed")
async def test_envelopes_differ(name: str) -> None:
    """By casing, and by code."""
    async with playing(name) as (sim, http):
        error = json.loads((await got(http, sim.url + AUTHORIZE))[1])["errors"][0]
    assert ("error_code" in error) == (name != "error-camel")
    assert ("errorCode" in error) == (name != "error-snake")
    code = error.get("error_code") or error.get("errorCode")
    assert code == ("UDAPI100067" if name == "token-not-for-feed" else "UDAPI100050")


@plays("rate-limited", "master-503")
async def test_other_addresses_refuse_too(name: str) -> None:
    """All of them, or the master list alone."""
    paths = (AUTHORIZE, MASTER, "/v2/market/status/NSE", "/token")
    async with playing(name, speed=4.0) as (sim, http):
        statuses = [(await got(http, sim.url + path))[0] for path in paths]
        assert statuses == ([429] * 4 if name == "rate-limited" else [200, 503, 200, 200])
        await until_status(http, sim.url + MASTER, 200)


@plays("cloudflare-1010", "cloudflare-1010-json")
async def test_the_cdn_refuses(name: str) -> None:
    """403 with error 1010, and not in the broker's envelope."""
    async with playing(name, speed=4.0) as (sim, http):
        status, body, headers = await got(http, sim.url + AUTHORIZE)
        assert status == 403
        assert b"1010" in body
        if name.endswith("json"):
            assert json.loads(body)["error_name"] == "browser_signature_banned"
        else:
            assert headers["Content-Type"].startswith("text/html")
        await until_status(http, sim.url + AUTHORIZE, 200)


@plays("steady")
async def test_the_cdn_wants_a_user_agent(name: str) -> None:
    """None, or that of a bare library, is refused at any time."""
    async with playing(name) as (sim, http):
        for agent in ("", "Python-urllib/3.12"):
            for path in (AUTHORIZE, MASTER, "/v2/market/status/NSE"):
                assert (await got(http, sim.url + path, **{"User-Agent": agent}))[0] == 403
        assert (await got(http, sim.url + AUTHORIZE, **{"User-Agent": "tickvault/1"}))[0] == 200


@plays("handshake-401", "handshake-403", "handshake-reset")
async def test_the_handshake_fails_although_authorize_says_yes(name: str) -> None:
    """For a time."""
    async with playing(name, speed=4.0) as (sim, http):
        uri = await address(sim, http)
        if name == "handshake-reset":
            with pytest.raises(aiohttp.ClientConnectionError):
                await http.ws_connect(uri)
        else:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await http.ws_connect(uri)
            assert refused.value.status == int(name.removeprefix("handshake-"))
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    async with feed(sim, http) as client:
                        await client.frame()
                    break
                except aiohttp.ClientError:
                    await asyncio.sleep(0.1)


@plays("slow-handshake")
async def test_a_handshake_may_take_long(name: str) -> None:
    """It is not done after a second, and is in the end."""
    async with playing(name) as (sim, http):
        connecting = asyncio.ensure_future(http.ws_connect(await address(sim, http)))
        await asyncio.sleep(1.0)
        assert not connecting.done()
        async with await connecting as ws:
            assert (await Client(ws).frame()).type == pb.market_info


@plays("steady", "reused-address-403")
async def test_an_address_is_good_once(name: str) -> None:
    """The second handshake is refused."""
    async with playing(name) as (sim, http):
        uri = await address(sim, http)
        async with http.ws_connect(uri):
            pass
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await http.ws_connect(uri)
        assert refused.value.status == (401 if name == "steady" else 403)


@plays("address-lives-5s", "address-lives-60s")
async def test_an_address_grows_old(name: str) -> None:
    """After five seconds and a half one of them is too old."""
    async with playing(name) as (sim, http):
        uri = await address(sim, http)
        await asyncio.sleep(5.5)
        if name.endswith("-60s"):
            async with http.ws_connect(uri) as ws:
                assert (await Client(ws).frame()).type == pb.market_info
        else:
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await http.ws_connect(uri)


@plays("third-socket-refused", "third-socket-evicts")
async def test_a_third_connection(name: str) -> None:
    """Is refused, or ends the first; a place that becomes free is free."""
    async with playing(name) as (sim, http), feed(sim, http) as first, feed(sim, http) as second:
        if name.endswith("refused"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await http.ws_connect(await address(sim, http))
            assert refused.value.status == 403
            await first.ws.close()
        reading = asyncio.ensure_future(first.end())
        async with feed(sim, http) as third:
            for client in (second, third):
                await client.request("sub", sim.instrument_keys[:3], "full")
                await client.until(initial)
            await asyncio.wait_for(reading, DEADLINE_S)
            if name.endswith("evicts"):
                assert first.ws.close_code == 1008


@plays("steady", "deflate")
async def test_deflate_is_negotiated_or_not(name: str) -> None:
    """With a client that offers it."""
    async with playing(name) as (sim, http), feed(sim, http, compress=15) as client:
        assert bool(client.ws.compress) == (name == "deflate")
        await client.request("sub", sim.instrument_keys, "full")
        assert len((await client.until(initial)).feeds) == len(sim.instrument_keys)


@plays("ping-at-open")
async def test_a_ping_may_come_first(name: str) -> None:
    """Empty, before market_info."""
    async with playing(name) as (sim, http), feed(sim, http, autoping=False) as client:
        message = await client.ws.receive(timeout=DEADLINE_S)
        assert (message.type, bytes(message.data)) == (aiohttp.WSMsgType.PING, b"")


@plays("market-needs-token")
async def test_the_calendar_may_need_a_token(name: str) -> None:
    """401 without."""
    async with playing(name, tokens=frozenset({"right"})) as (sim, http):
        url = sim.url + "/v2/market/status/NSE"
        assert (await got(http, url, "wrong"))[0] == 401
        assert (await got(http, url, "right"))[0] == 200


# Tokens


async def token_of(sim: Simulator, http: aiohttp.ClientSession) -> str:
    return str(json.loads((await got(http, sim.url + "/token"))[1])["access_token"])


async def changed_token(sim: Simulator, http: aiohttp.ClientSession, old: str) -> str:
    async with asyncio.timeout(DEADLINE_S):
        while (new := await token_of(sim, http)) == old:
            await asyncio.sleep(0.05)
    return new


@plays("token-expiry-survives", "token-expiry-closes", "stale-token-service")
async def test_tokens_die_at_half_past_three(name: str) -> None:
    """401 from then on; open connections go on or end, and `/token` has a good one, sooner or later."""
    async with playing(name, speed=2.0) as (sim, http):
        old = await token_of(sim, http)
        async with feed(sim, http, old) as client:
            await client.request("sub", sim.instrument_keys[:20], "full")
            reading = asyncio.ensure_future(client.end())
            async with asyncio.timeout(DEADLINE_S):
                while (await got(http, sim.url + AUTHORIZE, old))[0] == 200:
                    await asyncio.sleep(0.05)
            at = dt.datetime.fromtimestamp(sim.now_ms() / 1000, dt.timezone(dt.timedelta(hours=5, minutes=30)))
            assert (at.hour, at.minute) == (3, 30)
            if name == "stale-token-service":
                assert await token_of(sim, http) == old
            new = await changed_token(sim, http, old)
            assert (await got(http, sim.url + AUTHORIZE, new))[0] == 200
            if name == "token-expiry-survives":
                frames = len(client.received)
                await asyncio.sleep(1.0)
                assert len(client.received) > frames
                assert not reading.done()
                reading.cancel()
            else:
                await asyncio.wait_for(reading, DEADLINE_S)
                assert client.ws.close_code == 1008


@plays("token-changes-old-dies", "token-changes-old-lives")
async def test_the_token_service_changes_its_token(name: str) -> None:
    """The one before is refused, or is not."""
    async with playing(name, speed=5.0, tokens=frozenset({"first"})) as (sim, http):
        first = await token_of(sim, http)
        assert first == "first"
        assert await changed_token(sim, http, first) != first
        status, _, _ = await got(http, sim.url + AUTHORIZE, first)
    assert status == (401 if name.endswith("dies") else 200)


# The master list


async def master(sim: Simulator, http: aiohttp.ClientSession) -> tuple[dict[str, Any], str]:
    status, body, headers = await got(http, sim.url + MASTER)
    assert status == 200
    return {row["instrument_key"]: row for row in json.loads(gzip.decompress(body))}, headers.get("ETag", "")


@plays("master-misses", "reused-exchange-token")
async def test_the_master_list_changes(name: str) -> None:
    """Another ETag; contracts missing for a time, or keys that name others."""
    async with playing(name, speed=2.0) as (sim, http):
        before, tag = await master(sim, http)
        assert (await got(http, sim.url + MASTER, **{"If-None-Match": tag}))[0] == 304
        async with asyncio.timeout(DEADLINE_S):
            while (await got(http, sim.url + MASTER, **{"If-None-Match": tag}))[0] == 304:
                await asyncio.sleep(0.1)
        after, _ = await master(sim, http)
        if name == "master-misses":
            assert len(before) - len(after) == 5
            async with asyncio.timeout(DEADLINE_S):
                while (await master(sim, http))[0] != before:
                    await asyncio.sleep(0.1)
            return
    changed = [key for key in before if before[key] != after[key]]
    assert len(changed) == 2
    assert before.keys() == after.keys()
    for key in changed:
        assert before[key]["exchange_token"] == after[key]["exchange_token"]
        assert before[key]["expiry"] < after[key]["expiry"]
        assert before[key]["trading_symbol"] != after[key]["trading_symbol"]


@plays("master-no-etag", "master-weak-etag")
async def test_tags_of_the_master_list(name: str) -> None:
    """None, and always the whole; or a weak one, good for 304."""
    async with playing(name) as (sim, http):
        _, tag = await master(sim, http)
        assert tag.startswith('W/"') if name == "master-weak-etag" else not tag
        status, _, _ = await got(http, sim.url + MASTER, **{"If-None-Match": tag or "*"})
    assert status == (304 if name == "master-weak-etag" else 200)


# Days


@pytest.mark.virtual
@plays("market-day", "morning", "closing-auction", "muhurat")
async def test_a_day_goes_through_its_phases(name: str) -> None:
    """Told one after the other, with the times of that day."""
    until = {"market-day": "CLOSING_END", "morning": "NORMAL_OPEN", "closing-auction": "NORMAL_CLOSE"}
    told: list[str] = []
    speed = 600.0 if name in {"morning", "muhurat"} else 3_600.0
    async with playing(name, speed=speed) as (sim, http), feed(sim, http) as client:
        first = await client.frame()
        told.append(pb.MarketStatus.Name(first.marketInfo.segmentStatus["NSE_EQ"]))
        async with asyncio.timeout(20.0):
            while len(told) == 1 or told[-1] != until.get(name, "CLOSING_END"):
                frame = await client.frame()
                told.append(pb.MarketStatus.Name(frame.marketInfo.segmentStatus["NSE_EQ"]))
    morning = ["CLOSING_END", "PRE_OPEN_START", "PRE_OPEN_END", "NORMAL_OPEN"]
    evening = ["NORMAL_OPEN", "NORMAL_CLOSE"]
    expected = {
        "market-day": [*morning, "NORMAL_CLOSE", "CLOSING_START", "CLOSING_END"],
        "morning": morning,
        "closing-auction": evening,
        "muhurat": [*morning, "NORMAL_CLOSE", "CLOSING_START", "CLOSING_END"],
    }
    seen = [one for i, one in enumerate(told) if i == 0 or told[i - 1] != one]
    # A slow machine may connect after the first phase.
    assert seen in (expected[name], expected[name][1:])
    assert ist_date(first.currentTs) == ist_date(sim.now_ms())


@plays("weekend", "holiday", "settlement-holiday")
async def test_a_day_without_trading_has_snapshots(name: str) -> None:
    """Closed, a snapshot, and nothing more; a settlement holiday is a day like others."""
    async with playing(name) as (sim, http), feed(sim, http) as client:
        info = (await client.frame()).marketInfo
        await client.request("sub", sim.instrument_keys, "full")
        assert len((await client.until(initial)).feeds) == len(sim.instrument_keys)
        date = ist_date(sim.now_ms())
        timings = json.loads((await got(http, f"{sim.url}/v2/market/timings/{date}"))[1])["data"]
        holidays = json.loads((await got(http, f"{sim.url}/v2/market/holidays/{date}"))[1])["data"]
        if name == "settlement-holiday":
            assert info.segmentStatus["NSE_EQ"] == pb.NORMAL_OPEN
            await client.until(live)
        else:
            assert info.segmentStatus["NSE_EQ"] == pb.CLOSING_END
            assert info.segmentStatus["NSE_FO"] == pb.NORMAL_CLOSE
            assert await quiet(client)
    exchanges = {row["exchange"] for row in timings}
    everything = {"MCX", "NSE", "NFO", "CDS", "BSE", "BCD", "BFO"}
    assert exchanges == {"weekend": set(), "holiday": {"MCX"}, "settlement-holiday": everything}[name]
    assert [row["holiday_type"] for row in holidays] == {
        "weekend": [],
        "holiday": ["TRADING_HOLIDAY"],
        "settlement-holiday": ["SETTLEMENT_HOLIDAY"],
    }[name]


def test_every_script_is_played() -> None:
    """None comes with the simulator that nobody has seen."""
    assert set(script_names()) == COVERED


def test_the_command_lists_and_takes_names(tmp_path: Path) -> None:
    """Every name with its line; a wrong name, start or speed is refused with what is right."""
    listed = call("simulate", "--script", "list", environ={}, folder=tmp_path)
    assert listed.returncode == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(script_names())
    for words, said in (
        (["--script", "third-socket-evict"], "did you mean 'third-socket-evicts'"),
        (["--start", "noon"], "--start: expected a time in India such as 08:55 or 2026-10-05T08:55, got 'noon'"),
        (["--speed", "0"], "--speed: expected 0.01 to 10000, got 0"),
    ):
        refused = call("simulate", "--port", "0", *words, environ={}, folder=tmp_path)
        assert refused.returncode == 2
        assert said in " ".join(refused.stderr.split())
        assert "Traceback" not in refused.stderr
