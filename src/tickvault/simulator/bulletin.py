"""The HTTP side of the calendar: holidays, timings, and what an exchange is doing."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Final

from aiohttp import web

from tickvault.simulator.calendar import EXCHANGES, epoch_ms, ist_date
from tickvault.simulator.envelope import error
from tickvault.simulator.timetable import SEGMENT_OF

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tickvault.simulator.calendar import Calendar, Holiday, Hours

    # (scope, segment) → (status, since when in epoch ms), as timetable.standing has it.
    Statuses = Mapping[tuple[str, str], tuple[str, int]]

__all__ = ["HOLIDAYS_PATH", "STATUS_PATH", "TIMINGS_PATH", "Bulletin"]

HOLIDAYS_PATH: Final = "/v2/market/holidays"
TIMINGS_PATH: Final = "/v2/market/timings"
STATUS_PATH: Final = "/v2/market/status"
_WITHOUT_TIMINGS: Final = "NSCOM"


class Bulletin:
    """Handlers of `/v2/market/…`; no token is needed, one is not looked at."""

    def __init__(self, calendar: Calendar, statuses: Callable[[], Statuses], now_ms: Callable[[], int]) -> None:
        """Answer from a calendar whose holidays have dates, and from the statuses that everybody is told."""
        self._calendar, self._statuses, self._now_ms = calendar, statuses, now_ms

    def routes(self) -> list[web.RouteDef]:
        """Return what this class serves."""
        return [
            web.get(HOLIDAYS_PATH, self.holidays),
            web.get(HOLIDAYS_PATH + "/{date}", self.holidays),
            web.get(TIMINGS_PATH + "/{date}", self.timings),
            web.get(STATUS_PATH + "/{exchange}", self.status),
        ]

    async def holidays(self, request: web.Request) -> web.Response:
        """Give the year's holidays, or a date's; an ordinary date has none."""
        text = request.match_info.get("date")
        day = None if text is None else _date(text)
        if text is not None and day is None:
            return _bad_date(text)
        year = ist_date(self._now_ms()).year
        listed = sorted((one for one in self._calendar.holidays if isinstance(one.day, dt.date)), key=_day)
        return _success([_holiday(one) for one in listed if (_day(one) == day if day else _day(one).year == year)])

    async def timings(self, request: web.Request) -> web.Response:
        """Give the hours of every exchange that trades on a date."""
        text = request.match_info["date"]
        if (day := _date(text)) is None:
            return _bad_date(text)
        sessions = self._calendar.sessions(day)
        return _success(
            [_hours(name, day, sessions[name]) for name in EXCHANGES if name in sessions and name != _WITHOUT_TIMINGS]
        )

    async def status(self, request: web.Request) -> web.Response:
        """Give an exchange's status, and that of its closing auction when there is one."""
        exchange = request.match_info["exchange"]
        if (segment := SEGMENT_OF.get(exchange)) is None:
            return error(400, "UDAPI1089", "Invalid exchange", invalid=("exchange", exchange))
        statuses = self._statuses()
        status, since_ms = statuses["segment", segment]
        data: dict[str, object] = {"exchange": exchange, "status": status, "last_updated": since_ms}
        if (auction := statuses.get(("cas", segment))) is not None:
            data["cas_eligible_status"] = {"status": auction[0], "last_updated": auction[1]}
        return _success(data)


def _success(data: object) -> web.Response:
    return web.json_response({"status": "success", "data": data})


def _bad_date(text: str) -> web.Response:
    return error(400, "UDAPI1088", "Invalid date", invalid=("date", text))


def _date(text: str) -> dt.date | None:
    try:
        day = dt.date.fromisoformat(text)
    except ValueError:
        return None
    return day if day.isoformat() == text else None


def _day(one: Holiday) -> dt.date:
    assert isinstance(one.day, dt.date)
    return one.day


def _holiday(one: Holiday) -> dict[str, object]:
    return {
        "date": _day(one).isoformat(),
        "description": one.description,
        "holiday_type": one.kind,
        "closed_exchanges": list(one.closed),
        "open_exchanges": [_hours(name, _day(one), hours) for name, hours in one.open.items()],
    }


def _hours(exchange: str, day: dt.date, hours: Hours) -> dict[str, object]:
    return {
        "exchange": exchange,
        "start_time": epoch_ms(day, hours.start_s),
        "end_time": epoch_ms(day, hours.end_s),
    }
