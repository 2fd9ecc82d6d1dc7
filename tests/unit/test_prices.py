"""Last prices seen as frames go by."""

from __future__ import annotations

import asyncio
from typing import Any

from tickvault.brokers.upstox.prices import PriceTap
from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb

SPOT = "NSE_INDEX|Nifty 50"


class Kept:
    """An inbox that keeps everything."""

    def __init__(self) -> None:
        self.entries: list[tuple[Any, ...]] = []

    async def frame(self, *entry: Any) -> None:
        self.entries.append(entry)

    async def fact(self, *entry: Any) -> None:
        self.entries.append(entry)


def index(key: str, ltp: float) -> bytes:
    message = pb.FeedResponse(type=pb.live_feed)
    message.feeds[key].fullFeed.indexFF.ltpc.ltp = ltp
    return message.SerializeToString()


def through(tap: PriceTap, *payloads: bytes) -> None:
    async def play() -> None:
        for payload in payloads:
            await tap.frame(1, 1, payload)

    asyncio.run(play())


def test_the_last_price_of_a_followed_key() -> None:
    """Whatever the branch of the message; a key that only begins the same is another key."""
    tap = PriceTap(kept := Kept())
    tap.follow([SPOT])
    through(tap, index(SPOT, 24_500.5), index(f"{SPOT}0", 1.0), index("NSE_EQ|A", 2.0))
    assert tap.prices() == {SPOT: 24_500.5}
    assert len(kept.entries) == 3
    option, ltpc = pb.FeedResponse(), pb.FeedResponse()
    option.feeds[SPOT].firstLevelWithGreeks.ltpc.ltp = 24_501
    ltpc.feeds[SPOT].ltpc.ltp = 24_502
    for message in (option, ltpc):
        through(tap, message.SerializeToString())
        assert tap.prices() == {SPOT: 24_501 if message is option else 24_502}


def test_what_has_no_price_changes_none() -> None:
    """A frame with the book alone, one that does not decode, one without the key."""
    tap = PriceTap(Kept())
    tap.follow([SPOT])
    through(tap, index(SPOT, 24_500))
    assert tap.prices()
    book = pb.FeedResponse()
    book.feeds[SPOT].fullFeed.marketFF.marketLevel.bidAskQuote.add(bidP=1.0)
    for payload in (book.SerializeToString(), b"\x0a\x12" + SPOT.encode() + b"\xff\xff", b""):
        through(tap, payload)
        assert tap.prices() == {SPOT: 24_500}


def test_nothing_is_kept_of_others() -> None:
    """Without a followed key no frame is held; a key that is no longer followed is forgotten."""
    tap = PriceTap(Kept())
    through(tap, index(SPOT, 24_500))
    assert tap.prices() == {}
    tap.follow([SPOT])
    through(tap, index(SPOT, 24_500))
    tap.follow([])
    assert tap.prices() == {}
