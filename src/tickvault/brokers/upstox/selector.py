"""What to subscribe to, and on which socket, kept up to date.

Selections are resolved and planned at start, each morning, and when a price moves or a strike is listed within the day.

Laws:
    Within a session the wanted keys only grow; a key never changes its socket.
    What cannot be resolved, or does not fit, is said once and skipped; it never keeps the rest from being recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import time
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from tickvault.brokers.upstox.planner import EMPTY, arithmetic, plan
from tickvault.brokers.upstox.resolve import Listing, Resolution, needs_list, resolve
from tickvault.brokers.upstox.shortfall import in_words
from tickvault.errors import ConfigurationError, FeedUnavailable
from tickvault.model import IST, segment_of
from tickvault.selections import Key, ListFile, Selection, Symbol, lines_of, parse_selection

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from tickvault.brokers.upstox.instruments import InstrumentList
    from tickvault.brokers.upstox.planner import Plan
    from tickvault.model import Subscription

__all__ = ["Selector", "Source", "Typed", "read_files", "session_date"]

# Before the pre-open (09:00), behind the broker's new list (about 06:00), while nothing trades.
MORNING: Final = dt.timedelta(hours=8, minutes=30)
FIRST_LIST_S: Final = 5.0  # of waiting for the list at start; then the copy serves

# What has a fixed number of keys: too many of these are a mistake in the settings, and not the market's doing.
_FIXED: Final = (Key, Symbol, ListFile)
_MAX_FILE_CHARS: Final = 4 * 1024 * 1024  # the whole master list has some 3 million characters of keys
_SHOWN: Final = 5

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def session_date(now_ns: int) -> dt.date:
    """Return the day of the session that a time belongs to; the next one begins at 08:30 in India."""
    return (dt.datetime.fromtimestamp(now_ns / 1e9, IST) - MORNING).date()


def read_files(selections: Iterable[Selection]) -> tuple[list[Selection], list[str]]:
    """Return the selections with files replaced by what they hold, and what is wrong with lines of files. Blocks.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    found: list[Selection] = []
    wrong: list[str] = []
    for one in selections:
        if not isinstance(one.what, ListFile):
            found.append(one)
            continue
        try:
            with one.what.path.expanduser().open(encoding="utf-8-sig") as file:
                text = file.read(_MAX_FILE_CHARS + 1)
        except (OSError, UnicodeDecodeError, RuntimeError) as exc:
            why = getattr(exc, "strerror", None) or "expected text in UTF-8"
            raise ConfigurationError(
                f"{one.text} cannot be read: {why}; expected a file with a selection a line"
            ) from exc
        if len(text) > _MAX_FILE_CHARS:
            raise ConfigurationError(
                f"{one.text} has more than {_MAX_FILE_CHARS} characters; expected a file with a selection a line"
            )
        for line in lines_of(text):
            try:
                found.append(parse_selection(line, one.mode, typed=False))
            except ValueError as exc:
                wrong.append(f"{one.text}: {exc}")
    return found, wrong


class Source(Protocol):
    """Where selections come from.

    Attributes:
        skipped: what is wrong with items that were left out, in words.
    """

    skipped: tuple[str, ...]

    async def __call__(self) -> tuple[Selection, ...]:
        """Return the selections as they are now; asked at start, at each reconnect and each morning.

        Raises:
            FeedUnavailable: there are none at present.
        """


class Typed:
    """What a user typed as a setting; a mistake in it is one in the settings."""

    def __init__(self, selections: tuple[Selection, ...]) -> None:
        self.skipped: tuple[str, ...] = ()
        self.selections = selections

    async def __call__(self) -> tuple[Selection, ...]:
        """Return them."""
        return self.selections


