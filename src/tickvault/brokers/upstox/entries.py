"""The entries of a run of frames, one row each, and what they hold, field by field; pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from tickvault.brokers.upstox.arrays import copied, fields, last_of_each, marked
from tickvault.brokers.upstox.unusable import rejected_key, rejections, unusable_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tickvault.brokers.upstox.parsing import Messages
    from tickvault.model import Definition, Frame, Rejected

__all__ = ["Branches", "Entries"]

_Fields: TypeAlias = "Mapping[str, pa.Array]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entries:
    """The feed entries of all frames, one row each, duplicates and unusable keys gone.

    Attributes:
        names: the distinct instrument keys.
        codes: of each entry, the index of its key in them.
        frame: index of the frame each entry came in.
        mode: RequestMode of each.
        messages: what each holds, by branch (parsing.Messages).
    """

    names: pa.Array
    codes: pa.Array
    frame: pa.Array
    mode: pa.Array
    messages: Mapping[str, pa.StructArray]

    @classmethod
    def of(cls, found: Messages, frames: Sequence[Frame]) -> tuple[Entries, list[Rejected]]:
        """Return the entries of messages, and those under a key that no store can hold."""
        keys = found.keys.dictionary_encode()
        entries = cls(
            names=keys.dictionary, codes=keys.indices, frame=found.frame, mode=found.mode, messages=found.branches
        )
        marks = unusable_of(entries.names.to_pylist())
        if not any(marks):
            return entries._without_duplicates(), []
        bad = marked(marks, keys)
        of = entries.frame.to_pylist()
        rejected = rejections(
            frames,
            pc.indices_nonzero(bad).to_pylist(),
            of.__getitem__,
            lambda row: rejected_key(frames[of[row]], "ticks", entries.key(row)),
        )
        return entries.take(pc.indices_nonzero(pc.invert(bad)))._without_duplicates(), rejected

    def __len__(self) -> int:
        return len(self.codes)

    def key(self, row: int) -> str:
        """Return the instrument key of an entry."""
        return str(self.names[self.codes[row].as_py()].as_py())

    def take(self, rows: pa.Array) -> Entries:
        """Return these entries, in this order."""
        return replace(
            self,
            codes=self.codes.take(rows),
            frame=self.frame.take(rows),
            mode=self.mode.take(rows),
            messages={name: messages.take(rows) for name, messages in self.messages.items()},
        )

    def _without_duplicates(self) -> Entries:
        last = last_of_each(self.codes, self.frame)
        return self if len(last) == len(self) else self.take(last)

    def symbols(self, definitions: Mapping[str, Definition]) -> pa.Array:
        """Return the symbol of each of `names`; the key where no definition knows one."""
        known = [(key, definitions.get(key)) for key in self.names.to_pylist()]
        return pa.array([key if one is None else one.symbol or key for key, one in known], pa.string())


@dataclass(frozen=True, slots=True, kw_only=True)
class Branches:
    """What entries hold, field by field, one value an entry and null where its message is not there.

    Attributes:
        mode: RequestMode numbers.
        market: fields of MarketFullFeed; empty if no entry has one. `index` and `first` alike.
        ltpc: fields of LTPC, one mapping for each place that has any; `greeks` alike.
    """

    mode: pa.Array
    market: _Fields
    index: _Fields
    first: _Fields
    ltpc: Sequence[_Fields]
    greeks: Sequence[_Fields]

    @classmethod
    def of(cls, mode: pa.Array, messages: Mapping[str, pa.StructArray]) -> Branches:
        """Return the fields of what entries hold, by branch."""
        market, index, first = (fields(messages.get(name)) for name in ("marketFF", "indexFF", "firstLevelWithGreeks"))
        ltpc = [fields(part.get("ltpc")) for part in (messages, market, index, first)]
        greeks = [fields(part.get("optionGreeks")) for part in (market, first)]
        return cls(
            mode=mode,
            market=market,
            index=index,
            first=first,
            ltpc=[part for part in ltpc if part],
            greeks=[part for part in greeks if part],
        )

    def value(self, name: str, places: Iterable[_Fields], kind: pa.DataType) -> pa.Array:
        """Return the value at the first of these places that has one, in memory of its own."""
        found = [part[name] for part in places if part]
        if not found:
            return pa.nulls(len(self.mode), kind)
        return copied(found[0]) if len(found) == 1 else pc.coalesce(*found)
