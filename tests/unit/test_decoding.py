"""One decoder for several deliveries: the same columns as each would decode, and none decoded twice at the live edge."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from doubles import AT_MS, AT_NS, payload
from hypothesis import given, settings
from hypothesis import strategies as st

from tickvault import decoding
from tickvault.brokers.upstox import wire
from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.model import Definition, Frame

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFINITIONS = {"NSE_EQ|A": Definition(instrument_key="NSE_EQ|A", symbol="ONE")}


def body(number: int) -> bytes:
    """Return a frame: one in seven does not decode, the others have a version of one candle each."""
    if number % 7 == 0:
        return b"\xff"
    message = pb.FeedResponse.FromString(payload(number))
    full = message.feeds["NSE_EQ|B"].fullFeed.marketFF
    full.marketOHLC.ohlc.add(interval="I1", ts=AT_MS + number // 3 * 60_000, open=float(number))
    return message.SerializeToString()


FRAMES = [
    Frame(seq=number, received_ns=AT_NS + number, conn=1, payload=body(number))
    for number in range(1, 25)
    if number not in (11, 12)  # lost
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the seqs that were decoded, in the order in which they were."""
    seqs: list[int] = []

    def decode(frames: Sequence[Frame], **kwargs: object) -> wire.Decoded:
        seqs.extend(frame.seq for frame in frames)
        return wire.decode(frames, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(decoding, "decode", decode)
    return seqs


def cuts(after: Sequence[int]) -> list[list[Frame]]:
    """Return the frames, cut behind each of some places."""
    bounds = [0, *sorted(set(after)), len(FRAMES)]
    return [FRAMES[low:high] for low, high in pairwise(bounds) if low < high]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, len(FRAMES) - 1)), st.lists(st.integers(1, len(FRAMES) - 1)), st.lists(st.booleans()))
def test_columns_are_those_of_each_alone_however_they_are_cut(
    first: list[int], second: list[int], turns: list[bool]
) -> None:
    """Two deliveries with cuts of their own, in any order of turns, get what one call gives for the same frames."""
    decoder = decoding.Decoder("r", ("first", "second"))
    todo = {"first": cuts(first), "second": cuts(second)}
    for turn in [*turns, *[True] * len(FRAMES), *[False] * len(FRAMES)]:
        name = "first" if turn else "second"
        if not todo[name]:
            continue
        frames = todo[name].pop(0)
        found = decoder.decode(name, frames, DEFINITIONS)
        alone = wire.decode(frames, recorder_id="r", definitions=DEFINITIONS)
        assert {name: table.to_pylist() for name, table in found.tables.items()} == {
            name: table.to_pylist() for name, table in alone.tables.items()
        }
        assert (found.days, found.rejected, found.restamped) == (alone.days, alone.rejected, alone.restamped)


def test_what_one_delivery_had_decoded_the_next_need_not(asked: list[int]) -> None:
    """Small runs of the first are one of the second, which decodes what is new, and the first then has that too."""
    decoder = decoding.Decoder("r", ("prompt", "patient"))
    for frames in cuts([3, 6, 9])[:3]:
        decoder.decode("prompt", frames, DEFINITIONS)
    decoder.decode("patient", FRAMES[:12], DEFINITIONS)
    decoder.decode("prompt", FRAMES[9:12], DEFINITIONS)
    assert asked == [frame.seq for frame in FRAMES[:12]]
    assert not decoder._runs


def test_a_delivery_alone_keeps_nothing() -> None:
    """Nobody else will ask."""
    decoder = decoding.Decoder("r", ("only",))
    decoder.decode("only", FRAMES, DEFINITIONS)
    assert not decoder._runs


def test_what_is_kept_for_one_that_is_away_is_bounded(monkeypatch: pytest.MonkeyPatch, asked: list[int]) -> None:
    """The oldest goes first; the one that was away decodes that for itself."""
    monkeypatch.setattr(decoding, "_HELD_BYTES", 3 * decoding._RUN_BYTES)
    decoder = decoding.Decoder("r", ("here", "away"))
    for frames in cuts(range(1, len(FRAMES))):
        decoder.decode("here", frames, DEFINITIONS)
    assert 1 <= len(decoder._runs) <= 3
    del asked[:]
    decoder.decode("away", FRAMES, DEFINITIONS)
    assert 0 < len(asked) < len(FRAMES)
    assert asked[0] == 1
