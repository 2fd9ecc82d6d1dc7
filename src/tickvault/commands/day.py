"""`tickvault day`: is the day complete? One screen, and an exit code."""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.text import Text

from tickvault import render
from tickvault.commands.options import AsJson, Config, DataDir, EnvFile, settings_of
from tickvault.errors import ConfigurationError
from tickvault.model import IST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tickvault.settings import Settings
    from tickvault.verdict import Absent, Day, Late, Missing, StoreDay

__all__ = ["day", "show"]

_SHOWN: Final = 10  # lines of a list that may be long

_UNKNOWN_HOURS: Final = (
    "the exchanges' hours of this day are not known: judged from the first answer of the broker to the last commit"
)
_DATE: Final = "Date in India, as YYYY-MM-DD; default today."


def day(
    date: Annotated[str | None, typer.Argument(help=_DATE, show_default=False)] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: Config = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Say whether a day is complete; exit 1 if it is not."""
    if not show(settings_of(data_dir, config, env_file), date, as_json=as_json):
        raise typer.Exit(1)


def show(settings: Settings, date: str | None, *, as_json: bool) -> bool:
    """Print the verdict on a day (None: today in India), and return whether it is complete."""
    from tickvault.day import look  # DuckDB takes its time

    now_ns = time.time_ns()
    one = look(settings.data_dir, _date(date, now_ns), now_ns=now_ns, sinks=settings.sinks)
    if as_json:
        render.dump_json(one.json())
    else:
        _show(one)
    return one.complete


def _date(text: str | None, now_ns: int) -> dt.date:
    today = dt.datetime.fromtimestamp(now_ns / 1e9, IST).date()
    if text is None:
        return today
    try:
        wanted = dt.date.fromisoformat(text)
    except ValueError as exc:
        raise ConfigurationError(f"expected a date such as {today.isoformat()}, got {text!r}") from exc
    if wanted > today:
        raise ConfigurationError(f"{wanted.isoformat()} is still to come; today is {today.isoformat()} in India")
    if wanted.year < 1970:
        raise ConfigurationError(
            f"{wanted.isoformat()} is before anybody recorded; expected a date such as {today.isoformat()}"
        )
    return wanted


def _show(one: Day) -> None:
    verdict = Text("COMPLETE", "bold green") if one.complete else Text("INCOMPLETE", "bold red")
    render.console().print(Text(f"{one.date.isoformat()} "), verdict, sep="", soft_wrap=True)
    for words in one.why:
        render.paragraph(words)
    if not one.hours_known:
        render.paragraph(_UNKNOWN_HOURS)
    segments = [
        (part.segment, part.keys, _s(part.session_s), _s(part.recorded_s), _s(part.session_s - part.recorded_s))
        for part in one.segments
    ]
    _list(("segment", "keys", "session s", "recorded s", "missing s"), segments, limit=len(segments))
    everywhere = {part.segment for part in one.segments if part.session_s}
    _list(
        ("from", "to", "seconds", "reason", "where and why"),
        [
            (_clock(gap.from_ns), _clock(gap.to_ns), _s(gap.seconds), gap.reason, _where(gap, everywhere))
            for gap in one.missing
        ],
    )
    _list(("instrument", "missing s", "why"), _instruments(one))
    rows = [("recorded", one.rows, "", "", "", ""), *(_store_row(at) for at in one.stores)]
    _list(
        ("rows", *(name.removeprefix("market_") for name in one.rows), "behind", "refused", "state", "detail"),
        [(name, *(f"{count:,}" for count in counts.values()), *rest) for name, counts, *rest in rows],
        limit=len(rows),
    )


def _where(gap: Missing, everywhere: set[str]) -> str:
    where = "all" if set(gap.segments) >= everywhere else " ".join(gap.segments)
    return f"{where}: {gap.detail}" if gap.detail else where


def _instruments(one: Day) -> list[tuple[str, str, str]]:
    """Return a line for each instrument that is not as it should be, first what makes the day incomplete."""
    absent = {key.instrument_key: key for key in one.absent}
    late = {key.instrument_key: key for key in one.late}
    worst = [key for key, found in late.items() if found.after_s is None or found.lost_ns is not None]
    return [
        (key, _s(absent[key].seconds) if key in absent else "", _why(late.get(key), absent.get(key)))
        for key in dict.fromkeys([*worst, *absent, *late])
    ] + [(key, "", "never seen, and not in the broker's master list: costs nothing") for key in one.unknown]


def _why(late: Late | None, absent: Absent | None) -> str:
    span = "" if absent is None else f"{_clock(absent.from_ns)} to {_clock(absent.to_ns)}: {absent.detail}"
    if late is not None and late.after_s is None:
        return f"never seen; {span}" if span else "never seen"
    if late is not None and late.lost_ns is not None:
        return span or f"none since it was subscribed to again at {_clock(late.lost_ns)}"
    if late is not None and late.after_s is not None and not span:
        return f"first tick {late.after_s:,.1f} s after it was asked for"
    return span


def _store_row(at: StoreDay) -> tuple[Any, ...]:
    return at.name, at.rows, f"{at.behind:,}", f"{at.refused:,}", at.state, at.detail


def _list(headers: tuple[str, ...], rows: Sequence[Sequence[object]], *, limit: int = _SHOWN) -> None:
    """Print the first lines of a list that may be long; --json has them all."""
    if rows:
        render.console().print()
        render.listing(headers, rows[:limit])
    if len(rows) > limit:
        render.paragraph(f"and {len(rows) - limit:,} more; --json has them all")


def _s(seconds: float) -> str:
    return f"{seconds:,.1f}"


def _clock(at_ns: int) -> str:
    return dt.datetime.fromtimestamp(at_ns / 1e9, IST).strftime("%H:%M:%S")
