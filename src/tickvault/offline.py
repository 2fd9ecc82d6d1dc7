"""What is done to a data folder while no recorder runs on it: sinks are set back, and dead letters sent again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tickvault.datafolder import DataFolder, recorded
from tickvault.errors import Refused
from tickvault.journal import Fact, Journal
from tickvault.rewind import Cursors
from tickvault.sinks.parquet import ParquetStore
from tickvault.state import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from tickvault.settings import Settings
    from tickvault.state import Cursor

__all__ = ["rewind"]


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
        state, _ = State.open(folder.state)
        try:
            known = [cursor.sink for cursor in state.cursors()]
            if sink not in known and sink != "parquet":
                raise Refused(
                    f"no sink {sink!r} has delivered from {settings.data_dir}; known: {', '.join(known) or 'none'}"
                )
            journal = Journal.open(folder.journal, state, purpose="rewind")
            try:
                store = ParquetStore(folder.parquet, journal.recorder_id) if sink == "parquet" else None
                cursor = Cursors(journal, state, folder.journal).rewind(sink, to_seq(folder), store)
                journal.append([Fact("stop", {"reason": "rewound"})])
                return cursor
            finally:
                journal.close()
        finally:
            state.close()
