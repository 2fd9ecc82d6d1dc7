"""What survives a power cut by itself: names, in folders that were synced after the name was given."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from doubles import received

from tickvault.datafolder import DataFolder
from tickvault.durable import make_folder
from tickvault.journal import Journal
from tickvault.sinks.parquet import ParquetStore
from tickvault.state import State


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> dict[Path, set[str]]:
    """The names that each folder had when it was last synced."""
    found: dict[Path, set[str]] = {}
    fsync = os.fsync

    def noted(fd: int) -> None:
        fsync(fd)
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if path.is_dir():
            found[path] = {one.name for one in path.iterdir()}

    monkeypatch.setattr(os, "fsync", noted)
    return found


def test_every_folder_on_the_way_is_named_for_good(tmp_path: Path, synced: dict[Path, set[str]]) -> None:
    """From the first that was missing to the last; and again when a crash came between making and syncing."""
    make_folder(tmp_path / "a" / "b" / "c")
    assert {str(path.relative_to(tmp_path)): names for path, names in synced.items()} == {
        ".": {"a"},
        "a": {"b"},
        "a/b": {"c"},
    }
    synced.clear()
    make_folder(tmp_path / "a" / "b" / "c")
    assert synced == {tmp_path / "a" / "b": {"c"}}


def test_a_data_folder_has_its_names_before_a_frame_is_committed(tmp_path: Path, synced: dict[Path, set[str]]) -> None:
    """The folder itself, `journal/`, and `parquet/` with everything in it when a recorder opens what a crash left."""
    data = tmp_path / "data"
    with DataFolder(data) as folder:
        state, _ = State.open(folder.state)
        journal = Journal.open(folder.journal, state)
        journal.append([received(1)])
        assert "data" in synced[tmp_path]
        assert "journal" in synced[data]
        (folder.parquet / "ticks" / "date=2026-09-01").mkdir(parents=True)
        ParquetStore(folder.parquet, journal.recorder_id).clean()
        assert "parquet" in synced[data]
        assert synced[folder.parquet] == {"ticks"}
        assert synced[folder.parquet / "ticks"] == {"date=2026-09-01"}
        journal.close()
        state.close()
