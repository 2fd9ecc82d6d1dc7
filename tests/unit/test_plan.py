"""Subscribe messages: how keys are grouped, and their bytes; the bound on authorize calls."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickvault.brokers.upstox.api import TIMEOUT_S
from tickvault.brokers.upstox.plan import (
    MAX_KEYS,
    Method,
    RateLimit,
    SubscribeRequest,
    chunks,
    excess,
    new_guid,
    request_bytes,
)
from tickvault.model import Mode, Subscription


def subscriptions(mode: Mode, count: int, prefix: str = "NSE_FO") -> list[Subscription]:
    return [Subscription(instrument_key=f"{prefix}|{n}", mode=mode) for n in range(count)]


@pytest.mark.parametrize(
    ("wanted", "sizes"),
    [
        ([], []),
        (subscriptions(Mode.FULL, 1), [(Mode.FULL, 1)]),
        (subscriptions(Mode.FULL, 500), [(Mode.FULL, 500)]),
        (subscriptions(Mode.FULL, 501), [(Mode.FULL, 500), (Mode.FULL, 1)]),
        (subscriptions(Mode.LTPC, 2) + subscriptions(Mode.FULL, 3), [(Mode.LTPC, 2), (Mode.FULL, 3)]),
    ],
)
def test_chunk_sizes(wanted: list[Subscription], sizes: list[tuple[Mode, int]]) -> None:
    """Each mode has messages of its own, of 500 keys at most."""
    assert [(request.mode, len(request.keys)) for request in chunks(wanted)] == sizes


@given(st.lists(st.tuples(st.sampled_from(Mode), st.integers(0, 10**6)), max_size=1500))
def test_chunks_carry_every_key_once_and_in_order(wanted: list[tuple[Mode, int]]) -> None:
    """Joined by mode, the messages are the subscriptions, in order."""
    asked = [Subscription(instrument_key=f"NSE_FO|{n}", mode=mode) for mode, n in wanted]
    requests = chunks(asked)
    assert all(1 <= len(request.keys) <= MAX_KEYS for request in requests)
    for mode in Mode:
        sent = [key for request in requests if request.mode is mode for key in request.keys]
        assert sent == [subscription.instrument_key for subscription in asked if subscription.mode is mode]


def test_modes_come_in_order_of_first_use() -> None:
    """Keys of a mode are gathered where the mode is first used."""
    mixed = [
        Subscription(instrument_key="A|1", mode=Mode.LTPC),
        Subscription(instrument_key="A|2", mode=Mode.FULL),
        Subscription(instrument_key="A|3", mode=Mode.LTPC),
    ]
    assert chunks(mixed) == (
        SubscribeRequest(mode=Mode.LTPC, keys=("A|1", "A|3")),
        SubscribeRequest(mode=Mode.FULL, keys=("A|2",)),
    )


def test_request_is_the_documented_json() -> None:
    """The bytes are those of the broker's example."""
    sent = request_bytes("someguid", Method.SUB, Mode.FULL, ["NSE_INDEX|Nifty Bank"])
    assert (
        sent == b'{"guid":"someguid","method":"sub","data":{"mode":"full","instrumentKeys":["NSE_INDEX|Nifty Bank"]}}'
    )


def test_unsubscribing_has_no_mode() -> None:
    """Without a mode the message has no such member."""
    assert json.loads(request_bytes("g", Method.UNSUB, None, ["A|1"]))["data"] == {"instrumentKeys": ["A|1"]}


def test_guid_has_twenty_characters() -> None:
    """A request id has the length of the broker's examples, and differs from the next."""
    random = Random(7)
    first, second = new_guid(random), new_guid(random)
    assert len(first) == len(second) == 20
    assert first != second


@pytest.mark.parametrize(
    ("wanted", "over"),
    [
        ([], {}),
        (subscriptions(Mode.FULL, 2000), {}),
        (subscriptions(Mode.FULL, 2001), {Mode.FULL: 1}),
        (subscriptions(Mode.FULL, 1600) + subscriptions(Mode.LTPC, 10), {Mode.FULL: 100}),
        (subscriptions(Mode.FULL_D30, 51), {Mode.FULL_D30: 1}),
    ],
)
def test_keys_beyond_what_a_connection_is_served(wanted: list[Subscription], over: dict[Mode, int]) -> None:
    """The broker ignores them silently, so they are counted here."""
    assert excess(wanted) == over


@given(st.lists(st.floats(0, 45), min_size=1, max_size=60), st.floats(0, 1e6))
def test_never_more_than_six_calls_in_a_minute(pauses_s: list[float], start_s: float) -> None:
    """Whenever calls are wanted, no window of 60 s holds a seventh."""
    limit, now_s, calls_s = RateLimit(), start_s, []
    for pause_s in pauses_s:
        now_s += pause_s
        now_s += limit.delay_s(now_s)
        limit.note(now_s)
        calls_s.append(now_s)
    windows = zip(calls_s, calls_s[6:], strict=False)
    assert all(seventh_s - first_s >= 60 - 1e-6 for first_s, seventh_s in windows)


def test_calls_within_the_limit_are_not_delayed() -> None:
    """Six calls go at once; the seventh waits until the first is out of the window."""
    limit = RateLimit(window_s=60.0)
    for now_s in range(6):
        assert limit.delay_s(now_s) == 0
        limit.note(now_s)
    assert limit.delay_s(10) == 50
    assert limit.delay_s(60) == 0


@given(late_s=st.lists(st.floats(0, TIMEOUT_S), min_size=20, max_size=20))
def test_broker_counts_six_calls_in_any_minute(late_s: list[float]) -> None:
    """However late each call reaches it: made as fast as the limit allows, given up after its time-out."""
    limit, now_s, reached_s = RateLimit(), 0.0, []
    for late in late_s:
        now_s += limit.delay_s(now_s)
        limit.note(now_s)
        reached_s.append(now_s + late)
    reached_s.sort()
    assert all(seventh_s - first_s >= 60.0 - 1e-9 for first_s, seventh_s in zip(reached_s, reached_s[6:], strict=False))
