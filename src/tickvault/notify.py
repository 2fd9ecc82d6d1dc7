"""The webhook: takes events from the outbox, posts them, and keeps at it until the receiver has taken each one.

Events of one lane (`state.Outgoing.lane`) are told one after the other; the lanes are few, do not wait for one another,
and each has at most one post under way. Other modules write an event in the transaction of its cause, so none is lost by
a crash, and a receiver recognises a repeat by its id.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import hmac
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

import aiohttp
import structlog

from tickvault.backoff import backoff, retry_after_s
from tickvault.errors import JournalFull

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tickvault.outbox import Outgoing
    from tickvault.state import State

__all__ = ["Notifier"]

_P = ParamSpec("_P")
_R = TypeVar("_R")

_log: Final = structlog.get_logger(__name__)
_TIMEOUT: Final = aiohttp.ClientTimeout(total=10)
_LOOK_S: Final = 0.5  # how often the outbox is looked into; an event waits this long at most
_FIRST_RETRY_S: Final = 1.0
_AFTER_BUG_S: Final = 60.0
_NS: Final = 1_000_000_000


class Notifier:
    """Posts what the outbox holds.

    Attributes:
        sent: events that were taken.
        failing: lanes whose event was not taken when it was last tried.
    """

    def __init__(
        self,
        state: State,
        session: aiohttp.ClientSession,
        *,
        url: str,
        secret: str | None,
        interval_s: float,
        retry_s: float,
        wall_ns: Callable[[], int],
        rng: random.Random,
    ) -> None:
        self.sent = 0
        self.failing: set[tuple[str, str]] = set()
        self._state = state
        self._session = session
        self._url = url
        self._secret = secret
        self._retry_s = retry_s
        self._longest_wait_ns = int(max(interval_s, retry_s) * _NS)
        self._wall_ns = wall_ns
        self._rng = rng

    async def run(self, stopping: asyncio.Event) -> None:
        """Post events as they become due until `stopping` is set; then until none is due or under way.

        A receiver that hangs, or a disk that is full, can hold up the end: the caller gives it a time, then cancels.
        Whatever goes wrong here ends neither the recorder nor the telling.
        """
        while True:
            try:
                await self._run(stopping)
            except Exception as exc:  # noqa: BLE001 - nothing recorded is to suffer for what is told
                one = exc.exceptions[0] if isinstance(exc, ExceptionGroup) else exc
                _log.error("webhook.failed", error=f"{type(one).__name__}: {one}")
            if stopping.is_set():
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), _AFTER_BUG_S)

    async def _run(self, stopping: asyncio.Event) -> None:
        sending: dict[tuple[str, str], asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            stop = group.create_task(stopping.wait(), name="notify:stopping")
            while True:
                last_look = stopping.is_set()
                for head in await asyncio.to_thread(self._state.heads):
                    if head.lane not in sending and self._is_due(head):
                        sending[head.lane] = group.create_task(self._send(head), name="notify:" + ":".join(head.lane))
                if last_look and not sending:
                    return
                awaited = [*sending.values()] if last_look else [stop, *sending.values()]
                await asyncio.wait(awaited, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                sending = {lane: task for lane, task in sending.items() if not task.done()}

    def _is_due(self, outgoing: Outgoing) -> bool:
        # A wait longer than any that we impose means that the wall clock was set back.
        return not 0 < outgoing.not_before_ns - self._wall_ns() <= self._longest_wait_ns

    async def _send(self, outgoing: Outgoing) -> None:
        # More may have been merged into it since it was looked up; what is marked is what is sent.
        outgoing = await self._in_state(self._state.mark_attempt, outgoing)
        failure, wish_s = await self._post(outgoing)
        if failure is None:
            await self._in_state(self._state.delivered, outgoing, self._wall_ns())
            self.sent += 1
            if self.failing == {outgoing.lane}:
                _log.info("webhook.recovered")
            self.failing.discard(outgoing.lane)
            return
        pauses = backoff(self._rng, first_s=_FIRST_RETRY_S, cap_s=self._retry_s)
        pause_s = next(islice(pauses, min(outgoing.attempts - 1, 64), None))
        pause_s = min(max(pause_s, wish_s), self._retry_s)
        if not self.failing:
            _log.warning("webhook.failing", error=failure, event_id=outgoing.id, next_try_s=round(pause_s, 1))
        self.failing.add(outgoing.lane)
        await self._in_state(self._state.postpone, outgoing, self._wall_ns() + int(pause_s * _NS))

    async def _in_state(self, change: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Make a change to the state; on a full disk wait for room, and post nothing meanwhile."""
        told = False
        while True:
            try:
                return await asyncio.to_thread(change, *args, **kwargs)
            except JournalFull as exc:
                if not told:
                    _log.warning("webhook.waits_for_disk", error=str(exc))
                    told = True
                await asyncio.sleep(_FIRST_RETRY_S)

    async def _post(self, outgoing: Outgoing) -> tuple[str | None, float]:
        """Post one event; return what went wrong, None when it was taken, and how long the receiver wants to be left."""
        body = outgoing.body.encode()
        headers = {"Content-Type": "application/json", "X-Tickvault-Event-Id": outgoing.id}
        if self._secret:
            digest = hmac.new(self._secret.encode(), body, hashlib.sha256).hexdigest()
            headers["X-Tickvault-Signature"] = f"sha256={digest}"
        try:
            async with self._session.post(
                self._url, data=body, headers=headers, timeout=_TIMEOUT, allow_redirects=False
            ) as response:
                if 200 <= response.status < 300:
                    return None, 0.0
                now = dt.datetime.fromtimestamp(self._wall_ns() / _NS, dt.UTC)
                wish_s = retry_after_s(response.headers.get("Retry-After", ""), now) or 0.0
                hint = (
                    "; set TICKVAULT_NOTIFY_URL to the address it redirects to" if response.status // 100 == 3 else ""
                )
                return f"the receiver answered {response.status}; expected 2xx{hint}", wish_s
        except TimeoutError:
            return f"the receiver did not answer within {_TIMEOUT.total:g} s", 0.0
        except (aiohttp.ClientError, OSError) as exc:
            # Never str(exc): aiohttp puts the address into some of its texts.
            why = exc.strerror if isinstance(exc, OSError) and exc.strerror else type(exc).__name__
            return f"the receiver cannot be reached: {why}", 0.0
