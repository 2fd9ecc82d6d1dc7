"""What moves the whole market at once (pure): the two index factors, how nervous the day is, and the VIX."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from tickvault.simulator.pricing import YEAR_S, intraday_shape, session_fraction

if TYPE_CHECKING:
    import random

__all__ = ["Climate"]

_INDEX_VOLATILITY: Final = 0.12
_CALM_AFTER_S: Final = 1_800.0  # how long nervousness lasts
_NERVES: Final = 0.35  # standard deviation of its logarithm
_VIX_MEMORY_S: Final = 5 * 22_500.0


class Climate:
    """Common factors, advanced together with the clock.

    Attributes:
        market: logarithm of the market's level since the start.
        bank: the same of the banks.
        vix: points; typical 13.5.
        pulse: volatility now relative to the year's: hour of the day times nervousness.
    """

    __slots__ = ("_calm_vix", "_nerves", "_now_ms", "_vix", "bank", "market", "pulse", "vix")

    def __init__(self, start_ms: int, vix: float) -> None:
        """Start at level 0 with the VIX at `vix`."""
        self._now_ms, self._nerves, self._vix, self._calm_vix = start_ms, 0.0, 0.0, vix
        self.market = self.bank = 0.0
        self.vix = vix
        self.pulse = intraday_shape(session_fraction(start_ms))

    def advance(self, rng: random.Random, now_ms: int) -> None:
        """Move every factor to `now_ms`; a time in the past changes nothing."""
        elapsed_s = (now_ms - self._now_ms) / 1000.0
        if elapsed_s <= 0:
            return
        self._now_ms = now_ms
        kept = math.exp(-elapsed_s / _CALM_AFTER_S)
        self._nerves = self._nerves * kept + _NERVES * math.sqrt(1.0 - kept * kept) * rng.gauss(0.0, 1.0)
        self.pulse = intraday_shape(session_fraction(now_ms)) * math.exp(self._nerves)
        scale = self.pulse * math.sqrt(elapsed_s / YEAR_S)
        step = _INDEX_VOLATILITY * scale * rng.gauss(0.0, 1.0)
        self.market += step
        self.bank += 1.15 * step + 0.06 * scale * rng.gauss(0.0, 1.0)
        kept = math.exp(-elapsed_s / _VIX_MEMORY_S)
        self._vix = self._vix * kept - 5.0 * step + 0.5 * scale * rng.gauss(0.0, 1.0)
        self.vix = min(60.0, max(8.0, self._calm_vix * math.exp(self._vix)))
