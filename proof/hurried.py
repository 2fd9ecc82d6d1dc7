"""`tickvault` with small bounds, so that what takes a day happens every second: segments roll and go, files are named.

Told by its environment, it notes what it promises: PROOF_MARKS names a file that gets one line after each append
(`committed SEQ`), and after each step of a delivery (`attempted SINK SEQ`, `delivered SINK SEQ`). PROOF_SYNCHRONOUS=OFF
lets SQLite not sync the journal. PROOF_PATIENCE=short tries a store that fails every second or two, not every minute.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tickvault import room, segments
from tickvault.cli import main
from tickvault.delivery import Delivery, Patience
from tickvault.journal import Journal
from tickvault.sinks.influx import InfluxSink
from tickvault.sinks.parquet import ParquetSink
from tickvault.state import State

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable
    from pathlib import Path

SEGMENT_FRAMES = 25
BATCH_S = 0.7
PRUNE_S = 1.0  # TICKVAULT_RETAIN says how old a segment has to be


def _note_promises(path: str) -> None:
    """Note each promise as soon as it is made, in one write."""
    marks = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def noted(method: Callable[..., Any], words: Callable[..., str]) -> Callable[..., Any]:
        def call(self: Any, *given: Any, **named: Any) -> Any:
            result = method(self, *given, **named)
            if result is not False:
                os.write(marks, f"{words(result, *given)}\n".encode())
            return result

        return call

    Journal.append = noted(Journal.append, lambda committed, *_: f"committed {committed.last_seq}")  # type: ignore[method-assign]
    State.attempt = noted(State.attempt, lambda _, sink, hi: f"attempted {sink} {hi}")  # type: ignore[method-assign]
    State.advance = noted(State.advance, lambda _, sink, hi: f"delivered {sink} {hi}")  # type: ignore[method-assign]


def _sync(mode: str) -> None:
    """Let SQLite sync the journal as told."""
    real = segments.writer

    def writer(path: Path) -> sqlite3.Connection:
        db = real(path)
        db.execute(f"PRAGMA synchronous = {mode}")
        return db

    segments.writer = writer


if __name__ == "__main__":
    segments.MAX_FRAMES = SEGMENT_FRAMES  # type: ignore[misc]
    room._PRUNE_S = PRUNE_S  # type: ignore[misc]
    ParquetSink.policy = replace(ParquetSink.policy, max_wait_s=BATCH_S)
    if marks := os.environ.pop("PROOF_MARKS", ""):
        _note_promises(marks)
    if mode := os.environ.pop("PROOF_SYNCHRONOUS", ""):
        _sync(mode)
    if os.environ.pop("PROOF_PATIENCE", ""):
        Delivery.__init__.__kwdefaults__["patience"] = Patience(first_s=0.2, longest_s=1.0, misconfigured_s=2.0)  # type: ignore[index]
        InfluxSink.__init__.__kwdefaults__["timeout_s"] = 3.0  # type: ignore[index]
    main()
