"""The frames that every benchmark uses: what the simulator's market sends, the same in every run."""

from __future__ import annotations

import datetime as dt
import random
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.model import IST, Definition, Frame, Mode
from tickvault.simulator.frames import data_frame
from tickvault.simulator.market import ALL, Market, Watch
from tickvault.simulator.universe import Kind, build_universe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tickvault.simulator.universe import Instrument

__all__ = ["UPDATES", "FrameSet", "day_frames", "definitions", "frames", "parse"]

UPDATES: Final = 20_000  # of one set
_BEGIN: Final = dt.datetime(2026, 11, 23, 11, 0, tzinfo=IST)
_APART_MS: Final = 250  # four frames a second
_DAY_ENTRIES: Final = 200
_DAY_MS: Final = 22_500_000  # from the opening to the close


@dataclass(frozen=True, slots=True)
class FrameSet:
    """Frames of one kind.

    Attributes:
        name: as the table calls them.
        frames: with seq from 1 on.
        updates: instrument entries in all of them.
    """

    name: str
    frames: tuple[Frame, ...]
    updates: int

    @property
    def payloads(self) -> list[bytes]:
        """Return the messages as received."""
        return [frame.payload for frame in self.frames]


@cache
def frames(instruments: int, mode: Mode = Mode.FULL, *, updates: int = UPDATES) -> FrameSet:
    """Return frames of `instruments` entries each; with mode full every entry is a whole one, full_d5."""
    universe, positions = _listed()
    start_ms = int(_BEGIN.timestamp() * 1000)
    market = Market(universe, seed=7, start_ms=start_ms)
    found = []
    for number in range(updates // instruments):
        now_ms = start_ms + number * _APART_MS
        first = number * instruments
        turn = [positions[(first + i) % len(positions)] for i in range(instruments)]
        market.advance(now_ms, Watch(market.weights, dict.fromkeys(turn, True)), instruments)
        entries = [(market.look(one, now_ms, fresh=False), mode, ALL) for one in turn]
        payload = data_frame(entries, now_ms, snapshot=False).SerializeToString(deterministic=True)
        found.append(Frame(seq=number + 1, received_ns=now_ms * 1_000_000 + 40_000_000, conn=1, payload=payload))
    kind = "full_d5" if mode is Mode.FULL else mode.value
    return FrameSet(f"{instruments} × {kind}", tuple(found), len(found) * instruments)


def day_frames(updates: int, at_a_time: int) -> Iterator[list[Frame]]:
    """Yield the frames of a trading day, each of 200 instruments taken at random, some at a time."""
    universe, positions = _listed()
    rng, start_ms = random.Random(5), int(_BEGIN.replace(hour=9, minute=15).timestamp() * 1000)
    market = Market(universe, seed=7, start_ms=start_ms)
    count = updates // _DAY_ENTRIES
    apart_ms, held = _DAY_MS // count, []
    for number in range(count):
        now_ms = start_ms + number * apart_ms + rng.randrange(apart_ms // 2)
        turn = rng.sample(positions, _DAY_ENTRIES)
        market.advance(now_ms, Watch(market.weights, dict.fromkeys(turn, True)), _DAY_ENTRIES)
        entries = [(market.look(one, now_ms, fresh=False), Mode.FULL, ALL) for one in turn]
        payload = data_frame(entries, now_ms, snapshot=False).SerializeToString(deterministic=True)
        received_ns = now_ms * 1_000_000 + rng.randrange(20_000_000, 60_000_000)
        held.append(Frame(seq=number + 1, received_ns=received_ns, conn=1, payload=payload))
        if len(held) == at_a_time:
            yield held
            held = []
    if held:
        yield held


@cache
def definitions() -> dict[str, Definition]:
    """Return what the frames' instruments are: instrument key → definition."""
    universe, _ = _listed()
    return {
        one.key: Definition(
            instrument_key=one.key,
            symbol=one.symbol,
            segment=one.segment,
            underlying_symbol=None if one.underlying is None else universe[one.underlying].symbol,
            expiry=one.expiry,
            strike=one.strike or None,
            option_type=one.kind.value if one.strike else None,
        )
        for one in universe
    }


@cache
def _listed() -> tuple[tuple[Instrument, ...], tuple[int, ...]]:
    """Return a universe, and the positions of what has a book in it."""
    universe = build_universe(1_010, _BEGIN.date())
    return universe, tuple(i for i, one in enumerate(universe) if one.kind is not Kind.INDEX)[:1_000]


def parse(payloads: list[bytes]) -> None:
    """Parse messages with protobuf's C parser and do nothing with them: the unit L."""
    from_string = pb.FeedResponse.FromString
    for payload in payloads:
        from_string(payload)
