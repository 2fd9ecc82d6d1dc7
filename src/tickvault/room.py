"""Keeps room on the disk: removes what is delivered and older than the retention."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from tickvault.errors import JournalDamaged, JournalFull
from tickvault.prune import prune

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from tickvault.state import State

__all__ = ["Room"]

_log: Final = structlog.get_logger(__name__)
_PRUNE_S: Final = 60.0


class Room:
    """Looks after the disk of one data folder; one task.

    Args:
        folder: the journal folder.
        state: beside it.
        sinks: those in use; what they have not stored for good stays.
        retain_s: delivered frames are kept this long.
        wall_ns: UTC wall clock in ns.
    """

    def __init__(
        self, folder: Path, state: State, *, sinks: Collection[str], retain_s: float, wall_ns: Callable[[], int]
    ) -> None:
        self._folder = folder
        self._state = state
        self._sinks = tuple(sinks)
        self._retain_ns = int(retain_s * 1e9)
        self._wall_ns = wall_ns

    async def keep(self) -> None:
        """Run until cancelled."""
        while True:
            await asyncio.to_thread(self.prune)
            await asyncio.sleep(_PRUNE_S)

    def prune(self) -> None:
        """Remove what may go."""
        try:
            freed = prune(self._folder, self._state, self._sinks, before_ns=self._wall_ns() - self._retain_ns)
        except (JournalDamaged, JournalFull) as exc:
            _log.warning("journal.not_pruned", error=str(exc))
            return
        if freed.segments:
            _log.info("journal.pruned", segments=freed.segments, bytes=freed.bytes, first_seq=freed.first_seq)
