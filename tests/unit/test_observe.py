"""What frames are seen to say, from bytes."""

from __future__ import annotations

from typing import Any

import pytest

from tickvault.brokers.upstox.observe import HOLLOW_BYTES, Observation, Observer, RawFrame, Said, Show, Sight, observe
from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.model import Mode
from tickvault.simulator.frames import empty_entry, garbage, market_info


def raw(message: Any) -> RawFrame:
    payload = message if isinstance(message, bytes) else message.SerializeToString()
    return RawFrame(conn=3, received_ns=5, received_s=7.0, payload=payload)


def seen(message: Any, **how: Any) -> Observation:
    return observe(raw(message), **how)


def entry(**fields: Any) -> pb.Feed:
    return pb.Feed(fullFeed=pb.FullFeed(marketFF=pb.MarketFullFeed(**fields)), requestMode=pb.full_d5)


@pytest.mark.parametrize(
    ("kind", "show"),
    [(pb.initial_feed, Show.SNAPSHOT), (pb.live_feed, Show.LIVE), (pb.market_info, Show.MARKET_INFO)],
)
def test_kinds(kind: Any, show: Show) -> None:
    """The type decides; an initial feed has none on the wire."""
    assert seen(pb.FeedResponse(type=kind)).kind is show


def test_origin_is_kept() -> None:
    """Connection and times are the frame's."""
    one = seen(b"")
    assert (one.conn, one.received_ns, one.received_s) == (3, 5, 7.0)


@pytest.mark.parametrize("mode", list(Mode))
def test_empty_entry_is_no_data(mode: Mode) -> None:
    """What the broker sends for a key in the wrong format, in every mode."""
    message = pb.FeedResponse()
    empty_entry(message.feeds["NSE_FO|NIFTY"], mode)
    message.feeds["NSE_FO|NOTHING"].SetInParent()
    one = seen(message)
    assert one.keys == ()
    assert set(one.empty) == {"NSE_FO|NIFTY", "NSE_FO|NOTHING"}


@pytest.mark.parametrize(
    "feed",
    [
        pb.Feed(ltpc=pb.LTPC(ltp=1.0)),
        pb.Feed(ltpc=pb.LTPC(cp=1.0)),
        pb.Feed(firstLevelWithGreeks=pb.FirstLevelWithGreeks(ltpc=pb.LTPC(ltp=1.0))),
        pb.Feed(firstLevelWithGreeks=pb.FirstLevelWithGreeks(firstDepth=pb.Quote(bidQ=1))),
        pb.Feed(fullFeed=pb.FullFeed(indexFF=pb.IndexFullFeed(ltpc=pb.LTPC(ltp=1.0)))),
        entry(ltpc=pb.LTPC(ltp=1.0)),
        entry(vtt=1),
        entry(marketLevel=pb.MarketLevel(bidAskQuote=[pb.Quote()])),  # a book of zeros, of a contract never traded
        entry(marketOHLC=pb.MarketOHLC(ohlc=[pb.OHLC()])),
        entry(ltpc=pb.LTPC(iep={"value": 2.0})),
    ],
)
def test_anything_in_it_is_data(feed: pb.Feed) -> None:
    """A price, a volume, a book without prices."""
    assert seen(pb.FeedResponse(feeds={"K": feed})).keys == ("K",)


def hollow_bytes(of: Any) -> int:
    """Return the length of the longest message that has messages in it and nothing else; one of a union."""
    unions: dict[str, int] = {}
    for field in of.fields:
        if field.message_type is not None and not field.is_repeated:
            size = 2 + hollow_bytes(field.message_type)  # a tag and a length
            name = field.containing_oneof.name if field.containing_oneof else field.name
            unions[name] = max(unions.get(name, 0), size)
    return sum(unions.values())


def test_what_is_longer_than_any_empty_entry_is_data() -> None:
    """By the .proto, a mode included: so most entries need not be parsed."""
    mode = pb.Feed(requestMode=pb.full_d5).SerializeToString()
    assert hollow_bytes(pb.Feed.DESCRIPTOR) + len(mode) == HOLLOW_BYTES


