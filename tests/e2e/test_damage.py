"""Damaged files of a data folder: every command that reads names the file and the next step; none calls it a bug."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest
from doubles import Vault, frames_of
from programs import call, environ_for, simulator

from tickvault import survey
from tickvault.errors import JournalDamaged, Refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SEGMENT = "0000000000000001.db"
READING = (("journal", "stats"), ("status",), ("query", "SELECT count(*) FROM ticks"))


def garbage(data: Path) -> None:
    (data / "journal" / SEGMENT).write_bytes(b"garbage" * 3000)


def truncated(data: Path) -> None:
    path = data / "journal" / SEGMENT
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 // 512 * 512])


def a_folder(data: Path) -> None:
    (data / "journal" / SEGMENT).unlink()
    (data / "journal" / SEGMENT).mkdir()


def newer(data: Path) -> None:
    with closing(sqlite3.connect(data / "journal" / SEGMENT)) as db:
        db.execute("PRAGMA user_version = 7")


def state_garbage(data: Path) -> None:
    (data / "state.db").write_bytes(b"garbage" * 3000)


def state_newer(data: Path) -> None:
    with closing(sqlite3.connect(data / "state.db")) as db:
        db.execute("PRAGMA user_version = 7")


def state_a_folder(data: Path) -> None:
    (data / "state.db").unlink()
    (data / "state.db").mkdir()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with frames 1 to 10 in one sealed segment, the first three of them stored."""
    vault = Vault(tmp_path / "data")
    vault.open()
    vault.append(10)
    vault.deliver(3)
    vault.journal.close()
    vault.drop()
    return vault.path


@pytest.mark.parametrize(
    ("breaks", "named", "step"),
    [
        (garbage, SEGMENT, "journal verify"),
        (truncated, SEGMENT, "journal verify"),
        (a_folder, SEGMENT, "journal verify"),
        (newer, SEGMENT, "upgrade"),
        (state_garbage, "state.db", "tickvault run"),
        (state_newer, "state.db", "upgrade"),
        (state_a_folder, "state.db", "check"),
    ],
)
def test_every_reading_command_names_what_is_damaged(
    data: Path, breaks: Callable[[Path], None], named: str, step: str
) -> None:
    """One line with file and next step, exit 1; `verify` prints it as its finding, as text and as JSON."""
    breaks(data)
    environ = {"TICKVAULT_DATA_DIR": str(data)}
    for words in READING:
        done = call(*words, environ=environ, folder=data.parent)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
        assert named in done.stderr
        assert step in done.stderr
        assert "bug" not in done.stderr
    told = call("journal", "verify", environ=environ, folder=data.parent)
    assert (told.returncode, told.stderr) == (1, "")
    assert named in told.stdout
    listed = call("journal", "verify", "--json", environ=environ, folder=data.parent)
    found = json.loads(listed.stdout)
    assert (listed.returncode, found["ok"], len(found["damaged"])) == (1, False, 1)
    assert named in found["damaged"][0]


@pytest.mark.parametrize("breaks", [garbage, truncated, state_garbage])
def test_a_recorder_starts_on_what_is_damaged_and_says_what_it_set_aside(
    data: Path, breaks: Callable[[Path], None]
) -> None:
    """What is whole is delivered, what is not is in the ledger, and the damaged files stay."""
    breaks(data)
    with simulator(data.parent, "--instruments", "2") as (url, _):
        environ = environ_for(url, data)
        done = call("run", "--duration", "2", environ=environ, folder=data.parent)
    assert done.returncode == 0, done.stderr
    assert ("state.set_aside" if breaks is state_garbage else "journal.salvaged") in done.stderr
    assert list(data.glob("**/damaged/*/*")) or list(data.glob("state.db.damaged-*"))
    assert call("journal", "verify", environ=environ, folder=data.parent).returncode == 0
    held = {frame.seq for frame in frames_of(data / "journal")}
    lost = {seq for low, high in survey.lost_ranges(data / "journal") for seq in range(low, high + 1)}
    assert held | lost == set(range(1, max(held) + 1))
    asked = call("query", "SELECT count(*) AS n FROM gaps WHERE reason = 'lost'", environ=environ, folder=data.parent)
    assert (int(asked.stdout.split()[-1]) > 0) == bool(lost), asked.stdout


def test_frames_that_only_the_state_knows_of_are_missing(data: Path) -> None:
    """A segment that was emptied is not a whole journal."""
    path = data / "journal" / SEGMENT
    path.write_bytes(b"")
    done = call("journal", "verify", environ={"TICKVAULT_DATA_DIR": str(data)}, folder=data.parent)
    assert done.returncode == 1
    assert "frames 1 to 10 are missing" in done.stdout


def test_whatever_byte_is_damaged_readers_answer_or_say_so(data: Path, tmp_path: Path) -> None:
    """Flipped bytes anywhere in a segment: an answer, or an error of ours; never another exception."""
    whole = (data / "journal" / SEGMENT).read_bytes()
    rng = random.Random(7)
    folder = tmp_path / "flipped"
    found = 0
    for _ in range(150):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        content = bytearray(whole)
        for _ in range(rng.choice([1, 2, 50])):
            page = rng.randrange(len(content) // 8192) * 8192
            content[page + rng.choice([rng.randrange(120), rng.randrange(7800, 8192)])] = rng.randrange(256)
        (folder / SEGMENT).write_bytes(content)
        looks: list[Callable[[], object]] = [
            lambda: survey.stats(folder),
            lambda: survey.ledger(folder),
            lambda: survey.received_ns_behind(folder, 3),
            lambda: survey.last_seq_before(folder, 2**62),
            lambda: frames_of(folder),
        ]
        for look in looks:
            with suppress(JournalDamaged, Refused):
                look()
        found += bool(list(survey.verify(folder, running=False, head_seq=10)))
    assert found > 75
