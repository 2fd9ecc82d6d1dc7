"""What an instrument key looks like: `SEGMENT|name`, or `SEGMENT|name@mode`. Pure."""

from __future__ import annotations

import re
from typing import Final

from tickvault.model import Mode, Subscription

__all__ = ["is_instrument_key", "parse_subscription", "shortened"]

# `NSE_EQ|INE090A01021`, `NSE_INDEX|Nifty 50`, `GLOBAL_INDEX|^GSPC`. 128 characters are far above the longest known;
# a bar or an @ in a name would be read as the separator it is elsewhere.
_KEY: Final = re.compile(r"[A-Z][A-Z0-9_]{0,31}\|[^\s@|](?:[^@|]{0,94}[^\s@|])?")
_MAX_SHOWN_CHARS: Final = 60


def is_instrument_key(text: str) -> bool:
    """Return whether the text has the form of an instrument key; unprintable characters have no place in one."""
    return text.isprintable() and _KEY.fullmatch(text) is not None


def parse_subscription(text: str, default: Mode) -> Subscription:
    """Return the subscription that `key` or `key@mode` names; blanks round either part go.

    Args:
        text: what a user or a server wrote.
        default: the mode of a key that names none.

    Raises:
        ValueError: no instrument key, or no such mode; the text says what was expected.
    """
    key, at, mode = (part.strip() for part in text.partition("@"))
    if not is_instrument_key(key):
        raise ValueError(
            f"instrument key {shortened(text)} is malformed: expected SEGMENT|name, "
            "e.g. NSE_EQ|INE002A01018, or NSE_INDEX|Nifty 50"
        )
    if at and mode.lower() not in tuple(Mode):
        raise ValueError(f"mode {shortened(mode)} of instrument {key!r} is unknown: expected one of {', '.join(Mode)}")
    return Subscription(instrument_key=key, mode=Mode(mode.lower()) if at else default)


def shortened(text: str) -> str:
    """Return the text quoted, and cut to what fits a line."""
    return repr(text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}…")
