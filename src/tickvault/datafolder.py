"""The data folder: where everything lives, and the lock that gives it to one recorder at a time."""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from tickvault.durable import make_folder
from tickvault.errors import Refused

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["DataFolder", "Holder", "holder", "nearest", "recorded", "unusable"]

# flock there is advisory at best, and SQLite's WAL needs shared memory: a second recorder would corrupt the journal.
_NETWORK: Final = ("nfs", "cifs", "smb", "afs", "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "ncpfs")
_VIRTUAL: Final = frozenset({"proc", "sysfs", "devpts", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs"})
_LOOKS: Final = 10
_LOOK_S: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The process that has a data folder locked, and where its status is served (None: nowhere)."""

    pid: int
    http: str | None


class DataFolder:
    """Locks a data folder for as long as the `with` block lasts; kill -9 leaves no stale lock.

    Args:
        path: created, 0700, if it is missing.

    Raises:
        Refused: on entering, another recorder has it, or it is on a network file system, or cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = path / "journal"
        self.parquet = path / "parquet"
        self.state = path / "state.db"
        self._fd = -1

    def __enter__(self) -> Self:
        try:
            make_folder(self.path)
            fstype = _fstype(self.path.resolve())
            if fstype.startswith(_NETWORK):
                raise Refused(
                    f"{self.path} is on a network file system ({fstype}); a journal needs a local disk: "
                    "set TICKVAULT_DATA_DIR to a folder on one"
                )
            self._fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as exc:
            raise unusable(self.path, exc) from exc
        if not _locked(self._fd):
            os.close(self._fd)
            who = holder(self.path)
            raise Refused(
                f"{self.path} is in use by pid {who.pid if who else 'unknown'}; stop that recorder first, "
                "or set TICKVAULT_DATA_DIR to another folder"
            )
        self.announce(None)
        return self

    def announce(self, http: str | None) -> None:
        """Write down who holds the folder and where its status is served."""
        text = json.dumps({"pid": os.getpid(), "http": http}).encode()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text, 0)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)


def recorded(path: Path) -> Path:
    """Return a data folder that something was recorded in.

    Raises:
        Refused: nothing is recorded there.
    """
    if not (path / "journal").is_dir():
        raise Refused(
            f"nothing is recorded in {path}: expected a folder that `tickvault run` or `tickvault demo` has written; "
            "name it with --data-dir or TICKVAULT_DATA_DIR"
        )
    return path


def nearest(path: Path) -> Path:
    """Return the path, or the nearest of its parents that exists."""
    return next(one for one in (path, *path.absolute().parents) if one.exists())


def unusable(path: Path, exc: OSError) -> Refused:
    """Return what to tell of a folder that could not be made or written to."""
    place, why = nearest(path), exc.strerror
    if not place.is_dir():
        why = f"{place} is not a folder"
    elif (fstype := _fstype(place.resolve())) in _VIRTUAL:
        why = f"{place} belongs to the kernel ({fstype}), nothing can be stored there"
    return Refused(f"cannot use {path}: {why}; set TICKVAULT_DATA_DIR to a folder you own")


def holder(path: Path) -> Holder | None:
    """Return who has a data folder locked, None if nobody has."""
    try:
        fd = os.open(path / "lock", os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            told = json.loads(os.pread(fd, 1000, 0))
            return Holder(pid=int(told["pid"]), http=told["http"])
        except (ValueError, KeyError, TypeError, RecursionError):  # it is being written just now
            return Holder(pid=0, http=None)
    finally:
        os.close(fd)
    return None


def _locked(fd: int) -> bool:
    """Take the lock; False when another recorder has it."""
    for _ in range(_LOOKS):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOOK_S)  # `holder` takes it for an instant to see whether anybody has it
        else:
            return True
    return False


def _fstype(path: Path) -> str:
    """Return the type of the file system that holds a folder; empty where that cannot be told."""
    best, fstype = "", ""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        point = left.split()[4]
        if (path == Path(point) or Path(point) in path.parents) and len(point) >= len(best):
            best, fstype = point, right.split()[0]
    return fstype
