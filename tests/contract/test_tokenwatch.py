"""A token that is about to end is told of: once, not too early, and not when another one is there."""

from __future__ import annotations

import base64
import datetime as dt
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from tickvault.brokers.upstox.phases import Calendar, Hours
from tickvault.brokers.upstox.renewal import is_renewal_time, next_session
from tickvault.brokers.upstox.token_files import store_token
from tickvault.brokers.upstox.tokens import Tokens
from tickvault.intake import token_notices
from tickvault.journal import Fact
from tickvault.model import IST
from tickvault.tokenwatch import TokenWatch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NS = 10**9


def ist(text: str) -> int:
    return int(dt.datetime.fromisoformat(text).replace(tzinfo=IST).timestamp()) * NS


def jwt(made: str, ends: str) -> str:
    claims = {"sub": "very-secret", "iat": ist(made) // NS, "exp": ist(ends) // NS}
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"very-secret.{body}.very-secret"


class World:
    """A clock, and the facts that were journalled."""

    def __init__(self, now: str) -> None:
        self.now_ns = ist(now)
        self.facts: list[Mapping[str, Any]] = []
        self.calendar = Calendar()

    def wall_ns(self) -> int:
        return self.now_ns

    async def fact(self, kind: str, body: Mapping[str, object]) -> None:
        assert kind == "token"
        assert "very-secret" not in json.dumps(body)
        self.facts.append(body)

    def watch(self, tokens: Tokens) -> TokenWatch:
        return TokenWatch(
            tokens, wall_ns=self.wall_ns, session=lambda now_ns: next_session(now_ns, self.calendar), fact=self.fact
        )

    def marks(self) -> list[Any]:
        return [fact["mark"] for fact in self.facts]


async def test_a_year_goes_by() -> None:
    """Looked at every six hours, an Analytics token is told of 30, 7 and 1 days ahead, and before the last session."""
    world = World("2026-11-23T08:00")
    tokens = Tokens(access_token=jwt("2026-11-23T08:00", "2027-11-23T08:00"), wall_ns=world.wall_ns)
    watch = world.watch(tokens)
    await watch.look()
    assert (watch.shown, watch.expires_s) == (None, None)
    await tokens.token()
    assert watch.shown == "an Analytics token, valid until 2027-11-23 08:00 IST (365 days)"
    with capture_logs() as logs:
        while world.now_ns < ist("2027-11-24T08:00"):
            await watch.look()
            world.now_ns += 6 * 3600 * NS
    assert world.marks() == ["30 days", "7 days", "1 day", "session"]
    assert watch.expires_s == ist("2027-11-23T08:00") / NS
    assert [one["event"] for one in logs] == ["token.expiring"] * 4
    assert "very-secret" not in str(logs)


async def test_a_daily_token_is_missed_two_hours_before_the_session(tmp_path: Path) -> None:
    """Not the evening before; and not when a new one was stored meanwhile."""
    world = World("2026-11-23T08:30")
    tokens = Tokens(data_dir=tmp_path, wall_ns=world.wall_ns)
    old, new = (jwt(f"{day}T08:00", f"{then}T03:30") for day, then in (("2026-11-23", "2026-11-24"),
                                                                      ("2026-11-24", "2026-11-25")))  # fmt: skip
    os.utime(store_token(tmp_path, old), ns=(world.now_ns, world.now_ns))
    await tokens.token()
    watch = world.watch(tokens)
    for now in ("2026-11-23T09:00", "2026-11-23T23:00", "2026-11-24T03:31", "2026-11-24T06:59"):
        world.now_ns = ist(now)
        await watch.look()
    assert world.marks() == []
    world.now_ns = ist("2026-11-24T07:00")
    await watch.look()
    await watch.look()
    assert world.marks() == ["session"]

    store_token(tmp_path, new)
    await tokens.token()
    await watch.look()
    assert world.marks() == ["session"]
    assert "valid until 2026-11-25" in str(watch.shown)


async def test_another_token_in_time_is_no_warning(tmp_path: Path) -> None:
    """What is told is about the token that would be tried now."""
    world = World("2026-11-24T07:30")
    tokens = Tokens(access_token=jwt("2026-11-23T08:00", "2026-11-24T03:30"), data_dir=tmp_path, wall_ns=world.wall_ns)
    await tokens.token()
    store_token(tmp_path, jwt("2026-11-24T07:00", "2026-11-25T03:30"))
    await world.watch(tokens).look()
    assert world.facts == []


async def test_a_token_that_says_nothing_is_not_warned_of() -> None:
    """Nothing is known of its end."""
    world = World("2026-11-24T07:30")
    tokens = Tokens(access_token="opaque", wall_ns=world.wall_ns)
    await tokens.token()
    watch = world.watch(tokens)
    await watch.look()
    assert (world.facts, watch.expires_s) == ([], None)
    assert "cannot be read" in str(watch.shown)


@pytest.mark.parametrize(
    ("now", "opens"),
    [
        ("2026-11-23T08:00", "2026-11-23T09:00"),  # a Monday
        ("2026-11-23T23:59", "2026-11-23T09:00"),
        ("2026-11-24T00:00", "2026-11-24T09:00"),
        ("2026-11-28T00:00", "2026-11-30T09:00"),
    ],
)
def test_without_hours_every_working_day_has_a_session(now: str, opens: str) -> None:
    """The one that runs, or the next; never on a week-end."""
    assert next_session(ist(now), Calendar()) == (ist(opens), ist(opens) + 15 * 3600 * NS)


HOLIDAY, SUNDAY = dt.date(2026, 11, 24), dt.date(2026, 11, 29)


def hours(day: str, opens: str, closes: str) -> Hours:
    return Hours(ist(f"{day}T{opens}"), ist(f"{day}T{closes}"))


KNOWN = Calendar(
    timings={
        dt.date(2026, 11, 23): {
            "NSE": hours("2026-11-23", "09:15", "15:30"),
            "MCX": hours("2026-11-23", "09:00", "23:30"),
        }
    },
    closed={HOLIDAY: frozenset({"NSE"})},
    special={
        HOLIDAY: {"MCX": hours("2026-11-24", "17:00", "23:30")},
        SUNDAY: {"NSE": hours("2026-11-29", "18:00", "19:00")},
    },
)


@pytest.mark.parametrize(
    ("segments", "now", "opens", "ends"),
    [
        (("NSE_EQ",), "2026-11-23T10:00", "2026-11-23T09:00", "2026-11-23T15:30"),
        (("NSE_EQ",), "2026-11-23T15:30", "2026-11-25T09:00", "2026-11-25T15:30"),  # over the holiday
        (("NSE_EQ", "MCX_FO"), "2026-11-23T15:30", "2026-11-23T09:00", "2026-11-23T23:30"),
        (("MCX_FO",), "2026-11-24T07:00", "2026-11-24T17:00", "2026-11-24T23:30"),
        ((), "2026-11-24T07:00", "2026-11-24T17:00", "2026-11-24T23:30"),
        (("NSE_EQ",), "2026-11-27T20:00", "2026-11-29T17:45", "2026-11-29T19:00"),  # an evening on a Sunday
        (("BSE_EQ",), "2026-11-24T07:00", "2026-11-24T09:00", "2026-11-25T00:00"),  # of unknown hours
    ],
)
def test_a_session_has_the_hours_of_what_is_recorded(
    segments: tuple[str, ...], now: str, opens: str, ends: str
) -> None:
    """Holidays, evenings and special days as the exchanges have them."""
    assert next_session(ist(now), KNOWN, segments) == (ist(opens), ist(ends))


async def test_on_a_holiday_nobody_is_woken(tmp_path: Path) -> None:
    """The token that ended at 03:30 is missed on the next day that trades."""
    world = World("2026-11-23T09:30")
    world.calendar = Calendar(timings=KNOWN.timings, closed={HOLIDAY: frozenset({"NSE", "MCX"})})
    tokens = Tokens(access_token=jwt("2026-11-23T08:00", "2026-11-24T03:30"), data_dir=tmp_path, wall_ns=world.wall_ns)
    await tokens.token()
    watch = world.watch(tokens)
    for now, marks in (("2026-11-24T08:00", []), ("2026-11-25T06:59", []), ("2026-11-25T07:01", ["session"])):
        world.now_ns = ist(now)
        await watch.look()
        assert world.marks() == marks


def test_moving_has_its_time() -> None:
    """After 03:30, before the pre-open."""
    hours = ("03:31", "08:14", "08:15", "08:54", "08:55", "09:00", "15:00")
    assert [is_renewal_time(ist(f"2026-11-23T{hour}")) for hour in hours] == [
        False,
        False,
        True,
        True,
        False,
        False,
        False,
    ]


def test_events_for_the_webhook() -> None:
    """A refusal each time; a warning that comes again after a restart is the same event."""
    ends = {"state": "expiring", "mark": "7 days", "ends": "2027-11-23 08:00 IST", "expires_ns": 9}
    refused = {"state": "failed", "reason": "token_rejected", "detail": "the broker refuses the token: HTTP 401"}
    facts = [
        Fact("conn", refused, 5),
        Fact("conn", {"state": "failed", "reason": "unreachable"}, 6),
        Fact("token", ends, 7),
        Fact("token", ends, 8),
        Fact("conn", refused, 8),
    ]
    made = token_notices(facts, recorder_id="r", seq=3)
    assert [one.event for one in made] == ["token.rejected", "token.expiring", "token.expiring", "token.rejected"]
    assert made[1].id == made[2].id
    assert len({one.id for one in made}) == 3
    assert "HTTP 401" in made[0].message
    assert "2027-11-23" in made[1].message
