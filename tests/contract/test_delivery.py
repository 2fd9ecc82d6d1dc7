"""Delivery against sinks that fail in every way they may, and in those they may not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
from delivering import Bench, singly, until
from doubles import AT_MS, AT_NS, Vault, received
from structlog.testing import capture_logs

from tickvault import deadletters
from tickvault.batching import joined, to_batch
from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.collecting import Collector
from tickvault.errors import BatchRejected, BatchTooLarge, JournalFull, SinkMisconfigured, SinkUnavailable
from tickvault.journal import Fact, Received
from tickvault.ledger import Ledger
from tickvault.model import BatchPolicy, Definition
from tickvault.reading import JournalReader
from tickvault.segments import defs_body
from tickvault.simulator.frames import SEGMENTS, market_info
from tickvault.sinks.parquet import FileSystem, ParquetSink, ParquetStore, TableFile
from tickvault.survey import events
from tickvault.testing import FlakySink, MemorySink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa

    from tickvault.model import Batch


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


async def test_everything_is_delivered_in_order_and_the_end_is_seen(bench: Bench) -> None:
    """A drained journal is read to its end, the cursor stands there, and the webhook's event is written."""
    bench.append(20)
    sink = MemorySink(policy=singly())
    delivery = await bench.deliver(sink)
    assert sink.seqs() == list(range(1, 21))
    assert (bench.cursor(sink).seq, bench.cursor(sink).attempted_seq, delivery.frames) == (20, 20, 20)
    assert delivery.rows["ticks"] == 20
    assert bench.told() == ["data.stored"]
    [body] = bench.state._db.execute("SELECT body FROM outbox").fetchone()
    told = json.loads(body)
    assert (told["high_water_seq"], told["rows"], told["message"]) == (20, 60, "stored")
    assert (told["from"], told["to"]) == (AT_NS, AT_NS)


async def test_the_next_batch_is_collected_while_one_is_written(bench: Bench) -> None:
    """What a store takes its time for is not waited for twice; the cursor stays behind what was written."""
    bench.append(3)
    decoded: list[int] = []

    async def slow(_: Batch) -> None:
        await until(lambda: len(decoded) == 2)
        assert (bench.cursor(sink).seq, bench.cursor(sink).attempted_seq) == (0, 1)

    sink = FlakySink([slow], policy=singly())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tickvault.collecting.to_batch", lambda *a, **k: decoded.append(1) or to_batch(*a, **k))
        await bench.deliver(sink)
    assert sink.seqs() == [1, 2, 3]


async def test_the_next_batch_is_made_ready_while_one_is_written(bench: Bench) -> None:
    bench.append(3)
    prepared: list[Batch] = []

    async def slow(_: Batch) -> None:
        await until(lambda: len(prepared) == 2)

    class Preparing(FlakySink):
        async def prepare(self, batch: Batch) -> None:
            prepared.append(batch)

    sink = Preparing([slow], policy=singly())
    await bench.deliver(sink)
    assert sink.seqs() == [batch.lo for batch in prepared] == [1, 2, 3]


async def test_a_store_that_is_away_gets_everything_in_order_when_it_is_back(bench: Bench) -> None:
    """The same batch again until it is taken; nothing overtakes it."""
    bench.append(6)
    sink = FlakySink([SinkUnavailable("down")] * 5, policy=singly())
    await bench.deliver(sink)
    assert sink.seqs() == [1, 2, 3, 4, 5, 6]
    assert [lo for lo, _, _ in sink.tried] == [1] * 6 + [2, 3, 4, 5, 6]
    assert bench.told() == ["data.stored", "sink.recovered"]
    assert bench.cursor(sink).state == "running"


async def test_the_pause_that_a_store_asks_for_is_kept(bench: Bench) -> None:
    """Retry-After goes before our own back-off when it is longer."""
    bench.append(1)
    tried: list[float] = []

    async def note(_: Batch) -> None:
        tried.append(asyncio.get_running_loop().time())
        if len(tried) == 1:
            raise SinkUnavailable("busy", retry_after_s=0.2)

    await bench.deliver(FlakySink([note, note]))
    assert 0.2 <= tried[1] - tried[0] < 5


