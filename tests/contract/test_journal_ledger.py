"""The ledger as the journal keeps it: heartbeats, standing still, clocks set back, crashes, and its copy in the state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from doubles import AT_NS, Vault, received

from tickvault import intake, segments, survey
from tickvault import journal as journals
from tickvault.errors import JournalFull
from tickvault.journal import Fact
from tickvault.ledger import Sessions
from tickvault.model import Gap

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

S = 10**9
ALIVE = Fact("alive", {})


class Watched(Vault):
    """A data folder whose two clocks are set by hand, in s."""

    def set(self, at_s: float) -> None:
        self.number = int(at_s * 1000)

    def alive(self, at_s: float) -> tuple[Gap, ...]:
        self.set(at_s)
        return self.journal.append([ALIVE]).gaps

    def told(self) -> list[tuple[str, float, float | None]]:
        """Return (reason, opened, closed) in s of the state's gaps, brought up to the journal's."""
        intake.reconcile_gaps(self.journal, self.state, AT_NS + self.number * 1_000_000)
        return [(one.reason, second(one.opened_ns), second(one.closed_ns)) for one in self.state.gaps()]  # type: ignore[misc]


def second(at_ns: int | None) -> float | None:
    return None if at_ns is None else (at_ns - AT_NS) / S


def conn(at_s: float, state: str, **body: object) -> Fact:
    return Fact("conn", {"conn": 1, "state": state, **body}, AT_NS + int(at_s * S))


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    vault = Watched(tmp_path)
    monkeypatch.setattr(journals, "_boot_ns", lambda: vault.number * 1_000_000)
    vault.open()
    yield vault
    vault.drop()


def test_standing_still_is_journalled_by_the_next_commit(vault: Watched) -> None:
    """From the last commit on, whatever it held; three seconds are none, and neither is the time before the first."""
    vault.set(20)
    vault.journal.append([conn(20, "open")])
    assert vault.alive(40) == ()
    assert vault.alive(43) == ()
    vault.set(60)
    (gap,) = vault.journal.append([received(60_000)]).gaps
    assert (gap.reason, second(gap.opened_ns), second(gap.closed_ns)) == ("recorder_stalled", 43, 60)
    vault.set(61)
    vault.journal.append([Fact("stop", {})])
    vault.set(99)
    assert vault.journal.append([Fact("cursor_moved", {"sink": "x", "to": 0, "generation": 1})]).gaps == ()


def test_waiting_for_room_is_not_standing_still(vault: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was tried all the time."""
    vault.journal.append([conn(0, "open")])
    vault.alive(1)

    def full(*_: Any) -> None:
        raise JournalFull("no room")

    with monkeypatch.context() as patch:
        patch.setattr(segments, "append", full)
        for at_s in range(2, 9):
            with pytest.raises(JournalFull):
                vault.alive(at_s)
    assert vault.alive(9) == ()


def test_a_clock_set_back_is_seen_by_the_heartbeat(vault: Watched) -> None:
    """A lost connection is missed in both of the hours that come twice."""
    vault.alive(1000)
    vault.journal.append([conn(1000, "open"), conn(1000, "live"), conn(1000, "closed", reason="lost")])
    vault.alive(1001)
    assert [(second(one.opened_ns), second(one.closed_ns)) for one in vault.alive(500)] == [(1000, 1001), (500, None)]
    [step] = survey.events(vault.folder, ("clock_step",))
    assert (step.body["from_ns"], step.body["to_ns"]) == (AT_NS + 1001 * S, AT_NS + 500 * S)
    (gap,) = vault.journal.append([conn(509, "open"), conn(510, "live")]).gaps
    assert (second(gap.opened_ns), second(gap.closed_ns)) == (500, 510)


def test_what_a_clock_set_forward_skips_is_a_gap(vault: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody recorded then; a little is what clocks do, and time since boot goes on as ever."""
    now_ms = {"boot": 0}
    monkeypatch.setattr(journals, "_boot_ns", lambda: now_ms["boot"] * 1_000_000)
    vault.alive(10)
    now_ms["boot"] += 1000
    assert vault.alive(13) == ()
    now_ms["boot"] += 1000
    (gap,) = vault.alive(500)
    assert (gap.reason, second(gap.opened_ns), second(gap.closed_ns)) == ("recorder_stalled", 13, 500)
    assert gap.detail == "the clock was set forward by 486.0 s"
    now_ms["boot"] += 1000
    assert vault.alive(501) == ()


def test_a_session_that_ends_closes_the_gap_without_any_event(vault: Watched) -> None:
    """And the next one that begins opens it again; heartbeats tell the time, and so do frames."""
    windows = {"NSE_EQ": ((AT_NS, AT_NS + 50 * S), (AT_NS + 100 * S, AT_NS + 200 * S))}
    sessions = Sessions(from_ns=AT_NS - S, to_ns=AT_NS + 1000 * S, windows=windows)
    sub = Fact("sub", {"conn": 1, "keys": ["NSE_EQ|A"]}, AT_NS)
    vault.journal.append([Fact("calendar", sessions.body(), AT_NS), conn(0, "open"), sub])
    vault.journal.append([conn(40, "closed", reason="lost")])
    assert vault.alive(49) == ()
    assert [second(one.closed_ns) for one in vault.alive(51)] == [50]
    assert [second(one.opened_ns) for one in vault.journal.append([received(100_500)]).gaps] == [100]


def test_a_crash_ends_with_the_last_heartbeat(vault: Watched) -> None:
    """To the second, however quiet it was; a start for another purpose in between changes nothing."""
    vault.journal.append([conn(1, "open"), received(2000)])
    vault.alive(30)
    vault.drop()
    vault.set(90)
    vault.open()
    assert ("recorder_down", 30, 90) in vault.told()


def test_the_copy_in_the_state_is_brought_up_to_the_journal(vault: Watched) -> None:
    """Lost, it is there again, with the same events to be sent; what nothing will ever close is closed."""
    vault.journal.append([conn(0, "open"), conn(1, "live"), conn(5, "closed", reason="lost")])
    vault.journal.append([conn(5, "open"), conn(6, "live")])
    vault.alive(7)
    vault.drop()
    vault.set(10)
    vault.open()
    before = vault.told()
    assert before == [
        ("disconnected", 0, 1),
        ("disconnected", 5, 6),
        ("recorder_down", 7, 10),
        ("disconnected", 10, None),
    ]
    vault.drop()
    vault.lose_state()
    vault.set(12)
    vault.open()
    orphan = Gap(
        scope="segment", subject="X", opened_ns=AT_NS, closed_ns=None, reason="silent", planned=False, detail=""
    )
    vault.state.put_gaps([orphan])
    told = vault.told()
    assert ("silent", 0, 12) in told
    assert [one for one in told if one[0] != "silent"][:3] == before[:3]
    assert vault.told() == told
