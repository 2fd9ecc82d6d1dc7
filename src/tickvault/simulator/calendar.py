"""When the simulated exchanges trade (pure): hours, holidays, special sessions, and the phases of a day.

Times of day are seconds after 00:00 IST.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from tickvault.errors import ConfigurationError
from tickvault.model import IST

__all__ = [
    "ALWAYS_OPEN",
    "EXCHANGES",
    "HOLIDAY_TYPES",
    "Calendar",
    "Holiday",
    "Hours",
    "Phases",
    "epoch_ms",
    "ist_date",
    "parse_calendar",
    "parse_time_s",
]

DAY_S: Final = 86_400.0
HOLIDAY_TYPES: Final = ("TRADING_HOLIDAY", "SETTLEMENT_HOLIDAY", "SPECIAL_TIMING")
_TIME: Final = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d{1,3})?))?")
_RELATIVE: Final = re.compile(r"today(?:([+-]\d{1,4}))?")


@dataclass(frozen=True, slots=True)
class Hours:
    """A session of continuous trading, from `start_s` to before `end_s`, at most a day."""

    start_s: float
    end_s: float

    def __post_init__(self) -> None:
        """Refuse a session that ends before it starts.

        Raises:
            ConfigurationError: with both times.
        """
        if not 0 <= self.start_s < self.end_s <= DAY_S:
            raise ConfigurationError(
                f"expected a start before an end, 00:00 to 24:00; got {self.start_s:g} s to {self.end_s:g} s"
            )


# What the broker's timings list, since the change of 3 August 2026; NSCOM has a status and no timings.
_STANDARD: Final[Mapping[str, Hours]] = {
    "NSE": Hours(33_300, 55_800),
    "BSE": Hours(33_300, 55_800),
    "NFO": Hours(33_300, 56_400),
    "BFO": Hours(33_300, 56_400),
    "CDS": Hours(32_400, 61_200),
    "BCD": Hours(32_400, 61_200),
    "MCX": Hours(32_400, 84_600),
    "NSCOM": Hours(32_400, 84_600),
}
EXCHANGES: Final = tuple(_STANDARD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """Moments of a cash market's day, in seconds before its start or end; a pair is a random moment between.

    Attributes:
        pre_open_s: orders are collected, before the start.
        market_orders_s: no more market orders, before the start.
        order_entry_s: no more orders, before the start.
        cts_close_s: continuous trading ends for those in the closing auction, before the end.
        cas_start_s: their auction collects orders, before the end.
        cas_market_stop_s: no more market orders in it, before the end.
        cas_stop_s: no more orders in it, before the end.
        post_close_s: the post-close session starts, after the end.
        post_end_s: and ends, after the end.
    """

    pre_open_s: float = 900.0
    market_orders_s: float = 600.0
    order_entry_s: tuple[float, float] = (420.0, 300.0)
    cts_close_s: float = 900.0
    cas_start_s: float = 600.0
    cas_market_stop_s: float = 300.0
    cas_stop_s: tuple[float, float] = (120.0, 0.0)
    post_close_s: float = 600.0
    post_end_s: float = 1_800.0

    def times(self, factor: float) -> Phases:
        """Return the same phases, `factor` times as long."""
        # Each field is a float or a pair of them; what a type checker cannot follow here is one loop.
        values: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}
        for name, value in values.items():
            values[name] = tuple(v * factor for v in value) if isinstance(value, tuple) else value * factor
        return Phases(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holiday:
    """A day that is not ordinary.

    Attributes:
        day: its date, or days after the one on which the simulation starts.
        description: free text.
        kind: one of HOLIDAY_TYPES; SETTLEMENT_HOLIDAY closes nothing by itself.
        closed: exchanges that do not trade.
        open: exchanges with hours of their own, on a weekend too. An exchange in neither keeps its ordinary hours.
    """

    day: dt.date | int
    description: str = "Simulated holiday"
    kind: str = "TRADING_HOLIDAY"
    closed: tuple[str, ...] = ()
    open: Mapping[str, Hours] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calendar:
    """The exchanges' calendar.

    Attributes:
        hours: exchange → hours of an ordinary day.
        phases: of NSE and BSE; None leaves open and closed.
        weekend: ISO weekdays without trading.
        holidays: days that differ.
    """

    hours: Mapping[str, Hours] = field(default_factory=lambda: dict(_STANDARD))
    phases: Phases | None = field(default_factory=Phases)
    weekend: frozenset[int] = frozenset({6, 7})
    holidays: tuple[Holiday, ...] = ()

    def resolved(self, today: dt.date) -> Calendar:
        """Return the calendar of a simulation that starts `today`: every holiday has a date."""
        dated = tuple(
            replace(one, day=today + dt.timedelta(days=one.day)) if isinstance(one.day, int) else one
            for one in self.holidays
        )
        return replace(self, holidays=dated)

    def holiday(self, day: dt.date) -> Holiday | None:
        """Return what is special about a day."""
        return next((one for one in self.holidays if one.day == day), None)

    def sessions(self, day: dt.date) -> dict[str, Hours]:
        """Return exchange → hours of those that trade on a day."""
        ordinary = {} if day.isoweekday() in self.weekend else dict(self.hours)
        if (special := self.holiday(day)) is not None:
            ordinary = {name: hours for name, hours in ordinary.items() if name not in special.closed}
            ordinary |= special.open
        return ordinary

    def squeezed(self, start_s: float, day_s: float) -> Calendar:
        """Return a calendar whose ordinary day, 09:00 to 16:00, takes `day_s` seconds from `start_s` on.

        Exchanges whose day is longer than that of the cash market are cut to it.
        """
        first, last = 32_400.0, 57_600.0
        factor = day_s / (last - first)

        def moved(at_s: float) -> float:
            return start_s + (min(max(at_s, first), last) - first) * factor

        hours = {name: Hours(moved(one.start_s), moved(one.end_s)) for name, one in self.hours.items()}
        return replace(self, hours=hours, phases=None if self.phases is None else self.phases.times(factor))


# The default: whoever looks, at any hour, finds the market open.
ALWAYS_OPEN: Final = Calendar(
    hours=dict.fromkeys(_STANDARD, Hours(0.0, DAY_S)), phases=None, weekend=frozenset(), holidays=()
)


def epoch_ms(day: dt.date, time_s: float) -> int:
    """Return the UTC epoch ms of a time of day in IST."""
    return round((dt.datetime.combine(day, dt.time(), IST).timestamp() + time_s) * 1000)


def ist_date(now_ms: int) -> dt.date:
    """Return the date in India."""
    return dt.datetime.fromtimestamp(now_ms / 1000, IST).date()


def parse_time_s(text: object, where: str) -> float:
    """Return seconds after midnight of HH:MM, HH:MM:SS or HH:MM:SS.sss; 24:00 is the day's end.

    Raises:
        ConfigurationError: anything else.
    """
    match = _TIME.fullmatch(text) if isinstance(text, str) else None
    if match is not None:
        hours, minutes, seconds = int(match[1]), int(match[2]), float(match[3] or 0)
        time_s = hours * 3600 + minutes * 60 + seconds
        if minutes < 60 and seconds < 60 and time_s <= DAY_S:
            return time_s
    raise ConfigurationError(f"{where}: expected a time of day such as '09:15' or '09:15:30', got {text!r}")


def parse_calendar(document: object, where: str = "calendar") -> Calendar:
    """Turn a script's `calendar` table into a calendar; what it does not name is as at the exchange.

    Raises:
        ConfigurationError: names the field, what was expected and what was got.
    """
    table = _table(document, where, ("hours", "phases", "weekend", "holidays"))
    hours = dict(_STANDARD) | _hours(table.get("hours", {}), f"{where}.hours")
    weekend = table.get("weekend", [6, 7])
    if not isinstance(weekend, list) or not all(isinstance(d, int) and 1 <= d <= 7 for d in weekend):
        raise ConfigurationError(f"{where}.weekend: expected a list of ISO weekdays, 1 to 7; got {weekend!r}")
    listed = table.get("holidays", [])
    if not isinstance(listed, list):
        raise ConfigurationError(f"{where}.holidays: expected a list, got {listed!r}")
    holidays = tuple(_holiday(one, f"{where}.holidays[{number}]") for number, one in enumerate(listed, 1))
    phases = _phases(table.get("phases", {}), f"{where}.phases")
    return Calendar(hours=hours, phases=phases, weekend=frozenset(weekend), holidays=holidays)


def _holiday(document: object, where: str) -> Holiday:
    table = _table(document, where, ("date", "description", "type", "closed", "open"))
    if "date" not in table:
        raise ConfigurationError(f'{where}: date is missing; add date = "2026-11-09", or "today+1"')
    kind = table.get("type", HOLIDAY_TYPES[0])
    if kind not in HOLIDAY_TYPES:
        raise ConfigurationError(f"{where}.type: expected one of {', '.join(HOLIDAY_TYPES)}; got {kind!r}")
    closed = table.get("closed", [])
    if not isinstance(closed, list) or (wrong := [name for name in closed if name not in EXCHANGES]):
        raise ConfigurationError(f"{where}.closed: expected a list of {', '.join(EXCHANGES)}; got {wrong or closed!r}")
    return Holiday(
        day=_day(table["date"], f"{where}.date"),
        description=str(table.get("description", "Simulated holiday")),
        kind=str(kind),
        closed=tuple(closed),
        open=_hours(table.get("open", {}), f"{where}.open"),
    )


def _day(value: object, where: str) -> dt.date | int:
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        return value
    if isinstance(value, str):
        if (match := _RELATIVE.fullmatch(value)) is not None:
            return int(match[1] or 0)
        try:
            return dt.date.fromisoformat(value)
        except ValueError:
            pass
    raise ConfigurationError(f"{where}: expected a date such as 2026-11-09, 'today' or 'today+1'; got {value!r}")


def _hours(document: object, where: str) -> dict[str, Hours]:
    hours = {}
    for name, pair in _table(document, where, EXCHANGES).items():
        if not isinstance(pair, list) or len(pair) != 2:
            raise ConfigurationError(f"{where}.{name}: expected [start, end] such as ['09:15', '15:30'], got {pair!r}")
        start_s, end_s = (parse_time_s(text, f"{where}.{name}") for text in pair)
        try:
            hours[name] = Hours(start_s, end_s)
        except ConfigurationError as exc:
            raise ConfigurationError(f"{where}.{name}: {exc}") from exc
    return hours


def _phases(document: object, where: str) -> Phases | None:
    if document is False:
        return None
    known = {one.name: one for one in fields(Phases)}
    values: dict[str, Any] = {}
    for name, value in _table(document, where, tuple(known)).items():
        pair = value if isinstance(value, list) else [value]
        random = "tuple" in str(known[name].type)
        if len(pair) not in ({1, 2} if random else {1}) or not all(_is_seconds(one) for one in pair):
            wanted = "seconds, or a pair of them" if random else "seconds"
            raise ConfigurationError(f"{where}.{name}: expected {wanted}, got {value!r}")
        values[name] = (pair[0], pair[-1]) if random else pair[0]
    return Phases(**values)


def _is_seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= DAY_S


def _table(document: object, where: str, allowed: tuple[str, ...]) -> dict[str, object]:
    if not isinstance(document, Mapping):
        raise ConfigurationError(f"{where}: expected a table with {', '.join(allowed)}; got {document!r}")
    if unknown := [name for name in document if name not in allowed]:
        raise ConfigurationError(f"{where}: unknown field {unknown[0]!r}; expected {', '.join(allowed)}")
    return {str(name): value for name, value in document.items()}
