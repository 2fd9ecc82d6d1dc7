"""The simulation's time: the wall clock, or one that starts elsewhere and runs faster."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from typing import Final

from tickvault.errors import ConfigurationError
from tickvault.simulator.calendar import epoch_ms, ist_date, parse_time_s

__all__ = ["Clock", "check_speed", "parse_start_ms"]

_MAX_SPEED: Final = 10_000.0  # a day in nine seconds
_LONGEST_S: Final = 3600.0  # of a single sleep: the wall clock may be set meanwhile


class Clock:
    """Epoch time for everything that happens in the market.

    Attributes:
        speed: seconds of the simulation in one of the wall's.
    """

    def __init__(self, *, start: str | None = None, speed: float = 1.0) -> None:
        """Start at `start`, as `parse_start_ms` reads it (None = now), and run `speed` times as fast as the wall's."""
        self.speed = speed
        self._wall = start is None and speed == 1.0
        now_ms = _wall_ms()
        self._start_ms = now_ms if start is None else parse_start_ms(start, now_ms, "start")
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


def parse_start_ms(text: str, now_ms: int, where: str) -> int:
    """Return the epoch ms of a time in India: HH:MM[:SS] on the day of `now_ms`, or an ISO date and time.

    Raises:
        ConfigurationError: anything else.
    """
    date, _, time_of_day = text.rpartition("T")
    try:
        day = dt.date.fromisoformat(date) if date else ist_date(now_ms)
        return epoch_ms(day, parse_time_s(time_of_day, where))
    except (ValueError, ConfigurationError) as exc:
        raise ConfigurationError(
            f"{where}: expected a time in India such as 08:55 or 2026-10-05T08:55, got {text!r}"
        ) from exc


def check_speed(speed: float, where: str) -> None:
    """Refuse a speed that no clock can run at.

    Raises:
        ConfigurationError: with the bounds.
    """
    if not 0.01 <= speed <= _MAX_SPEED:
        raise ConfigurationError(f"{where}: expected 0.01 to {_MAX_SPEED:g}, got {speed:g}")


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
