"""The rows of `dead_letters`: what a sink refused, and what of it is to be sent again.

`redrives` holds the letters that somebody has asked to have sent again. That, and that a parked sink is to be resumed,
is all that another program than the owner of the data folder writes.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tickvault.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from tickvault.model import Rejected

__all__ = ["Choice", "Letter", "ask", "asked", "forget", "put", "read", "remove", "resume", "waiting"]

_COLUMNS: Final = "sink, seq, tbl, instrument_key, reason, body, at_ns"
_CHOSEN: Final = (
    "(:sink IS NULL OR sink = :sink) AND (:table IS NULL OR tbl = :table)"
    " AND (:instrument_key IS NULL OR instrument_key = :instrument_key)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A dead letter.

    Attributes:
        table: the table its rows belong to; `frame` when the whole frame does not decode.
        instrument_key: whom they are about; of market_status the segment, of gaps the scope, of a frame nothing.
        reason: the store's words, or the decoder's.
        body: the rows (tickvault.letters), or the bytes of the frame.
        at_ns: UTC wall clock in ns, when it was last refused.
    """

    sink: str
    seq: int
    table: str
    instrument_key: str
    reason: str
    body: bytes
    at_ns: int

    @property
    def place(self) -> tuple[str, int, str, str]:
        """What tells it from others."""
        return self.sink, self.seq, self.table, self.instrument_key


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which letters are meant; None is any."""

    sink: str | None = None
    table: str | None = None
    instrument_key: str | None = None


# -- inside a transaction of the owner


def put(db: sqlite3.Connection, sink: str, refused: Iterable[Rejected], now_ns: int) -> None:
    """Write letters, over those at the same places."""
    db.executemany(
        "INSERT OR REPLACE INTO dead_letters VALUES (?, ?, ?, ?, ?, ?, ?)",
        [(sink, one.seq, one.table, one.instrument_key, one.reason, one.body, now_ns) for one in refused],
    )


def forget(db: sqlite3.Connection, sink: str, hi: int, generation: int) -> None:
    """Remove the letters of frames that were delivered again, up to `hi`; gaps are not told again by their frame."""
    for table in ("redrives", "dead_letters"):
        db.execute(
            f"DELETE FROM {table} WHERE sink = ?1 AND seq <= ?2 AND tbl <> 'gaps'"  # noqa: S608 - our own
            " AND seq > (SELECT seq FROM cursors WHERE sink = ?1 AND generation = ?3)",
            (sink, hi, generation),
        )


def asked(db: sqlite3.Connection, sink: str, limit: int) -> list[Letter]:
    """Return the first letters of a sink that are to be sent again, by seq."""
    return _letters(
        db.execute(
            f"SELECT {_COLUMNS} FROM redrives JOIN dead_letters USING (sink, seq, tbl, instrument_key)"  # noqa: S608 - our own
            " WHERE sink = ? ORDER BY seq, tbl, instrument_key LIMIT ?",
            (sink, limit),
        )
    )


def remove(db: sqlite3.Connection, letters: Sequence[Letter]) -> None:
    """Remove letters, and what asks for them."""
    places = [letter.place for letter in letters]
    for table in ("dead_letters", "redrives"):
        db.executemany(
            f"DELETE FROM {table} WHERE sink = ? AND seq = ? AND tbl = ? AND instrument_key = ?",  # noqa: S608 - our own
            places,
        )


# -- from another program


def read(path: Path, choice: Choice) -> list[Letter]:
    """Return letters by sink and seq; also beside a running recorder.

    Raises:
        Refused: the file cannot be read.
    """
    if not path.exists():
        return []
    with _opened(path) as db:
        db.execute("PRAGMA query_only = 1")
        query = f"SELECT {_COLUMNS} FROM dead_letters WHERE {_CHOSEN} ORDER BY sink, seq, tbl, instrument_key"  # noqa: S608 - our own
        return _letters(db.execute(query, _named(choice)))


def ask(path: Path, choice: Choice) -> int:
    """Ask the owner of the folder to send letters again; return how many letters that is.

    Raises:
        Refused: the file cannot be written.
    """
    with _opened(path) as db:
        _durably(db)
        query = f"SELECT sink, seq, tbl, instrument_key FROM dead_letters WHERE {_CHOSEN}"  # noqa: S608 - our own
        return db.execute(f"INSERT OR REPLACE INTO redrives {query}", _named(choice)).rowcount


def waiting(path: Path, choice: Choice) -> int:
    """Return how many of the letters asked for were not sent yet.

    Raises:
        Refused: the file cannot be read.
    """
    with _opened(path) as db:
        db.execute("PRAGMA query_only = 1")
        query = f"SELECT count(*) FROM redrives WHERE {_CHOSEN}"  # noqa: S608 - our own
        return int(db.execute(query, _named(choice)).fetchone()[0])


def resume(path: Path, sink: str) -> bool:
    """Have a running recorder go on with a parked sink; False when it is not parked.

    Raises:
        Refused: the file cannot be written.
    """
    with _opened(path) as db:
        _durably(db)
        update = "UPDATE cursors SET state = 'running', detail = '' WHERE sink = ? AND state = 'parked'"
        return bool(db.execute(update, (sink,)).rowcount)


def _durably(db: sqlite3.Connection) -> None:
    """Write as the owner of the file does."""
    db.execute("PRAGMA journal_mode = TRUNCATE")
    db.execute("PRAGMA synchronous = EXTRA")


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    db = None
    try:
        db = sqlite3.connect(f"file:{path}?mode=rw", uri=True, isolation_level=None, timeout=30)
        yield db
    except (sqlite3.DatabaseError, UnicodeDecodeError) as exc:
        if "no such table: redrives" in str(exc):
            raise Refused(f"{path} was last opened by an older tickvault; start this one's recorder once") from exc
        raise Refused(
            f"cannot use {path}: {exc}; check its permissions, the free space, and that no program holds it open"
        ) from exc
    finally:
        if db is not None:
            db.close()


def _named(choice: Choice) -> dict[str, str | None]:
    return {"sink": choice.sink, "table": choice.table, "instrument_key": choice.instrument_key}


def _letters(rows: Iterable[tuple[object, ...]]) -> list[Letter]:
    return [Letter(**dict(zip(Letter.__slots__, row, strict=True))) for row in rows]  # type: ignore[arg-type]
