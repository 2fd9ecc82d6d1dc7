"""`tickvault compact`: closed days of the Parquet store become one sorted file a table."""

from __future__ import annotations

import datetime as dt
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tickvault import compaction, render
from tickvault.commands.options import AsJson, Config, DataDir, EnvFile, settings_of
from tickvault.datafolder import recorded
from tickvault.errors import ConfigurationError, Refused
from tickvault.model import IST
from tickvault.sinks.parquet import scan

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["compact"]

_DATE: Final = "Only this day, as YYYY-MM-DD in India; default all that are over."


def compact(
    date: Annotated[str | None, typer.Option("--date", help=_DATE, show_default=False)] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: Config = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Rewrite days that are over into few sorted files.

    Also while a recorder runs. Exit 1 if anything was left as it is.
    """
    now_ns = time.time_ns()
    wanted = None if date is None else _date(date, now_ns)
    settings = settings_of(data_dir, config, env_file)
    folder = recorded(settings.data_dir)
    _demand_stored(folder, wanted)
    reserve = settings.disk_reserve.of(shutil.disk_usage(folder).total)
    done, left = [], []
    for one in compaction.compact(folder, now_ns=now_ns, reserve_bytes=reserve, date=wanted):
        if isinstance(one, compaction.Left):
            left.append(one)
        else:
            done.append(one)
    if as_json:
        render.dump_json({"compacted": [asdict(one) for one in done], "left": [asdict(one) for one in left]})
    else:
        _show(done, left)
    if left:
        raise typer.Exit(1)


def _date(text: str, now_ns: int) -> dt.date:
    today = dt.datetime.fromtimestamp(now_ns / 1e9, IST).date()
    try:
        wanted = dt.date.fromisoformat(text)
    except ValueError as exc:
        raise ConfigurationError(f"--date: expected a date such as {today.isoformat()}, got {text!r}") from exc
    if wanted >= today:
        raise ConfigurationError(
            f"--date: {wanted.isoformat()} is not over; expected a day before {today.isoformat()}, which is today in India"
        )
    return wanted


def _demand_stored(folder: Path, wanted: dt.date | None) -> None:
    """Refuse a day of which nothing is stored, and name those of which something is."""
    if wanted is None:
        return
    days = sorted({file.date for file in scan(folder / "parquet")})
    if wanted.isoformat() not in days:
        there = f"stored are days from {days[0]} to {days[-1]}" if days else "there are no files yet"
        raise Refused(f"nothing of {wanted.isoformat()} is stored as Parquet in {folder}; {there}")


def _show(done: Sequence[compaction.Compacted], left: Sequence[compaction.Left]) -> None:
    if done:
        render.table(
            ("date", "table", "rows", "files before", "MB before", "MB after", "bytes a row"),
            [
                (
                    one.date,
                    one.table,
                    f"{one.rows:,}",
                    one.files,
                    f"{one.bytes_before / 1e6:,.1f}",
                    f"{one.bytes_after / 1e6:,.1f}",
                    f"{one.bytes_after / max(one.rows, 1):,.1f}",
                )
                for one in done
            ],
        )
    for one in left:
        render.paragraph(f"left as it is: {one.table} of {one.date}: {one.reason}")
    if not done and not left:
        render.paragraph("nothing to do: every day that is over and stored is one file a table")
