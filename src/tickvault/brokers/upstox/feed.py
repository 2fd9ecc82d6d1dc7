"""One connection to the feed, kept open for ever: every message goes to the inbox, whatever happens.

Laws:
    What was read is in the inbox when `run` ends (connection.py); only a cancelled `run` cuts the reader short.
    Every attempt asks for the token, authorizes and connects anew; an authorized address opens once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from tickvault.backoff import backoff
from tickvault.brokers.upstox.api import BrokerUnavailable, Failure, UpstoxApi
from tickvault.brokers.upstox.connection import Connection, End, Patience, Tally, connect
from tickvault.brokers.upstox.plan import RateLimit
from tickvault.brokers.upstox.tokens import StaticToken, TokenSource
from tickvault.errors import FeedUnavailable, TokenRefused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

    import aiohttp

    from tickvault.model import Inbox, Subscription

__all__ = ["Feed", "FeedState", "Patience"]

# How soon a broker that is back is noticed; the rate limit bounds the calls besides.
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0

_T = TypeVar("_T")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class FeedState(StrEnum):
    """What the feed is doing."""

    IDLE = "idle"
    AUTHORIZING = "authorizing"
    CONNECTING = "connecting"
    SUBSCRIBING = "subscribing"
    LIVE = "live"
    WAITING = "waiting"
    STOPPED = "stopped"


@dataclass(slots=True)
class _Refused:
    """The token that was refused last, and when."""

    token: str | None = field(default=None, repr=False)
    at_s: float = 0.0
    words: str = ""


class Feed:
    """Receives from the broker until told to stop.

    Args:
        api: authorizes.
        tokens: asked once an attempt.
        subscriptions: what to subscribe to; asked once an attempt. FeedUnavailable: a failed attempt.
        inbox: gets every binary message, and the facts `conn` (open, closed, failed) and `sub`.
        before_subscribe: called with each connection open and already read from, before its subscriptions are sent.
        session: the program's HTTP session; not closed here. TLS is verified as it says.
        clock_ns: UTC wall clock in ns.
        monotonic_s: monotonic clock in s.
        random: source of jitter and of request ids.
        first_conn: number of the first connection that opens.
        rate: bounds the authorize calls; shared when several feeds use one account.
        patience: how long to wait for what.

    Attributes:
        state: what it is doing.
        conn: number of the connection that is open, or was last; first_conn - 1 before any.
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
        first_conn: int = 1,
        rate: RateLimit | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.state = FeedState.IDLE
        self.conn = first_conn - 1
        self.reconnects = 0
        self.last_error: str | None = None
        self._tally = Tally()
        self._api = api
        self._tokens = tokens
        self._subscriptions = subscriptions
        self._inbox = inbox
        self._before_subscribe = before_subscribe
        self._session = session
        self._clock_ns = clock_ns
        self._monotonic_s = monotonic_s
        self._random = random or Random()  # noqa: S311 - jitter, not a secret
        self._first_conn = first_conn
        self._rate = rate or RateLimit()
        self._patience = patience or Patience()
        self._refused = _Refused()
        self._failed: tuple[Failure, str] | None = None

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

    async def run(self, stopping: asyncio.Event) -> None:
        """Receive until `stopping` is set; then everything read is in the inbox, and the connection is closed.

        Raises:
            TokenRefused: at the very first attempt, of a static token. Later it waits for the token to be accepted.
        """
        delays, first = self._delays(), True
        while not stopping.is_set():
            outcome = await _unless(stopping, self._attempt())
            retry_after_s = 0.0
            if isinstance(outcome, Connection):
                await self._hold(outcome, stopping)
                if outcome.live:
                    delays = self._delays()
            elif outcome is not None:
                await self._note_failure(outcome)
                if first and isinstance(outcome, TokenRefused) and isinstance(self._tokens, StaticToken):
                    self.state = FeedState.STOPPED
                    raise outcome
                if isinstance(outcome, FeedUnavailable):
                    retry_after_s = outcome.retry_after_s or 0.0
            first = False
            self.state = FeedState.WAITING
            await _sleep(stopping, max(next(delays), retry_after_s))
        self.state = FeedState.STOPPED
        log.info("feed.stopped", conn=self.conn, frames=self.frames)

    def _delays(self) -> Iterator[float]:
        return backoff(self._random, first_s=FIRST_PAUSE_S, cap_s=LONGEST_PAUSE_S)

    async def _attempt(self) -> Connection | TokenRefused | FeedUnavailable:
        """Open a connection, or return why not; its last await is the one that opens it, so none is left over."""
        try:
            await asyncio.sleep(self._rate.delay_s(self._monotonic_s()))
            self.state = FeedState.AUTHORIZING
            subscriptions = await self._subscriptions()
            uri = await self._authorize()
            self.state = FeedState.CONNECTING
            ws = await connect(self._session, uri, self._patience.connect_s)
        except (TokenRefused, FeedUnavailable) as exc:
            return exc
        return Connection(
            ws=ws,
            number=self.conn + 1,
            subscriptions=subscriptions,
            inbox=self._inbox,
            before_subscribe=self._before_subscribe,
            on_live=self._note_live,
            tally=self._tally,
            clock_ns=self._clock_ns,
            monotonic_s=self._monotonic_s,
            random=self._random,
            patience=self._patience,
            heard_s=self._monotonic_s(),
        )

    async def _authorize(self) -> str:
        token = await self._tokens.token()
        now_s = self._monotonic_s()
        if token == self._refused.token and now_s - self._refused.at_s < self._patience.refused_token_s:
            raise TokenRefused(self._refused.words)
        self._rate.note(now_s)
        try:
            return await self._api.authorize(token)
        except TokenRefused as exc:
            self._refused = _Refused(token, self._monotonic_s(), str(exc))
            raise

    async def _note_failure(self, exc: TokenRefused | FeedUnavailable) -> None:
        if isinstance(exc, TokenRefused):
            reason = Failure.TOKEN_REJECTED
        else:
            reason = exc.reason if isinstance(exc, BrokerUnavailable) else Failure.UNREACHABLE
        self.last_error = str(exc)
        if (reason, self.last_error) == self._failed:
            return  # an outage of a night is one fact, not a thousand
        self._failed = (reason, self.last_error)
        log.warning("feed.failed", conn=self.conn + 1, reason=reason.value, error=self.last_error)
        body = {"conn": self.conn + 1, "state": "failed", "reason": reason.value, "detail": self.last_error}
        await self._inbox.fact("conn", body)

    async def _hold(self, connection: Connection, stopping: asyncio.Event) -> None:
        """Let the connection run to its end; write down its beginning and its end."""
        self.conn = connection.number
        self.reconnects = self.conn - self._first_conn
        self.state, self._failed = FeedState.SUBSCRIBING, None
        deflate = bool(connection.ws.compress)
        try:
            await self._inbox.fact("conn", {"conn": self.conn, "state": "open", "deflate": deflate})
            log.info("feed.open", conn=self.conn, deflate=deflate, keys=len(connection.subscriptions))
            end = await connection.run(stopping)
        finally:
            await connection.aclose()
        if stopping.is_set():
            end = End(code=1000, reason="stopped")
        else:
            self.last_error = f"connection {self.conn} ended: {end.reason}, code {end.code} {end.detail}".rstrip()
        ending = {"code": end.code, "reason": end.reason, "detail": end.detail}
        (log.info if stopping.is_set() else log.warning)("feed.closed", conn=self.conn, **ending)
        await self._inbox.fact("conn", {"conn": self.conn, "state": "closed", **ending})

    def _note_live(self) -> None:
        self.state, self.last_error = FeedState.LIVE, None
        log.info("feed.live", conn=self.conn)


async def _unless(stopping: asyncio.Event, work: Coroutine[None, None, _T]) -> _T | None:
    """Return what the work returns, or give it up and return None when `stopping` is set first."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work, name="feed:attempt")
        stop = group.create_task(stopping.wait(), name="feed:stopping")
        await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
        task.cancel()
        stop.cancel()
    return None if task.cancelled() else task.result()


async def _sleep(stopping: asyncio.Event, delay_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(delay_s):
            await stopping.wait()
