"""One connection to the feed, kept open for ever: every message goes to the inbox, whatever happens.

Laws:
    What was read is in the inbox when `run` ends (connection.py); only a cancelled `run` cuts the reader short.
    Every attempt asks for the token, authorizes and connects anew; an authorized address opens once.
    A token that was refused is never tried again; another one at once.
    What to do next, and when, is the session's to say (session.py); here it is done.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from random import Random
from typing import TYPE_CHECKING, TypeVar

import structlog

from tickvault.brokers.upstox.api import BrokerUnavailable, Failure, UpstoxApi
from tickvault.brokers.upstox.connection import Change, Connection, End, Patience, Tally
from tickvault.brokers.upstox.credentials import Credentials
from tickvault.brokers.upstox.dial import connect
from tickvault.brokers.upstox.events import Due, Event, Failed, Plain
from tickvault.brokers.upstox.evictions import Evictions
from tickvault.brokers.upstox.phases import Calendar
from tickvault.brokers.upstox.plan import RateLimit, chunks
from tickvault.brokers.upstox.renewal import is_renewal_time
from tickvault.brokers.upstox.session import Session
from tickvault.brokers.upstox.supervision import Supervision
from tickvault.brokers.upstox.transitions import Do, State
from tickvault.brokers.upstox.watch import Watch
from tickvault.errors import FeedUnavailable, TokenRefused
from tickvault.model import segment_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

    import aiohttp

    from tickvault.brokers.upstox.accounts import Accounts, KeyReport
    from tickvault.brokers.upstox.baseline import Baseline
    from tickvault.brokers.upstox.events import Action
    from tickvault.brokers.upstox.findings import WatchReport
    from tickvault.brokers.upstox.freshness import WatchSettings
    from tickvault.brokers.upstox.phases import Phase
    from tickvault.brokers.upstox.tokens import TokenSource
    from tickvault.model import Inbox, Subscription

__all__ = ["Feed", "FeedState", "Patience"]

FeedState = State

_T = TypeVar("_T")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Feed:
    """Receives from the broker until told to stop.

    Args:
        api: authorizes.
        tokens: asked once an attempt.
        subscriptions: what to subscribe to; asked once an attempt. FeedUnavailable: a failed attempt.
        inbox: gets every binary message, and the facts `conn` (wanted, open, live, closed, failed), `sub`, `unsub`,
            `watch` and `token`.
        before_subscribe: called with each connection open and already read from, before its subscriptions are sent.
        session: the program's HTTP session; not closed here. TLS is verified as it says.
        clock_ns: UTC wall clock in ns.
        monotonic_s: monotonic clock in s.
        random: source of jitter and of request ids.
        numbers: of the connections, from 1 unless told otherwise; shared by feeds that write to one journal.
        socket: which of these feeds it is, from 1.
        untried: nothing has ever been recorded, so that a refusal at the very first attempt is a mistake in the settings.
        rate: bounds the authorize calls; shared when several feeds use one account.
        evictions: tells when they close one another's connections; likewise shared.
        patience: how long to wait for what.
        calendar: when markets trade; asked often, an empty one leaves it to the broker's statuses.
        watching: what counts as silence and as a brown-out.
        baseline: what is usual, from earlier days.
        accounts: the books of the keys, for tests with less patience.

    Attributes:
        conn: number of the connection that is open, or was last; 0 before any.
        reconnects: connections opened after the first.
        last_error: the last failure in one line, without secrets; None once live.
    """

    def __init__(
        self,
        *,
        api: UpstoxApi,
        tokens: TokenSource,
        subscriptions: Callable[[], Awaitable[tuple[Subscription, ...]]],
        inbox: Inbox,
        before_subscribe: Callable[[tuple[Subscription, ...]], Awaitable[None]],
        session: aiohttp.ClientSession,
        clock_ns: Callable[[], int] = time.time_ns,
        monotonic_s: Callable[[], float] = time.monotonic,
        random: Random | None = None,
        numbers: Iterator[int] | None = None,
        socket: int = 1,
        untried: bool = True,
        rate: RateLimit | None = None,
        evictions: Evictions | None = None,
        patience: Patience | None = None,
        calendar: Callable[[], Calendar] = Calendar,
        watching: WatchSettings | None = None,
        baseline: Baseline | None = None,
        accounts: Accounts | None = None,
    ) -> None:
        self.conn = 0
        self.reconnects = 0
        self.last_error: str | None = None
        self._tally = Tally()
        self._credentials = Credentials(api, tokens)
        self._subscriptions = subscriptions
        self._inbox = inbox
        self._before_subscribe = before_subscribe
        self._http = session
        self._clock_ns = clock_ns
        self._monotonic_s = monotonic_s
        self._random = random or Random()  # noqa: S311 - jitter, not a secret
        self._numbers = numbers or itertools.count(1)
        self._upcoming: int | None = None
        self._opened = 0
        self._open: Connection | None = None
        self._patience = patience or Patience()
        self._socket = socket
        self._evictions = evictions or Evictions()
        self._away_until_s = 0.0  # so that others are served
        self._rate = rate or RateLimit()
        self._session = Session(rate=self._rate, random=self._random, patience=self._patience)
        self._watch = Watch(calendar, watching, baseline, socket)
        self._supervision = Supervision(self._watch, accounts)
        self._failed: tuple[Failure, str] | None = None
        self._first = untried and socket == 1  # a further one may open days later: its refusal is never the end
        self._hopeless: TokenRefused | None = None
        self._wanted: tuple[Subscription, ...] = ()
        self._uri = ""  # of the attempt under way

    @property
    def state(self) -> State:
        """What it is doing."""
        return self._session.state

    @property
    def keys(self) -> KeyReport:
        """How the subscribed keys do; at most a second old."""
        return self._supervision.keys

    @property
    def statuses(self) -> dict[str, dict[str, str]]:
        """Scope (segment, cas, pre_open) → segment → its last status, verbatim; at most a second old."""
        return self._supervision.statuses

    @property
    def phases(self) -> dict[str, Phase]:
        """Subscribed segment → what it is doing; at most a second old, and empty while no connection tells."""
        return self._supervision.phases

    @property
    def watch(self) -> WatchReport:
        """What is the matter with the data; at most a second old."""
        return self._supervision.watched

    @property
    def baseline(self) -> Baseline:
        """What is usual, today's minutes included; to be kept for the next start."""
        return self._watch.baseline

    @property
    def unobserved(self) -> int:
        """Messages that were recorded and not observed, for want of time."""
        return self._tally.unobserved

    @property
    def frames(self) -> int:
        """Binary messages received."""
        return self._tally.frames

    @property
    def last_frame_s(self) -> float | None:
        """Monotonic time of the last one."""
        return self._tally.last_frame_s

    @property
    def held_s(self) -> float:
        """Seconds that reading stood still for want of room in the inbox."""
        return self._tally.held_s

    async def announce(self, subscriptions: tuple[Subscription, ...]) -> None:
        """Journal that this socket is wanted, and what for: until it serves, that is missing."""
        await self._inbox.fact("conn", {"state": "wanted", "segments": _segments(subscriptions)})

    async def run(self, stopping: asyncio.Event) -> None:
        """Receive until `stopping` is set; then everything read is in the inbox, and the connection is closed.

        Raises:
            TokenRefused: at the very first attempt, of a static token, while `untried`. Otherwise it waits for another.
        """
        event: Event = Plain.START
        while True:
            todo = self._session.on(event, self._monotonic_s())
            if self.state is State.STOPPED:
                break
            event = await self._perform(todo[0] if todo else None, stopping)
        log.info("feed.stopped", conn=self.conn, frames=self.frames)
        if self._hopeless is not None:
            raise self._hopeless

    async def _perform(self, action: Action | None, stopping: asyncio.Event) -> Event:
        """Do what the session wants done while no connection is open, and return what came of it."""
        if stopping.is_set():
            return Plain.STOP
        if action is None or action.do is Do.WAIT:
            return await _unless(stopping, self._pause()) or Plain.STOP
        outcome = await _unless(stopping, self._attempt(action.do))
        if isinstance(outcome, Connection):
            self._first = False
            await self._hold(outcome, stopping)
            return Plain.CLOSED
        if not isinstance(outcome, TokenRefused | FeedUnavailable):
            return Plain.STOP if outcome is None else outcome
        await self._note_failure(outcome)
        first, self._first = self._first, False
        if first and isinstance(outcome, TokenRefused) and self._credentials.is_static:
            self._hopeless = outcome
            return Plain.HOPELESS
        if isinstance(outcome, TokenRefused):
            return Failed(self._patience.refused_token_s)
        return Failed(outcome.retry_after_s or 0.0)

    async def _pause(self) -> Due | Plain:
        rest_s = max(0.0, max(self._session.timer_s or 0.0, self._away_until_s) - self._monotonic_s())
        if not self._credentials.is_wanted:
            await asyncio.sleep(rest_s)
            return Due()
        await self._credentials.wait_changed(rest_s)
        if self._monotonic_s() >= (self._session.timer_s or 0.0):
            return Due()
        self._credentials.is_wanted = False  # it is there; what is waited for now is the rate limit
        return Plain.RENEWED

    async def _attempt(self, do: Do) -> Plain | Connection | TokenRefused | FeedUnavailable:
        """Do one step of an attempt, or return why not; the last await is the one that opens, so nothing is left over."""
        try:
            if do is Do.PREPARE:
                self._wanted = await self._subscriptions()
                await self._credentials.take()
                return Plain.PREPARED
            if do is Do.AUTHORIZE:
                self._uri = await self._credentials.authorize()
                return Plain.AUTHORIZED
            uri, self._uri = self._uri, ""
            ws = await connect(self._http, uri, self._patience.connect_s)
        except (TokenRefused, FeedUnavailable) as exc:
            return exc
        return Connection(
            ws=ws,
            number=self._next_conn(),
            subscriptions=self._wanted,
            requests=chunks(self._wanted),
            inbox=self._inbox,
            before_subscribe=self._before_subscribe,
            session=self._session,
            supervision=self._supervision,
            on_live=self._note_live,
            tally=self._tally,
            clock_ns=self._clock_ns,
            monotonic_s=self._monotonic_s,
            random=self._random,
            patience=self._patience,
        )

    def change(self, new: tuple[Subscription, ...], gone: tuple[str, ...]) -> bool:
        """Have the open connection subscribe to more, and unsubscribe from some; False when there is none."""
        if self._open is None:
            return False
        self._open.changes.put_nowait(Change(new=new, gone=gone))
        return True

    def _next_conn(self) -> int:
        """Return the number of the connection that opens next."""
        if self._upcoming is None:
            self._upcoming = next(self._numbers)
        return self._upcoming

    async def _note_failure(self, exc: TokenRefused | FeedUnavailable) -> None:
        if isinstance(exc, TokenRefused):
            reason = Failure.TOKEN_REJECTED
        else:
            reason = exc.reason if isinstance(exc, BrokerUnavailable) else Failure.UNREACHABLE
        self.last_error = str(exc)
        is_news = self._credentials.take_news()
        if (reason, self.last_error) == self._failed and not is_news:
            return  # an outage of a night is one fact, not a thousand
        self._failed = (reason, self.last_error)
        conn = self._next_conn()
        log.warning("feed.failed", conn=conn, reason=reason.value, error=self.last_error)
        body: dict[str, object] = {"conn": conn, "state": "failed", "reason": reason.value, "detail": self.last_error}
        body["segments"] = _segments(self._wanted)
        if reason is Failure.TOKEN_REJECTED and not is_news:
            body["again"] = True  # told already, maybe by another feed
        await self._inbox.fact("conn", body)

    async def _hold(self, connection: Connection, stopping: asyncio.Event) -> None:
        """Let the connection run to its end; write down its beginning and its end."""
        self.reconnects, self._opened = self._opened, self._opened + 1
        self.conn, self._upcoming, self._open = connection.number, None, connection
        self._failed = None
        self._evictions.opened(self._socket, self._monotonic_s())
        deflate = bool(connection.ws.compress)
        try:
            told = {"deflate": deflate, "keys": len(connection.subscriptions)}
            await self._inbox.fact("conn", {"conn": self.conn, "state": "open", **told})
            log.info("feed.open", conn=self.conn, **told)
            async with asyncio.TaskGroup() as group:
                renewal = group.create_task(self._renew(connection), name="feed:renewal")
                end = await connection.run(stopping)
                renewal.cancel()
        finally:
            self._open = None
            self._supervision.disconnected()
            await connection.aclose()
        if stopping.is_set():
            end = End(code=1000, reason="stopped")
        else:
            self.last_error = f"connection {self.conn} ended: {end.reason}, code {end.code} {end.detail}".rstrip()
        detail = "; ".join(filter(None, (end.detail, self._judge_end(end))))
        ending = {"code": end.code, "reason": end.reason, "detail": detail}
        (log.info if stopping.is_set() else log.warning)("feed.closed", conn=self.conn, **ending)
        await self._inbox.fact("conn", {"conn": self.conn, "state": "closed", **ending})

    def _judge_end(self, end: End) -> str:
        """Stay away for a while when connections of ours close one another, and this is one too many; say so."""
        now_s = self._monotonic_s()
        rest_s = self._evictions.ended(self._socket, now_s, by_us=end.reason not in ("closed", "lost"))
        if not rest_s:
            return ""
        self._away_until_s = now_s + rest_s
        log.warning("feed.evicted", conn=self.conn, socket=self._socket, rest_s=rest_s)
        self.last_error = f"the account serves fewer connections than are planned; next try in {rest_s / 60:.0f} min"
        return f"rests: {self.last_error}"

    async def _renew(self, connection: Connection) -> None:
        """Before the session, leave a connection as soon as there is another token that the broker accepts."""
        while True:
            await asyncio.sleep(self._patience.renewal_s)
            if not is_renewal_time(self._clock_ns()):
                continue
            try:
                if await self._credentials.is_renewed(self._may_call):
                    connection.renew()
            except TokenRefused as exc:
                log.warning("feed.renewal_refused", conn=self.conn, error=str(exc))
                await self._inbox.fact("token", {"state": "refused", "detail": str(exc)})

    def _may_call(self) -> bool:
        """Return whether the broker may be asked now; then it counts as asked."""
        return self._rate.take(self._monotonic_s())

    def _note_live(self, delivers: bool) -> None:
        self.last_error = None
        if delivers:
            log.info("feed.live", conn=self.conn)
        else:
            log.info("feed.quiet", conn=self.conn)


def _segments(subscriptions: tuple[Subscription, ...]) -> list[str]:
    return sorted({segment_of(one.instrument_key) for one in subscriptions})


async def _unless(stopping: asyncio.Event, work: Coroutine[None, None, _T]) -> _T | None:
    """Return what the work returns, or give it up and return None when `stopping` is set first."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work, name="feed:attempt")
        stop = group.create_task(stopping.wait(), name="feed:stopping")
        await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
        task.cancel()
        stop.cancel()
    return None if task.cancelled() else task.result()
