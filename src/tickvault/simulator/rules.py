"""How the broker treats an account (pure): what is not known for sure has a rule here, with every variant."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from tickvault.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Rules", "checked_rules"]

_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "over_connections": ("refuse", "evict"),
    "expired_keys": ("silent", "empty"),
    "two_modes": ("last", "first"),
    "etag": ("strong", "weak", "none"),
}
_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "connections": (0, 1_000),
    "refuse_status": (400, 599),
    "evict_code": (1000, 4999),
    "address_life_s": (0.01, math.inf),
    "reused_status": (400, 599),
    "unseen": (0, 20_000),
    "handshake_s": (0.0, 60.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """An account, and the broker's habits towards it.

    Attributes:
        plus: it has the Plus plan; without it full_d30 is ignored.
        connections: WebSockets it may have open; 0 = any number.
        over_connections: the next one is refused, or the oldest evicted.
        refuse_status: HTTP status of such a refusal.
        evict_code: close code of such an eviction.
        address_life_s: seconds of the wall clock for which an authorized address is good.
        reused_status: HTTP status of an address that is used up, too old or invented.
        handshake_s: how long a handshake takes.
        deflate: permessage-deflate is negotiated with those who offer it.
        ping_at_open: an empty ping comes before anything else.
        expired_keys: a derivative's key that is not listed gets nothing, or an empty entry.
        two_modes: a key subscribed again takes the last mode, or keeps the first.
        change_snapshot: change_mode is answered with a snapshot.
        unseen: N lets every N-th listed key get neither snapshot nor updates; 0 = none.
        market_token: `/v2/market/…` asks for a token.
        etag: of the master list.
        browser_check: requests without a User-Agent, or with a bare library's, meet the CDN's page.
    """

    plus: bool = True
    connections: int = 0
    over_connections: str = "refuse"
    refuse_status: int = 403
    evict_code: int = 1008
    address_life_s: float = math.inf
    reused_status: int = 401
    handshake_s: float = 0.0
    deflate: bool = False
    ping_at_open: bool = False
    expired_keys: str = "silent"
    two_modes: str = "last"
    change_snapshot: bool = True
    unseen: int = 0
    market_token: bool = False
    etag: str = "strong"
    browser_check: bool = True

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            ConfigurationError: names the rule, what was expected and what was got.
        """
        for name, allowed in _CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                raise ConfigurationError(f"rules: {name}: expected one of {', '.join(allowed)}; got {value!r}")
        for name, (low, high) in _BOUNDS.items():
            if not low <= (number := getattr(self, name)) <= high:
                raise ConfigurationError(f"rules: {name}: expected {low:g} to {high:g}, got {number:g}")


def checked_rules(document: object, where: str) -> Mapping[str, Any]:
    """Return the rules that a script's table sets, as keyword arguments of Rules.

    Raises:
        ConfigurationError: names the rule, what was expected and what was got.
    """
    if not isinstance(document, dict):
        raise ConfigurationError(f"{where}: expected a table of rules, got {document!r}")
    kinds = {one.name: str(one.type) for one in fields(Rules)}
    values: dict[str, Any] = {}
    for name, value in document.items():
        if name not in kinds:
            raise ConfigurationError(f"{where}: unknown rule {name!r}; expected one of {', '.join(kinds)}")
        kind = "float" if kinds[name] == "float" and type(value) is int else type(value).__name__
        if kind != kinds[name]:
            raise ConfigurationError(f"{where}.{name}: expected {kinds[name]}, got {value!r}")
        values[str(name)] = float(value) if kind == "float" else value
    try:
        Rules(**values)
    except ConfigurationError as exc:
        raise ConfigurationError(f"{where}: {str(exc).removeprefix('rules: ')}") from exc
    return values
