"""Journal and state as a machine against a plain list.

Append, reopen, crash, read, advance, rewind, lose the state, prune, damage and mend; store as Parquet, and compact.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import closing, suppress
from pathlib import Path

import pyarrow.parquet as pq
from doubles import AT_MS, AT_NS, DAY_MS, FAST, frames_of, payload
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tickvault import prune, segments, survey
from tickvault.batching import to_batch
from tickvault.compaction import Left, compact, plan, stored
from tickvault.errors import Refused
from tickvault.journal import Fact, Journal, Received
from tickvault.ledger import Ledger
from tickvault.model import Definition
from tickvault.reading import JournalReader
from tickvault.rewind import Cursors
from tickvault.segments import defs_body
from tickvault.sinks.parquet import ParquetStore
from tickvault.state import State

SINK = "influx"
items = st.one_of(
    st.binary(max_size=30).map(lambda body: ("frame", body)),
    st.sampled_from(["A", "B"]).flatmap(lambda key: st.integers(0, 9).map(lambda n: ("defs", (key, f"v{n}")))),
    st.just(("alive", None)),
    st.just(("row", None)),
)


class Machine(RuleBasedStateMachine):
    """The model: frames with the definitions in force at them, and a cursor."""

    @initialize(frames=st.integers(1, 6), size=st.sampled_from([60, 10**9]))
    def begin(self, frames: int, size: int) -> None:
        self.path = Path(tempfile.mkdtemp(dir=FAST))
        self.bounds = frames, size
        self.model: list[tuple[bytes, dict[str, str]]] = []
        self.in_force: dict[str, str] = {}
        self.cursor = 0
        self.number = 0
        self.first = 1  # of the oldest segment
        self.gone: set[int] = set()  # lost to damage
        self.with_rows: set[int] = set()
        self.stored: set[int] = set()  # seqs of the rows in files
        self.only_stored: set[int] = set()  # those that the journal has lost since
        self.open()

    def open(self) -> None:
        self.state, _ = State.open(self.path / "state.db")
        self.journal = Journal.open(self.path / "journal", self.state, wall_ns=lambda: AT_NS)
        self.journal.max_segment_frames, self.journal.max_segment_bytes = self.bounds
        self.store = ParquetStore(self.path / "parquet", self.journal.recorder_id)
        cursors = Cursors(self.journal, self.state, self.path / "journal")
        cursors.open(SINK, None)
        cursors.open("parquet", self.store)

    def close(self, *, cleanly: bool) -> None:
        if cleanly:
            self.journal.append([Fact("stop", {})])
            self.journal.close()
        elif self.journal._db is not None:
            self.journal._db.close()
        self.state.close()

    @rule(batch=st.lists(items, max_size=6))
    def append(self, batch: list[tuple[str, object]]) -> None:
        entries: list[Received | Fact] = []
        for kind, value in batch:
            if kind in {"frame", "row"}:
                self.number += 1
                if not isinstance(value, bytes):
                    value = payload(self.number, at_ms=AT_MS + (DAY_MS if self.number % 3 == 0 else 0))
                    self.with_rows.add(len(self.model) + 1)
                self.model.append((value, dict(self.in_force)))
                entries.append(Received(AT_NS + self.number, 1, value))
            elif kind == "defs":
                key, symbol = value  # type: ignore[misc]
                self.in_force[key] = symbol
                entries.append(Fact("defs", defs_body([Definition(instrument_key=key, symbol=symbol)])))
            else:
                entries.append(Fact("alive", {}))
        assert self.journal.append(entries).last_seq == len(self.model)

    @rule(cleanly=st.booleans())
    def reopen(self, cleanly: bool) -> None:
        self.close(cleanly=cleanly)
        self.open()
        assert self.journal.last_seq == len(self.model)
        starts = list(survey.events(self.path / "journal", ("start",)))
        assert starts[-1].body["clean"] == cleanly

    @rule()
    def lose_state(self) -> None:
        self.close(cleanly=False)
        for path in self.path.glob("state.db*"):
            path.unlink()
        self.open()
        self.cursor = self.first - 1

    @rule()
    def prune(self) -> None:
        """Everything delivered may go, but the newest segment; the ledger's facts stay."""
        before = [(one.after_seq, one.body) for one in survey.events(self.path / "journal", ("start", "cursor_moved"))]
        freed = prune.prune(self.path / "journal", self.state, [SINK, "parquet"], before_ns=None)
        self.first = freed.first_seq or self.first
        assert self.first <= self.cursor + 1
        after = [(one.after_seq, one.body) for one in survey.events(self.path / "journal", ("start", "cursor_moved"))]
        assert after == before

    @rule(part=st.integers(0, 9))
    def damage(self, part: int) -> None:
        """A frame of an older segment is damaged for good; who meets it has the segment mended, and the rest is there."""
        paths = segments.paths(self.path / "journal")[:-1]
        if not paths:
            return
        path = paths[part % len(paths)]
        with closing(segments.writer(path)) as db:
            found = db.execute("SELECT seq FROM frames ORDER BY seq LIMIT 1 OFFSET ?", (part // 4,)).fetchone()
            if found is None:
                return
            db.execute("UPDATE frames SET crc = crc + 1 WHERE seq = ?", found)
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.journal._mended.discard(path)
        self.journal.mend(path, "damaged")
        self.gone.add(found[0])
        self.only_stored |= self.stored & {found[0]}

    @rule(max_frames=st.integers(1, 5))
    def deliver(self, max_frames: int) -> None:
        reader = JournalReader(self.path / "journal", self.cursor)
        chunk = reader.read(max_frames=max_frames, max_bytes=10**9)
        reader.close()
        if chunk is None:
            assert all(seq in self.gone for seq in range(self.cursor + 1, len(self.model) + 1))
            return
        assert chunk.lo == self.cursor + 1
        for frame in chunk.frames:
            payload, in_force = self.model[frame.seq - 1]
            assert frame.payload == payload
            assert {key: one.symbol for key, one in chunk.definitions.items()} == in_force
        self.state.attempt(SINK, chunk.hi)
        found = self.state.cursor(SINK)
        assert found is not None
        assert self.state.advance(
            SINK, chunk.hi, generation=found.generation, head_seq=self.journal.last_seq, settled_seq=chunk.hi,
            dead_letters=(), notices=(), now_ns=0,
        )  # fmt: skip
        self.cursor = chunk.hi

    @rule(max_frames=st.integers(1, 5))
    def store_rows(self, max_frames: int) -> None:
        self.store_batch(max_frames)

    def store_batch(self, max_frames: int) -> bool:
        """Store the next frames as Parquet; whether there were any."""
        found = self.state.cursor("parquet")
        assert found is not None
        reader = JournalReader(self.path / "journal", found.seq)
        chunk = reader.read(max_frames=max_frames, max_bytes=10**9)
        reader.close()
        if chunk is None:
            return False
        batch = to_batch(chunk, recorder_id=self.journal.recorder_id, ledger=Ledger())
        self.state.attempt("parquet", batch.hi)
        self.store.commit(batch)
        assert self.state.advance(
            "parquet", batch.hi, generation=found.generation, head_seq=self.journal.last_seq, settled_seq=batch.hi,
            dead_letters=batch.rejected, notices=(), now_ns=0,
        )  # fmt: skip
        self.stored |= set(batch.tables["ticks"]["seq"].to_pylist())
        return True

    @rule(days=st.integers(1, 3))
    def compact(self, days: int) -> None:
        """Files of days that are over become one; no row comes or goes."""
        now_ns, before = AT_NS + days * DAY_MS * 1_000_000, f"2026-09-0{days + 1}"
        known = stored(self.path)
        assert known is not None
        # Days that are shuffled together join what they part of one another, so that it may take another time.
        for _ in range(1 + len(self.store.files())):
            assert not [one for one in compact(self.path, now_ns=now_ns, reserve_bytes=0) if isinstance(one, Left)]
            if not plan(self.store.files(), known, before=before):
                return
        raise AssertionError("there is no end to it")

    @rule(part=st.integers(0, 4))
    def rewind_files(self, part: int) -> None:
        """Refused where the journal no longer has what would have to be stored again."""
        found = self.state.cursor("parquet")
        assert found is not None
        with suppress(Refused):
            Cursors(self.journal, self.state, self.path / "journal").rewind(
                "parquet", found.seq * part // 4, self.store
            )

    @rule(part=st.integers(0, 4))
    def rewind(self, part: int) -> None:
        to_seq = max(self.first - 1, self.cursor * part // 4)
        Cursors(self.journal, self.state, self.path / "journal").rewind(SINK, to_seq, None)
        self.cursor = to_seq

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "journal"):
            return
        frames = frames_of(self.path / "journal", self.first - 1)
        held = [seq for seq in range(self.first, len(self.model) + 1) if seq not in self.gone]
        assert [frame.seq for frame in frames] == held
        assert [frame.payload for frame in frames] == [self.model[seq - 1][0] for seq in held]
        found = self.state.cursor(SINK)
        assert found is not None
        assert found.seq == self.cursor
        assert {key: one.symbol for key, one in self.journal.definitions.items()} == self.in_force
        self.files_hold()

    def files_hold(self) -> None:
        """Rows are in files once, up to the cursor; a cursor that went back took with it only what comes again."""
        found = self.state.cursor("parquet")
        assert found is not None
        self.stored = {seq for seq in self.stored if seq <= found.seq}
        files = [file.path for file in self.store.files() if file.table == "ticks"]
        rows = [seq for path in files for seq in pq.ParquetFile(path).read(["seq"])["seq"].to_pylist()]
        assert sorted(rows) == sorted(self.stored)
        assert self.only_stored <= self.stored

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            while self.store_batch(5):
                pass
            self.files_hold()
            assert self.with_rows - self.gone <= self.stored
            assert list(survey.verify(self.path / "journal", running=True)) == []
            self.close(cleanly=False)
            shutil.rmtree(self.path)


Machine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


class TestJournal(Machine.TestCase):  # type: ignore[name-defined,misc]
    """Every sequence of rules leaves journal, definitions and cursor as the list says."""
