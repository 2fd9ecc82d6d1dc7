"""Pruning: what goes is delivered and old; what is read later is the same as if nothing had gone."""

from __future__ import annotations

import itertools
import random
import shutil
from typing import TYPE_CHECKING

import pytest
from doubles import AT_NS, Crash, Vault, frames_of, received

from tickvault import archive, intake, prune, segments, survey
from tickvault.errors import JournalDamaged, Refused
from tickvault.journal import Fact
from tickvault.model import Definition
from tickvault.reading import JournalReader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tickvault.model import Event

S = 10**9
LONG_AGO = AT_NS - S


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    vault = Vault(tmp_path / "data")
    vault.open()
    vault.journal.max_segment_frames = 4
    yield vault
    vault.drop()


def starts(vault: Vault) -> list[int]:
    return [int(path.stem) for path in segments.paths(vault.folder)]


def removed(vault: Vault, *, before_ns: int | None = None, sinks: tuple[str, ...] = ("parquet",)) -> int:
    return prune.prune(vault.folder, vault.state, sinks, before_ns=before_ns).segments


def fill(vault: Vault, count: int) -> None:
    for _ in range(count):
        vault.append(1)


def deliver(vault: Vault) -> None:
    vault.deliver_all(100)


def reopened(vault: Vault) -> None:
    vault.drop()
    vault.open()
    vault.journal.max_segment_frames = 4


def facts(vault: Vault, kinds: tuple[str, ...]) -> list[Event]:
    return [event for event in survey.events(vault.folder, kinds) if not event.body.get("carried")]


def folded(vault: Vault) -> list[object]:
    return [(one.key, one.closed_ns, one.reason) for one in survey.ledger(vault.folder)[1]]


def test_only_what_is_delivered_sealed_and_old_goes(vault: Vault) -> None:
    """Oldest first, and never the newest segment, whatever is delivered of it."""
    fill(vault, 12)
    assert starts(vault) == [1, 5, 9]
    assert removed(vault) == 0
    vault.deliver(7)
    assert removed(vault, before_ns=LONG_AGO) == 0
    assert removed(vault) == 1
    assert starts(vault) == [5, 9]
    deliver(vault)
    assert (removed(vault), removed(vault)) == (1, 0)
    assert starts(vault) == [9]
    journal = vault.state.journal()
    assert journal is not None
    assert journal[2] == 9
    assert [frame.seq for frame in frames_of(vault.folder, 8)] == [9, 10, 11, 12]
    assert list(survey.verify(vault.folder, running=True, head_seq=12)) == []
    reopened(vault)
    assert (vault.journal.first_seq, vault.journal.last_seq) == (9, 12)


def test_age_is_that_of_the_last_commit(vault: Vault) -> None:
    """A segment that spans the border stays."""
    fill(vault, 12)
    deliver(vault)
    assert removed(vault, before_ns=AT_NS + 4 * 1_000_000) == 0
    assert removed(vault, before_ns=AT_NS + 4 * 1_000_000 + 1) == 1
    assert starts(vault) == [5, 9]


