"""How much disk a data folder takes, how fast it grows, and when the disk is full."""

from __future__ import annotations

import datetime as dt
import shutil
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tickvault import segments, survey
from tickvault.model import IST

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Usage", "days_left", "measure"]

_DAYS: Final = 14  # looked back on for what a day brings: two weeks have two weekends
_STATE: Final = ("state.db", "state.db-journal", "journal/facts.db")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a data folder takes, in bytes.

    Attributes:
        stores: `journal`, `parquet`, `state`, `damaged` (what was set aside), `other`.
        days: IST date → store → bytes; of the journal where a segment began, of Parquet the date of its rows.
        a_day: store → bytes that a calendar day brings, from the whole days lately; today's if there is none.
        free, total, reserve: of the disk.
        full_on: when only the reserve will be free, growing as lately; None: not in ten years, or nothing grows.
    """

    stores: Mapping[str, int]
    days: Mapping[dt.date, Mapping[str, int]]
    a_day: Mapping[str, float]
    free: int
    total: int
    reserve: int
    full_on: dt.date | None


def measure(data_dir: Path, *, retain_s: float, reserve: int, today: dt.date) -> Usage:
    """Add up the files of a data folder; a recorder may run on it.

    Args:
        data_dir: the folder.
        retain_s: how long delivered frames are kept.
        reserve: bytes that are to stay free.
        today: in India.
    """
    sizes = {str(path.relative_to(data_dir)): _size(path) for path in data_dir.rglob("*") if path.is_file()}
    stores: Counter[str] = Counter(dict.fromkeys(("journal", "parquet", "state", "damaged", "other"), 0))
    days: dict[dt.date, Counter[str]] = {}
    for name, size in sizes.items():
        store = _store_of(name)
        stores[store] += size
        if store == "parquet" and (date := _date_of(name)) is not None:
            days.setdefault(date, Counter())[store] += size
    for path in segments.paths(data_dir / "journal"):
        begun_ns = survey.begun_ns(path)
        if begun_ns:
            date = dt.datetime.fromtimestamp(begun_ns / 1e9, IST).date()
            days.setdefault(date, Counter())["journal"] += survey.size_of(path)
    a_day = {store: _rate(days, store, today) for store in ("journal", "parquet")}
    usage = shutil.disk_usage(data_dir)
    left = days_left(
        room=usage.free - reserve,
        journal=stores["journal"],
        journal_a_day=a_day["journal"],
        retain_days=retain_s / 86_400,
        kept_a_day=a_day["parquet"],
    )
    return Usage(
        stores=dict(stores),
        days={date: dict(days[date]) for date in sorted(days)},
        a_day=a_day,
        free=usage.free,
        total=usage.total,
        reserve=reserve,
        full_on=None if left is None or left > 3650 else today + dt.timedelta(days=int(left)),
    )


def days_left(
    *, room: float, journal: float, journal_a_day: float, retain_days: float, kept_a_day: float
) -> float | None:
    """Return in how many days so much room is taken; None if it never is.

    The journal grows until it holds what is retained, and no further; what is kept for good grows on.
    """
    if room <= 0:
        return 0.0
    growing_days = max(0.0, retain_days - journal / journal_a_day) if journal_a_day else 0.0
    grown = growing_days * (journal_a_day + kept_a_day)
    if grown >= room:
        return room / (journal_a_day + kept_a_day)
    return growing_days + (room - grown) / kept_a_day if kept_a_day else None


def _rate(days: Mapping[dt.date, Mapping[str, int]], store: str, today: dt.date) -> float:
    lately = [date for date in days if store in days[date] and dt.timedelta(0) < today - date <= dt.timedelta(_DAYS)]
    if not lately:
        return float(days.get(today, {}).get(store, 0))
    return sum(days[date][store] for date in lately) / (today - min(lately)).days


def _store_of(name: str) -> str:
    if name.startswith(("journal/damaged/", "state.db.damaged")):
        return "damaged"
    if name in _STATE:
        return "state"
    first = name.partition("/")[0]
    return first if first in {"journal", "parquet"} else "other"


def _date_of(name: str) -> dt.date | None:
    for part in name.split("/"):
        if part.startswith("date="):
            try:
                return dt.date.fromisoformat(part.removeprefix("date="))
            except ValueError:
                return None
    return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # it went while we looked
        return 0
