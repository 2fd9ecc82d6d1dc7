"""What an access token says of itself, and what follows from it. Pure; nothing here is verified, that is the broker's.

Laws. A text that is no such token gives None, never an exception. Who the account's owner is (`sub` and the like) is
not read at all, so that nothing made from `Claims` can show it.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from tickvault.model import IST

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = [
    "Claims",
    "Expiry",
    "Kind",
    "Mark",
    "can_probably_trade",
    "described",
    "expires_ns",
    "expiry",
    "read_claims",
    "warnings_due",
]

_NS: Final = 1_000_000_000
_HOUR_NS: Final = 3600 * _NS
_DAY_NS: Final = 24 * _HOUR_NS
# 03:30 IST the next day, whatever the issue time; one issued at 02:00 ends the same morning. Source: Upstox
# documentation, "Get Token".
_END_OF_TOKENS: Final = dt.timedelta(hours=3, minutes=30)
# A daily token lives for at most 24 h; the hour is for the clocks of two machines.
_DAILY_NS: Final = 25 * _HOUR_NS
# Analytics tokens are given for a year. The sandbox's 30 days, and whatever may come, are far below.
_ANALYTICS_NS: Final = 300 * _DAY_NS
_MAX_CHARS: Final = 16_384
_MAX_TIME_S: Final = 253_402_300_799.0  # the end of the year 9999, where datetime ends
# Warn of a session without a token this long before it opens: time enough to log in, and not yet night.
_LEAD_NS: Final = 2 * _HOUR_NS


class Kind(StrEnum):
    """What sort of token it is, told by how long it was made for."""

    ANALYTICS = "analytics"
    DAILY = "daily"
    OTHER = "other"
    UNKNOWN = "unknown"


class Mark(StrEnum):
    """How near a token's end is."""

    DAYS_30 = "30 days"
    DAYS_7 = "7 days"
    DAYS_1 = "1 day"
    SESSION = "session"


