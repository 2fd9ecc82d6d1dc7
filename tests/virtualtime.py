"""Time that passes only while nobody has anything to do: a slow machine makes a test slow, never wrong.

A test marked `virtual` runs on a loop of its own. Its wall and monotonic clocks, the loop's included, stand still while
a callback runs, a socket has something to read, or a thread works for the loop; when all that is left is to wait they
go on at once to the next timer. So a minute of patience costs no minute, and a hiccup of the machine no patience.
Nothing but clocks is replaced. Sockets have to be those of this process: what another one does takes no time.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import selectors
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

# The longest leap: the kernel, which has a clock of its own, is late by no more of our time than patience allows.
LEAP_NS: Final = 250_000_000
# It delivers on loopback while we send, or as soon as we let go of the processor: after each leap, and once a second
# of our time by sleeping.
SLEEP_NS: Final = 1_000_000_000
SLEEP_S: Final = 0.0001
# What it takes to read the clock: something happens after another thing, not at its time.
READING_NS: Final = 1_000
_real: Final = {name: getattr(time, name) for name in ("time_ns", "monotonic_ns", "clock_gettime_ns")}


class _Clock:
    """What the time is: the machine's, or that of the one loop that is in force."""

    def __init__(self) -> None:
        self.loop: VirtualLoop | None = None

    def install(self) -> None:
        """Let all modules ask here; before they are imported, for some keep the function."""

        def monotonic_ns() -> int:
            loop = self.loop
            return _real["monotonic_ns"]() if loop is None else loop.now_ns()  # type: ignore[no-any-return]

        def time_ns() -> int:
            loop = self.loop
            return _real["time_ns"]() if loop is None else loop.now_ns() + loop.wall_ns  # type: ignore[no-any-return]

        def clock_gettime_ns(which: int) -> int:
            boots = self.loop is not None and which == time.CLOCK_BOOTTIME
            return monotonic_ns() if boots else _real["clock_gettime_ns"](which)  # type: ignore[no-any-return]

        changes: dict[str, Any] = {
            "clock_gettime_ns": clock_gettime_ns,
            "monotonic_ns": monotonic_ns,
            "monotonic": lambda: monotonic_ns() / 1e9,
            "time_ns": time_ns,
            "time": lambda: time_ns() / 1e9,
        }
        for name, change in changes.items():
            setattr(time, name, change)


clock: Final = _Clock()


class _Selector(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    """Waits for sockets as ever; where it would wait for a timer, time passes.

    Attributes:
        loop: whose time it is.
        slept_ns: when we slept last.
    """

    loop: VirtualLoop
    slept_ns = 0

    def select(self, timeout: float | None = None) -> Any:
        if (found := super().select(0)) or timeout == 0:
            return found
        if timeout is None or self.loop.working:
            return super().select(None)
        if self.loop.leapt_ns - self.slept_ns < SLEEP_NS:
            os.sched_yield()
        else:
            self.slept_ns = self.loop.leapt_ns
            time.sleep(SLEEP_S)
        if found := super().select(0):
            return found
        self.loop.leapt_ns += min(int(timeout * 1e9) + 1, LEAP_NS)
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """The event loop of a test in virtual time, which is in force until it is closed.

    Attributes:
        leapt_ns: its monotonic time but for what it takes to read it.
        wall_ns: the wall clock is so much ahead of the monotonic one.
        working: jobs that threads do for it.
    """

    def __init__(self) -> None:
        assert clock.loop is None, "one at a time"
        self.leapt_ns = _real["monotonic_ns"]()
        self.wall_ns = _real["time_ns"]() - self.leapt_ns
        self._readings = itertools.count()
        self.working = 0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)
        self._threads = ThreadPoolExecutor(thread_name_prefix="virtual")
        self.set_default_executor(self._threads)
        clock.loop = self

    def now_ns(self) -> int:
        """Return its monotonic time; no two readings, in whatever thread, are the same."""
        return self.leapt_ns + next(self._readings) * READING_NS

    def set_wall(self, at_ns: int) -> None:
        """Set the wall clock."""
        self.wall_ns = at_ns - self.now_ns()

    def time(self) -> float:
        return self.now_ns() / 1e9

    def run_in_executor(self, executor: Executor | None, func: Callable[..., Any], *args: Any) -> Any:
        """Run it in a thread; until the loop has heard of its end time stands still, whether anybody waits or not."""
        job = (executor or self._threads).submit(func, *args)
        self.working += 1
        heard = asyncio.wrap_future(job, loop=self)
        job.add_done_callback(self._over)  # after the one by which the loop hears of it
        return heard

    async def shutdown_default_executor(self, *timeout: float) -> None:
        self.working += 1
        await super().shutdown_default_executor(*timeout)
        self.working -= 1

    def close(self) -> None:
        super().close()
        clock.loop = None

    def _over(self, _: object) -> None:
        def count() -> None:
            self.working -= 1

        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.call_soon_threadsafe(count)
