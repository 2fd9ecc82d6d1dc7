"""Journals from when to when selections wait for the master list: what they would bring is not recorded meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tickvault.brokers.upstox.resolve import hoped_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tickvault.model import Inbox
    from tickvault.selections import Selection

__all__ = ["Waits"]

_SHOWN: Final = 5


class Waits:
    """The facts `watch` `waiting` and `resolved`, each for the segments that it is about.

    Args:
        inbox: gets them.
    """

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._told: frozenset[str] = frozenset()

    async def begin(self, unlisted: Sequence[Selection]) -> None:
        """Tell what waits now and did not before; called after each look at the list.

        Args:
            unlisted: the selections that wait.
        """
        if new := hoped_for(unlisted) - self._told:
            self._told |= new
            detail = f"{', '.join(one.text for one in unlisted[:_SHOWN])} waits for the master list"
            await self._inbox.fact("watch", {"state": "waiting", "segments": sorted(new), "detail": detail})

    async def end(self, unlisted: Sequence[Selection]) -> None:
        """Tell what does not wait any more; called when what came of it is about to be subscribed to.

        Args:
            unlisted: the selections that wait still.
        """
        if gone := self._told - hoped_for(unlisted):
            self._told -= gone
            await self._inbox.fact("watch", {"state": "resolved", "segments": sorted(gone)})
