"""The composition root: opens what a recorder consists of, runs it, and takes it down in order.

Two nested stages: deliveries outside, intake inside. Leaving the inner one means that nothing new will be journalled;
only then do deliveries finish. Stopping is data (an event), cancelling is failure.
"""

from __future__ import annotations

import asyncio
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import aiohttp
import structlog

from tickvault import __version__, snapshots
from tickvault.brokers.upstox.api import UpstoxApi
from tickvault.brokers.upstox.baselinefile import BaselineFile
from tickvault.brokers.upstox.calendar import MarketCalendar
from tickvault.brokers.upstox.closing import is_over
from tickvault.brokers.upstox.feed import Feed
from tickvault.brokers.upstox.instruments import InstrumentList
from tickvault.brokers.upstox.keylist import InstrumentsUrl
from tickvault.brokers.upstox.tokens import Tokens
from tickvault.datafolder import DataFolder, recorded
from tickvault.delivery import Delivery
from tickvault.errors import FeedUnavailable, JournalFull, Refused
from tickvault.intake import Intake, Progress, commit, gap_notices
from tickvault.journal import Fact, Journal
from tickvault.ledger import Sessions
from tickvault.model import segment_of
from tickvault.notify import Notifier
from tickvault.rewind import Cursors
from tickvault.sinks.influx import InfluxSink
from tickvault.sinks.parquet import ParquetSink, ParquetStore
from tickvault.state import State
from tickvault.tokenwatch import TokenWatch
from tickvault.web.status import StatusServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from tickvault.brokers.upstox.baseline import Baseline
    from tickvault.health import FeedHealth, Snapshot
    from tickvault.model import Sink, Subscription
    from tickvault.settings import InfluxSettings, NotifySettings, Settings
    from tickvault.state import Cursor

__all__ = ["Outcome", "Recorder", "influx_sink", "rewind"]

