"""The composition root: opens what a recorder consists of, runs it, and takes it down in order.

Two nested stages: deliveries outside, intake inside. Leaving the inner one means that nothing new will be journalled;
only then do deliveries finish. Stopping is data (an event), cancelling is failure.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import aiohttp
import structlog

from tickvault import __version__, memory, snapshots, survey
from tickvault.brokers.upstox.api import UpstoxApi
from tickvault.brokers.upstox.baselinefile import BaselineFile
from tickvault.brokers.upstox.calendar import MarketCalendar
from tickvault.brokers.upstox.callsfile import RememberedLimit
from tickvault.brokers.upstox.closing import is_over
from tickvault.brokers.upstox.definitions import Definitions
from tickvault.brokers.upstox.evictions import Evictions
from tickvault.brokers.upstox.feed import Feed
from tickvault.brokers.upstox.instruments import InstrumentList
from tickvault.brokers.upstox.keylist import InstrumentsUrl
from tickvault.brokers.upstox.phases import CLOSING_NS
from tickvault.brokers.upstox.prices import PriceTap
from tickvault.brokers.upstox.renewal import next_session
from tickvault.brokers.upstox.selector import Selector, Typed, session_date
from tickvault.brokers.upstox.sockets import OfSocket, Sockets
from tickvault.brokers.upstox.tokens import Tokens
from tickvault.brokers.upstox.waits import Waits
from tickvault.datafolder import DataFolder
from tickvault.decoding import Decoder
from tickvault.delivery import Delivery
from tickvault.errors import JournalFull, Refused
from tickvault.intake import Intake, Progress, commit, mend, reconcile_gaps
from tickvault.journal import Fact, Journal
from tickvault.ledger import Sessions
from tickvault.model import TakesAgain
from tickvault.nightwork import NightWork
from tickvault.notify import Notifier
from tickvault.redrive import Redrive
from tickvault.resolving import guarded
from tickvault.rewind import Cursors
from tickvault.room import Room
from tickvault.settings import Compact, DiskFull, plain_hosts
from tickvault.sinks.influx import InfluxSink
from tickvault.sinks.parquet import ParquetSink, ParquetStore
from tickvault.state import State
from tickvault.tokenwatch import TokenWatch
from tickvault.web.status import StatusServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from tickvault.brokers.upstox.baseline import Baseline
    from tickvault.health import FeedHealth, Snapshot
    from tickvault.model import Definition, Sink, Subscription
    from tickvault.settings import InfluxSettings, NotifySettings, Settings
    from tickvault.state import Cursor

__all__ = ["MESSAGES", "Outcome", "Recorder", "influx_sink", "wanted_events"]

_log: Final = structlog.get_logger(__name__)
MESSAGES: Final = {
    "influx": "Data feed has been successfully transferred to InfluxDB",
    "parquet": "Data feed has been successfully stored as Parquet",
}
_LOOK_S: Final = 1.0  # whether trading is over
_BEFORE_NS: Final = 15 * 60 * 1_000_000_000  # of trading, the machine is the feed's alone
_NS_PER_DAY: Final = 86_400_000_000_000
_SHOWN_SKIPPED: Final = 20  # of selections in a snapshot


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
        self._sockets: Sockets | None = None
        self._selector: Selector | None = None
        self._token: TokenWatch | None = None
        self._intake: Intake | None = None
        self._deliveries: list[Delivery] = []
        self._redrives: list[Redrive] = []
        self._until_close = False

    async def run(self, stopping: asyncio.Event, *, until_close: bool = False) -> Outcome:
        """Record until `stopping` is set, then drain for at most `shutdown_s`.

        Args:
            stopping: set by whoever wants an end.
            until_close: set it ourselves when trading is over for today in everything that is subscribed to.

        Raises:
            ConfigurationError: what is to be recorded cannot be.
            Refused: the data folder, or the status address, cannot be had.
            TokenRefused: the very first authorize refused a static token, and the folder has no frame yet.
        """
        self._until_close = until_close
        async with AsyncExitStack() as stack:
            folder = stack.enter_context(DataFolder(self._settings.data_dir))
            await self._serve_status(stack, folder)
            connector = guarded(plain_hosts(self._settings))
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
            self._intake = Intake(
                max_frames=self._settings.queue_frames, max_bytes=self._settings.queue_bytes, wall_ns=self._wall_ns
            )
            choice = self._choose(folder, session, self._intake)
            self._selector = choice.selector
            await choice.selector.prepare()
            state, _ = await asyncio.to_thread(
                State.open,
                folder.state,
                notify_interval_ns=int((self._settings.notify.interval_s if self._settings.notify else 0) * 1e9),
                events=wanted_events(self._settings.notify),
            )
            stack.callback(state.close)
            journal = await asyncio.to_thread(Journal.open, folder.journal, state, wall_ns=self._wall_ns)
            first_seq = journal.last_seq
            executor = ThreadPoolExecutor(1, thread_name_prefix="journal")
            stack.callback(_close_journal, executor, journal, state)
            await asyncio.to_thread(reconcile_gaps, journal, state, self._wall_ns())
            choice.selector.hold(await asyncio.to_thread(_subscribed_lately, folder, self._wall_ns()))
            stage = _Stage(folder, state, journal, executor, session, Progress(journal.last_seq), self._intake, choice)
            self._deliveries = await self._open_deliveries(stack, stage)
            _log.info("recorder.started", recorder_id=journal.recorder_id, seq=journal.last_seq, version=__version__)
            try:
                await self._deliver(stage, stopping)
            finally:  # told of a run that failed too: a disk that stays full costs what was queued
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
            redriving = [group.create_task(one.keep(self._rng), name=f"redrive:{one.name}") for one in self._redrives]
            failure = await self._take_in(stage, stopping)
            await stage.progress.end()
            loop = asyncio.get_running_loop()
            deadline_s = loop.time() + self._settings.shutdown_s
            if deliveries:
                await asyncio.wait(deliveries, timeout=self._settings.shutdown_s)
            told.set()
            if telling:  # what a receiver does not take in the time left stays in the outbox
                await asyncio.wait(telling, timeout=max(0.5, deadline_s - loop.time()))
            for task in (*deliveries, *telling, *redriving):
                task.cancel()
        if failure is not None:
            raise failure

    async def _take_in(self, stage: _Stage, stopping: asyncio.Event) -> Exception | None:
        """Receive and journal until told to stop; return what ended it before."""
        failure: Exception | None = None
        usual = await asyncio.to_thread(BaselineFile, stage.folder.path / "baseline.json")
        tokens = Tokens.of(self._settings, stage.session, wall_ns=self._wall_ns)
        sockets, definitions, calendar = self._open_sockets(stage, tokens, usual.baseline)
        planned = stage.choice.selector
        watch = TokenWatch(
            tokens,
            wall_ns=self._wall_ns,
            session=lambda now_ns: next_session(now_ns, calendar.market.calendar, planned.segments),
            fact=stage.intake.fact,
        )
        self._sockets, self._token = sockets, watch
        async with asyncio.TaskGroup() as group:
            group.create_task(
                stage.intake.record(stage.journal, stage.state, stage.executor, stage.progress), name="record"
            )
            keepers = [
                group.create_task(definitions.keep(), name="definitions"),
                group.create_task(watch.keep(), name="token"),
                group.create_task(calendar.keep(), name="calendar"),
                group.create_task(usual.keep(), name="baseline"),
                group.create_task(self._room(stage).keep(), name="room"),
                group.create_task(memory.settle_started(lambda: sockets.frames > 0), name="memory"),
            ]
            if "parquet" in self._settings.sinks and self._settings.compact is Compact.AUTO:
                keepers.append(group.create_task(self._night_work(stage).keep(), name="compaction"))
            if self._until_close:
                keepers.append(
                    group.create_task(
                        self._end_with_trading(sockets, stage.choice.selector, calendar, stopping), name="close"
                    )
                )
            try:
                await sockets.run(stopping)
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
        self, sockets: Sockets, selector: Selector, calendar: _CalendarKeeper, stopping: asyncio.Event
    ) -> None:
        """Set `stopping` when nothing that is subscribed to trades any more today."""
        while True:
            await asyncio.sleep(_LOOK_S)
            now_ns, known = self._wall_ns(), calendar.market.calendar
            segments = frozenset() if selector.waiting else selector.segments
            phases = {segment: doing for feed in sockets.feeds for segment, doing in feed.phases.items()}
            if calendar.market.asked and is_over(segments, known, phases, now_ns):
                _log.info("recorder.trading_over", segments=sorted(segments))
                stopping.set()
                return

    def _choose(self, folder: DataFolder, session: aiohttp.ClientSession, intake: Intake) -> _Choice:
        """Return what decides on what is recorded."""
        upstox, url, master = self._settings.upstox, self._settings.instruments_list_url, None
        if upstox.instruments_url is not None:
            master = InstrumentList(
                url=upstox.instruments_url, cache_dir=folder.path, session=session, wall_ns=self._wall_ns
            )
        tap = PriceTap(intake)
        selector = Selector(
            source=InstrumentsUrl(url, session, self._settings.mode) if url else Typed(self._settings.selections),
            master=master,
            prices=tap.prices,
            follow=tap.follow,
            plus=upstox.plus,
            wall_ns=self._wall_ns,
        )
        return _Choice(selector, tap, master)

    def _open_sockets(
        self, stage: _Stage, tokens: Tokens, baseline: Baseline
    ) -> tuple[Sockets, Definitions, _CalendarKeeper]:
        upstox = self._settings.upstox
        selector = stage.choice.selector
        definitions = Definitions(stage.choice.master, lambda: selector.planned, stage.define)
        api = UpstoxApi(upstox.api_url, stage.session)
        rate = RememberedLimit(stage.folder.path / "authorize.json", wall_ns=self._wall_ns)
        numbers, evictions = itertools.count(stage.journal.last_conn + 1), Evictions()
        waits = Waits(stage.intake)

        async def before_subscribe(subscriptions: tuple[Subscription, ...]) -> None:
            await definitions.bring_into_force(subscriptions)
            await waits.end(selector.unlisted)

        def open_feed(socket: int, subscriptions: Callable[[], Awaitable[tuple[Subscription, ...]]]) -> Feed:
            return Feed(
                api=api,
                tokens=tokens,
                subscriptions=subscriptions,
                inbox=OfSocket(stage.choice.tap, socket),
                before_subscribe=before_subscribe,
                session=stage.session,
                clock_ns=self._wall_ns,
                random=self._rng,
                numbers=numbers,
                socket=socket + 1,
                untried=stage.journal.last_seq == 0,
                rate=rate,
                evictions=evictions,
                calendar=lambda: market.calendar,
                baseline=baseline,
            )

        market = MarketCalendar(upstox.api_url, stage.folder.path, stage.session, wall_ns=self._wall_ns)
        return Sockets(selector, open_feed, waits), definitions, _CalendarKeeper(market, tokens, stage)

    async def _open_deliveries(self, stack: AsyncExitStack, stage: _Stage) -> list[Delivery]:
        cursors = Cursors(stage.journal, stage.state, stage.folder.journal)
        decoder = Decoder(stage.journal.recorder_id, self._settings.sinks)
        deliveries = []
        for name in self._settings.sinks:
            sink, store = self._open_sink(name, stage)
            stack.push_async_callback(sink.aclose)
            cursor: Cursor = await asyncio.to_thread(cursors.open, name, store)
            message = MESSAGES.get(name, f"Data feed has been successfully transferred to {name}")
            delivery = Delivery(
                sink,
                cursor,
                folder=stage.folder.journal,
                recorder_id=stage.journal.recorder_id,
                state=stage.state,
                progress=stage.progress,
                journal_fact=stage.in_journal,
                mend=stage.mend,
                wall_ns=self._wall_ns,
                rng=self._rng,
                message=message,
                decoder=decoder,
            )
            deliveries.append(delivery)
            if isinstance(sink, TakesAgain):
                self._redrives.append(
                    Redrive(
                        sink,
                        folder=stage.folder.journal,
                        recorder_id=stage.journal.recorder_id,
                        state=stage.state,
                        writing=delivery.writing,
                        message=message,
                        wall_ns=self._wall_ns,
                    )
                )
        return deliveries

    def _open_sink(self, name: str, stage: _Stage) -> tuple[Sink, ParquetStore | None]:
        if name == "parquet":
            store = ParquetStore(stage.folder.parquet, stage.journal.recorder_id)
            return ParquetSink(store), store
        if name == "influx" and self._settings.influx is not None:
            return influx_sink(self._settings.influx, stage.session), None
        raise Refused(f"the sink {name!r} is not part of this version; remove it from TICKVAULT_SINKS")

    def _room(self, stage: _Stage) -> Room:
        return Room(
            stage.folder.journal,
            stage.state,
            stage.intake,
            sinks=self._settings.sinks,
            retain_s=self._settings.retain_s,
            reserve=self._settings.disk_reserve,
            drop_oldest=self._settings.disk_full is DiskFull.DROP_OLDEST,
            roll=stage.roll,
            journal_fact=stage.in_journal,
            mend=stage.mend,
            wall_ns=self._wall_ns,
        )

    def _night_work(self, stage: _Stage) -> NightWork:
        def quiet(now_ns: int) -> bool:
            spans = stage.journal.ledger.sessions.trading(stage.choice.selector.segments)
            return not any(begin - _BEFORE_NS <= now_ns < end + CLOSING_NS for begin, end in spans)

        return NightWork(stage.folder.path, reserve=self._settings.disk_reserve, quiet=quiet, wall_ns=self._wall_ns)

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
        sockets, intake, selector, token = self._sockets, self._intake, self._selector, self._token
        if sockets is None or intake is None or selector is None or token is None or not sockets.feeds:
            return None
        return replace(
            snapshots.feed_health(sockets.feeds, intake, now_s=time.monotonic()),
            token=token.shown,
            token_expires_s=token.expires_s,
            sockets=len(sockets.feeds),
            planned=selector.plan.keys,
            refused=selector.refused,
            keys_refused=len(selector.plan.refused),
            skipped=list(selector.skipped[:_SHOWN_SKIPPED]),
            skipped_count=len(selector.skipped),
            list_lost=selector.list_lost,
        )

    def _outcome(self, journalled: int, state: State, last_seq: int) -> Outcome:
        cursors = [cursor for cursor in state.cursors() if cursor.sink in self._settings.sinks]
        return Outcome(
            received=self._sockets.frames if self._sockets else 0,
            journalled=journalled,
            stored={one.name: one.frames for one in self._deliveries},
            rows={one.name: dict(one.rows) for one in self._deliveries},
            remaining={one.sink: last_seq - one.seq for one in cursors if one.seq < last_seq},
            parked=[one.name for one in self._deliveries if one.parked],
        )


@dataclass(frozen=True, slots=True)
class _Choice:
    """What decides on what is recorded, and by what."""

    selector: Selector
    tap: PriceTap
    master: InstrumentList | None


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
    choice: _Choice

    async def in_journal(self, fact: Fact) -> None:
        """Commit one fact, in the journal's thread."""
        loop = asyncio.get_running_loop()
        await asyncio.shield(loop.run_in_executor(self.executor, commit, self.journal, self.state, [fact]))

    async def roll(self) -> None:
        """End the segment that is being written, in the journal's thread."""
        loop = asyncio.get_running_loop()
        await asyncio.shield(loop.run_in_executor(self.executor, self.journal.roll))

    async def mend(self, path: Path, reason: str) -> None:
        """Replace a damaged segment by what is whole in it, in the journal's thread."""
        loop = asyncio.get_running_loop()
        await asyncio.shield(loop.run_in_executor(self.executor, mend, self.journal, self.state, path, reason))

    async def define(self, found: Mapping[str, Definition]) -> None:
        """Queue the definitions that differ from those in force."""
        if fact := self.journal.define(found):
            try:
                await self.intake.fact(fact.kind, fact.body)
            except BaseException:
                self.journal.forget(found)
                raise


