"""What the watch finds: words for the session, the journal and the status. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Condition", "Fact", "Verdict", "WatchReport"]


class Condition(StrEnum):
    """What is the matter, and its end."""

    SILENT = "silent"
    FRESH = "fresh"
    BROWN_OUT = "brown_out"
    USUAL = "usual"
    REFUSED = "refused"
    SERVED = "served"
    MISSING = "missing"
    DELIVERING = "delivering"

    @property
    def alarms(self) -> bool:
        """Whether a segment is not served as it should be; else that is over, or it concerns single keys."""
        return self in (Condition.SILENT, Condition.BROWN_OUT, Condition.REFUSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A change, for the journal (kind `watch`); of segments, or of the keys it names."""

    conn: int
    state: Condition
    since_ns: int
    segments: tuple[str, ...]
    detail: str
    keys: tuple[str, ...] = ()

    @property
    def body(self) -> dict[str, object]:
        """Return it as JSON values."""
        named = {"keys": list(self.keys)} if self.keys else {}
        return {
            "conn": self.conn,
            "state": self.state.value,
            "since_ns": self.since_ns,
            "segments": list(self.segments),
            "detail": self.detail,
            **named,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a look found.

    Attributes:
        facts: changes since the last look.
        silent: why the connection is taken for mute; None when it is not.
        degraded: (reason, detail) when one new connection is worth the try.
    """

    facts: tuple[Fact, ...] = ()
    silent: str | None = None
    degraded: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchReport:
    """What is the matter now.

    Attributes:
        state: the worst condition; `fresh` while data is due and comes, `usual` while none is due.
        segments: where; `due` those that data is due from.
        patience_s: segment → seconds of silence after which it is taken for mute; only where data is due.
    """

    state: Condition
    since_ns: int
    segments: tuple[str, ...]
    due: tuple[str, ...]
    patience_s: dict[str, float]
