"""The synthetic market (pure): what every instrument shows, and who changes next.

A market is a function of its universe, its seed, its start and the calls made on it, in order; time is an argument.
An instrument is brought up to date when it is picked, or looked at: between, nothing is computed for it, so the cost
follows the rate of updates and not the number of instruments.
"""

from __future__ import annotations

import heapq
import math
import random
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from tickvault.simulator.climate import Climate
from tickvault.simulator.pricing import day_start_ms, session_fraction
from tickvault.simulator.quote import Quote
from tickvault.simulator.universe import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tickvault.simulator.universe import Instrument

__all__ = ["ALL", "BOOK", "GREEKS", "LTPC", "OHLC", "TOTALS", "TRADE", "Auctioned", "Market", "Watch"]

# Parts of an entry that one update brings, as bits.
LTPC: Final = 1
BOOK: Final = 2
GREEKS: Final = 4
OHLC: Final = 8
TOTALS: Final = 16  # atp, vtt, oi, iv, tbq, tsq
ALL: Final = LTPC | BOOK | GREEKS | OHLC | TOTALS
TRADE: Final = LTPC | OHLC | TOTALS
# Cumulative chances of what an update brings. That these combinations occur is measured; how often each does, is not:
# one published capture has four whole entries to one without book and greeks.
_PARTS: Final = ((0.72, ALL), (0.90, TRADE), (0.97, BOOK), (1.0, BOOK | GREEKS | TOTALS))
_PARTIAL: Final = {"book": BOOK, "trade": TRADE, "quote": ALL}
_ACTIVITY: Final = 0.9  # exponent of Zipf's law


class Auctioned(StrEnum):
    """Which equities are in a call auction: their books cross, and nothing trades."""

    NONE = "none"
    ELIGIBLE = "eligible"  # for the closing auction
    ALL = "all"

    def has(self, one: Instrument) -> bool:
        """Say whether an instrument is among them."""
        return one.kind is Kind.EQUITY and (self is Auctioned.ALL or (self is Auctioned.ELIGIBLE and one.cas_eligible))


class Watch:
    """Which instruments anybody looks at, and at how much of them.

    Args:
        weights: activity by position in the universe.
        books: position → whether anybody sees more of it than ltpc.
    """

    __slots__ = ("books", "positions", "weights")

    def __init__(self, weights: Sequence[float], books: Mapping[int, bool]) -> None:
        """Take the positions in the order of the universe, whoever subscribed first."""
        self.positions = tuple(sorted(books))
        self.weights = tuple(weights[i] for i in self.positions)
        self.books = books


class Market:
    """Every listed instrument's present state.

    Attributes:
        universe: what is listed.
        weights: relative activity by position in it.
        auction: who is in a call auction.
        partial: what every update is to bring: `book`, `trade` or `quote`; empty for the usual mixture.
    """

    def __init__(self, universe: Sequence[Instrument], *, seed: int, start_ms: int) -> None:
        """List the universe at `start_ms` (epoch ms), as if the session had been running since its open."""
        self.universe = universe
        self.auction = Auctioned.NONE
        self.partial = ""
        self._rng = rng = random.Random(seed)  # noqa: S311  # a market, not a secret
        self._climate = Climate(start_ms, 13.5)
        self.weights = tuple((1.0 + one.rank) ** -_ACTIVITY * math.exp(rng.gauss(0.0, 0.3)) for one in universe)
        fraction = session_fraction(start_ms)
        self._quotes: list[Quote] = []
        for one, weight in zip(universe, self.weights, strict=True):
            spot = None if one.underlying is None else self._quotes[one.underlying]
            self._quotes.append(Quote(one, rng, self._climate, spot, weight, start_ms, fraction))

    def advance(self, now_ms: int, watch: Watch, count: int) -> dict[int, int]:
        """Let `count` different watched instruments change; return position → parts changed.

        Args:
            now_ms: epoch ms, not before the last call's.
            watch: those that may change.
            count: how many do; at most all of them. The busier an instrument, the likelier it is among them.
        """
        rng = self._rng
        self._climate.advance(rng, now_ms)
        today_ms = day_start_ms(now_ms)
        return {i: self._change(i, now_ms, today_ms, seen=watch.books[i]) for i in self._draw(watch, count)}

    def look(self, position: int, now_ms: int, *, fresh: bool = True) -> Quote:
        """Return an instrument's state; `fresh` brings a neglected one up to the present first, without a trade."""
        quote = self._quotes[position]
        if fresh:
            self._climate.advance(self._rng, now_ms)
            quote.change(self._rng, self._climate, now_ms, day_start_ms(now_ms), trade=False)
        return quote

    def _draw(self, watch: Watch, count: int) -> list[int]:
        """Draw without replacement, by weight (Efraimidis and Spirakis 2006: the smallest exponential variates)."""
        if count >= len(watch.positions):
            return list(watch.positions)
        uniform, log = self._rng.random, math.log
        keys = [(-log(1.0 - uniform()) / w, i) for w, i in zip(watch.weights, watch.positions, strict=True)]
        return [i for _, i in heapq.nsmallest(count, keys)]

    def _change(self, position: int, now_ms: int, today_ms: int, *, seen: bool) -> int:
        rng, one = self._rng, self.universe[position]
        chance = rng.random()
        parts = next(p for below, p in _PARTS if chance < below) if seen and one.kind is not Kind.INDEX else TRADE
        if self.auction.has(one):
            parts, trade = ALL, False
        elif self.partial and seen and one.kind is not Kind.INDEX:
            parts, trade = _PARTIAL[self.partial], self.partial == "trade"
        else:
            trade = parts == TRADE or (parts == ALL and rng.random() < 0.75)
        self._quotes[position].change(rng, self._climate, now_ms, today_ms, trade=trade)
        return parts
