"""The verdict on one day: is everything there, and if not, what is missing and why.

It is made from the files of a data folder, whether or not a recorder runs on it. COMPLETE is said only of a day that is
over, of which every second in which a subscribed segment traded is recorded, every subscribed instrument was seen, on
the last connection too, and every store has taken everything.
"""

from __future__ import annotations

import datetime as dt
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tickvault import query, survey
from tickvault.datafolder import holder
from tickvault.health import state_of
from tickvault.ledger import KINDS, Asked, Interval, Ledger, State, intervals
from tickvault.model import IST, segment_of
from tickvault.state import open_reader, read_view
from tickvault.verdict import (
    Absent,
    Day,
    Late,
    Missing,
    SegmentDay,
    StoreDay,
    absent_words,
    late_words,
    missing_words,
    store_words,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    import duckdb

    from tickvault.model import Event, Gap

__all__ = ["look"]

_NS: Final = 1_000_000_000
_DAY_NS: Final = 86_400 * _NS
# The snapshot that answers a subscription comes within a second; the broker's docs promise nothing.
_LATE_NS: Final = 5 * _NS
_TABLES: Final = ("ticks", "candles", "market_status")


@dataclass(frozen=True, slots=True)
class _Span:
    """What is judged: the IST day, cut where nothing can be known yet."""

    from_ns: int
    to_ns: int
    over: bool  # the whole day lies behind us


def look(data_dir: Path, date: dt.date, *, now_ns: int, sinks: Collection[str] | None = None) -> Day:
    """Judge a day.

    Args:
        data_dir: a data folder.
        date: in India.
        now_ns: UTC wall clock.
        sinks: the stores in use; None: all that ever were.

    Raises:
        Refused: there is nothing recorded there, or it changes faster than it can be read.
    """
    folder, begin_ns = data_dir / "journal", _midnight_ns(date)
    end_ns = begin_ns + _DAY_NS
    with query.connect(data_dir) as db:
        events = list(survey.events(folder, KINDS))
        stats = survey.stats(folder)
        running = holder(data_dir) is not None
        span = _Span(begin_ns, min(end_ns, max(begin_ns, now_ns)), over=now_ns >= end_ns)
        ledger = Ledger()
        told = {gap.key: gap for event in events for gap in ledger.apply(event)}
        told |= {gap.key: gap for gap in ledger.passed(span.to_ns)}
        asked = Asked(events, span.from_ns, span.to_ns, ledger.sessions)
        seqs = survey.last_seq_before(folder, span.from_ns), survey.last_seq_before(folder, span.to_ns)
        stores = _stores(data_dir, db, seqs, sinks, running=running)
        rows = {table: _count(db, table, seqs) for table in _TABLES}
        late = _late(db, asked, span)
        unknown = _unknown(db, [one.instrument_key for one in late if one.after_s is None], seqs[1])
    hours_known = bool(ledger.sessions.windows) and ledger.sessions.from_ns <= begin_ns < ledger.sessions.to_ns
    judged = span if hours_known else _recorded_part(events, span, stats.last_ns, running=running)
    segments = sorted(asked.segments or ledger.segments or ledger.sessions.windows)
    divided = {
        segment: intervals(
            events, judged.from_ns, judged.to_ns, segment=segment, last_ns=None if running else stats.last_ns
        )
        for segment in segments
    }
    shown = tuple(_segment_day(name, divided[name], asked) for name in segments)
    missing = _missing(divided)
    absent = _absent(told.values(), judged.from_ns, judged.to_ns if running else min(judged.to_ns, stats.last_ns))
    traded = {part.segment for part in shown if part.session_s}
    late = tuple(one for one in late if segment_of(one.instrument_key) in traded and one.instrument_key not in unknown)
    absent = tuple(one for one in absent if one.instrument_key not in unknown)
    trading = [name for name in segments if _trades_later(ledger, name, span, end_ns)]
    why = [
        *([] if segments else ["nothing was subscribed to"]),
        *([f"{', '.join(trading)} still to trade today"] if trading and hours_known else []),
        *(["the day is not over"] if trading and not hours_known else []),
        *missing_words(missing),
        *late_words(late),
        *absent_words(absent, {one.instrument_key for one in late if one.after_s is None or one.lost_ns is not None}),
        *(words for store in stores for words in store_words(store)),
    ]
    return Day(
        date=date,
        complete=not why,
        why=tuple(why),
        hours_known=hours_known,
        segments=shown,
        missing=missing,
        absent=absent,
        late=late,
        unknown=tuple(key for key in unknown if segment_of(key) in traded),
        rows=rows,
        stores=stores,
    )


def _late(db: duckdb.DuckDBPyConnection, asked: Asked, span: _Span) -> tuple[Late, ...]:
    """Return the keys whose first tick came late or not at all, or that were lost since, the worst first."""
    if not asked.since_ns:
        return ()
    # A second of grace: the fact is journalled before the request is sent, by another clock reading.
    earliest_ns = min(asked.since_ns.values()) - _NS
    first, last = {}, {}
    for key, first_us, last_us in db.execute(
        "SELECT instrument_key, min(epoch_us(received_at)), max(epoch_us(received_at)) FROM ticks"
        " WHERE epoch_us(received_at) >= ? AND epoch_us(received_at) < ? GROUP BY ALL",
        [earliest_ns // 1000, span.to_ns // 1000],
    ).fetchall():
        first[key], last[key] = first_us, last_us
    found = []
    for key, since_ns in asked.since_ns.items():
        if key not in first:
            found.append(Late(instrument_key=key, after_s=None))
            continue
        again_ns, after_ns = asked.again_ns.get(key, since_ns), first[key] * 1000 - since_ns
        lost_ns = again_ns if last[key] * 1000 < again_ns - _NS else None
        if lost_ns is not None or after_ns > _LATE_NS:
            found.append(Late(instrument_key=key, after_s=round(after_ns / _NS, 3), lost_ns=lost_ns))
    return tuple(
        sorted(
            found,
            key=lambda one: (one.after_s is not None, one.lost_ns is None, -(one.after_s or 0), one.instrument_key),
        )
    )


def _unknown(db: duckdb.DuckDBPyConnection, never: Sequence[str], last_seq: int) -> tuple[str, ...]:
    """Return the keys, of those that were not seen, which no master list has had while it had others of their segment."""
    if not never:
        return ()
    rows = db.execute(
        "SELECT DISTINCT instrument_key FROM instruments WHERE valid_from_seq <= ?", [last_seq]
    ).fetchall()
    defined = {key for (key,) in rows}
    listed = set(map(segment_of, defined))
    found = sorted(key for key in never if key not in defined and segment_of(key) in listed)
    if not found:
        return ()
    seen = db.execute(
        "SELECT DISTINCT instrument_key FROM ticks WHERE instrument_key IN (SELECT unnest(?))", [found]
    ).fetchall()
    return tuple(key for key in found if (key,) not in seen)


def _count(db: duckdb.DuckDBPyConnection, table: str, seqs: tuple[int, int]) -> int:
    """Count the rows of frames behind the first seq, up to the second."""
    sql = f"SELECT count(*) FROM {table} WHERE seq > ? AND seq <= ?"  # noqa: S608 - one of _TABLES
    return int(db.execute(sql, seqs).fetchall()[0][0])


def _recorded_part(events: Sequence[Event], span: _Span, last_ns: int, *, running: bool) -> _Span:
    """Cut a day of unknown hours to what was recorded of it: from the first answer of the broker to the last commit."""
    of_day = [event for event in events if span.from_ns <= event.at_ns < span.to_ns]
    begun = [one.at_ns for one in of_day if one.kind == "watch" or one.body.get("state") == "live"]
    asked = [one.at_ns for one in of_day if one.kind == "sub"]
    before = any(event.at_ns < span.from_ns for event in events)  # then it may have been open all the time
    from_ns = span.from_ns if before else min(begun or asked or [one.at_ns for one in of_day], default=span.from_ns)
    to_ns = span.to_ns if running else min(span.to_ns, max(last_ns, from_ns))
    return _Span(from_ns, to_ns, over=span.over)


def _segment_day(segment: str, divided: Iterable[Interval], asked: Asked) -> SegmentDay:
    states: dict[str, float] = {}
    for one in divided:
        states[one.state] = states.get(one.state, 0.0) + (one.to_ns - one.from_ns) / _NS
    return SegmentDay(
        segment=segment,
        session_s=round(sum(states.values()) - states.get(State.CLOSED, 0.0), 3),
        recorded_s=round(states.get(State.RECORDED, 0.0), 3),
        states={name: round(seconds, 3) for name, seconds in states.items()},
        keys=sum(segment_of(key) == segment for key in asked.since_ns),
    )


def _missing(divided: Mapping[str, Iterable[Interval]]) -> tuple[Missing, ...]:
    """Return what was not recorded, each stretch once with all segments that it is missing in."""
    found: dict[tuple[int, int, str, str], list[str]] = {}
    for segment, parts in divided.items():
        for one in parts:
            if one.state not in {State.CLOSED, State.RECORDED}:
                found.setdefault((one.from_ns, one.to_ns, one.state.value, one.detail), []).append(segment)
    return tuple(
        Missing(from_ns=from_ns, to_ns=to_ns, reason=reason, detail=detail, segments=tuple(segments))
        for (from_ns, to_ns, reason, detail), segments in sorted(found.items())
    )


def _absent(gaps: Iterable[Gap], from_ns: int, to_ns: int) -> tuple[Absent, ...]:
    """Return the instruments that were missing in some time, the longest first."""
    found: dict[str, list[tuple[int, int, str]]] = {}
    for gap in gaps:
        begin, end = max(gap.opened_ns, from_ns), to_ns if gap.closed_ns is None else min(gap.closed_ns, to_ns)
        if gap.scope == "instrument" and begin < end:
            found.setdefault(gap.subject, []).append((begin, end, gap.detail))
    absent = [
        Absent(
            instrument_key=key,
            from_ns=min(begin for begin, _, _ in spans),
            to_ns=max(end for _, end, _ in spans),
            seconds=round(sum(end - begin for begin, end, _ in spans) / _NS, 3),
            detail=max(spans)[2],
        )
        for key, spans in found.items()
    ]
    return tuple(sorted(absent, key=lambda one: (-one.seconds, one.instrument_key)))


def _trades_later(ledger: Ledger, segment: str, span: _Span, end_ns: int) -> bool:
    if span.over:
        return False
    return any(begin < end_ns and end > span.to_ns for begin, end in ledger.sessions.trading((segment,)))


def _stores(
    data_dir: Path,
    db: duckdb.DuckDBPyConnection,
    seqs: tuple[int, int],
    sinks: Collection[str] | None,
    *,
    running: bool,
) -> tuple[StoreDay, ...]:
    before, last = seqs
    view = read_view(data_dir / "state.db")
    wanted = () if sinks is None else sinks
    if view is None:  # lost: the next start rebuilds it
        return tuple(_nothing_known(name, last - before) for name in wanted)
    unheard = [name for name in wanted if name not in {cursor.sink for cursor in view.cursors}]
    with closing(open_reader(data_dir / "state.db")) as state:
        refused: dict[str, int] = dict(
            state.execute(
                "SELECT sink, count(*) FROM dead_letters WHERE seq > ? AND seq <= ? GROUP BY sink", seqs
            ).fetchall()
        )
    known = (
        StoreDay(
            name=cursor.sink,
            cursor_seq=cursor.seq,
            behind=max(0, last - max(cursor.seq, before)),
            rows={table: _count(db, table, (before, min(last, cursor.seq))) for table in _TABLES},
            refused=refused.get(cursor.sink, 0),
            state=state_of(cursor, running=running),
            detail=cursor.detail,
        )
        for cursor in view.cursors
        if sinks is None or cursor.sink in sinks
    )
    return (*known, *(_nothing_known(name, last - before) for name in unheard))


def _nothing_known(name: str, frames: int) -> StoreDay:
    """Return the day of a store that nothing is written down of."""
    rows = dict.fromkeys(_TABLES, 0)
    return StoreDay(name=name, cursor_seq=0, behind=frames, rows=rows, refused=0, state="unknown", detail="no cursor")


def _midnight_ns(date: dt.date) -> int:
    return int(dt.datetime(date.year, date.month, date.day, tzinfo=IST).timestamp()) * _NS
