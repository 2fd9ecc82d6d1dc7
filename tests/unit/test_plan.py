"""Subscribe messages: how keys are grouped, and their bytes."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickvault.brokers.upstox.plan import (
    MAX_KEYS,
    Method,
    SubscribeRequest,
    chunks,
    excess,
    new_guid,
    parse_subscription,
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
    ("text", "key", "mode"),
    [
        ("NSE_EQ|INE090A01021", "NSE_EQ|INE090A01021", Mode.FULL),
        (" NSE_INDEX|Nifty 50@ltpc ", "NSE_INDEX|Nifty 50", Mode.LTPC),
        ("NSE_FO|45450@full_d30", "NSE_FO|45450", Mode.FULL_D30),
        ("GLOBAL_INDEX|^GSPC@option_greeks", "GLOBAL_INDEX|^GSPC", Mode.OPTION_GREEKS),
    ],
)
def test_key_with_and_without_mode(text: str, key: str, mode: Mode) -> None:
    """A mode behind @ wins over the default."""
    assert parse_subscription(text, Mode.FULL) == Subscription(instrument_key=key, mode=mode)


@pytest.mark.parametrize(
    "text", ["", "INFY", "NSE_EQ|", "|INE", "NSE_EQ|A|B", "nse_eq|INE", "NSE_EQ|A@", "NSE_EQ|A@deep", "NSE_EQ|A\x00B"]
)
def test_malformed_subscription(text: str) -> None:
    """What is no key, or names no mode, is refused with what was expected."""
    with pytest.raises(ValueError, match="expected"):
        parse_subscription(text, Mode.FULL)


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
