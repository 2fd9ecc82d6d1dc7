"""What was subscribed to during a stretch of time, as far as events tell. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tickvault.model import segment_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tickvault.ledger.sessions import Sessions
    from tickvault.model import Event

__all__ = ["Asked"]

# By then the broker has answered a subscription.
_HELD_NS: Final = 5_000_000_000
_LIST: Final = "list"


class Asked:
    """What was subscribed to during a stretch of time: on connections open when it began, and since.

    Args:
        events: of KINDS, from the journal's beginning on.
        from_ns: where it begins, UTC wall clock.
        to_ns: where it ends; exclusive.
        sessions: what was unsubscribed from before its segment traded in that time does not count.

    Attributes:
        since_ns: key → when it was subscribed to first.
        again_ns: key → when it was subscribed to last, of the times that it was held for 5 s and its segment traded.
    """

    def __init__(self, events: Iterable[Event], from_ns: int, to_ns: int, sessions: Sessions) -> None:
        self.since_ns: dict[str, int] = {}
        self.again_ns: dict[str, int] = {}
        self._from_ns = from_ns
        self._sessions = sessions
        self._open: dict[object, dict[str, int]] = {}  # connection → key → since when
        # Socket that could not be opened, or _LIST → segments that it is for.
        self._meant: dict[object, set[str]] = {}
        for event in events:
            if event.at_ns >= to_ns:
                break
            self._take(event)
        for keys in self._open.values():
            self._note(keys, to_ns)

    @property
    def segments(self) -> set[str]:
        """The segments of it, and of what could not be: its connection never opened, or it waited for the master list."""
        return {segment_of(key) for key in self.since_ns}.union(*self._meant.values())

    def _take(self, event: Event) -> None:
        number, socket, segments = (event.body.get(name) for name in ("conn", "socket", "segments"))
        counts = event.at_ns >= self._from_ns
        match event.kind, event.body.get("state"):
            case "start", _:
                ended, self._open = [*self._open.values()], {}
                if not counts:
                    self._meant.clear()
            case "conn", "open" | "closed":
                ended = [self._open.pop(number, {})]
                if not counts:
                    self._meant.pop(socket, None)
            case "conn", "failed":
                ended = []
                self._meant.setdefault(socket, set()).update(map(str, segments if isinstance(segments, list) else ()))
            case "watch", "waiting":
                ended = []
                self._meant.setdefault(_LIST, set()).update(map(str, segments if isinstance(segments, list) else ()))
            case "watch", "resolved":
                ended = []
                if not counts:
                    self._meant.get(_LIST, set()).difference_update(segments if isinstance(segments, list) else ())
            case (("sub" | "unsub"), _):
                ended = [self._amend(event)]
            case _:
                return
        for keys in ended if counts else ():
            self._note(keys, event.at_ns)

    def _amend(self, event: Event) -> dict[str, int]:
        """Take a subscribe or an unsubscribe; return the keys that end with it and count."""
        named, held = event.body.get("keys"), self._open.setdefault(event.body.get("conn"), {})
        keys = [str(key) for key in named] if isinstance(named, list) else []
        if event.kind == "sub":
            for key in keys:
                held.setdefault(key, event.at_ns)
            return {}
        gone = {key: held.pop(key) for key in keys if key in held}
        return {key: since_ns for key, since_ns in gone.items() if self._has_traded(key, since_ns, event.at_ns)}

    def _has_traded(self, key: str, since_ns: int, to_ns: int) -> bool:
        from_ns = max(since_ns, self._from_ns)
        return any(begin < to_ns and end > from_ns for begin, end in self._sessions.trading((segment_of(key),)))

    def _note(self, keys: dict[str, int], to_ns: int) -> None:
        traded: dict[tuple[str, int], bool] = {}
        for key, since_ns in keys.items():
            self.since_ns[key] = min(since_ns, self.since_ns.get(key, since_ns))
            if to_ns - since_ns < _HELD_NS:
                continue
            same = segment_of(key), since_ns
            if same not in traded:
                traded[same] = self._has_traded(key, since_ns, to_ns)
            if traded[same]:
                self.again_ns[key] = max(since_ns, self.again_ns.get(key, since_ns))