_log: Final = structlog.get_logger(__name__)
_MESSAGES: Final = {
    "influx": "Data feed has been successfully transferred to InfluxDB",
    "parquet": "Data feed has been successfully stored as Parquet",
}
_LOOK_S: Final = 1.0  # whether trading is over
_REFRESH_PAUSE_S: Final = 60.0  # between tries to get the master list while recording without it


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a run did.

    Attributes:
        received: frames taken from the feed.
        journalled: frames made durable.
        stored: sink → frames delivered; `rows`: sink → table → rows.
        remaining: sink → frames that still wait in the journal, for those that are behind.
        parked: sinks that were parked.
    """

    received: int = 0
    journalled: int = 0
    stored: dict[str, int] = field(default_factory=dict)
    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    remaining: dict[str, int] = field(default_factory=dict)
    parked: list[str] = field(default_factory=list)


class Recorder:
    """One recorder on one data folder."""

    def __init__(self, settings: Settings, *, wall_ns: Callable[[], int] = time.time_ns) -> None:
        self._settings = settings
        self._wall_ns = wall_ns
        self._rng = random.Random()  # noqa: S311 - jitter, not a secret
        self._started_s = time.monotonic()
        self._feed: Feed | None = None
        self._token: TokenWatch | None = None
        self._intake: Intake | None = None
        self._deliveries: list[Delivery] = []
        self._until_close = False

    async def run(self, stopping: asyncio.Event, *, until_close: bool = False) -> Outcome:
        """Record until `stopping` is set, then drain for at most `shutdown_s`.

        Args:
            stopping: set by whoever wants an end.
            until_close: set it ourselves when trading is over for today in everything that is subscribed to.

        Raises:
            Refused: the data folder, or the status address, cannot be had.
            TokenRefused: the very first authorize refused a static token.
        """
        self._until_close = until_close
        async with AsyncExitStack() as stack:
            folder = stack.enter_context(DataFolder(self._settings.data_dir))
            await self._serve_status(stack, folder)
            state, _ = State.open(
                folder.state,
                notify_interval_ns=int((self._settings.notify.interval_s if self._settings.notify else 0) * 1e9),
                events=_wanted_events(self._settings.notify),
            )
            stack.callback(state.close)
            journal = await asyncio.to_thread(Journal.open, folder.journal, state, wall_ns=self._wall_ns)
            first_seq = journal.last_seq
            executor = ThreadPoolExecutor(1, thread_name_prefix="journal")
            stack.callback(_close_journal, executor, journal, state)
            await asyncio.to_thread(_reconcile_gaps, journal, state, self._wall_ns())
            session = await stack.enter_async_context(aiohttp.ClientSession())
            self._intake = Intake(
                max_frames=self._settings.queue_frames, max_bytes=self._settings.queue_bytes, wall_ns=self._wall_ns
            )
            stage = _Stage(folder, state, journal, executor, session, Progress(journal.last_seq), self._intake)
            self._deliveries = await self._open_deliveries(stack, stage)
            _log.info("recorder.started", recorder_id=journal.recorder_id, seq=journal.last_seq, version=__version__)
            await self._deliver(stage, stopping)
            outcome = self._outcome(journal.last_seq - first_seq, state, journal.last_seq)
            _log.info("recorder.stopped", received=outcome.received, journalled=outcome.journalled)
            return outcome

    def snapshot(self) -> Snapshot:
        """Return how the recorder is; reads files, so call it in a thread."""
        uptime_s = round(time.monotonic() - self._started_s, 1)
        return snapshots.take(self._settings.data_dir, uptime_s=uptime_s, feed=self._feed_health())

    async def _deliver(self, stage: _Stage, stopping: asyncio.Event) -> None:
        """Run deliveries and webhook around the intake."""
        told = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            deliveries = [
                group.create_task(delivery.run(), name=f"deliver:{delivery.name}") for delivery in self._deliveries
            ]
            telling: list[asyncio.Task[None]] = []
            if self._settings.notify is not None:
                telling.append(group.create_task(self._notifier(stage, self._settings.notify).run(told), name="notify"))
            failure = await self._take_in(stage, stopping)
            await stage.progress.end()
            loop = asyncio.get_running_loop()
            deadline_s = loop.time() + self._settings.shutdown_s
            if deliveries:
                await asyncio.wait(deliveries, timeout=self._settings.shutdown_s)
            told.set()
            if telling:  # what a receiver does not take in the time left stays in the outbox
                await asyncio.wait(telling, timeout=max(0.5, deadline_s - loop.time()))
            for task in (*deliveries, *telling):
                task.cancel()
        if failure is not None:
            raise failure

    async def _take_in(self, stage: _Stage, stopping: asyncio.Event) -> Exception | None:
        """Receive and journal until told to stop; return what ended it before."""
        failure: Exception | None = None
        usual = await asyncio.to_thread(BaselineFile, stage.folder.path / "baseline.json")
        tokens = Tokens.of(self._settings, stage.session, wall_ns=self._wall_ns)
        feed, definitions, calendar = self._open_feed(stage, tokens, usual.baseline)
        watch = TokenWatch(tokens, wall_ns=self._wall_ns, fact=stage.intake.fact)
        self._feed, self._token = feed, watch
        async with asyncio.TaskGroup() as group:
            group.create_task(
                stage.intake.record(stage.journal, stage.state, stage.executor, stage.progress), name="record"
            )
            keepers = [
                group.create_task(definitions.keep(), name="definitions"),
                group.create_task(watch.keep(), name="token"),
                group.create_task(calendar.keep(), name="calendar"),
                group.create_task(usual.keep(), name="baseline"),
            ]
            if self._until_close:
                keepers.append(
                    group.create_task(self._end_with_trading(feed, definitions, calendar, stopping), name="close")
                )
            try:
                await feed.run(stopping)
            except Exception as exc:  # noqa: BLE001 - whatever ends intake, what is queued is journalled first
                failure = exc
            finally:
                for keeper in keepers:
                    keeper.cancel()
                await stage.intake.close()
        await stage.in_journal(Fact("stop", {"reason": "failed" if failure else "asked to"}))
        await usual.write()
        return failure

    async def _end_with_trading(
        self, feed: Feed, definitions: _Definitions, calendar: _CalendarKeeper, stopping: asyncio.Event
    ) -> None:
        """Set `stopping` when nothing that is subscribed to trades any more today."""
        while True:
            await asyncio.sleep(_LOOK_S)
            now_ns, known = self._wall_ns(), calendar.market.calendar
            keys = definitions.keys or tuple(one.instrument_key for one in self._settings.subscriptions)
            segments = frozenset(map(segment_of, keys))
            if calendar.market.asked and is_over(segments, known, feed.phases, now_ns):
                _log.info("recorder.trading_over", segments=sorted(segments))
                stopping.set()
                return

    def _open_feed(
        self, stage: _Stage, tokens: Tokens, baseline: Baseline
    ) -> tuple[Feed, _Definitions, _CalendarKeeper]:
        upstox = self._settings.upstox
        listed = self._settings.subscriptions
        if self._settings.instruments_list_url is not None:
            subscriptions: Callable[[], Awaitable[tuple[Subscription, ...]]] = InstrumentsUrl(
                self._settings.instruments_list_url, stage.session, self._settings.mode
            )
        else:

            async def subscriptions() -> tuple[Subscription, ...]:
                return listed

        master = None
        if upstox.instruments_url is not None:
            master = InstrumentList(url=upstox.instruments_url, cache_dir=stage.folder.path, session=stage.session)
        definitions = _Definitions(master, stage)
        market = MarketCalendar(upstox.api_url, stage.folder.path, stage.session, wall_ns=self._wall_ns)
        feed = Feed(
            api=UpstoxApi(upstox.api_url, stage.session),
            tokens=tokens,
            subscriptions=subscriptions,
            inbox=stage.intake,
            before_subscribe=definitions.bring_into_force,
            session=stage.session,
            clock_ns=self._wall_ns,
            random=self._rng,
            first_conn=stage.journal.last_conn + 1,
            calendar=lambda: market.calendar,
            baseline=baseline,
        )
        return feed, definitions, _CalendarKeeper(market, tokens, stage)

    async def _open_deliveries(self, stack: AsyncExitStack, stage: _Stage) -> list[Delivery]:
        cursors = Cursors(stage.journal, stage.state, stage.folder.journal)
        deliveries = []
        for name in self._settings.sinks:
            sink, store = self._open_sink(name, stage)
            stack.push_async_callback(sink.aclose)
            cursor: Cursor = await asyncio.to_thread(cursors.open, name, store)
            deliveries.append(
                Delivery(
                    sink,
                    cursor,
                    folder=stage.folder.journal,
                    recorder_id=stage.journal.recorder_id,
                    state=stage.state,
                    progress=stage.progress,
                    journal_fact=stage.in_journal,
                    wall_ns=self._wall_ns,
                    rng=self._rng,
                    message=_MESSAGES.get(name, f"Data feed has been successfully transferred to {name}"),
                )
            )
        return deliveries

    def _open_sink(self, name: str, stage: _Stage) -> tuple[Sink, ParquetStore | None]:
        if name == "parquet":
            store = ParquetStore(stage.folder.parquet, stage.journal.recorder_id)
            return ParquetSink(store), store
        if name == "influx" and self._settings.influx is not None:
            return influx_sink(self._settings.influx), None
        raise Refused(f"the sink {name!r} is not part of this version; remove it from TICKVAULT_SINKS")

    def _notifier(self, stage: _Stage, notify: NotifySettings) -> Notifier:
        return Notifier(
            stage.state,
            stage.session,
            url=notify.url,
            secret=notify.secret.get_secret_value() if notify.secret else None,
            interval_s=notify.interval_s,
            retry_s=notify.retry_s,
            wall_ns=self._wall_ns,
            rng=self._rng,
        )

    async def _serve_status(self, stack: AsyncExitStack, folder: DataFolder) -> None:
        http = self._settings.http
        if http is None:
            return
        token = http.token.get_secret_value() if http.token else None
        server = StatusServer(self.snapshot, host=http.host, port=http.port, token=token)
        try:
            address = await server.start()
        except Refused as exc:
            if http.explicit:
                raise
            # Nobody asked for the default address by name; recording matters more than showing it.
            _log.warning("status.unavailable", error=str(exc))
            return
        stack.push_async_callback(server.stop)
        folder.announce(address)
        _log.info("status.serving", url=f"http://{address}/")

    def _feed_health(self) -> FeedHealth | None:
        feed, intake, token = self._feed, self._intake, self._token
        if feed is None or intake is None or token is None:
            return None
        told = snapshots.feed_health((feed,), intake, now_s=time.monotonic())
        return replace(told, token=token.shown, token_expires_s=token.expires_s)

    def _outcome(self, journalled: int, state: State, last_seq: int) -> Outcome:
        cursors = [cursor for cursor in state.cursors() if cursor.sink in self._settings.sinks]
        return Outcome(
            received=self._feed.frames if self._feed else 0,
            journalled=journalled,
            stored={one.name: one.frames for one in self._deliveries},
            rows={one.name: dict(one.rows) for one in self._deliveries},
            remaining={one.sink: last_seq - one.seq for one in cursors if one.seq < last_seq},
            parked=[one.sink for one in cursors if one.state == "parked"],
        )


@dataclass(slots=True)
class _Stage:
    """What one run shares."""

    folder: DataFolder
    state: State
    journal: Journal
    executor: ThreadPoolExecutor
    session: aiohttp.ClientSession
    progress: Progress
    intake: Intake

    async def in_journal(self, fact: Fact) -> None:
        """Commit one fact, in the journal's thread."""
        loop = asyncio.get_running_loop()
        await asyncio.shield(loop.run_in_executor(self.executor, commit, self.journal, self.state, [fact]))


