"""Whatever the journal tells, in whatever order: time is divided without overlap and without hole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tickvault.ledger import KINDS, Ledger, Sessions, State, intervals
from tickvault.model import Event, Gap

S = 10**9
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
SEGMENTS = ("NSE_EQ", "NSE_FO")
TIMES = st.integers(0, 2000)  # in s

SESSIONS = st.builds(
    lambda begin, length, windows: Sessions(from_ns=begin * S, to_ns=(begin + length) * S, windows=windows),
    TIMES,
    st.integers(0, 2000),
    st.dictionaries(
        st.sampled_from(SEGMENTS),
        st.lists(st.tuples(TIMES, st.integers(1, 300)), max_size=3).map(
            lambda rows: tuple((begin * S, (begin + length) * S) for begin, length in sorted(rows))
        ),
    ),
).map(lambda one: Sessions.of(one.body()))

INSTRUMENTS = st.lists(st.sampled_from(("NSE_EQ|A", "NSE_EQ|B", "NSE_FO|1")))
SOCKETS = st.just(1) | st.integers(2, 3)
ASKED = st.fixed_dictionaries(
    {"conn": st.integers(1, 4), "keys": INSTRUMENTS},
    optional={"socket": SOCKETS},
)

BODIES: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "start": st.fixed_dictionaries(
        {"last_ns": TIMES.map(lambda at: at * S), "clean": st.booleans()}, optional={"purpose": st.just("rewind")}
    ),
    "stop": st.just({}),
    "stalled": st.fixed_dictionaries({"for_ns": TIMES.map(lambda at: at * S)}),
    "conn": st.fixed_dictionaries(
        {
            "conn": st.integers(1, 4),
            "state": st.sampled_from(("open", "live", "closed", "failed", "carried", "wanted")),
            "reason": st.sampled_from(("lost", "overrun", "stopped", "token_rejected", "unreachable")),
        },
        optional={"socket": SOCKETS, "segments": st.lists(st.sampled_from(SEGMENTS)), "keys": st.integers(0, 3)},
    ),
    "sub": ASKED,
    "unsub": ASKED,
    "calendar": SESSIONS.map(Sessions.body),
    "clock_step": st.fixed_dictionaries(
        {"from_ns": TIMES.map(lambda at: at * S), "to_ns": TIMES.map(lambda at: at * S)}
    ),
    "lost": st.fixed_dictionaries(
        {"from": st.integers(1, 9), "to": st.integers(1, 9), "reason": st.just("x")},
        optional={"from_ns": TIMES.map(lambda at: at * S), "to_ns": TIMES.map(lambda at: at * S)},
    ),
    "skipped": st.fixed_dictionaries(
        {
            "sink": st.sampled_from(("a", "b")),
            "from_ns": TIMES.map(lambda at: at * S),
            "to_ns": TIMES.map(lambda at: at * S),
        }
    ),
    "disk_full": st.fixed_dictionaries({"state": st.sampled_from(("full", "room"))}),
    "watch": st.fixed_dictionaries(
        {
            "state": st.sampled_from(
                [
                    "silent",
                    "fresh",
                    "brown_out",
                    "usual",
                    "refused",
                    "served",
                    "waiting",
                    "resolved",
                    "missing",
                    "delivering",
                    "?",
                ]
            ),
            "keys": INSTRUMENTS,
        },
        optional={
            "since_ns": TIMES.map(lambda at: at * S),
            "segments": st.lists(st.sampled_from(SEGMENTS)),
            "socket": SOCKETS,
        },
    ),
}


@st.composite
def histories(draw: st.DrawFn, *, steps: bool = True) -> list[Event]:
    """Events whose clock mostly goes forward; with `steps` it is also set."""
    at_s, events = 100, []
    for kind in draw(st.lists(st.sampled_from(KINDS), max_size=25)):
        at_s = max(
            0, at_s + draw(st.integers(0, 60)) + (draw(st.sampled_from((0, 0, 0, 0, 500, -300))) if steps else 0)
        )
        events.append(Event(after_seq=0, at_ns=at_s * S, boot_ns=0, kind=kind, body=draw(BODIES[kind])))
    return events


@patient
@given(
    events=histories(),
    begin_s=TIMES,
    length_s=TIMES,
    calendar=st.none() | SESSIONS,
    segment=st.none() | st.sampled_from(SEGMENTS),
    last_s=st.none() | TIMES,
)
def test_intervals_divide_the_time(
    events: list[Event],
    begin_s: int,
    length_s: int,
    calendar: Sessions | None,
    segment: str | None,
    last_s: int | None,
) -> None:
    """No overlap, no hole, the lengths add up; neighbours differ; closed exactly where nothing trades."""
    begin_ns, end_ns = begin_s * S, (begin_s + length_s) * S
    last_ns = None if last_s is None else last_s * S
    found = intervals(events, begin_ns, end_ns, calendar, segment=segment, last_ns=last_ns)
    assert [one.from_ns for one in found] == [begin_ns, *(one.to_ns for one in found)][: len(found)]
    assert sum(one.to_ns - one.from_ns for one in found) == end_ns - begin_ns
    assert all(one.from_ns < one.to_ns for one in found)
    assert all((one.state, one.detail) != (other.state, other.detail) for one, other in zip(found, found[1:]))  # noqa: RUF007, B905
    if calendar is not None and segment is not None:
        for one in found:
            trades = any(a < one.to_ns and one.from_ns < b for a, b in calendar.trading((segment,)))
            assert (one.state is State.CLOSED) is not trades


@patient
@given(histories())
def test_gaps_of_a_subject_neither_overlap_nor_run_backwards(events: list[Event]) -> None:
    """One gap at a time, told once when it is over; the fold in parts is the fold at once."""
    ledger, over, open_gaps = Ledger(), set[tuple[str, str, int]](), dict[tuple[str, str], Gap]()
    for event in events:
        for gap in ledger.apply(event):
            assert gap.closed_ns is None or gap.closed_ns >= gap.opened_ns
            assert gap.scope == "sink" or gap.reason in set(State) - {State.CLOSED, State.RECORDED}
            if gap.closed_ns is None:
                open_gaps[gap.scope, gap.subject] = gap
            else:
                before = open_gaps.get((gap.scope, gap.subject))
                if before is not None and before.opened_ns == gap.opened_ns:
                    del open_gaps[gap.scope, gap.subject]
                over.add((gap.scope, gap.subject, gap.opened_ns))
        assert set(ledger.open) == set(open_gaps.values())
    assert Ledger(events).open == ledger.open


@patient
@given(histories(steps=False))
def test_an_instrument_is_missing_from_when_it_is_told_to_when_it_delivers(events: list[Event]) -> None:
    """Or the recorder ends; whatever else happens, and never as a loss of its segment."""
    ledger, missing, running = Ledger(), set[str](), True
    for event in events:
        ledger.apply(event)
        if event.kind in {"start", "stop"} and not event.body.get("purpose"):
            missing, running = set(), event.kind == "start"
        elif running and event.body.get("state") == "missing" and event.kind == "watch":
            missing |= set(event.body["keys"])
        elif running and event.body.get("state") == "delivering" and event.kind == "watch":
            missing -= set(event.body["keys"])
        if not ledger.sessions.windows:  # then every hour counts
            assert {gap.subject for gap in ledger.open if gap.scope == "instrument"} == missing
    told = {"missing", "delivering"}
    without = [replace(one, body={"state": "?"}) if one.body.get("state") in told else one for one in events]
    assert intervals(events, 0, 3000 * S) == intervals(without, 0, 3000 * S)


@patient
@given(histories())
def test_gaps_lie_within_sessions(events: list[Event]) -> None:
    """With the calendar known from the first event on, no gap reaches outside of it."""
    windows = ((200 * S, 400 * S), (700 * S, 900 * S))
    known = Sessions(from_ns=-(10**15), to_ns=10**15, windows=dict.fromkeys(SEGMENTS, windows))
    told = Event(after_seq=0, at_ns=0, boot_ns=0, kind="calendar", body=known.body())
    ledger = Ledger([told])
    for event in events:
        if event.kind == "calendar":
            continue
        for gap in ledger.apply(event):
            end_ns = gap.opened_ns if gap.closed_ns is None else gap.closed_ns
            assert any(begin <= gap.opened_ns and end_ns <= end for begin, end in windows), gap


@patient
@given(histories(steps=False).filter(lambda events: all(one.kind != "start" for one in events[1:])), st.data())
def test_the_events_alone_give_the_gaps_that_were_told_as_they_came(events: list[Event], data: st.DataObject) -> None:
    """Watching time pass tells them earlier, and not otherwise; so they can be computed again from the journal."""
    live, folded = Ledger(), Ledger()
    told: dict[tuple[str, str, int], Gap] = {}
    again: dict[tuple[str, str, int], Gap] = {}
    before_s = 0
    for event in [*events, Event(after_seq=0, at_ns=9000 * S, boot_ns=0, kind="sub", body={})]:
        if event.kind == "watch":
            event.body.pop("since_ns", None)  # type: ignore[attr-defined]  # backdated: it may cut what was told
        at_s = event.at_ns // S
        for moment in sorted(data.draw(st.lists(st.integers(before_s, at_s), max_size=3))):
            told |= {gap.key: gap for gap in live.passed(moment * S)}
        told |= {gap.key: gap for gap in live.apply(event)}
        again |= {gap.key: gap for gap in folded.apply(event)}
        before_s = at_s
    assert {gap for gap in told.values() if gap.closed_ns != gap.opened_ns} == {
        gap for gap in again.values() if gap.closed_ns != gap.opened_ns
    }
    assert set(live.open) == set(folded.open)


@patient
@given(histories(steps=False), st.integers(1, 3))
def test_a_socket_is_recorded_or_missing(events: list[Event], socket: int) -> None:
    """Whatever the others do: with a connection that serves it has no gap, while one says that it does not yet, it has.

    Or the subscription is refused, which is another gap; or others serve its keys.
    """
    ledger, subject = Ledger(), "feed" if socket == 1 else f"feed {socket}"
    conn, serves, tells, running, refused, lonely = None, False, False, False, False, True
    for event in events:
        ledger.apply(event)
        body, ours = event.body, event.body.get("socket", 1) == socket
        lonely &= event.kind not in {"sub", "unsub"} and body.get("state") != "carried"
        if event.kind in {"start", "stop"} and not body.get("purpose"):
            conn, running, serves, refused = None, event.kind == "start", False, False
        elif running and ours and event.kind in {"sub", "unsub"}:
            tells &= conn == body["conn"]
            conn, serves = body["conn"], (serves and conn == body["conn"]) or not tells
        elif running and ours and event.kind == "conn" and body["state"] == "open":
            conn, serves, tells = body["conn"], False, "keys" in body
        elif running and ours and event.kind == "conn" and body["state"] == "closed" and body["conn"] == conn:
            conn, serves = None, False
        elif running and ours and event.kind == "conn" and body["state"] == "live":
            serves |= body["conn"] == conn
        elif running and ours and event.kind == "watch" and body["state"] == "refused":
            refused = True
        found = subject in {gap.subject for gap in ledger.open if gap.scope == "connection"}
        if running and conn is not None and serves:
            assert not found
        elif running and conn is not None and lonely and not refused:
            assert found
