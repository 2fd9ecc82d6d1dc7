"""The entries of a run of frames, one row each, and what they hold; pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.compute as pc

from tickvault.brokers.upstox.arrays import last_of_each, marked
from tickvault.brokers.upstox.unusable import rejected_key, rejections, unusable_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tickvault.brokers.upstox.parsing import Messages
    from tickvault.model import Definition, Frame, Rejected

__all__ = ["Entries"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entries:
    """The feed entries of all frames, one row each, duplicates and unusable keys gone.

    Attributes:
        names: the distinct instrument keys; `keys` the same in an array.
        codes: of each entry, the index of its key in them.
        frame: index of the frame each entry came in.
        mode: RequestMode of each.
        columns: what each holds (parsing.Messages).
    """

    names: Sequence[str]
    keys: pa.Array
    codes: pa.Array
    frame: pa.Array
    mode: pa.Array
    columns: Mapping[str, pa.Array]

    @classmethod
    def of(cls, found: Messages, frames: Sequence[Frame]) -> tuple[Entries, list[Rejected]]:
        """Return the entries of messages, and those under a key that no store can hold."""
        keys = found.keys.dictionary_encode()
        entries = cls(
            names=keys.dictionary.to_pylist(),
            keys=keys.dictionary,
            codes=keys.indices,
            frame=found.frame,
            mode=found.mode,
            columns=found.columns,
        )
        last = last_of_each((entries.codes, len(entries.names)), (entries.frame, len(frames)))
        marks = unusable_of(entries.names)
        if not any(marks):
            return entries if last is None else entries.take(last), []
        bad = marked(marks, keys)
        of = entries.frame.to_pylist()
        rejected = rejections(
            frames,
            pc.indices_nonzero(bad).to_pylist(),
            of.__getitem__,
            lambda row: rejected_key(frames[of[row]], "ticks", entries.key(row)),
        )
        good = pc.indices_nonzero(pc.invert(bad))
        return entries.take(good if last is None else good.filter(pc.is_in(good, value_set=last))), rejected

    def __len__(self) -> int:
        return len(self.codes)

    def key(self, row: int) -> str:
        """Return the instrument key of an entry."""
        return self.names[int(self.codes[row].as_py())]

    def take(self, rows: pa.Array) -> Entries:
        """Return these entries, in this order."""
        return replace(
            self,
            codes=self.codes.take(rows),
            frame=self.frame.take(rows),
            mode=self.mode.take(rows),
            columns={name: column.take(rows) for name, column in self.columns.items()},
        )

    def symbols(self, definitions: Mapping[str, Definition]) -> pa.Array:
        """Return the symbol of each of `names`; the key where no definition knows one."""
        known = _last[0]
        if known.definitions is not definitions:
            known = _last[0] = _Symbols(definitions)
        return pa.array(map(known.__getitem__, self.names), pa.string())


class _Symbols(dict[str, str]):
    """Symbols by key under one set of definitions, each looked up when it is first asked for."""

    def __init__(self, definitions: Mapping[str, Definition]) -> None:
        super().__init__()
        self.definitions = definitions

    def __missing__(self, key: str) -> str:
        one = self.definitions.get(key)
        if one is None:
            return key  # and not kept: of keys that nobody defines there may be any number
        self[key] = symbol = one.symbol or key
        return symbol


# The definitions of one run of frames are mostly those of the run before, and the same object.
_last: Final = [_Symbols({})]
