"""The `tickvault` command. Every failure is one line with the next step, and an exit code; never a traceback.

The one line of a failed query is followed by the place in its SQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import shlex
import shutil
import signal
import socket
import sys
import time
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar
from urllib.parse import parse_qsl, urlsplit

import structlog
import typer
import typer.core

from tickvault import __version__, day_commands, logs, render, snapshots, survey, token_commands
from tickvault.batching import IST
from tickvault.brokers.upstox.token_files import stored_token
from tickvault.datafolder import holder, recorded
from tickvault.errors import ConfigurationError, Refused, TickvaultError, TokenRefused
from tickvault.pipeline import Outcome, Recorder, rewind
from tickvault.settings import Settings, check_plaintext, load_settings, require_recordable
from tickvault.state import read_view

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

__all__ = ["main"]

_log: Final = structlog.get_logger(__name__)
_FOLDER_OF_DEMO: Final = Path("demo-data")

_T = TypeVar("_T")


class _Until(StrEnum):
    CLOSE = "close"


app = typer.Typer(
    name="tickvault",
    help="Records the Upstox market data feed and loses none of it. `tickvault demo` needs no credentials.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
journal_app = typer.Typer(help="Look into the journal; also while a recorder runs.")
app.add_typer(journal_app, name="journal")
app.add_typer(token_commands.app, name="token")
app.command()(token_commands.login)
app.command()(token_commands.probe)
instruments_app = typer.Typer(help="Look into the list of instruments; offline too.")
app.add_typer(instruments_app, name="instruments")

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Data folder; default TICKVAULT_DATA_DIR.", show_default=False)
]
Config = Annotated[Path | None, typer.Option("--config", help="TOML file with settings.", show_default=False)]
EnvFile = Annotated[Path, typer.Option("--env-file", help="File with settings as NAME=value.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Duration = Annotated[
    float | None, typer.Option("--duration", min=0, help="Stop by itself after so many seconds.", show_default=False)
]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        typer.echo(f"tickvault {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@journal_app.callback(invoke_without_command=True)
def _journal(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@instruments_app.callback(invoke_without_command=True)
def _instruments(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def run(
    duration: Duration = None,
    until: Annotated[
        _Until | None,
        typer.Option("--until", help="Stop by itself when trading is over for today.", show_default=False),
    ] = None,
    data_dir: DataDir = None,
    config: Config = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Record until stopped, for --duration, or --until close.

    Ctrl-C or SIGTERM: stop receiving, deliver what is there, say what remains. A second one ends it at once.
    """
    settings = _settings(data_dir, config, env_file)
    require_recordable(settings, has_stored_token=stored_token(settings.data_dir) is not None)
    _configure_logs(settings, watched=sys.stderr.isatty())
    for warning in (*settings.warnings, *check_plaintext(settings, _resolve)):
        _log.warning("settings.warning", text=warning)
    outcome = _until_stopped(
        lambda stopping: _watch(Recorder(settings), stopping, duration, until_close=until is not None)
    )
    render.outcome(outcome)
    if until is not None:
        day_commands.show(settings, None, as_json=False)
    if outcome.parked:
        raise typer.Exit(1)


@app.command()
def demo(
    duration: Duration = None,
    instruments: Annotated[int, typer.Option("--instruments", help="How many instruments to simulate.")] = 100,
    updates_per_second: Annotated[float, typer.Option("--updates-per-second", help="Over all instruments.")] = 200.0,
) -> None:
    """Run simulator and recorder together, without credentials.

    No database is needed. Data goes to ./demo-data, fresh each time.
    """
    given = os.environ.get("TICKVAULT_DATA_DIR", "").strip()
    folder = Path(given) if given else _FOLDER_OF_DEMO
    if not given:
        _clear_demo(folder)
    outcome = _until_stopped(lambda stopping: _demo(folder, instruments, updates_per_second, duration, stopping))
    render.outcome(outcome)
    query = "SELECT symbol, count(*) AS ticks, max(vtt) AS volume, last(ltp ORDER BY time) FILTER (ltp IS NOT NULL) AS price FROM ticks GROUP BY ALL ORDER BY ticks DESC LIMIT 10"
    command = shlex.join([_program(), "query", "--data-dir", str(folder), query])
    render.console().print(f"\nLook at it:\n\n  {command}\n", soft_wrap=True, markup=False)
    if outcome.parked:
        raise typer.Exit(1)


