"""The simulator's calendar as its clients see it: `/v2/market/…`, and `market_info` when a status changes."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp

from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.simulator import Simulator, SimulatorSettings
from tickvault.simulator.calendar import Calendar, Holiday, Hours, epoch_ms, ist_date, parse_time_s
from tickvault.simulator.clock import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MUHURAT = dt.date(2026, 11, 8)
DEADLINE_S = 20.0


async def asked(calendar: Calendar | None, *paths: str) -> list[tuple[int, Any]]:
    settings = SimulatorSettings() if calendar is None else SimulatorSettings(calendar=calendar)
    async with Simulator(settings) as sim, aiohttp.ClientSession() as http:
        answers = []
        for path in paths:
            async with http.get(sim.url + path) as response:
                answers.append((response.status, await response.json()))
        return answers


async def test_holidays_are_the_years_or_a_dates() -> None:
    """All of the current year in order; one by its date; none for an ordinary date."""
    year = ist_date(Clock().now_ms()).year
    first, second, past = dt.date(year, 3, 3), dt.date(year, 11, 9), dt.date(year - 1, 3, 3)
    calendar = Calendar(
        holidays=(
            Holiday(day=second, description="Diwali", closed=("NSE", "BSE"), open={"MCX": Hours(61_200, 84_600)}),
            Holiday(day=first, description="Holi", kind="SETTLEMENT_HOLIDAY"),
            Holiday(day=past),
        )
    )
    (_, all_of_them), (_, one), (_, none) = await asked(
        calendar, "/v2/market/holidays", f"/v2/market/holidays/{second}", f"/v2/market/holidays/{year}-06-03"
    )
    assert all_of_them["status"] == "success"
    assert [row["date"] for row in all_of_them["data"]] == [str(first), str(second)]
    assert one["data"] == [
        {
            "date": str(second),
            "description": "Diwali",
            "holiday_type": "TRADING_HOLIDAY",
            "closed_exchanges": ["NSE", "BSE"],
            "open_exchanges": [
                {
                    "exchange": "MCX",
                    "start_time": epoch_ms(second, 61_200),
                    "end_time": epoch_ms(second, 84_600),
                }
            ],
        }
    ]
    assert none == {"status": "success", "data": []}


async def test_timings_are_those_of_the_date() -> None:
    """Seven exchanges on an ordinary day, a special session's on a Sunday, none when all are closed."""
    calendar = Calendar(holidays=(Holiday(day=MUHURAT, kind="SPECIAL_TIMING", open={"NSE": Hours(64_800, 68_400)}),))
    (_, monday), (_, muhurat), (_, sunday) = await asked(
        calendar, "/v2/market/timings/2026-10-05", f"/v2/market/timings/{MUHURAT}", "/v2/market/timings/2026-10-04"
    )
    rows = {row["exchange"]: row for row in monday["data"]}
    assert set(rows) == {"MCX", "NSE", "NFO", "CDS", "BSE", "BCD", "BFO"}
    assert rows["NSE"]["start_time"] == epoch_ms(dt.date(2026, 10, 5), 33_300)
    assert rows["NFO"]["end_time"] == epoch_ms(dt.date(2026, 10, 5), 56_400)
    assert [row["exchange"] for row in muhurat["data"]] == ["NSE"]
    assert sunday["data"] == []


async def test_mistakes_have_the_brokers_codes() -> None:
    """A date that is none, an exchange that is none: 400, in the envelope."""
    answers = await asked(None, "/v2/market/timings/2026-13-01", "/v2/market/holidays/soon", "/v2/market/status/MCX_FO")
    assert [status for status, _ in answers] == [400, 400, 400]
    codes = [body["errors"][0]["error_code"] for _, body in answers]
    assert codes == ["UDAPI1088", "UDAPI1088", "UDAPI1089"]


async def test_without_a_calendar_everything_is_open_at_any_time() -> None:
    """As the market is: NORMAL_OPEN, timings of the whole day."""
    today = ist_date(Clock().now_ms())
    (_, status), (_, timings) = await asked(None, "/v2/market/status/NSE", f"/v2/market/timings/{today}")
    assert status["data"]["exchange"] == "NSE"
    assert status["data"]["status"] == "NORMAL_OPEN"
    assert "cas_eligible_status" not in status["data"]
    assert {row["end_time"] - row["start_time"] for row in timings["data"]} == {86_400_000}


