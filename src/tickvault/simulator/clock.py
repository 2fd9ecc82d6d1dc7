"""The simulation's time: the wall clock, or one that starts elsewhere and runs faster."""

from __future__ import annotations

import asyncio
import time

__all__ = ["Clock"]

_LONGEST_S = 3600.0  # of a single sleep: the wall clock may be set meanwhile


class Clock:
    """Epoch time for everything that happens in the market.

    Attributes:
        speed: seconds of the simulation in one of the wall's.
    """

    def __init__(self, *, start_ms: int | None = None, speed: float = 1.0) -> None:
        """Start at `start_ms` (epoch ms; None = now) and run `speed` times as fast as the wall clock."""
        self.speed = speed
        self._wall = start_ms is None and speed == 1.0
        self._start_ms = _wall_ms() if start_ms is None else start_ms
        self._started_s = time.monotonic()

    def now_ms(self) -> int:
        """Return the simulation's UTC time."""
        if self._wall:
            return _wall_ms()
        return self._start_ms + int((time.monotonic() - self._started_s) * 1000 * self.speed)

    async def until(self, at_ms: int) -> None:
        """Return at or after a moment."""
        while (left_s := (at_ms - self.now_ms()) / 1000 / self.speed) > 0:  # noqa: ASYNC110  # time is what it waits for
            await asyncio.sleep(min(left_s, _LONGEST_S))


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
