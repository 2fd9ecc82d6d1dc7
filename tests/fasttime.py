"""Runs tickvault with every clock faster: a day in minutes, in processes of its own, with nothing in it replaced.

`python fasttime.py run …` is `tickvault run …` with the wall clock, the monotonic clock and the event loop's following
FASTTIME_CLOCK, which all processes of a test share: `REAL_NS;SIM_NS@SPEED;SIM_NS@SPEED;…`. At REAL_NS of the real
clock it is the first SIM_NS; from each SIM_NS on time runs SPEED times as fast.
"""

from __future__ import annotations

import asyncio
import bisect
import os
import selectors
import sys
import time
from dataclasses import dataclass
from typing import Any, Final

NAME: Final = "FASTTIME_CLOCK"
_real_ns: Final = time.time_ns
_real_monotonic_ns: Final = time.monotonic_ns


@dataclass(frozen=True)
class Clock:
    """A piecewise linear map of real to simulated time, in ns since the epoch."""

    real_ns: int
    pace: tuple[tuple[int, float], ...]

    def __str__(self) -> str:
        return ";".join([str(self.real_ns), *(f"{at_ns}@{speed}" for at_ns, speed in self.pace)])

    @classmethod
    def parse(cls, text: str) -> Clock:
        first, *rest = text.split(";")
        pace = [piece.split("@") for piece in rest]
        return cls(int(first), tuple((int(at_ns), float(speed)) for at_ns, speed in pace))

    def _starts(self) -> list[int]:
        """Return the real time at which each piece begins."""
        starts = [self.real_ns]
        for (at_ns, speed), (next_ns, _) in zip(self.pace, self.pace[1:], strict=False):
            starts.append(starts[-1] + int((next_ns - at_ns) / speed))
        return starts

    def simulated(self, real_ns: int) -> int:
        """Return the simulated time at a real time."""
        starts = self._starts()
        piece = max(0, bisect.bisect_right(starts, real_ns) - 1)
        at_ns, speed = self.pace[piece]
        return at_ns + int((real_ns - starts[piece]) * speed)

    def real(self, simulated_ns: int) -> int:
        """Return the real time at a simulated time."""
        piece = max(0, bisect.bisect_right([at_ns for at_ns, _ in self.pace], simulated_ns) - 1)
        at_ns, speed = self.pace[piece]
        return self._starts()[piece] + int((simulated_ns - at_ns) / speed)


def hurry(clock: Clock) -> None:
    """Make this process live by a clock; call it before anything else is imported."""
    offset_ns = _real_ns() - _real_monotonic_ns()

    def now_ns() -> int:
        return clock.simulated(_real_monotonic_ns() + offset_ns)

    class Selector(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
        def select(self, timeout: float | None = None) -> Any:
            if timeout is not None and timeout > 0:
                at_ns = now_ns()
                timeout = (clock.real(at_ns + int(timeout * 1e9)) - clock.real(at_ns)) / 1e9
            return super().select(timeout)

    class Loop(asyncio.SelectorEventLoop):
        def __init__(self) -> None:
            super().__init__(Selector())
            self._clock_resolution = 1e-3

        def time(self) -> float:
            return now_ns() / 1e9

    changes: dict[str, Any] = {
        "time": lambda: now_ns() / 1e9,
        "time_ns": now_ns,
        "monotonic": lambda: now_ns() / 1e9,
        "monotonic_ns": now_ns,
    }
    for name, change in changes.items():
        setattr(time, name, change)
    asyncio.events.new_event_loop = Loop  # what asyncio.run makes its loop with


if __name__ == "__main__":
    hurry(Clock.parse(os.environ[NAME]))
    from tickvault.cli import main

    sys.argv[0] = "tickvault"
    main()
