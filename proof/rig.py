"""What the questions share: a table of answers, the small-bounded program, and a reader beside it."""

from __future__ import annotations

import csv
import importlib.util
import io
import random
import shutil
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import programs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import ModuleType

__all__ = ["HURRIED", "RETAIN", "Answer", "Reader", "folder", "properties", "recording", "seeded"]

RETAIN = {"TICKVAULT_RETAIN": "3s"}  # segments are pruned while it is run
HURRIED = (sys.executable, "-P", str(Path(__file__).with_name("hurried.py")))


@dataclass(slots=True, kw_only=True)
class Answer:
    """What came out.

    Attributes:
        ran: how much of it was run, in words.
        lost: frames or rows that should be there and are not.
        twice: those that are there more than once, or that should not be there.
        figures: what else was counted or measured: name → value.
        wrong: what was found amiss, in words; empty when nothing was.
    """

    ran: str = ""
    lost: int = 0
    twice: int = 0
    figures: dict[str, object] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether the promise was kept."""
        return not (self.lost or self.twice or self.wrong)


def seeded(seed: int | None) -> tuple[random.Random, int]:
    """Return a source of chance and its seed, a new one if none is given; the seed belongs into the answer."""
    seed = time.time_ns() % 1_000_000 if seed is None else seed
    return random.Random(seed), seed


def properties(name: str) -> ModuleType:
    """Return a module of tests/property, whose rounds are asked for here in other numbers."""
    path = Path(__file__).parents[1] / "tests" / "property" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def folder(name: str, place: Path | None = None) -> Iterator[Path]:
    """Give a folder of its own; it stays when the block fails, or leaves a file `wrong` in it."""
    path = Path(tempfile.mkdtemp(prefix=f"tickvault-{name}-", dir=place))
    yield path
    if not (path / "wrong").exists():
        shutil.rmtree(path)


@contextmanager
def recording(
    place: Path, environ: Mapping[str, str], *words: str, program: tuple[str, ...] = HURRIED
) -> Iterator[programs.Running]:
    """Run the recorder with small bounds."""
    process = programs.Running(["run", *words], environ, place, "recorder", program)
    try:
        yield process
    finally:
        if process.alive:
            process.kill()


class Reader:
    """Asks `tickvault query` again and again, beside the recorder and while it is down, and keeps what was amiss.

    Attributes:
        answers: how often it was answered; `refusals` how often it was told to ask again.
        twice: rows that it saw twice; `vanished` those that it had seen before.
        wrong: other complaints.
    """

    _ROWS = """
        SELECT (SELECT count(*) FROM ticks), (SELECT count(*) FROM (SELECT DISTINCT seq, instrument_key FROM ticks)),
               (SELECT count(*) FROM market_status), (SELECT count(*) FROM (SELECT DISTINCT * FROM market_status)),
               (SELECT count(DISTINCT seq) FROM (SELECT seq FROM ticks UNION ALL SELECT seq FROM market_status)),
               (SELECT coalesce(max(seq), 0) FROM (SELECT seq FROM ticks UNION ALL SELECT seq FROM market_status))
    """

    def __init__(self, place: Path, data: Path) -> None:
        self.answers = self.refusals = self.twice = self.vanished = self.holes = 0
        self.wrong: list[str] = []
        self._place, self._data = place, data
        self._rows = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._over.wait(0.1):
            if (self._data / "journal").is_dir():
                self._ask()

    def _ask(self) -> None:
        words = ("query", self._ROWS, "--format", "csv", "--data-dir", str(self._data))
        done = programs.call(*words, environ={}, folder=self._place, within_s=600)
        if done.returncode:
            self.refusals += 1
            if "run the query again" not in done.stderr and "nothing is recorded" not in done.stderr:
                self.wrong.append(f"query: {done.stderr.strip()}")
            return
        ticks, distinct, statuses, distinct_statuses, seqs, last = map(
            int, list(csv.reader(io.StringIO(done.stdout)))[1]
        )
        self.answers += 1
        self.twice += ticks - distinct + statuses - distinct_statuses
        self.holes += last - seqs
        self.vanished += max(0, self._rows - ticks)
        self._rows = max(self._rows, ticks)
