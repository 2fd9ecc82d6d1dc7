"""From journal events to gaps.

| event | closes | opens |
| --- | --- | --- |
| start | what a crash left open, at the last commit | `connection` until the first connection |
| conn open | `connection` | |
| conn closed | | `connection` disconnected |
| conn failed | | (says why it lasts) |
| stop | `connection` | |

The time between two runs is one closed `recorder` gap, written by the second `start`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tickvault.model import Gap

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tickvault.model import Event

__all__ = ["KINDS", "Ledger"]

KINDS: Final = ("start", "stop", "conn")
_FEED: Final = "feed"


class Ledger:
    """The fold's state: the gap that is open now, if any."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.open: Gap | None = None
        for event in events:
            self.apply(event)

    def apply(self, event: Event) -> list[Gap]:
        """Take one event and return the gaps it opened or closed."""
        if event.body.get("purpose"):  # nobody recorded: the time counts as down, before and after
            return []
        match event.kind, event.body.get("state"):
            case "start", _:
                return [*self._close(_int(event.body.get("last_ns"))), *_down(event), *self._begin(event, "connecting")]
            case "stop", _:
                return self._close(event.at_ns)
            case "conn", "open":
                return self._close(event.at_ns)
            case "conn", "failed" if self.open is not None:
                self.open = replace(self.open, detail=_words(event))
                return [self.open]
            case "conn", "closed" if event.body.get("reason") != "stopped":
                return [*self._close(event.at_ns), *self._begin(event, _words(event))]
            case _:
                return []

    def _begin(self, event: Event, detail: str) -> list[Gap]:
        self.open = Gap(
            scope="connection",
            subject=_FEED,
            opened_ns=event.at_ns,
            closed_ns=None,
            reason="disconnected",
            planned=False,
            detail=detail,
        )
        return [self.open]

    def _close(self, at_ns: int) -> list[Gap]:
        if self.open is None:
            return []
        closed, self.open = replace(self.open, closed_ns=max(at_ns, self.open.opened_ns)), None
        return [closed]


def _down(start: Event) -> list[Gap]:
    """Return the time since the previous run, if there was one."""
    last_ns = _int(start.body.get("last_ns"))
    if not last_ns:
        return []
    clean = bool(start.body.get("clean"))
    return [
        Gap(
            scope="recorder",
            subject="",
            opened_ns=last_ns,
            closed_ns=max(start.at_ns, last_ns),
            reason="recorder_down",
            planned=clean,
            detail="stopped" if clean else "ended without stopping",
        )
    ]


def _words(event: Event) -> str:
    """Return what an event says of its cause."""
    reason, code, detail = (event.body.get(name) for name in ("reason", "code", "detail"))
    return str(reason or "") + (f" (code {code})" if code else "") + (f": {detail}" if detail else "")


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0
