"""One of the sockets, as the ledger sees it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tickvault.ledger.states import State

__all__ = ["Line"]


@dataclass(slots=True)
class Line:
    """One of the sockets: what it is to carry, and the connection that carries it, if one does.

    Attributes:
        conn: number of the connection that is open.
        serves: whether it does what it is for; until then its place counts as empty.
        tells: whether it says when it serves; one that does not (of an earlier version) serves when it has asked.
        wanted: keys, of this connection and the one before: a new one asks for them chunk by chunk.
        served: keys that the open connection was asked for.
        known: whether `wanted` says what the socket is for; until then `segments` does, as far as they are known.
        state: why no connection serves, if none does; `detail` in words.
        since_ns: from when on it has been missed, if that is not told yet.
    """

    conn: int | None = None
    serves: bool = False
    tells: bool = False
    wanted: set[str] = field(default_factory=set)
    served: set[str] = field(default_factory=set)
    known: bool = False
    segments: frozenset[str] = frozenset()
    state: State = State.DISCONNECTED
    detail: str = "connecting"
    since_ns: int | None = None
