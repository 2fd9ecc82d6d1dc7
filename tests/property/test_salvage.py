"""Damage anywhere in real files: what can be read is what was written, and what cannot is in the ledger."""

from __future__ import annotations

import random
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from doubles import AT_NS, FAST, frames_of

from tickvault import archive, prune, segments, survey
from tickvault.errors import JournalDamaged
from tickvault.journal import Fact, Journal, Received
from tickvault.model import Definition
from tickvault.reading import JournalReader
from tickvault.segments import defs_body
from tickvault.state import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROUNDS = 16
DELIVERED = 50


def body_of(seq: int) -> bytes:
    """Most fit a page, some take several, and one in twenty is as long as a snapshot."""
    return random.Random(seq).randbytes({0: 30_000, 7: 9_000}.get(seq % 20, 400))


@pytest.fixture(scope="module")
def written() -> Iterator[Path]:
    """A data folder as a killed recorder leaves it: pruned, sealed and open segments, the last with its log."""
    path = Path(tempfile.mkdtemp(dir=FAST))
    state, _ = State.open(path / "state.db")
    journal = Journal.open(path / "journal", state, wall_ns=lambda: AT_NS)
    journal.max_segment_frames = 40
    state.put_cursor("influx", 0)
    for seq in range(1, 151):
        if seq % 30 == 2:
            journal.append([Fact("conn", {"conn": seq, "state": "open"})])
            journal.append([Fact("defs", defs_body([Definition(instrument_key="A", symbol=f"v{seq}")]))])
        journal.append([Received(AT_NS + seq * 1_000_000, 1, body_of(seq))])
        if seq == 135:
            assert journal._db is not None
            journal._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
    state.attempt("influx", DELIVERED)
    state.advance(
        "influx", DELIVERED, generation=0, head_seq=150, settled_seq=DELIVERED, dead_letters=(), notices=(), now_ns=0
    )
    assert prune.prune(path / "journal", state, ["influx"], before_ns=None).segments == 1
    shutil.copytree(path, path / "copy")
    assert journal._db is not None
    journal._db.close()
    state.close()
    assert [int(one.stem) for one in segments.paths(path / "copy" / "journal")] == [41, 81, 121]
    assert (path / "copy" / "journal" / f"{121:016}.db-wal").stat().st_size > 100_000
    yield path / "copy"
    shutil.rmtree(path)


