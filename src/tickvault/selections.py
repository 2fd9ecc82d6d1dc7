"""What a text asks to record: a key, a symbol, a future, an option chain, indices, or a file of these. Pure.

| text | means |
| --- | --- |
| `NSE_EQ|INE002A01018` | this key |
| `NSE_EQ:RELIANCE` | the instrument of the segment with this trading symbol |
| `future:NIFTY:2` | the futures of the two nearest expiries |
| `chain:NIFTY:2` | every option of the two nearest expiries, the spot, the current future, India VIX |
| `chain:NIFTY:weekly:atm+-20` | of the nearest expiry, 20 strikes on either side of the price |
| `index:*` | every index whose symbol or name matches |
| `@keys.txt` | what a file lists |

Each may have `@mode` behind it. Which keys that makes on a day is brokers/upstox/resolve.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tickvault.errors import ConfigurationError
from tickvault.model import Mode
from tickvault.subscriptions import parse_subscription, shortened

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "SEGMENTS",
    "Chain",
    "Future",
    "Indices",
    "Key",
    "ListFile",
    "Near",
    "Selection",
    "Symbol",
    "lines_of",
    "nearest",
    "parse_selection",
    "parse_selections",
    "unquoted",
]

# Source: Upstox documentation, instruments.
SEGMENTS: Final = (
    "NSE_EQ",
    "NSE_FO",
    "NSE_INDEX",
    "NSE_COM",
    "NCD_FO",
    "BSE_EQ",
    "BSE_FO",
    "BSE_INDEX",
    "BCD_FO",
    "MCX_FO",
    "GLOBAL_INDEX",
    "GLOBAL_INDICATOR",
)
_WORDS: Final = ("future", "chain", "index")
_MAX_PROBLEMS: Final = 5
_QUOTES: Final = "'\""
_MAX_EXPIRIES: Final = 99
_WINDOW: Final = re.compile(r"atm\+-(\d{1,4})", re.ASCII)
_COUNT: Final = re.compile(r"\d{1,2}", re.ASCII)


class Near(StrEnum):
    """One expiry by name: the nearest one, which is the monthly one in its week; the nearest that is the last of its month."""

    WEEKLY = "weekly"
    MONTHLY = "monthly"


@dataclass(frozen=True, slots=True)
class Key:
    """An instrument key."""

    key: str


@dataclass(frozen=True, slots=True)
class Symbol:
    """A trading symbol in a segment; upper case."""

    segment: str
    symbol: str


@dataclass(frozen=True, slots=True)
class Future:
    """The futures of the `expiries` nearest expiries; `segment` None: the first that has any."""

    underlying: str
    expiries: int
    segment: str | None = None


@dataclass(frozen=True, slots=True)
class Chain:
    """The options of some expiries, and what belongs to them.

    Attributes:
        underlying: its symbol, upper case.
        expiries: how many of the nearest, or one by name.
        window: strikes on either side of the one at the money; None for all.
        segment: None: the first that has any.
    """

    underlying: str
    expiries: int | Near
    window: int | None = None
    segment: str | None = None


@dataclass(frozen=True, slots=True)
class Indices:
    """Indices whose symbol or name matches; `*` and `?` stand for anything; upper case."""

    pattern: str


@dataclass(frozen=True, slots=True)
class ListFile:
    """A file with a selection a line."""

    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What one text asks for.

    Attributes:
        text: as it was written, without its mode.
        mode: of everything that it selects.
        typed: whether a user typed it as a setting; otherwise a list or a file has it.
    """

    text: str
    what: Key | Symbol | Future | Chain | Indices | ListFile
    mode: Mode
    typed: bool = True


def parse_selection(text: str, default: Mode, *, typed: bool = True) -> Selection:
    """Return what a text selects; blanks round its parts go.

    Args:
        text: what a user or a server wrote, e.g. `chain:NIFTY:2@ltpc`.
        default: the mode when it names none.
        typed: Selection.typed.

    Raises:
        ValueError: it selects nothing; the text says what was expected, what came, and the nearest that is known.
    """
    text = text.strip()
    if text.startswith("@"):
        return _file(text, default, typed=typed)
    if "|" in text or ":" not in text:
        one = parse_subscription(text, default)
        return Selection(text=one.instrument_key, what=Key(one.instrument_key), mode=one.mode, typed=typed)
    body, at, mode = (part.strip() for part in text.partition("@"))
    if at and mode.lower() not in tuple(Mode):
        raise ValueError(
            f"mode {shortened(mode)} of {shortened(body)} is unknown: expected one of {', '.join(Mode)}{nearest(mode.lower(), Mode)}"
        )
    if not body.isprintable():
        raise ValueError(f"{shortened(body)} has unprintable characters; write it anew")
    return Selection(text=body, what=_what(body), mode=Mode(mode.lower()) if at else default, typed=typed)


