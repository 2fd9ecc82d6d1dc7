"""One snapshot of how the recorder is; status, dashboard and metrics only render it. Pure."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tickvault.model import Gap
    from tickvault.state import Cursor, View
    from tickvault.survey import Stats

__all__ = ["ALARMS", "FeedHealth", "KeysHealth", "MarketHealth", "SinkHealth", "Snapshot", "of_files", "state_of"]


# States of a market's data; in the first three something is the matter.
_WORST_FIRST: Final = ("refused", "silent", "brown_out", "fresh", "usual")
ALARMS: Final = frozenset(_WORST_FIRST[:3])
_LISTED: Final = 20  # keys by name, of each kind
_NAMED: Final = 3  # keys named in words
_STEPS: Final = {
    "empty": "correct the empty ones: derivatives go by their numeric token",
    "over_limit": "take out those over the limit, or use another mode",
    "no_plus": "use full in place of full_d30, which needs Upstox Plus",
    "never": "look up those that never came: expired, misspelt (keys are case-sensitive), or not served",
}


_WORKING: Final = frozenset({"running", "retrying"})  # what a sink is only while a recorder runs


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkHealth:
    """One sink: how far it is, and how far behind.

    Attributes:
        lag_frames: frames journalled and not delivered; `lag_s` the age of the oldest of them in s.
        state: running, retrying, misconfigured, parked, or stopped when no recorder runs; `detail` says why.
    """

    cursor_seq: int
    lag_frames: int
    lag_s: float
    state: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysHealth:
    """How the subscribed keys do, on the connection that is open or was last.

    Attributes:
        subscribed: how many; `delivering` have delivered, `pending` may yet.
        silent: reason → keys that have not (`empty`, `over_limit`, `no_plus`, `never`; by themselves end `closed`, `quiet`).
        problems: those that somebody has to do something about: reason → the first of them by name.
        never_seen: have not delivered since the recorder began.
        oldest_s: of those that have been silent for longest: key → seconds since its last data.
    """

    subscribed: int = 0
    delivering: int = 0
    pending: int = 0
    silent: dict[str, int] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)
    never_seen: int = 0
    oldest_s: dict[str, float] = field(default_factory=dict)

    def shown(self) -> str:
        """Return it in words."""
        parts = [f"{self.delivering:,} of {self.subscribed:,} deliver"]
        parts += [f"{self.pending:,} pending"] if self.pending else []
        silent = ((why, count) for why, count in self.silent.items() if count)
        parts += [f"{count:,} {why}{_named(self.problems.get(why, []), count)}" for why, count in silent]
        return "; ".join(parts)

    @classmethod
    def of_all(cls, parts: Sequence[KeysHealth]) -> KeysHealth:
        """Return how the keys of several feeds do together."""
        silent: Counter[str] = Counter()
        problems: dict[str, list[str]] = {}
        for one in parts:
            silent.update(one.silent)
            for why, keys in one.problems.items():
                problems[why] = [*problems.get(why, []), *keys][:_LISTED]
        oldest = heapq.nlargest(_LISTED, (age for one in parts for age in one.oldest_s.items()), key=lambda age: age[1])
        return cls(
            subscribed=sum(one.subscribed for one in parts),
            delivering=sum(one.delivering for one in parts),
            pending=sum(one.pending for one in parts),
            silent=dict(silent),
            problems=problems,
            never_seen=sum(one.never_seen for one in parts),
            oldest_s=dict(oldest),
        )

    def next_steps(self) -> str:
        """Return what somebody has to do about them; empty when nothing."""
        return "; ".join(_STEPS[why] for why in self.problems if why in _STEPS)


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketHealth:
    """What the market does, and whether its data is fresh.

    Attributes:
        state: `silent`, `brown_out`, `refused`; `fresh` while data is due and comes, `usual` while none is due.
        since_ns: of the last change, UTC; 0 when there was none.
        segments: where; `due` those that data is due from.
        patience_s: segment → seconds of silence after which it is taken for mute; only where data is due.
        phases: subscribed segment → what it is doing.
        statuses: scope (`segment`, `cas`, `pre_open`) → segment → the broker's last word, verbatim.
        unobserved: messages that were recorded and not looked at, for want of time.
    """

    state: str = "usual"
    since_ns: int = 0
    segments: list[str] = field(default_factory=list)
    due: list[str] = field(default_factory=list)
    patience_s: dict[str, float] = field(default_factory=dict)
    phases: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, dict[str, str]] = field(default_factory=dict)
    unobserved: int = 0

    @classmethod
    def of_all(cls, parts: Sequence[MarketHealth]) -> MarketHealth:
        """Return what several feeds find together: of states the worst, where it holds, and since when."""
        worst = min(parts, key=lambda one: _WORST_FIRST.index(one.state))
        of_state = [one for one in parts if one.state == worst.state]
        scopes = {scope for one in parts for scope in one.statuses}
        return cls(
            state=worst.state,
            since_ns=min(one.since_ns for one in of_state),
            segments=sorted({segment for one in of_state for segment in one.segments}),
            due=sorted({segment for one in parts for segment in one.due}),
            patience_s={segment: each for one in parts for segment, each in one.patience_s.items()},
            phases={segment: phase for one in parts for segment, phase in one.phases.items()},
            statuses={
                scope: {k: v for one in parts for k, v in one.statuses.get(scope, {}).items()} for scope in scopes
            },
            unobserved=sum(one.unobserved for one in parts),
        )

    def shown(self) -> str:
        """Return it in words."""
        phases = ", ".join(f"{segment} {phase}" for segment, phase in self.phases.items()) or "no status yet"
        return f"{phases}; {', '.join(self.segments)}: {self.state}" if self.state in ALARMS else phases


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedHealth:
    """The connections to the broker; `state` and `last_error` are those of the first that is not live, if there is one.

    Attributes:
        last_frame_age_s: seconds since the last message; None before the first.
        queued: messages that wait for the journal; `queue_waits` counts how often reading had to wait for it.
        held_s: seconds that reading has stood still.
        journal_full: whether the disk has no room for what is received.
        token: kind, plan and expiry of the access token, in words; `token_expires_s` its end, UTC.
        sockets: how many there are; `planned` how many keys they serve.
        refused: what does not fit the broker's limits, with the arithmetic; None when all does. `keys_refused`: how many.
        skipped: selections that come to nothing, and why; at most 20 of `skipped_count`.
        list_lost: what the master list has lost, and is taken from the one before; None when it has not lost much.
    """

    state: str
    conn: int
    frames: int
    reconnects: int
    last_frame_age_s: float | None
    queued: int
    queue_waits: int
    held_s: float
    last_error: str | None
    keys: KeysHealth
    market: MarketHealth
    journal_full: bool = False
    token: str | None = None
    token_expires_s: float | None = None
    sockets: int = 0
    planned: int = 0
    refused: str | None = None
    keys_refused: int = 0
    skipped: list[str] = field(default_factory=list)
    skipped_count: int = 0
    list_lost: str | None = None

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> FeedHealth:
        """Return what a recorder told as JSON; of another version what both know."""
        known: dict[str, Any] = {name: told.get(name) for name in cls.__slots__}
        keys, market = _known(KeysHealth, told.get("keys")), _known(MarketHealth, told.get("market"))
        return cls(**(known | {"keys": KeysHealth(**keys), "market": MarketHealth(**market)}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """How the recorder is.

    Attributes:
        running: whether a recorder has the folder; `pid` is its process.
        feed: None when none runs.
        open_gaps: what is not being recorded now.
        dead_letters, outbox: rows that a sink refused; events that wait for the webhook.
    """

    recorder_id: str | None
    running: bool
    pid: int | None
    uptime_s: float | None
    data_dir: str
    frames: int
    first_seq: int
    last_seq: int
    bytes: int
    segments: int
    disk_free_bytes: int
    sinks: dict[str, SinkHealth]
    feed: FeedHealth | None
    open_gaps: tuple[str, ...]
    dead_letters: int
    outbox: int

    def json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def state_of(cursor: Cursor, *, running: bool) -> str:
    """Return what a sink is doing; without a recorder none works, whatever was written down last."""
    return "stopped" if not running and cursor.state in _WORKING else cursor.state


def of_files(
    stats: Stats,
    view: View | None,
    *,
    data_dir: str,
    pid: int | None,
    oldest_undelivered_ns: dict[str, int | None],
    disk_free_bytes: int,
    now_ns: int,
    uptime_s: float | None = None,
    feed: FeedHealth | None = None,
) -> Snapshot:
    """Put together what the files of a data folder tell.

    Args:
        stats: of the journal.
        view: of the state; None when there is none.
        data_dir: shown.
        pid: of the recorder that has the folder.
        oldest_undelivered_ns: sink → receive time of the first frame behind its cursor, None if there is none.
        disk_free_bytes: of the disk that holds the folder.
        now_ns: UTC wall clock.
        uptime_s: of a running recorder.
        feed: of a running recorder.
    """
    sinks = {
        cursor.sink: SinkHealth(
            cursor_seq=cursor.seq,
            lag_frames=max(0, stats.last_seq - cursor.seq),
            lag_s=_age_s(oldest_undelivered_ns.get(cursor.sink), now_ns),
            state=state_of(cursor, running=pid is not None),
            detail=cursor.detail,
        )
        for cursor in (view.cursors if view is not None else ())
    }
    return Snapshot(
        recorder_id=stats.recorder_id,
        running=pid is not None,
        pid=pid,
        uptime_s=uptime_s,
        data_dir=data_dir,
        frames=stats.frames,
        first_seq=stats.first_seq,
        last_seq=stats.last_seq,
        bytes=stats.bytes,
        segments=stats.segments,
        disk_free_bytes=disk_free_bytes,
        sinks=sinks,
        feed=feed,
        open_gaps=_open_gaps(view.gaps if view is not None else ()),
        dead_letters=view.dead_letters if view is not None else 0,
        outbox=view.outbox if view is not None else 0,
    )


def _named(keys: list[str], count: int) -> str:
    return f" ({', '.join(keys[:_NAMED])}{', …' if count > _NAMED else ''})" if keys else ""


def _known(kind: type, told: object) -> dict[str, Any]:
    return {one.name: told[one.name] for one in fields(kind) if one.name in told} if isinstance(told, dict) else {}


def _age_s(received_ns: int | None, now_ns: int) -> float:
    return 0.0 if received_ns is None else max(0.0, round((now_ns - received_ns) / 1e9, 3))


def _open_gaps(gaps: Iterable[Gap]) -> tuple[str, ...]:
    """Return the gaps that are open in words; instruments that miss for the same reason are one."""
    found = [gap for gap in gaps if gap.closed_ns is None]
    keys: dict[str, list[str]] = {}
    for gap in found:
        if gap.scope == "instrument":
            keys.setdefault(gap.reason, []).append(gap.subject)
    missing = (f"instrument: {reason}{_named(some, len(some))}, {len(some):,} of them" for reason, some in keys.items())
    return (*(_shown(gap) for gap in found if gap.scope != "instrument"), *missing)


def _shown(gap: Gap) -> str:
    detail = f" ({gap.detail})" if gap.detail else ""
    subject = f" {gap.subject}" if gap.subject not in ("", "feed") else ""
    return f"{gap.scope}{subject}: {gap.reason}{detail}"
