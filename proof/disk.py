"""A disk that keeps through a power cut what was synced, and of the rest what chance will have.

It is told the system calls of a process one by one. Each page of unsynced data, each unsynced change of a file's size and
each unsynced name (created, renamed or removed) is kept or dropped by itself: POSIX promises no more, and that a file was
synced says nothing of its name. A rename is one step. What was synced is there in every case.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from proof.calls import SYNCS

if TYPE_CHECKING:
    from collections.abc import Callable

    from proof.calls import Call

__all__ = ["Disk"]

_UNKNOWN: Final = frozenset({"truncate", "link", "linkat", "symlink", "rmdir"})
_PAGE: Final = 4096  # what the kernel writes out by itself, at the least


@dataclass(slots=True)
class _Change:
    """Data at an offset, or, without data, a new size."""

    at: int
    offset: int
    data: bytes | None

    def apply(self, content: bytearray) -> None:
        if self.data is None:
            del content[self.offset :]
            content.extend(bytes(self.offset - len(content)))
        else:
            content.extend(bytes(max(0, self.offset + len(self.data) - len(content))))
            content[self.offset : self.offset + len(self.data)] = self.data


@dataclass(slots=True)
class _Naming:
    """A change of a folder's names, made in one step: what each of them stands for afterwards, None for nothing."""

    at: int
    names: dict[str, _File | None]


@dataclass(slots=True)
class _File:
    """A file or a folder: what is durable, and what was done since."""

    is_folder: bool
    content: bytearray = field(default_factory=bytearray)
    names: dict[str, _File] = field(default_factory=dict)
    changes: list[_Change] = field(default_factory=list)
    namings: list[_Naming] = field(default_factory=list)
    size: int = 0
    live: dict[str, _File] = field(default_factory=dict)

    def change(self, at: int, offset: int, data: bytes | None) -> None:
        self.size = offset if data is None else max(self.size, offset + len(data))
        self.changes.append(_Change(at, offset, data))

    def name(self, at: int, **names: _File | None) -> None:
        _rename(self.live, names)
        self.namings.append(_Naming(at, names))

    def sync(self, upto: int) -> None:
        """Make durable what was done before a line of the trace."""
        for change in self.changes:
            if change.at < upto:
                change.apply(self.content)
        for naming in self.namings:
            if naming.at < upto:
                _rename(self.names, naming.names)
        self.changes = [one for one in self.changes if one.at >= upto]
        self.namings = [one for one in self.namings if one.at >= upto]

    def left_content(self, kept: Callable[[], bool]) -> bytes:
        content = bytearray(self.content)
        for change in self.changes:
            for page in _pages(change):
                if kept():
                    page.apply(content)
        return bytes(content)

    def left_names(self, kept: Callable[[], bool]) -> dict[str, _File]:
        names = dict(self.names)
        for naming in self.namings:
            if kept():
                _rename(names, naming.names)
        return names


@dataclass(slots=True)
class _Handle:
    file: _File
    append: bool
    position: int = 0


