"""The state: cursors, dead letters, outbox and gaps, each change whole or not at all."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tickvault.errors import JournalFull, Refused, StateHeld
from tickvault.model import Gap, Rejected
from tickvault.outbox import Notice
from tickvault.state import State, read_view

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INTERVAL_NS = 60_000
STORED = Notice(event="data.stored", sink="influx", high_water_seq=10, rows=5, from_ns=100, to_ns=200, message="m")
GAP = Notice(event="gap.opened", sink="", high_water_seq=1, rows=0, from_ns=1, to_ns=1, message="g", id="gap-1")
DEAD = Rejected(seq=3, table="ticks", instrument_key="A", reason="no", body=b"\x00\xff")


def opened(path: Path, **options: Any) -> State:
    state, _ = State.open(path / "state.db", **{"notify_interval_ns": INTERVAL_NS, "events": None, **options})
    if state.journal() is None:
        state.set_journal("r", head_seq=0, first_seq=1)
    return state


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    with closing(opened(tmp_path)) as state:
        state.put_cursor("influx", 0)
        yield state


def advance(state: State, hi: int, **changes: Any) -> bool:
    usual = {"generation": 0, "head_seq": hi, "settled_seq": hi, "dead_letters": (), "notices": (), "now_ns": 0}
    return state.advance("influx", hi, **{**usual, **changes})


def bodies(state: State) -> list[dict[str, Any]]:
    return [json.loads(one.body) for one in state.heads()]


def count(state: State, table: str) -> int:
    return state._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def test_an_advance_moves_everything_at_once(state: State) -> None:
    """Cursor, head, dead letters and outbox are one transaction."""
    assert advance(state, 10, dead_letters=[DEAD], notices=[STORED], now_ns=7)
    cursor = state.cursor("influx")
    assert cursor is not None
    assert (cursor.seq, cursor.settled_seq, cursor.state) == (10, 10, "running")
    assert state.journal() == ("r", 10, 1)
    assert state._db.execute("SELECT * FROM dead_letters").fetchall() == [
        ("influx", 3, "ticks", "A", "no", b"\x00\xff", 7)
    ]
    assert state.outbox_count() == 1


def test_an_advance_of_another_generation_changes_nothing(state: State) -> None:
    """The cursor was moved back meanwhile: neither dead letters nor events of the old position are kept."""
    state.move_back("influx", 0, generation=1, drop_from=None)
    assert not advance(state, 10, dead_letters=[DEAD], notices=[STORED])
    assert state.cursor("influx").seq == 0  # type: ignore[union-attr]
    assert (count(state, "dead_letters"), count(state, "outbox")) == (0, 0)
    assert state.journal() == ("r", 0, 1)


def test_a_crash_within_an_advance_leaves_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the last step of the transaction is, an exception there undoes the first."""
    state = opened(tmp_path)
    state.put_cursor("influx", 0)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(State, "_enqueue", crash)
    with pytest.raises(KeyboardInterrupt):
        advance(state, 10, dead_letters=[DEAD], notices=[STORED])
    assert state.cursor("influx").seq == 0  # type: ignore[union-attr]
    assert (count(state, "dead_letters"), count(state, "outbox")) == (0, 0)
    monkeypatch.undo()
    assert advance(state, 10, notices=[STORED])
    state.close()


def test_a_full_disk_changes_nothing_and_the_same_call_works_later(state: State) -> None:
    """JournalFull, as for the journal; the connection goes on."""
    pages = state._db.execute("PRAGMA page_count").fetchone()[0]
    state._db.execute(f"PRAGMA max_page_count = {pages}")
    large = [replace(DEAD, seq=seq, body=b"x" * 3000) for seq in range(50)]
    for _ in range(2):
        with pytest.raises(JournalFull):
            advance(state, 10, dead_letters=large)
        assert (state.cursor("influx").seq, count(state, "dead_letters")) == (0, 0)  # type: ignore[union-attr]
    state._db.execute("PRAGMA max_page_count = 100000")
    assert advance(state, 10, dead_letters=large)


