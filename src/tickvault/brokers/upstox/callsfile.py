"""When authorize was called last, kept in the data folder: the broker counts on when we start again."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import structlog

from tickvault.brokers.upstox.plan import RateLimit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["RememberedLimit"]

_MAX_BYTES: Final = 4096  # six times of day have 120

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class RememberedLimit(RateLimit):
    """A rate limit that outlives its process, killed or not.

    A file that is lost or damaged costs the memory of a minute. It is not synced: after a power cut the minute is over.

    Args:
        path: of the file.
        wall_ns: UTC wall clock in ns.
        monotonic_s: the clock of `delay_s` and `note`.
    """

    def __init__(
        self, path: Path, *, wall_ns: Callable[[], int], monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._path = path
        self._wall_ns = wall_ns
        self._noted_ns: deque[int] = deque(maxlen=self.calls)
        now_ns, now_s = wall_ns(), monotonic_s()
        for at_ns in self._read():
            age_s = max(0.0, (now_ns - at_ns) / 1e9)  # a clock that was set back makes it longer, never shorter
            if age_s < self.window_s:
                self._noted_ns.append(at_ns)
                super().note(now_s - age_s)
        if (wait_s := self.delay_s(now_s)) > 0:
            log.warning("authorize.limited", calls=self.calls, wait_s=round(wait_s))

    def note(self, now_s: float) -> None:
        """Remember that a call is made now."""
        super().note(now_s)
        self._noted_ns.append(self._wall_ns())
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(fd, "w", encoding="ascii") as file:
                json.dump(list(self._noted_ns), file)
        except OSError as exc:
            log.warning("authorize.unwritten", error=exc.strerror)

    def _read(self) -> list[int]:
        try:
            with self._path.open(encoding="ascii") as file:
                found = json.loads(file.read(_MAX_BYTES))
        except (OSError, ValueError, RecursionError):
            return []
        return sorted(one for one in found if isinstance(one, int)) if isinstance(found, list) else []