async def test_a_store_that_refuses_us_is_alarmed_about_and_tried_again(bench: Bench) -> None:
    """Misconfigured is a condition that is shown, not an end."""
    bench.append(2)
    seen: list[str] = []

    async def look(_: Batch) -> None:
        seen.append(bench.cursor(sink).state)

    sink = FlakySink([SinkMisconfigured("401"), SinkMisconfigured("401"), look])
    await bench.deliver(sink)
    assert seen == ["misconfigured"]
    assert sink.seqs() == [1, 2]


async def test_a_batch_too_large_is_halved_until_it_fits(bench: Bench) -> None:
    """Every row once, in order."""
    bench.append(4, keys=("A", "B", "C"))

    async def at_most_two(batch: Batch) -> None:
        if batch.rows > 2:
            raise BatchTooLarge(f"{batch.rows} rows")

    sink = FlakySink([at_most_two] * 100, tables=("ticks",))
    await bench.deliver(sink)
    assert sink.seqs() == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert bench.dead() == []


async def test_a_row_that_fits_nowhere_is_a_dead_letter(bench: Bench) -> None:
    """One row cannot be halved."""
    bench.append(3)

    async def never_two(batch: Batch) -> None:
        if 2 in batch.tables["ticks"]["seq"].to_pylist():
            raise BatchTooLarge("too large")

    sink = FlakySink([never_two] * 100, tables=("ticks",))
    await bench.deliver(sink)
    assert sink.seqs() == [1, 3]
    [(seq, table, key, reason, body)] = bench.dead()
    assert (seq, table, key, reason) == (2, "ticks", "NSE_EQ|A", "too large")
    assert json.loads(body)["ltp"] == 2.0


async def test_a_refusal_without_a_name_is_bisected_to_the_row(bench: Bench) -> None:
    """The one row is a dead letter with the store's words; all others are stored, in order."""
    bench.append(15)

    async def poison(batch: Batch) -> None:
        if 7 in batch.tables["ticks"]["seq"].to_pylist():
            raise BatchRejected("cannot parse")

    sink = FlakySink([poison] * 100, tables=("ticks",))
    await bench.deliver(sink)
    assert sink.seqs() == [seq for seq in range(1, 16) if seq != 7]
    assert [(row[0], row[3]) for row in bench.dead()] == [(7, "cannot parse")]
    assert bench.cursor(sink).seq == 15


async def test_named_rows_are_dead_letters_and_the_rest_counts_as_stored(bench: Bench) -> None:
    """A store that names its rows is believed; nothing is sent twice."""
    bench.append(20)
    sink = FlakySink(
        [BatchRejected("partial write", rejected={3: "field type conflict", 19: "beyond retention"})], tables=("ticks",)
    )
    await bench.deliver(sink)
    assert len(sink.tried) == 1
    assert [(row[0], row[3]) for row in bench.dead()] == [(4, "field type conflict"), (20, "beyond retention")]
    [body] = bench.state._db.execute("SELECT body FROM outbox").fetchone()
    assert json.loads(body)["rows"] == 18


async def test_rows_that_a_store_drops_for_their_age_are_delivered_and_told_of(bench: Bench) -> None:
    """Once each time it begins; nothing is refused, and nothing waits."""
    bench.append(6)
    sink = FlakySink(policy=singly(), tables=("ticks",))

    async def drop(_: Batch) -> None:
        sink.beyond_retention = getattr(sink, "beyond_retention", 0) + 2  # type: ignore[attr-defined]

    sink._script.extend([drop, drop, None, drop])
    with capture_logs() as logs:
        await bench.deliver(sink)
    assert [(one["rows"], one["seq"]) for one in logs if one["event"] == "sink.beyond_retention"] == [(2, 1), (2, 4)]
    assert (bench.cursor(sink).seq, bench.dead()) == (6, [])


