"""One loop a sink: read behind the cursor, decode, write, advance. There is no other path, for failure least of all.

What a sink may raise decides what happens (tickvault.errors); anything else is a bug, and parks that sink alone.
A batch that is refused is bisected to its rows; refused rows become dead letters with the store's words.
"""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

import structlog

from tickvault import survey
from tickvault.backoff import backoff
from tickvault.collecting import Collector
from tickvault.errors import JournalDamaged, JournalFull, SinkMisconfigured, SinkUnavailable
from tickvault.journal import Fact
from tickvault.letters import merged
from tickvault.model import Batch, TakesAhead, TakesParts
from tickvault.outbox import Notice
from tickvault.reading import JournalReader
from tickvault.sending import Sent, send

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from tickvault.decoding import Decoder
    from tickvault.intake import Progress
    from tickvault.ledger import Ledger
    from tickvault.model import Sink
    from tickvault.state import Cursor, State

__all__ = ["Delivery", "Patience"]

_P = ParamSpec("_P")
_R = TypeVar("_R")

_log: Final = structlog.get_logger(__name__)
_REFUSED_ROWS: Final = 10_000, 1  # looked back on, and percent; more of them refused: a wrong mapping, not bad rows
_UNREADABLE_FRAMES: Final = 200, 50  # the like; more of them do not decode: another protocol, not bad frames
_LOOK_S: Final = 1.0  # how often it is looked whether a parked sink was resumed
_WHOLE_BATCH: Final = 10  # rows from which "every row refused" is no accident
_MAPPED: Final = (
    "ticks",
    "candles",
)  # a frame's statuses alone are ten rows and more, and one conflict refuses them all


class _Restart(Exception):
    """The cursor moved back; begin again behind it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long delivery waits for what, in seconds.

    Attributes:
        first_s: before an unavailable store is tried again, the first time; doubles up to `longest_s`.
        misconfigured_s: before a store that refuses us is tried again.
    """

    first_s: float = 0.5
    longest_s: float = 30.0
    misconfigured_s: float = 60.0


class _Parked(Exception):
    """The sink refuses what it should take."""


@dataclass(slots=True)
class _Refusals:
    """What was refused among the last rows, or frames, delivered."""

    of: int
    percent: int
    seen: int = 0
    refused: int = 0

    def room_for(self, count: int) -> int:
        """Count those about to be delivered; return how many of them may be refused."""
        if self.seen >= self.of:
            self.seen, self.refused = self.seen // 2, self.refused // 2
        self.seen += count
        return max(self.seen, self.of) * self.percent // 100 - self.refused


