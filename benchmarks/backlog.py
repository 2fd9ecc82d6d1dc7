"""A journal with frames in it, and its delivery to a sink by the recorder's own loop."""

from __future__ import annotations

import time
from random import Random
from typing import TYPE_CHECKING, Any

from benchmarks.frames import definitions
from tickvault.delivery import Delivery
from tickvault.intake import Progress
from tickvault.journal import Journal, Received
from tickvault.rewind import Cursors
from tickvault.state import State

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tickvault.model import Frame, Sink
    from tickvault.sinks.parquet import ParquetStore

__all__ = ["Backlog"]


class Backlog:
    """A journal, its state and its cursors below one folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._state, _ = State.open(folder / "state.db")
        self._journal = Journal.open(folder / "journal", self._state)
        self.recorder_id = self._journal.recorder_id
        if defining := self._journal.define(definitions()):
            self._journal.append([defining])

    def append(self, frames: Iterable[Frame]) -> None:
        """Append frames, a hundred in a commit."""
        items = [Received(frame.received_ns, 1, frame.payload) for frame in frames]
        for first in range(0, len(items), 100):
            self._journal.append(items[first : first + 100])

    async def deliver(self, sink: Sink, store: ParquetStore | None = None) -> float:
        """Deliver what the sink does not have; return the seconds."""
        progress = Progress(self._journal.last_seq)
        progress.ended = True
        cursor = Cursors(self._journal, self._state, self.folder / "journal").open(sink.name, store)
        delivery = Delivery(
            sink,
            cursor,
            folder=self.folder / "journal",
            recorder_id=self.recorder_id,
            state=self._state,
            progress=progress,
            journal_fact=_unexpected,
            mend=_unexpected,
            wall_ns=time.time_ns,
            rng=Random(1),
            message="stored",
        )
        begun_s = time.perf_counter()
        await delivery.run()
        spent_s = time.perf_counter() - begun_s
        await sink.aclose()
        assert cursor.seq + delivery.frames == self._journal.last_seq, delivery.frames
        return spent_s

    def close(self) -> None:
        """Close what is open."""
        self._journal.close()
        self._state.close()


async def _unexpected(*what: Any) -> None:
    raise AssertionError(what)
