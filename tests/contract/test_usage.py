"""What a data folder takes and when the disk is full."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING

import pytest
from doubles import Vault
from programs import call

from tickvault.usage import days_left, measure

if TYPE_CHECKING:
    from pathlib import Path

FIRST = dt.date(2026, 9, 1)  # of the frames that a Vault is given


@pytest.mark.parametrize(
    ("room", "journal", "journal_a_day", "retain_days", "kept_a_day", "days"),
    [
        (0, 0, 1, 3, 1, 0),
        (-5, 0, 1, 3, 1, 0),
        (100, 30, 10, 3, 5, 20),  # the journal has reached its size
        (100, 0, 10, 3, 5, 14),  # it grows three days, by 30 with the 15 of Parquet; 55 are left for Parquet alone
        (30, 0, 10, 3, 5, 2),  # full before that
        (100, 0, 10, 3, 0, None),  # what is retained fits, and nothing else grows
        (20, 0, 10, 3, 0, 2),
        (100, 0, 0, 3, 0, None),
    ],
)
def test_when_the_disk_is_full(
    room: float, journal: float, journal_a_day: float, retain_days: float, kept_a_day: float, days: float | None
) -> None:
    """The retention is taken into account."""
    assert days == days_left(
        room=room, journal=journal, journal_a_day=journal_a_day, retain_days=retain_days, kept_a_day=kept_a_day
    )


def test_what_a_folder_takes(tmp_path: Path) -> None:
    """Every file counts once, in its store; days are those of segments and rows."""
    vault = Vault(tmp_path / "data")
    vault.open()
    vault.append(6, days=False)
    vault.deliver_all(10)
    vault.journal.close()
    vault.drop()
    aside = vault.folder / "damaged" / "0000000000000009"
    aside.mkdir(parents=True)
    (aside / "0000000000000009.db").write_bytes(bytes(500))
    (vault.path / "token").write_bytes(bytes(7))
    taken = sum(path.stat().st_size for path in vault.path.rglob("*") if path.is_file())
    one = measure(vault.path, retain_s=86_400, reserve=0, today=FIRST + dt.timedelta(days=2))
    assert sum(one.stores.values()) == taken
    assert (one.stores["damaged"], one.stores["other"]) == (500, 7)
    assert {date: set(sizes) for date, sizes in one.days.items()} == {FIRST: {"journal", "parquet"}}
    assert one.a_day["parquet"] == one.stores["parquet"] / 2
    done = call("disk", "--json", environ={"TICKVAULT_DATA_DIR": str(vault.path)}, folder=tmp_path)
    told = json.loads(done.stdout)
    assert {**told["stores"], "journal": 0} == {**one.stores, "journal": 0}  # a reader leaves an empty log
    shown = call("disk", environ={"TICKVAULT_DATA_DIR": str(vault.path)}, folder=tmp_path)
    assert shown.returncode == 0
    assert "2026-09-01" in shown.stdout