class Delivery:
    """Delivers the journal to one sink.

    Attributes:
        writing: held while the sink writes; whoever else writes to it holds it meanwhile.
    """

    def __init__(
        self,
        sink: Sink,
        cursor: Cursor,
        *,
        folder: Path,
        recorder_id: str,
        state: State,
        progress: Progress,
        journal_fact: Callable[[Fact], Awaitable[None]],
        mend: Callable[[Path, str], Awaitable[None]],
        wall_ns: Callable[[], int],
        rng: random.Random,
        message: str,
        patience: Patience = Patience(),
        decoder: Decoder | None = None,
    ) -> None:
        self.name = sink.name
        self.rows: dict[str, int] = {}
        self.frames = 0
        self.writing = asyncio.Lock()
        self._sink = sink
        self._cursor = cursor
        self._folder = folder
        self._recorder_id = recorder_id
        self._state = state
        self._progress = progress
        self._journal_fact = journal_fact
        self._mend = mend
        self._mended: set[Path] = set()
        self._wall_ns = wall_ns
        self._rng = rng
        self._message = message
        self._patience = patience
        self._decoded_by = None if decoder is None else partial(decoder.decode, sink.name)
        self._refusals, self._unreadable = _Refusals(*_REFUSED_ROWS), _Refusals(*_UNREADABLE_FRAMES)
        self._in_parts = sink if isinstance(sink, TakesParts) else None
        self._staged = Sent()  # of the batch under way
        self._pauses: Iterator[float] | None = None  # since a batch was last delivered
        self._condition = "parked" if cursor.state == "parked" else "running"  # what nobody was told the end of
        self._dropped, self._dropping = 0, False
        self._settling: deque[tuple[float, int]] = deque()

    @property
    def parked(self) -> bool:
        """Whether the sink did what no sink may do."""
        return self._condition == "parked"

    async def run(self) -> None:
        """Deliver until intake has ended and the journal is read to its end; a parked sink waits to be resumed."""
        while True:
            reader = JournalReader(self._folder, self._cursor.seq)
            try:
                ledger, _ = await asyncio.to_thread(survey.ledger, self._folder, up_to_seq=self._cursor.seq)
                await self._from(reader, ledger)
            except _Restart:
                continue
            except Exception as exc:  # noqa: BLE001 - a sink's bug must not reach intake or the other sinks
                if isinstance(exc, JournalDamaged) and await self._goes_on(exc):
                    continue
                if isinstance(exc, JournalFull):  # even to read
                    _log.warning("sink.waits_for_disk", sink=self.name, error=str(exc), seq=self._cursor.seq)
                    await asyncio.sleep(self._patience.longest_s)
                    continue
                await self._park(exc)
                if await self._resumed():
                    continue
            finally:
                reader.close()
            return

    async def _goes_on(self, exc: JournalDamaged) -> bool:
        """Have a damaged segment replaced by what is whole in it, once; what is lost of it is stepped over."""
        if exc.path is None or exc.path in self._mended:
            return False
        self._mended.add(exc.path)
        pauses = backoff(self._rng, first_s=self._patience.first_s, cap_s=self._patience.longest_s)
        while True:
            try:
                await self._mend(exc.path, str(exc))
            except JournalFull as full:
                _log.warning("sink.waits_for_disk", sink=self.name, error=str(full), seq=self._cursor.seq)
                await asyncio.sleep(next(pauses))
            except JournalDamaged:
                return False
            else:
                return True

    async def _from(self, reader: JournalReader, ledger: Ledger) -> None:
        collector = Collector(
            reader,
            self._sink.policy,
            recorder_id=self._recorder_id,
            ledger=ledger,
            progress=self._progress,
            wall_ns=self._wall_ns,
            stage=self._stage if self._in_parts else None,
            decoded_by=self._decoded_by,
        )
        self._staged = Sent()
        if self._in_parts:  # it has the rows of a batch while that is collected: one batch at a time
            await self._in_parts.discard()
            while (batch := await self._collected(collector)) is not None:
                await self._deliver(batch)
                del batch  # or it would be held while the next one is collected
            return
        async with asyncio.TaskGroup() as group:
            collect = partial(_outcome, partial(self._collected, collector))
            collecting = group.create_task(collect(), name=f"collect:{self.name}")
            while isinstance(found := await collecting, Batch):
                collecting = group.create_task(collect(), name=f"collect:{self.name}")
                begun_s = asyncio.get_running_loop().time()
                found = await _outcome(partial(self._deliver, found))
                collector.took_s = asyncio.get_running_loop().time() - begun_s
                if found is not None:
                    collecting.cancel()
                    break
        if found is not None:
            raise found

    async def _collected(self, collector: Collector) -> Batch | None:
        """Return the next batch as the sink takes it, made ready as far as that goes before its turn."""
        if (batch := await collector.next()) is None:
            return None
        batch = batch.only(self._sink.tables)
        await self._in_state(self._state.attempt, self.name, batch.hi)
        if isinstance(self._sink, TakesAhead):
            await self._sink.prepare(batch)
        return batch

    async def _deliver(self, batch: Batch) -> None:
        """Write one batch and move the cursor behind it."""
        self._check_readable(batch)
        room = self._refusals.room_for(batch.rows)
        sent, self._staged = self._staged.and_(batch), Sent()
        refused = await send(self._write, batch, at_most=room) if sent.rows else []
        self._note_beyond_retention(batch.hi)
        self._refusals.refused += len(refused)
        mapped = any(batch.tables[name].num_rows for name in _MAPPED)
        if len(refused) > room or (mapped and len(refused) == batch.rows >= _WHOLE_BATCH):
            raise _Parked(f"{len(refused)} of {batch.rows} rows refused: {refused[-1].reason}")
        notices = []
        if sent.rows > len(refused):
            notices.append(
                sent.told(self._cursor, but=len(refused), hi=batch.hi, message=self._message, now_ns=self._wall_ns())
            )
        if self._condition != "running":
            notices.append(self._told("sink.recovered", "delivering again"))
            _log.info("sink.recovered", sink=self.name, seq=batch.hi)
            self._condition = "running"
        settled_seq = self._settled(batch.hi)
        advanced = await self._in_state(
            self._state.advance,
            self.name,
            batch.hi,
            generation=self._cursor.generation,
            head_seq=self._progress.last_seq,
            settled_seq=settled_seq,
            dead_letters=[*batch.rejected, *merged(refused)],
            notices=notices,
            now_ns=self._wall_ns(),
        )
        if not advanced:
            await self._reload()
        self._cursor = replace(self._cursor, seq=batch.hi, settled_seq=settled_seq)
        self._pauses = None
        self.frames += batch.hi - batch.lo + 1
        for name, rows in sent.by_table.items():
            self.rows[name] = self.rows.get(name, 0) + rows

    async def _stage(self, part: Batch) -> None:
        """Hand a part of the batch under way to a sink that takes it in parts."""
        assert self._in_parts is not None
        part = part.only(self._sink.tables)
        await self._patiently(self._in_parts.stage, part)
        self._staged = self._staged.and_(part)

    def _check_readable(self, batch: Batch) -> None:
        """Park rather than fill the state with letters of frames, which the journal keeps for a decoder that reads them."""
        count = batch.hi - batch.lo + 1
        unreadable = [one for one in batch.rejected if one.table == "frame"]
        if len(unreadable) > self._unreadable.room_for(count):
            raise _Parked(
                f"{len(unreadable)} of {count} frames do not decode: {unreadable[-1].reason}; the protocol may have "
                "changed: upgrade tickvault"
            )
        self._unreadable.refused += len(unreadable)

    def _note_beyond_retention(self, seq: int) -> None:
        """Tell, once each time it begins, that the store drops rows for their age: they count as delivered."""
        dropped = int(getattr(self._sink, "beyond_retention", 0))
        more, before = dropped - self._dropped, self._dropping
        self._dropped, self._dropping = dropped, more > 0
        if more and not before:
            _log.warning("sink.beyond_retention", sink=self.name, rows=more, seq=seq)

    async def _write(self, batch: Batch) -> None:
        await self._patiently(self._sink.write, batch)

    async def _patiently(self, write: Callable[[Batch], Awaitable[None]], batch: Batch) -> None:
        """Write until the store has answered: accepted, too large or refused."""
        failed = False
        while True:
            try:
                async with self.writing:
                    await write(batch)
            except SinkUnavailable as exc:
                await self._say("retrying", exc)
                self._pauses = self._pauses or backoff(
                    self._rng, first_s=self._patience.first_s, cap_s=self._patience.longest_s
                )
                await asyncio.sleep(max(next(self._pauses), exc.retry_after_s or 0.0))
            except SinkMisconfigured as exc:
                await self._say("misconfigured", exc)
                await asyncio.sleep(self._patience.misconfigured_s)
            else:
                if failed:
                    await self._unsettle()
                return
            failed = True
            if self._in_parts:  # what it has of the batch may be anything
                raise _Restart

    async def _in_state(self, change: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Make a change to the state; on a full disk wait for room, as intake does."""
        pauses = backoff(self._rng, first_s=self._patience.first_s, cap_s=self._patience.longest_s)
        while True:
            try:
                return await asyncio.to_thread(change, *args, **kwargs)
            except JournalFull as exc:
                _log.warning("sink.waits_for_disk", sink=self.name, error=str(exc), seq=self._cursor.seq)
                await asyncio.sleep(next(pauses))

    async def _say(self, condition: str, exc: Exception) -> None:
        """Record and log a change of condition, once."""
        if self._condition == condition:
            return
        self._condition = condition
        _log.warning(f"sink.{condition}", sink=self.name, error=str(exc), seq=self._cursor.seq)
        await self._in_state(self._state.set_condition, self.name, condition, str(exc))

    async def _park(self, exc: Exception) -> None:
        detail = str(exc) if isinstance(exc, _Parked) else f"{type(exc).__name__}: {exc}{_where(exc)}"
        self._condition = "parked"
        _log.error("sink.parked", sink=self.name, error=detail, seq=self._cursor.seq)
        _log.debug("sink.parked_at", sink=self.name, exc_info=exc)
        notice = self._told("sink.parked", f"{detail}; the data waits in the journal")
        try:
            await self._in_state(
                self._state.set_condition, self.name, "parked", detail, notices=[notice], now_ns=self._wall_ns()
            )
        except Exception as failure:  # noqa: BLE001 - what parks it may be the state; intake is to find out by itself
            _log.error("sink.parked_unsaid", sink=self.name, error=f"{type(failure).__name__}: {failure}")

    async def _resumed(self) -> bool:
        """Wait until somebody resumes the parked sink; False when intake ends before."""
        while not self._progress.ended:
            await self._progress.beyond(sys.maxsize, timeout_s=_LOOK_S)
            cursor = await asyncio.to_thread(self._state.cursor, self.name)
            if cursor is not None and cursor.state != "parked":
                _log.info("sink.resumed", sink=self.name, seq=cursor.seq)
                self._cursor = cursor
                self._refusals, self._unreadable = _Refusals(*_REFUSED_ROWS), _Refusals(*_UNREADABLE_FRAMES)
                return True
        return False

    # -- stores that acknowledge before they are durable

    def _settled(self, seq: int) -> int:
        """Return the seq that the store keeps through a crash of its own, `seq` being acknowledged now."""
        settle_s = float(getattr(self._sink, "settle_s", 0.0))
        if not settle_s:
            return seq
        now_s = asyncio.get_running_loop().time()
        self._settling.append((now_s, seq))
        settled = self._cursor.settled_seq
        while self._settling and self._settling[0][0] <= now_s - settle_s:
            settled = self._settling.popleft()[1]
        return settled

    async def _unsettle(self) -> None:
        """After an outage of such a store, go back to what it is sure to have kept."""
        if not getattr(self._sink, "settle_s", 0.0) or self._cursor.settled_seq >= self._cursor.seq:
            return
        self._settling.clear()
        generation = self._cursor.generation + 1
        to_seq = self._cursor.settled_seq
        await self._journal_fact(Fact("cursor_moved", {"sink": self.name, "to": to_seq, "generation": generation}))
        await self._in_state(self._state.move_back, self.name, to_seq, generation=generation, drop_from=None)
        await self._reload()

    async def _reload(self) -> None:
        cursor = await asyncio.to_thread(self._state.cursor, self.name)
        assert cursor is not None
        self._cursor = cursor
        raise _Restart

    # -- events

    def _told(self, event: str, detail: str) -> Notice:
        now_ns = self._wall_ns()
        return Notice(
            event=event,
            sink=self.name,
            high_water_seq=self._cursor.seq,
            rows=0,
            from_ns=now_ns,
            to_ns=now_ns,
            message=f"{self.name}: {detail}",
            generation=self._cursor.generation,
        )


async def _outcome(work: Callable[[], Awaitable[_R]]) -> _R | Exception:
    """Return what comes of some work, an exception too: in a group it would end what runs beside it."""
    try:
        return await work()
    except Exception as exc:  # noqa: BLE001 - it is raised again by whoever asked
        return exc


def _where(exc: BaseException) -> str:
    """Return the innermost place of an unexpected exception, for the bug report."""
    frames = traceback.extract_tb(exc.__traceback__)
    return f" ({frames[-1].name}, {PurePath(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
