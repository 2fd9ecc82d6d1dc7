"""Brings instrument definitions into force: before a subscribe what can be had at once, the rest when the list has it."""

from __future__ import annotations

import asyncio
import contextlib
from itertools import islice
from typing import TYPE_CHECKING, Final

import structlog

from tickvault.errors import FeedUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from tickvault.brokers.upstox.instruments import InstrumentList
    from tickvault.model import Definition, Subscription

__all__ = ["Definitions"]

_AT_ONCE: Final = 200
_PAUSE_S: Final = 60.0  # between looks at the list; it is compared with the broker's when it is no longer fresh

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Definitions:
    """Definitions of what all sockets subscribe to.

    Args:
        master: the master list; None for none.
        planned: the keys of all sockets, as they are now.
        journal: journals the definitions that differ from those in force; gets a few hundred at a time.
    """

    def __init__(
        self,
        master: InstrumentList | None,
        planned: Callable[[], Iterable[str]],
        journal: Callable[[Mapping[str, Definition]], Awaitable[None]],
    ) -> None:
        self._master = master
        self._planned = planned
        self._journal = journal
        self._asking = asyncio.Lock()
        self._wanting = asyncio.Event()
        if master is not None and not master.fresh:
            self._wanting.set()  # selections may wait for it too, and without them nothing is ever subscribed to
        self._version: object = None

    async def bring_into_force(self, subscriptions: tuple[Subscription, ...]) -> None:
        """Journal the definitions of what is about to be subscribed to, as far as they differ from those in force."""
        if self._master is None:
            return
        # All sockets' keys at once: the list remembers what it was asked for last, and need not be read again.
        keys = dict.fromkeys((*self._planned(), *(one.instrument_key for one in subscriptions)))
        async with self._asking:  # sockets that open together wait for one download
            version = await self._master.version()
            self._version = None  # whoever waits for this may give up; `keep` does not
            await self._tell(await self._master.definitions(tuple(keys)))
            self._version = version
        if not self._master.fresh:
            self._wanting.set()

    async def keep(self) -> None:
        """Keep the list fresh, and journal what changes in it of keys that are subscribed to."""
        if self._master is None:
            return
        told = ""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE_S):
                    await self._wanting.wait()
            try:
                if not self._master.fresh:
                    await self._master.refresh(tuple(self._planned()))
            except FeedUnavailable as exc:
                if (error := str(exc)) != told:
                    told = error
                    log.info("instruments.waiting", error=error, next_try_s=_PAUSE_S)
                await asyncio.sleep(_PAUSE_S)
                continue
            told = ""
            self._wanting.clear()
            async with self._asking:
                if (version := await self._master.version()) != self._version:
                    self._version = version
                    await self._tell(await self._master.lookup(tuple(self._planned())))

    async def _tell(self, found: Mapping[str, Definition]) -> None:
        for start in range(0, len(found), _AT_ONCE):
            await self._journal(dict(islice(found.items(), start, start + _AT_ONCE)))
            await asyncio.sleep(0)  # thousands in one go would hold the event loop
