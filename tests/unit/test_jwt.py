"""What a token says of itself, and what is made of it."""

from __future__ import annotations

import base64
import datetime as dt
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickvault.brokers.upstox.jwt import (
    IST,
    Claims,
    Kind,
    Mark,
    can_probably_trade,
    described,
    expires_ns,
    expiry,
    read_claims,
    warnings_due,
)

NS = 1_000_000_000
DAY = 86_400 * NS
HOUR = 3600 * NS


def jwt(payload: object) -> str:
    body = base64.urlsafe_b64encode(json.dumps(payload).encode()).rstrip(b"=").decode()
    return f"eyJhbGciOiJIUzI1NiJ9.{body}.c2lnbmF0dXJl"


def ist(text: str) -> int:
    return int(dt.datetime.fromisoformat(text).replace(tzinfo=IST).timestamp()) * NS


ISSUED = ist("2026-11-23T08:30")


def made_for(lifetime_ns: int, **more: Any) -> Claims:
    claims = read_claims(jwt({"iat": ISSUED // NS, "exp": (ISSUED + lifetime_ns) // NS, **more}))
    assert claims is not None
    return claims


def test_claims_are_read() -> None:
    """Times in ns, flags as they are."""
    token = jwt({"sub": "AB1234", "iat": 1, "exp": 2.5, "isPlusPlan": True, "isMultiClient": False})
    assert read_claims(token) == Claims(issued_ns=NS, expires_ns=2 * NS + NS // 2, plus=True, multi_client=False)


def test_whose_it_is_is_nowhere() -> None:
    """The account's number does not reach anything that is shown."""
    token = jwt({"sub": "AB1234", "jti": "AB1234", "iss": "AB1234", "iat": ISSUED // NS})
    assert "AB1234" not in repr(read_claims(token)) + described(token, ISSUED)


def session(opens: str) -> tuple[int, int]:
    """Return the longest session there is."""
    return ist(opens), ist(opens) + 15 * HOUR


@pytest.mark.parametrize(
    "token",
    [
        "",
        "opaque",
        "a.b",
        "a.b.c",
        "..",
        "a.%%%.c",
        "a.läuft.c",
        jwt([1]),
        jwt("text"),
        jwt(None),
        f"a.{base64.urlsafe_b64encode(b'[' * 6000).decode()}.c",
        f"a.{base64.urlsafe_b64encode(bytes([0xFF, 0xFE])).decode()}.c",
        f"a.{'A' * 20_000}.c",
    ],
)
def test_what_is_no_jwt_gives_none(token: str) -> None:
    """Whatever was pasted, there is no exception."""
    assert read_claims(token) is None
    assert expires_ns(token) is None


@given(st.text() | st.text(alphabet="ab.=-_{}").map(lambda text: f"a.{text}.b"))
def test_any_text_gives_claims_or_none(token: str) -> None:
    """No text makes it raise."""
    read_claims(token)
    described(token, ISSUED, obtained_ns=ISSUED)


@given(
    st.dictionaries(
        st.sampled_from(["iat", "exp", "isPlusPlan"]),
        st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
    )
)
def test_any_value_of_a_claim_is_borne(payload: dict[str, object]) -> None:
    """A value that makes no sense counts as not there."""
    claims = read_claims(jwt(payload))
    assert claims is not None
    described(jwt(payload), ISSUED, obtained_ns=ISSUED)
    assert claims.expires_ns is None or 0 <= claims.expires_ns < 3e20


def test_expiry_is_the_tokens_own_word() -> None:
    """`exp` wins over the rule."""
    end = expiry(made_for(365 * DAY), obtained_ns=ISSUED)
    assert end is not None
    assert (end.at_ns, end.known) == (ISSUED + 365 * DAY, True)


@pytest.mark.parametrize(
    ("issued", "ends"),
    [
        ("2026-11-23T08:30", "2026-11-24T03:30"),
        ("2026-11-23T23:59", "2026-11-24T03:30"),
        ("2026-11-24T02:00", "2026-11-24T03:30"),
        ("2026-11-24T03:30", "2026-11-25T03:30"),
        ("2026-12-31T20:00", "2027-01-01T03:30"),
    ],
)
def test_rule_of_the_broker(issued: str, ends: str) -> None:
    """Without `exp` a token ends at the next 03:30 IST, whatever the time of its issue; it is said to be a guess."""
    end = expiry(read_claims(jwt({"iat": ist(issued) // NS})), obtained_ns=1)
    assert end is not None
    assert (end.at_ns, end.known) == (ist(ends), False)
    assert "if it is a daily token" in str(end)
    assert expires_ns("opaque", obtained_ns=ist(issued)) == ist(ends)


@pytest.mark.parametrize(
    ("lifetime_ns", "kind", "trades"),
    [
        (365 * DAY, Kind.ANALYTICS, False),
        (366 * DAY, Kind.ANALYTICS, False),
        (30 * DAY, Kind.OTHER, False),
        (19 * HOUR, Kind.DAILY, True),
        (24 * HOUR, Kind.DAILY, True),
        (1 * HOUR, Kind.DAILY, True),
        (-1 * HOUR, Kind.UNKNOWN, None),
    ],
)
def test_kind_and_what_a_thief_could_do(lifetime_ns: int, kind: Kind, trades: bool | None) -> None:
    """Only the token of the daily login may place orders; what lives longer is read-only."""
    claims = made_for(lifetime_ns)
    assert claims.kind is kind
    assert can_probably_trade(claims) is trades


def test_an_unknown_token_may_trade_or_not() -> None:
    """Nothing is promised of a token that does not say how long it was made for."""
    assert can_probably_trade(None) is None
    assert can_probably_trade(read_claims(jwt({"iat": 5}))) is None


def test_description_is_for_people() -> None:
    """Kind, plan, end, time left; and past its end so."""
    token = jwt({"iat": ISSUED // NS, "exp": (ISSUED + 365 * DAY) // NS, "isPlusPlan": False})
    assert described(token, ISSUED + 5 * DAY) == (
        "an Analytics token, no Plus plan, valid until 2027-11-23 08:30 IST (360 days)"
    )
    assert "expired at 2027-11-23 08:30 IST" in described(token, ISSUED + 366 * DAY)
    assert "not a JWT" in described("opaque", ISSUED)


END = ist("2027-11-23T12:00")


@pytest.mark.parametrize(
    ("left_ns", "due"),
    [
        (31 * DAY, ()),
        (30 * DAY, (Mark.DAYS_30,)),
        (7 * DAY, (Mark.DAYS_7, Mark.DAYS_30)),
        (HOUR, (Mark.DAYS_1, Mark.DAYS_7, Mark.DAYS_30)),
        (0, ()),
        (-DAY, ()),
    ],
)
def test_warnings_ahead(left_ns: int, due: tuple[Mark, ...]) -> None:
    """30, 7 and 1 days ahead; the most urgent first, so that a late start warns once."""
    assert warnings_due(END, END - left_ns, None) == due


def test_each_warning_once() -> None:
    """Asked every hour of a token's last 40 days, the schedule gives each mark once."""
    told: list[Mark] = []
    for hours in range(40 * 24, -24, -1):
        told += warnings_due(END, END - hours * HOUR, session("2027-11-23T09:00"), told=told)
    assert told == [Mark.DAYS_30, Mark.DAYS_7, Mark.DAYS_1, Mark.SESSION]


def test_a_daily_token_is_not_warned_of_every_day() -> None:
    """Who makes a token for less than a day knows that it ends."""
    assert warnings_due(ISSUED + 19 * HOUR, ISSUED, None, issued_ns=ISSUED) == ()


def test_a_session_without_a_token_is_warned_of_before_it_opens() -> None:
    """A token that ended at 03:30 is missed at 09:15: said from 07:15 on, and not the night before."""
    ended, opens = ist("2026-11-24T03:30"), session("2026-11-24T09:15")
    assert warnings_due(ended, ist("2026-11-24T03:40"), opens, issued_ns=ISSUED) == ()
    assert warnings_due(ended, ist("2026-11-24T07:15"), opens, issued_ns=ISSUED) == (Mark.SESSION,)
    assert warnings_due(ended, ist("2026-11-24T10:00"), opens, issued_ns=ISSUED, told=[Mark.SESSION]) == ()


def test_a_token_that_outlives_the_session_is_no_warning() -> None:
    """Today's token ends after the longest session there is."""
    assert (
        warnings_due(
            ist("2026-11-25T03:30"),
            ist("2026-11-24T10:00"),
            session("2026-11-24T09:00"),
            issued_ns=ist("2026-11-24T08:00"),
        )
        == ()
    )
