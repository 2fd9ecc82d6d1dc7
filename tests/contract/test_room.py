"""A disk that is full, or nearly: no corrupt file, nothing dropped that was not asked for, and it goes on by itself."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from filling import Bench
from fulldisk import on_small_disk

from tickvault import archive, segments, survey

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("what", "size"), [("every_write", "16m"), ("stop", "20m"), ("drop", "20m"), ("tell", "20m")])
def test_on_a_real_full_disk(tmp_path: Path, what: str, size: str) -> None:
    """tests/filling.py says what each does."""
    on_small_disk(tmp_path / "disk", size, "filling", what)


@pytest.mark.parametrize("which", ["segment", "facts"])
async def test_what_is_damaged_does_not_keep_segments_for_ever(tmp_path: Path, which: str) -> None:
    """Nobody reads a delivered segment again: pruning is who finds it damaged, and has it replaced."""
    bench = Bench(tmp_path, drop_oldest=False)
    vault = bench.vault
    vault.journal.max_segment_frames = 4
    for _ in range(12):
        vault.append(1)
    vault.deliver_all(100)
    paths = segments.paths(vault.folder)
    if which == "segment":
        with closing(sqlite3.connect(paths[0])) as db:
            db.execute("UPDATE events SET at_ns = at_ns + 1 WHERE kind = 'start'")
            db.commit()
    else:
        archive.keep(paths[0], ["parquet"])
        (vault.folder / archive.NAME).write_bytes(b"garbage" * 3000)
    await bench.room._prune(before_ns=None)
    await bench.room._prune(before_ns=None)
    assert segments.paths(vault.folder) == paths[-1:]
    assert (vault.folder / "damaged").is_dir()
    assert list(survey.verify(vault.folder, running=True, head_seq=12)) == []
    vault.drop()
