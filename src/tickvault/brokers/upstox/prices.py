"""The last price of a few keys, seen as their frames go by to the journal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tickvault.model import Inbox

__all__ = ["PriceTap"]


class PriceTap:
    """An inbox in front of another one that remembers, of each followed key, the last frame it was in.

    A frame is searched for the keys, which costs little, and decoded only when somebody asks for prices.

    Args:
        inbox: gets everything, first.
    """

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._needles: dict[str, bytes] = {}
        self._frames: dict[str, bytes] = {}
        self._prices: dict[str, float] = {}

    def follow(self, keys: Iterable[str]) -> None:
        """Follow these keys from now on, and no others; what is known of them stays known."""
        self._needles = {key: _needle(key) for key in keys}
        self._prices = {key: price for key, price in self._prices.items() if key in self._needles}

    def prices(self) -> Mapping[str, float]:
        """Return key → last price, of those that had one; slow with hundreds, and may run in a thread."""
        for key in tuple(self._frames):  # one by one: others may come meanwhile
            payload = self._frames.pop(key)
            if key in self._needles and (price := _price(payload, key)):
                self._prices[key] = price
        return dict(self._prices)

    async def frame(self, received_ns: int, conn: int, payload: bytes) -> None:
        """Hand a message on (model.Inbox)."""
        await self._inbox.frame(received_ns, conn, payload)
        for key, needle in self._needles.items():
            if needle in payload:
                self._frames[key] = payload

    async def fact(self, kind: str, body: Mapping[str, object]) -> None:
        """Hand a fact on (model.Inbox)."""
        await self._inbox.fact(kind, body)


def _needle(key: str) -> bytes:
    """Return a key as it stands in a frame: the first field of a map entry, its length before it."""
    name = key.encode()
    return b"\x0a" + bytes([len(name)]) + name if len(name) < 128 else name


def _price(payload: bytes, key: str) -> float:
    """Return the last price of a key in a frame, 0 when it has none."""
    try:
        feeds = pb.FeedResponse.FromString(payload).feeds
    except DecodeError:
        return 0.0
    if key not in feeds:
        return 0.0
    full = feeds[key].fullFeed
    branches = (full.indexFF, full.marketFF, feeds[key], feeds[key].firstLevelWithGreeks)
    return next((branch.ltpc.ltp for branch in branches if branch.ltpc.ltp), 0.0)
