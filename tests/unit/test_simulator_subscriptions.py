"""Requests, limits and wrong keys; tokens and addresses."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickvault.errors import ConfigurationError
from tickvault.model import Mode
from tickvault.simulator.gate import Conditions, Gate
from tickvault.simulator.rules import Rules
from tickvault.simulator.script import Mute, Slow
from tickvault.simulator.settings import SimulatorSettings
from tickvault.simulator.subscriptions import Answer, Request, Subscriptions, parse_request

LISTED = {f"NSE_EQ|{i}": i for i in range(6000)}


def sub(first: int, last: int, mode: Mode = Mode.FULL) -> Request:
    return Request(method="sub", keys=tuple(f"NSE_EQ|{i}" for i in range(first, last)), mode=mode)


def body(method: str, **data: object) -> bytes:
    return json.dumps({"guid": "someguid", "method": method, "data": data}).encode()


def test_requests_are_understood_as_documented() -> None:
    """`sub` defaults to ltpc; `unsub` has no mode; duplicates count once."""
    assert parse_request(body("sub", instrumentKeys=["a", "a"])) == Request(method="sub", keys=("a",), mode=Mode.LTPC)
    assert parse_request(body("change_mode", instrumentKeys=["a"], mode="full")) == Request(
        method="change_mode", keys=("a",), mode=Mode.FULL
    )
    assert parse_request(body("unsub", instrumentKeys=["a"])) == Request(method="unsub", keys=("a",), mode=None)


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'"sub"',
        body("sub"),
        body("sub", instrumentKeys="a"),
        body("sub", instrumentKeys=[1]),
        body("sub", instrumentKeys=["a"], mode="fuller"),
        body("change_mode", instrumentKeys=["a"]),
        body("resub", instrumentKeys=["a"]),
    ],
)
def test_what_is_not_a_request_is_ignored(wrong: bytes) -> None:
    """Without an error."""
    assert parse_request(wrong) is None


@given(
    st.binary() | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(lambda x: json.dumps(x).encode())
)
def test_parsing_never_fails(junk: bytes) -> None:
    """Any bytes give a request or None."""
    assert parse_request(junk) is None or parse_request(junk)


def test_the_limit_of_full_is_silent_and_by_key() -> None:
    """2,000 keys are taken, the others dropped; a place freed can be taken."""
    subs = Subscriptions(LISTED, Rules())
    assert subs.apply(sub(0, 1500)).positions == tuple(range(1500))
    assert subs.apply(sub(1400, 2100)).positions == tuple(range(1400, 2000))
    assert subs.apply(sub(2000, 2010)) == Answer(mode=Mode.FULL)
    subs.apply(Request(method="unsub", keys=("NSE_EQ|0",), mode=None))
    assert subs.apply(sub(2000, 2010)).positions == (2000,)
    assert len(subs.modes) == 2000


def test_limits_shrink_when_modes_are_mixed() -> None:
    """With ltpc in use too, full has 1,500 places."""
    subs = Subscriptions(LISTED, Rules())
    subs.apply(sub(5000, 5001, Mode.LTPC))
    assert len(subs.apply(sub(0, 2000)).positions) == 1500


def test_other_limits() -> None:
    """5,000 for ltpc; option_greeks 3,000, full_d30 50."""
    for mode, limit in ((Mode.LTPC, 5000), (Mode.OPTION_GREEKS, 3000), (Mode.FULL_D30, 50)):
        assert len(Subscriptions(LISTED, Rules()).apply(sub(0, 6000, mode)).positions) == limit


def test_thirty_levels_need_the_plus_plan() -> None:
    """Without it they are ignored."""
    subs = Subscriptions(LISTED, Rules(plus=False))
    assert subs.apply(sub(0, 5, Mode.FULL_D30)) == Answer()
    assert subs.modes == {}


def test_the_last_mode_wins() -> None:
    """A key has one mode."""
    subs = Subscriptions(LISTED, Rules())
    subs.apply(sub(0, 2))
    subs.apply(Request(method="change_mode", keys=("NSE_EQ|1",), mode=Mode.LTPC))
    assert subs.modes == {0: Mode.FULL, 1: Mode.LTPC}


def test_wrong_keys() -> None:
    """A derivative by symbol gets an empty entry; an unknown key, or a wrong case, gets nothing."""
    keys = ("NSE_FO|NIFTY18NOV2025PE25950", "NSE_FO|999999", "NSE_EQ|X", "nse_eq|1", "NSE_FO|", "", "NSE_EQ|1")
    answer = Subscriptions(LISTED, Rules()).apply(Request(method="sub", keys=keys, mode=Mode.FULL))
    assert answer.malformed == ("NSE_FO|NIFTY18NOV2025PE25950",)
    assert answer.positions == (1,)


def test_an_address_is_good_once() -> None:
    """A second use, a wrong code and an unknown id are refused."""
    gate = Gate(None, 60.0)
    request_id, code = gate.issue(0.0)
    assert gate.redeem(request_id, code, 1.0)
    assert not gate.redeem(request_id, code, 1.0)
    other, _ = gate.issue(0.0)
    assert not gate.redeem(other, "guess", 1.0)
    assert not gate.redeem("", "", 1.0)


def test_tokens() -> None:
    """Any token will do unless some are named; after a rotation only the new one."""
    assert Gate(None, 60.0).accepts("Bearer anything")
    assert not Gate(None, 60.0).accepts("Bearer ")
    assert not Gate(None, 60.0).accepts("Basic x")
    assert not Gate(None, 60.0).accepts("")
    gate = Gate(frozenset({"a"}), 60.0)
    assert gate.token == "a"
    assert gate.accepts("Bearer a")
    assert not gate.accepts("Bearer b")
    token = gate.rotate()
    assert gate.token == "a"
    assert not gate.accepts("Bearer a")
    assert gate.accepts(f"Bearer {token}")
    another = gate.rotate(old_lives=True)
    assert gate.accepts(f"Bearer {token}")
    assert gate.accepts(f"Bearer {another}")


def test_expired_tokens_are_those_seen() -> None:
    """And the one given out; a token that nobody used yet is as good as before."""
    gate = Gate(None, 60.0)
    assert gate.accepts("Bearer yesterday")
    token = gate.expire()
    assert not gate.accepts("Bearer yesterday")
    assert not gate.accepts(f"Bearer {gate.token}")
    assert gate.accepts(f"Bearer {token}")
    assert gate.accepts("Bearer today")
    named = Gate(frozenset({"a"}), 60.0)
    token = named.expire()
    assert not named.accepts("Bearer a")
    assert named.accepts(f"Bearer {token}")


def test_an_address_grows_old() -> None:
    """Good until its seconds are over."""
    gate = Gate(None, 5.0)
    young, old = gate.issue(0.0), gate.issue(0.0)
    assert gate.redeem(*young, 4.9)
    assert not gate.redeem(*old, 5.1)


def test_conditions_end_and_replace_one_another() -> None:
    """A fault holds for its seconds; the later of a kind counts."""
    conditions = Conditions()
    assert conditions.now(Mute, 0.0) is None
    conditions.impose(Mute(at_s=0, seconds=5), 10.0)
    assert conditions.now(Mute, 14.9)
    assert conditions.now(Mute, 15.0) is None
    assert conditions.now(Slow, 11.0) is None
    conditions.impose(Mute(at_s=0, seconds=0), 11.0)
    assert conditions.now(Mute, 11.0) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", -1),
        ("port", 70000),
        ("instruments", 0),
        ("updates_per_second", -1.0),
        ("updates_per_second", float("nan")),
        ("ping_after_s", 0.0),
    ],
)
def test_settings_out_of_bounds_are_refused(field: str, value: float) -> None:
    """The message has the bounds and the value."""
    with pytest.raises(ConfigurationError, match=r"expected .* got"):
        SimulatorSettings(**{field: value})  # type: ignore[arg-type]
