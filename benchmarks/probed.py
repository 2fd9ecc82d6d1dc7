"""`tickvault` with a probe in its event loop: how late callbacks are, and how long one of them held the loop's thread.

Prints a JSON line to the file named first; the rest are tickvault's arguments.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any, Final

from tickvault import cli
from tickvault.pipeline import Recorder

_EVERY_S: Final = 0.002
_SETTLED_S: Final = 5.0  # what a start does once is not what a day is like


async def _probe(into: Path) -> None:
    late_ms: list[float] = []
    busy_ms: list[float] = []
    begun_s = time.monotonic()
    try:
        while True:
            due_s, used_s = time.perf_counter() + _EVERY_S, time.thread_time()
            await asyncio.sleep(_EVERY_S)
            if time.monotonic() - begun_s > _SETTLED_S:
                late_ms.append((time.perf_counter() - due_s) * 1e3)
                busy_ms.append((time.thread_time() - used_s) * 1e3)
    finally:
        ends = {
            name: {"p99": sorted(of)[int(len(of) * 0.99)], "p999": sorted(of)[int(len(of) * 0.999)], "max": max(of)}
            for name, of in (("late_ms", late_ms), ("busy_ms", busy_ms))
            if of
        }
        used = resource.getrusage(resource.RUSAGE_SELF)
        into.write_text(json.dumps({**ends, "peak_mb": used.ru_maxrss / 1e3}), encoding="utf-8")  # noqa: ASYNC240 - the last it does


def main() -> None:
    """Run tickvault's own main with the probe beside its recorder."""
    into = Path(sys.argv.pop(1))
    run = Recorder.run

    async def probed(self: Recorder, *args: Any, **kwargs: Any) -> Any:
        probe = asyncio.ensure_future(_probe(into))
        try:
            return await run(self, *args, **kwargs)
        finally:
            probe.cancel()
            await asyncio.wait([probe])

    Recorder.run = probed  # type: ignore[method-assign]
    cli.main()


if __name__ == "__main__":
    main()