def flip(content: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 3, 40])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def flip_structure(content: bytearray, rng: random.Random) -> None:
    at = rng.randrange(max(1, len(content) // 8192)) * 8192 + rng.choice([rng.randrange(130), rng.randrange(30)])
    content[min(at, len(content) - 1)] ^= 1 << rng.randrange(8)


def zero(content: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(content)) // 4096 * 4096
    content[at : at + 4096] = bytes(len(content[at : at + 4096]))


def cut(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(len(content)) :]


def damaged(path: Path, breaks: Callable[[bytearray, random.Random], None], rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    breaks(content, rng)
    path.write_bytes(content)


def read(folder: Path, journal: Journal) -> dict[int, bytes]:
    """Read every frame as a sink does: a segment that is found damaged is mended, and read again."""
    found: dict[int, bytes] = {}
    for _ in range(9):
        found.clear()
        reader = JournalReader(folder, 40)
        try:
            while (chunk := reader.read(max_frames=7, max_bytes=10**9)) is not None:
                found |= {frame.seq: frame.payload for frame in chunk.frames}
        except JournalDamaged as exc:
            if exc.path is None:
                raise
            journal._mended.discard(exc.path)
            journal.mend(exc.path, str(exc))
        else:
            return found
        finally:
            reader.close()
    raise AssertionError("it is still damaged")


@pytest.mark.parametrize("breaks", [flip, flip_structure, zero, cut])
@pytest.mark.parametrize("which", ["sealed", "newest", "log", "facts"])
@pytest.mark.parametrize("state_lost", [False, True])
def test_damage_anywhere(
    written: Path, which: str, breaks: Callable[[bytearray, random.Random], None], state_lost: bool
) -> None:
    """It starts by itself; whole frames are there byte for byte, missing ones are lost, and no number comes twice."""
    name = {"sealed": f"{81:016}.db", "newest": f"{121:016}.db", "log": f"{121:016}.db-wal", "facts": archive.NAME}[
        which
    ]
    aside = 0
    for number in range(ROUNDS // 2):
        rng = random.Random(f"{which} {breaks.__name__} {state_lost} {number}")
        path = Path(tempfile.mkdtemp(dir=FAST))
        shutil.copytree(written, path, dirs_exist_ok=True)
        folder = path / "journal"
        damaged(folder / name, breaks, rng)
        if state_lost:
            for one in path.glob("state.db*"):
                one.unlink()
        state, _ = State.open(path / "state.db")
        journal = Journal.open(folder, state, wall_ns=lambda: AT_NS + 10**12)
        found = read(folder, journal)
        lost = {seq for low, high in survey.lost_ranges(folder) for seq in range(low, min(high, 200) + 1)}
        assert found == {seq: body_of(seq) for seq in found}, number
        # A log that is cut short looks like one whose last commits were never made; what left the process is known.
        last = journal.last_seq
        assert last >= DELIVERED
        assert not lost & found.keys()
        assert {seq for seq in range(41, 151) if seq <= last} <= lost | found.keys(), number
        if which in {"sealed", "facts"}:
            assert max(found) == 150
            assert len(found) >= 70
        assert journal.append([Received(AT_NS + 2 * 10**12, 1, b"next")]).last_seq == last + 1
        assert frames_of(folder, last)[-1].payload == b"next"
        assert list(survey.verify(folder, running=True, head_seq=last)) == [], number
        list(archive.events(folder))
        aside += (folder / "damaged").exists()
        journal.close()
        state.close()
        shutil.rmtree(path)
    assert aside or breaks is not zero  # a flip may hit what holds nothing, and a cut log looks like a torn one


def test_damage_in_the_state(written: Path) -> None:
    """It is set aside and rebuilt, or it says what was written."""
    for number in range(ROUNDS):
        rng = random.Random(number)
        path = Path(tempfile.mkdtemp(dir=FAST))
        shutil.copytree(written, path, dirs_exist_ok=True)
        damaged(path / "state.db", rng.choice([flip, flip_structure, zero, cut]), rng)
        state, fresh = State.open(path / "state.db")
        if not fresh:
            assert [(one.sink, one.seq, one.attempted_seq) for one in state.cursors()] == [
                ("influx", DELIVERED, DELIVERED)
            ]
        else:
            assert list(path.glob("state.db.damaged-*"))
        journal = Journal.open(path / "journal", state, wall_ns=lambda: AT_NS + 10**12)
        assert read(path / "journal", journal) == {seq: body_of(seq) for seq in range(41, 151)}
        assert journal.append([Received(AT_NS + 2 * 10**12, 1, b"next")]).last_seq == 151
        journal.close()
        state.close()
        shutil.rmtree(path)


def test_a_salvage_that_is_interrupted_is_finished(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash before any rename or removal: the next open goes on, and the journal is never short of what is whole."""

    class Crash(BaseException):
        pass

    steps = 0
    while True:
        path = Path(tempfile.mkdtemp(dir=FAST))
        shutil.copytree(written, path, dirs_exist_ok=True)
        folder = path / "journal"
        log = folder / f"{121:016}.db-wal"
        content = bytearray(log.read_bytes())
        content[32 + 3 * 8216 + 500] ^= 1
        log.write_bytes(content)
        left = steps
        rename = Path.rename

        def stepping(source: Path, target: Path, rename: Callable[..., Path] = rename) -> Path:
            nonlocal left
            left -= 1
            if left < 0:
                raise Crash
            return rename(source, target)

        done = False
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", stepping)
            state, _ = State.open(path / "state.db")
            with suppress(Crash):
                Journal.open(folder, state)._db.close()  # type: ignore[union-attr]
                done = True
            state.close()
        state, _ = State.open(path / "state.db")
        journal = Journal.open(folder, state, wall_ns=lambda: AT_NS + 10**12)
        found = read(folder, journal)
        assert found == {seq: body_of(seq) for seq in range(41, 151)}
        assert (folder / "damaged" / f"{121:016}" / log.name).read_bytes() == bytes(content)
        assert not list(folder.glob("*.tmp*")) + list(folder.glob("*.salvaged"))
        journal.close()
        state.close()
        shutil.rmtree(path)
        steps += 1
        if done:
            break
    assert steps > 4
