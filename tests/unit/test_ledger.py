"""The gap ledger: what was not recorded, from events alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tickvault.ledger import KINDS, MEANINGS, Interval, Ledger, Sessions, State, intervals
from tickvault.model import Event

if TYPE_CHECKING:
    from tickvault.model import Gap

S = 10**9
EQ, FO = "NSE_EQ|A", "NSE_FO|1"


def event(kind: str, at_ns: int, **body: object) -> Event:
    return Event(after_seq=0, at_ns=at_ns, boot_ns=0, kind=kind, body=body)


def beat(kind: str, at_s: float, *, seq: int = 0, **body: object) -> Event:
    """Return an event in seconds."""
    return Event(after_seq=seq, at_ns=int(at_s * S), boot_ns=0, kind=kind, body=body)


def sub(at_s: float, conn: int, *keys: str, kind: str = "sub", **more: object) -> Event:
    return beat(kind, at_s, seq=int(at_s), conn=conn, keys=list(keys), **more)


def opened(at_s: float, conn: int = 1, **more: object) -> Event:
    return beat("conn", at_s, seq=int(at_s), conn=conn, state="open", **more)


def up(at_s: float, conn: int, *keys: str, **more: object) -> tuple[Event, Event]:
    """Return a connection that opens and asks, at once; an earlier version said no more than that."""
    return opened(at_s, conn, **more), sub(at_s, conn, *(keys or (FO if more else EQ,)), **more)


def closed(at_s: float, conn: int = 1, reason: str = "lost", **more: object) -> Event:
    return beat("conn", at_s, seq=int(at_s), conn=conn, state="closed", reason=reason, **more)


def failed(at_s: float, conn: int = 1, reason: str = "unreachable", **more: object) -> Event:
    return beat("conn", at_s, seq=int(at_s), conn=conn, state="failed", reason=reason, **more)


def watched(at_s: float, state: str, *segments: str, **more: object) -> Event:
    return beat("watch", at_s, seq=int(at_s), state=state, segments=list(segments), **more)


def calendar(at_s: float, *windows: tuple[float, float], to_s: float = 10_000, segment: str = "NSE_EQ") -> Event:
    sessions = Sessions(
        from_ns=0, to_ns=int(to_s * S), windows={segment: tuple((int(a * S), int(b * S)) for a, b in windows)}
    )
    return beat("calendar", at_s, seq=int(at_s), **sessions.body())


def gaps_of(*events: Event) -> list[tuple[str, str, str, float, float | None]]:
    """Return (scope, subject, reason, opened, closed) in s of every gap of some length, as it was last told."""
    ledger, gaps = Ledger(), dict[tuple[str, str, int], "Gap"]()
    for one in events:
        for gap in ledger.apply(one):
            gaps[gap.scope, gap.subject, gap.opened_ns] = gap
    assert set(ledger.open) == {gap for gap in gaps.values() if gap.closed_ns is None}
    return [
        (one.scope, one.subject, one.reason, one.opened_ns / S, None if one.closed_ns is None else one.closed_ns / S)
        for one in gaps.values()
        if one.closed_ns != one.opened_ns
    ]


def states(found: tuple[Interval, ...]) -> list[tuple[str, float, float]]:
    return [(one.state.value, one.from_ns / S, one.to_ns / S) for one in found]


START = (beat("start", 10, last_ns=0), opened(11), sub(11, 1, EQ))


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
    assert told(event("start", 10, last_ns=0), event("conn", 15, state="open"), event("sub", 15, keys=[EQ])) == [
        ("connection", "connecting", 10, 15)
    ]


def test_a_lost_connection_is_a_gap_until_the_next() -> None:
    """With what ended it; one that we closed on purpose is none."""
    events = [
        event("start", 10, last_ns=0),
        event("conn", 11, state="open"),
        event("sub", 11, keys=[EQ]),
        event("conn", 20, state="closed", reason="eof", code=1006),
        event("conn", 25, state="open"),
        event("sub", 25, keys=[EQ]),
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
        event("sub", 55, keys=[EQ]),
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
        event("sub", 11, keys=[EQ]),
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
        event("sub", 90, keys=[EQ]),
        event("start", 40, last_ns=95, clean=False),
    ]
    assert all(closed is None or closed >= opened for _, _, opened, closed in told(*events))


def test_folding_in_parts_is_folding_at_once() -> None:
    """The fold's state is all that goes from one part to the next."""
    events = [
        event("start", 10, last_ns=0),
        event("conn", 11, state="open"),
        event("sub", 11, keys=[EQ]),
        event("conn", 20, state="closed", reason="x"),
    ]
    whole = Ledger(events)
    part = Ledger(events[:1])
    for one in events[1:]:
        part.apply(one)
    assert part.open == whole.open
    assert len(whole.open) == 1