def test_a_look_that_finds_nothing_to_remove_reads_the_oldest_two(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is a look every second while the disk has less free than its reserve, and hundreds of segments."""
    fill(vault, 40)
    looked: list[int] = []
    is_born = segments.is_born

    def noted(path: Path) -> bool:
        looked.append(int(path.stem))
        return is_born(path)

    monkeypatch.setattr(segments, "is_born", noted)
    assert removed(vault) == 0
    assert prune.oldest(vault.folder, vault.state, ("parquet",)) is not None
    assert looked == [1, 5, 1, 5]
    deliver(vault)
    assert removed(vault) == 9


@pytest.mark.parametrize("mark", ["settled", "rewind", "drop", "unknown"])
def test_whatever_a_sink_in_use_may_still_need_stays(vault: Vault, mark: str) -> None:
    """What its store is not sure to keep, what it is to go back to, and all for one that has no cursor yet."""
    fill(vault, 12)
    deliver(vault)
    sinks: tuple[str, ...] = ("parquet", "influx")
    if mark != "unknown":
        vault.state.put_cursor("influx", 12)
    if mark == "settled":
        vault.state.advance(
            "influx", 12, generation=0, head_seq=12, settled_seq=3, dead_letters=(), notices=(), now_ns=0
        )
    elif mark == "rewind":
        vault.state.ask_rewind("influx", 3)
    elif mark == "drop":
        vault.state.move_back("influx", 12, generation=1, drop_from=4)
    assert removed(vault, sinks=sinks) == 0
    assert removed(vault) == 2  # not in use, it holds nothing


def test_the_ledger_and_what_it_is_folded_from_are_the_same_afterwards(vault: Vault) -> None:
    """Gaps, generations, subscriptions: with and without the state, and however often it is opened."""
    vault.journal.append([Fact("conn", {"conn": 1, "state": "open"}), Fact("sub", {"conn": 1, "keys": ["NSE_EQ|A"]})])
    fill(vault, 5)
    vault.journal.append([Fact("conn", {"conn": 1, "state": "closed", "reason": "lost"}, AT_NS + 6 * 1_000_000)])
    fill(vault, 4)
    deliver(vault)
    vault.rewind(7)
    reopened(vault)
    fill(vault, 3)
    deliver(vault)
    intake.reconcile_gaps(vault.journal, vault.state, AT_NS)
    kinds = [("sub",), ("conn",), ("start",), ("cursor_moved",)]
    before = [facts(vault, kind) for kind in kinds]
    told, gaps, in_force = folded(vault), vault.state.gaps(), dict(vault.journal.definitions)
    assert removed(vault) > 0
    assert starts(vault) == [vault.journal.last_seq - 2]
    assert [facts(vault, kind) for kind in kinds] == before
    assert folded(vault) == told
    assert vault.state.gaps() == gaps
    assert len(gaps) > 1
    vault.drop()
    vault.lose_state()
    vault.open()
    intake.reconcile_gaps(vault.journal, vault.state, AT_NS)
    assert set(gaps) - set(vault.state.gaps()) == {gap for gap in gaps if gap.closed_ns is None}
    assert vault.journal.definitions == in_force
    assert vault.cursor.generation > 1


def test_facts_behind_the_last_frame_that_went_govern_the_next(vault: Vault) -> None:
    """A definition that came between two segments is read by a sink that stands between them."""
    fill(vault, 3)
    defs = Fact("defs", segments.defs_body([Definition(instrument_key="NSE_EQ|A", symbol="A")]))
    vault.number += 1
    vault.journal.append([received(vault.number), defs, Fact("conn", {"conn": 2, "state": "open"})])
    fill(vault, 1)
    vault.deliver(4)
    assert vault.cursor.seq == 4

    def behind() -> object:
        reader = JournalReader(vault.folder, 4)
        chunk = reader.read(max_frames=9, max_bytes=10**9)
        reader.close()
        return chunk

    before = behind()
    assert removed(vault) == 1
    assert behind() == before
    assert behind().changed  # type: ignore[attr-defined]


def test_a_sink_that_comes_back_behind_what_went_begins_there_with_a_gap(vault: Vault) -> None:
    """Told once, of the store that misses it; a store that had it, by a state of yesterday, misses nothing."""
    vault.state.put_cursor("influx", 2)
    vault.deliver(0)
    fill(vault, 4)
    copy = vault.path / "yesterday"
    shutil.copy(vault.path / "state.db", copy)
    fill(vault, 8)
    deliver(vault)
    assert removed(vault) == 2
    for _ in range(2):
        assert vault.cursors.open("influx", None).seq == 8
    [gap] = [gap for gap in vault.state.gaps() if gap.scope == "sink"]
    assert (gap.subject, gap.reason, gap.opened_ns, gap.closed_ns) == (
        "influx",
        "pruned",
        AT_NS + 1_000_000,
        AT_NS + 8_000_000,
    )
    assert "frames 3-8" in gap.detail
    vault.drop()
    vault.restore_state(copy)
    vault.open()
    assert vault.cursor.seq <= vault.journal.last_seq
    assert not [one for one in survey.events(vault.folder, ("skipped",)) if one.body["sink"] == "parquet"]


def test_a_new_sink_begins_where_the_journal_does(vault: Vault) -> None:
    """Without a gap: it was never promised more."""
    fill(vault, 12)
    deliver(vault)
    assert removed(vault) == 2
    assert vault.cursors.open("new", None).seq == 8
    assert not list(survey.events(vault.folder, ("skipped",)))


def test_a_rewind_to_what_went_is_refused_and_names_the_lowest(vault: Vault) -> None:
    """Of the journal, and of files that begin before it."""
    fill(vault, 12)
    deliver(vault)
    for file in vault.store.files():
        if file.lo == 9:  # a batch may span segments
            file.path.rename(file.path.with_name(file.path.name.replace(f"{9:016}", f"{7:016}")))
    assert removed(vault) == 2
    with pytest.raises(Refused, match="between 8 "):
        vault.rewind(7)
    with pytest.raises(Refused, match=r"begins at 5, .*lowest possible --to-seq is 12$"):
        vault.rewind(8)
    vault.rewind(12)


def test_a_crash_at_any_step_is_finished_at_the_next_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, between and behind the steps, with every file in turn."""
    for steps in itertools.count():
        vault = Vault(tmp_path / str(steps))
        vault.open()
        vault.journal.max_segment_frames = 4
        fill(vault, 12)
        deliver(vault)
        before, told = frames_of(vault.folder, 8), folded(vault)
        left = iter([True] * steps)

        def step(real: object, left: Iterator[bool] = left) -> object:
            def stepped(*args: object, **kwargs: object) -> object:
                if not next(left, False):
                    raise Crash
                return real(*args, **kwargs)  # type: ignore[operator]

            return stepped

        with monkeypatch.context() as patch:
            from pathlib import Path as Paths

            patch.setattr(archive, "keep", step(archive.keep))
            patch.setattr(vault.state, "raise_first_seq", step(vault.state.raise_first_seq))
            patch.setattr(Paths, "unlink", step(Paths.unlink))
            patch.setattr(prune, "sync_folder", step(prune.sync_folder))
            try:
                done = removed(vault)
            except Crash:
                done = 0
        reopened(vault)
        assert frames_of(vault.folder, 8) == before
        assert folded(vault)[: len(told)] == told
        assert list(survey.verify(vault.folder, running=True)) == []
        removed(vault)
        assert starts(vault) == [13]
        vault.drop()
        if done:
            assert steps > 10
            return


def test_readers_beside_see_the_journal_before_or_after(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment that goes between listing and opening is as if it had gone before; its facts are read all the same."""
    fill(vault, 12)
    deliver(vault)
    listed, told = segments.paths(vault.folder), folded(vault)
    assert removed(vault) == 2
    monkeypatch.setattr(segments, "paths", lambda _: listed)
    assert survey.stats(vault.folder).frames == 4
    assert folded(vault) == told
    assert survey.received_ns_behind(vault.folder, 0) == AT_NS + 9_000_000


@pytest.mark.parametrize("step", ["about to go", "gone"])
def test_what_a_reader_meets_in_a_segment_that_goes_is_no_damage(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Its log goes before it does, and SQLite calls that an I/O error; nothing is replaced, and nothing told as lost."""
    fill(vault, 12)
    deliver(vault)
    path = segments.paths(vault.folder)[0]
    if step == "about to go":
        monkeypatch.setattr(prune, "_remove", lambda _: None)
    removed(vault)
    assert path.exists() == (step == "about to go")
    assert vault.journal.mend(path, "disk I/O error") == ()
    assert survey.lost_ranges(vault.folder) == []
    assert not (vault.folder / "damaged").exists()


def test_damage_in_what_was_kept_is_found(vault: Vault) -> None:
    """Whichever byte; what reads it says so, or reads what was written."""
    fill(vault, 12)
    deliver(vault)
    removed(vault)
    path = vault.folder / archive.NAME
    whole, before = path.read_bytes(), list(archive.events(vault.folder))
    rng, found = random.Random(5), 0
    for _ in range(200):
        content = bytearray(whole)
        page = rng.randrange(len(content) // 8192) * 8192
        content[page + rng.choice([rng.randrange(100), rng.randrange(7700, 8192)])] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:
            assert list(archive.events(vault.folder)) == before
        except (JournalDamaged, Refused):
            found += 1
            assert list(archive.verify(vault.folder))
    assert found > 20


@pytest.mark.parametrize("state_lost", [False, True])
@pytest.mark.parametrize("gone", ["oldest", "all", "facts", "facts emptied", "facts begun anew"])
def test_what_nothing_accounts_for_is_lost(vault: Vault, gone: str, *, state_lost: bool) -> None:
    """Every number from 1 on is in a segment, was pruned, or is lost: a missing beginning is no beginning."""
    fill(vault, 12)
    vault.deliver(2)
    if gone.startswith("facts"):
        deliver(vault)
        assert removed(vault) == 2
    vault.drop()
    facts_path = vault.folder / archive.NAME
    for path in {"oldest": segments.paths(vault.folder)[:1], "all": segments.paths(vault.folder)}.get(gone, []):
        for one in vault.folder.glob(f"{path.name}*"):
            one.unlink()
    if gone != "facts emptied":
        facts_path.unlink(missing_ok=True)
    else:
        facts_path.write_bytes(b"")
    if gone == "facts begun anew":  # by a recorder that was running
        vault.open()
        vault.journal.max_segment_frames = 4
        fill(vault, 8)
        deliver(vault)
        assert removed(vault) > 1
        vault.drop()
    if gone != "all":
        assert any("are missing" in line for line in survey.verify(vault.folder, running=False)) == (
            gone != "facts begun anew"
        )
    if state_lost and gone != "all":  # of a folder with neither nothing is known
        vault.lose_state()
    vault.open()
    expected = {"oldest": (1, 4), "all": (1, 12)}.get(gone, (1, 8))
    assert survey.lost_ranges(vault.folder) == [expected]
    assert list(survey.verify(vault.folder, running=True, head_seq=vault.journal.last_seq)) == []
    assert [gap.detail for gap in vault.journal.gaps if gap.reason == "lost"]


def test_what_is_delivered_costs_nothing(vault: Vault) -> None:
    """Only what a sink in use has not stored is told as lost when the oldest segment has to go."""
    fill(vault, 12)
    vault.state.put_cursor("parquet", 2)
    body = prune.oldest(vault.folder, vault.state, ["parquet"])
    assert body is not None
    assert (body["from"], body["to"]) == (3, 4)
    vault.state.put_cursor("parquet", 4)
    assert prune.oldest(vault.folder, vault.state, ["parquet"]) is None


def test_frames_that_count_as_lost_and_are_still_there_are_no_damage(vault: Vault) -> None:
    """A crash came between telling what is removed to make room, and removing it."""
    fill(vault, 12)
    body = prune.oldest(vault.folder, vault.state, ["parquet"])
    assert body is not None
    vault.journal.append([Fact("lost", body)])
    assert list(survey.verify(vault.folder, running=True, head_seq=12)) == []


def test_a_full_disk_prunes_what_needs_no_room(vault: Vault) -> None:
    """`bytes_wanted` stops as soon as that is freed."""
    fill(vault, 12)
    deliver(vault)
    freed = prune.prune(vault.folder, vault.state, ("parquet",), before_ns=None, bytes_wanted=1)
    assert (freed.segments, freed.first_seq) == (1, 5)
    vault.journal.append([received(99)])
