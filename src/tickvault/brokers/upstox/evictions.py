"""Whether our own connections close one another: what an account allows fewer of than were planned might do. Pure.

What the broker does with a connection too many nobody has published. Should it close the oldest for it, then three
connections where two are allowed would go round for ever: each that comes back ends another one.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Evictions"]

NEAR_S: Final = 2.0  # between the opening of one and the end of another
MANY: Final = 3  # ends in a row that another one's opening explains, before one stays away
FIRST_REST_S: Final = 600.0
LONGEST_REST_S: Final = 4 * 3600.0
FORGET_S: Final = 86_400.0  # the rests grow within a day only


class Evictions:
    """Openings and ends of all connections of an account; one of it, shared by the feeds.

    The times are monotonic seconds.
    """

    def __init__(self) -> None:
        self._open: dict[int, float] = {}  # socket → when its connection opened, oldest first
        self._sockets: set[int] = set()  # that do not stay away
        self._in_row = 0
        self._rest_s = FIRST_REST_S
        self._rested_s = 0.0

    def opened(self, socket: int, now_s: float) -> None:
        """Note that a socket's connection is open."""
        self._open.pop(socket, None)
        self._open[socket] = now_s
        self._sockets.add(socket)

    def ended(self, socket: int, now_s: float, *, by_us: bool) -> float:
        """Note that a socket's connection has ended; return for how long it should stay away so that others are served.

        That is the last of the sockets, after some ends in a row that look like evictions: the oldest of several ends
        just after another one opened, which goes on. Otherwise 0.
        """
        oldest = next(iter(self._open), None)
        self._open.pop(socket, None)
        if by_us:
            return 0.0
        newest_s = max(self._open.values(), default=float("-inf"))
        self._in_row = self._in_row + 1 if socket == oldest and now_s - newest_s <= NEAR_S else 0
        if self._in_row < MANY or socket != max(self._sockets):
            return 0.0
        if now_s - self._rested_s > FORGET_S:
            self._rest_s = FIRST_REST_S
        rest_s, self._rested_s = self._rest_s, now_s
        self._rest_s = min(2.0 * rest_s, LONGEST_REST_S)
        self._in_row = 0
        self._sockets.discard(socket)
        return rest_s
