"""Decodes frames once for all deliveries that are at the journal's end together.

Each delivery reads the journal for itself, checks what it reads and cuts it as it likes; only columns are shared, and they
are a pure function of the frames. Who is behind, or cuts across what another one decoded, decodes for itself.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tickvault.batching import together
from tickvault.brokers.upstox.wire import decode

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from tickvault.brokers.upstox.wire import Decoded
    from tickvault.model import Definition, Frame

__all__ = ["Decoder"]

_HELD_BYTES: Final = 8_000_000  # of columns: two seconds at ten times a market's opening
_RUN_BYTES: Final = 16_000  # that a run takes without any row


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """Frames decoded together, first to last, so many."""

    first: int
    last: int
    count: int
    nbytes: int
    decoded: Decoded


class Decoder:
    """Decodes for several deliveries, each of them in one thread at a time.

    Args:
        recorder_id: of the journal.
        names: of the deliveries.
    """

    def __init__(self, recorder_id: str, names: Collection[str]) -> None:
        self._recorder_id = recorder_id
        self._reached = dict.fromkeys(names, 0)  # delivery → the last frame that it had decoded
        self._runs: dict[int, _Run] = {}  # by first seq, oldest first
        self._lock = threading.Lock()

    def decode(self, name: str, frames: Sequence[Frame], definitions: Mapping[str, Definition]) -> Decoded:
        """Return what wire.decode returns of the same frames under the same definitions.

        Args:
            name: of the delivery that asks.
            frames: as read from the journal, dense but for what it has lost.
            definitions: in force at these frames, by the journal.
        """
        parts = [
            run.decoded if isinstance(run, _Run) else self._decoded(run, definitions) for run in self._pieces(frames)
        ]
        with self._lock:
            self._reached[name] = frames[-1].seq
            self._drop()
        return together(parts)

    def _pieces(self, frames: Sequence[Frame]) -> Iterator[_Run | Sequence[Frame]]:
        """Yield, in order, the runs that are there already and the frames between them."""
        with self._lock:
            runs = dict(self._runs)
        begin = at = 0
        while at < len(frames):
            run = runs.get(frames[at].seq)
            end = at + run.count if run else 0
            if run is None or end > len(frames) or frames[end - 1].seq != run.last:
                at += 1
                continue
            if begin < at:
                yield frames[begin:at]
            yield run
            begin = at = end
        if begin < len(frames):
            yield frames[begin:]

    def _decoded(self, frames: Sequence[Frame], definitions: Mapping[str, Definition]) -> Decoded:
        decoded = decode(frames, recorder_id=self._recorder_id, definitions=definitions)
        nbytes = _RUN_BYTES + sum(table.nbytes for table in decoded.tables.values())
        first, last = frames[0].seq, frames[-1].seq
        with self._lock:
            self._runs[first] = _Run(first=first, last=last, count=len(frames), nbytes=nbytes, decoded=decoded)
        return decoded

    def _drop(self) -> None:
        """Drop what everybody has had, and the oldest of what is too much."""
        held = sum(run.nbytes for run in self._runs.values())
        needed_from = min(self._reached.values())
        for run in list(self._runs.values()):
            if run.last <= needed_from or held > _HELD_BYTES:
                held -= self._runs.pop(run.first).nbytes
