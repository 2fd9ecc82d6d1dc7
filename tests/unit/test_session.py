"""The session's table: every transition, the picture drawn from it, and the judgements that lead into it."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from random import Random

import pytest

from tickvault.brokers.upstox.events import Action, Degraded, Delivered, Due, Event, Failed, Opened, Plain, Silent
from tickvault.brokers.upstox.plan import RateLimit
from tickvault.brokers.upstox.session import Session, SessionPatience
from tickvault.brokers.upstox.transitions import OPEN, TABLE, Do, Signal, State, diagram

PAGE = Path(__file__).parents[2] / "docs" / "session.md"
PATIENCE = SessionPatience()

START = (Plain.START, Plain.PREPARED, Plain.AUTHORIZED)
SUBSCRIBED = (*START, Opened(2), Plain.GREETED, Plain.DEFINED, Plain.SENT, Plain.SENT)
# How to bring a new session (two requests, at time 0) into each state.
PATHS: dict[State, tuple[Event, ...]] = {
    State.IDLE: (),
    State.AUTHORIZING: (Plain.START,),
    State.CONNECTING: START,
    State.GREETING: (*START, Opened(2)),
    State.SUBSCRIBING: (*START, Opened(2), Plain.GREETED, Plain.DEFINED),
    State.SNAPSHOTS: SUBSCRIBED,
    State.LIVE: (*SUBSCRIBED, Delivered(2)),
    State.MUTE: (*SUBSCRIBED, Delivered(2), Silent("nothing")),
    State.CLOSING: (*START, Opened(2), Plain.GREETED, Plain.STOP),
    State.WAITING: (Plain.START, Failed()),
    State.STOPPED: (Plain.STOP,),
}


def session_with(calls: int = 6) -> Session:
    return Session(rate=RateLimit(calls=calls), random=Random(1))


def drive(session: Session, *events: Event, now_s: float = 0.0) -> list[Do]:
    """Tell events at one instant; return what the last one asks for."""
    todo: tuple[Action, ...] = ()
    for event in events:
        todo = session.on(event, now_s)
    return [action.do for action in todo]


def reach(state: State) -> Session:
    session = session_with()
    drive(session, *PATHS[state])
    return session


class Forced(Session):
    """A session that takes a signal as it is."""

    signal: Signal

    def _judge(self, event: Event, now_s: float) -> Signal | None:
        return self.signal


@pytest.mark.parametrize(("state", "signal"), list(product(State, Signal)))
def test_every_pair_of_state_and_signal(state: State, signal: Signal) -> None:
    """A listed pair goes where the table says and asks for what it says; any other changes nothing."""
    session = Forced(rate=RateLimit(), random=Random(1))
    session.state = state
    session.signal = signal
    following, todo = TABLE.get((state, signal), (state, ()))
    actions = session.on(Plain.START, 5.0)
    assert session.state is following
    assert tuple(action.do for action in actions) == todo
    assert (session.timer_s is not None) == (Do.WAIT in todo)


def test_every_state_can_be_reached_and_left() -> None:
    """No row is dead, and only the last state is final."""
    assert {following for following, _ in TABLE.values()} | {State.IDLE} == set(State)
    assert set(State) - {state for state, _ in TABLE} == {State.STOPPED}
    assert {signal for _, signal in TABLE} == set(Signal)
    for state in State:
        assert reach(state).state is state


def test_picture_in_the_documentation_is_drawn_from_the_table() -> None:
    """docs/session.md shows what is."""
    assert f"```mermaid\n{diagram()}```\n" in PAGE.read_text(encoding="utf-8")


def test_subscribing_waits_for_the_greeting_and_the_definitions() -> None:
    """Both are needed, in either order; a greeting that does not come is waited for only so long."""
    session = reach(State.GREETING)
    assert drive(session, Plain.DEFINED) == []
    assert session.on(Plain.GREETED, 0.5) == (Action(do=Do.SUBSCRIBE, request=0),)
    session = reach(State.GREETING)
    assert drive(session, Plain.DEFINED) == []
    assert drive(session, Due(), now_s=PATIENCE.greet_s - 0.1) == []
    assert drive(session, Due(), now_s=PATIENCE.greet_s) == [Do.SUBSCRIBE]
    session = reach(State.GREETING)
    assert drive(session, Due(), now_s=PATIENCE.greet_s) == []
    assert drive(session, Plain.DEFINED, now_s=9.0) == [Do.SUBSCRIBE]


def test_requests_go_one_after_the_other() -> None:
    """Each is asked for when the one before has left."""
    session = reach(State.SUBSCRIBING)
    assert session.on(Plain.SENT, 0.0) == (Action(do=Do.SUBSCRIBE, request=1),)
    assert drive(session, Plain.SENT) == [Do.WAIT]
    assert session.timer_s == PATIENCE.snapshots_s


def test_live_needs_every_request_answered_or_its_time_over() -> None:
    """One request that nothing answers holds up the rest only for its time."""
    session = reach(State.SNAPSHOTS)
    drive(session, Delivered(1))
    assert session.state is State.SNAPSHOTS
    drive(session, Due(expected=True), now_s=PATIENCE.snapshots_s)
    assert session.state is State.LIVE


def test_answers_before_the_last_request_count() -> None:
    """Snapshots may overtake requests."""
    session = reach(State.SUBSCRIBING)
    drive(session, Delivered(2), Plain.SENT, Plain.SENT)
    assert session.state is State.LIVE


@pytest.mark.parametrize(
    ("greeted", "expected", "state"),
    [(True, False, State.LIVE), (True, True, State.MUTE), (False, False, State.MUTE), (False, True, State.MUTE)],
)
def test_nothing_delivered(greeted: bool, expected: bool, state: State) -> None:
    """It is normal while nothing trades, if at least the greeting came; otherwise the subscription was not taken."""
    session = session_with()
    drive(session, *START, Opened(1), Plain.DEFINED, *([Plain.GREETED] if greeted else []))
    drive(session, Due(), now_s=PATIENCE.greet_s)
    drive(session, Plain.SENT, now_s=3.0)
    drive(session, Due(expected=expected), now_s=3.0 + PATIENCE.snapshots_s)
    assert session.state is state


def test_mute_connection_is_closed_unless_data_comes_back() -> None:
    """Data makes it live again; a market that has closed meanwhile too."""
    session = reach(State.MUTE)
    assert session.on(Due(expected=True), PATIENCE.mute_s)[0] == Action(do=Do.CLOSE, reason="mute", detail="nothing")
    session = reach(State.MUTE)
    drive(session, Delivered(2))
    assert session.state is State.LIVE
    session = reach(State.MUTE)
    drive(session, Due(expected=False), now_s=PATIENCE.mute_s)
    assert session.state is State.LIVE


def test_connections_that_serve_nothing_are_given_more_and_more_time() -> None:
    """An account that is not served is not hammered; but while its market trades, none is kept for over a minute."""
    session, now_s, added = reach(State.SNAPSHOTS), 0.0, []
    for _ in range(9):
        now_s = session.timer_s or now_s
        session.on(Due(expected=True), now_s)
        assert session.state is State.MUTE
        added.append((session.timer_s or 0.0) - now_s)
        now_s += added[-1]
        session.on(Due(expected=True), now_s)
        session.on(Plain.CLOSED, now_s)
        while session.state is State.WAITING:
            now_s = session.timer_s or now_s
            session.on(Due(), now_s)
        for event in SUBSCRIBED[1:]:
            session.on(event, now_s)
    assert added == pytest.approx([0.0, 5.0, 15.0, 35.0, 55.0, 55.0, 55.0, 55.0, 55.0])
    assert added[-1] + PATIENCE.snapshots_s <= 60.0


def test_silence_is_pinged_and_then_given_up() -> None:
    """Anything heard counts; time in which the reader was busy does not."""
    session = reach(State.LIVE)
    assert drive(session, Plain.IDLE, now_s=29.9) == []
    assert drive(session, Plain.IDLE, now_s=30.0) == [Do.PING]
    assert drive(session, Plain.IDLE, now_s=39.9) == []
    drive(session, Plain.HEARD, now_s=39.9)
    assert drive(session, Plain.IDLE, now_s=69.8) == []
    assert drive(session, Plain.IDLE, now_s=69.9) == [Do.PING]
    assert session.on(Plain.IDLE, 79.9) == (Action(do=Do.ABANDON, reason="silent", detail="no answer to a ping"),)
    assert drive(session, Plain.CLOSED, now_s=80.0) == [Do.WAIT]


def pauses(*before_each: Event, count: int = 6) -> list[float]:
    """Return the pauses after connections that end, each after the events."""
    session, now_s, waited = session_with(calls=1000), 0.0, []
    session.on(Plain.START, now_s)
    for _ in range(count):
        for event in (Plain.PREPARED, Plain.AUTHORIZED, Opened(1), Plain.GREETED, Plain.DEFINED, Plain.SENT):
            session.on(event, now_s)
        for event in before_each:
            now_s = session.timer_s or now_s if isinstance(event, Due) else now_s
            session.on(event, now_s)
        session.on(Plain.CLOSED, now_s)
        waited.append((session.timer_s or 0.0) - now_s)
        now_s = session.timer_s or 0.0
        session.on(Due(), now_s)
    return waited


def test_pauses_grow_until_subscribed_data_comes() -> None:
    """A greeting is not enough while data is due; a greeting in a quiet market is."""
    assert pauses()[-1] >= 15.0
    assert pauses(Due(expected=True))[-1] >= 15.0
    assert max(pauses(Delivered(1))) <= 1.0
    assert max(pauses(Due(expected=False))) <= 1.0


def test_broker_says_how_long_to_wait() -> None:
    """It is obeyed once."""
    session = reach(State.AUTHORIZING)
    session.on(Failed(retry_after_s=120.0), 0.0)
    assert session.timer_s == 120.0
    assert drive(session, Due(), now_s=119.0) == []
    assert drive(session, Due(), now_s=120.0) == [Do.PREPARE]
    session.on(Failed(), 120.0)
    assert (session.timer_s or 0.0) < 130.0


def test_a_new_token_ends_the_pause() -> None:
    """Unless the calls are used up."""
    session = session_with(calls=1)
    drive(session, Plain.START, Failed(300.0))
    assert drive(session, Plain.RENEWED, now_s=1.0) == [Do.PREPARE]
    drive(session, Plain.PREPARED, Failed(300.0), now_s=1.0)
    assert drive(session, Plain.RENEWED, now_s=2.0) == [Do.WAIT]
    assert session.timer_s == pytest.approx(71.0)


def test_feeds_that_share_an_account_share_the_calls() -> None:
    """Two that are ready at one moment cannot both have the last call."""
    rate = RateLimit(calls=1)
    one, other, third = (Session(rate=rate, random=Random(seed)) for seed in (1, 2, 3))
    drive(one, Plain.START)
    drive(other, Plain.START)
    assert drive(one, Plain.PREPARED) == [Do.AUTHORIZE]
    assert drive(other, Plain.PREPARED) == [Do.WAIT]
    assert other.timer_s == 70.0
    assert drive(other, Due(), now_s=70.0) == [Do.PREPARE]
    drive(other, Plain.PREPARED, now_s=70.0)
    assert drive(third, Plain.START, now_s=70.0) == [Do.WAIT]


def test_degraded_connection_is_closed_for_the_reason_given() -> None:
    """Only while it is live."""
    closing = Action(do=Do.CLOSE, reason="brown_out", detail="little")
    assert reach(State.LIVE).on(Degraded("brown_out", "little"), 1.0)[0] == closing
    assert drive(reach(State.SNAPSHOTS), Degraded("brown_out", "little")) == []


def test_stopping() -> None:
    """From everywhere: at once without a connection, else when it has ended; a broker that goes on is left."""
    for state in (State.IDLE, State.AUTHORIZING, State.CONNECTING, State.WAITING):
        session = reach(state)
        drive(session, Plain.STOP)
        assert session.state is State.STOPPED
    for state in (State.GREETING, State.SUBSCRIBING, State.SNAPSHOTS, State.LIVE, State.MUTE):
        session = reach(state)
        assert session.on(Plain.STOP, 9.0)[0] == Action(do=Do.CLOSE, reason="stopped")
        assert drive(session, Due(), now_s=9.0 + PATIENCE.stop_s) == [Do.ABANDON]
        drive(session, Plain.CLOSED)
        assert session.state is State.STOPPED
    session = reach(State.LIVE)
    drive(session, Degraded("brown_out", ""), Plain.STOP, Plain.CLOSED)
    assert session.state is State.STOPPED


@pytest.mark.parametrize("state", OPEN)
def test_an_open_connection_is_left_for_another_token(state: State) -> None:
    """Whatever it is doing, and although the rate limit allows no call now; waiting, the limit decides."""
    session = session_with(calls=1)
    drive(session, *PATHS[state])
    assert session.state is state
    closing = session.on(Plain.RENEWED, 1.0)
    assert [action.do for action in closing] == [Do.CLOSE, Do.WAIT]
    assert (closing[0].reason, session.state) == ("renewed", State.CLOSING)
    assert drive(session, Plain.CLOSED, now_s=2.0) == [Do.WAIT]
    assert drive(session, Plain.RENEWED, now_s=3.0) == [Do.WAIT]
    assert drive(session, Plain.RENEWED, now_s=80.0) == [Do.PREPARE]


def test_refused_for_good() -> None:
    """The very first call refused the only token: it stops."""
    session = reach(State.AUTHORIZING)
    assert drive(session, Plain.PREPARED, Plain.HOPELESS) == []
    assert session.state is State.STOPPED


def test_nothing_to_subscribe_to() -> None:
    """It is connected all the same, and quiet."""
    session = session_with()
    drive(session, *START, Opened(0), Plain.DEFINED, Plain.GREETED)
    assert session.state is State.SNAPSHOTS
    drive(session, Due(expected=False), now_s=PATIENCE.snapshots_s)
    assert session.state is State.LIVE
