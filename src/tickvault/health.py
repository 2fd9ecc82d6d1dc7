"""One snapshot of how the recorder is; status, dashboard and metrics only render it. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tickvault.model import Gap
    from tickvault.state import View
    from tickvault.survey import Stats

__all__ = ["FeedHealth", "SinkHealth", "Snapshot", "of_files"]


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
class FeedHealth:
    """The connection to the broker.

    Attributes:
        last_frame_age_s: seconds since the last message; None before the first.
        queued: messages that wait for the journal; `queue_waits` counts how often reading had to wait for it.
        held_s: seconds that reading has stood still.
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
            state="stopped" if pid is None and cursor.state in _WORKING else cursor.state,
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
        open_gaps=tuple(_shown(gap) for gap in (view.gaps if view is not None else ()) if gap.closed_ns is None),
        dead_letters=view.dead_letters if view is not None else 0,
        outbox=view.outbox if view is not None else 0,
    )


def _age_s(received_ns: int | None, now_ns: int) -> float:
    return 0.0 if received_ns is None else max(0.0, round((now_ns - received_ns) / 1e9, 3))


def _shown(gap: Gap) -> str:
    detail = f" ({gap.detail})" if gap.detail else ""
    return f"{gap.scope}: {gap.reason}{detail}"
