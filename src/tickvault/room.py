"""Keeps room on the disk (docs/durability.md).

Delivered segments older than the retention are removed. When less than the reserve is free, delivered segments go
whatever their age; when that is not enough intake stands still, with a gap, until there is room again. What is not
delivered is removed only when the settings say so.
"""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from tickvault import prune, survey
from tickvault.errors import JournalDamaged, JournalFull, Refused
from tickvault.intake import disk_notice
from tickvault.journal import Fact

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection
    from pathlib import Path

    from tickvault.errors import TickvaultError
    from tickvault.intake import Intake
    from tickvault.settings import DiskReserve
    from tickvault.state import State

__all__ = ["Room"]

_log: Final = structlog.get_logger(__name__)
_PRUNE_S: Final = 60.0
_STANDS_IN_THE_WAY: Final = (JournalDamaged, JournalFull, Refused)
_LOOK_S: Final = 1.0
_MORE: Final = 1.05  # times the reserve must be free before intake goes on: it is not to stop again at once


class Room:
    """Looks after the disk of one data folder; one task.

    Args:
        folder: the journal folder.
        state: beside it.
        intake: held while there is no room.
        sinks: those in use; what they have not stored for good stays.
        retain_s: delivered frames are kept this long.
        reserve: how much is to stay free.
        drop_oldest: whether to remove what is not delivered rather than to stand still.
        roll: ends the segment that is being written, so that it may go when it is delivered.
        journal_fact: commits a fact.
        mend: replaces a damaged file of the journal by what is whole in it.
        wall_ns: UTC wall clock in ns.
    """

    def __init__(
        self,
        folder: Path,
        state: State,
        intake: Intake,
        *,
        sinks: Collection[str],
        retain_s: float,
        reserve: DiskReserve,
        drop_oldest: bool,
        roll: Callable[[], Awaitable[None]],
        journal_fact: Callable[[Fact], Awaitable[None]],
        mend: Callable[[Path, str], Awaitable[None]],
        wall_ns: Callable[[], int],
    ) -> None:
        self._folder = folder
        self._state = state
        self._intake = intake
        self._sinks = tuple(sinks)
        self._retain_ns = int(retain_s * 1e9)
        self._reserve = reserve
        self._drop_oldest = drop_oldest
        self._roll = roll
        self._journal_fact = journal_fact
        self._mend = mend
        self._wall_ns = wall_ns
        self._low = False
        self._rolled = self._told = False  # since it is low

    async def keep(self) -> None:
        """Run until cancelled."""
        loop = asyncio.get_running_loop()
        prune_s = loop.time()
        while True:
            if loop.time() >= prune_s:
                await self._prune(before_ns=self._wall_ns() - self._retain_ns)
                prune_s = loop.time() + _PRUNE_S
            try:
                await self.look()
            except _STANDS_IN_THE_WAY as exc:
                _log.warning("disk.no_room_made", error=str(exc))
            await asyncio.sleep(_LOOK_S)

    async def look(self) -> None:
        """See how much is free, and do what follows from it."""
        if not (missing := await asyncio.to_thread(self._missing)):
            if self._low:
                self._low = False
                _log.info("disk.room")
            self._intake.hold(None)
            return
        if not self._low:
            self._low, self._rolled, self._told = True, False, False
            _log.warning("disk.low", free_bytes=shutil.disk_usage(self._folder).free, missing_bytes=missing)
        if not self._rolled:
            self._rolled = await self._done(self._roll())
        await self._prune(before_ns=None, bytes_wanted=missing)
        if (missing := await asyncio.to_thread(self._missing)) and self._drop_oldest:
            await self._drop()
            missing = await asyncio.to_thread(self._missing)
        self._intake.hold(f"less than the reserve of {self._reserve} is free" if missing else None)
        if not self._told:
            self._told = await self._done(asyncio.to_thread(self._tell))

    async def _done(self, step: Awaitable[None]) -> bool:
        """Take a step that needs room itself; False when there was none: what makes room comes first."""
        try:
            await step
        except _STANDS_IN_THE_WAY as exc:
            _log.warning("disk.no_room_made", error=str(exc))
            return False
        return True

    def _missing(self) -> int:
        """Return how many bytes must be freed; while intake is held, with some to spare."""
        usage = shutil.disk_usage(self._folder)
        needed = self._reserve.of(usage.total) * (_MORE if self._intake.held else 1)
        return max(0, int(needed) - usage.free)

    def _tell(self) -> None:
        usage = shutil.disk_usage(self._folder)
        text = f"{usage.free:,} of {usage.total:,} bytes are free on the disk of {self._folder.parent}, the reserve is {self._reserve}"
        row = self._state.journal()
        if row is not None:
            notice = disk_notice(text, recorder_id=row[0], seq=row[1], at_ns=self._wall_ns())
            self._state.put_gaps([], notices=[notice], now_ns=self._wall_ns())

    async def _prune(self, *, before_ns: int | None, bytes_wanted: int | None = None) -> None:
        """Remove delivered segments; a damaged one that stands in the way is replaced, and goes the next time."""
        try:
            freed = await asyncio.to_thread(
                prune.prune, self._folder, self._state, self._sinks, before_ns=before_ns, bytes_wanted=bytes_wanted
            )
        except _STANDS_IN_THE_WAY as exc:
            await self._not_pruned(exc)
            return
        if freed.segments:
            _log.info("journal.pruned", segments=freed.segments, bytes=freed.bytes, first_seq=freed.first_seq)

    async def _not_pruned(self, exc: TickvaultError) -> None:
        _log.warning("journal.not_pruned", error=str(exc))
        if isinstance(exc, JournalDamaged) and exc.path is not None:
            with suppress(*_STANDS_IN_THE_WAY):
                await self._mend(exc.path, str(exc))

    async def _drop(self) -> None:
        """Remove the oldest segment that is not delivered; what is lost is journalled first, once."""
        try:
            lost = await asyncio.to_thread(prune.oldest, self._folder, self._state, self._sinks)
            if lost is None:
                return
            low, high = int(str(lost["from"])), int(str(lost["to"]))
            told = await asyncio.to_thread(survey.lost_ranges, self._folder)
            if not any(begin <= low and high <= end for begin, end in told):
                await self._journal_fact(Fact("lost", lost))
            freed = await asyncio.to_thread(prune.prune, self._folder, self._state, (), before_ns=None, up_to_seq=high)
        except _STANDS_IN_THE_WAY as exc:
            await self._not_pruned(exc)
            return
        _log.warning("journal.dropped", frames=high - low + 1, first_seq=freed.first_seq)
