"""A journal with frames in it, and deliveries from it by hand."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING, Any

from doubles import AT_NS, payload, received

from tickvault.delivery import Delivery, Patience
from tickvault.intake import Progress, mend
from tickvault.journal import Fact, Journal
from tickvault.model import BatchPolicy
from tickvault.rewind import Cursors
from tickvault.state import State

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tickvault.model import Sink
    from tickvault.state import Cursor

BRIEF = Patience(first_s=0.001, longest_s=0.002, misconfigured_s=0.005)


class Bench:
    """A journal with frames in it, and a delivery to one sink."""

    def __init__(self, path: Path) -> None:
        self.folder = path / "journal"
        self.path = path
        self.mending = asyncio.Lock()
        self.open()

    def open(self) -> None:
        self.state, _ = State.open(self.path / "state.db", events=None)
        self.journal = Journal.open(self.folder, self.state, wall_ns=lambda: AT_NS)

    def close(self) -> None:
        self.journal.close()
        self.state.close()

    async def mend(self, path: Path, reason: str) -> None:
        async with self.mending:  # a recorder has one thread for its journal
            await asyncio.to_thread(mend, self.journal, self.state, path, reason)

    def append(self, count: int, *, keys: tuple[str, ...] = ("NSE_EQ|A",)) -> None:
        first = self.journal.last_seq + 1
        self.journal.append([received(n, payload(n, keys=keys)) for n in range(first, first + count)])

    def cursor(self, sink: Sink) -> Cursor:
        found = self.state.cursor(sink.name)
        assert found is not None
        return found

    def delivery(self, sink: Sink, *, ended: bool = True, patience: Patience = BRIEF) -> Delivery:
        cursor = Cursors(self.journal, self.state, self.folder).open(sink.name, None)
        self.progress = Progress(self.journal.last_seq)
        self.progress.ended = ended

        async def journal_fact(fact: Fact) -> None:
            await asyncio.to_thread(self.journal.append, [fact])

        return Delivery(
            sink,
            cursor,
            folder=self.folder,
            recorder_id=self.journal.recorder_id,
            state=self.state,
            progress=self.progress,
            journal_fact=journal_fact,
            mend=self.mend,
            wall_ns=lambda: AT_NS,
            rng=Random(1),
            message="stored",
            patience=patience,
        )

    async def deliver(self, sink: Sink) -> Delivery:
        """Deliver what the journal holds, to the end."""
        delivery = self.delivery(sink)
        async with asyncio.timeout(60):
            await delivery.run()
        return delivery

    def dead(self) -> list[tuple[Any, ...]]:
        return self.state._db.execute(
            "SELECT seq, tbl, instrument_key, reason, body FROM dead_letters ORDER BY seq, instrument_key"
        ).fetchall()

    def told(self) -> list[str]:
        return [row[0] for row in self.state._db.execute("SELECT event FROM outbox ORDER BY ord")]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.002)


def singly(**changes: Any) -> BatchPolicy:
    """Return a policy that makes a batch of every frame."""
    return BatchPolicy(**{"max_rows": 1, "max_bytes": 1, "max_wait_s": 0.01, **changes})