@pytest.mark.parametrize("hold", ["BEGIN; SELECT * FROM outbox", "BEGIN IMMEDIATE"])
def test_a_file_held_by_another_program_changes_nothing_and_the_same_call_works_later(
    state: State, tmp_path: Path, hold: str
) -> None:
    """Somebody looks into it with a tool, and forgets: that is waited for like a full disk."""
    state._db.execute("PRAGMA busy_timeout = 1")
    with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as tool:
        for statement in hold.split("; "):
            tool.execute(statement).fetchall()
        for _ in range(2):
            with pytest.raises(StateHeld, match="another program"):
                advance(state, 10, dead_letters=[DEAD], notices=[STORED])
            assert (state.cursor("influx").seq, count(state, "dead_letters")) == (0, 0)  # type: ignore[union-attr]
        assert issubclass(StateHeld, JournalFull)
    assert advance(state, 10, dead_letters=[DEAD], notices=[STORED])


def test_untried_events_of_a_sink_merge_into_one(state: State) -> None:
    """From is the least, to and high water the greatest, rows the sum; another sink's stay apart."""
    other = replace(STORED, sink="parquet")
    for notice in (STORED, replace(STORED, high_water_seq=30, from_ns=150, to_ns=400), other):
        advance(state, 10, notices=[notice])
    mine, theirs = bodies(state)
    assert (mine["from"], mine["to"], mine["rows"], mine["high_water_seq"]) == (100, 400, 10, 30)
    assert theirs["sink"] == "parquet"


def test_after_a_rewind_the_lower_mark_counts(state: State) -> None:
    """High water of a newer generation replaces that of an older one."""
    advance(state, 10, notices=[replace(STORED, high_water_seq=90)])
    state.move_back("influx", 0, generation=1, drop_from=None)
    advance(state, 10, generation=1, notices=[replace(STORED, high_water_seq=20, generation=1)])
    [body] = bodies(state)
    assert (body["high_water_seq"], body["generation"], body["rows"]) == (20, 1, 10)


def test_an_event_that_was_tried_never_changes(state: State) -> None:
    """What comes later is an event of its own, behind the tried one, which is sent again as it was."""
    advance(state, 10, notices=[STORED])
    [first] = state.heads()
    state.mark_attempt(first)
    advance(state, 20, notices=[STORED])
    assert count(state, "outbox") == 2
    [again] = state.heads()
    assert (again.id, again.body, again.attempts) == (first.id, first.body, 1)


def test_what_is_marked_as_tried_is_what_was_merged_until_then(state: State) -> None:
    """A batch stored between the look into the outbox and the try is told of by that try."""
    advance(state, 10, notices=[STORED])
    [looked_up] = state.heads()
    advance(state, 20, notices=[STORED])
    to_send = state.mark_attempt(looked_up)
    assert json.loads(to_send.body)["rows"] == 10
    assert (to_send.id, to_send.attempts) == (looked_up.id, 1)


def test_an_outage_of_hours_leaves_two_events_of_a_sink(state: State) -> None:
    """The one that was tried, and one that tells of everything since; nothing is missing from the two."""
    advance(state, 1, notices=[replace(STORED, rows=1)])
    for hi in range(2, 500):
        state.mark_attempt(state.heads()[0])
        advance(state, hi, notices=[replace(STORED, rows=1, high_water_seq=hi)])
    assert state.outbox_count() == 2
    [tried] = state.heads()
    state.delivered(tried, 1000)
    [rest] = bodies(state)
    assert (json.loads(tried.body)["rows"] + rest["rows"], rest["high_water_seq"]) == (499, 499)