class Disk:
    """The folder `root`, from empty on.

    Attributes:
        said: what was written to files outside the root that were asked for, whole lines.
    """

    def __init__(self, root: Path, *, listen_to: Path) -> None:
        self._root = PurePosixPath(root)
        self._top = _File(is_folder=True)
        self._handles: dict[int, _Handle] = {}
        self._listen_to = str(listen_to)
        self._ears: set[int] = set()
        self.said: list[str] = []

    def restarted(self) -> None:
        """The process ended, and another one begins: what it had open is closed."""
        self._handles.clear()
        self._ears.clear()

    def take(self, call: Call) -> None:
        """Do what a call did.

        Raises:
            NotImplementedError: it changes a file in a way that is not known here.
        """
        if call.name in {"open", "openat", "creat"}:
            self._open(call)
        elif call.texts and call.name in {"rename", "renameat", "renameat2", "mkdir", "mkdirat", "unlink", "unlinkat"}:
            self._rename(call)
        elif call.words[0].isdigit() and call.fd in self._ears and call.name == "write":
            self.said += call.texts[0].decode().splitlines()
        elif call.name == "close":
            self._handles.pop(call.fd, None)
            self._ears.discard(call.fd)
        elif call.words[0].isdigit() and call.fd in self._handles:
            self._change(call, self._handles[call.fd])
        elif call.name in {"sync", "syncfs"} or (call.name in _UNKNOWN and self._concerns(call)):
            raise NotImplementedError(f"{call.name} is not known here: {call}")

    def _concerns(self, call: Call) -> bool:
        return any(self._place(text.decode(errors="replace")) is not None for text in call.texts)

    def left(self, target: Path, *, kept_data: Callable[[], bool], kept_names: Callable[[], bool]) -> None:
        """Write down what a power cut would leave now.

        Args:
            target: a folder that is not there yet.
            kept_data: whether the next unsynced page, or size, made it.
            kept_names: whether the next unsynced name did.
        """
        _write(self._top, target, kept_data, kept_names)

    def _open(self, call: Call) -> None:
        if call.path == self._listen_to:
            self._ears.add(call.result)
            return
        found = self._place(call.path)
        if found is None:
            return
        folder, name = found
        file = folder.live.get(name) if name else folder
        flags = call.words[-1] if call.name != "creat" else "O_CREAT|O_TRUNC"
        flags = next((word for word in call.words if "O_" in word), flags)
        if file is None:
            assert "O_CREAT" in flags, call
            file = _File(is_folder=False)
            folder.name(call.at, **{name: file})
        elif "O_TRUNC" in flags and file.size:
            file.change(call.at, 0, None)
        self._handles[call.result] = _Handle(file, append="O_APPEND" in flags)

    def _rename(self, call: Call) -> None:
        places = [self._place(text.decode()) for text in call.texts]
        if None in places:
            return
        folder, name = places[0]
        if call.name.startswith("mkdir"):
            folder.name(call.at, **{name: _File(is_folder=True)})
        elif call.name.startswith("unlink"):
            folder.name(call.at, **{name: None})
        else:
            other, new = places[1]
            if other is not folder:
                raise NotImplementedError(f"a rename from folder to folder is not known here: {call}")
            folder.name(call.at, **{name: None, new: folder.live[name]})

    def _change(self, call: Call, handle: _Handle) -> None:
        file = handle.file
        match call.name:
            case "dup" | "dup2" | "dup3":
                self._handles[call.result] = handle
            case "lseek":
                handle.position = call.result
            case "write":
                offset = file.size if handle.append else handle.position
                file.change(call.at, offset, call.texts[0][: call.result])
                handle.position = offset + call.result
            case "pwrite64":
                file.change(call.at, int(call.words[-1]), call.texts[0][: call.result])
            case "ftruncate":
                file.change(call.at, int(call.words[1]), None)
            case _ if call.name in SYNCS:
                file.sync(call.began)
            case _:
                raise NotImplementedError(f"{call.name} is not known here: {call}")

    def _place(self, text: str) -> tuple[_File, str] | None:
        """Return the folder that a path is in, and its name there; None when it is outside the root."""
        path = PurePosixPath(text)
        if not path.is_relative_to(self._root):
            return None
        *parents, name = path.relative_to(self._root).parts or ("",)
        folder = self._top
        for part in parents:
            folder = folder.live[part]
        return folder, name


def _rename(names: dict[str, _File], changed: dict[str, _File | None]) -> None:
    for name, file in changed.items():
        if file is None:
            names.pop(name, None)
        else:
            names[name] = file


def _pages(change: _Change) -> list[_Change]:
    if change.data is None:
        return [change]
    pages, start, end = [], change.offset, change.offset + len(change.data)
    while start < end:
        stop = min(end, (start // _PAGE + 1) * _PAGE)
        pages.append(_Change(change.at, start, change.data[start - change.offset : stop - change.offset]))
        start = stop
    return pages


def _write(file: _File, target: Path, kept_data: Callable[[], bool], kept_names: Callable[[], bool]) -> None:
    if not file.is_folder:
        target.write_bytes(file.left_content(kept_data))
        target.chmod(0o600)
        return
    target.mkdir(mode=0o700)
    for name, one in file.left_names(kept_names).items():
        _write(one, target / name, kept_data, kept_names)