@dataclass(slots=True)
class _CalendarKeeper:
    """Keeps the exchanges' calendar, and journals what the ledger does not know of it yet."""

    market: MarketCalendar
    tokens: Tokens
    stage: _Stage

    async def keep(self) -> None:
        """Run beside the feed, which never waits for it."""
        await self.market.keep(self.tokens.known, self._tell)

    async def _tell(self, body: Mapping[str, object]) -> None:
        known = self.stage.journal.ledger.sessions
        if known.then(Sessions.of(body)) != known:
            await self.stage.intake.fact("calendar", body)


def influx_sink(settings: InfluxSettings, session: aiohttp.ClientSession | None = None) -> InfluxSink:
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
        session=session,
    )


def wanted_events(notify: NotifySettings | None) -> frozenset[str] | None:
    """Return the kinds of events that the outbox keeps (state.State.open)."""
    if notify is None:
        return frozenset()
    if notify.events is None:
        return None
    if notify.sinks is None:
        return frozenset(notify.events)
    return frozenset(f"{event}:{sink}" for event in notify.events for sink in notify.sinks)


def _subscribed_lately(folder: DataFolder, now_ns: int) -> set[str]:
    """Return the keys that a recorder which ended subscribed to in the session that is on."""
    today = session_date(now_ns)
    found = survey.events(folder.journal, ("sub",))
    lately = (event for event in found if event.at_ns > now_ns - _NS_PER_DAY and session_date(event.at_ns) == today)
    return {key for event in lately if isinstance(keys := event.body.get("keys"), list) for key in keys}


def _close_journal(executor: ThreadPoolExecutor, journal: Journal, state: State) -> None:
    executor.submit(_end, journal, state).result()
    executor.shutdown()


def _end(journal: Journal, state: State) -> None:
    """Close the journal; a run that failed before it could say that it stops says so now, in the ledger too."""
    if not journal.stopped:
        with suppress(JournalFull):
            commit(journal, state, [Fact("stop", {"reason": "ended early"})])
    journal.close()
