"""The rows of `outbox`: events that wait for the webhook (docs/webhook.md).

A data.stored that nobody has tried to send yet takes in the next one of its sink; one that was tried never changes.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection

__all__ = ["Notice", "Outgoing", "count", "delivered", "heads", "mark_attempt", "postpone", "put"]

# SQLite takes the other columns from the row that min() found. The lanes are those of Outgoing.lane.
_HEADS: Final = """
SELECT min(ord), id, event, sink, body, attempts,
  max(not_before_ns, iif(event = 'data.stored', coalesce(at_ns + :interval_ns, 0), 0))
FROM outbox LEFT JOIN notified USING (sink)
WHERE :wanted IS NULL OR event IN (SELECT value FROM json_each(:wanted))
  OR event || ':' || sink IN (SELECT value FROM json_each(:wanted))
GROUP BY substr(event, 1, instr(event, '.')), sink ORDER BY min(ord)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """An event for the webhook, as its cause knows it.

    Attributes:
        from_ns: earliest time of the data it tells of; `to_ns` the latest.
        id: None makes a new one; derived events bring theirs.
    """

    event: str
    sink: str
    high_water_seq: int
    rows: int
    from_ns: int
    to_ns: int
    message: str
    generation: int = 0
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """An event waiting in the outbox; its `body` is the JSON to be posted.

    Attributes:
        not_before_ns: wall clock; a pause between two tries, or between two data.stored of a sink, lasts until then.
    """

    ord: int
    id: str
    event: str
    sink: str
    body: str
    attempts: int
    not_before_ns: int

    @property
    def lane(self) -> tuple[str, str]:
        """The family of the event and its sink: what is told in order. A gap's end never overtakes its beginning."""
        return self.event.partition(".")[0], self.sink


def put(db: sqlite3.Connection, notice: Notice, now_ns: int) -> None:
    """Add an event, due now; one that waits under its id already is left alone."""
    body = _body(notice, db.execute("SELECT recorder FROM journal").fetchone()[0])
    if notice.event == "data.stored" and _merge(db, body):
        return
    db.execute(
        "INSERT OR IGNORE INTO outbox (id, event, sink, body, not_before_ns, attempts) VALUES (?, ?, ?, ?, ?, 0)",
        (body["id"], notice.event, notice.sink, json.dumps(body), now_ns),
    )


def heads(db: sqlite3.Connection, *, interval_ns: int, wanted: Collection[str] | None) -> list[Outgoing]:
    """Return the first event of every lane, oldest first; kinds that are not wanted any more are passed over.

    Args:
        db: of the state.
        interval_ns: least time between two data.stored of a sink.
        wanted: `event` or `event:sink`; None: all.
    """
    names = None if wanted is None else json.dumps(sorted(wanted))
    rows = db.execute(_HEADS, {"interval_ns": interval_ns, "wanted": names}).fetchall()
    return [Outgoing(**dict(zip(Outgoing.__slots__, row, strict=True))) for row in rows]


def mark_attempt(db: sqlite3.Connection, outgoing: Outgoing) -> Outgoing:
    """Record that an event is about to be tried, and return it as it is to be sent."""
    body, attempts = db.execute(
        "UPDATE outbox SET attempts = attempts + 1 WHERE ord = ? RETURNING body, attempts", (outgoing.ord,)
    ).fetchone()
    return replace(outgoing, body=body, attempts=attempts)


def postpone(db: sqlite3.Connection, outgoing: Outgoing, not_before_ns: int) -> None:
    """Record when an event is to be tried again."""
    db.execute("UPDATE outbox SET not_before_ns = ? WHERE ord = ?", (not_before_ns, outgoing.ord))


def delivered(db: sqlite3.Connection, outgoing: Outgoing, now_ns: int) -> None:
    """Remove an event that its receiver has taken; the interval until its sink's next data.stored begins."""
    db.execute("DELETE FROM outbox WHERE ord = ?", (outgoing.ord,))
    if outgoing.event == "data.stored":
        db.execute("INSERT OR REPLACE INTO notified VALUES (?, ?)", (outgoing.sink, now_ns))


def count(db: sqlite3.Connection) -> int:
    """Return how many events wait."""
    return int(db.execute("SELECT count(*) FROM outbox").fetchone()[0])


def _merge(db: sqlite3.Connection, body: dict[str, object]) -> bool:
    """Fold a data.stored into the one that waits untried; False when none does."""
    row = db.execute(
        "SELECT ord, body FROM outbox WHERE event = 'data.stored' AND sink = ? AND attempts = 0", (body["sink"],)
    ).fetchone()
    if row is None:
        return False
    waiting = json.loads(row[1])
    waiting |= {
        "from": min(waiting["from"], body["from"]),
        "to": max(waiting["to"], body["to"]),
        "rows": waiting["rows"] + body["rows"],
        # After a rewind the newer generation's mark counts, although it is lower.
        "high_water_seq": body["high_water_seq"]
        if body["generation"] != waiting["generation"]
        else max(waiting["high_water_seq"], body["high_water_seq"]),
        "generation": body["generation"],
    }
    db.execute("UPDATE outbox SET body = ? WHERE ord = ?", (json.dumps(waiting), row[0]))
    return True


def _body(notice: Notice, recorder_id: str) -> dict[str, object]:
    return {
        "id": notice.id or str(uuid.uuid4()),
        "event": notice.event,
        "sink": notice.sink,
        "recorder_id": recorder_id,
        "high_water_seq": notice.high_water_seq,
        "rows": notice.rows,
        "from": notice.from_ns,
        "to": notice.to_ns,
        "message": notice.message,
        "generation": notice.generation,
    }