def test_why_there_is_no_connection_is_the_reason() -> None:
    """A refused token is another gap than the network; what else fails only says more of the one there is."""
    events = [
        *START,
        closed(20),
        beat("conn", 21, seq=21, state="failed", reason="unreachable", detail="no route"),
        beat("conn", 25, seq=25, state="failed", reason="token_rejected", detail="401"),
        beat("conn", 27, seq=27, state="failed", reason="unreachable", detail="no route"),
        *up(30, 2),
    ]
    assert gaps_of(*events)[1:] == [
        ("connection", "feed", "disconnected", 20, 25),
        ("connection", "feed", "token_rejected", 25, 27),
        ("connection", "feed", "disconnected", 27, 30),
    ]


def live(at_s: float, conn: int, **more: object) -> Event:
    return beat("conn", at_s, conn=conn, state="live", **more)


def test_an_open_socket_is_no_recording() -> None:
    """It is once the connection serves what it is for, whatever held it up: the list, a request, the broker."""
    events = [*START, closed(20), opened(21, 2, keys=2), sub(24, 2, EQ), sub(25, 2, FO), live(26, 2)]
    for told in range(3, 7):
        assert gaps_of(*events[: 1 + told])[1:] == [("connection", "feed", "disconnected", 20, None)]
    assert gaps_of(*events, live(27, 1))[1:] == [("connection", "feed", "disconnected", 20, 26)]
    assert gaps_of(*events, closed(30, 2), opened(31, 3, keys=1), closed(33, 3), *up(35, 4))[2:] == [
        ("connection", "feed", "disconnected", 30, 35)
    ]


def test_what_a_connection_asks_for_is_what_it_is_for() -> None:
    """Not what the one before had: its instruments may have been given to another."""
    fewer = [*START, sub(12, 1, FO), closed(20), opened(21, 2, keys=1), sub(22, 2, EQ), live(23, 2)]
    assert Ledger(fewer).segments == {"NSE_EQ"}
    assert gaps_of(*fewer)[1:] == [("connection", "feed", "disconnected", 20, 23)]


def test_what_is_refused_is_no_matter_of_the_connection() -> None:
    """One gap makes way for the other, and a new connection to the same refusal begins none of its own."""
    refused = watched(26, "refused", "NSE_EQ", since_ns=21 * S)
    events = [*START, closed(20), opened(21, 2, keys=1), sub(21, 2, EQ), refused, closed(30, 2), opened(31, 3, keys=1)]
    events += [sub(31, 3, EQ), live(40, 3), watched(40, "served", "NSE_EQ", conn=3), closed(50, 3)]
    assert gaps_of(*events)[1:] == [
        ("connection", "feed", "disconnected", 20, 26),
        ("segment", "NSE_EQ", "subscription_refused", 21, 40),
        ("connection", "feed", "disconnected", 30, 31),
        ("connection", "feed", "disconnected", 50, None),
    ]