async def test_more_than_one_percent_refused_parks(bench: Bench) -> None:
    """A wrong mapping does not empty a day into dead letters: none of that batch's are kept, the data waits."""
    bench.append(600)
    few = FlakySink([BatchRejected("bad", rejected=dict.fromkeys(range(100), "bad"))], name="few", tables=("ticks",))
    await bench.deliver(few)
    assert (bench.cursor(few).seq, len(bench.dead())) == (600, 100)
    many = FlakySink([BatchRejected("bad", rejected=dict.fromkeys(range(101), "bad"))], name="many", tables=("ticks",))
    await bench.deliver(many)
    assert (bench.cursor(many).state, bench.cursor(many).seq, len(bench.dead())) == ("parked", 0, 100)
    assert "101 of 600 rows refused: bad" in bench.cursor(many).detail
    assert "sink.parked" in bench.told()


async def test_a_batch_refused_as_a_whole_parks(bench: Bench) -> None:
    """Every row of ten is no accident; of nine it may be."""
    bench.append(9)
    sink = FlakySink([BatchRejected("no")] * 1000, tables=("ticks",))
    await bench.deliver(sink)
    assert (bench.cursor(sink).seq, len(bench.dead())) == (9, 9)
    bench.append(10)
    await bench.deliver(sink)
    assert (bench.cursor(sink).state, bench.cursor(sink).seq) == ("parked", 9)


async def test_statuses_refused_as_a_whole_are_dead_letters(bench: Bench) -> None:
    """A frame has more than ten of them: one conflict there is not to keep the ticks of a day from the store."""
    bench.journal.append([received(1, market_info(1, dict.fromkeys(SEGMENTS, "NORMAL_OPEN")).SerializeToString())])
    sink = FlakySink([BatchRejected("conflict")] * 1000, policy=singly())
    await bench.deliver(sink)
    assert (bench.cursor(sink).state, bench.cursor(sink).seq) == ("running", 1)
    assert len(bench.dead()) == len(SEGMENTS) > 10


async def test_frames_that_mostly_do_not_decode_park(bench: Bench) -> None:
    """The journal keeps them for a decoder that can: they do not become letters for ever, each with all its bytes."""

    def garbage(first: int, count: int) -> list[Received]:
        return [received(n, b"\xff broken") for n in range(first, first + count)]

    bench.journal.append(garbage(1, 100))
    bench.append(100)
    sink = FlakySink(tables=("ticks",), policy=singly(max_rows=10, max_bytes=10_000))
    await bench.deliver(sink)
    assert (bench.cursor(sink).state, bench.cursor(sink).seq, len(bench.dead())) == ("running", 200, 100)
    sink = FlakySink(tables=("ticks",))
    bench.journal.append(garbage(201, 101))
    await bench.deliver(sink)
    assert (bench.cursor(sink).state, bench.cursor(sink).seq, len(bench.dead())) == ("parked", 200, 100)
    assert "101 of 101 frames do not decode" in bench.cursor(sink).detail
    assert "upgrade tickvault" in bench.cursor(sink).detail
    bench.append(200)
    await bench.deliver(sink)
    assert bench.cursor(sink).state == "running", "among others they are bad frames"
    assert (bench.cursor(sink).seq, len(bench.dead()), len(sink.seqs())) == (501, 201, 200)


async def test_a_bug_parks_one_sink_and_the_others_go_on(bench: Bench) -> None:
    """Anything unforeseen is a bug of that sink; where it happened is told."""
    bench.append(3)
    broken = FlakySink([ZeroDivisionError("oops")], name="broken")
    whole = MemorySink(name="whole")
    first, second = bench.delivery(broken), bench.delivery(whole)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(first.run())
        group.create_task(second.run())
    assert bench.cursor(broken).state == "parked"
    assert "ZeroDivisionError: oops (write, testing.py:" in bench.cursor(broken).detail
    assert whole.seqs() == [1, 2, 3]
    again = FlakySink(name="broken")
    await bench.deliver(again)
    assert (again.seqs(), bench.cursor(again).state) == ([1, 2, 3], "running")


