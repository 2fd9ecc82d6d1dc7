"""What no store can hold: keys, names and times, and the rejections that say so; pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final
from unicodedata import category

from google.protobuf.message import DecodeError

from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.model import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tickvault.model import Frame

__all__ = ["is_unusable", "rejected_candle", "rejected_key", "rejections", "unusable_of"]

_PIECES: Final = 10  # of one frame: each is looked for in the whole of it


def is_unusable(text: str) -> bool:
    """Say whether no line protocol, file name or terminal can hold it: a control character, or a backslash last."""
    return text.endswith("\\") or (not text.isprintable() and any(category(one) == "Cc" for one in text))


def unusable_of(keys: Sequence[str]) -> list[bool]:
    """Return which instrument keys, or names of segments, are none."""
    together = "".join(keys)
    if together.isprintable() and "\\" not in together and "" not in keys:
        return [False] * len(keys)
    return [not key or is_unusable(key) for key in keys]


def rejections(
    frames: Sequence[Frame], rows: Sequence[int], frame_of: Callable[[int], int], reject: Callable[[int], Rejected]
) -> list[Rejected]:
    """Return the rejections of rows; where a frame has very many, one of the frame instead.

    Args:
        frames: all of them.
        rows: those that are unusable.
        frame_of: index of a row's frame.
        reject: makes the rejection of a row.
    """
    of = Counter(map(frame_of, rows))
    whole = [
        Rejected(
            seq=frames[index].seq,
            table="frame",
            instrument_key="",
            reason=f"{count} of its rows are unusable; the others are stored",
            body=frames[index].payload,
        )
        for index, count in of.items()
        if count > _PIECES
    ]
    return [reject(row) for row in rows if of[frame_of(row)] <= _PIECES] + whole


def rejected_key(frame: Frame, table: str, key: str) -> Rejected:
    """Reject what stands under a key in a frame: a feed entry, or the frame's market statuses."""
    reason = f"unusable key {key!r}: a key is not empty, holds no control characters and does not end in a backslash"
    return Rejected(seq=frame.seq, table=table, instrument_key=key, reason=reason, body=_piece(frame, table, key))


def _piece(frame: Frame, table: str, key: str) -> bytes:
    """Return the frame with nothing in it but what is rejected: it may come with every frame, and beside much else."""
    try:
        whole = pb.FeedResponse.FromString(frame.payload)
    except DecodeError:
        return frame.payload
    piece = pb.FeedResponse(type=whole.type, currentTs=whole.currentTs)
    if table == "market_status":
        piece.marketInfo.CopyFrom(whole.marketInfo)
    elif key in whole.feeds:
        piece.feeds[key].CopyFrom(whole.feeds[key])
    else:  # protobuf's parser sets an entry with unknown fields aside
        return frame.payload
    return piece.SerializeToString()


def rejected_candle(frame: Frame, key: str, reason: str) -> Rejected:
    """Reject a candle of a frame's feed entry."""
    body = _piece(frame, "candles", key)
    return Rejected(seq=frame.seq, table="candles", instrument_key=key, reason=reason, body=body)