def test_a_planned_socket_is_missed_from_the_start_on() -> None:
    """Or, if others serve by then, from when it is wanted; in its own segments, until it serves."""
    wanted = beat("conn", 13, conn=2, state="wanted", segments=["NSE_FO"], **SECOND)
    begin = [beat("start", 10, last_ns=0), wanted]
    serving = [opened(14, 2, keys=1, **SECOND), sub(15, 2, FO, **SECOND), live(16, 2, **SECOND)]
    first = opened(11, 1, keys=1), sub(11, 1, EQ), live(12, 1)
    assert gaps_of(*begin, *serving)[1] == ("connection", "feed 2", "disconnected", 10, 16)
    assert gaps_of(begin[0], *first, wanted, *serving)[1] == ("connection", "feed 2", "disconnected", 13, 16)
    found = intervals([begin[0], *first, wanted, *serving], 12 * S, 20 * S, segment="NSE_FO")
    assert [one.detail for one in found] == ["", "feed 2: connecting", ""]


def test_an_overrun_is_our_own_doing_until_it_is_over() -> None:
    """That attempts fail afterwards does not change it."""
    assert gaps_of(*START, closed(20, reason="overrun"), failed(21, 2), *up(22, 2))[1:] == [
        ("connection", "feed", "overrun", 20, 22)
    ]


SECOND = {"socket": 2}
BOTH = (*START, opened(12, 2, **SECOND), sub(12, 2, FO, **SECOND))


def test_each_socket_has_its_own_gap() -> None:
    """However many connections each has had."""
    events = [*BOTH, closed(20, 2, **SECOND), closed(21, 1), opened(22, 3), sub(22, 3, EQ)]
    assert gaps_of(*events)[1:] == [
        ("connection", "feed 2", "disconnected", 20, None),
        ("connection", "feed", "disconnected", 21, 22),
    ]
    assert gaps_of(*events, *up(30, 4, **SECOND))[1] == ("connection", "feed 2", "disconnected", 20, 30)


def test_why_a_socket_is_down_says_nothing_of_another() -> None:
    """A refused token, an overrun, an attempt that failed: each of the socket that tells it."""
    events = [
        *BOTH,
        closed(20, 1),
        closed(20, 2, reason="overrun", **SECOND),
        failed(21, 3, "token_rejected"),
        failed(22, 4, **SECOND),
        *up(30, 5),
        *up(31, 6, **SECOND),
    ]
    assert gaps_of(*events)[1:] == [
        ("connection", "feed", "disconnected", 20, 21),
        ("connection", "feed 2", "overrun", 20, 31),
        ("connection", "feed", "token_rejected", 21, 30),
    ]


def test_a_socket_that_never_opened_is_missed_from_its_first_attempt_on() -> None:
    """In the segments that it is to carry, which nobody has subscribed to yet."""
    hours = Sessions(from_ns=0, to_ns=999 * S, windows={"NSE_EQ": ((0, 40 * S),), "NSE_FO": ((0, 60 * S),)})
    events = [
        beat("calendar", 5, **hours.body()),
        *START,
        failed(20, 2, segments=["NSE_FO"], **SECOND),
        failed(30, 2, "token_rejected", segments=["NSE_FO"], **SECOND),
        beat("sub", 70, conn=1, keys=[]),
    ]
    assert gaps_of(*events)[1:] == [
        ("connection", "feed 2", "disconnected", 20, 30),
        ("connection", "feed 2", "token_rejected", 30, 60),
    ]
    assert states(intervals(events, 11 * S, 60 * S, segment="NSE_EQ")) == [("recorded", 11, 40), ("closed", 40, 60)]


def test_a_further_socket_takes_nobodys_place() -> None:
    """What is lost on the first is not found by the third; each comes back in its own place."""
    third = {"state": "open", "socket": 3}
    asked = beat("conn", 21, conn=2, **third), beat("sub", 21, conn=2, keys=[FO], socket=3)
    found = gaps_of(*START, closed(20), *asked, *up(30, 3))
    assert found[1:] == [("connection", "feed", "disconnected", 20.0, 30.0)]
    lost = beat("conn", 40, conn=2, state="closed", reason="lost", socket=3)
    found = gaps_of(*START, *asked, lost, closed(41), *up(50, 3))
    assert found[1:] == [
        ("connection", "feed 3", "disconnected", 40.0, None),
        ("connection", "feed", "disconnected", 41.0, 50.0),
    ]


