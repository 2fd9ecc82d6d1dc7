"""What is there of one instrument, and what is not: an SQL function over the views ticks and gaps. Pure.

    SELECT * FROM coverage('NSE_EQ|INE002A01018', '2026-11-23 09:15+05:30', '2026-11-23 15:30+05:30')

gives a row for each gap that concerns the instrument, cut to the asked time, and one row without a gap when there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import duckdb

__all__ = ["COVERAGE_SQL", "register"]

# A gap of the recorder concerns every instrument; one of a connection, or of a segment on it, concerns those that it
# carries, and all of which nothing says what carries them. A segment's subject names the connection unless it is the first.
# What waits for the master list concerns the instruments of its segment that nothing has come of by then.
# An open gap lasts to the end of what is asked. Ticks count by when they were received, as gaps do.
COVERAGE_SQL: Final = r"""
CREATE OR REPLACE MACRO coverage(wanted, since, until) AS TABLE
WITH asked AS (
  SELECT wanted::VARCHAR AS instrument_key, since::TIMESTAMPTZ AS asked_from, until::TIMESTAMPTZ AS asked_to
), seen AS (
  SELECT count(t.seq) AS ticks, min(t.received_at) AS first_tick, max(t.received_at) AS last_tick
  FROM asked LEFT JOIN ticks t
    ON t.instrument_key = asked.instrument_key AND t.received_at >= asked_from AND t.received_at < asked_to
), told AS (
  SELECT *, coalesce(nullif(regexp_extract(subject, 'feed( \d+)?$'), ''), 'feed') AS connection,
    trim(regexp_replace(subject, 'feed \d+$', '')) AS segment
  FROM gaps
), missing AS (
  SELECT greatest(opened_at, asked_from) AS gap_from, least(coalesce(closed_at, asked_to), asked_to) AS gap_to,
    scope, subject, reason, planned, detail
  FROM told, asked, seen
  WHERE opened_at < asked_to AND coalesce(closed_at, asked_to) > asked_from
    AND (scope = 'recorder'
      OR (scope = 'instrument' AND subject = asked.instrument_key)
      OR (reason = 'not_subscribed' AND subject = split_part(asked.instrument_key, '|', 1)
        AND coalesce(first_tick >= least(closed_at, asked_to), true))
      OR (scope IN ('connection', 'segment') AND reason <> 'not_subscribed'
        AND (scope = 'connection' OR segment IN ('', split_part(asked.instrument_key, '|', 1)))
        AND coalesce((
          SELECT bool_or(c.subject = told.connection) FROM journal_tail.carried c
          WHERE c.instrument_key = asked.instrument_key
            AND c.from_us <= epoch_us(opened_at) AND epoch_us(opened_at) < c.to_us), true)))
)
SELECT asked.instrument_key, seen.ticks, seen.first_tick, seen.last_tick, missing.gap_from, missing.gap_to,
  epoch(missing.gap_to) - epoch(missing.gap_from) AS gap_s,
  missing.scope, missing.subject, missing.reason, missing.planned, missing.detail
FROM asked CROSS JOIN seen LEFT JOIN missing ON true
ORDER BY missing.gap_from, missing.scope, missing.subject
"""


def register(db: duckdb.DuckDBPyConnection) -> None:
    """Add the table function `coverage(instrument_key, from, to)`.

    Args:
        db: has the views ticks and gaps, and journal_tail.carried (instrument_key, subject, from_us, to_us).
    """
    db.execute(COVERAGE_SQL)
