"""Scripted faults as data (pure, but for reading the file): what goes wrong, when, and for how long."""

from __future__ import annotations

import base64
import binascii
import difflib
import json
import math
import tomllib
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Final, get_args

from tickvault.errors import ConfigurationError
from tickvault.simulator.frames import SEGMENTS, STATUSES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = [
    "ACTIONS",
    "Auction",
    "Close",
    "Deaf",
    "Forbid",
    "Garbage",
    "Halt",
    "MarketStatus",
    "Mute",
    "Raw",
    "Refuse",
    "RejectToken",
    "Reset",
    "RotateToken",
    "Slow",
    "Stall",
    "Step",
    "Timed",
    "load_script",
    "parse_steps",
    "timeline",
]

_UNSENDABLE: Final = (1005, 1006, 1015)  # RFC 6455 §7.4.1 reserves them for the receiver's own use
_SCOPES: Final = ("segment", "cas", "pre_open")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """When a step happens.

    Attributes:
        at_s: seconds after the simulator's start.
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
class Close(_Step):
    """Close every connection with a close frame."""

    code: int = 1000

    def __post_init__(self) -> None:
        """Check the bounds."""
        super(Close, self).__post_init__()
        _bounded(self, "code", self.code, 1000, 4999)
        if self.code in _UNSENDABLE:
            raise ConfigurationError(f"close: code {self.code} cannot be sent in a close frame; use `reset` for 1006")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset(_Step):
    """Abort the TCP connections, without a close frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mute(Timed):
    """Send no data; the client's pings are still answered, its requests still taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall(Timed):
    """Send nothing and read nothing on the open connections, pings included: a peer that died without a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deaf(Timed):
    """Ignore requests that arrive; what was subscribed goes on."""


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
    """Invalidate the token that `/token` has given so far; from now on it gives, and only it is accepted, another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse(Timed):
    """Answer authorize with an HTTP error."""

    status: int = 503

    def __post_init__(self) -> None:
        """Check the bounds."""
        super(Refuse, self).__post_init__()
        _bounded(self, "status", self.status, 400, 599)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forbid(Timed):
    """Answer the WebSocket handshake with 403 although authorize said yes."""


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
    Close | Reset | Mute | Stall | Deaf | Slow | RejectToken | RotateToken | Refuse | Forbid | Halt | Auction | Garbage
    | Raw | MarketStatus
)  # fmt: skip


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


# What a script's `do` may be.
ACTIONS: Final[Mapping[str, type[Step]]] = {_snake(kind.__name__): kind for kind in get_args(Step)}


def load_script(path: Path) -> tuple[Step, ...]:
    """Read a script file: TOML (`[[steps]]`) or, when it is called *.json, JSON (a list, or an object with `steps`).

    Raises:
        ConfigurationError: it cannot be read, is not TOML or JSON, or a step is not as described in ACTIONS.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document: object = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as exc:
        raise ConfigurationError(f"--script {path}: cannot be read: {exc.strerror}; name a TOML or JSON file") from exc
    except ValueError as exc:
        kind = "JSON" if path.suffix == ".json" else "TOML (JSON files must be called *.json)"
        raise ConfigurationError(f"--script {path}: not valid {kind}: {exc}") from exc
    if isinstance(document, dict):
        if unknown := set(document) - {"steps"}:
            raise ConfigurationError(f"--script {path}: expected [[steps]] only, got {sorted(unknown)}")
        document = document.get("steps", [])
    return parse_steps(document, where=f"--script {path}")


def parse_steps(document: object, *, where: str = "script") -> tuple[Step, ...]:
    """Turn a list of objects into steps.

    Raises:
        ConfigurationError: names the step, what was expected and what was got.
    """
    if not isinstance(document, list):
        raise ConfigurationError(f"{where}: expected a list of steps, got {type(document).__name__}")
    return tuple(_parse(item, f"{where}: step {number}") for number, item in enumerate(document, 1))


def timeline(steps: tuple[Step, ...], until_s: float = math.inf) -> Iterator[tuple[float, Step]]:
    """Yield (seconds after start, step) in order, repetitions included, up to `until_s`."""
    due = [(step.at_s, order, step) for order, step in enumerate(steps)]
    while due:
        at_s, order, step = min(due, key=lambda entry: entry[:2])
        if at_s > until_s:
            return
        yield at_s, step
        due.remove((at_s, order, step))
        if step.every_s > 0:
            due.append((at_s + step.every_s, order, step))


def _parse(item: object, where: str) -> Step:
    if not isinstance(item, dict):
        raise ConfigurationError(f"{where}: expected an object such as {{at_s = 5.0, do = 'close'}}, got {item!r}")
    values = {str(name): value for name, value in item.items()}
    do = values.pop("do", None)
    kind = ACTIONS.get(do) if isinstance(do, str) else None
    if kind is None:
        raise ConfigurationError(
            f"{where}: do: expected one of {', '.join(ACTIONS)}; got {do!r}{_nearest(do, ACTIONS)}"
        )
    step, where = where, f"{where} ({do})"
    allowed = {field.name: field for field in fields(kind)}
    for name in values:
        if name not in allowed:
            raise ConfigurationError(
                f"{where}: unknown field {name!r}; expected {', '.join(allowed)}{_nearest(name, allowed)}"
            )
    for name, field in allowed.items():
        if name not in values and field.default is MISSING:
            raise ConfigurationError(f"{where}: {name} is missing; add {name} = <{field.type}>")
        if name in values:
            values[name] = _typed(values[name], str(field.type), f"{where}: {name}")
    try:
        return kind(**values)
    except ConfigurationError as exc:
        raise ConfigurationError(f"{step}: {exc}") from exc


def _typed(value: object, kind: str, where: str) -> object:
    # bool is an int to Python, but not to whoever writes `code = true`.
    if kind == "float" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind == "int" and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind == "str" and isinstance(value, str):
        return value
    raise ConfigurationError(f"{where}: expected {kind}, got {value!r}")


def _bounded(step: _Step, name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigurationError(f"{_snake(type(step).__name__)}: {name}: expected {low:g} to {high:g}, got {value:g}")


def _one_of(step: _Step, name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigurationError(
            f"{_snake(type(step).__name__)}: {name}: expected one of {', '.join(allowed)}; got {value!r}"
            f"{_nearest(value, allowed)}"
        )


def _nearest(value: object, allowed: Mapping[str, object] | tuple[str, ...]) -> str:
    close = difflib.get_close_matches(str(value), list(allowed), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