@app.command()
def simulate(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0 takes a free one.")] = 8765,
    instruments: Annotated[int, typer.Option("--instruments", help="How many instruments to list.")] = 100,
    updates_per_second: Annotated[float, typer.Option("--updates-per-second", help="Over all instruments.")] = 200.0,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same market.")] = 1,
    script: Annotated[
        str | None, typer.Option("--script", help="What to play: a name from `--script list`, or a file.")
    ] = None,
    log: Annotated[Path | None, typer.Option("--log", help="Write every data frame sent to this file.")] = None,
    start: Annotated[
        str | None, typer.Option("--start", help="Start at this time in India: 08:55, or 2026-10-05T08:55.")
    ] = None,
    speed: Annotated[
        float | None, typer.Option("--speed", help="Seconds of the simulation in one of the wall clock's.")
    ] = None,
    duration: Duration = None,
) -> None:
    """Run only the simulator: a broker with a made-up market."""
    from tickvault.simulator.reading import listing
    from tickvault.simulator.server import Simulator, serve
    from tickvault.simulator.settings import SimulatorSettings

    if script == "list":
        typer.echo(listing())
        return
    logs.configure(level="info", form="auto", file=None, secrets=())
    settings = SimulatorSettings(
        host=host,
        port=port,
        instruments=instruments,
        updates_per_second=updates_per_second,
        seed=seed,
        script=script,
        log=log,
        start=start,
        speed=speed,
    )

    def ready(simulator: Simulator) -> None:
        # On stdout and flushed: a script reads the address from here.
        print(f"simulator listening on {simulator.url}", flush=True)  # noqa: T201 - the command's output
        print(_try_it(simulator.url, len(simulator.instrument_keys)), flush=True)  # noqa: T201 - the command's output

    async def play(stopping: asyncio.Event) -> None:
        await _with_timer(serve(settings, stopping, ready), stopping, duration)

    _until_stopped(play)


@app.command()
def status(
    as_json: AsJson = False, data_dir: DataDir = None, config: Config = None, env_file: EnvFile = Path(".env")
) -> None:
    """Show what a recorder is doing, or what its files tell."""
    settings = _settings(data_dir, config, env_file)
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


@app.command(cls=_TakesSql)
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

    settings = _settings(data_dir, config, env_file)
    answers.print_answer(recorded(settings.data_dir), sql.strip(), form)


@journal_app.command("stats")
def journal_stats(
    as_json: AsJson = False, data_dir: DataDir = None, config: Config = None, env_file: EnvFile = Path(".env")
) -> None:
    """Count what the journal holds and how far each sink is."""
    one = snapshots.take(recorded(_settings(data_dir, config, env_file).data_dir))
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


@journal_app.command("verify")
def journal_verify(
    as_json: AsJson = False, data_dir: DataDir = None, config: Config = None, env_file: EnvFile = Path(".env")
) -> None:
    """Read every checksum; name what is damaged; exit 1 if any."""
    folder = recorded(_settings(data_dir, config, env_file).data_dir)
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


