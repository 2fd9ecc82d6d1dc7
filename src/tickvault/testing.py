"""Doubles for tests of sinks and of what delivers to them. Public: third-party sinks may be tested with these."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import pyarrow as pa

from tickvault.model import SCHEMAS, TABLES, BatchPolicy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from tickvault.model import Batch

__all__ = ["FlakySink", "MemorySink"]

_AT_ONCE = BatchPolicy(max_rows=10_000, max_bytes=10_000_000, max_wait_s=0.01)


class MemorySink:
    """Keeps every batch it is given (model.Sink).

    Args:
        policy: when a batch is closed.
        tables: which tables it stores.

    Attributes:
        batches: what was accepted, in order.
        closed: `aclose` was called.
    """

    def __init__(
        self, *, name: str = "memory", policy: BatchPolicy = _AT_ONCE, tables: tuple[str, ...] = TABLES
    ) -> None:
        self.name = name
        self.policy = policy
        self.tables = tables
        self.batches: list[Batch] = []
        self.closed = False

    async def write(self, batch: Batch) -> None:
        """Keep the batch."""
        self.batches.append(batch)

    async def aclose(self) -> None:
        """Say that it is closed."""
        self.closed = True

    def table(self, name: str) -> pa.Table:
        """Return everything accepted for a table, in order, repeats included."""
        return pa.concat_tables([SCHEMAS[name].empty_table(), *(batch.tables[name] for batch in self.batches)])

    def seqs(self, table: str = "ticks") -> list[int]:
        """Return the seq of every row accepted for a table, in order, repeats included."""
        return [int(seq) for seq in self.table(table).column("seq").to_pylist()]


class FlakySink(MemorySink):
    """A MemorySink that fails as scripted.

    Args:
        script: one item a write: an exception is raised, a callable decides by the batch (it may raise, or wait), None
            accepts. When the script is at its end, every batch is accepted.
        settle_s: how long the store takes to be sure of what it acknowledged.

    Attributes:
        tried: (lo, hi, rows) of every write, accepted or not.
    """

    def __init__(
        self,
        script: Iterable[BaseException | Callable[[Batch], Awaitable[None]] | None] = (),
        *,
        name: str = "flaky",
        policy: BatchPolicy = _AT_ONCE,
        tables: tuple[str, ...] = TABLES,
        settle_s: float = 0.0,
    ) -> None:
        super().__init__(name=name, policy=policy, tables=tables)
        self.settle_s = settle_s
        self.tried: list[tuple[int, int, int]] = []
        self._script = deque(script)

    async def write(self, batch: Batch) -> None:
        """Do what the script says next."""
        self.tried.append((batch.lo, batch.hi, batch.rows))
        step = self._script.popleft() if self._script else None
        if isinstance(step, BaseException):
            raise step
        if step is not None:
            await step(batch)
        await super().write(batch)