class _Definitions:
    """Brings instrument definitions into force: before a subscribe what can be had at once, the rest when it comes."""

    def __init__(self, master: InstrumentList | None, stage: _Stage) -> None:
        self._master = master
        self._stage = stage
        self.keys: tuple[str, ...] = ()  # of the last subscription
        self._wanting = asyncio.Event()

    async def bring_into_force(self, subscriptions: tuple[Subscription, ...]) -> None:
        """Journal the definitions of what is about to be subscribed to, as far as they differ from those in force."""
        self.keys = tuple(one.instrument_key for one in subscriptions)
        if self._master is None:
            return
        found = await self._master.definitions(self.keys)
        if fact := self._stage.journal.define(found):
            await self._stage.intake.fact(fact.kind, fact.body)
        if not self._master.fresh:
            self._wanting.set()

    async def keep(self) -> None:
        """Get the list in the background when it could not be had in time."""
        while True:
            await self._wanting.wait()
            assert self._master is not None
            try:
                await self._master.refresh()
            except FeedUnavailable as exc:
                _log.info("instruments.waiting", error=str(exc), next_try_s=_REFRESH_PAUSE_S)
                await asyncio.sleep(_REFRESH_PAUSE_S)
                continue
            self._wanting.clear()
            if fact := self._stage.journal.define(await self._master.lookup(self.keys)):
                await self._stage.intake.fact(fact.kind, fact.body)


