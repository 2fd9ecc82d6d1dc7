"""Sends dead letters to their sink again, when somebody has asked for it.

Laws (docs/dead-letters.md):
* The rows are decoded from the journal again, under the definitions in force at their frame; from the letter where the
  journal no longer holds it. Gaps are rows of no frame and come from the letter.
* A letter goes in the transaction that follows the store's word; what is refused again stays, with the new words.
* No row takes the place of a newer version of itself.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.compute as pc
import structlog

from tickvault.backoff import backoff
from tickvault.brokers.upstox.wire import decode
from tickvault.errors import JournalDamaged, JournalFull, Refused, SinkMisconfigured, SinkUnavailable
from tickvault.letters import merged, rows_of
from tickvault.model import SCHEMAS, TABLES, Batch, Definition, Rejected, TakesAgain
from tickvault.reading import JournalReader
from tickvault.sending import Sent, send

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from tickvault.deadletters import Letter
    from tickvault.model import Frame, Sink
    from tickvault.state import State

__all__ = ["Redrive", "Resent"]

_log: Final = structlog.get_logger(__name__)
_AT_ONCE: Final = 200  # letters: of a few hundred bytes, or a frame each
_LOOK_S: Final = 1.0  # how often it is looked whether anybody has asked
_LONGEST_S: Final = 60.0  # between two tries at a store that is away
_ADDRESSEE: Final = {"market_status": "segment", "gaps": "scope"}


@dataclass(slots=True, kw_only=True)
class Resent:
    """What came of letters that were sent again.

    Attributes:
        letters: stored, or of no use any more.
        rows: that the store has taken.
        outdated: rows of which the store holds a newer version.
        refused: letters that stay, with new words.
    """

    letters: int = 0
    rows: int = 0
    outdated: int = 0
    refused: int = 0


@dataclass(slots=True, kw_only=True)
class _Parcel:
    """Letters whose rows go in one batch: one set of definitions governs them."""

    letters: list[Letter] = field(default_factory=list)
    tables: dict[str, list[pa.Table]] = field(default_factory=dict)
    definitions: dict[str, Definition] = field(default_factory=dict)
    refused: list[Rejected] = field(default_factory=list)

    def has_room_for(self, other: _Parcel) -> bool:
        agree = all(self.definitions.get(key, one) == one for key, one in other.definitions.items())
        # A row of `gaps` does not say whose letter it is, and a frame may have thousands of rows.
        return agree and not {"gaps", "frame"} & {letter.table for letter in (*self.letters, *other.letters)}

    def add(self, other: _Parcel) -> None:
        self.letters += other.letters
        self.definitions |= other.definitions
        self.refused += other.refused
        for name, parts in other.tables.items():
            self.tables.setdefault(name, []).extend(parts)

    def batch(self, recorder_id: str) -> Batch:
        seqs = [letter.seq for letter in self.letters]
        tables = {
            name: pa.concat_tables([SCHEMAS[name].empty_table(), *self.tables.get(name, ())]).combine_chunks()
            for name in TABLES
        }
        return Batch(
            recorder_id=recorder_id, lo=min(seqs), hi=max(seqs), tables=tables, definitions=dict(self.definitions)
        )


class Redrive:
    """Sends the dead letters of one sink again.

    Args:
        sink: one that takes single rows again.
        folder: of the journal.
        writing: held while the sink writes (Delivery.writing).
        message: of the event that tells of rows stored.

    Raises:
        Refused: the sink cannot take single rows again; the message says what to do instead.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        folder: Path,
        recorder_id: str,
        state: State,
        writing: asyncio.Lock,
        message: str,
        wall_ns: Callable[[], int],
    ) -> None:
        if not isinstance(sink, TakesAgain):
            raise Refused(
                f"{sink.name} cannot take single rows again; `tickvault rewind --sink {sink.name} --to-seq N` delivers "
                "everything behind N again, and what is taken then is no dead letter any more"
            )
        self.name = sink.name
        self._sink = sink
        self._again: TakesAgain = sink
        self._folder = folder
        self._recorder_id = recorder_id
        self._state = state
        self._writing = writing
        self._message = message
        self._wall_ns = wall_ns

    async def keep(self, rng: random.Random) -> None:
        """Carry out whatever is asked for, until cancelled; what a store that is away cannot take waits for it."""
        pauses, told = backoff(rng, first_s=_LOOK_S, cap_s=_LONGEST_S), False
        while True:
            pause_s = _LOOK_S
            try:
                done = await self.carry_out()
            except (SinkUnavailable, SinkMisconfigured, JournalFull) as exc:
                if not told:
                    _log.warning("redrive.waits", sink=self._sink.name, error=str(exc))
                told, pause_s = True, max(next(pauses), getattr(exc, "retry_after_s", None) or 0.0)
            except Exception as exc:  # noqa: BLE001 - nothing recorded is to suffer for what was refused
                _log.error("redrive.failed", sink=self._sink.name, error=f"{type(exc).__name__}: {exc}")
                pause_s = _LONGEST_S
            else:
                pauses, told = backoff(rng, first_s=_LOOK_S, cap_s=_LONGEST_S), False
                if done.letters or done.refused:
                    _log.info("redrive.done", sink=self.name, **asdict(done))
            await asyncio.sleep(pause_s)

    async def carry_out(self) -> Resent:
        """Send every letter that is asked for; return what came of them.

        Raises:
            SinkUnavailable, SinkMisconfigured: the store is away; what was not sent is still asked for.
            JournalFull: there is no room to write down what came of it; it is still asked for.
        """
        done = Resent()
        while letters := await asyncio.to_thread(self._state.asked, self._sink.name, _AT_ONCE):
            for parcel in await asyncio.to_thread(self._parcels, letters):
                await self._send(parcel, done)
        return done

    async def _send(self, parcel: _Parcel, done: Resent) -> None:
        batch = parcel.batch(self._recorder_id).only(self._sink.tables)
        outdated: Collection[int] = ()
        async with self._writing:
            try:
                outdated = await self._again.outdated(batch) if batch.rows else ()
                fresh = _without(batch, outdated)
                refused = await send(self._sink.write, fresh) if fresh.rows else []
            except (SinkUnavailable, SinkMisconfigured):
                raise
            except Exception as exc:  # noqa: BLE001 - a sink's bug: told with the letters, which stay
                words = f"{type(exc).__name__}: {exc}; this is a bug in tickvault"
                parcel.refused += [replace(_rejected(letter), reason=words) for letter in parcel.letters]
                fresh, refused = _without(batch, range(batch.rows)), []
            stay = [*parcel.refused, *merged(refused)]
            taken = fresh.rows - len(refused)
            cursor = await asyncio.to_thread(self._state.cursor, self._sink.name)
            notices = []
            if taken and cursor is not None:
                now_ns = self._wall_ns()
                notices.append(
                    Sent()
                    .and_(fresh)
                    .told(cursor, but=fresh.rows - taken, hi=cursor.seq, message=self._message, now_ns=now_ns)
                )
            await asyncio.to_thread(
                self._state.redriven,
                self._sink.name,
                parcel.letters,
                refused=stay,
                notices=notices,
                now_ns=self._wall_ns(),
            )
        done.rows += taken
        done.outdated += len(outdated)
        done.refused += len(stay)
        places = {(one.seq, one.table, one.instrument_key) for one in stay}
        done.letters += sum(letter.place[1:] not in places for letter in parcel.letters)

    def _parcels(self, letters: Sequence[Letter]) -> list[_Parcel]:
        """Return the letters' rows in order, as many together as may go together."""
        parcels: list[_Parcel] = []
        for letter in letters:
            found = self._opened(letter)
            if parcels and parcels[-1].has_room_for(found):
                parcels[-1].add(found)
            else:
                parcels.append(found)
        return parcels

    def _opened(self, letter: Letter) -> _Parcel:
        """Return what one letter holds: rows, and pieces that yield none now as then."""
        held = None if letter.table == "gaps" else self._frame(letter.seq)
        if held is not None:
            found = self._decoded(letter, *held)
            if found.tables or found.refused:
                return found
        try:
            rows, definitions = rows_of(letter.table, letter.body)
        except (KeyError, ValueError):
            words = (
                f"the journal no longer holds frame {letter.seq}, and the letter has no rows; it was: {letter.reason}"
            )
            kept = letter.reason if letter.reason.startswith("the journal no longer") else words
            return _Parcel(letters=[letter], refused=[replace(_rejected(letter), reason=kept)])
        return _Parcel(letters=[letter], tables={letter.table: [rows]}, definitions=dict(definitions))

    def _frame(self, seq: int) -> tuple[Frame, Mapping[str, Definition]] | None:
        """Return a frame and the definitions in force at it, None when the journal does not hold it any more."""
        reader = JournalReader(self._folder, seq - 1)
        try:
            chunk = reader.read(max_frames=1, max_bytes=1)
        except (JournalDamaged, Refused):
            return None
        finally:
            reader.close()
        if chunk is None or chunk.frames[0].seq != seq:
            return None
        return chunk.frames[0], chunk.definitions

    def _decoded(self, letter: Letter, frame: Frame, definitions: Mapping[str, Definition]) -> _Parcel:
        decoded = decode([frame], recorder_id=self._recorder_id, definitions=definitions)
        if letter.table == "frame":
            tables = {name: [table] for name, table in decoded.tables.items() if table.num_rows}
            return _Parcel(
                letters=[letter], tables=tables, definitions=dict(definitions), refused=list(decoded.rejected)
            )
        refused = [
            one
            for one in decoded.rejected
            if (one.table, one.instrument_key) in {(letter.table, letter.instrument_key), ("frame", "")}
        ]
        table = decoded.tables[letter.table]
        table = table.filter(pc.equal(table[_ADDRESSEE.get(letter.table, "instrument_key")], letter.instrument_key))
        known = {key: definitions[key] for key in (letter.instrument_key,) if key in definitions}
        return _Parcel(
            letters=[letter],
            tables={letter.table: [table]} if table.num_rows else {},
            definitions=known,
            refused=[replace(one, table=letter.table, instrument_key=letter.instrument_key) for one in refused],
        )


def _rejected(letter: Letter) -> Rejected:
    return Rejected(
        seq=letter.seq,
        table=letter.table,
        instrument_key=letter.instrument_key,
        reason=letter.reason,
        body=letter.body,
    )


def _without(batch: Batch, rows: Collection[int]) -> Batch:
    """Return the batch without the rows of these indices."""
    kept, offset = {}, 0
    for name in TABLES:
        table = batch.tables[name]
        mask = pa.array([offset + row not in rows for row in range(table.num_rows)], pa.bool_())
        kept[name] = table.filter(mask)
        offset += table.num_rows
    return replace(batch, tables=kept)
