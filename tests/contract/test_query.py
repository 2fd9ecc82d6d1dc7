"""Queries over files and the journal's tail: every row once, fresh to the last commit, or a refusal."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import pytest
from doubles import AT_MS, Vault, payload, received

from tickvault import prune, query
from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.errors import JournalDamaged, Refused
from tickvault.journal import Fact
from tickvault.model import SCHEMAS, Definition, Gap
from tickvault.segments import defs_body

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    vault = Vault(tmp_path / "it's data")
    vault.open()
    yield vault
    vault.drop()


def ask(vault: Vault, sql: str) -> list[tuple[Any, ...]]:
    with query.connect(vault.path) as db:
        return db.execute(sql).fetchall()


def seqs(vault: Vault) -> list[int]:
    return [row[0] for row in ask(vault, "SELECT seq FROM ticks ORDER BY seq")]


def held(last: int) -> list[int]:
    return [seq for seq in range(1, last + 1) if seq % 7]


def test_a_folder_that_was_never_recorded_to_is_refused(tmp_path: Path) -> None:
    """The message says where to look."""
    with pytest.raises(Refused, match="nothing is recorded"), query.connect(tmp_path):
        pass


def test_views_of_an_empty_recording_are_empty_and_typed(vault: Vault) -> None:
    """No file and no frame: every view is there with its columns."""
    for name, schema in SCHEMAS.items():
        assert ask(vault, f"SELECT * FROM {name}") == []
        assert [row[0] for row in ask(vault, f"DESCRIBE {name}")] == schema.names


@pytest.mark.parametrize("delivered", [0, 1, 2, 4])
def test_files_and_tail_are_one(vault: Vault, delivered: int) -> None:
    """Wherever the cursor stands, every frame is there once; what comes is seen at once."""
    vault.append(10)
    for _ in range(delivered):
        vault.deliver(3)
    assert seqs(vault) == held(10)
    vault.append(3)
    assert seqs(vault) == held(13)


def test_files_beyond_the_cursor_do_not_count(vault: Vault) -> None:
    """A crash between naming the files and moving the cursor shows each row once."""
    vault.append(6)
    vault.deliver(3)
    cursor = vault.cursor
    vault.deliver(3)
    with vault.state._transaction() as db:
        db.execute("UPDATE cursors SET seq = ?", (cursor.seq,))
    assert seqs(vault) == held(6)


def test_a_state_older_than_a_rewind_is_not_believed(vault: Vault, tmp_path: Path) -> None:
    """Its cursor speaks of files that are no more: the journal answers, or nobody does."""
    vault.append(6)
    vault.deliver(3)
    copy = tmp_path / "copy.db"
    copy.write_bytes((vault.path / "state.db").read_bytes())
    vault.rewind(0)
    vault.deliver(5)
    vault.drop()
    vault.restore_state(copy)
    assert seqs(vault) == held(6)


def test_frames_that_nobody_has_are_a_refusal_not_a_short_answer(vault: Vault) -> None:
    """Behind the cursor and no longer in the journal: the query fails, twice looked."""
    vault.journal.max_segment_frames = 2
    for _ in range(3):
        vault.append(2)
    vault.drop()
    (vault.folder / "0000000000000001.db").unlink()
    with pytest.raises(JournalDamaged, match="frames 1 to 2 are missing"):
        seqs(vault)


def test_a_damaged_frame_in_the_tail_is_a_refusal(vault: Vault) -> None:
    """Damaged bytes are never served; the segment is named."""
    vault.append(3)
    db = vault.journal._db
    assert db is not None
    db.execute("UPDATE frames SET payload = x'00' WHERE seq = 2")
    with pytest.raises(JournalDamaged, match=r"0000000000000001\.db: frame 2 fails its checksum"):
        seqs(vault)


def test_a_rewind_during_the_look_is_noticed(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that vanish between the cursor and the listing are not taken for rows that never were."""
    vault.append(6)
    vault.deliver_all(3)
    scan = query.scan
    rewinds = iter([0])

    def meanwhile(root: Path) -> Any:
        for to_seq in rewinds:
            vault.rewind(to_seq)
        return scan(root)

    monkeypatch.setattr(query, "scan", meanwhile)
    assert seqs(vault) == held(6)


def test_a_candle_is_its_last_version_over_files_and_tail(vault: Vault) -> None:
    """The highest seq of (instrument, interval, time) wins, wherever it is."""
    for number in (1, 2, 3):
        message = pb.FeedResponse(currentTs=AT_MS)
        message.feeds["A"].fullFeed.marketFF.marketOHLC.ohlc.add(interval="I1", ts=AT_MS, open=float(number))
        vault.journal.append([received(number, message.SerializeToString())])
        if number < 3:
            vault.deliver(1)
    assert ask(vault, "SELECT open, seq FROM candles") == [(3.0, 3)]


def test_definitions_and_gaps_have_views(vault: Vault) -> None:
    """Symbols are those in force at each frame; gaps come from the ledger."""
    one = Definition(instrument_key="NSE_EQ|A", symbol="ONE", expiry=dt.date(2026, 9, 24))
    vault.journal.append([Fact("defs", defs_body([one])), received(1)])
    vault.deliver(1)
    vault.journal.append([received(2)])
    gap = Gap(scope="connection", subject="feed", opened_ns=5000, closed_ns=None, reason="r", planned=False, detail="")
    vault.state.put_gaps([gap])
    assert ask(vault, "SELECT seq, symbol FROM ticks ORDER BY seq") == [(1, "ONE"), (2, "ONE")]
    assert ask(vault, "SELECT valid_from_seq, symbol, expiry FROM instruments") == [(1, "ONE", dt.date(2026, 9, 24))]
    assert ask(vault, "SELECT scope, reason, closed_at FROM gaps") == [("connection", "r", None)]


def test_extreme_times_neither_fail_nor_hide_a_query(vault: Vault) -> None:
    """One absurd trade time must not keep the other rows from being read, from files or tail."""
    message = pb.FeedResponse.FromString(payload(1))
    message.feeds["NSE_EQ|A"].fullFeed.marketFF.ltpc.ltt = 2**63 - 1
    for _ in range(2):
        vault.journal.append([received(1, message.SerializeToString())])
        assert {row[0] for row in ask(vault, "SELECT ltt FROM ticks")} == {None}
        vault.deliver(1)


def test_a_query_can_be_asked_while_files_are_locked_for_swapping_only_after(vault: Vault) -> None:
    """The shared lock is held to the end: who wants to swap files finds it taken."""
    import fcntl

    vault.append(3)
    vault.deliver(3)
    with query.connect(vault.path) as db, (vault.path / "parquet" / ".lock").open("rb") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert db.execute("SELECT count(*) FROM ticks").fetchall() == [(3,)]


def test_without_parquet_what_is_left_of_the_journal_answers(tmp_path: Path) -> None:
    """A recorder that delivers to another store only prunes all the same; day and gaps are to be had then too."""
    vault = Vault(tmp_path / "data")
    vault.open()
    vault.journal.max_segment_frames = 4
    for _ in range(10):
        vault.append(1)
    vault.state._db.execute("UPDATE cursors SET sink = 'influx', seq = 10, settled_seq = 10")
    with vault.state._transaction():
        pass
    assert prune.prune(vault.folder, vault.state, ["influx"], before_ns=None).first_seq == 9
    with query.connect(vault.path) as db:
        assert db.execute("SELECT min(seq), max(seq) FROM market_status").fetchall() == [(9, 10)]
        db.execute("SELECT * FROM gaps").fetchall()
    vault.drop()