async def test_a_parked_sink_goes_on_when_it_is_resumed(bench: Bench) -> None:
    """While the recorder runs, behind its cursor; the end of it is told, after a restart too."""
    bench.append(3)
    sink = FlakySink([None, ZeroDivisionError("oops")], policy=singly())
    delivery = bench.delivery(sink, ended=False)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(delivery.run())
        await until(lambda: delivery.parked)
        await until(lambda: bench.cursor(sink).state == "parked")
        assert await asyncio.to_thread(deadletters.resume, bench.path / "state.db", "flaky")
        await until(lambda: len(sink.seqs()) == 3 and bench.cursor(sink).seq == 3)
        assert not delivery.parked
        await bench.progress.end()
    assert sink.seqs() == [1, 2, 3]
    assert not deadletters.resume(bench.path / "state.db", "flaky")
    assert bench.told().count("sink.parked") == bench.told().count("sink.recovered") == 1
    bench.append(1)
    await bench.deliver(FlakySink([ZeroDivisionError("oops")]))
    await bench.deliver(FlakySink())
    assert bench.told().count("sink.parked") == bench.told().count("sink.recovered") == 2


async def test_a_sink_that_cannot_even_be_marked_as_parked_ends_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What parks it may be the state itself; intake must not be ended by it, and the run's end tells of it."""
    bench.append(1)

    def broken(*_: Any, **__: Any) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(bench.state, "set_condition", broken)
    delivery = await bench.deliver(FlakySink([ZeroDivisionError("oops")]))
    assert delivery.parked


async def test_damage_in_the_journal_parks_and_serves_nothing_bad(bench: Bench) -> None:
    """A frame that fails its checksum is not delivered."""
    bench.append(3)
    db = bench.journal._db
    assert db is not None
    db.execute("UPDATE frames SET conn = 9 WHERE seq = 2")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the log has a whole copy, and that would be found
    first, second = MemorySink(name="first"), MemorySink(name="second")
    deliveries = [bench.delivery(first), bench.delivery(second)]
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        for delivery in deliveries:
            group.create_task(delivery.run())
    assert (first.seqs(), second.seqs()) == ([1, 3], [1, 3])
    [gap] = [gap for gap in bench.state.gaps() if gap.reason == "lost"]
    assert (gap.subject, gap.closed_ns) == ("frames 2-2", AT_NS + 3_000_000)
    assert len(list((bench.folder / "damaged").iterdir())) == 1
    bench.append(1)
    await bench.deliver(first)
    assert first.seqs() == [1, 3, 4]


async def test_frames_that_are_missing_without_a_file_to_blame_park(bench: Bench) -> None:
    """Until the next start, which writes down what is gone."""
    bench.journal.max_segment_frames = 1
    for _ in range(3):
        bench.append(1)
    (bench.folder / f"{2:016}.db").unlink()
    sink = MemorySink()
    await bench.deliver(sink)
    assert (sink.seqs(), bench.cursor(sink).state) == ([], "parked")
    bench.close()
    bench.open()
    await bench.deliver(sink)
    assert (sink.seqs(), bench.cursor(sink).state) == ([1, 3], "running")


async def test_frames_without_rows_move_the_cursor_and_are_not_sent(bench: Bench) -> None:
    """Empty and undecodable frames: nothing to store, a dead letter, and on."""
    bench.journal.append([Received(AT_NS, 1, b""), Received(AT_NS, 1, b"\xff"), Received(AT_NS, 1, b"")])
    sink = FlakySink([BatchRejected("empty")] * 9)
    await bench.deliver(sink)
    assert (sink.tried, bench.cursor(sink).seq) == ([], 3)
    assert [row[:2] for row in bench.dead()] == [(2, "frame")]
    assert bench.told() == []


