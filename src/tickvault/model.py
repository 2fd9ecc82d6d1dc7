"""The values that cross module borders, and the contract that sinks implement.

Vocabulary (docs/glossary.md): a *frame* is one WebSocket message as received; an *event* is a journalled fact that rows
depend on besides frames; a *batch* is what one delivery to one sink carries.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = [
    "IST",
    "SCHEMAS",
    "TABLES",
    "Batch",
    "BatchPolicy",
    "Definition",
    "Event",
    "Frame",
    "Gap",
    "Inbox",
    "Mode",
    "Rejected",
    "Sink",
    "Subscription",
    "TakesAgain",
    "TakesAhead",
    "TakesParts",
    "segment_of",
]

IST: Final = dt.timezone(dt.timedelta(hours=5, minutes=30), "IST")  # India has no summer time

_US: Final = pa.timestamp("us", tz="UTC")
_MS: Final = pa.timestamp("ms", tz="UTC")

# Row order of a batch: tables in this order, each in the order of its rows.
SCHEMAS: Final[Mapping[str, pa.Schema]] = {
    "ticks": pa.schema(
        [
            pa.field("time", _US, nullable=False),
            pa.field("received_at", _US, nullable=False),
            pa.field("recorder_id", pa.string(), nullable=False),
            pa.field("seq", pa.int64(), nullable=False),
            pa.field("instrument_key", pa.string(), nullable=False),
            pa.field("symbol", pa.string(), nullable=False),
            pa.field("kind", pa.string(), nullable=False),
            pa.field("mode", pa.string(), nullable=False),
            ("ltp", pa.float64()),
            ("ltt", _MS),
            ("ltq", pa.int64()),
            ("cp", pa.float64()),
            ("atp", pa.float64()),
            ("vtt", pa.int64()),
            ("oi", pa.float64()),
            ("iv", pa.float64()),
            ("tbq", pa.float64()),
            ("tsq", pa.float64()),
            ("delta", pa.float64()),
            ("theta", pa.float64()),
            ("gamma", pa.float64()),
            ("vega", pa.float64()),
            ("rho", pa.float64()),
            ("iep", pa.float64()),
            ("rp", pa.float64()),
            ("ieq", pa.int64()),
            ("iiq_total", pa.int64()),
            ("iiq_m", pa.int64()),
            ("cas_eligible", pa.bool_()),
            ("bid_price", pa.list_(pa.float64())),
            ("ask_price", pa.list_(pa.float64())),
            ("bid_qty", pa.list_(pa.int64())),
            ("ask_qty", pa.list_(pa.int64())),
        ]
    ),
    "candles": pa.schema(
        [
            pa.field("time", _US, nullable=False),
            pa.field("recorder_id", pa.string(), nullable=False),
            pa.field("instrument_key", pa.string(), nullable=False),
            pa.field("symbol", pa.string(), nullable=False),
            pa.field("interval", pa.string(), nullable=False),
            ("open", pa.float64()),
            ("high", pa.float64()),
            ("low", pa.float64()),
            ("close", pa.float64()),
            ("volume", pa.int64()),
            pa.field("seq", pa.int64(), nullable=False),
        ]
    ),
    "market_status": pa.schema(
        [
            pa.field("time", _US, nullable=False),
            pa.field("scope", pa.string(), nullable=False),
            pa.field("segment", pa.string(), nullable=False),
            pa.field("status", pa.string(), nullable=False),
            pa.field("seq", pa.int64(), nullable=False),
        ]
    ),
    "instruments": pa.schema(
        [
            pa.field("valid_from_seq", pa.int64(), nullable=False),
            pa.field("instrument_key", pa.string(), nullable=False),
            ("symbol", pa.string()),
            ("segment", pa.string()),
            ("instrument_type", pa.string()),
            ("underlying_key", pa.string()),
            ("underlying_symbol", pa.string()),
            ("expiry", pa.date32()),
            ("strike", pa.float64()),
            ("option_type", pa.string()),
            ("lot_size", pa.int64()),
            ("tick_size", pa.float64()),
            ("isin", pa.string()),
            ("name", pa.string()),
        ]
    ),
    "gaps": pa.schema(
        [
            pa.field("opened_at", _US, nullable=False),
            ("closed_at", _US),
            ("duration_s", pa.float64()),
            pa.field("scope", pa.string(), nullable=False),
            ("subject", pa.string()),
            pa.field("reason", pa.string(), nullable=False),
            pa.field("planned", pa.bool_(), nullable=False),
            ("detail", pa.string()),
        ]
    ),
}
TABLES: Final = tuple(SCHEMAS)


def segment_of(instrument_key: str) -> str:
    """Return the segment that an instrument key begins with (`NSE_EQ|INE…` → `NSE_EQ`)."""
    return instrument_key.partition("|")[0]


class Mode(StrEnum):
    """How much of an instrument the broker sends."""

    LTPC = "ltpc"
    OPTION_GREEKS = "option_greeks"
    FULL = "full"
    FULL_D30 = "full_d30"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """One instrument that the user wants recorded."""

    instrument_key: str
    mode: Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One journalled WebSocket message, its bytes unaltered.

    Attributes:
        seq: the journal's number of it; only grows, never reused.
        received_ns: UTC wall clock in ns; strictly increasing within a clock epoch.
        conn: number of the connection it came through; only grows.
        payload: the message's bytes.
    """

    seq: int
    received_ns: int
    conn: int
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One journalled fact. It takes effect before frame `after_seq + 1`.

    Attributes:
        kind: start, stop, alive, conn, sub, token, defs, calendar, watch, clock_step, stalled, lost, disk_full or
            cursor_moved.
        at_ns: UTC wall clock in ns.
        boot_ns: time since boot in ns (runs on while the machine sleeps).
        body: JSON object.
    """

    after_seq: int
    at_ns: int
    boot_ns: int
    kind: str
    body: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """What the exchange's master list says an instrument is.

    Attributes:
        tick_size: in INR (the broker's list has paise).
        strike: in INR; None unless an option.
    """

    instrument_key: str
    symbol: str | None = None
    segment: str | None = None
    instrument_type: str | None = None
    underlying_key: str | None = None
    underlying_symbol: str | None = None
    expiry: dt.date | None = None
    strike: float | None = None
    option_type: str | None = None
    lot_size: int | None = None
    tick_size: float | None = None
    isin: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """An interval in which something was not recorded.

    Attributes:
        scope: recorder, connection, segment or instrument; `subject` says which.
        opened_ns: UTC wall clock in ns; `closed_ns` None while it lasts.
        planned: somebody meant it to be.
    """

    scope: str
    subject: str
    opened_ns: int
    closed_ns: int | None
    reason: str
    planned: bool
    detail: str

    @property
    def key(self) -> tuple[str, str, int]:
        """What makes it the same gap, however it goes on."""
        return self.scope, self.subject, self.opened_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A piece of a frame that yields no row, or a row that a store refused.

    Attributes:
        table: the table the row belongs to; `frame` when the whole frame does not decode.
        instrument_key: empty for a whole frame.
        body: the bytes: the frame's payload, the frame with only that piece in it, or the row as JSON.
    """

    seq: int
    table: str
    instrument_key: str
    reason: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows of the journal's entries lo…hi, as Arrow tables.

    Attributes:
        recorder_id: made with the data folder.
        lo: first sequence number covered.
        hi: last sequence number covered, whether or not it yields rows.
        tables: every name of TABLES → a table of exactly that schema.
        definitions: instrument key → definition in force; one set for the whole batch.
        rejected: pieces of the frames that yield no row; delivery makes dead letters of them.
        days: IST dates of the frames, each with its frames' seqs; empty without a decodable frame.
    """

    recorder_id: str
    lo: int
    hi: int
    tables: Mapping[str, pa.Table]
    definitions: Mapping[str, Definition]
    rejected: tuple[Rejected, ...] = ()
    days: tuple[tuple[dt.date, tuple[int, ...]], ...] = ()

    @property
    def rows(self) -> int:
        """Number of rows over all tables."""
        return sum(table.num_rows for table in self.tables.values())

    @property
    def nbytes(self) -> int:
        """Arrow bytes over all tables."""
        return int(sum(table.nbytes for table in self.tables.values()))

    def slice(self, start: int, stop: int) -> Batch:
        """Return the batch with rows start…stop−1 only; rows count through the tables in the order of TABLES."""
        kept, offset = {}, 0
        for name in TABLES:
            table = self.tables[name]
            first = min(max(start - offset, 0), table.num_rows)
            last = min(max(stop - offset, first), table.num_rows)
            kept[name] = table.slice(first, last - first)
            offset += table.num_rows
        return replace(self, tables=kept, rejected=())

    def only(self, tables: Collection[str]) -> Batch:
        """Return the batch with the other tables empty."""
        kept = {name: table if name in tables else table.slice(0, 0) for name, table in self.tables.items()}
        return replace(self, tables=kept)

    def row(self, index: int) -> tuple[str, dict[str, object]]:
        """Return (table name, row) of a row index, for a dead letter."""
        for name in TABLES:
            table = self.tables[name]
            if index < table.num_rows:
                return name, table.slice(index, 1).to_pylist()[0]
            index -= table.num_rows
        raise IndexError(index)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPolicy:
    """When a batch is closed: at whichever bound comes first.

    Attributes:
        max_rows: rows over all tables; what is read last may exceed it by a tenth, and a single frame by more.
        max_bytes: bytes of the frames' payloads read for it.
        max_wait_s: seconds from its first frame.
        min_wait_s: seconds from its first frame that suffice for a store that is quick (batching.wait_s); None: a batch
            waits `max_wait_s` however quick the store is.
        part_rows: rows from which a part of a batch goes to a sink that takes it in parts (TakesParts).
        by_date: close it when the IST date of the frames changes.
    """

    max_rows: int
    max_bytes: int
    max_wait_s: float
    min_wait_s: float | None = None
    part_rows: int = 8_000
    by_date: bool = False


class Sink(Protocol):
    """A store that batches are delivered to.

    For the implementer: one task calls `write`, one batch at a time, in order of `lo`, and repeats a batch until it is
    accepted, halved or refused; after a crash the same rows come again, in batches cut elsewhere. Make a repeat
    harmless. Never retry inside. `aclose` is called once, after the last write has returned; after a crash it is not.
    """

    @property
    def name(self) -> str:
        """What settings, cursors and logs call it."""

    @property
    def policy(self) -> BatchPolicy:
        """When a batch for it is closed."""

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of TABLES that it stores; batches come with the others empty."""

    async def write(self, batch: Batch) -> None:
        """Store every row of the batch; return only when the store has said so.

        Raises:
            SinkUnavailable, SinkMisconfigured, BatchTooLarge, BatchRejected: see tickvault.errors.
        """

    async def aclose(self) -> None:
        """Release connections and files."""


@runtime_checkable
class TakesParts(Protocol):
    """What a sink can also do that makes one thing of a batch: take its rows as they come, so that nobody holds them all.

    For the implementer: `stage` is called with parts of a batch, in order, then `write` with the rest of it, whose range,
    days and candles are those of the whole batch. Nothing that is staged counts before. After an exception of either,
    `discard` is called and the batch comes anew, cut elsewhere. All by one task.
    """

    async def stage(self, part: Batch) -> None:
        """Take rows of the batch that the next `write` completes.

        Raises:
            SinkUnavailable, SinkMisconfigured: see tickvault.errors.
        """

    async def discard(self) -> None:
        """Forget what was staged; also called when nothing was."""


@runtime_checkable
class TakesAhead(Protocol):
    """What a sink can also do before it is a batch's turn: make ready what is written next while another one is.

    For the implementer: `prepare` may run beside a `write` of another batch, and a batch may be written that was not
    prepared. Nothing is asked of the store.
    """

    async def prepare(self, batch: Batch) -> None:
        """Make ready a batch that is written soon."""


@runtime_checkable
class TakesAgain(Protocol):
    """What a sink can also do to which single rows may come again, out of order (dead letters).

    For the implementer: called by the task that then writes the batch without the rows named, nothing between the two.
    """

    async def outdated(self, batch: Batch) -> Collection[int]:
        """Return the indices of rows of which the store holds a newer version, which writing them would unsay.

        Raises:
            SinkUnavailable, SinkMisconfigured: see tickvault.errors.
        """


class Inbox(Protocol):
    """Where a feed leaves what it receives, in order; nothing left here is lost while the process lives.

    For the implementer of a feed: both calls wait while the intake queue is at its bound, so reading stops and TCP
    holds the sender. `frame` is called once per received message, before anything else happens to its bytes.
    """

    async def frame(self, received_ns: int, conn: int, payload: bytes) -> None:
        """Queue one received message; `received_ns` is the UTC wall clock when it arrived."""

    async def fact(self, kind: str, body: Mapping[str, object]) -> None:
        """Queue a fact (an event's kind and JSON body), to be journalled between the frames around it."""
