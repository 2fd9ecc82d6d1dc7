"""Which connection carried which instrument, as far as events tell. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tickvault.ledger.sessions import FOREVER_NS
from tickvault.ledger.told import keys_of, subject_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tickvault.model import Event

__all__ = ["Carried", "carriers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """An instrument on a connection of the plan, named as gaps name it, for a stretch of one run; the end is exclusive."""

    instrument_key: str
    subject: str
    from_ns: int
    to_ns: int


def carriers(events: Iterable[Event]) -> list[Carried]:
    """Return which connections carried what.

    Args:
        events: of the kinds `start`, `sub` and `unsub`, in order.

    Returns:
        From the start of the run, or from the subscribe that moved it there, to the unsubscribe or the next start.
    """
    found: list[Carried] = []
    open_since: dict[tuple[str, str], int] = {}
    seen: set[str] = set()  # in this run
    start_ns = 0

    def end(key: str, subject: str, at_ns: int) -> None:
        since_ns = open_since.pop((key, subject), None)
        if since_ns is not None and since_ns < at_ns:
            found.append(Carried(instrument_key=key, subject=subject, from_ns=since_ns, to_ns=at_ns))

    for event in events:
        if event.kind == "start":
            if event.body.get("purpose"):
                continue
            for key, subject in list(open_since):
                end(key, subject, event.at_ns)
            seen.clear()
            start_ns = event.at_ns
            continue
        subject = subject_of(event)
        for key in keys_of(event):
            if event.kind == "unsub":
                end(key, subject, event.at_ns)
            else:
                open_since.setdefault((key, subject), event.at_ns if key in seen else start_ns)
                seen.add(key)
    for key, subject in list(open_since):
        end(key, subject, FOREVER_NS)
    return found
