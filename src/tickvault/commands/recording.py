"""`tickvault run`, `demo` and `simulate`: what goes on until it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import structlog
import typer

from tickvault import logs, memory, render
from tickvault.brokers.upstox.token_files import stored_token
from tickvault.commands import day
from tickvault.commands.options import Config, DataDir, Duration, EnvFile, configure_logs, settings_of
from tickvault.datafolder import holder
from tickvault.errors import Refused, TickvaultError
from tickvault.pipeline import Outcome, Recorder
from tickvault.resolving import resolve
from tickvault.settings import check_plaintext, load_settings, require_recordable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from rich.console import Console
    from rich.status import Status

__all__ = ["demo", "run", "simulate"]

_log: Final = structlog.get_logger(__name__)
_FOLDER_OF_DEMO: Final = Path("demo-data")

_T = TypeVar("_T")


class _Until(StrEnum):
    CLOSE = "close"


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
    settings = settings_of(data_dir, config, env_file)
    require_recordable(settings, has_stored_token=stored_token(settings.data_dir) is not None)
    configure_logs(settings, watched=sys.stderr.isatty())
    for warning in (*settings.warnings, *check_plaintext(settings, resolve)):
        _log.warning("settings.warning", text=warning)
    outcome = _until_stopped(
        lambda stopping: _watch(Recorder(settings), stopping, duration, until_close=until is not None)
    )
    render.outcome(outcome)
    if until is not None:
        day.show(settings, None, as_json=False)
    if outcome.parked:
        raise typer.Exit(1)


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
    logs.configure(level="info", form="auto", file=None)
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

    memory.settle()
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
    console = render.console(stderr=True)
    with console.status("starting") as line:
        async with asyncio.TaskGroup() as group:
            shown = group.create_task(_show(recorder, console, line), name="progress")
            try:
                return await _with_timer(recorder.run(stopping, until_close=until_close), stopping, duration_s)
            finally:
                shown.cancel()


async def _show(recorder: Recorder, console: Console, line: Status) -> None:
    while True:
        await asyncio.sleep(0.5)
        # The folder may not be there yet, or just be closing.
        with contextlib.suppress(OSError, TickvaultError):
            one = await asyncio.to_thread(recorder.snapshot)
            line.update(render.live_line(one, width=console.width - 3))  # a spinner and a blank stand before it


async def _demo(
    folder: Path, instruments: int, updates_per_second: float, duration_s: float | None, stopping: asyncio.Event
) -> Outcome:
    from tickvault.simulator.server import Simulator
    from tickvault.simulator.settings import SimulatorSettings

    kept = {name: value for name, value in os.environ.items() if name.startswith(("TICKVAULT_LOG", "TICKVAULT_HTTP"))}
    simulated = SimulatorSettings(instruments=instruments, updates_per_second=updates_per_second)
    configure_logs(load_settings(environ=kept, env_file=None), watched=True)
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