async def test_a_squeezed_day_is_told_phase_by_phase() -> None:
    """market_info at each change, the same at the status endpoint, and only then: nothing is told twice."""
    now_ms = Clock().now_ms()
    start_s = (now_ms - epoch_ms(ist_date(now_ms), 0)) / 1000 + 0.5
    if start_s > 86_390:  # the day ends before the test does
        start_s = 1.0
    calendar = Calendar(weekend=frozenset()).squeezed(start_s, 6.0)
    told: list[pb.MarketInfo] = []
    async with (
        Simulator(SimulatorSettings(calendar=calendar)) as sim,
        aiohttp.ClientSession() as http,
    ):
        authorize = sim.url + "/v3/feed/market-data-feed/authorize"
        async with http.get(authorize, headers={"Authorization": "Bearer t"}) as response:
            uri = (await response.json())["data"]["authorized_redirect_uri"]
        async with http.ws_connect(uri) as ws, asyncio.timeout(DEADLINE_S):
            while not told or told[-1].segmentStatus["NSE_EQ"] != pb.CLOSING_END or len(told) == 1:
                frame = pb.FeedResponse.FromString((await ws.receive()).data)
                told.append(frame.marketInfo)
        async with http.get(sim.url + "/v2/market/status/NSE") as response:
            status = (await response.json())["data"]
    cash = [pb.MarketStatus.Name(info.segmentStatus["NSE_EQ"]) for info in told]
    assert list(dict.fromkeys(cash)) == [
        "CLOSING_END",
        "PRE_OPEN_START",
        "PRE_OPEN_END",
        "NORMAL_OPEN",
        "NORMAL_CLOSE",
        "CLOSING_START",
    ]
    auction = [info.casMarketStatus["NSE_EQ"].status for info in told if "NSE_EQ" in info.casMarketStatus]
    assert list(dict.fromkeys(auction)) == ["CTS_CLOSE", "CAS_LM_START", "CAS_M_STOP", "CAS_STOP", "NORMAL_CLOSE"]
    assert all(before != after for before, after in itertools.pairwise(told))
    assert status["status"] == "CLOSING_END"
    assert status["cas_eligible_status"]["status"] == "NORMAL_CLOSE"


@asynccontextmanager
async def recorded(start: str, until: str, **settings: Any) -> AsyncIterator[list[pb.FeedResponse]]:
    """Every frame of a simulated span, at 600 times its pace, of one connection that has everything in full."""
    frames: list[pb.FeedResponse] = []
    day = dt.date.fromisoformat(start.partition("T")[0])
    end_ms = epoch_ms(day, parse_time_s(until, "until"))
    chosen = SimulatorSettings(calendar=Calendar(), start=start, speed=600.0, updates_per_second=1_000.0, **settings)
    async with Simulator(chosen) as sim, aiohttp.ClientSession() as http:
        authorize = sim.url + "/v3/feed/market-data-feed/authorize"
        async with http.get(authorize, headers={"Authorization": "Bearer t"}) as response:
            uri = (await response.json())["data"]["authorized_redirect_uri"]
        async with http.ws_connect(uri, max_msg_size=0) as ws, asyncio.timeout(DEADLINE_S):
            request = {"guid": "g", "method": "sub", "data": {"mode": "full", "instrumentKeys": sim.instrument_keys}}
            await ws.send_bytes(json.dumps(request).encode())
            while not frames or frames[-1].currentTs < end_ms:
                frames.append(pb.FeedResponse.FromString((await ws.receive()).data))
    yield frames


def seen(frames: list[pb.FeedResponse], first: str, last: str) -> tuple[set[str], set[str]]:
    """Return segments and equities that changed between two times."""
    day = ist_date(frames[0].currentTs)
    low, high = (epoch_ms(day, parse_time_s(text, "seen")) for text in (first, last))
    keys = {k for f in frames if f.type == pb.live_feed and low <= f.currentTs < high for k in f.feeds}
    return {key.partition("|")[0] for key in keys}, {key for key in keys if key.startswith("NSE_EQ")}


async def test_a_morning_is_quiet_until_trading() -> None:
    """Yesterday's trades in the snapshot, an auction with crossed books, a pause, then everything."""
    async with recorded("2026-10-05T08:57", "09:25") as frames:
        pass
    snapshot = next(f for f in frames if f.type == pb.initial_feed)
    equities = {k: v.fullFeed.marketFF for k, v in snapshot.feeds.items() if k.startswith("NSE_EQ")}
    assert {ist_date(e.ltpc.ltt) for e in equities.values()} == {dt.date(2026, 10, 2)}
    assert seen(frames, "08:57", "09:00") == (set(), set())
    assert seen(frames, "09:00", "09:08")[0] == {"NSE_EQ"}
    assert seen(frames, "09:11:30", "09:15") == (set(), set())
    assert seen(frames, "09:15", "09:25")[0] == {"NSE_EQ", "NSE_INDEX", "NSE_FO"}
    auction = [
        e.fullFeed.marketFF
        for f in frames
        if f.type == pb.live_feed and f.currentTs < epoch_ms(dt.date(2026, 10, 5), 32_880)
        for e in f.feeds.values()
    ]
    assert auction
    assert all(e.iep > 0 and e.ltpc.HasField("iep") for e in auction)
    assert all(e.marketLevel.bidAskQuote[0].bidP >= e.marketLevel.bidAskQuote[0].askP for e in auction)


async def test_a_close_goes_through_the_closing_auction() -> None:
    """Only those in it stop at 15:15; derivatives trade until 15:40, cash until 15:30, then nothing does."""
    async with recorded("2026-10-05T14:50", "16:00", instruments=480) as frames:
        pass
    eligible = {k for f in frames for k, v in f.feeds.items() if v.fullFeed.marketFF.casEligible}
    before, pause = seen(frames, "14:50", "15:14")[1], seen(frames, "15:17", "15:19:30")[1]
    assert before & eligible
    assert not pause & eligible
    assert seen(frames, "15:17", "15:30")[1] - eligible
    assert seen(frames, "15:21", "15:26")[1] & eligible
    assert seen(frames, "15:32", "15:38")[0] == {"NSE_FO"}
    assert seen(frames, "15:43", "16:00") == (set(), set())