@dataclass(slots=True)
class _CalendarKeeper:
    """Keeps the exchanges' calendar, and journals what the ledger does not know of it yet."""

    market: MarketCalendar
    tokens: Tokens
    stage: _Stage

    async def keep(self) -> None:
        """Run beside the feed, which never waits for it."""
        await self.market.keep(self.tokens.token, self._tell)

    async def _tell(self, body: Mapping[str, object]) -> None:
        known = self.stage.journal.ledger.sessions
        if known.then(Sessions.of(body)) != known:
            await self.stage.intake.fact("calendar", body)


def influx_sink(settings: InfluxSettings) -> InfluxSink:
    """Return the sink that the settings describe."""
    return InfluxSink(
        url=settings.url,
        bucket=settings.bucket or "tickvault",
        org=settings.org or "",
        token=settings.token.get_secret_value() if settings.token else None,
        username=settings.username,
        password=settings.password.get_secret_value() if settings.password else None,
        api=settings.api,
        layouts=settings.layouts,
        depth=settings.depth,
    )


def rewind(settings: Settings, sink: str, to_seq: Callable[[DataFolder], int]) -> Cursor:
    """Set a sink's cursor back; the command, run while no recorder does.

    Args:
        settings: which folder.
        sink: its name.
        to_seq: finds the seq to go back to in the folder.

    Raises:
        Refused: a recorder runs, the sink is unknown, or the journal no longer holds it.
    """
    with DataFolder(recorded(settings.data_dir)) as folder:
        state, _ = State.open(folder.state)
        try:
            known = [cursor.sink for cursor in state.cursors()]
            if sink not in known and sink != "parquet":
                raise Refused(
                    f"no sink {sink!r} has delivered from {settings.data_dir}; known: {', '.join(known) or 'none'}"
                )
            journal = Journal.open(folder.journal, state, purpose="rewind")
            try:
                store = ParquetStore(folder.parquet, journal.recorder_id) if sink == "parquet" else None
                cursor = Cursors(journal, state, folder.journal).rewind(sink, to_seq(folder), store)
                journal.append([Fact("stop", {"reason": "rewound"})])
                return cursor
            finally:
                journal.close()
        finally:
            state.close()


def _wanted_events(notify: NotifySettings | None) -> frozenset[str] | None:
    """Return the kinds of events that the outbox keeps (state.State.open)."""
    if notify is None:
        return frozenset()
    if notify.events is None:
        return None
    if notify.sinks is None:
        return frozenset(notify.events)
    return frozenset(f"{event}:{sink}" for event in notify.events for sink in notify.sinks)


def _reconcile_gaps(journal: Journal, state: State, now_ns: int) -> None:
    """Bring the state's gaps up to the journal's: what a crash kept from being written, and the `start` just made."""
    known = {gap.key: gap for gap in state.gaps()}
    told = {gap.key for gap in journal.gaps}
    changed = [gap for gap in journal.gaps if known.get(gap.key) != gap]
    # Open in the state and not in the journal, which was pruned, or is another one's: nothing will ever close it.
    orphans = [gap for key, gap in known.items() if gap.closed_ns is None and key not in told]
    changed += [replace(gap, closed_ns=max(gap.opened_ns, now_ns)) for gap in orphans]
    if changed:
        notices = gap_notices(changed, known=known.values(), recorder_id=journal.recorder_id, seq=journal.last_seq)
        state.put_gaps(changed, notices=notices, now_ns=now_ns)


def _close_journal(executor: ThreadPoolExecutor, journal: Journal, state: State) -> None:
    executor.submit(_end, journal, state).result()
    executor.shutdown()


def _end(journal: Journal, state: State) -> None:
    """Close the journal; a run that failed before it could say that it stops says so now, in the ledger too."""
    if not journal.stopped:
        with suppress(JournalFull):
            commit(journal, state, [Fact("stop", {"reason": "ended early"})])
    journal.close()