def test_a_connection_whose_keys_another_serves_is_not_missed() -> None:
    """Neither when the other was there before, nor when it takes over; and only for as long as it does."""
    two = (*START, opened(12, 2, **SECOND))
    assert len(gaps_of(*two, sub(12, 2, EQ, **SECOND), closed(20, 1))) == 1
    assert len(gaps_of(*two, sub(12, 2, EQ, FO, **SECOND), closed(20, 1))) == 1
    assert len(gaps_of(*two, sub(12, 2, EQ, FO, **SECOND), closed(20, 2, **SECOND))) == 2
    events = [*BOTH, closed(20, 2, **SECOND), sub(23, 1, FO)]
    assert gaps_of(*events)[1:] == [("connection", "feed 2", "disconnected", 20, 23)]
    assert gaps_of(*events, closed(30, 1))[2:] == [
        ("connection", "feed", "disconnected", 30, None),
        ("connection", "feed 2", "disconnected", 30, None),
    ]


def test_a_connection_that_ends_before_it_has_asked_is_missed() -> None:
    """What it was to carry is known from the one before."""
    events = [*BOTH, closed(20, 2, **SECOND), *up(22, 3, **SECOND), closed(23, 3, **SECOND)]
    assert gaps_of(*events)[1:] == [
        ("connection", "feed 2", "disconnected", 20, 22),
        ("connection", "feed 2", "disconnected", 23, None),
    ]
    late = closed(24, 2, **SECOND)  # of the connection that has been replaced
    assert gaps_of(*events[:-1], late)[1:] == gaps_of(*events[:-1])[1:]


def test_what_was_unsubscribed_from_is_not_missed() -> None:
    """Nor does its segment count any more, whatever becomes of the connection and of the recorder."""
    gone = sub(15, 2, FO, kind="unsub", **SECOND)
    assert len(gaps_of(*BOTH, gone, closed(20, 2, **SECOND))) == 1
    assert len(gaps_of(*BOTH, gone, sub(16, 2, FO, **SECOND), closed(20, 2, **SECOND))) == 2
    ledger = Ledger([*BOTH, gone])
    assert ledger.segments == {"NSE_EQ"}
    late = calendar(17, (100, 200), segment="NSE_EQ")
    assert gaps_of(*BOTH, gone, late, beat("stop", 150), beat("start", 250, last_ns=150 * S, clean=True))[1:] == [
        ("recorder", "", "recorder_down", 150, 200)
    ]


def test_a_segment_is_silent_on_the_socket_that_says_so() -> None:
    """Each socket has its own gap of the segment: what another carries of it is not missing."""
    first, second = watched(20, "silent", "NSE_EQ"), watched(25, "brown_out", "NSE_EQ", detail="few", **SECOND)
    events = [*BOTH, first, second, watched(30, "fresh", "NSE_EQ"), watched(40, "usual", "NSE_EQ", **SECOND)]
    assert gaps_of(*events[:-1])[1:] == [
        ("segment", "NSE_EQ", "silent", 20, 30),
        ("segment", "NSE_EQ feed 2", "brown_out", 25, None),
    ]
    assert gaps_of(*events)[2] == ("segment", "NSE_EQ feed 2", "brown_out", 25, 40)
    assert [(one.state, one.detail) for one in intervals(events, 19 * S, 41 * S, segment="NSE_EQ")] == [
        ("recorded", ""),
        ("silent", ""),
        ("brown_out", "feed 2: few"),
        ("recorded", ""),
    ]


