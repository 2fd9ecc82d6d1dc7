"""`tickvault report`: an archive for a bug report."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

from tickvault.commands.options import Config, DataDir, EnvFile, configure_logs, settings_of
from tickvault.model import IST

__all__ = ["report"]


def report(
    out: Annotated[
        Path | None, typer.Option("--out", help="The archive; default: a new one in this folder.", show_default=False)
    ] = None,
    log: Annotated[
        Path | None, typer.Option("--log", help="Log lines; default: TICKVAULT_LOG_FILE.", show_default=False)
    ] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Also try what `tickvault check` tries, over the network.")
    ] = True,
    data_dir: DataDir = None,
    config: Config = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Make an archive for a bug report, without secrets.

    Also while a recorder runs. Nothing is sent to anybody.
    """
    from tickvault.report import parts, write

    settings = settings_of(data_dir, config, env_file)
    configure_logs(settings, watched=True)
    now = dt.datetime.now(IST)
    path = out or Path(f"tickvault-report-{now:%Y%m%d-%H%M%S}.tar.gz")
    made = parts(settings, log=log, check=check, now=now)
    write(path, made, now)
    typer.echo(f"wrote {path}: {', '.join(made)}; look through it before you show it to anybody")
