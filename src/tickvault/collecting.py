"""The journal, cut into batches by a sink's policy, read and decoded when much waits, for long, or the batch is due.

What waits, waits in the journal: a frame is read once, with those that came after it, so memory and work follow the
rows of a batch and not the number of frames they came in.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import math
from typing import TYPE_CHECKING, Final

from tickvault.batching import joined, to_batch, wait_s
from tickvault.model import IST, TABLES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from tickvault.brokers.upstox.wire import Decoded
    from tickvault.intake import Progress
    from tickvault.ledger import Ledger
    from tickvault.model import Batch, BatchPolicy, Definition, Frame
    from tickvault.reading import Chunk, JournalReader

__all__ = ["Collector"]

_READ_FRAMES: Final = 2_000
_READ_BYTES: Final = 2_000_000  # decoded at a time, while catching up: bounds memory whatever the policy is
_LEAST_READ_BYTES: Final = 1_000_000  # at the journal's end: parsing takes ten times the memory of what is parsed
_MORE: Final = 1.1
_READ_S: Final = 2.0  # what is not due is read meanwhile, or it would be much to decode at once


class Collector:
    """Makes batches of what one reader finds, one at a time.

    Args:
        reader: stands where the first batch begins.
        policy: when a batch is closed.
        recorder_id: of the journal.
        ledger: the gap ledger up to the reader's place; it is folded on.
        progress: of the journal.
        wall_ns: UTC wall clock in ns, for the end of the day.
        stage: is given the rows of a batch in parts, but for its candles, of which a later one may replace an earlier one;
            None: a batch is held until it is closed.
        decoded_by: as of batching.to_batch.

    Attributes:
        took_s: seconds that the delivery of a batch took last; who delivers tells.
    """

    def __init__(
        self,
        reader: JournalReader,
        policy: BatchPolicy,
        *,
        recorder_id: str,
        ledger: Ledger,
        progress: Progress,
        wall_ns: Callable[[], int],
        stage: Callable[[Batch], Awaitable[None]] | None = None,
        decoded_by: Callable[[Sequence[Frame], Mapping[str, Definition]], Decoded] | None = None,
    ) -> None:
        self._reader = reader
        self._policy = policy
        self._recorder_id = recorder_id
        self._ledger = ledger
        self._progress = progress
        self._wall_ns = wall_ns
        self._stage = stage
        self._decoded_by = decoded_by
        self._gone = 0  # rows of the batch under way that were staged
        self._held: Chunk | None = None  # read, but of the next batch: other definitions are in force
        self._held_due_s = math.inf  # it has waited with the batch before it, and does not wait anew
        self._more = False  # the last read did not reach the journal's end
        self._at_most = _LEAST_READ_BYTES  # of the next read
        self._row_bytes = 0.0  # of a frame, by what was read last
        self.took_s = 0.0

    async def next(self) -> Batch | None:
        """Return the next batch, but for what was staged of it; None when everything is read and nothing more will come.

        Raises:
            JournalDamaged: as JournalReader.read does. What `stage` raises.
        """
        parts: list[Batch] = []
        self._gone = 0
        rows, size, due_s = 0, 0, math.inf if self._held is None else self._held_due_s
        while not parts or wait_s(self._policy, rows=rows, nbytes=size, took_s=self.took_s):
            if self._held is None and not self._more:
                due_s = await self._wait(due_s)
            last_seq, ended = self._progress.last_seq, self._progress.ended
            chunk = await self._read(min(self._policy.max_bytes - size, self._bytes_of(self._policy.max_rows - rows)))
            if chunk is None:
                self._more = False
                if ended or (parts and self._left_s(due_s) <= 0):
                    break  # what was announced before the read was committed, so this was the end
                await self._progress.beyond(last_seq, timeout_s=self._left_s(due_s) if parts else None)
                continue
            self._more = chunk.hi < last_seq
            self._at_most = min(2 * self._at_most, _READ_BYTES) if self._more else _LEAST_READ_BYTES
            if parts and chunk.changed:
                self._held, self._held_due_s = chunk, due_s
                break
            part = await asyncio.to_thread(
                to_batch, chunk, recorder_id=self._recorder_id, ledger=self._ledger, decoded_by=self._decoded_by
            )
            if due_s == math.inf:
                due_s = self._due_s()
            parts = [*await self._staged(parts), part]
            rows, size = self._gone + sum(one.rows for one in parts), size + chunk.nbytes
            self._row_bytes = chunk.nbytes / part.rows if part.rows else 0.0
            if not self._more and self._left_s(due_s) <= 0:
                break
        return await asyncio.to_thread(joined, parts) if parts else None

    async def _staged(self, parts: list[Batch]) -> list[Batch]:
        """Stage what was collected, once it is enough; return what stays, which covers the same frames."""
        rows = sum(part.rows - part.tables["candles"].num_rows for part in parts)
        if self._stage is None or rows < self._policy.part_rows:
            return parts
        whole = await asyncio.to_thread(joined, parts)
        await self._stage(whole.only(set(TABLES) - {"candles"}))
        self._gone += rows
        return [whole.only({"candles"})]

    def _bytes_of(self, rows: int) -> int:
        """Return how many bytes of frames give that many rows and a few more, or one little read more would be needed."""
        return int(rows * self._row_bytes * _MORE) or _READ_BYTES

    async def _read(self, room: int) -> Chunk | None:
        held, self._held = self._held, None
        if held is not None:
            return held
        return await asyncio.to_thread(
            self._reader.read, max_frames=_READ_FRAMES, max_bytes=max(1, min(self._at_most, room))
        )

    async def _wait(self, due_s: float) -> float:
        """Wait until a read is worth it, the batch is due, or intake has ended; return when the batch is due."""
        if due_s == math.inf:
            await self._progress.beyond(self._reader.after_seq, timeout_s=None)
            due_s = self._due_s()
        waits_s = min(_READ_S, self._left_s(due_s))
        await self._progress.beyond(self._reader.after_seq + _READ_FRAMES - 1, timeout_s=waits_s)
        return due_s

    def _left_s(self, due_s: float) -> float:
        return max(0.0, due_s - asyncio.get_running_loop().time())

    def _due_s(self) -> float:
        waits_s = wait_s(self._policy, rows=0, nbytes=0, took_s=self.took_s)
        if self._policy.by_date:
            now = dt.datetime.fromtimestamp(self._wall_ns() / 1e9, IST)
            midnight = (now + dt.timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
            waits_s = min(waits_s, (midnight - now).total_seconds())
        return asyncio.get_running_loop().time() + waits_s
