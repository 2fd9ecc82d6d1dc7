"""`tickvault day`: is the day complete? One screen, and an exit code."""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.text import Text

from tickvault import render
from tickvault.commands.options import AsJson, Config, DataDir, EnvFile, settings_of
from tickvault.errors import ConfigurationError
from tickvault.model import IST

if TYPE_CHECKING:
    from tickvault.day import Day, Late
    from tickvault.settings import Settings

__all__ = ["day", "show"]

_SHOWN: Final = 10  # lines of a list that may be long

_DATE: Final = "Date in India, as YYYY-MM-DD; default today."


def day(
    date: Annotated[str | None, typer.Argument(help=_DATE, show_default=False)] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: Config = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Say whether a day is complete; exit 1 if anything is missing."""
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
    return wanted


def _show(one: Day) -> None:
    verdict = Text("COMPLETE", "bold green") if one.complete else Text("INCOMPLETE", "bold red")
    render.console().print(Text(f"{one.date.isoformat()} "), verdict, sep="", soft_wrap=True)
    for words in one.why:
        render.console().print(Text(f"  {words}"), soft_wrap=True)
    if not one.hours_known:
        render.console().print(
            Text(
                "  the exchanges' hours of this day are not known: judged from the first connection to the last commit"
            ),
            soft_wrap=True,
        )
    if one.segments:
        render.table(
            ("segment", "keys", "session", "recorded", "missing"),
            [
                (part.segment, part.keys, _s(part.session_s), _s(part.recorded_s), _s(part.session_s - part.recorded_s))
                for part in one.segments
            ],
        )
    _list(
        ("from", "to", "seconds", "reason", "segments", "detail"),
        [
            (_clock(gap.from_ns), _clock(gap.to_ns), _s(gap.seconds), gap.reason, " ".join(gap.segments), gap.detail)
            for gap in one.missing
        ],
    )
    _list(
        ("instrument", "first tick"),
        [(key.instrument_key, _first_tick(key)) for key in one.late],
    )
    rows = [
        ("recorded", one.rows, "", "", "", ""),
        *((at.name, at.rows, at.behind, at.refused, at.state, at.detail) for at in one.stores),
    ]
    render.table(
        ("rows", *one.rows, "frames behind", "refused", "state", "detail"),
        [(name, *(f"{count:,}" for count in counts.values()), *rest) for name, counts, *rest in rows],
    )


def _first_tick(late: Late) -> str:
    if late.after_s is None:
        return "never"
    if late.lost_ns is not None:
        return f"none since it was subscribed to again at {_clock(late.lost_ns)}"
    return f"{late.after_s:,.1f} s after it was asked for"


def _list(headers: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    """Print the first lines of a list that may be long; --json has them all."""
    if rows:
        render.table(headers, rows[:_SHOWN])
    if len(rows) > _SHOWN:
        render.console().print(Text(f"  and {len(rows) - _SHOWN:,} more; --json has them all"), soft_wrap=True)


def _s(seconds: float) -> str:
    return f"{seconds:,.1f} s"


def _clock(at_ns: int) -> str:
    return dt.datetime.fromtimestamp(at_ns / 1e9, IST).strftime("%H:%M:%S")
