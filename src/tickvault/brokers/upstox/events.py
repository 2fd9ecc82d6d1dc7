"""What the session is told, and what it answers. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tickvault.brokers.upstox.transitions import Do

__all__ = ["Action", "Degraded", "Delivered", "Due", "Event", "Failed", "Opened", "Plain", "Silent"]


class Plain(StrEnum):
    """Events that carry nothing."""

    START = "start"
    PREPARED = "prepared"  # list of keys and token are there
    AUTHORIZED = "authorized"
    HOPELESS = "hopeless"  # the only token there is was refused at the very first call
    RENEWED = "renewed"  # there is another token than the one refused, or in use
    DEFINED = "defined"  # the definitions are in force, or late
    GREETED = "greeted"  # market_info came
    SENT = "sent"
    HEARD = "heard"  # anything came, a pong included; said once it is taken in, so that our own waiting is no silence
    IDLE = "idle"  # the reader looked, and there was nothing
    CLOSED = "closed"  # the connection has ended, however
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt failed; the broker may have said how long to leave it alone."""

    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Opened:
    """The connection is open; so many requests subscribe to everything."""

    requests: int


@dataclass(frozen=True, slots=True)
class Delivered:
    """Data of subscribed keys has just come; so many requests have been answered on this connection so far."""

    requests: int


@dataclass(frozen=True, slots=True)
class Silent:
    """Nothing subscribed has come for longer than can be chance."""

    detail: str


@dataclass(frozen=True, slots=True)
class Degraded:
    """So much is missing that one new connection is worth the try."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Due:
    """The time may have come that was to be waited for; `expected`: a subscribed segment trades, so data is due."""

    expected: bool = False


Event = Plain | Failed | Opened | Delivered | Silent | Degraded | Due


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One thing to do; `reason` and `detail` say why a connection is closed or abandoned."""

    do: Do
    request: int = 0
    at_s: float = 0.0
    reason: str = ""
    detail: str = ""
