"""The exchanges' calendar as the broker tells it: holidays, and the hours of today and the next trading days.

It says what a missing second is worth, and recording never waits for it: the last copy on disk serves until the broker
answers, and without any copy every hour counts as one in which a market may trade.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import time
from typing import TYPE_CHECKING, Any, Final

import structlog
from yarl import URL

from tickvault.brokers.upstox.api import UpstoxApi, get
from tickvault.brokers.upstox.phases import Calendar, calendar_of
from tickvault.durable import replace_file
from tickvault.errors import FeedUnavailable
from tickvault.model import IST

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    import aiohttp

__all__ = ["MarketCalendar"]

HOLIDAYS_PATH: Final = "v2/market/holidays"
TIMINGS_PATH: Final = "v2/market/timings"
TRADING_DAYS: Final = 3  # whose hours are asked for: today's or the next one's, and two behind
DAYS_AHEAD: Final = 10  # within which they are looked for; the longest closure of the exchanges is a few days
DAYS_TOLD: Final = 7  # before and behind today, in the event
DAYS_KEPT: Final = 30  # of hours in the copy
REFRESH_S: Final = 6 * 3600.0  # hours are announced days before; a change within a day is announced by the exchange
RETRY_S: Final = 300.0
MAX_COPY_BYTES: Final = 1024 * 1024


log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class MarketCalendar:
    """The calendar, kept on disk and brought up to date from the broker.

    Args:
        url: the broker's REST base, as of UpstoxApi.
        cache_dir: the copy is `calendar.json` in it, readable by its owner only.
        session: the program's HTTP session; not closed here.
        wall_ns: UTC wall clock in ns.

    Attributes:
        calendar: what is known; nothing before `restore`, or else the first `refresh`.
        asked: whether the broker was asked yet, whatever it answered.
        fresh: whether the last `refresh` had every answer.

    Raises:
        ConfigurationError: an address to which no token may be sent.
    """

    def __init__(
        self, url: str, cache_dir: Path, session: aiohttp.ClientSession, *, wall_ns: Callable[[], int] = time.time_ns
    ) -> None:
        UpstoxApi(url, session)  # refuses an address that a token must not go to
        self.calendar = Calendar()
        self.asked = self.fresh = False
        self._base = URL(url)
        self._path = cache_dir / "calendar.json"
        self._session = session
        self._wall_ns = wall_ns
        self._holidays: list[Any] = []
        self._timings: dict[str, list[Any]] = {}
        self._told: Mapping[str, object] | None = None

    async def restore(self) -> Mapping[str, object] | None:
        """Read the copy on disk; the body of a `calendar` event, None when there is no copy."""
        self._adopt(*await asyncio.to_thread(_read, self._path))
        return self._news(self._today())

    async def refresh(self, token: str | None) -> Mapping[str, object] | None:
        """Bring the calendar up to date, as far as the broker answers.

        Args:
            token: sent along if there is one; holidays and hours are the same for everybody.

        Returns:
            The body of a `calendar` event, None when it is the one returned last.
        """
        today = self._today()
        try:
            await self._fetch(token, today)
            self.fresh = True
        except FeedUnavailable as exc:
            if self.fresh or not self.asked:  # an outage of a night is told once
                log.warning("calendar.unavailable", error=str(exc), known=bool(self._timings))
            self.fresh = False
        self.asked = True
        return self._news(today)

    async def keep(
        self, token: Callable[[], Awaitable[str | None]], tell: Callable[[Mapping[str, object]], Awaitable[None]]
    ) -> None:
        """Restore, then refresh for ever, and tell what is new; a task of its own, ended by cancelling it."""
        if (body := await self.restore()) is not None:
            await tell(body)
        while True:
            if (body := await self.refresh(await token())) is not None:
                await tell(body)
            await asyncio.sleep(REFRESH_S if self.fresh else RETRY_S)

    async def _fetch(self, token: str | None, today: dt.date) -> None:
        """Ask for holidays, then for the hours of the days that trade."""
        holidays = await self._data(self._base / HOLIDAYS_PATH, token)
        timings = {date: rows for date, rows in self._timings.items() if _age_days(date, today) <= DAYS_KEPT}
        self._adopt(holidays, timings)
        asked = 0
        for number in range(DAYS_AHEAD):
            date = today + dt.timedelta(days=number)
            if asked == TRADING_DAYS or (number and not self.calendar.trades(date)):
                continue
            rows = await self._data(self._base / TIMINGS_PATH / date.isoformat(), token)
            self._adopt(holidays, {**self._timings, date.isoformat(): rows})
            asked += bool(rows)
        copy = json.dumps({"holidays": self._holidays, "timings": self._timings})
        try:
            await asyncio.to_thread(replace_file, self._path, copy.encode())
        except OSError as exc:  # a full disk: the copy of before stays
            log.warning("calendar.unwritten", error=exc.strerror)

    async def _data(self, url: URL, token: str | None) -> list[Any]:
        headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        # A redirect would be nothing that the API documents, and would carry the token along.
        answer = await get(self._session, url, what="the broker's calendar", headers=headers, follow=False)
        body = answer.json()
        data = body.get("data") if isinstance(body, dict) else None
        if answer.status != 200 or not isinstance(data, list):
            raise FeedUnavailable(f"the broker's calendar: expected a list, got HTTP {answer.status} and none")
        return data

    def _adopt(self, holidays: list[Any], timings: dict[str, list[Any]]) -> None:
        """Take answers over, all or nothing."""
        try:
            self.calendar = calendar_of(holidays, timings)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as exc:
            raise FeedUnavailable(f"the broker's calendar has another form: {type(exc).__name__} {exc}") from exc
        self._holidays, self._timings = holidays, timings

    def _today(self) -> dt.date:
        return dt.datetime.fromtimestamp(self._wall_ns() / 1e9, IST).date()

    def _news(self, today: dt.date) -> Mapping[str, object] | None:
        told = dt.timedelta(days=DAYS_TOLD)
        sessions = self.calendar.sessions(today - told, today + told)
        body = sessions.body()
        if not sessions.windows or body == self._told:
            return None
        self._told = body
        return body


def _age_days(date: str, today: dt.date) -> int:
    return (today - dt.date.fromisoformat(date)).days


def _read(path: Path) -> tuple[list[Any], dict[str, list[Any]]]:
    """Return what the copy holds; nothing when there is none, or it is not ours."""
    try:
        with path.open("rb") as file:
            copy = json.loads(file.read(MAX_COPY_BYTES))
        holidays, timings = copy["holidays"], copy["timings"]
        calendar_of(holidays, timings)
    except (OSError, AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return [], {}
    return holidays, timings
