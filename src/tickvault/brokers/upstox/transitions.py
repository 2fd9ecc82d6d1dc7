"""The session's table: in which state which signal leads where, and what is to be done then. Pure.

docs/session.md has the picture, drawn from it by `diagram`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

__all__ = ["OPEN", "TABLE", "Do", "Signal", "State", "diagram"]


class State(StrEnum):
    """What the session is doing."""

    IDLE = "idle"
    AUTHORIZING = "authorizing"
    CONNECTING = "connecting"
    GREETING = "greeting"  # open; the broker's first market_info and the definitions are awaited
    SUBSCRIBING = "subscribing"
    SNAPSHOTS = "snapshots"  # all requests are sent; each is answered with a snapshot
    LIVE = "live"
    MUTE = "mute"  # open, and nothing comes that was subscribed to
    CLOSING = "closing"
    WAITING = "waiting"
    STOPPED = "stopped"


class Signal(StrEnum):
    """What an event means in the state it meets: the columns of the table."""

    START = "start"
    LIMITED = "limited"  # the rate limit allows no call yet
    PREPARED = "prepared"
    AUTHORIZED = "authorized"
    FAILED = "failed"
    HOPELESS = "hopeless"
    OPENED = "opened"
    READY = "ready"  # defined, and greeted or long enough not
    BARE = "bare"  # the same, with nothing to subscribe to
    SENT = "sent"  # one request, and there are more
    SENT_ALL = "sent_all"
    SERVED = "served"  # subscribed keys deliver
    QUIET = "quiet"  # they do not, and nothing is due: the market is closed or pauses
    UNSERVED = "unserved"  # they do not, and should
    SILENT = "silent"  # they did, and no longer do
    DEGRADED = "degraded"  # they do, but so little that one new connection is worth the try
    PING_DUE = "ping_due"
    DEAD = "dead"  # no answer to a ping
    CLOSED = "closed"
    DUE = "due"
    RENEWED = "renewed"  # another token is to be had than the one that was refused, or that is in use
    STOP = "stop"
    STOPPED = "stopped"  # the connection that was to be closed has ended


class Do(StrEnum):
    """What there is to do; in brackets the events that tell how it went."""

    PREPARE = "prepare"  # get the list of keys and the token (PREPARED, Failed, HOPELESS)
    AUTHORIZE = "authorize"  # ask the broker for an address, at once (AUTHORIZED, Failed, HOPELESS)
    CONNECT = "connect"  # open the address (Opened, Failed)
    DEFINE = "define"  # bring definitions into force, in bounded time (DEFINED)
    SUBSCRIBE = "subscribe"  # send request number `request`, from 0 (SENT)
    PING = "ping"
    CLOSE = "close"  # send a close frame and read on to the broker's (CLOSED)
    ABANDON = "abandon"  # read no more (CLOSED)
    WAIT = "wait"  # until the monotonic time `at_s`, replacing the one before (Due)


# States with an open connection.
OPEN: Final = (State.GREETING, State.SUBSCRIBING, State.SNAPSHOTS, State.LIVE, State.MUTE)

# (state, signal) → (next state, what to do).
TABLE: Final[dict[tuple[State, Signal], tuple[State, tuple[Do, ...]]]] = {
    (State.IDLE, Signal.START): (State.AUTHORIZING, (Do.PREPARE,)),
    (State.IDLE, Signal.LIMITED): (State.WAITING, (Do.WAIT,)),
    (State.IDLE, Signal.STOP): (State.STOPPED, ()),
    (State.AUTHORIZING, Signal.PREPARED): (State.AUTHORIZING, (Do.AUTHORIZE,)),
    (State.AUTHORIZING, Signal.LIMITED): (State.WAITING, (Do.WAIT,)),
    (State.AUTHORIZING, Signal.AUTHORIZED): (State.CONNECTING, (Do.CONNECT,)),
    (State.AUTHORIZING, Signal.FAILED): (State.WAITING, (Do.WAIT,)),
    (State.AUTHORIZING, Signal.HOPELESS): (State.STOPPED, ()),
    (State.AUTHORIZING, Signal.STOP): (State.STOPPED, ()),
    (State.CONNECTING, Signal.OPENED): (State.GREETING, (Do.DEFINE, Do.WAIT)),
    (State.CONNECTING, Signal.FAILED): (State.WAITING, (Do.WAIT,)),
    (State.CONNECTING, Signal.STOP): (State.STOPPED, ()),
    (State.GREETING, Signal.READY): (State.SUBSCRIBING, (Do.SUBSCRIBE,)),
    (State.GREETING, Signal.BARE): (State.SNAPSHOTS, (Do.WAIT,)),
    (State.SUBSCRIBING, Signal.SENT): (State.SUBSCRIBING, (Do.SUBSCRIBE,)),
    (State.SUBSCRIBING, Signal.SENT_ALL): (State.SNAPSHOTS, (Do.WAIT,)),
    (State.SUBSCRIBING, Signal.SERVED): (State.LIVE, ()),
    (State.SNAPSHOTS, Signal.SERVED): (State.LIVE, ()),
    (State.SNAPSHOTS, Signal.QUIET): (State.LIVE, ()),
    (State.SNAPSHOTS, Signal.UNSERVED): (State.MUTE, (Do.WAIT,)),
    (State.LIVE, Signal.SILENT): (State.MUTE, (Do.WAIT,)),
    (State.LIVE, Signal.DEGRADED): (State.CLOSING, (Do.CLOSE, Do.WAIT)),
    (State.MUTE, Signal.SERVED): (State.LIVE, ()),
    (State.MUTE, Signal.QUIET): (State.LIVE, ()),
    (State.MUTE, Signal.DUE): (State.CLOSING, (Do.CLOSE, Do.WAIT)),
    **{(state, Signal.PING_DUE): (state, (Do.PING,)) for state in OPEN},
    **{(state, Signal.DEAD): (State.CLOSING, (Do.ABANDON,)) for state in OPEN},
    **{(state, Signal.RENEWED): (State.CLOSING, (Do.CLOSE, Do.WAIT)) for state in OPEN},
    **{(state, Signal.CLOSED): (State.WAITING, (Do.WAIT,)) for state in OPEN},
    **{(state, Signal.STOP): (State.CLOSING, (Do.CLOSE, Do.WAIT)) for state in OPEN},
    (State.CLOSING, Signal.DUE): (State.CLOSING, (Do.ABANDON,)),
    (State.CLOSING, Signal.CLOSED): (State.WAITING, (Do.WAIT,)),
    (State.CLOSING, Signal.STOPPED): (State.STOPPED, ()),
    (State.WAITING, Signal.DUE): (State.AUTHORIZING, (Do.PREPARE,)),
    (State.WAITING, Signal.RENEWED): (State.AUTHORIZING, (Do.PREPARE,)),
    (State.WAITING, Signal.LIMITED): (State.WAITING, (Do.WAIT,)),
    (State.WAITING, Signal.STOP): (State.STOPPED, ()),
}


def diagram() -> str:
    """Return the table as a mermaid state diagram."""
    edges: dict[tuple[str, str], list[str]] = {}
    for (state, signal), (following, todo) in TABLE.items():
        label = f"{signal.value} / {', '.join(do.value for do in todo)}" if todo else signal.value
        edges.setdefault((state.value, following.value), []).append(label)
    lines = [f"    {here} --> {there}: {'<br/>'.join(labels)}" for (here, there), labels in edges.items()]
    return "\n".join(["stateDiagram-v2", "    [*] --> idle", *lines, "    stopped --> [*]"]) + "\n"
