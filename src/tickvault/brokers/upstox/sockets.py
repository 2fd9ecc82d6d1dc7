"""The planned sockets side by side: one feed each, opened when the plan asks for it, closed when its keys have left."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tickvault.brokers.upstox.transitions import State
from tickvault.errors import FeedUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from tickvault.brokers.upstox.feed import Feed
    from tickvault.brokers.upstox.selector import Selector
    from tickvault.brokers.upstox.waits import Waits
    from tickvault.model import Inbox, Subscription

__all__ = ["OfSocket", "Sockets"]


class OfSocket:
    """An inbox in front of another one, which is told which socket facts are of; those of the first say nothing.

    Args:
        inbox: gets everything.
        socket: number of the socket, from 0.
    """

    def __init__(self, inbox: Inbox, socket: int) -> None:
        self.frame = inbox.frame
        self._inbox = inbox
        self._named = {"socket": socket + 1} if socket else {}

    async def fact(self, kind: str, body: Mapping[str, object]) -> None:
        """Hand a fact on (model.Inbox)."""
        await self._inbox.fact(kind, {**body, **self._named})


@dataclass(slots=True)
class _Slot:
    """A socket of the plan: its feed, what ends it, and what it was asked for."""

    feed: Feed
    stopping: asyncio.Event
    served: tuple[Subscription, ...] = ()


class Sockets:
    """Runs the feeds that the plan asks for.

    Args:
        selector: keeps the plan; reviewed already.
        open_feed: makes the feed of a socket (from 0), which asks for its subscriptions.
        waits: tells what waits for the master list.

    Attributes:
        feeds: that run, in the order of their sockets; replaced, never changed.
    """

    def __init__(
        self,
        selector: Selector,
        open_feed: Callable[[int, Callable[[], Awaitable[tuple[Subscription, ...]]]], Feed],
        waits: Waits,
    ) -> None:
        self.feeds: list[Feed] = []
        self._selector = selector
        self._open_feed = open_feed
        self._waits = waits
        self._slots: dict[int, _Slot] = {}
        self._left_frames = 0  # of feeds that were closed
        self._group: asyncio.TaskGroup | None = None
        self._stopping = asyncio.Event()
        self._failure: Exception | None = None

    @property
    def frames(self) -> int:
        """Binary messages received, over all sockets."""
        return self._left_frames + sum(feed.frames for feed in self.feeds)

    async def run(self, stopping: asyncio.Event) -> None:
        """Receive until `stopping` is set; then everything read is in the inbox, and all connections are closed.

        Raises:
            TokenRefused: at the very first attempt of the first socket, of a static token.
        """
        await self._waits.begin(self._selector.unlisted)
        async with asyncio.TaskGroup() as group:
            self._group = group
            keeper = group.create_task(self._keep(), name="sockets:keep")
            ender = group.create_task(self._end_when(stopping), name="sockets:stopping")
            await self._stopping.wait()
            keeper.cancel()
            ender.cancel()
            for slot in self._slots.values():
                slot.stopping.set()
        if self._failure is not None:
            raise self._failure

    def apply(self) -> None:
        """Open the sockets that the plan has besides, tell open connections what has come and gone, close empty ones."""
        sockets = self._selector.plan.sockets
        for socket, planned in enumerate(sockets or ((),)):  # one at least, to ask for keys
            slot = self._slots.get(socket)
            if slot is None:
                if planned or not any(sockets):
                    self._open(socket, planned)
                continue
            if planned != slot.served:
                served, wanted = set(slot.served), set(planned)
                new = tuple(one for one in planned if one not in served)
                gone = tuple(one.instrument_key for one in slot.served if one not in wanted)
                if not slot.stopping.is_set() and slot.feed.change(new, gone):
                    slot.served = planned
            elif not planned and any(sockets) and slot.feed.state is State.LIVE:
                slot.stopping.set()  # an account has few connections, and its owner may want this one

    def _open(self, socket: int, planned: tuple[Subscription, ...]) -> None:
        assert self._group is not None
        slot = _Slot(self._open_feed(socket, self._asked_by(socket)), asyncio.Event())
        self._slots[socket] = slot
        self._list()
        self._group.create_task(self._receive(socket, slot, planned), name=f"feed:{socket + 1}")

    def _list(self) -> None:
        self.feeds = [slot.feed for _, slot in sorted(self._slots.items())]

    async def _end_when(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self._stopping.set()

    async def _keep(self) -> None:
        while True:
            self.apply()
            await asyncio.sleep(self._selector.pause_s)
            await self._waits.end(self._selector.unlisted)  # whatever came of it is subscribed to by now
            with contextlib.suppress(FeedUnavailable):  # the feed says so, at each attempt
                await self._selector.review()
            await self._waits.begin(self._selector.unlisted)

    async def _receive(self, socket: int, slot: _Slot, planned: tuple[Subscription, ...]) -> None:
        try:
            await slot.feed.announce(planned)
            await slot.feed.run(slot.stopping)
        except Exception as exc:  # noqa: BLE001 - whatever ends one socket, the others hand over what they have read
            self._failure = self._failure or exc
            self._stopping.set()
        if not self._stopping.is_set():
            self._left_frames += slot.feed.frames
            del self._slots[socket]
            self._list()

    def _asked_by(self, socket: int) -> Callable[[], Awaitable[tuple[Subscription, ...]]]:
        async def subscriptions() -> tuple[Subscription, ...]:
            found = await self._selector.subscriptions(socket)
            self._slots[socket].served = found
            await self._waits.begin(self._selector.unlisted)
            self.apply()  # the others have their part of what is new
            return found

        return subscriptions