def test_a_segment_has_one_gap_at_a_time() -> None:
    """Backdated to when it began; silence hides a brown-out, and what is left of it comes to light again."""
    watch = [
        beat("watch", 20, seq=20, state="brown_out", since_ns=18 * S, segments=["NSE_EQ"], detail="10 %"),
        beat("watch", 30, seq=30, state="silent", since_ns=25 * S, segments=["NSE_EQ", "NSE_FO"]),
        beat("watch", 40, seq=40, state="fresh", segments=["NSE_EQ"]),
        beat("watch", 50, seq=50, state="usual", segments=["NSE_EQ"]),
    ]
    assert gaps_of(*START, *watch)[1:] == [
        ("segment", "NSE_EQ", "brown_out", 18, 25),
        ("segment", "NSE_EQ", "silent", 25, 40),
        ("segment", "NSE_FO", "silent", 25, None),
        ("segment", "NSE_EQ", "brown_out", 40, 50),
    ]


def keys(at_s: float, state: str, *named: str, **more: object) -> Event:
    return beat("watch", at_s, state=state, segments=[], keys=list(named), detail="no data of it: never", **more)


def test_an_instrument_that_is_not_served_is_a_gap_of_its_own() -> None:
    """From when it was asked for to when it delivers, over whatever becomes of the connection, while its market trades."""
    lost = keys(29, "missing", EQ, FO, since_ns=21 * S)
    events = [*BOTH, calendar(13, (20, 100)), lost, closed(40, 1), *up(41, 3, EQ), keys(60, "delivering", EQ)]
    instrument = ("instrument", EQ, "subscription_refused", 21, 60)
    assert instrument in gaps_of(*events)
    assert [gap.subject for gap in Ledger(events).open] == [FO]
    again = sub(70, 2, FO, kind="unsub", **SECOND), sub(70, 2, FO, **SECOND)  # to ask once more is not to give up
    assert [gap.subject for gap in Ledger([*events, *again]).open] == [FO]
    assert [gap.closed_ns for gap in Ledger(events).apply(beat("stop", 80))] == [80 * S]
    assert states(intervals(events, 20 * S, 60 * S, segment="NSE_EQ")) == [
        ("recorded", 20, 40),
        ("disconnected", 40, 41),
        ("recorded", 41, 60),
    ]


def test_an_instrument_is_missed_while_its_market_trades() -> None:
    """In each session anew, as long as nothing comes of it."""
    events = [*START, calendar(13, (20, 100), (200, 300)), keys(29, "missing", EQ, since_ns=11 * S)]
    assert gaps_of(*events, keys(250, "delivering", EQ))[1:] == [
        ("instrument", EQ, "subscription_refused", 20, 100),
        ("instrument", EQ, "subscription_refused", 200, 250),
    ]
    ledger = Ledger(events)
    assert [ledger.passed(at_s * S) for at_s in (30, 99, 150, 199)][:2] == [[], []]
    assert [gap.opened_ns for gap in ledger.passed(200 * S)] == [200 * S]


