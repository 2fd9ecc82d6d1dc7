"""The Parquet protocol against crashes at every operation, rewinds, and state that is lost or older than the files.

The model knows only which frames the journal holds. Whatever happened: after reopening and delivering to the end, a
plain glob over the folder shows each of them once; and at every moment a query does, or refuses.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pytest
from doubles import FAST, Crash, Vault, frames_of
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tickvault import query
from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TABLES = ("ticks", "market_status")  # a row of each for every frame that decodes

Step = tuple[str, int, int | None]  # what, how much, crash before this operation of it


class Model:
    """A vault, and what must be true of it."""

    def __init__(self, path: Path) -> None:
        self.vault = Vault(path)
        self.copy = path.parent / "older-state.db"
        self.acknowledged = 0
        self.refusals = 0
        self.vault.open()

    def held(self) -> list[int]:
        """Return the seqs that have rows."""
        frames = frames_of(self.vault.folder)
        assert [frame.seq for frame in frames] == list(range(1, len(frames) + 1))
        assert len(frames) >= self.acknowledged
        return [frame.seq for frame in frames if decodes(frame.payload)]

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

    def step(self, step: Step) -> None:
        what, amount, crash_at = step
        vault = self.vault
        alive = True
        match what:
            case "append":
                alive = self.attempt(lambda: vault.append(amount), crash_at)
                if alive:
                    self.acknowledged = vault.journal.last_seq
            case "deliver":
                alive = self.attempt(lambda: vault.deliver(amount), crash_at)
            case "rewind":
                cursor = vault.state.cursor("parquet")
                assert cursor is not None
                alive = self.attempt(lambda: vault.rewind(cursor.seq * amount // 6), crash_at)
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
        cursor = vault.state.cursor("parquet")
        assert cursor is not None
        assert cursor.seq <= vault.journal.last_seq

    def replace_state(self, what: str) -> None:
        if what == "lose":
            self.vault.lose_state()
        elif what == "restore" and self.copy.exists():
            self.vault.restore_state(self.copy)

    def check_query(self) -> None:
        """Every frame that the journal holds once, or a refusal."""
        held = self.held()
        try:
            with query.connect(self.vault.path) as db:
                for table in TABLES:
                    assert [row[0] for row in db.execute(f"SELECT seq FROM {table} ORDER BY seq").fetchall()] == held
        except Refused:
            self.refusals += 1

    def check_end(self) -> None:
        """Deliver everything: a plain glob is exact, and a query is answered."""
        vault = self.vault
        vault.drop()
        vault.open()
        while vault.deliver(5):
            pass
        held = self.held()
        for table in TABLES:
            assert globbed(vault.path, table) == held
        refusals = self.refusals
        self.check_query()
        assert self.refusals == refusals
        vault.drop()


def globbed(path: Path, table: str) -> list[int]:
    if not list((path / "parquet").glob(f"{table}/*/*.parquet")):
        return []
    with duckdb.connect() as db:
        rows = db.execute(f"SELECT seq FROM '{path}/parquet/{table}/*/*.parquet' ORDER BY seq").fetchall()
    return [row[0] for row in rows]


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
]


def operations(number: int) -> int:
    """Return how many operations a step of the scene has."""
    with models() as model:
        for step in SCENE[:number]:
            model.step(step)
        before = model.vault.fuse.done
        model.step(SCENE[number])
        return model.vault.fuse.done - before


@pytest.mark.slow
@pytest.mark.parametrize("then", ["reopen", "lose", "restore"])
@pytest.mark.parametrize("number", [number for number, step in enumerate(SCENE) if step[0] != "copy"])
def test_a_crash_at_every_operation_of_a_scene_loses_and_repeats_nothing(number: int, then: str) -> None:
    """Each step cut before each of its operations, then the state kept, lost or restored; and the recovery cut too."""
    for crash_at in range(operations(number)):
        for again_at in (None, crash_at % 7, crash_at % 4):
            with models() as model:
                for step in SCENE[:number]:
                    model.step(step)
                what, amount, _ = SCENE[number]
                vault = model.vault
                cursor = vault.state.cursor("parquet")
                assert cursor is not None
                does: dict[str, Callable[[], object]] = {
                    "append": lambda: vault.append(amount),
                    "deliver": lambda: vault.deliver(amount),
                    "rewind": lambda: vault.rewind(cursor.seq * amount // 6),
                }
                assert not model.attempt(does[what], crash_at)
                model.check_query()
                model.replace_state(then)
                model.check_query()
                if not model.attempt(vault.open, again_at):
                    model.check_query()
                model.check_end()
