"""Sends a batch in as many pieces as it takes, and finds the rows that the store refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow.compute as pc

from tickvault.errors import BatchRejected, BatchTooLarge
from tickvault.letters import letter_of
from tickvault.outbox import Notice

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tickvault.model import Batch, Rejected
    from tickvault.state import Cursor

__all__ = ["send", "stored"]


async def send(
    write: Callable[[Batch], Awaitable[None]], batch: Batch, *, at_most: int | None = None
) -> list[Rejected]:
    """Write a batch; return the rows that the store refuses, each with its words, several of one letter's place included.

    Args:
        write: as a sink's; it is called for the batch, and for its halves as long as the store asks for them.
        batch: with at least one row.
        at_most: when more rows than these are refused the rest is not tried: of a batch refused as a whole every row
            would be a request or two.

    Raises:
        What `write` raises, but for BatchRejected and BatchTooLarge.
    """
    refused: list[Rejected] = []
    pending = [batch]
    while pending and (at_most is None or len(refused) <= at_most):
        part = pending.pop()
        try:
            await write(part)
        except BatchRejected as exc:
            if exc.rejected is not None:
                refused += [letter_of(part, row, words) for row, words in exc.rejected.items()]
            elif part.rows == 1:
                refused.append(letter_of(part, 0, str(exc)))
            else:
                pending += _halves(part)
        except BatchTooLarge as exc:
            if part.rows == 1:
                refused.append(letter_of(part, 0, str(exc)))
            else:
                pending += _halves(part)
    return refused


def stored(batch: Batch, rows: int, cursor: Cursor, *, high_water_seq: int, message: str, now_ns: int) -> Notice:
    """Return the event that tells of a batch, of which so many rows were stored."""
    tables = [batch.tables[name] for name in ("ticks", "market_status")]
    ends = [pc.min_max(table.column("time").cast("int64")).as_py() for table in tables if table.num_rows]
    return Notice(
        event="data.stored",
        sink=cursor.sink,
        high_water_seq=high_water_seq,
        rows=rows,
        from_ns=min(end["min"] for end in ends) * 1000 if ends else now_ns,
        to_ns=max(end["max"] for end in ends) * 1000 if ends else now_ns,
        message=message,
        generation=cursor.generation,
    )


def _halves(batch: Batch) -> list[Batch]:
    """Return the two halves of a batch, the first one last: it is taken next."""
    middle = batch.rows // 2
    return [batch.slice(middle, batch.rows), batch.slice(0, middle)]
