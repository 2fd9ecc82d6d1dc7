"""Dead letters sent again: from the journal and from themselves, to stores that take them, refuse them or are away."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import sqlite3
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from delivering import BRIEF, Bench, until
from doubles import AT_MS, AT_NS, Crash, payload, received

from tickvault import batching, deadletters
from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.brokers.upstox.wire import Decoded
from tickvault.deadletters import Choice, Letter
from tickvault.errors import BatchRejected, Refused, SinkMisconfigured, SinkUnavailable
from tickvault.journal import Fact
from tickvault.letters import rows_of
from tickvault.model import SCHEMAS, TABLES, Batch, Definition, Rejected
from tickvault.redrive import Redrive
from tickvault.segments import defs_body
from tickvault.testing import FlakySink, MemorySink

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator
    from pathlib import Path

    import pyarrow as pa

LATER_NS = AT_NS + 3_600_000_000_000
OPTION = Definition(
    instrument_key="NSE_FO|1",
    symbol="NIFTY 25000 CE",
    segment="NSE_FO",
    underlying_symbol="NIFTY",
    expiry=dt.date(2026, 9, 24),
    strike=25000.0,
    option_type="CE",
    tick_size=0.05,
)


class AgainSink(FlakySink):
    """A FlakySink that takes single rows again, and holds newer versions of the candles at these seqs."""

    outdated_seqs: Collection[int] = ()

    async def outdated(self, batch: Batch) -> Collection[int]:
        offset = batch.tables["ticks"].num_rows
        seqs = batch.tables["candles"]["seq"].to_pylist()
        return [offset + row for row, seq in enumerate(seqs) if seq in self.outdated_seqs]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def refusing(chosen: Callable[[str, dict[str, Any]], bool], words: str = "no") -> Callable[[Batch], Awaitable[None]]:
    """Return what refuses the rows chosen by name, as a store does that stores the others."""

    async def judge(batch: Batch) -> None:
        found = {row: words for row in range(batch.rows) if chosen(*batch.row(row))}
        if found:
            raise BatchRejected(words, rejected=found)

    return judge


def redrive(bench: Bench, sink: MemorySink, *, writing: asyncio.Lock | None = None) -> Redrive:
    return Redrive(
        sink,
        folder=bench.folder,
        recorder_id=bench.journal.recorder_id,
        state=bench.state,
        writing=writing or asyncio.Lock(),
        message="stored",
        wall_ns=lambda: LATER_NS,
    )


def ask(bench: Bench, **chosen: str) -> int:
    return deadletters.ask(bench.path / "state.db", Choice(**chosen))


def letters(bench: Bench) -> list[Letter]:
    return deadletters.read(bench.path / "state.db", Choice())


def waiting(bench: Bench) -> int:
    return deadletters.waiting(bench.path / "state.db", Choice())


def rich(number: int) -> bytes:
    """Return a frame of an option with everything a frame can carry, and the status of its segment in two scopes."""
    message = pb.FeedResponse(type=pb.live_feed, currentTs=AT_MS + number)
    entry = message.feeds[OPTION.instrument_key]
    entry.requestMode = pb.full_d30
    full = entry.fullFeed.marketFF
    full.ltpc.ltp, full.ltpc.ltt, full.ltpc.ltq = number / 3, AT_MS - 1, 75
    full.atp, full.vtt, full.oi, full.iv, full.tbq = 101.25, 2**53 + 1, 12.5, 0.125, 1e300
    full.optionGreeks.delta = -0.1
    for level in range(3):
        full.marketLevel.bidAskQuote.add(bidP=100.05 - level, askP=100.1 + level, bidQ=level, askQ=10**15)
    for interval in ("1d", "I1"):
        full.marketOHLC.ohlc.add(interval=interval, open=1.1, high=2.2, low=0.3, close=float(number), vol=7, ts=AT_MS)
    message.marketInfo.segmentStatus["NSE_FO"] = pb.NORMAL_OPEN
    message.marketInfo.casMarketStatus["NSE_FO"].status = "CAS_OPEN"
    return message.SerializeToString()


def table(sink: MemorySink, name: str) -> pa.Table:
    found = sink.table(name)
    return found.sort_by(
        [(column, "ascending") for column in found.column_names if column in {"seq", "interval", "scope"}]
    )


async def refused_rich(bench: Bench) -> AgainSink:
    """Deliver two rich frames, every row of which is refused; return a sink that has taken them all."""
    bench.journal.append([Fact("defs", defs_body([OPTION])), *(received(n, rich(n)) for n in (1, 2))])
    whole = AgainSink(name="whole", tables=("ticks", "candles", "market_status"))
    await bench.deliver(whole)
    refuses = refusing(lambda table, row: table != "candles" or row["seq"] == 2)
    await bench.deliver(AgainSink([refuses] * 9, tables=("ticks", "candles", "market_status")))
    return whole


@pytest.mark.parametrize("pruned", [False, True], ids=["from the journal", "from the letters"])
async def test_what_is_sent_again_is_what_was_refused(bench: Bench, pruned: bool) -> None:
    """Row for row, tags included; the letters go, and the webhook is told. Rows that share a letter come both."""
    whole = await refused_rich(bench)
    assert {(one.table, one.seq) for one in letters(bench)} == {
        (name, seq) for name in ("ticks", "candles", "market_status") for seq in (1, 2)
    } - {("candles", 1)}
    if pruned:
        bench.journal.close()
        for path in bench.folder.iterdir():
            path.unlink()
    assert ask(bench) == 5
    bench.state._db.execute("DELETE FROM outbox")
    sink = AgainSink(tables=whole.tables)
    done = await redrive(bench, sink).carry_out()
    assert (done.letters, done.rows, done.outdated, done.refused) == (5, 8, 0, 0)
    for name in whole.tables:
        assert table(sink, name).equals(table(whole, name)), name
    assert all(batch.definitions.get(OPTION.instrument_key) in (OPTION, None) for batch in sink.batches)
    assert any(batch.definitions == {OPTION.instrument_key: OPTION} for batch in sink.batches)
    assert letters(bench) == []
    assert waiting(bench) == 0
    body, event = bench.state._db.execute("SELECT body, event FROM outbox").fetchone()
    told = json.loads(body)
    assert (event, told["rows"], told["high_water_seq"], told["message"]) == ("data.stored", 8, 2, "stored")
    if pruned:
        bench.journal._db = None  # its files are gone


async def test_only_what_is_asked_for_is_sent(bench: Bench) -> None:
    """By sink, table or instrument."""
    bench.append(2, keys=("A", "B", "C"))
    for name in ("one", "two"):
        await bench.deliver(AgainSink([refusing(lambda *_: True)], name=name, tables=("ticks",)))
    assert len(letters(bench)) == 12
    assert ask(bench, sink="one", instrument_key="B") == 2
    assert ask(bench, table="candles") == 0
    sink = AgainSink(name="one", tables=("ticks",))
    await redrive(bench, sink).carry_out()
    assert sink.table("ticks")["instrument_key"].to_pylist() == ["B", "B"]
    assert len(letters(bench)) == 10


async def test_what_is_refused_again_stays_with_the_new_words(bench: Bench) -> None:
    """And is not asked for any more; what was taken beside it goes."""
    bench.append(4)
    await bench.deliver(AgainSink([refusing(lambda *_: True, "too old")], tables=("ticks",)))
    ask(bench)
    sink = AgainSink([refusing(lambda _, row: row["seq"] == 3, "too new")], tables=("ticks",))
    done = await redrive(bench, sink).carry_out()
    assert (done.letters, done.rows, done.refused) == (3, 3, 1)
    assert [(one.seq, one.reason, one.at_ns) for one in letters(bench)] == [(3, "too new", LATER_NS)]
    assert waiting(bench) == 0
    await redrive(bench, sink).carry_out()
    assert len(sink.tried) == 1


async def test_a_refusal_without_names_is_found_by_halving_here_too(bench: Bench) -> None:
    """The words are those of the one row."""
    bench.append(8)
    await bench.deliver(AgainSink([refusing(lambda *_: True)], tables=("ticks",)))

    async def unnamed(batch: Batch) -> None:
        if 5 in batch.tables["ticks"]["seq"].to_pylist():
            raise BatchRejected("type conflict")

    ask(bench)
    await redrive(bench, AgainSink([unnamed] * 99, tables=("ticks",))).carry_out()
    assert [(one.seq, one.reason) for one in letters(bench)] == [(5, "type conflict")]


@pytest.mark.parametrize("error", [SinkUnavailable("down"), SinkMisconfigured("401")])
async def test_a_store_that_is_away_keeps_what_is_asked_for(bench: Bench, error: Exception) -> None:
    """It is sent when the store is back, by whoever owns the folder then."""
    bench.append(3)
    await bench.deliver(AgainSink([refusing(lambda *_: True)], tables=("ticks",)))
    ask(bench)
    with pytest.raises(type(error)):
        await redrive(bench, AgainSink([error], tables=("ticks",))).carry_out()
    assert (len(letters(bench)), waiting(bench)) == (3, 3)
    bench.close()
    bench.open()
    sink = AgainSink(tables=("ticks",))
    await redrive(bench, sink).carry_out()
    assert (sink.seqs(), letters(bench)) == ([1, 2, 3], [])


async def test_a_kill_between_the_stores_word_and_ours_sends_the_same_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A letter goes only with the transaction behind the store's word; points overwrite themselves."""
    bench.append(3)
    await bench.deliver(AgainSink([refusing(lambda *_: True)], tables=("ticks",)))
    ask(bench)
    sink = AgainSink(tables=("ticks",))

    def killed(*_: Any, **__: Any) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(bench.state, "redriven", killed)
        with pytest.raises(Crash):
            await redrive(bench, sink).carry_out()
    assert len(letters(bench)) == 3
    await redrive(bench, sink).carry_out()
    assert (sink.seqs(), letters(bench)) == ([1, 2, 3] * 2, [])


