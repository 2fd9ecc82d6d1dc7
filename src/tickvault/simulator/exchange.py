"""The exchange behind the sockets: its clock, who watches what, and the frames that tell them.

The clock never waits for a client. A slow one is told less often, with changes merged: that is what conflation is.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final, TypeVar

from tickvault.model import Mode
from tickvault.simulator.board import Activity
from tickvault.simulator.frames import data_frame, empty_entry
from tickvault.simulator.market import ALL, Auctioned, Market, Watch
from tickvault.simulator.script import Auction, Duplicate, Halt, Partial, Reorder, Slow, Strange, Timed
from tickvault.simulator.strange import strange
from tickvault.simulator.timetable import last_trading_ms
from tickvault.simulator.universe import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tickvault.simulator.board import Board
    from tickvault.simulator.calendar import Calendar
    from tickvault.simulator.clock import Clock
    from tickvault.simulator.connection import Connection
    from tickvault.simulator.framelog import FrameLog
    from tickvault.simulator.gate import Conditions
    from tickvault.simulator.settings import SimulatorSettings
    from tickvault.simulator.subscriptions import Answer
    from tickvault.simulator.universe import Instrument

__all__ = ["Exchange", "pace"]

_GRID_S: Final = 0.15
_CHANCE: Final = 0.6  # of a frame at a point of the grid: 4 a second
_SHORTEST_S: Final = 0.001  # about what the loop's timers can do

T = TypeVar("T", bound=Timed)


def pace(watched: int, rate: float) -> tuple[float, float]:
    """Return (seconds between points of the grid, chance of a frame at each) that carries `rate` updates a second.

    The broker's own grid, as long as a frame then has at most half of what is watched in it; beyond that, which no
    broker sends, frames follow one another faster, so that a benchmark gets its rate from few instruments too.
    """
    if watched == 0 or rate * _GRID_S / _CHANCE <= watched / 2:
        return _GRID_S, _CHANCE
    return max(_SHORTEST_S, watched / 2 / rate), 1.0


class Exchange:
    """The market and everybody connected to it.

    Attributes:
        connections: number → open connection.
        frames_sent: data frames handed to TCP.
        updates_sent: instrument entries in the live frames among them.
        log: where frames are recorded before they are sent.
    """

    def __init__(
        self,
        universe: Sequence[Instrument],
        settings: SimulatorSettings,
        calendar: Calendar,
        conditions: Conditions,
        board: Board,
        clock: Clock,
    ) -> None:
        """List the universe at the present time; nobody is connected."""
        self.connections: dict[int, Connection] = {}
        self.frames_sent = 0
        self.updates_sent = 0
        self.log: FrameLog | None = None
        self._universe, self._conditions, self._board, self._now_ms = universe, conditions, board, clock.now_ms
        self._rate = settings.updates_per_second
        start_ms = clock.now_ms()
        if board.activity("NSE_EQ", cas_eligible=False) is not Activity.OPEN:
            start_ms = last_trading_ms(calendar, start_ms)
        self._market = Market(universe, seed=settings.seed, start_ms=start_ms)
        self._watch = Watch(self._market.weights, {})
        # Why these may change, and (they, their share of everything watched).
        self._open: tuple[object, tuple[Watch, float]] = (None, (self._watch, 1.0))
        self._rng = random.Random(settings.seed)  # noqa: S311  # when frames go out, not a secret

    def holds(self, kind: type[T]) -> T | None:
        """Return the fault of this kind that is in force."""
        return self._conditions.now(kind, asyncio.get_running_loop().time())

    def subscribed(self, answer: Answer) -> None:
        """Watch what a connection now wants; what nobody looked at so far is brought up to the present."""
        now_ms, halt = self._now_ms(), self.holds(Halt)
        for position in answer.positions:
            if position not in self._watch.books and self._may_change(position, halt, forced=False):
                self._market.look(position, now_ms)
        self.watch_again()

    def watch_again(self) -> None:
        """Find out anew what anybody is subscribed to."""
        books: dict[int, bool] = {}
        for connection in self.connections.values():
            for position, mode in connection.subscriptions.modes.items():
                books[position] = books.get(position, False) or mode is not Mode.LTPC
        self._watch = Watch(self._market.weights, books)

    def render(self, connection: Connection, item: Answer | None) -> tuple[bytes, int]:
        """Build the frame of a snapshot, or of what has changed (None), and count its updates; empty without any."""
        now_ms, look, modes = self._now_ms(), self._market.look, connection.subscriptions.modes
        auction = self._market.auction
        if item is None:
            changes = connection.take_dirty()
            entries = [(look(i, now_ms, fresh=False), modes[i], parts) for i, parts in changes.items() if i in modes]
            if not entries:
                return b"", 0
            frame = data_frame(entries, now_ms, snapshot=False, auction=auction)
            return frame.SerializeToString(deterministic=True), len(entries)
        connection.told(item)
        entries = [(look(i, now_ms, fresh=False), item.mode, ALL) for i in item.positions]
        frame = data_frame(entries, now_ms, snapshot=True, auction=auction)
        for key in item.malformed:
            empty_entry(frame.feeds[key], item.mode)
        return frame.SerializeToString(deterministic=True), 0

    async def tell(self, connection: Connection, item: bytes | Answer | None) -> None:
        """Log a frame, then send it: the log has every frame that left, and of a client that went away perhaps one more.

        Args:
            connection: who is told.
            item: a frame as it is, or what `render` makes one of; an empty one is not sent.
        """
        payload, updates = (item, 0) if isinstance(item, bytes) else self.render(connection, item)
        if not payload:
            return
        for frame in [payload] if item is not None else self._garbled(connection, payload):
            if self.log is not None:
                await self.log.record(connection.number, frame)
            await connection.send(frame)
            self.frames_sent += 1
        self.updates_sent += updates

    def _garbled(self, connection: Connection, payload: bytes) -> list[bytes]:
        """Return the live frames that now leave, one for one unless a script says otherwise."""
        if (odd := connection.holds(Strange)) is not None:
            payload = strange(payload, odd.what)
        held, connection.held = connection.held, None
        if connection.holds(Reorder) is not None:
            if held is None:
                connection.held = payload
                return []
            return [payload, held]
        frames = [payload] if held is None else [held, payload]
        return [frame for frame in frames for _ in range(1 if connection.holds(Duplicate) is None else 2)]

    async def run_clock(self) -> None:
        """Let the market change, for ever, and note for every connection what has."""
        loop = asyncio.get_running_loop()
        due_s = told_s = loop.time()
        owed = 0.0
        while True:
            slow = self.holds(Slow)
            factor = 1.0 if slow is None else slow.factor
            watch, share = self._open_watch()
            rate = self._rate * share
            grid_s, chance = pace(len(watch.positions), rate)
            # Never catch up with frames missed; what they would have carried is owed, for up to a second.
            due_s = max(due_s + grid_s * factor, loop.time())
            await asyncio.sleep(due_s - loop.time())
            if self._rng.random() >= chance:
                continue
            # A status may have changed meanwhile.
            watch, share = self._open_watch()
            rate = self._rate * share
            now_s = loop.time()
            owed = min(owed + rate / factor * (now_s - told_s), rate + 1.0)
            told_s = now_s
            count = min(int(owed), len(watch.positions))
            if count:
                owed -= count
                self._tick(watch, count)

    def _tick(self, watch: Watch, count: int) -> None:
        partial = self.holds(Partial)
        self._market.partial = "" if partial is None else partial.parts
        changes = self._market.advance(self._now_ms(), watch, count)
        for connection in self.connections.values():
            connection.mark(changes)

    def _open_watch(self) -> tuple[Watch, float]:
        """Return what may change now, and its share of everything watched."""
        halt, auction = self.holds(Halt), self.holds(Auction)
        cause = (self._watch, self._board.version, halt, auction)
        # Thousands of instruments are asked only when something is different.
        if self._open[0] != cause:
            self._market.auction = self._auctioned(forced=auction is not None)
            watch = self._watch
            books = {i: b for i, b in watch.books.items() if self._may_change(i, halt, forced=auction is not None)}
            whole = len(books) == len(watch.books)
            open_ = watch if whole else Watch(self._market.weights, books)
            self._open = cause, (open_, 1.0 if whole else len(books) / len(watch.books))
        return self._open[1]

    def _auctioned(self, *, forced: bool) -> Auctioned:
        if forced or self._board.activity("NSE_EQ", cas_eligible=False) is Activity.AUCTION:
            return Auctioned.ALL
        closing = self._board.activity("NSE_EQ", cas_eligible=True) is Activity.AUCTION
        return Auctioned.ELIGIBLE if closing else Auctioned.NONE

    def _may_change(self, position: int, halt: Halt | None, *, forced: bool) -> bool:
        one = self._universe[position]
        if halt is not None and halt.segment in {"", one.segment}:
            return False
        return (forced and one.kind is Kind.EQUITY) or self._activity(position) is not Activity.QUIET

    def _activity(self, position: int) -> Activity:
        one = self._universe[position]
        return self._board.activity(one.segment, cas_eligible=one.cas_eligible)