def test_thousands_of_instruments_cost_nothing_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit asks what time has changed; it does not go through them all."""
    named = [f"NSE_EQ|{n}" for n in range(5000)]
    ledger = Ledger(
        [*START, calendar(13, (20, 100)), *(keys(29, "missing", *named[n : n + 500]) for n in range(0, 5000, 500))]
    )
    assert len(ledger.open) == 5000
    ledger.passed(30 * S)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_told", None)
        assert ledger.passed(99 * S) == []
    assert len(ledger.passed(100 * S)) == 5000


def test_a_refused_subscription_and_a_full_disk_are_gaps() -> None:
    """Until they are served, until there is room."""
    events = [
        beat("watch", 20, seq=20, state="refused", segments=["NSE_EQ"]),
        beat("watch", 30, seq=30, state="served", segments=["NSE_EQ"]),
        beat("disk_full", 40, seq=40, state="full"),
        beat("disk_full", 50, seq=50, state="room"),
    ]
    assert gaps_of(*START, *events)[1:] == [
        ("segment", "NSE_EQ", "subscription_refused", 20, 30),
        ("recorder", "disk", "disk_full", 40, 50),
    ]


def test_standing_still_is_a_gap_that_is_over_when_it_is_told() -> None:
    """For as long as nothing was committed; never from before the event that came last."""
    assert gaps_of(*START, beat("stalled", 60, seq=6, for_ns=40 * S))[1:] == [
        ("recorder", "", "recorder_stalled", 20, 60)
    ]
    assert gaps_of(*START, beat("stalled", 60, seq=6, for_ns=90 * S))[1:] == [
        ("recorder", "", "recorder_stalled", 11, 60)
    ]


def test_what_a_session_ended_keeps_its_reason() -> None:
    """What is heard of a connection after the close says nothing of the gap before it, watched meanwhile or not."""
    hours = Sessions(from_ns=0, to_ns=1000 * S, windows={"NSE_EQ": ((0, 50 * S),)})
    ledger = Ledger([Event(after_seq=0, at_ns=10 * S, boot_ns=0, kind="start", body={"last_ns": 0})])
    ledger.apply(Event(after_seq=0, at_ns=10 * S, boot_ns=0, kind="calendar", body=hours.body()))
    wanted = {"state": "wanted", "segments": ["NSE_EQ"]}
    ledger.apply(Event(after_seq=0, at_ns=10 * S, boot_ns=0, kind="conn", body=wanted))
    closed = {"conn": 1, "state": "closed", "reason": "token_rejected"}
    (gap,) = ledger.apply(Event(after_seq=0, at_ns=60 * S, boot_ns=0, kind="conn", body=closed))
    assert (gap.reason, gap.detail, gap.closed_ns) == ("disconnected", "connecting", 50 * S)


def test_lost_frames_are_a_gap_where_they_were() -> None:
    """Named by their numbers; from their neighbours when nothing else says when they were received."""
    known = beat("lost", 99, **{"from": 5, "to": 9}, reason="damaged", from_ns=12 * S, to_ns=14 * S)
    unknown = beat("lost", 99, **{"from": 5, "to": 9}, reason="damaged")
    assert gaps_of(*START, known)[1:] == [("recorder", "frames 5-9", "lost", 12, 14)]
    assert gaps_of(*START, unknown)[1:] == [("recorder", "frames 5-9", "lost", 11, 99)]


def test_what_is_opened_for_another_purpose_is_not_recording() -> None:
    """A rewind within a crash's downtime neither ends it nor begins another."""
    events = [
        *START,
        beat("start", 50, last_ns=20 * S, purpose="rewind"),
        beat("stop", 51, purpose="rewind"),
        beat("start", 90, last_ns=20 * S, clean=False),
    ]
    assert gaps_of(*events)[1:2] == [("recorder", "", "recorder_down", 20, 90)]
    assert states(intervals(events[:-1], 10 * S, 60 * S, last_ns=51 * S)) == [
        ("disconnected", 10, 11),
        ("recorded", 11, 20),
        ("recorder_down", 20, 60),
    ]


def test_a_clock_set_back_within_a_gap_gives_both_hours_to_it() -> None:
    """The wall time that comes twice was missing the second time too."""
    stepped = beat("clock_step", 500, seq=1000, from_ns=1001 * S, to_ns=500 * S)
    assert gaps_of(*START, closed(1000), stepped, *up(510, 2))[1:] == [
        ("connection", "feed", "disconnected", 1000, 1001),
        ("connection", "feed", "disconnected", 500, 510),
    ]


# -- sessions


def test_outside_sessions_nothing_is_missed() -> None:
    """A connection lost over the evening is a gap to the close, and again from the opening, as time goes by."""
    events = [calendar(5, (100, 200), (300, 400)), beat("start", 10, last_ns=0), opened(50), sub(50, 1, EQ)]
    assert gaps_of(*events) == []
    events += [closed(190)]
    assert gaps_of(*events) == [("connection", "feed", "disconnected", 190, None)]
    ledger = Ledger(events)
    assert [(gap.opened_ns, gap.closed_ns) for gap in ledger.passed(250 * S)] == [(190 * S, 200 * S)]
    assert ledger.passed(260 * S) == []
    assert [(gap.opened_ns, gap.closed_ns) for gap in ledger.passed(301 * S)] == [(300 * S, None)]
    told = [("connection", "feed", "disconnected", 190, 200), ("connection", "feed", "disconnected", 300, 310)]
    assert gaps_of(*events, *up(310, 2)) == told
    assert [(gap.opened_ns, gap.closed_ns) for one in up(310, 2) for gap in ledger.apply(one)] == [(300 * S, 310 * S)]


