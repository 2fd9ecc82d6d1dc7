"""The `tickvault` command. Every failure is one line with the next step, and an exit code; never a traceback.

The one line of a failed query is followed by the place in its SQL.
"""

from __future__ import annotations

import asyncio
import gc
import io
import os
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
import typer.core

from tickvault import __version__, hidden
from tickvault.commands.options import AsJson, Config, DataDir, EnvFile, configure_logs, settings_of
from tickvault.errors import TickvaultError, TokenRefused

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main", "program"]

# Command → where it is. Only the one that is called is imported: some of them need a second for that.
_COMMANDS: Final = {
    "run": "recording:run",
    "demo": "recording:demo",
    "simulate": "recording:simulate",
    "status": "",
    "query": "",
    "check": "",
    "rewind": "journal:rewind",
    "resume": "dead_letters:resume",
    "day": "day:day",
    "disk": "disk:disk",
    "compact": "compact:compact",
    "login": "token:login",
    "probe": "token:probe",
    "report": "report:report",
    "journal": "journal:app",
    "dead-letters": "dead_letters:app",
    "instruments": "instruments:app",
    "token": "token:app",
}


def program(words: Sequence[str] = ()) -> typer.Typer:
    """Return the command line: all of it, or the command alone that these words call."""
    app = typer.Typer(
        name="tickvault",
        help="Records the Upstox market data feed and loses none of it. `tickvault demo` needs no credentials.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback(invoke_without_command=True)(_root)
    called = _called(words)
    if list(words) == ["--version"]:
        return app
    for name, place in _COMMANDS.items():
        if called not in (None, name):
            continue
        if not place:
            app.command(cls=_TakesSql if name == "query" else None)(globals()[name])
            continue
        module, _, attribute = place.partition(":")
        found = getattr(import_module(f"tickvault.commands.{module}"), attribute)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name)
        else:
            app.command()(found)
    return app


def _loaded(words: Sequence[str]) -> typer.Typer:
    """Return the command line that words need. What it imports stays: to look for garbage in it takes a tenth of a start."""
    gc.disable()
    try:
        return program(words)
    finally:
        gc.freeze()
        gc.enable()


def _called(words: Sequence[str]) -> str | None:
    """Return the command that words call, None if it is none."""
    word = next((word for word in words if not word.startswith("-")), None)
    return word if word in _COMMANDS else None


def _root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        typer.echo(f"tickvault {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def status(
    as_json: AsJson = False, data_dir: DataDir = None, config: Config = None, env_file: EnvFile = Path(".env")
) -> None:
    """Show what a recorder is doing, or what its files tell."""
    from tickvault import render, snapshots
    from tickvault.datafolder import holder, recorded

    settings = settings_of(data_dir, config, env_file)
    folder = recorded(settings.data_dir)
    token = settings.http.token.get_secret_value() if settings.http and settings.http.token else None
    shown = asyncio.run(snapshots.ask(holder(folder), token))
    one = snapshots.take(folder)
    if shown is not None:
        one = snapshots.with_feed(one, shown)
    if as_json:
        render.dump_json(one.json())
    else:
        render.snapshot(one)


class _TakesSql(typer.core.TyperCommand):
    """A command whose argument may begin with an SQL comment, which looks like an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [f" {word}" if re.match(r"--[^-\w]|--.*\n", word) else word for word in args])


def query(
    sql: Annotated[str, typer.Argument(help="SQL over ticks, candles, market_status, instruments, gaps.")],
    form: Annotated[str, typer.Option("--format", help="table, csv, json or parquet.")] = "table",
    data_dir: DataDir = None,
    config: Config = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Run SQL over everything recorded, fresh to the last commit.

    The SQL is that of DuckDB; times are shown in Asia/Kolkata.
    """
    from tickvault import answers
    from tickvault.datafolder import recorded

    settings = settings_of(data_dir, config, env_file)
    answers.print_answer(recorded(settings.data_dir), sql.strip(), form)


def check(config: Config = None, env_file: EnvFile = Path(".env"), data_dir: DataDir = None) -> None:
    """Try all that `run` needs; exit 1 if anything is amiss.

    Settings, token, instruments, every sink, disk, clock and data folder.
    """
    from tickvault import render
    from tickvault.checks import run_checks
    from tickvault.resolving import resolve

    settings = settings_of(data_dir, config, env_file)
    configure_logs(settings, watched=True)
    rows = asyncio.run(run_checks(settings, resolve))
    render.table(
        ("", "what", "found"), [({True: "✔", False: "✘", None: "–"}[row.ok], row.what, row.found) for row in rows]
    )
    if any(row.ok is False for row in rows):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line and exit with its code."""
    os.umask(0o077)  # whatever we make is its owner's alone
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no ✔ still gets its answer
    sys.stderr = hidden.scrubbing(sys.stderr)
    try:
        code = _loaded(sys.argv[1:])(standalone_mode=False)
    except TickvaultError as exc:
        code = _fail(str(exc), 3 if isinstance(exc, TokenRefused) else exc.exit_code)
    except typer.TyperException as exc:
        shown = getattr(exc, "format_message", exc.__str__)()
        text = str(shown).strip().rstrip(".")
        called = _called(sys.argv[1:])
        words = f"tickvault {called} --help" if called else "tickvault --help"
        code = _fail(f"{text[:1].lower()}{text[1:]}; `{words}` shows what there is", 2)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except BrokenPipeError:
        # Whoever read our output has enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as exc:
        if os.environ.get("TICKVAULT_LOG_LEVEL") == "debug":
            raise
        code = _fail(
            f"unexpected {type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else 'no text'}; this is a bug in "
            "tickvault. TICKVAULT_LOG_LEVEL=debug shows where; please report it",
            1,
        )
    sys.exit(code if isinstance(code, int) else 0)


def _fail(text: str, code: int) -> int:
    print(f"tickvault: {text}", file=sys.stderr)  # noqa: T201 - the command's error
    return code
