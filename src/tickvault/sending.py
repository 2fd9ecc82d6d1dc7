"""Sends a batch in as many pieces as it takes, and finds the rows that the store refuses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from tickvault.errors import BatchRejected, BatchTooLarge
from tickvault.letters import letter_of
from tickvault.outbox import Notice

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from tickvault.model import Batch, Rejected
    from tickvault.state import Cursor

__all__ = ["Sent", "send"]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What of a batch was sent, for the event that tells of it.

    Attributes:
        by_table: table → rows.
        from_ns: time of its first row, UTC in ns, and of its last; None while no row has one.
    """

    by_table: Mapping[str, int] = field(default_factory=dict)
    from_ns: int | None = None
    to_ns: int | None = None

    @property
    def rows(self) -> int:
        """Rows over all tables."""
        return sum(self.by_table.values())

    def and_(self, batch: Batch) -> Sent:
        """Return this and the rows of a further part."""
        tables = [batch.tables[name] for name in ("ticks", "market_status")]
        ends = [pc.min_max(table.column("time").cast("int64")).as_py() for table in tables if table.num_rows]
        times = [end[which] * 1000 for end in ends for which in ("min", "max")]
        times += [one for one in (self.from_ns, self.to_ns) if one is not None]
        return Sent(
            by_table={name: self.by_table.get(name, 0) + table.num_rows for name, table in batch.tables.items()},
            from_ns=min(times, default=None),
            to_ns=max(times, default=None),
        )

    def told(self, cursor: Cursor, *, but: int, hi: int, message: str, now_ns: int) -> Notice:
        """Return the event that all of it but so many rows is stored."""
        return Notice(
            event="data.stored",
            sink=cursor.sink,
            high_water_seq=hi,
            rows=self.rows - but,
            from_ns=now_ns if self.from_ns is None else self.from_ns,
            to_ns=now_ns if self.to_ns is None else self.to_ns,
            message=message,
            generation=cursor.generation,
        )


def _halves(batch: Batch) -> list[Batch]:
    """Return the two halves of a batch, the first one last: it is taken next."""
    middle = batch.rows // 2
    return [batch.slice(middle, batch.rows), batch.slice(0, middle)]