def test_an_end_that_is_told_late_closes_what_was_opened_meanwhile() -> None:
    """Facts wait in a queue, and the opening of the market does not."""
    ledger = Ledger([calendar(5, (100, 200)), *START, closed(20)])
    assert [gap.opened_ns for gap in ledger.passed(101 * S)] == [100 * S]
    (late,) = [gap for one in up(99, 2) for gap in ledger.apply(one)]
    assert (late.opened_ns, late.closed_ns) == (100 * S, 100 * S)
    assert ledger.open == ()


def test_downtime_over_several_sessions_is_a_gap_in_each() -> None:
    """And none in between."""
    events = [
        calendar(5, (100, 200), (300, 400), (500, 600)),
        *START,
        beat("stop", 150, seq=150),
        beat("start", 550, seq=150, last_ns=150 * S, clean=True),
        *up(551, 2),
    ]
    assert gaps_of(*events) == [
        ("recorder", "", "recorder_down", 150, 200),
        ("recorder", "", "recorder_down", 300, 400),
        ("recorder", "", "recorder_down", 500, 550),
        ("connection", "feed", "disconnected", 550, 551),
    ]


def test_beyond_what_the_calendar_knows_every_hour_counts() -> None:
    """A segment without hours, a time behind the last that was told, a calendar of another form."""
    known = calendar(5, (100, 200), to_s=300)
    assert gaps_of(known, *START[:2], sub(11, 1, "X|Y"), closed(20)) == [
        ("connection", "feed", "disconnected", 20, None)
    ]
    ledger = Ledger([known, *START, closed(250)])
    assert [(gap.opened_ns, gap.closed_ns) for gap in ledger.passed(310 * S)] == [(300 * S, None)]
    assert len(gaps_of(beat("calendar", 5), *START)) == 1


def test_a_gap_opened_before_the_calendar_came_is_closed_as_planned() -> None:
    """Nobody could know then that the market was closed."""
    ledger = Ledger([*START, closed(20)])
    (told,) = ledger.apply(calendar(30, (100, 200)))
    assert (told.opened_ns, told.closed_ns, told.planned) == (20 * S, 30 * S, True)
    (told,) = ledger.passed(101 * S)
    assert (told.opened_ns, told.closed_ns, told.planned) == (100 * S, None, False)


def test_what_was_told_before_a_calendar_is_told_again_by_the_fold() -> None:
    """The hours that were known until then decide what was a gap until then."""
    events = [calendar(5, (100, 200)), *START, closed(20), calendar(160)]
    live = Ledger(events[:-1])
    (opened_gap,) = live.passed(150 * S)
    (ended,) = live.apply(events[-1])
    assert (opened_gap.opened_ns, ended.closed_ns, ended.planned) == (100 * S, 160 * S, True)
    assert ended in Ledger(events[:-1]).apply(events[-1])


# -- intervals


def test_a_day_divides_into_states() -> None:
    """Each second has one, the first by precedence; a session is judged by its segment."""
    events = [
        *START,
        calendar(12, (20, 100)),
        beat("watch", 40, seq=40, state="silent", since_ns=35 * S, segments=["NSE_EQ"]),
        closed(50),
        beat("conn", 55, seq=55, state="failed", reason="token_rejected"),
        *up(60, 2),
        beat("watch", 61, seq=61, state="fresh", segments=["NSE_EQ"]),
        beat("stop", 80, seq=80),
        beat("start", 90, seq=80, last_ns=80 * S, clean=True),
        *up(91, 3),
    ]
    assert states(intervals(events, 0, 120 * S)) == [
        ("closed", 0, 20),
        ("recorded", 20, 35),
        ("silent", 35, 50),
        ("disconnected", 50, 55),
        ("token_rejected", 55, 60),
        ("silent", 60, 61),
        ("recorded", 61, 80),
        ("recorder_down", 80, 90),
        ("disconnected", 90, 91),
        ("recorded", 91, 100),
        ("closed", 100, 120),
    ]
    assert states(intervals(events, 0, 40 * S, Sessions(), segment="NSE_FO")) == [
        ("recorder_down", 0, 10),
        ("disconnected", 10, 11),
        ("recorded", 11, 40),
    ]


