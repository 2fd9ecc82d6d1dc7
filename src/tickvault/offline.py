"""What is done to a data folder while no recorder runs on it: sinks are set back, and dead letters sent again."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import aiohttp

from tickvault import deadletters
from tickvault.datafolder import DataFolder, recorded
from tickvault.errors import Refused, SinkMisconfigured, SinkUnavailable
from tickvault.intake import reconcile_gaps
from tickvault.journal import Fact, Journal
from tickvault.pipeline import MESSAGES, influx_sink, wanted_events
from tickvault.redrive import Redrive
from tickvault.resolving import guarded
from tickvault.rewind import Cursors
from tickvault.settings import plain_hosts
from tickvault.sinks.influx import InfluxSink
from tickvault.sinks.parquet import ParquetStore
from tickvault.state import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from tickvault.deadletters import Choice
    from tickvault.settings import Settings
    from tickvault.state import Cursor

__all__ = ["TAKES_AGAIN", "redrive", "rewind"]

TAKES_AGAIN: Final = InfluxSink.name  # the one built-in sink that single rows can be sent to again


def rewind(settings: Settings, sink: str, to_seq: Callable[[DataFolder], int]) -> Cursor:
    """Set a sink's cursor back; the command, run while no recorder does.

    Args:
        settings: which folder.
        sink: its name.
        to_seq: finds the seq to go back to in the folder.

    Raises:
        Refused: a recorder runs, the sink is unknown, or the journal no longer holds it.
    """
    with DataFolder(recorded(settings.data_dir)) as folder:
        state, _ = State.open(folder.state, events=wanted_events(settings.notify))
        try:
            known = [cursor.sink for cursor in state.cursors()]
            if sink not in known and sink != "parquet":
                raise Refused(
                    f"no sink {sink!r} has delivered from {settings.data_dir}; known: {', '.join(known) or 'none'}"
                )
            journal = Journal.open(folder.journal, state, purpose="rewind")
            try:
                reconcile_gaps(journal, state, time.time_ns())
                store = ParquetStore(folder.parquet, journal.recorder_id) if sink == "parquet" else None
                cursor = Cursors(journal, state, folder.journal).rewind(sink, to_seq(folder), store)
                journal.append([Fact("stop", {"reason": "rewound"})])
                return cursor
            finally:
                journal.close()
        finally:
            state.close()


async def redrive(settings: Settings, choice: Choice) -> None:
    """Send the dead letters of `influx` again; the command, run while no recorder does.

    Args:
        settings: which folder, and where the store is.
        choice: which of its letters.

    Raises:
        Refused: a recorder runs, there is no store in the settings, or the store cannot take them now.
    """
    if settings.influx is None:
        raise Refused("INFLUX_URL is not set, so nothing can be sent to influx again; set it as `tickvault run` has it")
    with DataFolder(recorded(settings.data_dir)) as folder:
        state, _ = State.open(folder.state, events=wanted_events(settings.notify))
        web = aiohttp.ClientSession(connector=guarded(plain_hosts(settings)), cookie_jar=aiohttp.DummyCookieJar())
        sink = influx_sink(settings.influx, web)
        try:
            journal = state.journal()
            if journal is None:
                return
            deadletters.ask(folder.state, choice)
            await Redrive(
                sink,
                folder=folder.journal,
                recorder_id=journal[0],
                state=state,
                writing=asyncio.Lock(),
                message=MESSAGES[sink.name],
                wall_ns=time.time_ns,
            ).carry_out()
        except (SinkUnavailable, SinkMisconfigured) as exc:
            raise Refused(f"{exc}; the letters are kept, and the next `tickvault run` sends them again") from exc
        finally:
            await sink.aclose()
            await web.close()
            state.close()