@pytest.mark.parametrize("order", ["stored before it was taken", "stored after it was taken"])
def test_the_interval_between_events_of_a_sink_holds_over_a_restart(tmp_path: Path, order: str) -> None:
    """From the moment that one is taken the next one waits, whenever it was stored; other lanes do not wait."""
    state = opened(tmp_path)
    state.put_cursor("influx", 0)
    advance(state, 10, notices=[STORED], now_ns=1000)
    [first] = state.heads()
    state.mark_attempt(first)
    state.postpone(first, 2000)
    assert state.heads()[0].not_before_ns == 2000
    if order == "stored before it was taken":
        advance(state, 20, notices=[STORED], now_ns=1500)
    state.delivered(first, 3000)
    if order == "stored after it was taken":
        advance(state, 20, notices=[STORED], now_ns=3500)
    state.close()
    state = opened(tmp_path)
    advance(state, 20, notices=[replace(STORED, sink="parquet"), GAP], now_ns=3600)
    waits = {one.lane: one.not_before_ns for one in state.heads()}
    assert waits == {("data", "influx"): 3000 + INTERVAL_NS, ("data", "parquet"): 3600, ("gap", ""): 3600}
    state.close()


def test_events_of_a_lane_are_told_in_order(state: State) -> None:
    """An end waits for its beginning, whatever its pause; lanes do not wait for one another."""
    closed = replace(GAP, event="gap.closed", id="gap-1-end")
    parked, recovered = (replace(STORED, event=f"sink.{word}", rows=0) for word in ("parked", "recovered"))
    advance(state, 10, notices=[GAP, STORED, closed, parked, recovered])
    heads = state.heads()
    assert [one.event for one in heads] == ["gap.opened", "data.stored", "sink.parked"]
    state.postpone(heads[0], 10**18)
    state.delivered(heads[2], 5)
    assert [one.event for one in state.heads()] == ["gap.opened", "data.stored", "sink.recovered"]
    state.delivered(heads[0], 5)
    assert [one.event for one in state.heads()] == ["data.stored", "gap.closed", "sink.recovered"]


def test_an_event_that_is_not_wanted_any_more_holds_up_none(tmp_path: Path) -> None:
    """What waits from when more was wanted is passed over, and is there again when it is wanted again."""
    with closing(opened(tmp_path)) as state:
        state.put_cursor("influx", 0)
        advance(state, 10, notices=[GAP, replace(GAP, event="gap.closed", id="end"), STORED])
    for wanted, heads in (
        ({"gap.closed"}, ["gap.closed"]),
        ({"data.stored:influx"}, ["data.stored"]),
        ({"data.stored:parquet"}, []),
        (None, ["gap.opened", "data.stored"]),
    ):
        with closing(opened(tmp_path, events=wanted and frozenset(wanted))) as state:
            assert [one.event for one in state.heads()] == heads


def test_an_event_with_its_own_id_is_written_once(state: State) -> None:
    """A derived event that is found again is the same event."""
    state.put_gaps((), notices=[GAP], now_ns=0)
    state.put_gaps((), notices=[GAP], now_ns=0)
    assert [body["id"] for body in bodies(state)] == ["gap-1"]


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [(None, 2), (frozenset(), 0), (frozenset({"gap.opened"}), 1), (frozenset({"data.stored:influx"}), 1)],
)
def test_only_events_that_are_wanted_are_kept(tmp_path: Path, wanted: frozenset[str] | None, kept: int) -> None:
    """By kind, or by kind and sink."""
    with closing(opened(tmp_path, events=wanted)) as state:
        state.put_cursor("influx", 0)
        advance(state, 10, notices=[STORED, GAP])
        assert state.outbox_count() == kept


def test_a_seq_that_was_attempted_is_remembered_as_used(state: State) -> None:
    """By cursor, attempt and head, over moves backwards."""
    state.attempt("influx", 40)
    advance(state, 10)
    assert state.highest_seq() == 40
    state.move_back("influx", 0, generation=1, drop_from=5)
    state.put_cursor("influx", 2)
    assert state.highest_seq() == 40
    state.attempt("influx", 30)
    assert state.cursor("influx").attempted_seq == 40  # type: ignore[union-attr]
    state.set_journal("r", head_seq=70, first_seq=1)
    assert state.highest_seq() == 70


def test_moving_back_takes_the_settled_mark_along(state: State) -> None:
    """Settled never stands before the cursor; a condition ends with the move."""
    advance(state, 20, settled_seq=15)
    state.set_condition("influx", "parked", "why")
    state.ask_rewind("influx", 5)
    state.move_back("influx", 5, generation=1, drop_from=6)
    cursor = state.cursor("influx")
    assert cursor is not None
    assert (cursor.seq, cursor.settled_seq, cursor.drop_from, cursor.rewind_to) == (5, 5, 6, None)
    assert (cursor.state, cursor.detail) == ("running", "")
    state.files_dropped("influx")
    assert state.cursor("influx").drop_from is None  # type: ignore[union-attr]


