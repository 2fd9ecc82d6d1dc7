"""Takes a health snapshot from the files of a data folder, whether or not a recorder runs on it."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tickvault import health, survey
from tickvault.datafolder import holder
from tickvault.state import read_view

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["take", "with_feed"]


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


def with_feed(one: health.Snapshot, told: Mapping[str, Any]) -> health.Snapshot:
    """Add what a running recorder told of its feed to a snapshot of its files."""
    feed = told.get("feed")
    if not isinstance(feed, dict):
        return one
    known: dict[str, Any] = {field: feed.get(field) for field in health.FeedHealth.__slots__}
    return replace(one, feed=health.FeedHealth(**known), uptime_s=told.get("uptime_s"))
