"""`tickvault dead-letters …`: what a sink refused, with its words; and sending it again."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tickvault import deadletters, offline, render
from tickvault.commands.options import AsJson, Config, DataDir, EnvFile, settings_of, show_help
from tickvault.datafolder import holder, recorded
from tickvault.deadletters import Choice, Letter
from tickvault.errors import ConfigurationError, Refused
from tickvault.model import IST, TABLES
from tickvault.state import read_view

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tickvault.settings import Settings
    from tickvault.state import Cursor

__all__ = ["app", "resume"]

_LOOK_S: Final = 0.2
_TABLES: Final = (*TABLES, "frame")

Sink = Annotated[str | None, typer.Option("--sink", help="Only those of this sink.", show_default=False)]
Table = Annotated[
    str | None, typer.Option("--table", help=f"Only those of this table: {', '.join(_TABLES)}.", show_default=False)
]
Instrument = Annotated[
    str | None, typer.Option("--instrument", help="Only those of this instrument key.", show_default=False)
]

app = typer.Typer(help="Look at rows that a sink refused, and send them again.")
app.callback(invoke_without_command=True)(show_help)


@app.command("list")
def list_(
    sink: Sink = None,
    table: Table = None,
    instrument: Instrument = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: Config = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """List what a sink refused, with its words."""
    folder = recorded(settings_of(data_dir, config, env_file).data_dir)
    found = deadletters.read(folder / "state.db", _chosen(folder, sink, table, instrument))
    if as_json:
        render.dump_json([_as_json(letter) for letter in found])
        return
    if not found:
        typer.echo("no dead letters")
        return
    render.rows(
        ("sink", "seq", "table", "instrument", "refused at", "reason"),
        [
            (one.sink, one.seq, one.table, one.instrument_key, f"{_ist(one.at_ns):%Y-%m-%d %H:%M:%S}", one.reason)
            for one in found
        ],
    )


@app.command("redrive")
def redrive(
    sink: Sink = None,
    table: Table = None,
    instrument: Instrument = None,
    wait_s: Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for a running recorder.")] = 60.0,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: Config = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Send what a sink refused to it again; exit 1 if anything is left.

    A running recorder does it itself; else it is done here. A letter goes when the store has its rows.
    """
    settings = settings_of(data_dir, config, env_file)
    folder = recorded(settings.data_dir)
    path = folder / "state.db"
    meant = deadletters.read(path, _chosen(folder, sink, table, instrument))
    before = [one for one in meant if one.sink == offline.TAKES_AGAIN]
    others = [one for one in meant if one.sink != offline.TAKES_AGAIN]
    if others and not before:
        raise Refused(_elsewhere(others))
    choice = Choice(sink=offline.TAKES_AGAIN, table=table, instrument_key=instrument)
    waiting = _sent_again(settings, path, choice, wait_s) if before else 0
    left = {one.place: one for one in deadletters.read(path, choice)}
    refused = [left[one.place] for one in before if one.place in left]
    _tell(len(before), refused, waiting, as_json=as_json)
    if others:
        typer.echo(_elsewhere(others), err=True)
    if refused or others:
        raise typer.Exit(1)


def _elsewhere(letters: Sequence[Letter]) -> str:
    sinks = sorted({one.sink for one in letters})
    first = {name: min(one.seq for one in letters if one.sink == name) - 1 for name in sinks}
    commands = " and ".join(f"`tickvault rewind --sink {name} --to-seq {seq}`" for name, seq in first.items())
    return (
        f"{len(letters):,} letters are of {', '.join(sinks)}, which takes no single rows: {commands}, while no recorder "
        "runs, delivers everything from the first of them on again, and what yields rows by then is no dead letter any more"
    )


def resume(
    sink: Annotated[str, typer.Option("--sink", help="Which sink.")],
    data_dir: DataDir = None,
    config: Config = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Let a running recorder go on with a parked sink."""
    folder = recorded(settings_of(data_dir, config, env_file).data_dir)
    cursor = _cursor(folder, sink)
    if cursor.state != "parked":
        typer.echo(f"{sink} is not parked: it is {cursor.state}")
    elif holder(folder) is None:
        typer.echo(f"no recorder runs; the next `tickvault run` goes on with {sink} by itself")
    else:
        deadletters.resume(folder / "state.db", sink)
        typer.echo(f"{sink} is resumed behind seq {cursor.seq}; `tickvault status` says how it gets on")


def _sent_again(settings: Settings, path: Path, choice: Choice, wait_s: float) -> int:
    """Have letters sent again; return how many a running recorder has not come to."""
    if holder(settings.data_dir) is None:
        asyncio.run(offline.redrive(settings, choice))
        return 0
    deadletters.ask(path, choice)
    deadline_s = time.monotonic() + wait_s
    while (waiting := deadletters.waiting(path, choice)) and time.monotonic() < deadline_s:
        time.sleep(_LOOK_S)
    return waiting


def _tell(count: int, left: Sequence[Letter], waiting: int, *, as_json: bool) -> None:
    if as_json:
        told = {"letters": count, "done": count - len(left), "refused": len(left) - waiting, "waiting": waiting}
        render.dump_json(told)
        return
    if not count:
        typer.echo("no dead letters")
        return
    typer.echo(f"{count - len(left):,} of {count:,} letters are done: the store has their rows")
    if waiting:
        typer.echo(
            f"{waiting:,} wait: the recorder has not come to them, `tickvault status` says how the sink is; they stay asked for"
        )
    elif left:
        typer.echo(f"{len(left):,} were refused again: {left[0].reason}")


def _chosen(folder: Path, sink: str | None, table: str | None, instrument: str | None) -> Choice:
    if sink is not None:
        _cursor(folder, sink)
    if table is not None and table not in _TABLES:
        raise ConfigurationError(f"--table: expected one of {', '.join(_TABLES)}, got {table!r}")
    return Choice(sink=sink, table=table, instrument_key=instrument)


def _cursor(folder: Path, sink: str) -> Cursor:
    view = read_view(folder / "state.db")
    known = {one.sink: one for one in view.cursors} if view else {}
    if sink not in known:
        raise Refused(f"no sink {sink!r} has delivered from {folder}; known: {', '.join(known) or 'none'}")
    return known[sink]


def _as_json(letter: Letter) -> dict[str, Any]:
    return {
        "sink": letter.sink,
        "seq": letter.seq,
        "table": letter.table,
        "instrument_key": letter.instrument_key,
        "reason": letter.reason,
        "at_ns": letter.at_ns,
        "rows": _rows(letter.body),
        "bytes": len(letter.body),
    }


def _rows(body: bytes) -> list[Any] | None:
    """Return the rows of a letter as they are kept; None when it holds a frame's bytes."""
    try:
        return [json.loads(line) for line in body.splitlines()]
    except ValueError:
        return None


def _ist(at_ns: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(at_ns / 1e9, IST)