async def test_a_sink_gets_only_the_tables_it_stores(bench: Bench) -> None:
    """The others are empty; definitions in force come with every batch, and a change begins a new one."""
    one, two = (Definition(instrument_key="NSE_EQ|A", symbol=symbol) for symbol in ("ONE", "TWO"))
    bench.journal.append([Fact("defs", defs_body([one])), received(1), received(2)])
    bench.journal.append([Fact("defs", defs_body([two])), received(3)])
    sink = MemorySink(tables=("ticks", "instruments"))
    await bench.deliver(sink)
    assert [(b.lo, b.hi, b.definitions["NSE_EQ|A"].symbol) for b in sink.batches] == [(1, 2, "ONE"), (3, 3, "TWO")]
    assert sink.table("ticks")["symbol"].to_pylist() == ["ONE", "ONE", "TWO"]
    assert sink.table("instruments")["valid_from_seq"].to_pylist() == [1, 3]
    assert all(not batch.tables["market_status"].num_rows for batch in sink.batches)


async def test_a_running_journal_is_followed(bench: Bench) -> None:
    """What is published is delivered without waiting for anything else; then the end."""
    sink = MemorySink(policy=singly())
    delivery = bench.delivery(sink, ended=False)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(delivery.run())
        for count in range(1, 6):
            await asyncio.to_thread(bench.append, 1)
            await bench.progress.publish(bench.journal.last_seq)
            await until(lambda count=count: len(sink.seqs()) == count)
        await bench.progress.end()
    assert sink.seqs() == [1, 2, 3, 4, 5]


