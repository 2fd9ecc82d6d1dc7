"""Where a sink's cursor stands at open, and how it moves backwards (docs/durability.md).

Every backward move is first a `cursor_moved` event in the journal, so that state restored from yesterday is known for
what it is: state whose generation is older than the journal's last `cursor_moved` of a sink counts as lost for it.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Final

import structlog

from tickvault import archive
from tickvault.errors import Refused
from tickvault.intake import commit
from tickvault.journal import Fact
from tickvault.sinks.parquet import boundary, reading
from tickvault.survey import generations, lost_ranges

if TYPE_CHECKING:
    from pathlib import Path

    from tickvault.journal import Journal
    from tickvault.sinks.parquet import ParquetStore
    from tickvault.state import Cursor, State

__all__ = ["Cursors"]

_log: Final = structlog.get_logger(__name__)


class Cursors:
    """Opens and rewinds the cursors of one data folder; used by the process that has it locked, before delivery."""

    def __init__(self, journal: Journal, state: State, folder: Path) -> None:
        self._journal = journal
        self._state = state
        self._folder = folder
        self._moved = generations(folder)

    @property
    def _first_seq(self) -> int:
        """Where the journal begins; pruning raises it."""
        row = self._state.journal()
        assert row is not None
        return row[2]

    def open(self, sink: str, store: ParquetStore | None) -> Cursor:
        """Bring a sink's cursor and, if it has a store of files, those files into agreement; finish what a crash left.

        Args:
            sink: its name.
            store: its files, for `parquet`.
        """
        journalled = self._moved.get(sink, 0)
        found = self._state.cursor(sink)
        trusted = found is not None and found.generation >= journalled
        if store is not None:
            with reading(store.root):
                store.clean()
                self._open_files(sink, store, found if trusted else None, journalled)
        elif not trusted or found is None or found.seq < self._first_seq - 1:
            if found is not None and trusted:
                self._skip(sink, found.seq)
            self._state.put_cursor(sink, self._first_seq - 1, generation=journalled)
        elif found.rewind_to is not None:
            self._go_back(found, found.rewind_to, None)
        elif found.settled_seq < found.seq:  # nobody watched the store since; it may have lost what it acknowledged
            self._go_back(found, max(found.settled_seq, self._first_seq - 1), None)
        return self._cursor(sink)

    def rewind(self, sink: str, to_seq: int, store: ParquetStore | None) -> Cursor:
        """Set a sink's cursor back so that everything behind `to_seq` is delivered again.

        Raises:
            Refused: the journal no longer holds it, or the cursor is not that far yet.
        """
        cursor = self.open(sink, store)
        with reading(store.root) if store is not None else nullcontext():
            self._rewind(cursor, to_seq, store)
        return self._cursor(sink)

    def _rewind(self, cursor: Cursor, to_seq: int, store: ParquetStore | None) -> None:
        sink = cursor.sink
        lowest = self._first_seq - 1
        if not lowest <= to_seq <= cursor.seq:
            raise Refused(
                f"{sink} can be rewound to between {lowest} (the journal begins there) and {cursor.seq} (delivered so far), "
                f"not to {to_seq}; choose a --to-seq in that range"
            )
        if store is not None and (start := boundary(files := store.files(), to_seq)) < self._first_seq:
            ends = (to for to in {lowest, *(file.hi for file in files)} if to >= lowest)
            possible = min(to for to in ends if boundary(files, to) > lowest)
            whole = min((file.date for file in files if file.lo == start and file.compacted), default=None)
            day = f" ({whole}, compacted)" if whole else ""
            raise Refused(
                f"{sink} cannot be rewound to {to_seq}: a file of it begins at {start}{day}, before the journal's first frame "
                f"{self._first_seq}; the lowest possible --to-seq is {possible}"
            )
        if store is not None and (end := self._only_stored(store, start)):
            raise Refused(
                f"{sink} cannot be rewound to {to_seq}: its files hold frames that the journal has lost, and would lose them "
                f"too; the lowest possible --to-seq is {end}"
            )
        self._state.ask_rewind(sink, to_seq)
        self._go_back(self._cursor(sink), to_seq, store)

    def _open_files(self, sink: str, store: ParquetStore, cursor: Cursor | None, journalled: int) -> None:
        first_seq = self._first_seq
        if cursor is not None:
            asked = (cursor.seq, cursor.rewind_to, None if cursor.drop_from is None else cursor.drop_from - 1)
            after = min(seq for seq in asked if seq is not None)
            start = boundary(store.files(), after)
            if first_seq <= start and not self._only_stored(store, start):
                self._truncate(sink, store, after)
                return
        # The names win: what the newest file says was delivered, was.
        files = store.files()
        newest = max(files, key=lambda file: (file.hi, file.lo), default=None)
        after = first_seq - 1 if newest is None else newest.hi
        if after < first_seq - 1:
            self._skip(sink, after)
            after = first_seq - 1
        elif after > self._journal.last_seq:
            raise Refused(
                f"the files of {sink} hold frames up to {after}, the journal ends with {self._journal.last_seq} and state.db "
                "is lost: part of the journal is missing; restore it, or start in another TICKVAULT_DATA_DIR"
            )
        if (
            newest is not None
            and newest.hi == after
            and boundary(files, newest.lo - 1) >= first_seq
            and not self._only_stored(store, newest.lo)
        ):
            # It may be one of several that were being named, or removed, when the state was lost: nothing may say it is
            # complete. A compacted one too: a rewind may have removed that of another table.
            after = newest.lo - 1
        generation = max(journalled, 0 if cursor is None else cursor.generation)
        self._state.put_cursor(sink, after, generation=generation)
        self._truncate(sink, store, after)

    def _only_stored(self, store: ParquetStore, start: int) -> int:
        """Return where the last file from a seq on ends that holds what the journal has lost; 0 if none does."""
        return store.last_with(lost_ranges(self._folder), start)

    def _skip(self, sink: str, after_seq: int) -> None:
        """Write down that a sink misses what was pruned behind a seq while it was not in use."""
        first_seq = self._first_seq
        missed = [
            one
            for one in archive.pruned(self._folder)
            if one.first_seq < first_seq and one.last_seq > after_seq and sink not in one.sinks
        ]
        if not missed:  # it had them: its cursor is one of yesterday
            return
        body = {
            "sink": sink,
            "from": max(after_seq + 1, missed[0].first_seq),
            "to": missed[-1].last_seq,
            "from_ns": missed[0].from_ns,
            "to_ns": missed[-1].to_ns,
        }
        commit(self._journal, self._state, [Fact("skipped", body)])
        _log.warning("sink.skipped", sink=sink, from_seq=body["from"], to_seq=body["to"])

    def _go_back(self, cursor: Cursor, to_seq: int, store: ParquetStore | None) -> None:
        if store is not None:
            self._truncate(cursor.sink, store, to_seq)
            return
        generation = self._journal_move(cursor.sink, cursor.generation, to_seq)
        self._state.move_back(cursor.sink, to_seq, generation=generation, drop_from=None)

    def _truncate(self, sink: str, store: ParquetStore, after_seq: int) -> None:
        cursor = self._cursor(sink)
        files = store.files()
        start = boundary(files, after_seq)
        if start - 1 >= cursor.seq and not any(file.lo >= start for file in files):
            if cursor.drop_from is not None or cursor.rewind_to is not None:
                self._state.move_back(sink, cursor.seq, generation=cursor.generation, drop_from=None)
            return
        generation = self._journal_move(sink, cursor.generation, start - 1)
        self._state.move_back(sink, start - 1, generation=generation, drop_from=start)
        store.drop_from(start)
        self._state.files_dropped(sink)

    def _journal_move(self, sink: str, generation: int, to_seq: int) -> int:
        """Journal a backward move and return its generation."""
        generation = max(generation, self._moved.get(sink, 0)) + 1
        self._journal.append([Fact("cursor_moved", {"sink": sink, "to": to_seq, "generation": generation})])
        self._moved[sink] = generation
        return generation

    def _cursor(self, sink: str) -> Cursor:
        cursor = self._state.cursor(sink)
        assert cursor is not None
        return cursor
