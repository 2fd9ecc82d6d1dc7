"""What everybody is told about the segments' statuses: those of the calendar, unless a script says otherwise."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from tickvault.simulator.frames import SEGMENTS, market_info
from tickvault.simulator.timetable import CASH, following, standing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tickvault.simulator.calendar import Calendar
    from tickvault.simulator.clock import Clock

__all__ = ["Activity", "Board"]


class Activity(StrEnum):
    """What an instrument may do."""

    OPEN = "open"
    AUCTION = "auction"
    QUIET = "quiet"


class Board:
    """The statuses, and the task that changes them.

    Attributes:
        version: counts the changes.
    """

    def __init__(self, calendar: Calendar, clock: Clock, seed: int) -> None:
        """Show what a calendar, whose holidays have dates, has for this moment."""
        self._calendar, self._clock, self._seed = calendar, clock, seed
        self.version = 0
        self._shown_ms = clock.now_ms()
        self._statuses = standing(calendar, self._shown_ms, seed)

    def statuses(self) -> Mapping[tuple[str, str], tuple[str, int]]:
        """Return (scope, segment) → (status, since when in epoch ms)."""
        return self._statuses

    def frame(self) -> bytes:
        """Return a `market_info` frame with every status as it is now."""
        by_scope: dict[str, dict[str, tuple[str, int]]] = {"segment": {}, "cas": {}, "pre_open": {}}
        for (scope, segment), held in self._statuses.items():
            by_scope[scope][segment] = held
        segments = {segment: by_scope["segment"][segment][0] for segment in SEGMENTS}
        frame = market_info(self._clock.now_ms(), segments, cas=by_scope["cas"], pre_open=by_scope["pre_open"])
        return frame.SerializeToString(deterministic=True)

    def show(self, segment: str, scope: str, status: str) -> bool:
        """Change a status; False if it was that already. The caller tells everybody."""
        if self._statuses.get((scope, segment), ("", 0))[0] == status:
            return False
        self._statuses[scope, segment] = status, self._clock.now_ms()
        self.version += 1
        return True

    def activity(self, segment: str, *, cas_eligible: bool) -> Activity:
        """Return what instruments of a segment may do, as its statuses say."""
        status = self._statuses["segment", segment][0]
        if segment not in CASH:
            return Activity.OPEN if status == "NORMAL_OPEN" else Activity.QUIET
        if status == "PRE_OPEN_START":
            return Activity.AUCTION
        if status != "NORMAL_OPEN":
            return Activity.QUIET
        auction = self._statuses.get(("cas", segment), ("", 0))[0]
        if not cas_eligible or not auction:
            return Activity.OPEN
        return Activity.AUCTION if auction in {"CAS_LM_START", "CAS_M_STOP"} else Activity.QUIET

    async def run(self, tell: Callable[[], None]) -> None:
        """Follow the calendar, for ever; `tell` is called after the changes of each moment."""
        changed = False
        for change in following(self._calendar, self._shown_ms, self._seed):
            if changed and change.at_ms > self._shown_ms:
                tell()
                changed = False
            await self._clock.until(change.at_ms)
            self._shown_ms = change.at_ms
            changed |= self.show(change.segment, change.scope, change.status)
