"""Parquet files that hold frames which the journal has lost are the only place of them, and stay."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
from doubles import Vault

from tickvault import segments, survey
from tickvault.errors import Refused
from tickvault.sinks.parquet import scan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ALL = [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12]  # the seventh does not decode


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    """Three segments of four frames, all stored, a file each; `old.db` is the state after the first."""
    vault = Vault(tmp_path / "data")
    vault.open()
    vault.journal.max_segment_frames = 4
    for _ in range(3):
        for _ in range(4):
            vault.append(1, days=False)
        vault.deliver_all(4)
        if vault.number == 4:
            shutil.copy(vault.path / "state.db", vault.path / "old.db")
    assert stored(vault) == ALL
    vault.drop()
    yield vault
    vault.drop()


def stored(vault: Vault) -> list[int]:
    files = [file for file in scan(vault.path / "parquet") if file.table == "ticks"]
    return sorted(seq for file in files for seq in pq.read_table(file.path, columns=["seq"])["seq"].to_pylist())


def lose(vault: Vault, number: int) -> None:
    """Leave nothing of a segment but its name."""
    path = segments.paths(vault.folder)[number]
    for one in vault.folder.glob(f"{path.name}?*"):
        one.unlink()
    path.write_bytes(b"garbage" * 3000)


def deliver(vault: Vault) -> None:
    vault.deliver_all(100)


def test_a_state_of_yesterday_does_not_remove_them(vault: Vault) -> None:
    """The names win, as where the journal has been pruned; what it holds is stored again, each row once."""
    lose(vault, 1)
    vault.restore_state(vault.path / "old.db")
    vault.open()
    deliver(vault)
    assert survey.lost_ranges(vault.folder) == [(5, 8)]
    assert stored(vault) == ALL


def test_a_lost_state_does_not_remove_them(vault: Vault) -> None:
    """The newest file is otherwise written anew."""
    lose(vault, 2)
    vault.lose_state()
    vault.open()
    assert stored(vault) == ALL
    vault.append(1, days=False)
    deliver(vault)
    assert stored(vault) == [*ALL, vault.journal.last_seq]


def test_a_rewind_that_would_remove_them_is_refused(vault: Vault) -> None:
    """It names the lowest that removes none; a file that steps over what was lost before it may go."""
    lose(vault, 1)
    vault.open()
    with pytest.raises(Refused, match=r"lost, and would lose them too; the lowest possible --to-seq is 8$"):
        vault.rewind(0)
    vault.rewind(8)
    deliver(vault)
    assert stored(vault) == ALL
    for file in scan(vault.path / "parquet"):
        if file.lo == 5:
            file.path.unlink()
    vault.rewind(4)
    deliver(vault)
    assert stored(vault) == [seq for seq in ALL if not 5 <= seq <= 8]
