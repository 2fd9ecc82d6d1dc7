"""The webhook: takes events from the outbox, posts them, and keeps at it until the receiver has taken each one.

An event that fails waits by itself; the others do not queue behind it. `delivery` writes events in the transaction that
advances a cursor, so none is lost by a crash, and a receiver recognises a repeat by its id.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from itertools import islice
from typing import TYPE_CHECKING, Final

import aiohttp
import structlog

from tickvault.backoff import backoff

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tickvault.state import Outgoing, State

__all__ = ["Notifier"]

_log: Final = structlog.get_logger(__name__)
_TIMEOUT: Final = aiohttp.ClientTimeout(total=10)
_LOOK_S: Final = 0.5  # how often the outbox is looked into; an event waits this long at most
_FIRST_RETRY_S: Final = 1.0
_NS: Final = 1_000_000_000


class Notifier:
    """Posts what the outbox holds."""

    def __init__(
        self,
        state: State,
        session: aiohttp.ClientSession,
        *,
        url: str,
        secret: str | None,
        retry_s: float,
        wall_ns: Callable[[], int],
        rng: random.Random,
    ) -> None:
        self.sent = 0
        self.failing = False
        self._state = state
        self._session = session
        self._url = url
        self._secret = secret
        self._retry_s = retry_s
        self._wall_ns = wall_ns
        self._rng = rng

    async def run(self, stopping: asyncio.Event) -> None:
        """Post events as they become due until `stopping` is set; then once more whatever is due."""
        while True:
            last_look = stopping.is_set()
            due, _later_ns = await asyncio.to_thread(self._state.due, self._wall_ns())
            for outgoing in due:
                await self._send(outgoing)
            if last_look:
                return
            try:
                async with asyncio.timeout(_LOOK_S):
                    await stopping.wait()
            except TimeoutError:
                continue

    async def _send(self, outgoing: Outgoing) -> None:
        now_ns = self._wall_ns()
        pauses = backoff(self._rng, first_s=_FIRST_RETRY_S, cap_s=self._retry_s)
        pause_s = next(islice(pauses, min(outgoing.attempts, 64), None))
        retry_at_ns = now_ns + int(pause_s * _NS)
        # More may have been merged into it since it was looked up; what is marked is what is sent.
        outgoing = await asyncio.to_thread(self._state.mark_attempt, outgoing, now_ns=now_ns, retry_at_ns=retry_at_ns)
        failure = await self._post(outgoing)
        if failure is None:
            await asyncio.to_thread(self._state.delivered, outgoing)
            self.sent += 1
            if self.failing:
                self.failing = False
                _log.info("webhook.recovered")
        elif not self.failing:
            self.failing = True
            _log.warning("webhook.failing", error=failure, event_id=outgoing.id, next_try_s=round(pause_s, 1))

    async def _post(self, outgoing: Outgoing) -> str | None:
        """Post one event; return what went wrong, None when it was taken."""
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
                    return None
                return f"the receiver answered {response.status}; expected 2xx"
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            return f"{type(exc).__name__}: the receiver cannot be reached"
