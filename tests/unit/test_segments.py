"""One segment: every field is under a checksum, and a sealed one knows what it held."""

from __future__ import annotations

import datetime as dt
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from doubles import AT_NS

from tickvault import segments, soundness
from tickvault.errors import JournalDamaged
from tickvault.model import Definition, Event
from tickvault.segments import NewEvent, NewFrame

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    events = [NewEvent(0, AT_NS, 5, "start", {"clean": False})]
    with closing(segments.create(tmp_path, recorder="r", first_seq=1, begun_ns=AT_NS, events=events)) as db:
        frames = [NewFrame(seq, AT_NS + seq, 1, b"payload %d" % seq) for seq in (1, 2, 3)]
        segments.append(db, frames, [NewEvent(2, AT_NS, 6, "conn", {"conn": 1})])
        yield db


def read(db: sqlite3.Connection) -> object:
    frames = segments.read_frames(db, 0, max_frames=9, max_bytes=999)
    return frames, segments.read_events(db, after_seq=0, up_to_seq=9)


CHANGES = [
    "UPDATE frames SET seq = 9 WHERE seq = 3",
    "UPDATE frames SET received_ns = received_ns + 1 WHERE seq = 2",
    "UPDATE frames SET conn = 2 WHERE seq = 2",
    "UPDATE frames SET codec = 1 WHERE seq = 2",
    "UPDATE frames SET crc = crc + 1 WHERE seq = 2",
    "UPDATE frames SET payload = CAST('payloae 2' AS BLOB) WHERE seq = 2",
    "UPDATE events SET after_seq = after_seq - 1 WHERE id = 2",
    "UPDATE events SET at_ns = at_ns + 1 WHERE id = 2",
    "UPDATE events SET boot_ns = boot_ns + 1 WHERE id = 2",
    "UPDATE events SET kind = 'cons' WHERE id = 2",
    """UPDATE events SET body = CAST('{"conn":2}' AS BLOB) WHERE id = 2""",
    "UPDATE events SET crc = crc + 1 WHERE id = 2",
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_any_field_is_found(db: sqlite3.Connection, tmp_path: Path, change: str) -> None:
    """Header and payload of frames and events: nothing changed is served as good, and verify names it."""
    read(db)
    db.execute(change)
    with pytest.raises(JournalDamaged, match="fails its checksum"):
        read(db)
    assert any("fails its checksum" in line for line in soundness.verify(segments.paths(tmp_path)[0], walk=False))


@pytest.mark.parametrize("change", ["DELETE FROM frames WHERE seq = 3", "DELETE FROM events WHERE id = 1"])
def test_a_sealed_segment_misses_what_is_gone(db: sqlite3.Connection, tmp_path: Path, change: str) -> None:
    """Count, last seq and the checksum of checksums notice a whole row that is gone."""
    segments.seal(db)
    path = segments.paths(tmp_path)[0]
    assert list(soundness.verify(path, walk=False)) == []
    db.execute(change)
    assert list(soundness.verify(path, walk=False))


def test_a_segment_sealed_empty_is_whole(tmp_path: Path) -> None:
    """It ends before it begins."""
    with closing(segments.create(tmp_path, recorder="r", first_seq=7, begun_ns=AT_NS, events=[])) as db:
        segments.seal(db)
        meta = segments.read_meta(db)
        assert meta is not None
        assert (meta.sealed, meta.last_seq, meta.count) == (True, 6, 0)
    assert list(soundness.verify(segments.paths(tmp_path)[0], walk=True)) == []


def test_an_append_that_fails_leaves_nothing(db: sqlite3.Connection) -> None:
    """A number used twice is refused with the whole batch, and the connection goes on."""
    before = read(db)
    with pytest.raises(Exception, match="UNIQUE"):
        segments.append(db, [NewFrame(4, AT_NS, 1, b""), NewFrame(2, AT_NS, 1, b"")], [NewEvent(3, 0, 0, "stop", {})])
    assert read(db) == before
    segments.append(db, [NewFrame(4, AT_NS, 1, b"")], [])


def test_the_last_commit_is_the_last_by_order_not_by_clock(db: sqlite3.Connection) -> None:
    """After a clock was set back the newest entry is earlier than older ones."""
    assert segments.tail(db) == (3, AT_NS + 3)
    segments.append(db, [], [NewEvent(3, AT_NS - 10, 7, "alive", {})])
    assert segments.tail(db) == (3, AT_NS - 10)
    segments.append(db, [NewFrame(4, AT_NS - 5, 1, b"")], [])
    assert segments.tail(db) == (4, AT_NS - 5)


def test_definitions_survive_their_way_through_an_event() -> None:
    """Dates and missing fields come back as they were."""
    some = [
        Definition(instrument_key="A"),
        Definition(instrument_key="B", symbol="b", expiry=dt.date(2026, 9, 24), strike=1.5, lot_size=3, name="é"),
    ]
    event = Event(after_seq=0, at_ns=0, boot_ns=0, kind="defs", body=segments.defs_body(some, carried=True))
    assert segments.definitions_of(event) == some
    assert event.body["carried"] is True


def test_only_segments_are_segments(tmp_path: Path) -> None:
    """Other files in the folder are nobody's business."""
    for name in ("0000000000000001.db", "0000000000000010.db", "notes.db", "0000000000000002.db-wal", "x.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in segments.paths(tmp_path)] == ["0000000000000001.db", "0000000000000010.db"]


def test_a_reader_with_an_old_snapshot_does_not_hold_up_sealing(db: sqlite3.Connection, tmp_path: Path) -> None:
    """Emptying the log is left to later; the segment is sealed at once and the reader goes on."""
    with closing(segments.reader(segments.paths(tmp_path)[0])) as old:
        old.execute("BEGIN")
        old.execute("SELECT count(*) FROM frames").fetchone()
        segments.append(db, [NewFrame(4, AT_NS, 1, b"")], [])
        began_s = time.monotonic()
        segments.seal(db)
        assert time.monotonic() - began_s < 5
        assert old.execute("SELECT count(*) FROM frames").fetchone() == (3,)
    assert list(soundness.verify(segments.paths(tmp_path)[0], walk=False)) == []
