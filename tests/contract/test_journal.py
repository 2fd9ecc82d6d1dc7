"""The journal: what was acknowledged is there, nothing is numbered twice, and what is damaged is never served as good."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from doubles import AT_NS, frames_of, payload, received

from tickvault import segments, survey, wal
from tickvault.errors import JournalDamaged, JournalFull, Refused
from tickvault.journal import Fact, Journal, Received
from tickvault.model import Definition
from tickvault.reading import JournalReader
from tickvault.state import State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tickvault.reading import Chunk


class Home:
    """A journal and its state, opened, dropped and opened again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path / "journal"
        self.wall_ns = AT_NS
        self.open()

    def open(self) -> None:
        self.state, self.fresh = State.open(self.path / "state.db")
        self.journal = Journal.open(self.folder, self.state, wall_ns=lambda: self.wall_ns)

    def close(self) -> None:
        self.journal.close()
        self.state.close()

    def crash(self) -> None:
        """Let go as a killed process does."""
        if self.journal._db is not None:
            self.journal._db.close()
            self.journal._db = None
        self.state.close()

    def lose_state(self) -> None:
        for path in self.path.glob("state.db*"):
            path.unlink()

    def append(self, *numbers: int) -> int:
        return self.journal.append([received(number) for number in numbers]).last_seq

    def seqs(self, after_seq: int = 0) -> list[int]:
        return [frame.seq for frame in frames_of(self.folder, after_seq)]

    def segments(self) -> list[int]:
        return [int(path.stem) for path in segments.paths(self.folder)]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    yield home
    home.crash()


def chunks(folder: Path, after_seq: int = 0, max_frames: int = 1000) -> list[Chunk]:
    reader = JournalReader(folder, after_seq)
    try:
        return list(iter(lambda: reader.read(max_frames=max_frames, max_bytes=10**9), None))
    finally:
        reader.close()


def definition(key: str, symbol: str) -> Fact:
    return Fact("defs", segments.defs_body([Definition(instrument_key=key, symbol=symbol)]))


def test_what_is_appended_is_read_back_byte_for_byte(home: Home) -> None:
    """Payload, connection and time come back as they were; facts keep their place among the frames."""
    bodies = [b"", b"\x00" * 70_000, os.urandom(100)]
    committed = home.journal.append(
        [
            Received(AT_NS + 5, 3, bodies[0]),
            Fact("conn", {"conn": 3, "state": "closed"}),
            *(Received(AT_NS, 4, b) for b in bodies[1:]),
        ]
    )
    assert committed.last_seq == 3
    frames = frames_of(home.folder)
    assert [(f.seq, f.conn, f.payload) for f in frames] == [(1, 3, bodies[0]), (2, 4, bodies[1]), (3, 4, bodies[2])]
    assert [f.received_ns for f in frames] == [AT_NS + 5, AT_NS + 6, AT_NS + 7]
    [closed] = [event for event in survey.events(home.folder, ("conn",)) if event.body["state"] == "closed"]
    assert (closed.after_seq, closed.body) == (1, {"conn": 3, "state": "closed"})


def test_tidied_the_file_has_what_the_log_had(home: Home) -> None:
    """It is due by what was committed since; what comes later is in the log again."""
    big = Received(AT_NS, 1, bytes(3_000_000))
    home.journal.append([big])
    assert not home.journal.log_is_long
    home.journal.append([big])
    assert home.journal.log_is_long
    home.journal.tidy()
    assert not home.journal.log_is_long
    home.append(3)
    [path] = segments.paths(home.folder)
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as without_log:
        assert without_log.execute("SELECT count(*) FROM frames").fetchone() == (2,)
    assert home.seqs() == [1, 2, 3]


def test_a_reader_takes_bounded_runs_and_at_least_one_frame(home: Home) -> None:
    """Bounds of frames and bytes hold; a frame larger than the bound comes alone."""
    home.journal.append([Received(AT_NS, 1, b"x" * size) for size in (10, 10, 5000, 10)])
    reader = JournalReader(home.folder, 0)
    sizes = []
    while (chunk := reader.read(max_frames=2, max_bytes=15)) is not None:
        sizes.append([len(frame.payload) for frame in chunk.frames])
    reader.close()
    assert sizes == [[10], [10], [5000], [10]]
    assert [len(chunk.frames) for chunk in chunks(home.folder, 0, 3)] == [3, 1]


