"""The gap ledger: what was not recorded, from events alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tickvault.ledger import Ledger
from tickvault.model import Event

if TYPE_CHECKING:
    from tickvault.model import Gap


def event(kind: str, at_ns: int, **body: object) -> Event:
    return Event(after_seq=0, at_ns=at_ns, boot_ns=0, kind=kind, body=body)


def told(*events: Event) -> list[tuple[str, str, int, int | None]]:
    """Return (scope, detail, opened, closed) of every gap as it was last told."""
    ledger = Ledger()
    gaps: dict[tuple[str, int], Gap] = {}
    for one in events:
        for gap in ledger.apply(one):
            gaps[gap.scope, gap.opened_ns] = gap
    return [(gap.scope, gap.detail, gap.opened_ns, gap.closed_ns) for gap in gaps.values()]


def test_until_the_first_connection_nothing_is_recorded() -> None:
    """A start opens a gap that the connection closes."""
    assert told(event("start", 10, last_ns=0), event("conn", 15, state="open")) == [
        ("connection", "connecting", 10, 15)
    ]


def test_a_lost_connection_is_a_gap_until_the_next() -> None:
    """With what ended it; one that we closed on purpose is none."""
    events = [
        event("start", 10, last_ns=0),
        event("conn", 11, state="open"),
        event("conn", 20, state="closed", reason="eof", code=1006),
        event("conn", 25, state="open"),
        event("conn", 30, state="closed", reason="stopped"),
    ]
    assert told(*events)[1:] == [("connection", "eof (code 1006)", 20, 25)]


def test_a_stop_closes_what_is_open() -> None:
    """The time until the next start is the recorder's gap."""
    events = [
        event("start", 10, last_ns=0),
        event("stop", 20),
        event("start", 50, last_ns=20, clean=True),
        event("conn", 55, state="open"),
    ]
    assert told(*events) == [
        ("connection", "connecting", 10, 20),
        ("recorder", "stopped", 20, 50),
        ("connection", "connecting", 50, 55),
    ]


def test_a_crash_closes_at_the_last_commit() -> None:
    """What was open when the process died ends there, and the recorder's gap begins."""
    events = [
        event("start", 10, last_ns=0),
        event("conn", 11, state="open"),
        event("conn", 20, state="closed", reason="eof"),
        event("start", 50, last_ns=30, clean=False),
    ]
    assert told(*events)[1:] == [
        ("connection", "eof", 20, 30),
        ("recorder", "ended without stopping", 30, 50),
        ("connection", "connecting", 50, None),
    ]


def test_a_clock_set_back_makes_no_gap_of_negative_length() -> None:
    """Ends are never before beginnings."""
    events = [
        event("start", 100, last_ns=0),
        event("conn", 90, state="open"),
        event("start", 40, last_ns=95, clean=False),
    ]
    assert all(closed is None or closed >= opened for _, _, opened, closed in told(*events))


def test_folding_in_parts_is_folding_at_once() -> None:
    """The fold's state is all that goes from one part to the next."""
    events = [
        event("start", 10, last_ns=0),
        event("conn", 11, state="open"),
        event("conn", 20, state="closed", reason="x"),
    ]
    whole = Ledger(events)
    part = Ledger(events[:1])
    for one in events[1:]:
        part.apply(one)
    assert part.open == whole.open is not None
