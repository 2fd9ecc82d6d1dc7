"""What is usual, kept in the data folder from one start to the next. Losing it costs a day of learning, no data."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from tickvault.brokers.upstox.baseline import Baseline
from tickvault.durable import replace_file

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BaselineFile"]

KEEP_S: Final = 300.0  # a crash loses the minutes learned since
MAX_BYTES: Final = 4 * 1024 * 1024  # every minute of a day in every segment makes 300 kB

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class BaselineFile:
    """The baseline and its file.

    Args:
        path: of the file, made when there is something to keep.

    Attributes:
        baseline: brought up to date by who watches.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept = ""
        self.baseline = self._read()

    async def keep(self) -> None:
        """Write it from time to time; a task of its own, ended by cancelling it."""
        while True:
            await asyncio.sleep(KEEP_S)
            await self.write()

    async def write(self) -> None:
        """Write what is new; a disk that takes nothing is told in the log, and costs no more than that."""
        text = self.baseline.to_json()
        if text == self._kept:
            return
        try:
            await asyncio.to_thread(replace_file, self._path, text.encode())
        except OSError as exc:
            log.warning("baseline.unwritten", error=exc.strerror)
        else:
            self._kept = text

    def _read(self) -> Baseline:
        try:
            with self._path.open("rb") as file:
                baseline = Baseline.from_json(file.read(MAX_BYTES).decode())
        except FileNotFoundError:
            return Baseline()
        except (OSError, ValueError) as exc:
            log.warning("baseline.unreadable", error=str(exc))
            return Baseline()
        self._kept = baseline.to_json()
        return baseline
