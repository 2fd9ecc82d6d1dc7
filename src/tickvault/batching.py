"""Journal chunks to batches: one decoder and one set of look-ups, for sinks and for queries alike; when to close one. Pure."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import pyarrow as pa

from tickvault.brokers.upstox.wire import Decoded, decode, instrument_rows, last_versions
from tickvault.model import IST, SCHEMAS, TABLES, Batch, Gap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tickvault.ledger import Ledger
    from tickvault.model import BatchPolicy, Definition, Frame
    from tickvault.reading import Chunk

__all__ = ["gap_rows", "joined", "to_batch", "together", "wait_s"]


def to_batch(
    chunk: Chunk,
    *,
    recorder_id: str,
    ledger: Ledger,
    decoded_by: Callable[[Sequence[Frame], Mapping[str, Definition]], Decoded] | None = None,
) -> Batch:
    """Decode a chunk.

    Args:
        chunk: entries under one set of definitions.
        recorder_id: of the journal.
        ledger: the gap ledger up to the chunk; it is folded on.
        decoded_by: instead of wire.decode.
    """
    if decoded_by is None:
        decoded = decode(chunk.frames, recorder_id=recorder_id, definitions=chunk.definitions)
    else:
        decoded = decoded_by(chunk.frames, chunk.definitions)
    closed = [gap for event in chunk.events for gap in ledger.apply(event) if gap.closed_ns is not None]
    tables = {**decoded.tables, "gaps": gap_rows(closed)}
    if chunk.changed:
        tables["instruments"] = instrument_rows(chunk.lo, chunk.changed)
    return Batch(
        recorder_id=recorder_id,
        lo=chunk.lo,
        hi=chunk.hi,
        tables=tables,
        definitions=chunk.definitions,
        rejected=decoded.rejected,
        days=_all_days(chunk, decoded.days),
    )


def wait_s(policy: BatchPolicy, *, rows: int, nbytes: int, took_s: float) -> float:
    """Return how long after its first frame a batch is closed; 0 when it is full.

    A store that is quick is told soon. The longer it takes, and the more there is to tell it, the larger the batches:
    what comes while one is delivered waits in the journal, and what waits there goes into one batch, up to its bounds.
    It is closed when half of a delivery's time is over, so that it is ready when its turn comes.

    Args:
        policy: of the sink.
        rows: in the batch so far.
        nbytes: of the payloads in it so far.
        took_s: seconds that the delivery of the batch before took, from its turn to the cursor.
    """
    if rows >= policy.max_rows or nbytes >= policy.max_bytes:
        return 0.0
    least_s = policy.max_wait_s if policy.min_wait_s is None else policy.min_wait_s
    return min(policy.max_wait_s, max(least_s, took_s / 2))


def together(parts: Sequence[Decoded]) -> Decoded:
    """Return what one call of wire.decode returns of frames that follow one another, from what several did."""
    if len(parts) == 1:
        return parts[0]
    return Decoded(
        tables=_one_after_another([part.tables for part in parts]),
        days=_merged([part.days for part in parts]),
        rejected=tuple(one for part in parts for one in part.rejected),
        restamped=sum(part.restamped for part in parts),
    )


def joined(batches: Sequence[Batch]) -> Batch:
    """Join batches that follow one another under one set of definitions."""
    if len(batches) == 1:
        return batches[0]
    return Batch(
        recorder_id=batches[0].recorder_id,
        lo=batches[0].lo,
        hi=batches[-1].hi,
        tables=_one_after_another([batch.tables for batch in batches]),
        definitions=batches[-1].definitions,
        rejected=tuple(one for batch in batches for one in batch.rejected),
        days=_merged([batch.days for batch in batches]),
    )


def gap_rows(gaps: Iterable[Gap]) -> pa.Table:
    """Return the `gaps` rows of gaps; open ones have no end and no duration."""
    rows = [
        {
            "opened_at": gap.opened_ns // 1000,
            "closed_at": None if gap.closed_ns is None else gap.closed_ns // 1000,
            "duration_s": None if gap.closed_ns is None else (gap.closed_ns - gap.opened_ns) / 1e9,
            "scope": gap.scope,
            "subject": gap.subject,
            "reason": gap.reason,
            "planned": gap.planned,
            "detail": gap.detail,
        }
        for gap in gaps
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["gaps"])


def _one_after_another(parts: Sequence[Mapping[str, pa.Table]]) -> dict[str, pa.Table]:
    tables = {name: pa.concat_tables([part[name] for part in parts]) for name in TABLES}
    return {**tables, "candles": last_versions(tables["candles"])}


def _merged(
    parts: Sequence[tuple[tuple[dt.date, tuple[int, ...]], ...]],
) -> tuple[tuple[dt.date, tuple[int, ...]], ...]:
    days: dict[dt.date, list[int]] = {}
    for part in parts:
        for day, seqs in part:
            days.setdefault(day, []).extend(seqs)
    return tuple((day, tuple(seqs)) for day, seqs in days.items())


def _all_days(
    chunk: Chunk, days: Sequence[tuple[dt.date, tuple[int, ...]]]
) -> tuple[tuple[dt.date, tuple[int, ...]], ...]:
    """Give every frame of the chunk, and its first seq, a day: definitions come into force at undecodable frames too."""
    found = {day: list(seqs) for day, seqs in days}
    dated = {seq for seqs in found.values() for seq in seqs}
    received = {frame.seq: frame.received_ns for frame in chunk.frames}
    for seq in {chunk.lo, *received} - dated:
        received_ns = received.get(seq, chunk.frames[0].received_ns)
        found.setdefault(dt.datetime.fromtimestamp(received_ns / 1e9, IST).date(), []).append(seq)
    return tuple((day, tuple(seqs)) for day, seqs in found.items())