_AHEAD: Final = ((Mark.DAYS_1, _DAY_NS), (Mark.DAYS_7, 7 * _DAY_NS), (Mark.DAYS_30, 30 * _DAY_NS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a token claims; None where it says nothing, or nothing readable.

    Attributes:
        issued_ns: UTC.
        expires_ns: UTC.
        plus: whether the account has the Plus plan (full_d30, five connections).
        multi_client: whether it acts for several clients of a broker's partner.
        extended: whether it calls itself an extended token.
    """

    issued_ns: int | None = None
    expires_ns: int | None = None
    plus: bool | None = None
    multi_client: bool | None = None
    extended: bool | None = None

    @property
    def kind(self) -> Kind:
        """What sort of token it is."""
        if self.issued_ns is None or self.expires_ns is None or self.expires_ns <= self.issued_ns:
            return Kind.UNKNOWN
        lifetime_ns = self.expires_ns - self.issued_ns
        if lifetime_ns >= _ANALYTICS_NS:
            return Kind.ANALYTICS
        return Kind.DAILY if lifetime_ns <= _DAILY_NS else Kind.OTHER


@dataclass(frozen=True, slots=True)
class Expiry:
    """When a token ends, UTC ns; `known` when the token says so itself, else by the broker's rule for daily tokens."""

    at_ns: int
    known: bool

    def __str__(self) -> str:
        at = dt.datetime.fromtimestamp(self.at_ns / _NS, IST)
        return f"{at:%Y-%m-%d %H:%M} IST" + ("" if self.known else " if it is a daily token")


def read_claims(token: str) -> Claims | None:
    """Return what a token claims, without verifying it; None when it is not a JWT with an object in it."""
    parts = token.split(".")
    if len(parts) != 3 or len(token) > _MAX_CHARS:  # header, payload, signature
        return None
    try:
        body = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):  # ValueError: neither base64 nor UTF-8 nor JSON
        return None
    if not isinstance(body, dict):
        return None
    return Claims(
        issued_ns=_time_ns(body.get("iat")),
        expires_ns=_time_ns(body.get("exp")),
        plus=_flag(body.get("isPlusPlan")),
        multi_client=_flag(body.get("isMultiClient")),
        extended=_flag(body.get("isExtended")),
    )


def expiry(claims: Claims | None, *, obtained_ns: int | None = None) -> Expiry | None:
    """Return when a token ends.

    Args:
        claims: its own; None when it has none.
        obtained_ns: when it was got, for a token that does not say when it was made.

    Returns:
        What it claims; else what the broker's rule makes of the time of its issue, or, failing that, of its getting;
        None when nothing at all is known.
    """
    if claims is not None and claims.expires_ns is not None:
        return Expiry(claims.expires_ns, known=True)
    issued_ns = claims.issued_ns if claims is not None and claims.issued_ns is not None else obtained_ns
    return None if issued_ns is None else Expiry(_next_end_ns(issued_ns), known=False)


def expires_ns(token: str, *, obtained_ns: int | None = None) -> int | None:
    """Return when a token ends in UTC ns, as `expiry` does; None when nothing is known of it."""
    found = expiry(read_claims(token), obtained_ns=obtained_ns)
    return None if found is None else found.at_ns


def can_probably_trade(claims: Claims | None) -> bool | None:
    """Whether whoever finds the token could probably place orders with it; None when it cannot be told.

    The reasoning: of the tokens that the broker gives out, only the one of the daily login may place orders, and it
    lives until the next 03:30 IST. Whatever is made for longer is read-only (Analytics: market data; extended: own
    orders, positions and holdings) or of the sandbox, where nothing is real. An account without a registered static IP
    address may be safe even with a daily token; that is no property of the token, so it does not count here. A token
    that does not say how long it was made for is of unknown kind, and has to be handled as if it could trade.
    """
    match claims.kind if claims is not None else Kind.UNKNOWN:
        case Kind.DAILY:
            return True
        case Kind.ANALYTICS | Kind.OTHER:
            return False
        case Kind.UNKNOWN:
            return None


def described(token: str, now_ns: int, *, obtained_ns: int | None = None) -> str:
    """Return kind, plan and expiry of a token in one line, for people; nothing that tells whose it is."""
    claims = read_claims(token)
    if claims is None:
        return "a token that is not a JWT: its kind and expiry cannot be read"
    names = {Kind.ANALYTICS: "an Analytics token", Kind.DAILY: "a daily token"}
    parts = [names.get(claims.kind, "a token")]
    if claims.plus is not None:
        parts.append("Plus plan" if claims.plus else "no Plus plan")
    end = expiry(claims, obtained_ns=obtained_ns)
    if end is None:
        parts.append("no expiry in it")
    elif end.at_ns <= now_ns:
        parts.append(f"expired at {end}")
    else:
        parts.append(f"valid until {end} ({_span(end.at_ns - now_ns)})")
    return ", ".join(parts)


def warnings_due(
    expires_ns: int,
    now_ns: int,
    session: tuple[int, int] | None,
    *,
    issued_ns: int | None = None,
    told: Collection[Mark] = (),
) -> tuple[Mark, ...]:
    """Return the warnings of a token's end that are due and not told yet, the most urgent first.

    The caller says the first one and remembers them all: a recorder that starts five days before the end warns once.

    Args:
        expires_ns: the token's end, UTC.
        now_ns: UTC.
        session: when the session opens and ends that runs now or is next, UTC; None when that is not asked.
        issued_ns: when the token was made; a token made for less than 30, 7 or 1 days is not warned of that far ahead:
            a daily token would be warned of every day.
        told: what was told of this token before.
    """
    due = []
    # The only warning that outlives the token: one that ended at 03:30 is missed at 09:15.
    if session is not None and session[0] - _LEAD_NS <= now_ns < session[1] and expires_ns < session[1]:
        due.append(Mark.SESSION)
    if now_ns < expires_ns:
        due += [
            mark
            for mark, ahead_ns in _AHEAD
            if expires_ns - now_ns <= ahead_ns and (issued_ns is None or expires_ns - issued_ns > ahead_ns)
        ]
    return tuple(mark for mark in due if mark not in told)


def _next_end_ns(at_ns: int) -> int:
    at = dt.datetime.fromtimestamp(min(max(at_ns / _NS, 0.0), _MAX_TIME_S - 2 * 86_400), IST)
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
    end = midnight + _END_OF_TOKENS
    if end <= at:
        end += dt.timedelta(days=1)
    return int(end.timestamp()) * _NS


def _time_ns(value: object) -> int | None:
    # bool is an int to Python. Below 0 and beyond 9999 nothing is a time; nan fails every comparison.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < _MAX_TIME_S - 86_400:
        return None
    return math.floor(value * 1000) * 1_000_000 if isinstance(value, float) else value * _NS


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _span(left_ns: int) -> str:
    days, hours = divmod(left_ns / _HOUR_NS, 24)
    return f"{days:.0f} day{'s' * (days != 1)}" if days >= 1 else f"{hours:.1f} h"
