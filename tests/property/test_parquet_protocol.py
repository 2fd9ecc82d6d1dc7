"""The Parquet protocol against crashes at every operation, rewinds, and state that is lost or older than the files.

The model knows only which frames the journal holds. Whatever happened: after reopening and delivering to the end, a
plain glob over the folder shows each of them once; and at every moment a query does, or refuses.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
from doubles import FAST, Crash, Vault, frames_of
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tickvault import query, segments
from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.compaction import Left
from tickvault.errors import JournalDamaged, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

TABLES = ("ticks", "market_status")  # a row of each for every frame that decodes

Step = tuple[str, int, int | None]  # what, how much, crash before this operation of it


class Model:
    """A vault, and what must be true of it."""

    def __init__(self, path: Path, *, acknowledged: int = 0, number: int = 0) -> None:
        self.vault = Vault(path, number=number)
        self.copy = path.parent / "older-state.db"
        self.acknowledged = acknowledged
        self.pruned: dict[int, bool] = {}  # seq → whether it has rows
        self.refusals = 0
        self.vault.open()

    def held(self) -> list[int]:
        """Return the seqs that have rows."""
        first = int(segments.paths(self.vault.folder)[0].stem)
        frames = frames_of(self.vault.folder, first - 1)
        assert [frame.seq for frame in frames] == list(range(first, first + len(frames)))
        assert first + len(frames) - 1 >= self.acknowledged
        found = {seq: rows for seq, rows in self.pruned.items() if seq < first} | {
            frame.seq: decodes(frame.payload) for frame in frames
        }
        assert list(found) == list(range(1, first + len(frames)))
        return [seq for seq, has_rows in found.items() if has_rows]

    def attempt(self, what: Callable[[], object], crash_at: int | None) -> bool:
        """Do something that may crash; when it does, the process is gone."""
        self.vault.fuse.left = crash_at
        try:
            what()
        except Crash:
            self.vault.drop()
            return False
        finally:
            self.vault.fuse.left = None
        return True

    def does(self, what: str, amount: int) -> None:
        match what:
            case "append":
                self.vault.append(amount)
                self.acknowledged = self.vault.journal.last_seq
            case "deliver":
                self.vault.deliver(amount)
            case "rewind":
                with contextlib.suppress(Refused):  # what is pruned, or one file with it, cannot come again
                    self.vault.rewind(self.vault.cursor.seq * amount // 6)
            case "compact":
                assert not [one for one in self.vault.compact(days=amount) if isinstance(one, Left)]
            case "prune":
                first = int(segments.paths(self.vault.folder)[0].stem)
                held = {frame.seq: decodes(frame.payload) for frame in frames_of(self.vault.folder, first - 1)}
                self.pruned |= {seq: has_rows for seq, has_rows in held.items() if seq <= self.vault.cursor.seq}
                self.vault.prune()

    def step(self, step: Step) -> None:
        what, amount, crash_at = step
        vault = self.vault
        alive = True
        match what:
            case "append" | "deliver" | "rewind" | "compact" | "prune":
                alive = self.attempt(lambda: self.does(what, amount), crash_at)
            case "copy":
                self.copy.write_bytes((vault.path / "state.db").read_bytes())
            case "reopen" | "lose" | "restore":
                vault.drop()
                self.replace_state(what)
                alive = self.attempt(vault.open, crash_at)
        self.check_query()
        while not alive:
            self.replace_state(what)
            alive = self.attempt(vault.open, None)
            self.check_query()
        assert vault.cursor.seq <= vault.journal.last_seq

    def replace_state(self, what: str) -> None:
        if what == "lose":
            self.vault.lose_state()
        elif what == "restore" and self.copy.exists():
            self.vault.restore_state(self.copy)

    def check_query(self) -> None:
        """Every frame that the journal holds once, or a refusal.

        What a query unites is taken without DuckDB, which would be nine tenths of the time; `check_end` takes it.
        """
        held = self.held()
        try:
            sources = query._sources(self.vault.path, self.vault.path / "parquet")
        except (query._Moved, JournalDamaged):
            self.refusals += 1
            return
        for table in TABLES:
            assert sorted(stored(map(Path, sources.files[table])) + sources.tail[table]["seq"].to_pylist()) == held

    def check_end(self) -> None:
        """Deliver everything: a plain glob is exact, and a query is answered."""
        vault = self.vault
        vault.drop()
        vault.open()
        vault.deliver_all(5)
        held = self.held()
        for table in TABLES:
            assert sorted(stored((vault.path / "parquet").glob(f"{table}/*/*.parquet"))) == held
        refusals = self.refusals
        self.check_query()
        assert self.refusals == refusals


def stored(files: Iterable[Path]) -> list[int]:
    return [seq for file in files for seq in pq.ParquetFile(file).read(["seq"])["seq"].to_pylist()]


def decodes(payload: bytes) -> bool:
    try:
        pb.FeedResponse.FromString(payload)
    except ValueError:
        return False
    except Exception as exc:
        if type(exc).__name__ == "DecodeError":
            return False
        raise
    return True


@contextlib.contextmanager
def models() -> Iterator[Model]:
    with tempfile.TemporaryDirectory(dir=FAST) as folder:
        model = Model(Path(folder) / "data")
        try:
            yield model
        finally:
            model.vault.drop()


crashes = st.one_of(st.none(), st.integers(0, 30))
steps = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 5), crashes),
    st.tuples(st.just("deliver"), st.integers(1, 6), crashes),
    st.tuples(st.just("deliver"), st.integers(1, 6), crashes),
    st.tuples(st.just("rewind"), st.integers(0, 6), crashes),
    st.tuples(st.just("compact"), st.integers(1, 3), crashes),
    st.tuples(st.just("compact"), st.integers(1, 3), crashes),
    st.tuples(st.just("prune"), st.just(0), crashes),
    st.tuples(st.just("copy"), st.just(0), st.none()),
    st.tuples(st.sampled_from(["reopen", "lose", "restore"]), st.just(0), crashes),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@example([("append", 6, None), ("deliver", 3, None), ("copy", 0, None), ("deliver", 3, None), ("rewind", 0, None)])
@given(st.lists(steps, min_size=3, max_size=12))
@pytest.mark.slow
def test_every_row_is_stored_once_whatever_happens(script: list[Step]) -> None:
    """Random appends, deliveries, rewinds, crashes and lost or older states end with every row once."""
    with models() as model:
        for step in script:
            model.step(step)
        model.check_end()


SCENE: list[Step] = [
    ("append", 6, None),
    ("deliver", 3, None),
    ("copy", 0, None),
    ("deliver", 3, None),
    ("rewind", 3, None),
    ("append", 2, None),
    ("deliver", 5, None),
    ("rewind", 0, None),
    ("deliver", 2, None),
    ("compact", 3, None),
    ("deliver", 3, None),
    ("deliver", 3, None),
    ("reopen", 0, None),
    ("copy", 0, None),
    ("compact", 3, None),
    ("rewind", 2, None),
]
CUT = (1, 4, 6, 7, 14, 15)  # of these each operation is cut


@contextlib.contextmanager
def scenes(number: int) -> Iterator[Callable[[], Model]]:
    """Yield a maker of models that stand before a step of the scene."""
    with tempfile.TemporaryDirectory(dir=FAST) as folder:
        first = Path(folder) / "first"
        first.mkdir()
        model = Model(first / "data")
        for step in SCENE[:number]:
            model.step(step)
        model.vault.drop()
        copies = count()

        def again() -> Model:
            path = Path(folder) / f"{next(copies)}"
            shutil.copytree(first, path)
            return Model(path / "data", acknowledged=model.acknowledged, number=model.vault.number)

        yield again


@pytest.mark.parametrize("then", ["reopen", "lose", "restore"])
@pytest.mark.parametrize("number", CUT)
def test_a_crash_at_every_operation_of_a_scene_loses_and_repeats_nothing(number: int, then: str) -> None:
    """A step cut before each of its operations, the state kept, lost or restored, and the recovery cut as well."""
    with scenes(number) as again:
        for crash_at in count():
            model = again()
            if model.attempt(lambda model=model: model.does(*SCENE[number][:2]), crash_at):
                assert crash_at > 3
                model.vault.drop()
                return
            model.check_query()
            model.replace_state(then)
            model.check_query()
            if not model.attempt(model.vault.open, crash_at % 11 if crash_at % 3 else None):
                model.check_query()
            model.check_end()
            model.vault.drop()