def test_statuses_are_verbatim() -> None:
    """Segments by the enum's name, auctions in the broker's words and with their times."""
    frame = market_info(
        9, {"NSE_EQ": "NORMAL_OPEN"}, cas={"NSE_EQ": ("CTS_CLOSE", 7)}, pre_open={"NSE_EQ": ("PRE_OPEN_M_END", 8)}
    )
    one = seen(frame)
    assert (one.kind, one.segments) == (Show.MARKET_INFO, {"NSE_EQ": "NORMAL_OPEN"})
    assert one.cas == {"NSE_EQ": Said("CTS_CLOSE", 7)}
    assert one.pre_open == {"NSE_EQ": Said("PRE_OPEN_M_END", 8)}


def test_unknown_numbers_are_told() -> None:
    """Enums are open: what the .proto does not name comes as its number, and as news."""
    message = pb.FeedResponse(feeds={"K": pb.Feed()})
    message.type, message.feeds["K"].requestMode = 7, 9  # type: ignore[assignment]
    message.marketInfo.segmentStatus["NSE_EQ"] = 11  # type: ignore[assignment]
    one = seen(message)
    assert (one.kind, one.segments) == (Show.UNKNOWN, {"NSE_EQ": "11"})
    assert set(one.novelties) == {"Type 7", "MarketStatus 11"}
    assert set(seen(message, deep=True).novelties) == {"Type 7", "RequestMode 9", "MarketStatus 11"}


def test_garbage_is_no_error() -> None:
    """What does not decode is seen as that."""
    assert seen(garbage(64)).kind is Show.BROKEN
    assert seen(b"\x12\x00" * 60_000).kind is Show.BROKEN
    unknown = b"\x12\x26\x0a\x01K\x12\x21\x4a\x1f" + bytes(31)  # a field that the .proto does not have
    assert (seen(unknown).keys, seen(unknown).empty) == ((), ("K",))
    long_garbage = b"\x12\x22\x0a\x01K\x12\x1d" + b"\xff" * 29
    assert seen(long_garbage).kind is Show.BROKEN
    entry_of_garbage = b"\x12\x06\x0a\x01K\x12\x01\xff"
    assert seen(entry_of_garbage).kind is Show.BROKEN


def drifted() -> bytes:
    """Return a frame with field 99 at the top and field 98 in a quote."""
    quote = pb.Quote.FromString(pb.Quote(bidQ=1).SerializeToString() + b"\x90\x06\x01")  # field 98, varint 1
    message = pb.FeedResponse(feeds={"K": entry(marketLevel=pb.MarketLevel(bidAskQuote=[quote]))})
    return message.SerializeToString() + b"\x98\x06\x01"  # field 99


def test_schema_drift_is_found_by_sampling_and_told_once() -> None:
    """One frame in so many is searched; each field is news once."""
    observer = Observer(sample=4)
    told = [one.novelties for one in observer.observe([raw(b""), *[raw(drifted())] * 12])]
    assert told[4] == ("FeedResponse field 99", "Quote field 98")
    assert [novelties for number, novelties in enumerate(told) if number != 4] == [()] * 12


def test_news_is_bounded() -> None:
    """A broker that sends a new number each time is not followed for ever."""
    observer, frames = Observer(), []
    for number in range(10, 400):
        message = pb.FeedResponse()
        message.type = number  # type: ignore[assignment]
        frames.append(raw(message))
    assert sum(len(one.novelties) for one in observer.observe(frames)) == 100


def test_sight_loses_the_oldest() -> None:
    """By number and by bytes; one large frame is always taken; what is lost is counted."""
    sight = Sight(max_frames=3, max_bytes=10)
    for payload in (b"1", b"2", b"3", b"4"):
        sight.put(raw(payload))
    assert sight.lost == 1
    sight.put(raw(b"x" * 9))
    assert [frame.payload for frame in sight.take()] == [b"4", b"x" * 9]
    assert (sight.take(), sight.lost) == ([], 3)
    sight.put(raw(b"y" * 99))
    assert len(sight.take()) == 1
