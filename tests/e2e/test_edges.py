"""What the broker sends besides the ordinary: stored as the tables promise, in Parquet and in InfluxDB alike."""

from __future__ import annotations

import base64
import json
from collections import Counter
from typing import TYPE_CHECKING

import oracle
from programs import environ_for, globbed, recorder, simulator, stats
from servers import influx_query, influxd, wait_until

from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from google.protobuf.message import Message

AT_MS = 1_795_000_000_123
QUIET = ("--instruments", "4", "--updates-per-second", "0")


def frame(feeds: Mapping[str, Message] | None = None, **fields: object) -> bytes:
    """Return a live frame's bytes."""
    made = pb.FeedResponse(type=pb.live_feed, **fields)
    for key, feed in (feeds or {}).items():
        made.feeds[key].CopyFrom(feed)
    return made.SerializeToString()


def only_level() -> pb.Feed:
    """Return an entry with a book and nothing else."""
    feed = pb.Feed(requestMode=pb.full_d5)
    feed.fullFeed.marketFF.marketLevel.bidAskQuote.add(bidQ=75, bidP=99.5, askQ=0, askP=0)
    return feed


def index() -> pb.Feed:
    """Return an index entry whose candles are: a good one, an empty one, one without a start."""
    feed = pb.Feed(requestMode=pb.full_d5)
    feed.fullFeed.indexFF.ltpc.CopyFrom(pb.LTPC(ltp=23418.75, ltt=AT_MS - 5, cp=23431.5))
    candles = feed.fullFeed.indexFF.marketOHLC.ohlc
    candles.add(interval="1d", open=1.5, high=2, low=1, close=1.75, ts=AT_MS - 123)
    candles.add()
    candles.add(interval="I1", open=9, high=9, low=9, close=9, ts=0)
    return feed


def price(ltp: float) -> pb.Feed:
    """Return an entry in mode ltpc."""
    return pb.Feed(ltpc=pb.LTPC(ltp=ltp, ltt=AT_MS, ltq=1, cp=1))


ODD_KEYS = ["NSE_INDEX|Nifty 50", "NSE_FO|A, B=C", "BSE_EQ|a\\b c", "NSE_EQ|ünïcode"]


def test_every_odd_frame_is_stored_as_promised(tmp_path: Path, now_ms: int) -> None:
    """Index, book alone, empty and undated candles, odd keys, equal milliseconds, no time, nonsense: all accounted for."""
    odd = [
        frame({"NSE_INDEX|Nifty 50": index()}, currentTs=now_ms),
        frame({"NSE_FO|A, B=C": only_level()}, currentTs=now_ms),
        frame({key: price(10.0 + n) for n, key in enumerate(ODD_KEYS)}, currentTs=now_ms + 1),
        frame({"NSE_EQ|same": price(1)}, currentTs=now_ms + 2),
        frame({"NSE_EQ|same": price(2)}, currentTs=now_ms + 2),
        frame({"NSE_EQ|untimed": price(3)}, currentTs=0),
        frame({"NSE_EQ|stale": price(4)}, currentTs=now_ms - 3 * 86_400_000),
        frame({"NSE_EQ|empty": pb.Feed(ltpc=pb.LTPC(), requestMode=pb.ltpc)}, currentTs=now_ms + 3),
        b"\xff\xff not a frame",
        frame({"": price(5), "NSE_EQ|tail\\": price(6), "NSE_EQ|good": price(7)}, currentTs=now_ms + 4),
        frame({"NSE_EQ|nan": price(float("nan"))}, currentTs=now_ms + 5),
    ]
    steps = [
        {"at_s": 3.0 + n / 20, "do": "raw", "payload": base64.b64encode(one).decode()} for n, one in enumerate(odd)
    ]
    script = tmp_path / "odd.json"
    script.write_text(json.dumps({"steps": steps}))
    data = tmp_path / "data"
    with influxd(tmp_path / "influx") as influx:
        with simulator(tmp_path, *QUIET, "--script", str(script)) as (url, simulated):
            environ = environ_for(url, data, INFLUX_URL=influx.url, INFLUX_BUCKET="market")
            with recorder(tmp_path, environ) as recording:
                wait_until(lambda: stats(data)["last_seq"] >= len(odd) + 2, "the odd frames are journalled")
                assert simulated.stop() == 0
                assert recording.stop() == 0, recording.said()

        rows = globbed(data, "ticks")
        sent_rows = [row for one in odd if one[0] != 0xFF for row in oracle.ticks_of(one)]
        good = {row["instrument_key"] for row in sent_rows} - {"", "NSE_EQ|tail\\"}
        by_key = {row["instrument_key"]: row for row in rows if row["instrument_key"] in good}
        assert good == set(by_key) | set()
        timed = [row for row in sent_rows if row["instrument_key"] in good - {"NSE_EQ|untimed", "NSE_EQ|stale"}]
        stored = Counter(oracle.stored_tick(row) for row in rows if row["time"].timestamp() * 1000 >= now_ms)
        assert not Counter(map(oracle.canonical, timed)) - stored
        for key in ("NSE_EQ|untimed", "NSE_EQ|stale"):
            assert by_key[key]["time"] == by_key[key]["received_at"]
        assert by_key["NSE_EQ|nan"]["ltp"] is None

        book = next(row for row in rows if row["instrument_key"] == "NSE_FO|A, B=C" and row["bid_price"])
        assert (book["ltp"], book["bid_price"], book["ask_qty"]) == (None, [99.5], [0])
        candles = [row for row in globbed(data, "candles") if row["open"] in {1.5, 9.0}]
        assert [(row["interval"], row["open"], row["volume"]) for row in candles] == [("1d", 1.5, 0)]

        points = influx_query(influx, "SELECT * FROM tick", db="market")
        assert {(one["instrument_key"], one["seq"]) for one in points} == {
            (row["instrument_key"], row["seq"]) for row in rows
        }
        same = [one for one in points if one["instrument_key"] == "NSE_EQ|same"]
        assert sorted(one["ltp"] for one in same) == [1, 2]
        assert stats(data)["sinks"]["influx"]["lag_frames"] == 0
