"""`tickvault instruments …`: the broker's list, and what selections come to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tickvault.commands.options import AsJson, Config, DataDir, EnvFile, configure_logs, settings_of, show_help

__all__ = ["app"]

app = typer.Typer(help="Look into the list of instruments; offline too.")
app.callback(invoke_without_command=True)(show_help)


@app.command("search")
def search(
    text: Annotated[str, typer.Argument(help="Words out of key, symbol, name or ISIN.")],
    segment: Annotated[str | None, typer.Option("--segment", help="E.g. NSE_EQ.", show_default=False)] = None,
    kind: Annotated[str | None, typer.Option("--type", help="E.g. EQ, INDEX, FUT, CE.", show_default=False)] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="Show at most so many.")] = 20,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: Config = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Find instruments; exit 1 if there is none."""
    from tickvault import lookup

    settings = settings_of(data_dir, config, env_file)
    configure_logs(settings, watched=True)
    if not lookup.print_found(settings, text, segment=segment, kind=kind, limit=limit, as_json=as_json):
        raise typer.Exit(1)


@app.command("resolve")
def resolve(
    selection: Annotated[list[str] | None, typer.Argument(help="E.g. chain:NIFTY:2; default: the settings'.")] = None,
    price: Annotated[list[str] | None, typer.Option("--price", help="For strikes round it: NIFTY=24500.")] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: Config = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Show the keys of selections, and the sockets they take."""
    from tickvault import lookup

    settings = settings_of(data_dir, config, env_file)
    configure_logs(settings, watched=True)
    if not lookup.print_resolved(settings, selection or (), price or (), as_json=as_json):
        raise typer.Exit(1)
