"""Which instruments to record, as a URL of the user's tells it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog
from yarl import URL

from tickvault.brokers.upstox.api import get
from tickvault.errors import FeedUnavailable
from tickvault.selections import parse_selection

if TYPE_CHECKING:
    import aiohttp

    from tickvault.brokers.upstox.api import Answer
    from tickvault.model import Mode
    from tickvault.selections import Selection

__all__ = ["InstrumentsUrl"]

MAX_KEYS_BYTES: Final = 4 * 1024 * 1024

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class InstrumentsUrl:
    """A URL that answers with `{"instruments": [key, …]}`; other selections stand there as well as keys.

    Calling it reads the URL again. Call it at each reconnect.

    Args:
        url: its query may hold a secret; never quoted.
        session: the program's HTTP session; not closed here.
        default_mode: of keys that name none.

    Attributes:
        skipped: what is wrong with items of the list in force, in words.
    """

    def __init__(self, url: str, session: aiohttp.ClientSession, default_mode: Mode) -> None:
        self.skipped: tuple[str, ...] = ()
        self._url = URL(url)
        self._session = session
        self._default_mode = default_mode
        self._last: tuple[Selection, ...] = ()
        self._malformed: frozenset[str] = frozenset()
        self._failed: str | None = None

    async def __call__(self) -> tuple[Selection, ...]:
        """Return the list as it is now, or the last good one when it cannot be had.

        Raises:
            FeedUnavailable: it cannot be had, and never could.
        """
        try:
            self._last = await self._read()
            self._failed = None
        except FeedUnavailable as exc:
            if not self._last:
                raise
            if str(exc) != self._failed:
                self._failed = str(exc)
                log.warning("instruments_url.failed", error=self._failed, keys_kept=len(self._last))
        return self._last

    async def _read(self) -> tuple[Selection, ...]:
        what = "the instruments URL"
        headers = {"Accept": "application/json", "Cache-Control": "no-cache"}
        answer = await get(self._session, self._url, what=what, headers=headers, max_bytes=MAX_KEYS_BYTES)
        if answer.status != 200:
            raise FeedUnavailable(f"{what} answers with HTTP {answer.status}")
        selections, malformed = await asyncio.to_thread(_parse, answer, what, self._default_mode)
        if malformed.keys() - self._malformed:
            log.warning("instruments_url.keys_skipped", count=len(malformed), examples=sorted(malformed)[:5])
        self._malformed = frozenset(malformed)
        if not selections:
            raise FeedUnavailable(f"{what} names no usable instrument")
        self.skipped = tuple(f"{what}: {why}" for why in malformed.values())
        return selections


def _parse(answer: Answer, what: str, default_mode: Mode) -> tuple[tuple[Selection, ...], dict[str, str]]:
    """Return the selections of an answer, each once, and what is wrong with the others; slow with thousands."""
    body = answer.json()
    items = body.get("instruments") if isinstance(body, dict) else None
    if not isinstance(items, list):
        raise FeedUnavailable(f'{what} answers without a list; expected {{"instruments": ["NSE_EQ|…", …]}}')
    selections: dict[object, Selection] = {}
    malformed: dict[str, str] = {}
    for item in items:
        try:
            one = parse_selection(item if isinstance(item, str) else "", default_mode, typed=False)
        except ValueError as exc:
            malformed[str(item)[:100]] = str(exc)
        else:
            selections.setdefault(one.what, one)
    return tuple(selections.values()), malformed