async def test_an_older_version_of_a_candle_does_not_unsay_a_newer_one(bench: Bench) -> None:
    """The store is asked which one it has; the letter goes without being sent."""
    bench.append(3)
    await bench.deliver(AgainSink([refusing(lambda table, _: table == "candles")] * 9, tables=("candles",)))
    [letter] = letters(bench)
    ask(bench)
    sink = AgainSink(tables=("candles",))
    sink.outdated_seqs = {letter.seq}
    done = await redrive(bench, sink).carry_out()
    assert (done.letters, done.rows, done.outdated) == (1, 0, 1)
    assert (sink.tried, letters(bench)) == ([], [])


async def test_a_frame_that_a_newer_decoder_reads_yields_its_rows(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole frames and single entries; what still does not decode stays."""
    bench.append(2)
    bench.journal.append([received(3, b"\xff")])

    def older(frames: Any, **_: Any) -> Decoded:
        rejected = [
            Rejected(seq=frame.seq, table=name, instrument_key=key, reason="old", body=frame.payload)
            for frame, (name, key) in zip(frames, [("frame", ""), ("ticks", "NSE_EQ|A"), ("frame", "")], strict=True)
        ]
        empty = {name: schema.empty_table() for name, schema in SCHEMAS.items()}
        return Decoded(tables=empty, days=(), rejected=tuple(rejected), restamped=0)

    with monkeypatch.context() as patch:
        patch.setattr(batching, "decode", older)
        await bench.deliver(AgainSink())
    assert [(one.seq, one.table) for one in letters(bench)] == [(1, "frame"), (2, "ticks"), (3, "frame")]
    ask(bench)
    sink = AgainSink()
    await redrive(bench, sink).carry_out()
    assert [sink.table(name).num_rows for name in TABLES] == [2, 1, 1, 0, 0]
    [left] = letters(bench)
    assert (left.seq, left.table, left.body) == (3, "frame", b"\xff")
    assert left.reason.startswith("does not decode")


async def test_a_frame_that_is_gone_from_the_journal_stays_and_says_so(bench: Bench) -> None:
    """Its bytes are kept; the reason it had is not lost, however often it is tried."""
    bench.journal.append([received(1, b"\xff")])
    await bench.deliver(AgainSink())
    bench.journal.close()
    for path in bench.folder.iterdir():
        path.unlink()
    for _ in range(2):
        ask(bench)
        await redrive(bench, AgainSink()).carry_out()
    [left] = letters(bench)
    assert left.body == b"\xff"
    assert left.reason.startswith("the journal no longer holds frame 1, and the letter has no rows; it was: does not")
    assert left.reason.count("the journal no longer") == 1
    bench.journal._db = None


async def test_each_letter_goes_under_the_definition_of_its_frame(bench: Bench) -> None:
    """Rows whose tags differ are not sent as one."""
    one, two = (Definition(instrument_key="NSE_EQ|A", symbol=symbol) for symbol in ("ONE", "TWO"))
    bench.journal.append([Fact("defs", defs_body([one])), received(1), received(2)])
    bench.journal.append([Fact("defs", defs_body([two])), received(3)])
    await bench.deliver(AgainSink([refusing(lambda *_: True)] * 9, tables=("ticks",)))
    ask(bench)
    sink = AgainSink(tables=("ticks",))
    await redrive(bench, sink).carry_out()
    assert [(b.lo, b.hi, b.definitions["NSE_EQ|A"].symbol) for b in sink.batches] == [(1, 2, "ONE"), (3, 3, "TWO")]
    assert sink.table("ticks")["symbol"].to_pylist() == ["ONE", "ONE", "TWO"]


async def test_a_gap_that_was_refused_comes_again(bench: Bench) -> None:
    """It is a row of no frame, so the letter has it; each by itself."""
    for number in (1, 2):
        bench.append(1)
        bench.close()
        bench.open()
        assert number
    bench.append(1)
    whole = AgainSink(name="whole", tables=("gaps",))
    await bench.deliver(whole)
    assert whole.table("gaps").num_rows
    await bench.deliver(AgainSink([refusing(lambda *_: True)] * 9, tables=("gaps",)))
    ask(bench)
    sink = AgainSink(tables=("gaps",))
    await redrive(bench, sink).carry_out()
    assert sink.table("gaps").equals(whole.table("gaps"))
    assert letters(bench) == []


async def test_a_bug_at_sending_again_costs_no_letter_and_ends_nothing(bench: Bench) -> None:
    """It is told with the letters, and nobody has to be parked for it."""
    bench.append(2)
    await bench.deliver(AgainSink([refusing(lambda *_: True)], tables=("ticks",)))
    ask(bench)
    done = await redrive(bench, AgainSink([ZeroDivisionError("oops")], tables=("ticks",))).carry_out()
    assert (done.letters, done.refused) == (0, 2)
    assert {one.reason for one in letters(bench)} == {"ZeroDivisionError: oops; this is a bug in tickvault"}


async def test_nothing_that_goes_wrong_at_it_ends_the_recorder(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in what asks the store, or in the state: told, tried again later, and delivery goes on."""
    bench.append(1)
    await bench.deliver(AgainSink([refusing(lambda *_: True)], tables=("ticks",)))
    ask(bench)
    sink = AgainSink(tables=("ticks",))

    async def oops(_: Batch) -> Collection[int]:
        raise ZeroDivisionError("oops")

    with monkeypatch.context() as patch:
        patch.setattr(sink, "outdated", oops)
        await redrive(bench, sink).carry_out()
    assert [one.reason for one in letters(bench)] == ["ZeroDivisionError: oops; this is a bug in tickvault"]
    ask(bench)
    asked, failures = bench.state.asked, iter([True, False])

    def broken(*args: Any) -> list[Letter]:
        if next(failures, False):
            raise sqlite3.OperationalError("disk I/O error")
        return asked(*args)

    monkeypatch.setattr(bench.state, "asked", broken)
    monkeypatch.setattr("tickvault.redrive._LONGEST_S", 0.01)
    keeper = asyncio.create_task(redrive(bench, sink).keep(Random(1)))
    await until(lambda: not letters(bench))
    keeper.cancel()


async def test_a_sink_that_takes_no_single_rows_says_what_to_do(bench: Bench) -> None:
    with pytest.raises(Refused, match="tickvault rewind --sink memory"):
        redrive(bench, MemorySink())


async def test_what_is_delivered_again_takes_the_place_of_its_letters(bench: Bench) -> None:
    """After a rewind: refused no more, or refused in other words; letters before it are left."""
    bench.append(3)
    await bench.deliver(AgainSink([refusing(lambda *_: True, "old")] * 9, tables=("ticks",)))
    ask(bench)
    bench.state.ask_rewind("flaky", 1)
    await bench.deliver(AgainSink([refusing(lambda _, row: row["seq"] == 2, "new")], tables=("ticks",)))
    assert [(one.seq, one.reason) for one in letters(bench)] == [(1, "old"), (2, "new")]
    assert waiting(bench) == 1


async def test_a_running_recorder_comes_to_it_by_itself(bench: Bench) -> None:
    """Between two batches of its delivery, never beside one; a store that is away is waited for."""
    bench.append(2)
    await bench.deliver(AgainSink([refusing(lambda *_: True)], tables=("ticks",)))
    under_way, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_: Batch) -> None:
        under_way.set()
        await go_on.wait()

    bench.append(1)
    sink = AgainSink([slow, SinkUnavailable("down")], tables=("ticks",))
    delivery = bench.delivery(sink, patience=BRIEF)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(delivery.run())
        await under_way.wait()
        keeper = group.create_task(redrive(bench, sink, writing=delivery.writing).keep(Random(1)))
        ask(bench)
        await asyncio.sleep(0.05)
        assert len(sink.tried) == 1
        go_on.set()
        await until(lambda: not letters(bench))
        keeper.cancel()
    assert sink.seqs() == [3, 1, 2]


def test_letters_of_an_older_version_and_other_bytes_are_told_apart() -> None:
    """A row without its definition is a row; a frame's bytes are none."""
    row = {"time": "2026-09-01 03:45:00+00:00", "scope": "segment", "segment": "NSE_EQ", "status": "OPEN", "seq": 1}
    found, definitions = rows_of("market_status", json.dumps(row).encode())
    assert (found.num_rows, definitions) == (1, {})
    for table_name, body in [
        ("ticks", payload(1)),
        ("ticks", b"[1]"),
        ("ticks", b'{"definition":{"x":1}}'),
        ("frame", b""),
    ]:
        with pytest.raises((KeyError, ValueError)):
            rows_of(table_name, body)
