"""What the probe is going to do, and the fact sheet it writes. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tickvault import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Finding", "Pace", "Sheet", "Step", "steps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long the probe waits for what, in seconds.

    Attributes:
        answer_s: for the answer to a request.
        observe_s: watching live frames; more than 60 shows a candle's change.
        idle_s: without subscriptions, for the server's pings.
        age_s: how old an address is when it is opened.
    """

    answer_s: float = 5.0
    observe_s: float = 150.0
    idle_s: float = 90.0
    age_s: float = 120.0

    @property
    def total_s(self) -> float:
        """About how long it all takes."""
        return self.observe_s + max(self.idle_s, self.age_s) + 12 * self.answer_s


@dataclass(frozen=True, slots=True)
class Step:
    """A part of the session: its name, and what it does with the account."""

    name: str
    does: str


_STEPS: Final = (
    Step("open", "authorizes once and opens one connection, offering compression"),
    Step("subscribe", "subscribes to the keys in mode full, in one message"),
    Step("ping", "pings once"),
    Step("observe", "watches live frames"),
    Step("duplicates", "subscribes to each key twice in one message"),
    Step("resubscribe", "subscribes once more to what is subscribed"),
    Step("change_mode", "changes the keys to mode ltpc"),
    Step("unsub", "unsubscribes from everything"),
    Step("unlisted key", "subscribes to a key that no contract has"),
    Step("expired key", "subscribes to the expired contract that was named, if one was"),
    Step("idle", "authorizes a second time without opening that address; waits, subscribed to nothing, for pings"),
    Step("close", "closes the connection"),
    Step("used address", "opens the closed connection's address once more; closes at once if it opens"),
    Step("old address", "opens the second address when it is old; closes at once if it opens"),
)
_SOCKETS: Final = Step("sockets", "opens three connections at once; the account's limit may end one of another program")


def steps(*, sockets: bool) -> tuple[Step, ...]:
    """Return what the probe does, in order."""
    return (*_STEPS, _SOCKETS) if sockets else _STEPS


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a step found: one sentence, and the facts behind it."""

    step: str
    answer: str
    facts: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """The fact sheet."""

    made_at: str
    feed_host: str
    token_kind: str
    plus: bool | None
    keys: Mapping[str, int]
    findings: tuple[Finding, ...]

    def json(self) -> str:
        """Return it for programs."""
        body = {
            "tickvault": __version__,
            "made_at": self.made_at,
            "feed_host": self.feed_host,
            "token_kind": self.token_kind,
            "plus": self.plus,
            "keys": dict(self.keys),
            "findings": [{"step": one.step, "answer": one.answer, "facts": dict(one.facts)} for one in self.findings],
        }
        return json.dumps(body, indent=2) + "\n"

    def markdown(self) -> str:
        """Return it for people."""
        plus = {True: "yes", False: "no", None: "unknown"}[self.plus]
        keys = ", ".join(f"{count} {segment}" for segment, count in self.keys.items())
        lines = [
            "# Broker fact sheet",
            "",
            f"Made at {self.made_at} with tickvault {__version__}.",
            f"Feed {self.feed_host}, {self.token_kind} token, Plus plan: {plus}, keys: {keys}.",
            "",
            "| step | found |",
            "|---|---|",
            *(f"| {one.step} | {one.answer} |" for one in self.findings),
        ]
        for one in self.findings:
            if one.facts:
                lines += ["", f"## {one.step}", "", "```json", json.dumps(dict(one.facts), indent=2), "```"]
        return "\n".join(lines) + "\n"
