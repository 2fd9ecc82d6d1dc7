"""What is an instrument key, and what a text subscribes to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickvault.model import Mode, Subscription
from tickvault.subscriptions import is_instrument_key, parse_subscription

KEYS = [
    "NSE_EQ|INE002A01018",
    "NSE_INDEX|Nifty 50",
    "GLOBAL_INDEX|^GSPC",
    "NSE_FO|A, B=C",
    "NSE_FO|M&M \\ 'x' \"y\"",
    "BSE_EQ|Žluťoučký 株式",
    "A|b",
    "MCX2_FO|428750",
    f"NSE_FO|{'x' * 96}",
]


@pytest.mark.parametrize("key", KEYS)
def test_keys_that_a_broker_may_have(key: str) -> None:
    """A name may hold blanks, commas, quotes, backslashes and any script."""
    assert is_instrument_key(key)
    assert parse_subscription(key, Mode.FULL) == Subscription(instrument_key=key, mode=Mode.FULL)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "INFY",
        "NSE_EQ",
        "NSE_EQ|",
        "|INE",
        "|",
        "NSE_EQ|A|B",
        "nse_eq|INE",
        "1NSE|INE",
        "NSE_EQ | INE",
        "NSE_EQ| INE",
        "NSE_EQ|INE ",
        " NSE_EQ|INE",
        "NSE_EQ|A@B",
        "NSE_EQ|A\x00B",
        "NSE_EQ|A\tB",
        "NSE_EQ|A\nB",
        "NSE_EQ|A\x7fB",
        "NSE_EQ|A\u2028B",
        "NSE_EQ|\ud800",
        "NSE_EQ|INE\n",
        f"NSE_FO|{'x' * 97}",
        f"{'N' * 33}|x",
    ],
)
def test_what_is_no_key(text: str) -> None:
    """Without segment, bar or name, with blanks round a part, or with anything that does not print, it is none."""
    assert not is_instrument_key(text)


@given(st.text())
def test_a_key_can_be_sent_and_comes_back(text: str) -> None:
    """Whatever passes is UTF-8, has one bar, and is a subscription by itself."""
    for key in (text, f"NSE_EQ|{text}"):
        if is_instrument_key(key):
            assert key.encode().count(b"|") == 1
            assert parse_subscription(f" {key} ", Mode.FULL).instrument_key == key


@pytest.mark.parametrize(
    ("text", "key", "mode"),
    [
        ("NSE_EQ|INE090A01021", "NSE_EQ|INE090A01021", Mode.FULL),
        (" NSE_INDEX|Nifty 50@ltpc ", "NSE_INDEX|Nifty 50", Mode.LTPC),
        ("NSE_INDEX|Nifty 50 @ FULL_D30", "NSE_INDEX|Nifty 50", Mode.FULL_D30),
        ("NSE_FO|45450@full_d30", "NSE_FO|45450", Mode.FULL_D30),
        ("GLOBAL_INDEX|^GSPC@option_greeks", "GLOBAL_INDEX|^GSPC", Mode.OPTION_GREEKS),
    ],
)
def test_key_with_and_without_mode(text: str, key: str, mode: Mode) -> None:
    """A mode behind @ wins over the default."""
    assert parse_subscription(text, Mode.FULL) == Subscription(instrument_key=key, mode=mode)


@pytest.mark.parametrize("text", ["", "INFY", "NSE_EQ|A|B", "NSE_EQ|A@", "NSE_EQ|A@deep", "NSE_EQ|A@ltpc@full"])
def test_malformed_subscription(text: str) -> None:
    """What is no key, or names no mode, is refused with what was expected."""
    with pytest.raises(ValueError, match="expected"):
        parse_subscription(text, Mode.FULL)