def test_a_reader_follows_what_is_appended_behind_it(home: Home) -> None:
    """None is "not yet": the same reader goes on when there is more, over segments as well."""
    home.journal.max_segment_frames = 2
    reader = JournalReader(home.folder, 0)
    found = []
    for number in range(1, 8):
        assert reader.read(max_frames=9, max_bytes=999) is None
        home.append(number)
        chunk = reader.read(max_frames=9, max_bytes=999)
        assert chunk is not None
        found.append((chunk.lo, chunk.hi))
    reader.close()
    assert found == [(number, number) for number in range(1, 8)]


def test_segments_roll_by_frames_and_by_bytes(home: Home) -> None:
    """A full segment is sealed, the next begins with the next seq."""
    home.journal.max_segment_frames = 3
    for number in range(1, 8):
        home.append(number)
    assert home.segments() == [1, 4, 7]
    home.journal.max_segment_bytes = 1000
    home.journal.append([Received(AT_NS, 1, b"x" * 1200)])
    home.append(9)
    assert home.segments() == [1, 4, 7, 9]
    assert home.seqs() == list(range(1, 10))
    for path in segments.paths(home.folder)[:-1]:
        with closing(segments.reader(path)) as db:
            meta = segments.read_meta(db)
            assert meta is not None
            assert meta.sealed
    assert list(survey.verify(home.folder, running=True)) == []


def test_facts_behind_the_last_frame_of_a_segment_govern_the_next(home: Home) -> None:
    """A definition journalled at a segment's very end is in force at the next one's first frame, and told once."""
    home.journal.max_segment_frames = 2
    home.append(1, 2)
    segments_db = home.journal._db
    assert segments_db is not None
    segments.append(segments_db, [], [segments.NewEvent(2, AT_NS, 0, "defs", dict(definition("A", "late").body))])
    home.append(3)
    found = chunks(home.folder)
    assert [(c.lo, c.hi, [d.symbol for d in c.changed]) for c in found] == [(1, 2, []), (3, 3, ["late"])]
    assert found[1].definitions["A"].symbol == "late"


def test_definitions_cut_a_run_where_they_change(home: Home) -> None:
    """One set of definitions governs a whole chunk; a change begins the next."""
    home.journal.append(
        [definition("A", "one"), received(1), received(2), definition("A", "two"), definition("B", "bee"), received(3)]
    )
    found = chunks(home.folder)
    assert [(c.lo, c.hi, {k: d.symbol for k, d in c.definitions.items()}) for c in found] == [
        (1, 2, {"A": "one"}),
        (3, 3, {"A": "two", "B": "bee"}),
    ]
    assert [[d.symbol for d in c.changed] for c in found] == [["one"], ["two", "bee"]]


@pytest.mark.parametrize("after_seq", range(7))
def test_definitions_in_force_are_the_same_wherever_one_begins_to_read(home: Home, after_seq: int) -> None:
    """Over segments and reopening, a reader that begins anywhere looks up what one that read everything does."""
    home.journal.max_segment_frames = 2
    for number in range(1, 4):
        home.journal.append([definition("A", f"v{number}"), received(2 * number - 1)])
        home.append(2 * number)
    home.crash()
    home.open()
    home.append(7)
    expected = {seq: c.definitions["A"].symbol for c in chunks(home.folder) for seq in range(c.lo, c.hi + 1)}
    found = {seq: c.definitions["A"].symbol for c in chunks(home.folder, after_seq) for seq in range(c.lo, c.hi + 1)}
    assert found == {seq: symbol for seq, symbol in expected.items() if seq > after_seq}
    assert home.journal.definitions["A"].symbol == "v3"
    assert home.journal.define({"A": Definition(instrument_key="A", symbol="v3")}) is None
    newer = {"A": Definition(instrument_key="A", symbol="v4")}
    assert home.journal.define(newer) is not None
    assert home.journal.define(newer) is None, "it is on its way"
    home.journal.forget(newer)
    assert home.journal.define(newer) is not None, "it did not get there"
    assert home.journal.define({"A": Definition(instrument_key="A", symbol="v3")}) is not None, "and would be in force"


def test_reopening_goes_on_with_the_next_number(home: Home) -> None:
    """After a clean end and after a crash seq is dense, and the start says which it was."""
    home.append(1, 2)
    home.journal.append([Fact("stop", {})])
    home.close()
    home.open()
    assert home.append(3) == 3
    home.crash()
    home.open()
    assert home.append(4) == 4
    starts = list(survey.events(home.folder, ("start",)))
    assert [event.body["clean"] for event in starts] == [False, True, False]
    assert home.seqs() == [1, 2, 3, 4]


