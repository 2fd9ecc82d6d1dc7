"""What the benchmarks are made of keeps up with what they measure."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS, Run, lines
from benchmarks.backlog import Backlog
from benchmarks.frames import frames
from benchmarks.rows import Row, ratio, there_and_back
from tickvault.testing import MemorySink


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_says_what_it_measures(name: str) -> None:
    """Each has a title, a text for the results, and rows."""
    module = importlib.import_module(f"benchmarks.{name}")
    assert module.TITLE
    assert module.__doc__
    assert module.__doc__.count("\n\n") == 1
    assert callable(module.rows)


async def test_a_backlog_is_delivered_by_the_recorders_own_loop(tmp_path: Path) -> None:
    """Every update of the frames arrives, once, also when frames are added behind."""
    of, sink = frames(20, updates=200), MemorySink()
    backlog = Backlog(tmp_path / "data")
    backlog.append(of.frames)
    await backlog.deliver(sink)
    backlog.append(of.frames)
    await backlog.deliver(sink)
    backlog.close()
    assert sink.table("ticks").num_rows == 2 * of.updates
    assert len(set(sink.seqs())) == 2 * len(of.frames)


def test_what_drifts_falls_on_all_alike() -> None:
    """A machine that becomes slower with every piece of work makes none of them look better."""
    clock = iter(range(1, 100))
    spent = there_and_back({"a": lambda: next(clock), "b": lambda: next(clock)}, rounds=3)
    assert spent == {"a": [2.5, 6.5, 10.5], "b": [2.5, 6.5, 10.5]}
    assert ratio(spent["a"], spent["b"]) == 1.0


def test_a_row_passes_by_its_side_of_the_target() -> None:
    """A rate has to reach its target, a latency to stay below; without a target nothing is judged."""
    assert Row("rate", "", "", 0.9, 0.8).passes
    assert not Row("latency", "", "", 0.9, 0.8, at_most=True).passes
    assert Row("size", "", "", 0.9).passes is None


def test_of_several_runs_the_one_in_the_middle_is_shown_and_all_have_to_pass() -> None:
    runs = [
        Run([Row("rate", f"{ratio}/s", "", ratio, 0.8), Row("size", "", "", 1)], 1.0, 2.0) for ratio in (0.9, 0.7, 0.85)
    ]
    assert [*lines(runs)] == [
        ["rate", "0.85/s", "", "0.85", "≥ 0.8", "**no**", "1.0", "2", "0.9, 0.7, 0.85"],
        ["size", "", "", "1", "", "", "", "", "1, 1, 1"],
    ]
    assert next(lines(runs[:1]))[4:] == ["≥ 0.8", "yes", "1.0", "2", ""]
