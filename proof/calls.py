"""The system calls of a process, as strace wrote them down (`-f -xx`), put into the order in which they took effect."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["TRACED", "Call", "effects"]

SYNCS: Final = frozenset({"fsync", "fdatasync"})
# What changes a file, a name or an offset. What is not here and does so too is named, so that it cannot go unseen.
TRACED: Final = (
    "open", "openat", "creat", "close", "dup", "dup2", "dup3", "lseek", "write", "pwrite64", "writev", "pwritev",
    "pwritev2", "ftruncate", "truncate", "fallocate", "fsync", "fdatasync", "sync_file_range", "sync", "syncfs",
    "rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir", "link", "linkat", "symlink",
    "copy_file_range", "sendfile",
)  # fmt: skip

_NO_FD: Final = 2**30  # of a file whose opening nobody was told of
_WHOLE: Final = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+|\?)")
_BEGUN: Final = re.compile(r"(\d+) +(\w+)\((.*?),? *<unfinished \.\.\.>$")
_ENDED: Final = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)\) += (-?\d+|\?)")
_TEXT: Final = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
# A file that is being opened has its descriptor when the call ends; a name is there when its call ends.
_AT_END: Final = frozenset({"open", "openat", "creat", "dup", "dup2", "dup3", "rename", "renameat", "renameat2",
                            "unlink", "unlinkat", "mkdir", "mkdirat", "lseek"}) | SYNCS  # fmt: skip


@dataclass(slots=True)
class Call:
    """One call that succeeded.

    Attributes:
        texts: its strings, in order; `words` are its arguments with those left out.
        result: what it returned.
        began: its line in the trace; `ended` likewise. Another thread's calls may lie between them.
    """

    name: str
    words: list[str]
    texts: list[bytes]
    result: int
    began: int
    ended: int

    @property
    def at(self) -> int:
        """When it takes effect: data when it is handed over, a name or a descriptor when it is there."""
        return self.ended if self.name in _AT_END else self.began

    @property
    def path(self) -> str:
        """Its first string, a path."""
        return self.texts[0].decode()

    @property
    def fd(self) -> int:
        """Its first argument, a descriptor."""
        return int(self.words[0])


def effects(trace: Path) -> list[Call]:
    """Return the calls of a trace that succeeded, in the order in which they took effect.

    Raises:
        ValueError: a line is not understood.
    """
    return sorted(_calls(trace), key=lambda call: call.at)


def _calls(trace: Path) -> Iterator[Call]:
    begun: dict[str, tuple[str, str, int]] = {}
    with trace.open(encoding="ascii") as lines:
        for number, line in enumerate(lines):
            if "+++" in line or "---" in line:
                continue
            if found := _WHOLE.match(line):
                _, name, given, result = found.groups()
                start = number
            elif found := _ENDED.match(line):
                thread, name, rest, result = found.groups()
                name, given, start = begun.pop(thread)
                given += rest
            elif found := _BEGUN.match(line):
                begun[found[1]] = found[2], found[3], number
                continue
            elif "= ?" in line or "ERESTART" in line:
                continue
            else:
                raise ValueError(f"line {number + 1} of the trace is not understood: {line[:200]}")
            if result == "?":
                yield from _interrupted(name, given, start)
            elif not result.startswith("-"):
                yield _call(name, given, int(result), start, number)
        for name, given, start in begun.values():
            yield from _interrupted(name, given, start)


def _interrupted(name: str, given: str, at: int) -> Iterator[Call]:
    """Yield a call in which the process was killed: the kernel did it to the end, but nobody was told, of a sync least."""
    if name in {"write", "pwrite64"}:
        yield _call(name, given, len(_texts(given)[0]), at, at)
    elif name == "ftruncate" or (name not in SYNCS and _texts(given)):
        yield _call(name, given, _NO_FD, at, at)


def _call(name: str, given: str, result: int, began: int, ended: int) -> Call:
    words = [word.strip() for word in _TEXT.sub("", given).split(",")]
    return Call(name, words, _texts(given), result, began, ended)


def _texts(given: str) -> list[bytes]:
    return [bytes.fromhex(one.replace("\\x", "")) for one in _TEXT.findall(given)]