def test_reopening_without_frames_makes_no_further_segment(home: Home) -> None:
    """A newest segment without a frame is gone on with."""
    home.append(1)
    for _ in range(3):
        home.crash()
        home.open()
    assert home.segments() == [1, 2]


def test_the_connection_number_only_grows(home: Home) -> None:
    """The last connection is known again after reopening, even from a segment that carries it only."""
    home.journal.append([Fact("conn", {"conn": 7, "state": "open"}), received(1, conn=7)])
    for _ in range(3):
        home.crash()
        home.open()
        assert home.journal.last_conn == 7


def test_a_seq_is_not_used_again_when_the_state_is_lost(home: Home) -> None:
    """The journal alone knows its end, and its recorder."""
    home.append(1, 2, 3)
    recorder_id = home.journal.recorder_id
    home.crash()
    home.lose_state()
    home.open()
    assert home.append(4) == 4
    assert home.journal.recorder_id == recorder_id


def test_a_state_ahead_of_the_journal_makes_it_jump(home: Home) -> None:
    """What the state knows of as sent is never numbered again; the range is a `lost` event and readers step over it."""
    home.append(1, 2)
    home.state.put_cursor("influx", 2)
    home.state.attempt("influx", 50)
    home.crash()
    home.open()
    assert home.append(3) == 51
    [lost] = survey.events(home.folder, ("lost",))
    assert (lost.body["from"], lost.body["to"]) == (3, 50)
    assert home.seqs() == [1, 2, 51]
    assert home.seqs(10) == [51]
    assert list(survey.verify(home.folder, running=True)) == []


def test_a_jump_over_an_empty_segment_leaves_readers_a_way(home: Home) -> None:
    """An older journal beside a newer state: the segment that holds no frame is left behind, by readers too."""
    home.append(1, 2)
    home.crash()
    home.open()  # segment 3, without a frame
    home.state.put_cursor("influx", 2)
    home.state.attempt("influx", 50)
    home.crash()
    home.open()
    home.append(3)
    home.crash()
    home.open()
    assert home.segments() == [1, 3, 51, 52]
    assert home.seqs() == [1, 2, 51]
    assert list(survey.verify(home.folder, running=True)) == []


def test_a_segment_set_aside_and_a_lost_state_still_reuse_nothing(home: Home) -> None:
    """As many numbers are left out as a segment can hold."""
    home.append(1, 2)
    home.close()
    home.open()
    home.append(3, 4)
    home.close()
    home.lose_state()
    aside = home.folder / "damaged" / "0000000000000003"
    aside.mkdir(parents=True)
    (home.folder / "0000000000000003.db").rename(aside / "0000000000000003.db")
    home.open()
    assert home.append(5) > segments.MAX_FRAMES
    assert home.seqs()[:2] == [1, 2]
    assert list(survey.verify(home.folder, running=True)) == []


def test_definitions_of_a_segment_set_aside_are_found_where_they_were_carried(home: Home) -> None:
    """A reader that steps over a lost segment looks up what the next one says is in force."""
    home.journal.max_segment_frames = 1
    for number, symbol in enumerate(("one", "two", "three"), 1):
        home.journal.append([definition("A", symbol), received(number)])
    home.append(4)
    home.state.put_cursor("influx", 4)
    home.crash()
    (home.folder / "0000000000000003.db").unlink()
    home.open()
    lost = Fact("lost", {"from": 3, "to": 3, "reason": "set aside"})
    with closing(segments.writer(home.folder / "0000000000000004.db")) as db:
        segments.append(db, [], [segments.NewEvent(2, AT_NS, 0, "lost", dict(lost.body))])
    assert chunks(home.folder, 1)[-1].definitions["A"].symbol == "three"
    assert chunks(home.folder, 3)[-1].definitions["A"].symbol == "three"


def test_a_segment_without_frames_that_is_mended_while_it_is_written_keeps_its_facts(home: Home) -> None:
    """The next append goes on in it, instead of beginning another of the same name."""
    home.journal.append([received(1)])
    home.close()
    home.open()
    home.journal.append([Fact("conn", {"conn": 7, "state": "open"})])
    before = list(survey.events(home.folder, ("start", "conn")))
    [*_, path] = segments.paths(home.folder)
    home.journal.mend(path, "found by a reader")
    home.journal.append([received(2)])
    assert list(survey.events(home.folder, ("start", "conn"))) == before
    assert [frame.seq for frame in frames_of(home.folder)] == [1, 2]
    assert list(survey.verify(home.folder, running=True, head_seq=2)) == []


