"""`tickvault journal …` and `rewind`: what the journal holds, whether it is whole, and what is delivered from it again."""

from __future__ import annotations

import contextlib
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from tickvault import render, snapshots, survey
from tickvault.commands.options import AsJson, Config, DataDir, EnvFile, settings_of, show_help
from tickvault.datafolder import holder, recorded
from tickvault.errors import ConfigurationError, Refused, TickvaultError
from tickvault.model import IST
from tickvault.state import read_view

__all__ = ["app", "rewind"]

app = typer.Typer(help="Look into the journal; also while a recorder runs.")
app.callback(invoke_without_command=True)(show_help)


@app.command("stats")
def stats(
    as_json: AsJson = False, data_dir: DataDir = None, config: Config = None, env_file: EnvFile = Path(".env")
) -> None:
    """Count what the journal holds and how far each sink is."""
    one = snapshots.take(recorded(settings_of(data_dir, config, env_file).data_dir))
    sinks = {
        name: {
            "cursor_seq": sink.cursor_seq,
            "lag_frames": sink.lag_frames,
            "lag_s": sink.lag_s,
            "state": sink.state,
        }
        for name, sink in one.sinks.items()
    }
    counts = {
        name: getattr(one, name) for name in ("recorder_id", "frames", "first_seq", "last_seq", "bytes", "segments")
    }
    if as_json:
        render.dump_json({**counts, "sinks": sinks})
        return
    render.columns(counts.items())
    render.table(
        ("sink", "cursor_seq", "lag", "oldest undelivered", "state"),
        [
            (name, sink.cursor_seq, f"{sink.lag_frames:,} frames", f"{sink.lag_s:,.1f} s", sink.state)
            for name, sink in one.sinks.items()
        ],
    )


@app.command("verify")
def verify(
    as_json: AsJson = False, data_dir: DataDir = None, config: Config = None, env_file: EnvFile = Path(".env")
) -> None:
    """Read every checksum; name what is damaged; exit 1 if any."""
    folder = recorded(settings_of(data_dir, config, env_file).data_dir)
    damaged: list[str] = []
    head_seq, frames = 0, None
    try:
        view = read_view(folder / "state.db")
        head_seq = view.head_seq if view else 0
    except Refused as exc:
        damaged.append(str(exc))
    damaged += survey.verify(folder / "journal", running=holder(folder) is not None, head_seq=head_seq)
    with contextlib.suppress(TickvaultError):  # told above
        frames = survey.stats(folder / "journal").frames
    if as_json:
        render.dump_json({"ok": not damaged, "frames": frames, "damaged": damaged})
    else:
        for one in damaged:
            typer.echo(one)
        typer.echo(
            f"{len(damaged)} found; docs/durability.md says what to do" if damaged else f"{frames:,} frames, all whole"
        )
    if damaged:
        raise typer.Exit(1)


def rewind(
    sink: Annotated[str, typer.Option("--sink", help="Whose cursor to set back.")],
    to_seq: Annotated[int | None, typer.Option("--to-seq", min=0, help="Deliver everything behind this again.")] = None,
    to_time: Annotated[str | None, typer.Option("--to-time", help="Or everything received from then on (IST).")] = None,
    data_dir: DataDir = None,
    config: Config = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Deliver a part of the journal again, while no recorder runs."""
    from tickvault import offline  # and with it all of the recorder

    if (to_seq is None) == (to_time is None):
        raise ConfigurationError("expected exactly one of --to-seq N and --to-time T, e.g. --to-time 2026-11-23T09:15")
    settings = settings_of(data_dir, config, env_file)
    at_ns = None if to_time is None else _time_ns(to_time)
    if at_ns is not None and at_ns > time.time_ns():
        raise ConfigurationError(
            f"--to-time: {to_time} is yet to come; expected a time at which something was received"
        )
    view = read_view(recorded(settings.data_dir) / "state.db")
    before = {one.sink: one.seq for one in view.cursors} if view else {}
    cursor = offline.rewind(
        settings,
        sink,
        lambda folder: survey.last_seq_before(folder.journal, at_ns) if at_ns is not None else to_seq or 0,
    )
    if before.get(sink) == cursor.seq:
        typer.echo(f"{sink} was at seq {cursor.seq} before: nothing behind it has been delivered, so nothing has moved")
    else:
        typer.echo(f"{sink} is at seq {cursor.seq}; everything after it is delivered again at the next `tickvault run`")


def _time_ns(text: str) -> int:
    try:
        at = datetime.fromisoformat(text)
    except ValueError as exc:
        raise ConfigurationError(f"--to-time: expected a time such as 2026-11-23T09:15, got {text!r}") from exc
    if at.tzinfo is None:
        at = at.replace(tzinfo=IST)
    return max(0, int(at.timestamp() * 1_000_000)) * 1000  # nothing was received before 1970
