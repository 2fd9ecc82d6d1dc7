"""What an event tells: the values of its body, whatever it holds. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tickvault.model import segment_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tickvault.model import Event

__all__ = ["FEED", "integer", "keys_of", "name_of", "segments_of", "socket_of", "subject_of", "text", "words_of"]

FEED: Final = "feed"


def subject_of(event: Event) -> str:
    """Return the name of the connection that an event tells of: the same over all that come in its place."""
    return name_of(socket_of(event))


def name_of(socket: int) -> str:
    """Return the name of the connections of a socket."""
    return FEED if socket == 1 else f"{FEED} {socket}"


def socket_of(event: Event) -> int:
    """Return which socket tells it; the first one does not say so."""
    return max(1, integer(event.body.get("socket")))


def keys_of(event: Event) -> list[str]:
    """Return the instruments that an event names."""
    named = event.body.get("keys")
    return list(map(str, named)) if isinstance(named, list) else []


def segments_of(keys: Iterable[str]) -> frozenset[str]:
    """Return the market segments of instruments."""
    return frozenset(map(segment_of, keys))


def words_of(event: Event) -> str:
    """Return what an event says of its cause."""
    reason, code, detail = (event.body.get(name) for name in ("reason", "code", "detail"))
    return str(reason or "") + (f" (code {code})" if code else "") + (f": {detail}" if detail else "")


def integer(value: object) -> int:
    """Return a number; 0 for anything else."""
    return value if isinstance(value, int) else 0


def text(value: object) -> str:
    """Return a text; empty for anything else."""
    return value if isinstance(value, str) else ""
