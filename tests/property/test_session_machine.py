"""Whatever happens, in whatever order: the session neither gets stuck nor storms."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from tickvault.brokers.upstox.events import Degraded, Delivered, Due, Event, Failed, Opened, Plain, Silent
from tickvault.brokers.upstox.plan import RateLimit
from tickvault.brokers.upstox.session import Session
from tickvault.brokers.upstox.transitions import Do, State

REASONS = (Plain.START, Plain.PREPARED, Plain.CLOSED)  # to wait; the first two while the calls are used up
# None: what a working broker and a working feed would say, so that the odd events meet every state.
EVENTS: st.SearchStrategy[Event | None] = st.one_of(
    st.none(),
    st.none(),
    st.none(),
    st.sampled_from([one for one in Plain if one not in (Plain.STOP, Plain.HOPELESS)]),
    st.builds(Failed, st.sampled_from([0.0, 3.0, 300.0])),
    st.builds(Opened, st.integers(0, 3)),
    st.builds(Delivered, st.integers(0, 3)),
    st.builds(Silent, st.just("nothing")),
    st.builds(Degraded, st.just("brown_out"), st.just("little")),
    st.builds(Due, st.booleans()),
)
STEPS = st.lists(st.tuples(st.sampled_from([0.0, 0.01, 0.3, 1.0, 7.0, 31.0, 700.0]), EVENTS), max_size=120)


def helpful(session: Session, *, prepared: bool) -> Event:
    """Return what a working broker and a working feed would say next."""
    match session.state:
        case State.IDLE:
            return Plain.START
        case State.AUTHORIZING:
            return Plain.AUTHORIZED if prepared else Plain.PREPARED
        case State.CONNECTING:
            return Opened(2)
        case State.GREETING:
            return Plain.DEFINED
        case State.SUBSCRIBING:
            return Plain.SENT
        case State.SNAPSHOTS | State.MUTE | State.LIVE:
            return Delivered(3)
        case State.CLOSING:
            return Plain.CLOSED
        case _:
            return Due(expected=True)


@settings(max_examples=400, deadline=None)
@given(steps=STEPS, seed=st.integers(0, 3))
def test_never_stuck(steps: list[tuple[float, Event | None]], seed: int) -> None:
    """From wherever any events have led, a working broker makes it live within a few steps and its own timers."""
    session, now_s = Session(rate=RateLimit(), random=Random(seed)), 0.0
    for number, (pause_s, event) in enumerate(steps):
        now_s += pause_s
        session.on(event or helpful(session, prepared=number % 2 == 1), now_s)
        # It always waits for something: a timer of its own, or the outcome of what it asked for.
        assert session.timer_s is not None or session.state not in (State.WAITING, State.MUTE)
    for _ in range(30):
        if session.state is State.LIVE:
            break
        if session.state in (State.WAITING, State.GREETING) and session.timer_s is not None:
            now_s = max(now_s, session.timer_s)
            session.on(Due(expected=True), now_s)
        if session.state is State.AUTHORIZING:
            session.on(Plain.PREPARED, now_s)
        session.on(helpful(session, prepared=True), now_s)
    assert session.state is State.LIVE


@settings(max_examples=400, deadline=None)
@given(steps=STEPS, seed=st.integers(0, 3))
def test_never_a_storm(steps: list[tuple[float, Event | None]], seed: int) -> None:
    """At most six authorize calls in any 60 s, and no new attempt before the last one has failed or ended."""
    session, now_s = Session(rate=RateLimit(), random=Random(seed)), 0.0
    calls: list[float] = []
    under_way = False
    for number, (pause_s, given_event) in enumerate(steps):
        now_s += pause_s
        before = session.state
        event = given_event or helpful(session, prepared=number % 2 == 1)
        for action in session.on(event, now_s):
            if action.do is Do.AUTHORIZE:
                calls.append(now_s)
            if action.do is Do.PREPARE:
                assert not under_way
                under_way = True
            if action.do is Do.WAIT and session.state is State.WAITING:
                assert before is State.WAITING or isinstance(event, Failed) or event in REASONS
                under_way = False
    for first in calls:
        assert sum(first <= one < first + 60.0 for one in calls) <= 6


@settings(max_examples=100, deadline=None)
@given(
    lives=st.lists(st.sampled_from(["refused", "dropped", "served", "mute", "silent"]), min_size=20, max_size=60),
    seed=st.integers(0, 3),
)
def test_a_broken_broker_is_not_hammered(lives: list[str], seed: int) -> None:
    """Driven as fast as its own timers allow, against a broker that ends every connection at once."""
    session, now_s = Session(rate=RateLimit(), random=Random(seed)), 0.0
    calls: list[float] = []

    def tell(*events: Event) -> None:
        for event in events:
            calls.extend(now_s for action in session.on(event, now_s) if action.do is Do.AUTHORIZE)

    tell(Plain.START)
    for life in lives:
        tell(Plain.PREPARED)
        if life == "refused":
            tell(Failed())
        else:
            tell(Plain.AUTHORIZED, Opened(1), Plain.GREETED, Plain.DEFINED, Plain.SENT)
            if life in ("served", "silent"):
                tell(Delivered(1))
            if life == "silent":
                tell(Silent("nothing"))
            while life in ("mute", "silent") and session.state is not State.CLOSING:
                now_s = session.timer_s or now_s
                tell(Due(expected=True))
            tell(Plain.CLOSED)
        while session.state is State.WAITING:
            now_s = session.timer_s or now_s
            tell(Due())
    assert len(calls) == len(lives)
    for first in calls:
        assert sum(first <= one < first + 60.0 for one in calls) <= 6