def parse_selections(items: Iterable[str], default: Mode) -> tuple[Selection, ...]:
    """Return what the items of a setting select, each once.

    Raises:
        ConfigurationError: an item is malformed, or the same is there in two modes; names the first five.
    """
    found: dict[object, Selection] = {}
    problems = []
    for item in items:
        try:
            one = parse_selection(item, default)
        except ValueError as exc:
            problems.append(str(exc))
            continue
        known = found.setdefault(one.what, one)
        if known.mode != one.mode:
            what = "instrument" if isinstance(one.what, Key) else "selection"
            problems.append(f"{what} {one.text!r} is there in modes {known.mode} and {one.mode}; keep one of them")
    if problems:
        more = [f"and {len(problems) - _MAX_PROBLEMS} more"] if len(problems) > _MAX_PROBLEMS else []
        raise ConfigurationError("; ".join([*problems[:_MAX_PROBLEMS], *more]))
    return tuple(found.values())


def lines_of(text: str) -> tuple[str, ...]:
    """Return the items of a file: one a line, or several between commas, in quotes or not; `#` begins a comment."""
    lines = (unquoted(line.partition("#")[0]) for line in text.splitlines())
    items = (unquoted(item) for line in lines for item in line.split(","))
    return tuple(dict.fromkeys(item for item in items if item))


def unquoted(text: str) -> str:
    """Return the text trimmed and without one pair of quotes round all of it (`"a", "b"` has two pairs and keeps them)."""
    text = text.strip()
    quoted = len(text) >= 2 and text[0] in _QUOTES and text[-1] == text[0] and text[0] not in text[1:-1]
    return text[1:-1].strip() if quoted else text


def nearest(word: str, known: Iterable[str]) -> str:
    """Return words that propose the known name nearest to a word; empty when none is near."""
    close = get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _file(text: str, default: Mode, *, typed: bool) -> Selection:
    if not typed:
        raise ValueError(f"{shortened(text)}: a list cannot name another file; put its lines here")
    path, at, mode = text[1:].rpartition("@")
    if not at or mode.strip().lower() not in tuple(Mode):
        path, mode = text[1:], default.value  # an @ of its name
    if not path.strip():
        raise ValueError("@ alone names no file: expected @ and a path, e.g. @keys.txt")
    return Selection(text=f"@{path.strip()}", what=ListFile(Path(path.strip())), mode=Mode(mode.strip().lower()))


def _what(body: str) -> Symbol | Future | Chain | Indices:
    head, *rest = (part.strip() for part in body.split(":"))
    match head.lower():
        case "future":
            segment, rest = _segment(rest)
            return _future(body, segment, rest)
        case "chain":
            segment, rest = _segment(rest)
            return _chain(body, segment, rest)
        case "index":
            return _indices(body, rest)
    if head.upper() in SEGMENTS and (symbol := ":".join(rest)):
        return Symbol(head.upper(), symbol.upper())
    if head.upper() in SEGMENTS:
        raise ValueError(f"{shortened(body)} names no symbol: expected SEGMENT:SYMBOL, e.g. NSE_EQ:RELIANCE")
    near = nearest(head.lower(), _WORDS) or nearest(head.upper(), SEGMENTS)
    raise ValueError(
        f"{shortened(body)} is no selection: expected future:, chain:, index: or a segment such as NSE_EQ: before the "
        f"first colon, got {shortened(head)}{near}"
    )


def _segment(parts: list[str]) -> tuple[str | None, list[str]]:
    if parts and parts[0].upper() in SEGMENTS:
        return parts[0].upper(), parts[1:]
    return None, parts


def _future(body: str, segment: str | None, parts: list[str]) -> Future:
    match parts:
        case [str(underlying), count] if underlying and (expiries := _count(count)):
            return Future(underlying.upper(), expiries, segment)
    raise ValueError(
        f"{shortened(body)} is malformed: expected future:UNDERLYING:EXPIRIES, the number of nearest expiries "
        f"from 1 to {_MAX_EXPIRIES}, e.g. future:NIFTY:1"
    )


def _chain(body: str, segment: str | None, parts: list[str]) -> Chain:
    expected = "expected chain:UNDERLYING:EXPIRIES or chain:UNDERLYING:EXPIRIES:atm+-STRIKES, e.g. chain:NIFTY:2"
    match parts:
        case [str(underlying), str(near), *window] if underlying and len(window) <= 1:
            pass
        case _:
            raise ValueError(f"{shortened(body)} is malformed: {expected}")
    expiries: int | Near | None = Near(near.lower()) if near.lower() in tuple(Near) else _count(near)
    if expiries is None:
        raise ValueError(
            f"{shortened(body)}: expected the number of nearest expiries from 1 to {_MAX_EXPIRIES}, weekly or monthly, "
            f"got {shortened(near)}{nearest(near.lower(), Near)}"
        )
    if not window:
        return Chain(underlying.upper(), expiries, None, segment)
    strikes = _WINDOW.fullmatch(window[0].lower().replace(" ", ""))
    if strikes is None:
        raise ValueError(
            f"{shortened(body)}: expected strikes on either side of the price as atm+-20, got {shortened(window[0])}"
        )
    return Chain(underlying.upper(), expiries, int(strikes[1]), segment)


def _indices(body: str, parts: list[str]) -> Indices:
    pattern = ":".join(parts)
    if not pattern:
        raise ValueError(f"{shortened(body)} names no index: expected index:PATTERN, e.g. index:* or index:NIFTY*")
    return Indices(pattern.upper())


def _count(text: str) -> int | None:
    """Return the number of expiries, None when it is none."""
    return int(text) or None if _COUNT.fullmatch(text) else None
