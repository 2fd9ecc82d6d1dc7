"""An order book of thirty paired levels a side (pure)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

__all__ = ["LEVELS", "Book"]

LEVELS: Final = 30  # what full_d30 shows


class Book:
    """Quantities resting at prices; level 0 is the best.

    Attributes:
        bid: best bid in ticks; level i is `step` ticks further down each.
        ask: best ask in ticks.
        bids: quantities at the bid's levels, best first; LEVELS of them.
        asks: quantities at the ask's levels.
        quoted_bids: how many bid levels anybody quotes; the rest are rungs of zeros.
        quoted_asks: the same of the ask.
        hidden: quantity beyond the levels shown, bid and ask.
    """

    __slots__ = ("ask", "asks", "bid", "bids", "hidden", "lot", "quoted_asks", "quoted_bids", "size", "step")

    def __init__(self, rng: random.Random, *, lot: int, size: float, step: int, quoted: tuple[int, int]) -> None:
        """Fill both sides.

        Args:
            rng: the market's source.
            lot: every quantity is a multiple of it.
            size: natural logarithm of the typical quantity at a level, in lots.
            step: ticks between levels.
            quoted: levels quoted at the bid and at the ask.
        """
        self.lot, self.size, self.step = lot, size, step
        self.bid = self.ask = 0
        self.quoted_bids, self.quoted_asks = quoted
        self.bids = [self._quantity(rng) for _ in range(LEVELS)]
        self.asks = [self._quantity(rng) for _ in range(LEVELS)]
        beyond = lot * max(1, round(math.exp(size + 6.0)))
        self.hidden = [beyond if side else 0 for side in quoted]

    def move(self, rng: random.Random, bid: int, ask: int) -> None:
        """Put the best prices at `bid` and `ask` (ticks) and let a few orders come and go."""
        if shift := (bid - self.bid) // self.step:
            _shift(self.bids, shift, rng, self._quantity)
        if shift := (self.ask - ask) // self.step:
            _shift(self.asks, shift, rng, self._quantity)
        self.bid, self.ask = bid, ask
        # Most orders come and go near the touch.
        near = int(5 * rng.random())
        self.bids[near] = self._quantity(rng)
        self.asks[4 - near] = self._quantity(rng)
        far = int(LEVELS * rng.random())
        self.bids[far] = self._quantity(rng)
        if rng.random() < 0.3:
            for side, quoted in enumerate((self.quoted_bids, self.quoted_asks)):
                if quoted:
                    change = self.lot * round(math.exp(self.size) * rng.gauss(0.0, 20.0))
                    self.hidden[side] = max(self.lot, self.hidden[side] + change)

    def take(self, rng: random.Random, quantity: int, *, buyer: bool) -> None:
        """Let a trade eat into the best level; what is used up is quoted anew."""
        side = self.asks if buyer else self.bids
        left = side[0] - quantity
        side[0] = left if left > 0 else self._quantity(rng)

    def total_bid(self) -> int:
        """All buying interest."""
        return sum(self.bids[: self.quoted_bids]) + self.hidden[0]

    def total_ask(self) -> int:
        """All selling interest."""
        return sum(self.asks[: self.quoted_asks]) + self.hidden[1]

    def _quantity(self, rng: random.Random) -> int:
        return self.lot * max(1, int(math.exp(rng.gauss(self.size, 0.9))))


def _shift(side: list[int], by: int, rng: random.Random, quantity: Callable[[random.Random], int]) -> None:
    """Move a side towards the market by `by` levels (away from it if negative), filling with new orders."""
    fresh = [quantity(rng) for _ in range(min(abs(by), LEVELS))]
    if by > 0:
        side[:] = (fresh + side)[:LEVELS]
    else:
        side[:] = (side[-by:] + fresh)[-LEVELS:]