async def test_a_batch_is_read_once_however_many_frames_it_came_in(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for its batch waits in the journal: one read for fifty commits, the end and nothing else closes it."""
    reads: list[int] = []
    read = JournalReader.read

    def counted(reader: JournalReader, **bounds: int) -> Any:
        chunk = read(reader, **bounds)
        reads.append(0 if chunk is None else len(chunk.frames))
        return chunk

    monkeypatch.setattr(JournalReader, "read", counted)
    sink = MemorySink(policy=BatchPolicy(max_rows=1000, max_bytes=1_000_000, max_wait_s=60.0))
    delivery = bench.delivery(sink, ended=False)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(delivery.run())
        for _ in range(50):
            await asyncio.to_thread(bench.append, 1)
            await bench.progress.publish(bench.journal.last_seq)
        await bench.progress.end()
    assert [batch.hi - batch.lo + 1 for batch in sink.batches] == [50]
    assert [count for count in reads if count] == [50]


async def test_a_batch_is_put_together_beside_the_loop(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a minute at 5,000 updates a second it takes 15 ms, and frames come meanwhile."""
    threads: list[int] = []

    def noted(parts: Any) -> Batch:
        threads.append(threading.get_ident())
        return joined(parts)

    monkeypatch.setattr("tickvault.collecting.joined", noted)
    bench.append(3)
    sink = MemorySink()
    await bench.deliver(sink)
    assert sink.seqs() == [1, 2, 3]
    assert threads
    assert threading.get_ident() not in threads


async def test_what_new_definitions_cut_off_does_not_wait_anew(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The frames behind a change of definitions have waited with those before it, and follow at once."""
    dues = iter([0.0])  # one batch is due at once; another wait would never end

    monkeypatch.setattr(Collector, "_due_s", lambda _: next(dues, math.inf))
    bench.append(1)
    bench.journal.append([Fact("defs", defs_body([Definition(instrument_key="NSE_EQ|A", symbol="ONE")])), received(2)])
    bench.append(1)
    sink = MemorySink(policy=BatchPolicy(max_rows=1000, max_bytes=1_000_000, max_wait_s=60.0))
    delivery = bench.delivery(sink, ended=False)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(delivery.run())
        await until(lambda: len(sink.seqs()) == 3)
        await bench.progress.end()
    assert [(batch.lo, batch.hi) for batch in sink.batches] == [(1, 1), (2, 3)]


async def test_a_backlog_is_read_without_waiting_for_anything(bench: Bench) -> None:
    """What is there already fills batch after batch, far from the time a batch may wait."""
    bench.append(50)
    sink = MemorySink(policy=BatchPolicy(max_rows=1000, max_bytes=700, max_wait_s=3600.0))
    delivery = bench.delivery(sink, ended=False)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(delivery.run())
        await bench.progress.publish(bench.journal.last_seq + 2000)  # as if more than a read were waiting
        await until(lambda: len(sink.seqs()) > 40)  # all but the last batch, which may still grow
        await bench.progress.end()
    assert sink.seqs() == list(range(1, 51))
    assert len(sink.batches) > 5


async def test_the_rows_of_a_backlogs_batches_keep_to_the_bound(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many rows frames give is seen at the first ones; whole reads made batches three times as large as asked for."""
    monkeypatch.setattr("tickvault.collecting._LEAST_READ_BYTES", 1_000)
    bench.append(2000)
    sink = MemorySink(policy=BatchPolicy(max_rows=100, max_bytes=10**9, max_wait_s=3600.0))
    await bench.deliver(sink)
    assert sink.seqs() == list(range(1, 2001))
    first, *others, _ = (batch.rows for batch in sink.batches)
    assert first < 200
    assert all(100 <= rows <= 112 for rows in others), others
    assert others


async def test_a_journal_that_ends_with_a_lost_range_has_an_end(bench: Bench) -> None:
    """Numbers that were never filled keep nobody from being done."""
    bench.append(2)
    bench.state.put_cursor("other", 2)
    bench.state.attempt("other", 50)
    bench.close()
    bench.open()
    sink = MemorySink()
    await bench.deliver(sink)
    assert sink.seqs() == [1, 2]
    bench.append(1)
    await bench.deliver(sink)
    assert sink.seqs() == [1, 2, 51]


async def test_a_store_that_settles_late_is_sent_the_last_part_again(bench: Bench) -> None:
    """After an outage it goes back to what the store is sure to have kept; the move is journalled first."""
    bench.append(3)
    sink = FlakySink([None, None, ConnectionlessOutage()], policy=singly(), settle_s=math.inf)
    await bench.deliver(sink)
    assert sink.seqs() == [1, 2, 3, 1, 2, 3]
    [moved] = events(bench.folder, ("cursor_moved",))
    assert moved.body == {"sink": "flaky", "to": 0, "generation": 1}
    assert (bench.cursor(sink).seq, bench.cursor(sink).generation, bench.cursor(sink).settled_seq) == (3, 1, 0)


class ConnectionlessOutage(SinkUnavailable):
    """A refused connection."""

    def __init__(self) -> None:
        super().__init__("connection refused")


async def test_what_had_not_settled_is_sent_again_at_the_next_start(bench: Bench) -> None:
    """Nobody watched the store meanwhile, so what it may have lost comes again; the move is journalled first."""
    bench.append(3)
    await bench.deliver(FlakySink(policy=singly(), settle_s=math.inf))
    sink = FlakySink(policy=singly())
    await bench.deliver(sink)
    assert sink.seqs() == [1, 2, 3]
    [moved] = events(bench.folder, ("cursor_moved",))
    assert moved.body == {"sink": "flaky", "to": 0, "generation": 1}
    await bench.deliver(sink)
    assert sink.seqs() == [1, 2, 3]


async def test_a_full_disk_under_the_state_is_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """No sink is parked for it, and nothing ends."""
    bench.append(2)
    sink = MemorySink()
    delivery = bench.delivery(sink)
    advance, refusals = bench.state.advance, iter([True, True])

    def full(*args: Any, **kwargs: Any) -> bool:
        if next(refusals, False):
            raise JournalFull("no room")
        return advance(*args, **kwargs)

    monkeypatch.setattr(bench.state, "advance", full)
    async with asyncio.timeout(10):
        await delivery.run()
    assert (bench.cursor(sink).seq, bench.cursor(sink).state) == (2, "running")


@pytest.mark.parametrize("after", range(0, 60, 3))
async def test_a_delivery_cancelled_anywhere_is_completed_by_the_next(bench: Bench, after: int) -> None:
    """What the next one delivers begins behind the cursor; at most the batch under way comes twice."""
    bench.append(8)
    sink = FlakySink([None, SinkUnavailable("down"), BatchTooLarge("large")] * 9, policy=singly())
    task = asyncio.create_task(bench.delivery(sink).run())
    for _ in range(after):
        await asyncio.sleep(0)
        await asyncio.to_thread(lambda: None)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    # What a thread had begun, it ends: the state is asked by one call at a time.
    await asyncio.to_thread(bench.state.cursors)
    before = bench.cursor(sink)
    assert before.seq <= before.attempted_seq <= 8
    sink = FlakySink(policy=singly())
    await bench.deliver(sink)
    assert bench.cursor(sink).seq == 8
    assert sink.seqs()[-1:] in ([8], [])
    assert sink.seqs() in [list(range(begin, 9)) for begin in (before.seq + 1, before.seq + 2)]


async def test_a_cursor_that_somebody_moved_is_read_again(bench: Bench) -> None:
    """An advance of an older generation changes nothing; delivery goes on where the cursor stands now."""
    bench.append(4)

    async def moved(_: Batch) -> None:
        bench.state.move_back("flaky", 1, generation=5, drop_from=None)

    sink = FlakySink([None, None, moved], policy=singly())
    await bench.deliver(sink)
    assert sink.seqs() == [1, 2, 3, 2, 3, 4]


async def test_the_last_version_of_a_candle_is_written_once_a_batch(bench: Bench) -> None:
    """Frames of one batch that repeat a candle give one row, that of the highest seq."""
    frames = []
    for number in range(1, 4):
        message = pb.FeedResponse(currentTs=AT_MS)
        message.feeds["A"].fullFeed.marketFF.marketOHLC.ohlc.add(interval="I1", ts=AT_MS, open=float(number))
        frames.append(received(number, message.SerializeToString()))
    bench.journal.append(frames)
    sink = MemorySink()
    await bench.deliver(sink)
    assert [(row["open"], row["seq"]) for row in sink.table("candles").to_pylist()] == [(3.0, 3)]


async def test_a_parquet_write_that_was_cancelled_has_ended_when_the_sink_is_closed(tmp_path: Path) -> None:
    """Its thread cannot be stopped: it must not name files in a folder that somebody else has by then."""
    vault = Vault(tmp_path / "data")
    vault.open()
    vault.append(3)
    renaming, go_on = threading.Event(), threading.Event()

    class Slow(FileSystem):
        def rename(self, source: Path, target: Path) -> None:
            renaming.set()
            assert go_on.wait(10)
            super().rename(source, target)

    store = ParquetStore(vault.store.root, vault.store.recorder_id, disk=Slow())
    sink = ParquetSink(store)
    reader = JournalReader(vault.folder, 0)
    chunk = reader.read(max_frames=9, max_bytes=10**6)
    reader.close()
    assert chunk is not None
    task = asyncio.create_task(sink.write(to_batch(chunk, recorder_id=store.recorder_id, ledger=Ledger())))
    await asyncio.to_thread(renaming.wait, 10)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    closing = asyncio.create_task(sink.aclose())
    await asyncio.sleep(0.05)
    assert not closing.done()
    go_on.set()
    async with asyncio.timeout(10):
        await closing
    assert len({file.table for file in store.files()}) == 3
    assert not list(store.root.rglob("*.tmp"))
    vault.drop()


async def test_a_parquet_disk_that_refuses_is_tried_again(bench: Bench) -> None:
    """What was half written is written over; in the end every row is there once."""
    bench.append(4)
    refusals = iter([True, False, True])

    class Refusing(FileSystem):
        def rename(self, source: Path, target: Path) -> None:
            if next(refusals, False):
                raise OSError(28, "No space left on device")
            super().rename(source, target)

    store = ParquetStore(bench.path / "parquet", bench.journal.recorder_id, disk=Refusing())
    sink = ParquetSink(store)
    await bench.deliver(sink)  # type: ignore[arg-type]
    assert bench.cursor(sink).seq == 4  # type: ignore[arg-type]
    ticks = [
        pq.ParquetFile(file.path).read(["seq"])["seq"].to_pylist() for file in store.files() if file.table == "ticks"
    ]
    assert ticks == [[1, 2, 3, 4]]


def in_parts(store: ParquetStore) -> ParquetSink:
    """Return a sink that is given three rows at a time, and makes one batch of them all."""
    sink = ParquetSink(store)
    sink.policy = BatchPolicy(max_rows=10_000, max_bytes=10**6, max_wait_s=0.01, part_rows=3)  # type: ignore[misc]
    return sink


def rows_of(store: ParquetStore, table: str) -> list[dict[str, Any]]:
    """Return the rows of a table's files; one file, of several row groups."""
    [file] = [file for file in store.files() if file.table == table]
    assert (file.lo, file.hi) == (1, 12)
    return list(pq.ParquetFile(file.path).read().to_pylist())


def feed_of_candles(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Journal twelve frames with a tick, and a version of one candle each; they are read two at a time."""
    monkeypatch.setattr("tickvault.collecting._READ_FRAMES", 2)
    frames = []
    for number in range(1, 13):
        message = pb.FeedResponse(currentTs=AT_MS)
        full = message.feeds["A"].fullFeed.marketFF
        full.ltpc.ltp = float(number)
        full.marketOHLC.ohlc.add(interval="I1", ts=AT_MS, open=float(number))
        frames.append(received(number, message.SerializeToString()))
    bench.journal.append(frames)


async def test_a_batch_that_is_stored_in_parts_is_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file a table whatever the parts, each candle in its last version, and what is told is what is stored."""
    feed_of_candles(bench, monkeypatch)
    store = ParquetStore(bench.path / "parquet", bench.journal.recorder_id)
    delivery = await bench.deliver(in_parts(store))
    ticks, [candle] = rows_of(store, "ticks"), rows_of(store, "candles")
    assert [row["seq"] for row in ticks] == list(range(1, 13))
    assert (candle["open"], candle["seq"]) == (12.0, 12)
    [ticks_file] = [file.path for file in store.files() if file.table == "ticks"]
    assert pq.read_metadata(ticks_file).num_row_groups == 3
    assert {name: rows for name, rows in delivery.rows.items() if rows} == {"ticks": 12, "candles": 1}
    [body] = bench.state._db.execute("SELECT body FROM outbox").fetchone()
    assert json.loads(body)["rows"] == 13


@pytest.mark.parametrize("failing", range(12))
async def test_a_disk_that_fails_anywhere_in_a_batch_of_parts_costs_and_doubles_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """What was half written and half named goes, and the batch comes anew, longer meanwhile."""
    feed_of_candles(bench, monkeypatch)
    left = failing

    class Failing(FileSystem):
        def do(self) -> None:
            nonlocal left
            left -= 1
            if left == -1:
                raise OSError(28, "No space left on device")

        def write(self, file: TableFile, rows: pa.Table) -> None:
            self.do()
            super().write(file, rows)

        def finish(self, file: TableFile) -> None:
            self.do()
            super().finish(file)

        def rename(self, source: Path, target: Path) -> None:
            self.do()
            super().rename(source, target)

        def sync_folder(self, path: Path) -> None:
            self.do()
            super().sync_folder(path)

    store = ParquetStore(bench.path / "parquet", bench.journal.recorder_id, disk=Failing())
    await bench.deliver(in_parts(store))
    assert left < -1
    assert [row["seq"] for row in rows_of(store, "ticks")] == list(range(1, 13))
    assert [row["seq"] for row in rows_of(store, "candles")] == [12]
    assert not list(store.root.rglob("*.tmp"))
    assert bench.told() == ["data.stored", "sink.recovered"]
