"""Chunks to batches."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from doubles import AT_MS, AT_NS, DAY_MS, payload

from tickvault.batching import gap_rows, joined, to_batch, wait_s
from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.ledger import Ledger
from tickvault.model import SCHEMAS, BatchPolicy, Definition, Event, Frame, Gap
from tickvault.reading import Chunk

TODAY = dt.date(2026, 9, 1)


def chunk(*payloads: bytes, lo: int = 1, first: int | None = None, **changes: Any) -> Chunk:
    begin = lo if first is None else first
    frames = tuple(
        Frame(seq=seq, received_ns=AT_NS + seq, conn=1, payload=one) for seq, one in enumerate(payloads, begin)
    )
    usual = {"events": (), "definitions": {}, "changed": ()}
    return Chunk(**{"lo": lo, "hi": frames[-1].seq, "frames": frames, **usual, **changes})


def batch(one: Chunk) -> Any:
    return to_batch(one, recorder_id="r", ledger=Ledger())


def candle(value: float) -> bytes:
    message = pb.FeedResponse(currentTs=AT_MS)
    message.feeds["A"].fullFeed.marketFF.marketOHLC.ohlc.add(interval="I1", ts=AT_MS, open=value)
    return message.SerializeToString()


def test_a_batch_covers_its_chunk() -> None:
    """Range, rows and definitions are the chunk's."""
    made = batch(chunk(payload(1), b"\xff", payload(3)))
    assert (made.lo, made.hi, made.tables["ticks"].num_rows, len(made.rejected)) == (1, 3, 2, 1)


def test_every_frame_has_a_day_even_one_that_does_not_decode() -> None:
    """So that what comes into force there has a folder; by its own time, else by that of receipt."""
    made = batch(chunk(payload(5, at_ms=AT_MS + DAY_MS // 2 + DAY_MS // 4), b"\xff", lo=1, first=5))
    days = {seq: day for day, seqs in made.days for seq in seqs}
    assert days == {5: dt.date(2026, 9, 2), 6: TODAY, 1: TODAY}


def test_definitions_that_changed_are_rows_from_the_chunk_on() -> None:
    """Valid from its first seq."""
    one = Definition(instrument_key="A", symbol="a")
    made = batch(chunk(payload(4), lo=4, definitions={"A": one}, changed=(one,)))
    assert made.tables["instruments"].column("valid_from_seq").to_pylist() == [4]


def test_gaps_that_closed_are_rows() -> None:
    """Those still open come when they close."""
    events = (
        Event(after_seq=0, at_ns=AT_NS, boot_ns=0, kind="start", body={"last_ns": 0}),
        Event(after_seq=0, at_ns=AT_NS + 5 * 10**8, boot_ns=0, kind="conn", body={"state": "open", "conn": 1}),
        Event(after_seq=0, at_ns=AT_NS + 10**9, boot_ns=0, kind="conn", body={"state": "live", "conn": 1}),
        Event(after_seq=0, at_ns=AT_NS + 2 * 10**9, boot_ns=0, kind="conn", body={"state": "closed", "conn": 1}),
    )
    made = batch(chunk(payload(1), events=events))
    assert made.tables["gaps"].column("duration_s").to_pylist() == [1.0]


def test_joined_batches_are_one() -> None:
    """Rows in order, candles in their last version, days merged."""
    parts = [batch(chunk(candle(float(seq)), payload(seq + 1), lo=seq)) for seq in (1, 3)]
    whole = joined(parts)
    assert (whole.lo, whole.hi) == (1, 4)
    assert whole.tables["ticks"].column("seq").to_pylist() == [1, 2, 3, 4]
    assert [(row["seq"], row["open"]) for row in whole.tables["candles"].to_pylist() if row["interval"] == "I1"] == [
        (3, 3.0)
    ]
    assert whole.days == ((TODAY, (1, 2, 3, 4)),)
    assert joined(parts[:1]) is parts[0]


def test_an_open_gap_has_no_end() -> None:
    """Neither closing time nor duration."""
    gap = Gap(scope="recorder", subject="", opened_ns=5000, closed_ns=None, reason="r", planned=True, detail="d")
    table = gap_rows([gap])
    assert table.schema == SCHEMAS["gaps"]
    [row] = table.to_pylist()
    assert (row["closed_at"], row["duration_s"], row["planned"]) == (None, None, True)
    assert gap_rows([]).num_rows == 0


def test_slices_count_through_the_tables() -> None:
    """Halves together are the whole, and row names what it finds."""
    made = batch(chunk(payload(1), payload(2)))
    middle = made.rows // 2
    halves = [made.slice(0, middle), made.slice(middle, made.rows)]
    for name in SCHEMAS:
        assert halves[0].tables[name].to_pylist() + halves[1].tables[name].to_pylist() == made.tables[name].to_pylist()
    assert made.row(made.rows - 1)[0] == "market_status"


PROMPT = BatchPolicy(max_rows=5000, max_bytes=4_000_000, max_wait_s=1.0, min_wait_s=0.1)
PATIENT = BatchPolicy(max_rows=5000, max_bytes=4_000_000, max_wait_s=60.0)


@pytest.mark.parametrize(
    ("policy", "rows", "nbytes", "took_s", "waits_s"),
    [
        (PROMPT, 1, 100, 0.0, 0.1),
        (PROMPT, 1, 100, 0.01, 0.1),
        (PROMPT, 1, 100, 0.2, 0.1),
        (PROMPT, 1, 100, 0.5, 0.25),
        (PROMPT, 4999, 3_999_999, 0.8, 0.4),
        (PROMPT, 1, 100, 2.2, 1.0),
        (PROMPT, 1, 100, 3600.0, 1.0),
        (PROMPT, 5000, 100, 0.01, 0.0),
        (PROMPT, 1, 4_000_000, 0.01, 0.0),
        (PATIENT, 1, 100, 0.0, 60.0),
        (PATIENT, 1, 100, 3600.0, 60.0),
        (PATIENT, 5000, 100, 0.0, 0.0),
    ],
)
def test_a_batch_waits_as_the_store_is_quick_and_not_when_it_is_full(
    policy: BatchPolicy, rows: int, nbytes: int, took_s: float, waits_s: float
) -> None:
    """Small and prompt for a store that is quick, larger the longer it takes, never beyond what the policy says."""
    assert wait_s(policy, rows=rows, nbytes=nbytes, took_s=took_s) == waits_s
