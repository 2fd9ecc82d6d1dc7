"""Scripted faults as data (pure): what goes wrong, when, and for how long."""

from __future__ import annotations

import base64
import binascii
import difflib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, get_args

from tickvault.errors import ConfigurationError
from tickvault.simulator.frames import SEGMENTS, STATUSES
from tickvault.simulator.strange import STRANGE

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ACTIONS",
    "Aimed",
    "AimedTimed",
    "Auction",
    "Close",
    "Cloudflare",
    "Deaf",
    "Duplicate",
    "ExpireToken",
    "Forbid",
    "Garbage",
    "Halt",
    "HangUp",
    "MarketStatus",
    "Mute",
    "NoSnapshot",
    "Partial",
    "Raw",
    "Refuse",
    "RejectToken",
    "Relist",
    "Reorder",
    "Reset",
    "RotateToken",
    "Slow",
    "Stall",
    "Step",
    "Strange",
    "Text",
    "Timed",
    "nearest",
]

_UNSENDABLE: Final = (1005, 1006, 1015)  # RFC 6455 §7.4.1 reserves them for the receiver's own use
_SCOPES: Final = ("segment", "cas", "pre_open")
_PARTIALS: Final = ("book", "trade", "quote")
_REFUSABLE: Final = ("authorize", "master", "market", "token", "all")
_CASINGS: Final = ("both", "snake", "camel")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """When a step happens.

    Attributes:
        at_s: seconds of the simulation after its start, or after the script was played.
        every_s: repeat after this many seconds each, at least 0.05; 0 = once.
    """

    at_s: float
    every_s: float = 0.0

    def __post_init__(self) -> None:
        _bounded(self, "at_s", self.at_s, 0.0, 1e9)
        if self.every_s:
            _bounded(self, "every_s", self.every_s, 0.05, 1e9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed(_Step):
    """A condition that lasts for `seconds` (may be inf)."""

    seconds: float

    def __post_init__(self) -> None:
        """Check the bounds."""
        super(Timed, self).__post_init__()
        _bounded(self, "seconds", self.seconds, 0.0, math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Aimed(_Step):
    """Something done to connections.

    Attributes:
        conn: the number of the one it is done to, counted from 1 over the simulator's life; 0 = all.
    """

    conn: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AimedTimed(Timed):
    """A condition of connections: of number `conn`, or of all (0)."""

    conn: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Close(Aimed):
    """Close connections with a close frame."""

    code: int = 1000

    def __post_init__(self) -> None:
        """Check the bounds."""
        super(Close, self).__post_init__()
        _bounded(self, "code", self.code, 1000, 4999)
        if self.code in _UNSENDABLE:
            raise ConfigurationError(f"close: code {self.code} cannot be sent in a close frame; use `reset` for 1006")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset(Aimed):
    """Abort TCP connections with a reset, without a close frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HangUp(Aimed):
    """End TCP connections in order, without a close frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mute(AimedTimed):
    """Send no data; the client's pings are still answered, its requests still taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall(AimedTimed):
    """Send nothing and read nothing on the open connections, pings included: a peer that died without a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deaf(AimedTimed):
    """Ignore requests that arrive, or each connection's `chunk`-th only; what was subscribed goes on."""

    chunk: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NoSnapshot(AimedTimed):
    """Give no snapshot for requests, or for each connection's `chunk`-th only; updates come."""

    chunk: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate(AimedTimed):
    """Send every live frame twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reorder(AimedTimed):
    """Send live frames in pairs, the later one first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partial(Timed):
    """Let every update bring one part only: `book`, `trade` (all but book and greeks) or `quote` (all, no trade)."""

    parts: str

    def __post_init__(self) -> None:
        """Check the name."""
        super(Partial, self).__post_init__()
        _one_of(self, "parts", self.parts, _PARTIALS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Strange(AimedTimed):
    """Send live frames that a later protocol might: an unknown `type`, `mode`, `status` or `field`; or all `zeros`."""

    what: str

    def __post_init__(self) -> None:
        """Check the name."""
        super(Strange, self).__post_init__()
        _one_of(self, "what", self.what, STRANGE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow(Timed):
    """Send `factor` times fewer updates, in frames `factor` times further apart."""

    factor: float

    def __post_init__(self) -> None:
        """Check the bounds."""
        super(Slow, self).__post_init__()
        _bounded(self, "factor", self.factor, 1.0, 1e6)


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectToken(Timed):
    """Refuse every token with 401 UDAPI100050."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RotateToken(_Step):
    """Make a new token; the old one `dies` or `lives`, and `/token` gives the new one `after_s` later."""

    old: str = "dies"
    after_s: float = 0.0

    def __post_init__(self) -> None:
        """Check the bounds."""
        super(RotateToken, self).__post_init__()
        _one_of(self, "old", self.old, ("dies", "lives"))
        _bounded(self, "after_s", self.after_s, 0.0, math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpireToken(_Step):
    """Let every token die, as at 03:30; open connections `survive` or `close`, `/token` has a new one `after_s` later."""

    sockets: str
    code: int = 1008
    after_s: float = 0.0

    def __post_init__(self) -> None:
        """Check the bounds."""
        super(ExpireToken, self).__post_init__()
        _one_of(self, "sockets", self.sockets, ("survive", "close"))
        _bounded(self, "code", self.code, 1000, 4999)
        _bounded(self, "after_s", self.after_s, 0.0, math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse(Timed):
    """Answer `what` (authorize, master, market, token, all) with an HTTP error, spelt in `casing` (both, snake, camel)."""

    status: int = 503
    what: str = "authorize"
    casing: str = "both"
    code: str = ""

    def __post_init__(self) -> None:
        """Check the bounds."""
        super(Refuse, self).__post_init__()
        _bounded(self, "status", self.status, 400, 599)
        _one_of(self, "what", self.what, _REFUSABLE)
        _one_of(self, "casing", self.casing, _CASINGS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloudflare(Timed):
    """Answer every HTTP request with the CDN's error 1010 in `form` (html or json): 403, and not the broker's envelope."""

    form: str = "html"

    def __post_init__(self) -> None:
        """Check the name."""
        super(Cloudflare, self).__post_init__()
        _one_of(self, "form", self.form, ("html", "json"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Forbid(Timed):
    """Answer the WebSocket handshake with `status` although authorize said yes; 0 resets the TCP connection instead."""

    status: int = 403

    def __post_init__(self) -> None:
        """Check the bounds."""
        super(Forbid, self).__post_init__()
        if self.status:
            _bounded(self, "status", self.status, 400, 599)


@dataclass(frozen=True, slots=True, kw_only=True)
class Relist(_Step):
    """Publish another master list: without the last `drop` derivatives, and `reuse` others naming other contracts."""

    drop: int = 0
    reuse: int = 0

    def __post_init__(self) -> None:
        """Check the bounds."""
        super(Relist, self).__post_init__()
        _bounded(self, "drop", self.drop, 0, 20_000)
        _bounded(self, "reuse", self.reuse, 0, 20_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Halt(Timed):
    """No instrument of the segment changes; every segment without one named."""

    segment: str = ""

    def __post_init__(self) -> None:
        """Check the bounds."""
        super(Halt, self).__post_init__()
        if self.segment:
            _one_of(self, "segment", self.segment, SEGMENTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Auction(Timed):
    """A call auction in the cash market: crossed books, indicative prices, no trades."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage(_Step):
    """Send bytes that do not decode, to every connection."""

    size: int = 64

    def __post_init__(self) -> None:
        """Check the bounds."""
        super(Garbage, self).__post_init__()
        _bounded(self, "size", self.size, 6, 4_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw(_Step):
    """Send this frame, given in base64, to every connection."""

    payload: str

    def __post_init__(self) -> None:
        """Check that it is base64."""
        super(Raw, self).__post_init__()
        try:
            base64.b64decode(self.payload, validate=True)
        except binascii.Error as exc:
            raise ConfigurationError(f"raw: payload: expected base64, got {self.payload[:40]!r} ({exc})") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Text(Aimed):
    """Send a text message to connections."""

    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketStatus(_Step):
    """Change a segment's status and tell everybody; a `cas` or `pre_open` status is free text, as the broker's is."""

    segment: str
    status: str
    scope: str = "segment"

    def __post_init__(self) -> None:
        """Check the names."""
        super(MarketStatus, self).__post_init__()
        _one_of(self, "scope", self.scope, _SCOPES)
        _one_of(self, "segment", self.segment, SEGMENTS)
        if self.scope == "segment":
            _one_of(self, "status", self.status, STATUSES)


Step = (
    Close | Reset | HangUp | Mute | Stall | Deaf | NoSnapshot | Slow | Duplicate | Reorder | Partial | Strange
    | RejectToken | RotateToken | ExpireToken | Refuse | Cloudflare | Forbid | Relist | Halt | Auction | Garbage | Raw
    | Text | MarketStatus
)  # fmt: skip


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


# What a script's `do` may be.
ACTIONS: Final[Mapping[str, type[Step]]] = {_snake(kind.__name__): kind for kind in get_args(Step)}


def _bounded(step: _Step, name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigurationError(f"{_snake(type(step).__name__)}: {name}: expected {low:g} to {high:g}, got {value:g}")


def _one_of(step: _Step, name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigurationError(
            f"{_snake(type(step).__name__)}: {name}: expected one of {', '.join(allowed)}; got {value!r}"
            f"{nearest(value, allowed)}"
        )


def nearest(value: object, allowed: Mapping[str, object] | tuple[str, ...]) -> str:
    """Return a suggestion to end a message with, or nothing when no name is near."""
    close = difflib.get_close_matches(str(value), list(allowed), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
