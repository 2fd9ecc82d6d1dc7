"""When authorize was called last, kept in the data folder: the broker counts on when we start again, and counts every program."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from typing import TYPE_CHECKING, Final

import structlog

from tickvault.brokers.upstox.plan import RateLimit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["RememberedLimit"]

_MAX_BYTES: Final = 4096  # six times of day have 120
# Whoever holds the lock holds it for a read and a write; one that was halted there keeps nobody from recording.
_LOCK_TRIES: Final = 20
_LOCK_PAUSE_S: Final = 0.005

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class RememberedLimit(RateLimit):
    """A rate limit that outlives its process, killed or not, and is one with that of every other program on the folder.

    A file that is lost or damaged costs the memory of a minute. It is not synced: after a power cut the minute is over.

    Args:
        path: of the file.
        wall_ns: UTC wall clock in ns.
        monotonic_s: the clock of `delay_s`, `note` and `take`.
    """

    def __init__(
        self, path: Path, *, wall_ns: Callable[[], int], monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._path = path
        self._wall_ns = wall_ns
        # Call by the wall clock → when it was on our own, which nobody sets.
        self._known: dict[int, float] = {}
        self._is_locked = False
        if (wait_s := self.delay_s(monotonic_s())) > 0:
            log.warning("authorize.limited", calls=self.calls, wait_s=round(wait_s))

    def delay_s(self, now_s: float) -> float:
        """Return how long to wait before the next call, whoever made those before."""
        with self._locked():
            self._look(now_s)
            return super().delay_s(now_s)

    def note(self, now_s: float) -> None:
        """Remember that a call is made now."""
        with self._locked():
            self._look(now_s)
            super().note(now_s)
            at_ns = self._wall_ns()
            while at_ns in self._known:  # a clock may be coarse
                at_ns += 1
            self._known[at_ns] = now_s
            self._known = dict(sorted(self._known.items(), key=lambda one: one[1])[-self.calls :])
            try:
                fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with os.fdopen(fd, "w", encoding="ascii") as file:
                    json.dump(list(self._known), file)
            except OSError as exc:
                log.warning("authorize.unwritten", error=exc.strerror)

    def take(self, now_s: float) -> bool:
        """Remember a call now, unless it has to wait; of two programs that want the last one, one has it."""
        with self._locked():
            return super().take(now_s)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other programs from the file; where that cannot be, go on all the same."""
        if self._is_locked:
            yield
            return
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                fd = os.open(self._path, os.O_RDONLY | os.O_CREAT, 0o600)
                stack.callback(os.close, fd)
                _lock(fd)
            self._is_locked = True
            try:
                yield
            finally:
                self._is_locked = False

    def _look(self, now_s: float) -> None:
        """Take in what other programs have noted."""
        now_ns, told = self._wall_ns(), self._read()
        for at_ns in told:
            # A clock that was set back makes it longer, never shorter.
            self._known.setdefault(at_ns, now_s - max(0.0, (now_ns - at_ns) / 1e9))
        since_s = now_s - self.window_s
        self._known = {at_ns: at_s for at_ns, at_s in self._known.items() if at_s > since_s or at_ns in told}
        self._calls_s.clear()
        self._calls_s.extend(sorted(at_s for at_s in self._known.values() if at_s > since_s))

    def _read(self) -> set[int]:
        try:
            with self._path.open(encoding="ascii") as file:
                found = json.loads(file.read(_MAX_BYTES))
        except (OSError, ValueError, RecursionError):
            return set()
        return {one for one in found if isinstance(one, int)} if isinstance(found, list) else set()


def _lock(fd: int) -> None:
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE_S)
        else:
            return
