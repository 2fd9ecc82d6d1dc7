"""What was happening to the recording, at every instant one of these; and the kinds of events that tell it. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["KINDS", "MEANINGS", "ORDER", "State"]

# Not `alive`: it is for the time of the last commit, and a quiet night has thousands.
KINDS: Final = (
    "start",
    "stop",
    "conn",
    "sub",
    "unsub",
    "calendar",
    "clock_step",
    "stalled",
    "lost",
    "disk_full",
    "watch",
    "skipped",
)


class State(StrEnum):
    """What was happening to the recording; in order of precedence."""

    CLOSED = "closed"
    RECORDER_DOWN = "recorder_down"
    DISK_FULL = "disk_full"
    RECORDER_STALLED = "recorder_stalled"
    LOST = "lost"
    TOKEN_REJECTED = "token_rejected"  # noqa: S105 - a reason, not a token
    OVERRUN = "overrun"
    DISCONNECTED = "disconnected"
    SUBSCRIPTION_REFUSED = "subscription_refused"
    SILENT = "silent"
    BROWN_OUT = "brown_out"
    NOT_SUBSCRIBED = "not_subscribed"
    RECORDED = "recorded"


MEANINGS: Final[Mapping[State, str]] = {
    State.CLOSED: "the market did not trade: there was nothing to record",
    State.RECORDER_DOWN: "no recorder ran, from the last commit to the next start",
    State.DISK_FULL: "the disk had no room for the journal",
    State.RECORDER_STALLED: "more than 3 s without a commit: the process or the machine stood still, or the clock skipped",
    State.LOST: "frames were journalled, and the journal was damaged",
    State.TOKEN_REJECTED: "no connection, because the broker refused the token",
    State.OVERRUN: "no connection: the broker dropped us after we could not keep up",
    State.DISCONNECTED: "no connection to the broker",
    State.SUBSCRIPTION_REFUSED: "connected, and the broker does not serve what was subscribed to",
    State.SILENT: "connected, and a trading segment sends nothing",
    State.BROWN_OUT: "connected, and a trading segment sends far less than usual",
    State.NOT_SUBSCRIBED: "connected, and some of what is wanted is not subscribed to yet: it waits for the master list",
    State.RECORDED: "everything that the broker sent is in the journal",
}

ORDER: Final = {state: number for number, state in enumerate(State)}