def test_gaps_are_replaced_by_their_later_form(state: State) -> None:
    """A gap that closes is the same gap."""
    gap = Gap(scope="connection", subject="feed", opened_ns=5, closed_ns=None, reason="r", planned=False, detail="")
    state.put_gaps([gap])
    state.put_gaps([replace(gap, closed_ns=9, planned=True)])
    assert state.gaps() == (replace(gap, closed_ns=9, planned=True),)


def test_a_newer_state_is_refused_and_untouched(tmp_path: Path) -> None:
    """A version that this one does not know is not guessed at."""
    opened(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "state.db")) as db:
        db.execute("PRAGMA user_version = 99")
    before = (tmp_path / "state.db").read_bytes()
    with pytest.raises(Refused, match="newer tickvault"):
        State.open(tmp_path / "state.db")
    assert (tmp_path / "state.db").read_bytes() == before


@pytest.mark.parametrize("where", [0, 20, 4096 + 3])
def test_garbage_is_set_aside_and_begun_anew(tmp_path: Path, where: int) -> None:
    """Wherever the file is damaged; what it was is kept for inspection."""
    opened(tmp_path).close()
    body = bytearray((tmp_path / "state.db").read_bytes())
    body[where : where + 64] = b"\xa5" * 64
    (tmp_path / "state.db").write_bytes(body)
    state, fresh = State.open(tmp_path / "state.db")
    assert fresh
    assert (state.journal(), state.cursors()) == (None, [])
    state.close()
    [aside] = tmp_path.glob("state.db.damaged-*")
    assert aside.read_bytes() == bytes(body)


def test_a_header_that_lets_nobody_write_is_damage(tmp_path: Path) -> None:
    """SQLite reads such a file; a fuzz of 2,000 damaged copies came to one. The folder's permissions are in order."""
    path = tmp_path / "state.db"
    opened(tmp_path).close()
    body = bytearray(path.read_bytes())
    body[18] = 3  # the version that is needed to write
    path.write_bytes(body)
    state, fresh = State.open(path)
    assert fresh
    state.put_cursor("influx", 5)
    state.close()


def test_a_value_that_changed_by_itself_is_damage(tmp_path: Path) -> None:
    """SQLite finds nothing wrong with it: the file is set aside at open, and others are told."""
    path = tmp_path / "state.db"
    state, _ = State.open(path)
    state.set_journal("r", head_seq=9, first_seq=1)
    state.put_cursor("influx", 5)
    state.close()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE cursors SET seq = seq + 256")
    with pytest.raises(Refused, match="cursors fail their checksum"):
        read_view(path)
    state, fresh = State.open(path)
    assert fresh
    assert state.cursors() == []
    assert len(list(tmp_path.glob("state.db.damaged-*"))) == 1
    state.close()


def test_an_empty_or_missing_file_is_a_new_state(tmp_path: Path) -> None:
    """The caller hears that it is new."""
    (tmp_path / "state.db").touch()
    state, fresh = State.open(tmp_path / "state.db")
    assert fresh
    state.close()
    state, fresh = State.open(tmp_path / "state.db")
    assert not fresh
    state.close()
    assert (tmp_path / "state.db").stat().st_mode & 0o777 == 0o600


def test_another_process_sees_one_moment(state: State, tmp_path: Path) -> None:
    """A view is a read transaction; without a file, or an empty one, there is none."""
    advance(state, 10, dead_letters=[DEAD], notices=[STORED])
    view = read_view(tmp_path / "state.db")
    assert view is not None
    assert (view.recorder_id, view.head_seq, view.dead_letters, view.outbox) == ("r", 10, 1, 1)
    assert read_view(tmp_path / "none.db") is None
    (tmp_path / "empty.db").touch()
    assert read_view(tmp_path / "empty.db") is None
