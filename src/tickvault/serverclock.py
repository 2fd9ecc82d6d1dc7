"""A server's clock, read off the Date headers of its answers."""

from __future__ import annotations

import contextlib
import email.utils
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import SimpleNamespace

__all__ = ["Dates", "Seen"]


@dataclass(frozen=True, slots=True)
class Seen:
    """A server's clock, read off one answer: it stood between `date_s` and a second later when we saw these times."""

    date_s: float
    sent_s: float
    received_s: float

    def off_s(self) -> float:
        """Return how far our clock is surely ahead (positive) or behind (negative); 0 when it may be right."""
        ahead_s = self.sent_s - (self.date_s + 1.0)
        behind_s = self.received_s - self.date_s
        return ahead_s if ahead_s > 0 else min(behind_s, 0.0)


class Dates:
    """Collects the Date headers of a session's answers by origin."""

    def __init__(self, wall_s: Callable[[], float]) -> None:
        self._wall_s = wall_s
        self._seen: dict[URL, Seen] = {}

    def trace(self) -> aiohttp.TraceConfig:
        """Return what a session has to be made with."""
        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(self._started)
        trace.on_request_end.append(self._ended)
        return trace

    def of(self, url: str) -> Seen | None:
        """Return what the server at an address told last."""
        return self._seen.get(URL(url).origin())

    async def _started(
        self, _session: aiohttp.ClientSession, context: SimpleNamespace, _params: aiohttp.TraceRequestStartParams
    ) -> None:
        context.sent_s = self._wall_s()

    async def _ended(
        self, _session: aiohttp.ClientSession, context: SimpleNamespace, params: aiohttp.TraceRequestEndParams
    ) -> None:
        headers = params.response.headers
        # A cache's answer tells when the origin was asked.
        if headers.get("Age", "0") != "0":
            return
        with contextlib.suppress(ValueError):
            date_s = email.utils.parsedate_to_datetime(headers.get("Date", "")).timestamp()
            self._seen[params.url.origin()] = Seen(date_s, context.sent_s, self._wall_s())