def test_frames_missing_without_a_reason_are_damage(home: Home) -> None:
    """Dense or explained: a reader does not step over anything else, and verify says what is missing."""
    home.append(1, 2, 3, 4)
    db = home.journal._db
    assert db is not None
    db.execute("DELETE FROM frames WHERE seq = 3")
    with pytest.raises(JournalDamaged, match="frames 3 to 3 are missing"):
        home.seqs()
    assert any("1 frames between 1 and 4 are missing" in line for line in survey.verify(home.folder, running=True))


def test_a_clock_set_back_is_believed_and_journalled(home: Home) -> None:
    """Small steps keep times rising; a step of more than a second is taken, with an event."""
    second = 1_000_000_000
    home.journal.append([Received(AT_NS, 1, b"a"), Received(AT_NS - second // 2, 1, b"b")])
    home.journal.append([Received(AT_NS - 3600 * second, 1, b"c"), Received(AT_NS - 3599 * second, 1, b"d")])
    times = [frame.received_ns for frame in frames_of(home.folder)]
    assert times == [AT_NS, AT_NS + 1, AT_NS - 3600 * second, AT_NS - 3599 * second]
    [step] = survey.events(home.folder, ("clock_step",))
    assert (step.after_seq, step.body) == (2, {"from_ns": AT_NS + 1, "to_ns": AT_NS - 3600 * second})
    home.crash()
    home.wall_ns = AT_NS - 3598 * second
    home.open()
    home.journal.append([Received(home.wall_ns, 1, b"e")])
    assert len(list(survey.events(home.folder, ("clock_step",)))) == 1


def test_a_full_disk_writes_nothing_and_the_same_call_works_later(home: Home) -> None:
    """All or nothing: neither frame nor event nor number is used up by a refused append."""
    home.append(1)
    db = home.journal._db
    assert db is not None
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {pages + 2}")
    items = [definition("A", "x"), *(Received(AT_NS, 1, os.urandom(8000)) for _ in range(9))]
    for _ in range(2):
        with pytest.raises(JournalFull):
            home.journal.append(items)
        assert home.seqs() == [1]
        assert list(survey.events(home.folder, ("defs",))) == []
    db.execute("PRAGMA max_page_count = 1000000")
    assert home.journal.append(items).last_seq == 10
    assert home.seqs() == list(range(1, 11))


def test_a_disk_that_fills_up_while_a_segment_rolls_is_waited_for(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A roll that fails half way is taken up by the next append."""
    home.journal.max_segment_frames = 2
    home.append(1, 2)
    create, seal = segments.create, segments.seal
    for name in ("seal", "create"):

        def full(*_args: object, **_kwargs: object) -> None:
            raise JournalFull("no room")

        monkeypatch.setattr(segments, name, full)
        for _ in range(2):
            with pytest.raises(JournalFull):
                home.append(3)
        monkeypatch.setattr(segments, "create", create)
        monkeypatch.setattr(segments, "seal", seal)
    assert home.append(3) == 3
    assert home.segments() == [1, 3]
    assert home.seqs() == [1, 2, 3]


def test_a_segment_that_could_not_be_created_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a full disk left of it counts for nothing, and no connection to it stays open."""
    opened: list[sqlite3.Connection] = []
    writer = segments.writer

    def tight(path: Path) -> sqlite3.Connection:
        db = writer(path)
        db.execute("PRAGMA max_page_count = 2")
        opened.append(db)
        return db

    args = {"recorder": "r", "first_seq": 1, "begun_ns": AT_NS, "events": []}
    with monkeypatch.context() as patch:
        patch.setattr(segments, "writer", tight)
        with pytest.raises(JournalFull):
            segments.create(tmp_path, **args)  # type: ignore[arg-type]
    with pytest.raises(sqlite3.ProgrammingError):
        opened[0].execute("SELECT 1")
    segments.create(tmp_path, **args).close()  # type: ignore[arg-type]
    with closing(segments.reader(segments.paths(tmp_path)[0])) as db:
        assert segments.read_meta(db) is not None


def test_an_unborn_segment_is_made_anew_and_an_orphan_log_removed(home: Home) -> None:
    """A crash within creation leaves a file without meta; a log without a database would be replayed into the next."""
    home.append(1)
    home.close()
    (home.folder / "0000000000000002.db").touch()
    (home.folder / "0000000000000009.db-wal").write_bytes(b"x" * 100)
    (home.folder / "0000000000000009.db-shm").write_bytes(b"x" * 100)
    assert home.seqs() == [1]
    home.open()
    assert home.append(2) == 2
    assert home.seqs() == [1, 2]
    assert not list(home.folder.glob("*9.db-*"))


def test_a_segment_whose_birth_a_power_cut_interrupted_is_made_anew(home: Home) -> None:
    """The rollback journal that a new file is born with, come back from the dead, is played back and keeps nobody out."""
    home.append(1)
    home.close()
    path = home.folder / f"{2:016}.db"
    with closing(sqlite3.connect(home.path / "other.db", isolation_level=None)) as db:
        db.execute("PRAGMA cache_size = 1")  # written to before the commit, the journal being synced
        db.execute("BEGIN")
        db.execute(
            "CREATE TABLE a AS WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 9000) SELECT * FROM n"
        )
        for suffix in ("", "-journal"):
            shutil.copy(home.path / f"other.db{suffix}", path.with_name(path.name + suffix))
    assert path.stat().st_size
    home.open()
    assert not list(home.folder.glob("*-journal"))
    assert home.append(2) == 2
    assert [frame.seq for frame in frames_of(home.folder)] == [1, 2]


def test_state_and_journal_of_two_recorders_are_refused(home: Home, tmp_path: Path) -> None:
    """Mixed files are not made to fit."""
    home.append(1)
    home.close()
    other, _ = State.open(tmp_path / "other.db")
    other.set_journal("someoneelse", head_seq=0, first_seq=1)
    with pytest.raises(Refused, match="two data folders are mixed"):
        Journal.open(home.folder, other)
    other.close()
    home.open()


def test_a_newer_journal_is_refused(home: Home) -> None:
    """A version that this one does not know is not guessed at."""
    home.close()
    with closing(segments.writer(segments.paths(home.folder)[0])) as db:
        db.execute("PRAGMA user_version = 99")
    state, _ = State.open(home.path / "state.db")
    with pytest.raises(Refused, match="newer tickvault"):
        Journal.open(home.folder, state)
    state.close()


def test_a_file_that_is_no_database_is_set_aside(home: Home) -> None:
    """Verify names it and goes on to the others; the next open writes down what is lost, and goes on."""
    home.append(1, 2)
    home.close()
    path = home.folder / "0000000000000001.db"
    path.write_bytes(b"garbage" * 3000)
    assert any("not a database" in line for line in survey.verify(home.folder, running=False))
    home.open()
    assert (home.folder / "damaged" / path.stem / path.name).read_bytes().startswith(b"garbage")
    assert survey.lost_ranges(home.folder) == [(1, 2)]
    assert home.append(3) == 3
    assert home.seqs() == [3]
    assert list(survey.verify(home.folder, running=True)) == []


def test_stats_and_look_ups_by_time(home: Home) -> None:
    """Counts over segments, and the seqs around a moment."""
    home.journal.max_segment_frames = 2
    for number in range(1, 6):
        home.append(number)
    stats = survey.stats(home.folder)
    assert (stats.frames, stats.first_seq, stats.last_seq, stats.segments) == (5, 1, 5, 3)
    assert stats.last_ns == AT_NS + 5_000_000
    assert survey.last_seq_before(home.folder, AT_NS + 3_000_000) == 2
    assert survey.received_ns_behind(home.folder, 4) == AT_NS + 5_000_000
    assert survey.received_ns_behind(home.folder, 5) is None


# -- killed processes

WRITER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from doubles import received
from tickvault.journal import Journal, Fact
from tickvault.state import State
path = Path(sys.argv[1])
state, _ = State.open(path / "state.db")
journal = Journal.open(path / "journal", state)
journal.max_segment_frames = int(sys.argv[3])
for number in range(1, int(sys.argv[4])):
    last_seq = journal.append([received(number), Fact("alive", {}), received(number)]).last_seq
    os.write(1, b"%d\\n" % last_seq)
os._exit(9)
"""


def killed(path: Path, *, segment_frames: int = 10**6, appends: int = 40, kill_after: int | None = None) -> int:
    """Run a writer until it dies, and return the last seq that it was told was durable."""
    tests = str(Path(__file__).parent.parent)
    command = [sys.executable, "-c", WRITER, str(path), tests, str(segment_frames), str(appends)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if kill_after is not None:
            for _ in range(kill_after):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        told = process.stdout.read().split(b"\n")
        process.wait()
    whole = [line for line in told[:-1] if line]
    return int(whole[-1]) if whole else 2 * (kill_after or 0)


@pytest.mark.parametrize("segment_frames", [7, 10**6])
def test_every_acknowledged_frame_survives_kill_9(tmp_path: Path, segment_frames: int) -> None:
    """Killed in the middle of writing, twice: what was told is there, dense, whole, and numbering goes on."""
    for _ in range(2):
        acknowledged = killed(tmp_path, segment_frames=segment_frames, appends=10**6, kill_after=30)
        assert acknowledged >= 60
        before = len(frames_of(tmp_path / "journal"))
        home = Home(tmp_path)
        seqs = home.seqs()
        assert seqs == list(range(1, before + 1))
        assert len(seqs) >= acknowledged
        assert list(survey.verify(home.folder, running=True)) == []
        assert home.append(1) == before + 1
        home.crash()


def test_damage_in_the_log_of_a_killed_process_is_found_and_a_torn_tail_is_not_damage(tmp_path: Path) -> None:
    """Flips and zeroes before the last two commits are damage, wherever; a log cut short is not."""
    killed(tmp_path)
    [path] = segments.paths(tmp_path / "journal")
    log = path.with_name(path.name + "-wal")
    whole = log.read_bytes()
    step = 8192 + 24
    count = (len(whole) - 32) // step
    commits = [n for n in range(count) if int.from_bytes(whole[32 + n * step + 4 : 32 + n * step + 8], "big")]
    assert len(commits) > 10
    assert wal.damage(log) is None
    last = 32 + commits[-3] * step  # two commits lie behind this frame
    for offset in [0, 4, 9, 17, 25, 31, *range(32, last + step, 4999), last + 3, last + step - 1]:
        body = bytearray(whole)
        body[offset] ^= 1 << (offset % 8)
        log.write_bytes(body)
        assert wal.damage(log) is not None, f"a bit of byte {offset}"
    for page in range(0, commits[-3], 7):
        at = 32 + page * step
        log.write_bytes(whole[:at] + bytes(step) + whole[at + step :])
        assert wal.damage(log) is not None, f"page {page} zeroed"
    for end in [*range(0, len(whole), 9973), len(whole) - 1]:
        log.write_bytes(whole[:end])
        assert wal.damage(log) is None, f"cut at {end}"
    for tail in (bytes(step), os.urandom(step), os.urandom(100), whole[-step:-8] + b"torn off"):
        log.write_bytes(whole[:-step] + tail)
        assert wal.damage(log) is None
    log.write_bytes(whole)


def test_a_damaged_log_is_set_aside_before_sqlite_sees_it(tmp_path: Path) -> None:
    """SQLite would silently end the database at the damage; every frame is there in another copy, or in its page."""
    acknowledged = killed(tmp_path)
    [path] = segments.paths(tmp_path / "journal")
    log = path.with_name(path.name + "-wal")
    body = bytearray(log.read_bytes())
    body[32 + 5 * (8192 + 24) + 1000] ^= 4
    log.write_bytes(body)
    assert any("fails its checksum" in line for line in survey.verify(tmp_path / "journal", running=False))
    home = Home(tmp_path)
    kept = home.folder / "damaged" / path.stem
    assert (kept / log.name).read_bytes() == bytes(body)
    assert (kept / path.name).exists()
    lost = {seq for low, high in survey.lost_ranges(home.folder) for seq in range(low, high + 1)}
    assert sorted(lost | set(home.seqs())) == list(range(1, max(home.seqs()) + 1))
    assert max(home.seqs()) >= acknowledged
    assert home.append(1) == max(home.seqs())
    assert list(survey.verify(home.folder, running=True)) == []
    home.crash()


def test_a_torn_tail_costs_what_was_not_acknowledged(tmp_path: Path) -> None:
    """A log cut within its last commit opens with everything before it, and goes on."""
    acknowledged = killed(tmp_path)
    [path] = segments.paths(tmp_path / "journal")
    log = path.with_name(path.name + "-wal")
    with log.open("r+b") as file:
        file.truncate(log.stat().st_size - 100)
    home = Home(tmp_path)
    assert home.seqs() == list(range(1, acknowledged - 1))
    assert home.append(1) == acknowledged - 1
    home.crash()


def test_the_payload_of_a_real_frame_is_small() -> None:
    """The tests above write frames that fit a page, so that every commit is a few pages."""
    assert len(payload(1)) < 200