class Selector:
    """Keeps the plan.

    Args:
        source: of the selections.
        master: the master list, which somebody keeps fresh; None without one, then only keys mean something.
        prices: last prices of the keys that `follow` was called with; called in a thread.
        follow: called with the keys whose prices decide on strikes.
        plus: whether the account has the Plus plan.
        wall_ns: UTC wall clock in ns.

    Attributes:
        plan: where the keys go.
        skipped: selections that come to nothing, in words.
    """

    def __init__(
        self,
        *,
        source: Source,
        master: InstrumentList | None,
        prices: Callable[[], Mapping[str, float]],
        follow: Callable[[Iterable[str]], None],
        plus: bool,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.plan: Plan = EMPTY
        self.skipped: tuple[str, ...] = ()
        self._source = source
        self._master = master
        self._prices = prices
        self._follow = follow
        self._plus = plus
        self._wall_ns = wall_ns
        self._reviewing = asyncio.Lock()
        self._session: dt.date | None = None
        self._selections: list[Selection] = []
        self._wrong: list[str] = []
        self._wanted: dict[str, Subscription] = {}
        self._held: frozenset[str] = frozenset()
        self._listing: Listing | None = None
        self._listing_of: tuple[object, object] = (None, None)
        self._resolution = Resolution()
        self._told: tuple[object, ...] = ()

    @property
    def refused(self) -> str | None:
        """What does not fit, with the arithmetic."""
        return arithmetic(self.plan, plus=self._plus) if self.plan.refused else None

    @property
    def list_lost(self) -> str | None:
        """What the master list has lost, in words."""
        return in_words(self._master.lost) if self._master is not None and self._master.lost else None

    @property
    def planned(self) -> tuple[str, ...]:
        """The keys of all sockets."""
        return tuple(one.instrument_key for socket in self.plan.sockets for one in socket)

    @property
    def segments(self) -> frozenset[str]:
        """The segments of these."""
        return frozenset(map(segment_of, self.planned))

    @property
    def unpriced(self) -> tuple[str, ...]:
        """Keys whose price is awaited, to know which strikes are wanted."""
        return self._resolution.unpriced

    @property
    def unlisted(self) -> tuple[Selection, ...]:
        """The selections that wait for the master list."""
        if self._master is None or self._listing is not None:
            return ()
        return tuple(one for one in self._selections if not isinstance(one.what, Key))

    @property
    def waiting(self) -> bool:
        """Whether more is wanted than can be planned yet, for want of the master list or of any selection."""
        return not self.plan.keys or bool(self.unlisted)

    @property
    def pause_s(self) -> float:
        """How long to wait before the next review."""
        if self._resolution.unpriced:
            return 1.0
        return 5.0 if self._resolution.priced or self.unlisted else 60.0

    def hold(self, keys: Collection[str]) -> None:
        """Keep the strikes among these keys, subscribed to earlier in this session by a recorder that ended."""
        self._held = frozenset(keys)

    async def prepare(self) -> None:
        """Review for the first time.

        Raises:
            ConfigurationError: what a user typed comes to nothing by the list as it is now, or cannot all be served.
        """
        try:
            async with self._reviewing:
                await self._ask()
            await self._refresh(FIRST_LIST_S)
            await self.review()
        except FeedUnavailable:
            return  # the feed asks again, and says so
        typed = [one for one in self._resolution.problems if one.selection.typed]
        if typed and isinstance(self._source, Typed) and self._master is not None and self._master.fresh:
            raise ConfigurationError(f"TICKVAULT_INSTRUMENTS: {'; '.join(map(str, typed[:_SHOWN]))}; correct it")
        fixed = all(isinstance(one.what, _FIXED) for one in self._selections)
        if self.refused and fixed and isinstance(self._source, Typed):
            raise ConfigurationError(f"TICKVAULT_INSTRUMENTS: {self.refused}; take some out, or use another mode")

    async def subscriptions(self, socket: int) -> tuple[Subscription, ...]:
        """Return what a socket is to subscribe to, as it is now; for a connection that is about to be opened.

        Raises:
            FeedUnavailable: there is nothing to subscribe to yet.
        """
        await self.review(anew=True)
        if not self.plan.keys:
            raise FeedUnavailable(f"there is nothing to subscribe to: {'; '.join(self.skipped[:_SHOWN]) or 'no keys'}")
        return self.plan.sockets[socket] if socket < len(self.plan.sockets) else ()

    async def review(self, *, anew: bool = False) -> None:
        """Bring the plan up to date.

        Args:
            anew: ask the source again.

        Raises:
            FeedUnavailable: the source has no selections yet.
            ConfigurationError: at the first review, a file cannot be read.
        """
        session = session_date(self._wall_ns())
        # A connection that is about to be opened waits for no list; the morning's begins with the next review.
        morning = not anew and self._session not in (None, session)
        if morning:
            await self._refresh(None)
        async with self._reviewing:
            if anew or morning or not self._selections:
                await self._ask()
            if needs_list(self._selections):
                await self._read()
            if morning:
                self._wanted, self._held = {}, frozenset()
            if morning or self._session is None:
                self._session = session
            self._take(*await asyncio.to_thread(self._work_out, self._session))

    async def _ask(self) -> None:
        try:
            self._selections, self._wrong = await asyncio.to_thread(read_files, await self._source())
        except ConfigurationError as exc:
            if self._session is None:
                raise
            self._wrong = [str(exc)]  # what the file held before stays

    async def _refresh(self, timeout_s: float | None) -> None:
        """Compare the list with the broker's; when that fails, whoever keeps it fresh tries again."""
        if self._master is None or not needs_list(self._selections):
            return
        with contextlib.suppress(TimeoutError, FeedUnavailable):
            async with asyncio.timeout(timeout_s):
                await self._master.refresh()

    async def _read(self) -> None:
        if self._master is None:
            return
        asked = tuple(self._selections)
        key = (await self._master.version(), asked)
        if key != self._listing_of and key[0] is not None:
            self._listing = await self._master.read(lambda rows: Listing(asked, rows)) or self._listing
            self._listing_of = key

    def _work_out(self, session: dt.date) -> tuple[Resolution, list[Subscription], Plan]:
        """Return what selections come to, what of it is new, and where all goes; slow with thousands, changes nothing."""
        selections, listing = self._selections, self._listing
        if listing is None:  # keys need none
            selections, listing = [one for one in selections if isinstance(one.what, Key)], Listing((), ())
        held = self._held | self._wanted.keys()
        resolution = resolve(selections, listing, session, self._prices(), held)
        new = [one for one in resolution.subscriptions if one.instrument_key not in self._wanted]
        return resolution, new, plan((*self._wanted.values(), *new), plus=self._plus, previous=self.plan)

    def _take(self, resolution: Resolution, new: Iterable[Subscription], outcome: Plan) -> None:
        self._resolution, self.plan = resolution, outcome
        self._follow(resolution.priced)
        before = len(self._wanted)
        self._wanted.update((one.instrument_key, one) for one in new)
        waiting = self._unlisted()
        without = "wait for the master list" if self._master else "mean nothing with UPSTOX_INSTRUMENTS_URL=off"
        self.skipped = (
            *self._wrong,
            *self._source.skipped,
            *map(str, resolution.problems),
            *([f"{', '.join(waiting[:_SHOWN])} {without}"] if waiting else []),
        )
        if len(self._wanted) > before:
            log.info(
                "plan.grown", keys=len(self._wanted), new=len(self._wanted) - before, sockets=len(self.plan.sockets)
            )
        if (told := (self.skipped, self.refused, resolution.fewer)) != self._told:
            self._told = told
            if resolution.fewer:
                log.warning("selections.fewer", examples=list(resolution.fewer[:_SHOWN]))
            if self.skipped:
                log.warning("selections.skipped", count=len(self.skipped), examples=list(self.skipped[:_SHOWN]))
            if self.refused:
                log.warning("plan.refused", what=self.refused)

    def _unlisted(self) -> list[str]:
        """Return the selections that mean nothing without a list, while there is none."""
        return [one.text for one in self._selections if not isinstance(one.what, Key)] if self._listing is None else []
