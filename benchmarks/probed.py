"""`tickvault` with a probe in its event loop: how late callbacks are, and how long the loop's thread was held.

It is held for a turn of the loop: from one look at the sockets to the next, in CPU time of the thread. The look itself is not
counted: on a machine that shares its cores, some milliseconds of what others did are now and then put down to a thread that waits.
Prints a JSON line to the file named first, with the callback that held it longest. The probe, which costs more than a quiet
recorder, comes after as many seconds as are named next; the rest are tickvault's arguments.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from array import array
from pathlib import Path
from typing import Any, Final

from tickvault.__main__ import arrange

arrange()  # as the command does, before Arrow is loaded
from tickvault import cli  # noqa: E402
from tickvault.pipeline import Recorder  # noqa: E402

_EVERY_S: Final = 0.002


class _Held:
    """Times every callback of the loop.

    Attributes:
        longest: (ms of the thread's time, task or function) of the callback that took longest.
    """

    def __init__(self) -> None:
        self.longest = (0.0, "")
        run = asyncio.Handle._run

        def timed(handle: Any) -> None:
            used_s = time.thread_time()
            run(handle)
            if (spent_ms := (time.thread_time() - used_s) * 1e3) > self.longest[0]:
                self.longest = (spent_ms, _name_of(handle._callback))

        asyncio.Handle._run = timed  # type: ignore[assignment, method-assign]


def _name_of(callback: Any) -> str:
    owner = getattr(callback, "__self__", None)
    # Not its repr: to make that of a request aiohttp looks at headers that are not there yet, and remembers it.
    return owner.get_name() if isinstance(owner, asyncio.Task) else getattr(callback, "__qualname__", "?")


def _time_turns(loop: Any, into: array[float]) -> None:
    selector = loop._selector
    select, began_s = selector.select, time.thread_time()

    def timed(timeout: float | None = None) -> Any:
        nonlocal began_s
        into.append((time.thread_time() - began_s) * 1e3)
        found = select(timeout)
        began_s = time.thread_time()
        return found

    selector.select = timed


async def _probe(into: Path, after_s: float) -> None:
    late_ms, busy_ms = array("f"), array("f")
    held: _Held | None = None
    try:
        await asyncio.sleep(after_s)
        held = _Held()
        _time_turns(asyncio.get_running_loop(), busy_ms)
        while True:
            due_s = time.perf_counter() + _EVERY_S
            await asyncio.sleep(_EVERY_S)
            late_ms.append((time.perf_counter() - due_s) * 1e3)
    finally:
        ends = {
            name: {"p99": sorted(of)[int(len(of) * 0.99)], "p999": sorted(of)[int(len(of) * 0.999)], "max": max(of)}
            for name, of in (("late_ms", late_ms), ("busy_ms", busy_ms))
            if len(of)
        }
        into.write_text(json.dumps(ends | {"longest": held and held.longest}), encoding="utf-8")  # noqa: ASYNC240 - the last it does


def main() -> None:
    """Run tickvault's own main with the probe beside its recorder."""
    into, after_s = Path(sys.argv.pop(1)), float(sys.argv.pop(1))
    run = Recorder.run

    async def probed(self: Recorder, *args: Any, **kwargs: Any) -> Any:
        probe = asyncio.ensure_future(_probe(into, after_s))
        try:
            return await run(self, *args, **kwargs)
        finally:
            probe.cancel()
            await asyncio.wait([probe])

    Recorder.run = probed  # type: ignore[method-assign]
    cli.main()


if __name__ == "__main__":
    main()
