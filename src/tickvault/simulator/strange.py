"""Frames as a later protocol might send them (pure): what a recorder built today has no name for."""

from __future__ import annotations

from typing import Final

from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb

__all__ = ["STRANGE", "UNKNOWN_ENUM", "UNKNOWN_FIELD", "strange"]

STRANGE: Final = ("type", "mode", "status", "field", "zeros")
UNKNOWN_ENUM: Final = 9
# Field 99 with the text "new"; at the end of a message it belongs to it.
UNKNOWN_FIELD: Final = b"\x9a\x06\x03new"


def strange(payload: bytes, what: str) -> bytes:
    """Return a live frame changed.

    Args:
        payload: the frame.
        what: `type`, `mode`, `status`: an enum's number that is not in the .proto, `status` with a segment too;
            `field`: a field that is not, in the frame and in each entry; `zeros`: no scalar but ltp and ltt.
    """
    frame = pb.FeedResponse.FromString(payload)
    match what:
        case "type":
            frame.type = UNKNOWN_ENUM  # type: ignore[assignment]
        case "status":
            frame.marketInfo.segmentStatus["GIFT_FO"] = UNKNOWN_ENUM  # type: ignore[assignment]
        case "mode":
            for feed in frame.feeds.values():
                feed.requestMode = UNKNOWN_ENUM  # type: ignore[assignment]
        case "field":
            for feed in frame.feeds.values():
                feed.MergeFromString(UNKNOWN_FIELD)
            return frame.SerializeToString(deterministic=True) + UNKNOWN_FIELD
        case _:
            for feed in frame.feeds.values():
                _zero(feed)
    return frame.SerializeToString(deterministic=True)


def _zero(feed: pb.Feed) -> None:
    full = feed.fullFeed.marketFF if feed.fullFeed.HasField("marketFF") else None
    if full is None:
        return
    full.ltpc.ltq, full.ltpc.cp = 0, 0.0
    full.atp = full.oi = full.iv = full.tbq = full.tsq = 0.0
    full.vtt = 0
