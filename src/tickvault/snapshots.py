"""Takes a health snapshot from the files of a data folder, whether or not a recorder runs on it."""

from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from tickvault import health, survey
from tickvault.brokers.upstox.accounts import Why
from tickvault.brokers.upstox.transitions import State as FeedState
from tickvault.datafolder import holder
from tickvault.state import read_view

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import aiohttp

    from tickvault.brokers.upstox.accounts import KeyReport
    from tickvault.brokers.upstox.feed import Feed
    from tickvault.datafolder import Holder
    from tickvault.intake import Intake

__all__ = ["ask", "feed_health", "take", "with_feed"]

_HTTP_TIMEOUT_S: Final = 2.0
_MAX_STATUS_BYTES: Final = 4 * 1024 * 1024  # names of keys, statuses of segments: some 10 kB


def take(data_dir: Path, *, uptime_s: float | None = None, feed: health.FeedHealth | None = None) -> health.Snapshot:
    """Return how the recorder of a data folder is.

    Args:
        data_dir: the folder.
        uptime_s: of the recorder that asks for itself.
        feed: likewise.
    """
    view = read_view(data_dir / "state.db")
    stats = survey.stats(data_dir / "journal")
    who = holder(data_dir)
    cursors = view.cursors if view is not None else ()
    return health.of_files(
        stats,
        view,
        data_dir=str(data_dir),
        pid=None if who is None else who.pid,
        oldest_undelivered_ns={
            cursor.sink: survey.received_ns_behind(data_dir / "journal", cursor.seq) for cursor in cursors
        },
        disk_free_bytes=shutil.disk_usage(data_dir).free,
        now_ns=time.time_ns(),
        uptime_s=uptime_s,
        feed=feed,
    )


async def ask(who: Holder | None, token: str | None) -> dict[str, Any] | None:
    """Ask a running recorder for its status; None when there is none, or it does not answer."""
    if who is None or who.http is None:
        return None
    import aiohttp  # most commands never ask

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    address = re.sub(r"^(0\.0\.0\.0|\[::\])", "127.0.0.1", who.http)
    timeout = aiohttp.ClientTimeout(total=_HTTP_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"http://{address}/api/status", headers=headers) as answer,
        ):
            if answer.status == 200:
                told = json.loads(await _bounded(answer.content))
                return told if isinstance(told, dict) else None
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError, RecursionError):
        pass
    return None


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    """Return a whole body.

    Raises:
        ValueError: it is longer than any status.
    """
    body = bytearray()
    async for piece in content.iter_any():
        body += piece
        if len(body) > _MAX_STATUS_BYTES:
            raise ValueError("expected a status")
    return bytes(body)


def with_feed(one: health.Snapshot, told: Mapping[str, Any]) -> health.Snapshot:
    """Add what a running recorder told of its feed to a snapshot of its files."""
    feed = told.get("feed")
    if not isinstance(feed, dict):
        return one
    return replace(one, feed=health.FeedHealth.of(feed), uptime_s=told.get("uptime_s"))


def feed_health(feeds: Sequence[Feed], intake: Intake, *, now_s: float) -> health.FeedHealth:
    """Return how the feeds of a recorder, one at least, and what they put their messages into are.

    Args:
        feeds: what cannot be added up is shown of the first that is not live, if there is one.
        intake: of all.
        now_s: monotonic clock.
    """
    shown = next((feed for feed in feeds if feed.state is not FeedState.LIVE), feeds[0])
    last_s = max((feed.last_frame_s for feed in feeds if feed.last_frame_s is not None), default=None)
    return health.FeedHealth(
        state=shown.state.value,
        conn=max(feed.conn for feed in feeds),
        frames=sum(feed.frames for feed in feeds),
        reconnects=sum(feed.reconnects for feed in feeds),
        last_frame_age_s=None if last_s is None else round(now_s - last_s, 3),
        queued=intake.queued,
        queue_waits=intake.waits,
        journal_full=intake.full,
        held_s=round(sum(feed.held_s for feed in feeds), 3),
        last_error=shown.last_error,
        keys=health.KeysHealth.of_all([_keys_health(feed.keys) for feed in feeds]),
        market=health.MarketHealth.of_all([_market_health(feed) for feed in feeds]),
    )


def _keys_health(keys: KeyReport) -> health.KeysHealth:
    return health.KeysHealth(
        subscribed=keys.subscribed,
        delivering=keys.delivering,
        pending=keys.pending,
        silent={why.value: keys.silent[why].count if why in keys.silent else 0 for why in Why},
        problems={why.value: list(some.sample) for why, some in keys.problems.items()},
        never_seen=keys.never_seen.count,
        oldest_s=dict(keys.oldest),
    )


def _market_health(feed: Feed) -> health.MarketHealth:
    watched = feed.watch
    return health.MarketHealth(
        state=watched.state.value,
        since_ns=watched.since_ns,
        segments=list(watched.segments),
        due=list(watched.due),
        patience_s=dict(watched.patience_s),
        phases={segment: phase.value for segment, phase in feed.phases.items()},
        statuses=feed.statuses,
        unobserved=feed.unobserved,
    )