def test_where_nothing_was_written_nobody_recorded() -> None:
    """Before the first entry, without any, behind a stop, and behind the last commit of a run that is gone."""
    assert states(intervals([], 0, 10)) == [("recorder_down", 0, 10 / S)]
    assert states(intervals([*START, beat("stop", 20)], 11 * S, 30 * S)) == [
        ("recorded", 11, 20),
        ("recorder_down", 20, 30),
    ]
    assert states(intervals(START, 11 * S, 30 * S, last_ns=15 * S)) == [("recorded", 11, 15), ("recorder_down", 15, 30)]
    assert states(intervals(START, 11 * S, 30 * S)) == [("recorded", 11, 30)]
    assert intervals(START, 20, 20) == ()


def test_the_page_has_the_table_of_the_code() -> None:
    """docs/gaps.md: every state in order of precedence, with its meaning; every kind of event that is folded."""
    text = (Path(__file__).parents[2] / "docs" / "gaps.md").read_text(encoding="utf-8")
    assert tuple(MEANINGS) == tuple(State)
    rows = "".join(f"| {number} | `{one}` | {MEANINGS[one]} |\n" for number, one in enumerate(State, 1))
    assert rows in text, f"expected in docs/gaps.md:\n{rows}"
    section = text.partition("## What it is made from")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE)) == set(KINDS)


def test_what_waits_for_the_master_list_is_missing_since_the_start() -> None:
    """Whatever the first connection serves meanwhile; and in a session from when it is told."""
    start = [START[0], watched(10.5, "waiting", "NSE_FO", "NSE_INDEX", detail="chain:NIFTY:1"), *START[1:]]
    over = [sub(60, 1, FO), watched(60, "resolved", "NSE_FO", "NSE_INDEX")]
    assert gaps_of(*start, *over) == [
        ("connection", "feed", "disconnected", 10, 11),
        ("segment", "NSE_FO", "not_subscribed", 10, 60),
        ("segment", "NSE_INDEX", "not_subscribed", 10, 60),
    ]
    events = [*start, *over, watched(70, "waiting", "NSE_FO")]
    assert gaps_of(*events)[3:] == [("segment", "NSE_FO", "not_subscribed", 70, None)]
    assert states(intervals(events, 11 * S, 80 * S, segment="NSE_FO")) == [
        ("not_subscribed", 11, 60),
        ("recorded", 60, 70),
        ("not_subscribed", 70, 80),
    ]
    assert states(intervals(events, 11 * S, 80 * S, segment="NSE_EQ")) == [("recorded", 11, 80)]


@pytest.mark.parametrize("end", [beat("stop", 50), beat("start", 55, last_ns=50 * S)])
def test_what_waits_ends_with_the_recorder(end: Event) -> None:
    """Stopped or killed; the next run tells it anew."""
    events = [*START, watched(20, "waiting", "NSE_FO"), end]
    assert ("segment", "NSE_FO", "not_subscribed", 20, 50) in gaps_of(*events)


def test_a_segment_that_sends_nothing_says_more_than_one_of_which_some_waits() -> None:
    """One gap a subject; what is left of the other comes back behind it."""
    events = [*START, watched(20, "waiting", "NSE_EQ"), watched(30, "silent", "NSE_EQ"), watched(40, "fresh", "NSE_EQ")]
    assert gaps_of(*events, watched(50, "resolved", "NSE_EQ"))[1:] == [
        ("segment", "NSE_EQ", "not_subscribed", 20, 30),
        ("segment", "NSE_EQ", "silent", 30, 40),
        ("segment", "NSE_EQ", "not_subscribed", 40, 50),
    ]