@instruments_app.command("search")
def instruments_search(
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

    settings = _settings(data_dir, config, env_file)
    _configure_logs(settings, watched=True)
    if not lookup.print_found(settings, text, segment=segment, kind=kind, limit=limit, as_json=as_json):
        raise typer.Exit(1)


@instruments_app.command("resolve")
def instruments_resolve(
    selection: Annotated[list[str] | None, typer.Argument(help="E.g. chain:NIFTY:2; default: the settings'.")] = None,
    price: Annotated[list[str] | None, typer.Option("--price", help="For strikes round it: NIFTY=24500.")] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: Config = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Show the keys of selections, and the sockets they take."""
    from tickvault import lookup

    settings = _settings(data_dir, config, env_file)
    _configure_logs(settings, watched=True)
    if not lookup.print_resolved(settings, selection or (), price or (), as_json=as_json):
        raise typer.Exit(1)


@app.command("rewind")
def rewind_command(
    sink: Annotated[str, typer.Option("--sink", help="Whose cursor to set back.")],
    to_seq: Annotated[int | None, typer.Option("--to-seq", min=0, help="Deliver everything behind this again.")] = None,
    to_time: Annotated[str | None, typer.Option("--to-time", help="Or everything received from then on (IST).")] = None,
    data_dir: DataDir = None,
    config: Config = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Deliver a part of the journal again, while no recorder runs."""
    if (to_seq is None) == (to_time is None):
        raise ConfigurationError("expected exactly one of --to-seq N and --to-time T, e.g. --to-time 2026-11-23T09:15")
    settings = _settings(data_dir, config, env_file)
    at_ns = None if to_time is None else _time_ns(to_time)
    if at_ns is not None and at_ns > time.time_ns():
        raise ConfigurationError(
            f"--to-time: {to_time} is yet to come; expected a time at which something was received"
        )
    view = read_view(recorded(settings.data_dir) / "state.db")
    before = {one.sink: one.seq for one in view.cursors} if view else {}
    cursor = rewind(
        settings,
        sink,
        lambda folder: survey.last_seq_before(folder.journal, at_ns) if at_ns is not None else to_seq or 0,
    )
    if before.get(sink) == cursor.seq:
        typer.echo(f"{sink} was at seq {cursor.seq} before: nothing behind it has been delivered, so nothing has moved")
    else:
        typer.echo(f"{sink} is at seq {cursor.seq}; everything after it is delivered again at the next `tickvault run`")


app.command("day")(day_commands.day)


@app.command()
def check(config: Config = None, env_file: EnvFile = Path(".env"), data_dir: DataDir = None) -> None:
    """Try all that `run` needs; exit 1 if anything is amiss.

    Settings, token, instruments, every sink, disk, clock and data folder.
    """
    from tickvault.checks import run_checks

    settings = _settings(data_dir, config, env_file)
    _configure_logs(settings, watched=True)
    rows = asyncio.run(run_checks(settings, _resolve))
    render.table(
        ("", "what", "found"), [({True: "✔", False: "✘", None: "–"}[row.ok], row.what, row.found) for row in rows]
    )
    if any(row.ok is False for row in rows):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no ✔ still gets its answer
    try:
        code = app(standalone_mode=False)
    except TickvaultError as exc:
        code = _fail(str(exc), 3 if isinstance(exc, TokenRefused) else exc.exit_code)
    except typer.TyperException as exc:
        shown = getattr(exc, "format_message", exc.__str__)()
        text = str(shown).strip().rstrip(".")
        code = _fail(f"{text[:1].lower()}{text[1:]}; `tickvault {_command()}--help` shows what there is", 2)
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


def _command() -> str:
    """Return the command that was typed and a blank, if it is one."""
    names = {info.name or info.callback.__name__ for info in app.registered_commands if info.callback}
    names |= {str(info.name) for info in app.registered_groups}
    typed = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    return f"{typed} " if typed in names else ""


def _settings(data_dir: Path | None, config: Path | None, env_file: Path | None) -> Settings:
    overrides = {} if data_dir is None else {"TICKVAULT_DATA_DIR": str(data_dir)}
    return load_settings(environ=os.environ, env_file=env_file, config_file=config, overrides=overrides)


def _configure_logs(settings: Settings, *, watched: bool) -> None:
    influx, notify, http = settings.influx, settings.notify, settings.http
    secrets = [
        settings.upstox.access_token,
        settings.upstox.client_secret,
        influx.token if influx else None,
        influx.password if influx else None,
        notify.secret if notify else None,
        http.token if http else None,
    ]
    logs.configure(
        level=settings.log_level,
        form=settings.log_format,
        file=settings.log_file,
        secrets=[
            *(secret.get_secret_value() for secret in secrets if secret is not None),
            *_secrets_in_urls(settings),
            stored_token(settings.data_dir) or "",
        ],
        watched=watched,
    )


def _secrets_in_urls(settings: Settings) -> list[str]:
    """Return passwords and query values of the addresses in use: any of them may be a credential."""
    upstox, influx, notify = settings.upstox, settings.influx, settings.notify
    urls = [upstox.token_url, settings.instruments_list_url, settings.nats_url]
    urls += [influx.url if influx else None, notify.url if notify else None]
    found = []
    for url in filter(None, urls):
        parts = urlsplit(url)
        found += [parts.password or "", *(value for _, value in parse_qsl(parts.query))]
    return [value for value in found if value]


def _resolve(host: str) -> list[str]:
    return [str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]


def _time_ns(text: str) -> int:
    try:
        at = datetime.fromisoformat(text)
    except ValueError as exc:
        raise ConfigurationError(f"--to-time: expected a time such as 2026-11-23T09:15, got {text!r}") from exc
    if at.tzinfo is None:
        at = at.replace(tzinfo=IST)
    return int(at.timestamp() * 1_000_000) * 1000


def _until_stopped(work: Callable[[asyncio.Event], Coroutine[Any, Any, _T]]) -> _T:
    """Run work that ends when its event is set: at the first SIGINT or SIGTERM; a second one ends the process."""

    async def supervised() -> _T:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        this = asyncio.current_task()
        assert this is not None
        signals: list[signal.Signals] = []

        def asked(which: signal.Signals) -> None:
            signals.append(which)
            stopping.set()
            if len(signals) > 1:
                this.cancel()

        for which in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(which, asked, which)
        try:
            return await work(stopping)
        except asyncio.CancelledError:
            if len(signals) > 1:
                render.console(stderr=True).print(
                    f"ended at once by a second {signals[-1].name}; what was journalled is kept"
                )
                raise typer.Exit(128 + signals[-1]) from None
            raise

    try:
        return asyncio.run(supervised())
    except BaseExceptionGroup as group:
        raise _first(group) from group


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    """Return the one exception a task group is about."""
    one: BaseException = group
    while isinstance(one, BaseExceptionGroup):
        one = one.exceptions[0]
    return one


async def _with_timer(work: Coroutine[Any, Any, _T], stopping: asyncio.Event, duration_s: float | None) -> _T:
    """Run work; set `stopping` after a time."""
    async with asyncio.TaskGroup() as group:
        timer = group.create_task(_set_after(stopping, duration_s), name="timer")
        try:
            return await work
        finally:
            timer.cancel()


async def _set_after(stopping: asyncio.Event, duration_s: float | None) -> None:
    if duration_s is not None:
        await asyncio.sleep(duration_s)
        stopping.set()


async def _watch(
    recorder: Recorder, stopping: asyncio.Event, duration_s: float | None, *, until_close: bool = False
) -> Outcome:
    """Run a recorder with a live line on a terminal."""
    if not sys.stderr.isatty():
        return await _with_timer(recorder.run(stopping, until_close=until_close), stopping, duration_s)
    with render.console(stderr=True).status("starting") as line:
        async with asyncio.TaskGroup() as group:
            shown = group.create_task(_show(recorder, line.update), name="progress")
            try:
                return await _with_timer(recorder.run(stopping, until_close=until_close), stopping, duration_s)
            finally:
                shown.cancel()


async def _show(recorder: Recorder, show: Callable[[str], None]) -> None:
    while True:
        await asyncio.sleep(0.5)
        # The folder may not be there yet, or just be closing.
        with contextlib.suppress(OSError, TickvaultError):
            show(render.live_line(await asyncio.to_thread(recorder.snapshot)))


async def _demo(
    folder: Path, instruments: int, updates_per_second: float, duration_s: float | None, stopping: asyncio.Event
) -> Outcome:
    from tickvault.simulator.server import Simulator
    from tickvault.simulator.settings import SimulatorSettings

    kept = {name: value for name, value in os.environ.items() if name.startswith(("TICKVAULT_LOG", "TICKVAULT_HTTP"))}
    simulated = SimulatorSettings(instruments=instruments, updates_per_second=updates_per_second)
    _configure_logs(load_settings(environ=kept, env_file=None), watched=True)
    async with Simulator(simulated) as simulator:
        # The user's own .env is for the real thing: nothing of the demo may reach a real store.
        settings = load_settings(environ={**kept, **_demo_settings(simulator, folder)}, env_file=None)
        render.console().print(f"Simulator on {simulator.url}, recording to {folder}/", soft_wrap=True)
        if duration_s is None:
            render.console().print("Ctrl-C ends it.")
        return await _watch(Recorder(settings), stopping, duration_s)


def _demo_settings(simulator: Any, folder: Path) -> Mapping[str, str]:
    return {
        "UPSTOX_ACCESS_TOKEN": "demo",
        "UPSTOX_API_URL": simulator.url,
        "UPSTOX_INSTRUMENTS_URL": f"{simulator.url}/market-quote/instruments/exchange/complete.json.gz",
        "TICKVAULT_INSTRUMENTS": ",".join(simulator.instrument_keys),
        "TICKVAULT_SINKS": "parquet",
        "TICKVAULT_DATA_DIR": str(folder),
    }


def _clear_demo(folder: Path) -> None:
    """Empty the demo's folder, if it is one."""
    if not folder.exists():
        return
    if (who := holder(folder)) is not None:
        raise Refused(f"{folder} is in use by pid {who.pid}; stop that demo first, or set TICKVAULT_DATA_DIR")
    if any(folder.iterdir()) and not (folder / "lock").exists():
        raise Refused(f"{folder} exists and was not made by tickvault; move it away, or set TICKVAULT_DATA_DIR")
    shutil.rmtree(folder)


def _program() -> str:
    """Return how this program was called, so that a printed command works when pasted."""
    path = Path(sys.argv[0])
    if shutil.which(path.name) == str(path):
        return path.name
    with contextlib.suppress(ValueError):
        return str(path.absolute().relative_to(Path.cwd()))
    return str(path)


def _try_it(url: str, instruments: int) -> str:
    return (
        f"{instruments} instruments; record them with\n"
        f"  UPSTOX_API_URL={url} UPSTOX_TOKEN_URL={url}/token TICKVAULT_INSTRUMENTS_URL={url}/instruments "
        f"UPSTOX_INSTRUMENTS_URL={url}/market-quote/instruments/exchange/complete.json.gz tickvault run"
    )
