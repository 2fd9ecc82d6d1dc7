"""What makes a file, and a folder, survive a power cut: what every writer of files here ends with."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

__all__ = ["make_folder", "replace_file", "sync_file", "sync_folder"]


def replace_file(path: Path, content: bytes) -> None:
    """Put a file in place, whole or not at all, 0600; its folder is made, 0700, if it is missing."""
    if not path.parent.is_dir():
        make_folder(path.parent)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".tmp")  # 0600 from the start
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
    sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder, 0700, and those above it, if they are missing; its name is durable then, whoever made it."""
    missing = [one for one in (path, *path.parents) if not one.is_dir()]
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for one in missing:
        sync_folder(one.parent)
    if not missing:
        with suppress(OSError):  # a folder that others gave us, in one that we may not read or that cannot be synced
            sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make a folder's entries durable: names given, changed and removed."""
    sync_file(path)


def sync_file(path: Path) -> None:
    """Make what a file holds durable, whoever wrote it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
