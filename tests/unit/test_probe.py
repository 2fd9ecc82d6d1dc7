"""What the probe makes of frames: counts, distances, delays; and nothing of what they say."""

from __future__ import annotations

import json

import pytest

from tickvault.brokers.upstox.probe import Finding, Pace, Sheet, steps
from tickvault.brokers.upstox.probe.frames import Entry, Frame, decoded, grid, minutes, parts
from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb

PRICE = 4321.25
KEY = "NSE_EQ|INE002A01018"


def frame() -> pb.FeedResponse:
    message = pb.FeedResponse(type=pb.live_feed, currentTs=1_000)
    feed = message.feeds[KEY]
    feed.requestMode = pb.full_d5
    market = feed.fullFeed.marketFF
    market.ltpc.ltp = PRICE
    market.vtt = 7
    market.marketOHLC.ohlc.add(interval="1d", ts=5, close=PRICE)
    market.marketOHLC.ohlc.add(interval="I1", ts=60_000, close=PRICE)
    return message


def test_frame_is_seen_without_its_prices() -> None:
    """Names of fields, the mode, the minute; the price is nowhere."""
    seen = decoded(frame().SerializeToString())
    assert seen == Frame(
        kind="live_feed",
        at_ms=1_000,
        entries=(Entry(key=KEY, mode="full_d5", parts=frozenset({"ltpc", "vtt", "marketOHLC"}), minute_ms=60_000),),
    )
    assert "4321" not in repr(seen)


def test_every_branch_of_an_entry() -> None:
    """Index, first level, ltpc, and an entry with nothing in it."""
    message = pb.FeedResponse()
    message.feeds["NSE_INDEX|Nifty 50"].fullFeed.indexFF.ltpc.ltp = PRICE
    message.feeds["NSE_FO|1"].firstLevelWithGreeks.oi = 5
    message.feeds["NSE_FO|2"].ltpc.ltp = PRICE
    message.feeds["NSE_FO|3"].ltpc.SetInParent()
    message.feeds["NSE_FO|4"].requestMode = 9
    seen = decoded(message.SerializeToString())
    assert seen is not None
    assert seen.kind == "initial_feed"
    found = {entry.key: (set(entry.parts), entry.mode) for entry in seen.entries}
    assert found == {
        "NSE_INDEX|Nifty 50": ({"ltpc"}, "ltpc"),
        "NSE_FO|1": ({"oi"}, "ltpc"),
        "NSE_FO|2": ({"ltp"}, "ltpc"),
        "NSE_FO|3": (set(), "ltpc"),
        "NSE_FO|4": (set(), "unknown"),
    }


def test_statuses_are_names() -> None:
    """A number that is new stays a number; a segment that is no name is not shown."""
    message = pb.FeedResponse(type=pb.market_info)
    message.marketInfo.segmentStatus["NSE_EQ"] = pb.NORMAL_OPEN
    message.marketInfo.segmentStatus["NSE_FO"] = 77
    message.marketInfo.segmentStatus["4321 secret"] = 77
    seen = decoded(message.SerializeToString())
    assert seen is not None
    assert seen.statuses == {"NSE_EQ": "NORMAL_OPEN", "NSE_FO": "77", "…": "77"}


def test_bytes_that_are_no_frame() -> None:
    """They are counted, not raised."""
    assert decoded(b"\xff\xff\xff") is None


def test_grid_is_recognised() -> None:
    """Distances of 150 and 900 ms fit 150 wholly, and 250 no better than chance."""
    found = grid([0, 1000, 1150, 2050, 2201, 3101, 3101])
    assert found["apart_ms"] == {"min": 150, "median": 525.5, "max": 900}
    assert isinstance(found["fits"], dict)
    assert found["fits"]["150"] == 1.0
    assert found["fits"]["250"] == 0.0
    assert grid([]) == grid([5]) == {}


def test_minutes_are_measured_from_their_end() -> None:
    """The delay counts from the candle's end at the first frame that has it; a running candle is below zero."""

    def at(at_ms: int, minute_ms: int | None, key: str = KEY) -> Frame:
        entry = Entry(key=key, mode="full_d5", parts=frozenset(), minute_ms=minute_ms)
        return Frame(kind="live_feed", at_ms=at_ms, entries=(entry,))

    frames = [at(61_000, 0), at(119_000, None), at(122_500, 60_000), at(130_000, 60_000), at(181_000, 120_000)]
    running = [at(60_500, 60_000, "NSE_INDEX|Nifty 50"), at(120_500, 120_000, "NSE_INDEX|Nifty 50")]
    assert minutes([*frames, *running]) == {
        "NSE_EQ": {"changes": 2, "closed_minutes": 2, "delay_s": {"min": 1.0, "median": 1.75, "max": 2.5}},
        "NSE_INDEX": {"changes": 1, "closed_minutes": 0, "delay_s": {"min": -59.5, "median": -59.5, "max": -59.5}},
    }


def test_fields_are_counted_by_segment() -> None:
    """How often a part is left out shows in the difference to the entries."""
    seen = decoded(frame().SerializeToString())
    assert seen is not None
    assert parts([seen, seen]) == {"NSE_EQ full_d5": {"entries": 2, "ltpc": 2, "marketOHLC": 2, "vtt": 2}}


@pytest.mark.parametrize(("plus", "shown"), [(True, "yes"), (False, "no"), (None, "unknown")])
def test_sheet_in_both_forms(plus: bool | None, shown: str) -> None:
    """The same facts for people and for programs."""
    sheet = Sheet(
        made_at="2026-11-23 10:00 IST",
        feed_host="wsfeeder-api.upstox.com",
        token_kind="analytics",
        plus=plus,
        keys={"NSE_EQ": 2},
        findings=(Finding(step="ping", answer="answered after 5 ms", facts={"pong_ms": 5}),),
    )
    assert json.loads(sheet.json())["findings"] == [
        {"step": "ping", "answer": "answered after 5 ms", "facts": {"pong_ms": 5}}
    ]
    text = sheet.markdown()
    assert f"Plus plan: {shown}, keys: 2 NSE_EQ." in text
    assert "| ping | answered after 5 ms |" in text
    assert '"pong_ms": 5' in text


def test_three_connections_are_asked_for() -> None:
    """What could disturb another program is not among the steps unless it is wanted."""
    assert "sockets" not in [step.name for step in steps(sockets=False)]
    assert steps(sockets=True)[-1].name == "sockets"
    assert 180 < Pace().total_s < 600
