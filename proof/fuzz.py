"""Frames of every shape, and bytes of none, through the decoder: the rows of a slow decoder, or a rejection of the frame.

Hypothesis draws messages in which every field may be missing or strange (tests/property/test_wire_fuzz.py has them, and
the slow decoder); of these, whole frames are made, frames that are two in one, and frames with bytes changed, cut, put in
or taken from another one. What protobuf's own parser reads and knows must give equal rows; anything else must be rejected, or
give rows that a table can hold.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from contextlib import contextmanager, suppress
from random import Random
from typing import TYPE_CHECKING, Any, Final

import hypothesis
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from proof.rig import Answer, properties, seeded
from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import ModuleType

QUESTION: Final = "decoder fuzz"
A_CALL: Final = 50  # frames decoded at once
AN_EXAMPLE: Final = 20  # calls with what one example has drawn


def ask(place: Path, *, frames: int = 1_000_000, seed: int | None = None) -> Answer:  # noqa: ARG001 - nothing is written
    """Decode so many frames."""
    _, seed = seeded(seed)
    answer = Answer()
    wire = properties("test_wire_fuzz")
    done, told = 0, Counter[str]()

    @hypothesis.seed(seed)
    @settings(
        max_examples=math.ceil(frames / A_CALL / AN_EXAMPLE), deadline=None, database=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.lists(wire.message, min_size=1, max_size=8), st.integers(0, 2**32))
    def holds(messages: Sequence[pb.FeedResponse], chance: int) -> None:
        nonlocal done
        rng, bodies = Random(chance), [one.SerializeToString(deterministic=True) for one in messages]
        for _ in range(AN_EXAMPLE):
            payloads = [_frame(rng, bodies) for _ in range(A_CALL)]
            _judge(wire, payloads, told)
            done += A_CALL

    with _panics_unseen():
        try:
            holds()
        except AssertionError as exc:
            answer.wrong.append(str(exc))
    answer.ran = f"{done} frames, seed {seed}"
    answer.figures = dict(told)
    return answer


def _frame(rng: Random, bodies: Sequence[bytes]) -> bytes:
    """Make a frame of bodies: one, two in one, or one with something done to it."""
    body = rng.choice(bodies)
    what = rng.random()
    if what < 0.4:
        return body
    if what < 0.55:
        return body + rng.choice(bodies)
    for _ in range(rng.randint(1, 3)):
        at, upto = sorted(rng.randint(0, len(body)) for _ in range(2))
        other = rng.choice(bodies)
        taken = rng.randint(0, len(other))
        body = rng.choice(
            (
                body[:at] + rng.randbytes(1) + body[at + 1 :],
                body[:at] + rng.randbytes(rng.randint(1, 4)) + body[at:],
                body[:at] + body[upto:],
                body[:at],
                body[:at] + other[taken : taken + rng.randint(0, 20)] + body[at:],
            )
        )
    return body


def _judge(wire: ModuleType, payloads: list[bytes], told: Counter[str]) -> None:
    """Hold the decoder against the slow one, on the frames that both parsers read."""
    frames, readable = wire.frames_of(payloads), {}
    for frame in frames:
        with suppress(DecodeError):
            readable[frame.seq] = pb.FeedResponse.FromString(frame.payload)
    fast = wire.decoded(payloads)
    rejected = {one.seq for one in fast.rejected if one.table == "frame"}
    # What becomes of an entry with a field that is not known, in the entry itself, differs from parser to parser.
    known = {seq for seq, message in readable.items() if not _has_unknown_fields(message)}
    assert not rejected & known, f"rejected, and protobuf reads them: {_hex(payloads, rejected & known)}"
    others = {frame.seq for frame in frames} - rejected - known
    told["rejected"] += len(rejected)
    told["compared with the slow decoder"] += len(known)
    if others:
        _judge(wire, [payloads[seq - 1] for seq in sorted(known)], Counter())
        return
    slow = wire.Slow()
    for frame in frames:
        if frame.seq in known:
            slow.take(frame.seq, frame.received_ns // 1000, readable[frame.seq])
    _same("ticks", wire, fast, slow.ticks, payloads)
    _same("candles", wire, fast, slow.candles.values(), payloads)
    _same("market_status", wire, fast, slow.statuses, payloads)
    parts = {(one.seq, one.table, one.instrument_key) for one in fast.rejected if one.table != "frame"}
    other = parts ^ set(slow.rejected)
    assert not other, f"other rejections: {sorted(other)}; frames {_hex(payloads, {one[0] for one in other})}"


def _has_unknown_fields(message: pb.FeedResponse) -> bool:
    before = message.ByteSize()
    message.DiscardUnknownFields()
    return message.ByteSize() != before


def _same(table: str, wire: ModuleType, fast: Any, rows: Any, payloads: list[bytes]) -> None:
    found, wanted = wire.ordered(wire.plain(fast.tables[table])), wire.ordered(rows)
    if found != wanted:
        differing = sorted(set(found) ^ set(wanted))[:2]
        seqs = {seq for seq in range(1, len(payloads) + 1) if any(f"('seq', {seq})" in one for one in differing)}
        raise AssertionError(f"{table} differ: {differing}; frames {_hex(payloads, seqs)}")


def _hex(payloads: list[bytes], seqs: set[int]) -> list[str]:
    return [payloads[seq - 1].hex() for seq in sorted(seqs)]


@contextmanager
def _panics_unseen() -> Iterator[None]:
    """Keep what the parser's panics print, which the decoder catches, off the screen: there are very many."""
    os.environ["RUST_BACKTRACE"] = "0"
    real, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(real, 2)
        os.close(real)
        os.close(nowhere)
