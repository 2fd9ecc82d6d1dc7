"""The record of what was sent, for comparing with what was received."""

from __future__ import annotations

import asyncio
import binascii
import os
import time
from typing import TYPE_CHECKING

from tickvault.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

__all__ = ["FrameLog"]


class FrameLog:
    """An append-only file of JSON lines, one per data frame: sent_ns, conn, payload in base64.

    A line is handed to the operating system in one write before its frame is sent, so after a kill at any instant the
    file has at least every frame that left. It is not synced: it need not survive a power cut, only the process.
    """

    def __init__(self, path: Path) -> None:
        """Name the file; entering opens it."""
        self._path = path
        self._file = -1

    async def __aenter__(self) -> FrameLog:
        """Open the file.

        Raises:
            ConfigurationError: it cannot be opened for appending.
        """
        try:
            self._file = await asyncio.to_thread(os.open, self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as exc:
            raise ConfigurationError(
                f"--log {self._path}: cannot be written: {exc.strerror}; name a file in an existing folder"
            ) from exc
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        await asyncio.to_thread(os.close, self._file)

    async def record(self, conn: int, payload: bytes) -> None:
        """Write one line; when this returns it outlives the process."""
        # base64 and integers need no escaping: json.dumps would copy the frame once more.
        line = b'{"sent_ns":%d,"conn":%d,"payload":"%s"}\n' % (
            time.time_ns(),
            conn,
            binascii.b2a_base64(payload, newline=False),
        )
        # A thread, because a full disk or a slow one must not stop the loop from answering pings.
        await asyncio.to_thread(_write_all, self._file, line)


def _write_all(file: int, line: bytes) -> None:
    """Write a whole line; the system may take less than it is given when the disk fills."""
    left = memoryview(line)
    while left:
        left = left[os.write(file, left) :]
