"""The files that may have an access token: which one is there, since when, and how one is put there whole.

Laws. No message made here holds a token. Whoever reads a stored token gets the old one or the new one, never half.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tickvault.errors import ConfigurationError, Refused
from tickvault.settings.layers import Findings, read_env_file, read_text
from tickvault.settings.precedence import is_placeholder
from tickvault.settings.values import unquoted

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "STORED_NAME",
    "Found",
    "Origin",
    "Place",
    "cleaned",
    "is_formed",
    "read_env_token",
    "read_token",
    "store_token",
    "stored_token",
]

STORED_NAME: Final = "token"  # in the data folder
ENV_NAMES: Final = ("UPSTOX_ACCESS_TOKEN", "ACCESS_TOKEN")

# What may stand behind `Authorization: Bearer`; a JWT has some 500 characters.
_TOKEN: Final = re.compile(r"[!-~]{1,8192}")
# A file written twice within its clock's step keeps its time; until it is this old it is read again (as git does).
_SETTLED_NS: Final = 1_000_000_000


class Origin(StrEnum):
    """Where a token stands, in words for people."""

    SETTINGS = "the settings"
    FILE = "the file that UPSTOX_ACCESS_TOKEN_FILE names"
    ENV_FILE = "the .env file, changed since the start"
    STORED = "the data folder, by `tickvault token set` or `login`"
    URL = "the token URL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A token, where it stands, and since when, UTC ns."""

    token: str = field(repr=False)
    origin: Origin
    placed_ns: int


class Place:
    """One file that may have a token; read again only when it may have changed.

    Args:
        path: the file; need not exist.
        origin: what it is; one that the settings have read counts from its first change on.
        read: gets the token out of it.
        known: what the settings have from it.
    """

    def __init__(self, path: Path, origin: Origin, read: Callable[[Path], str | None], known: str | None) -> None:
        self._path = path
        self._origin = origin
        self._read = read
        self._value = known
        self._placed_ns: int | None = None
        self._looked = False
        self._signature: tuple[int, int, int] | None = None

    def look(self, now_ns: int) -> Found | None:
        """Return the token that is there; None when there is none, or only what the settings had from here."""
        value, changed_ns = self._current(now_ns)
        if value != self._value:
            is_first = not self._looked and self._origin is not Origin.FILE
            self._value = value
            if not is_first:
                self._placed_ns = now_ns  # not the file's time: a file moved here may be an old one
            elif self._origin is Origin.STORED:
                self._placed_ns = changed_ns
        self._looked = True
        if self._value is None or self._placed_ns is None:
            return None
        return Found(token=self._value, origin=self._origin, placed_ns=self._placed_ns)

    def _current(self, now_ns: int) -> tuple[str | None, int]:
        try:
            stat = self._path.stat()
        except OSError:
            self._signature = None
            return None, now_ns
        signature = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if signature == self._signature:
            return self._value, stat.st_mtime_ns
        self._signature = signature if abs(now_ns - stat.st_mtime_ns) > _SETTLED_NS else None
        return self._read(self._path), stat.st_mtime_ns


def read_token(path: Path) -> str | None:
    """Return the token that is all a file has; None when it has something else, or cannot be read."""
    try:
        return _formed(read_text(path, "the token file").strip())
    except ConfigurationError:
        return None  # it is being replaced, or cannot be read; the other places count


def read_env_token(path: Path) -> str | None:
    """Return the token that a `.env` file has or names a file of; None when it has none, or cannot be read."""
    try:
        values = read_env_file(path, {}, Findings()).values
    except ConfigurationError:
        return None
    for name in ENV_NAMES:
        if (token := _formed(unquoted(values.get(name, "")))) and not is_placeholder(token):
            return token
        if (file := unquoted(values.get(f"{name}_FILE", ""))) and (token := read_token(Path(file))):
            return token
    return None


def is_formed(text: str) -> bool:
    """Whether a text can stand behind `Authorization: Bearer`."""
    return _TOKEN.fullmatch(text) is not None


def _formed(text: str) -> str | None:
    return text if is_formed(text) else None


def cleaned(text: str) -> str:
    """Return a token as it was pasted without what copying brings along: blanks, quotes, `Bearer`.

    Raises:
        Refused: what is left has not the form of a token; the message does not quote it.
    """
    token = unquoted(text.strip().lstrip("\ufeff"))
    token = re.sub(r"^Bearer(\s+|$)", "", token, flags=re.IGNORECASE)
    if not token:
        raise Refused("expected an access token, got nothing; copy it from the broker's page and paste it")
    if not is_formed(token):
        raise Refused(
            "expected an access token in one piece, of printable ASCII characters without blanks; copy it once more"
        )
    return token


def stored_token(data_dir: Path) -> str | None:
    """Return the token that a command has put into the data folder, None when there is none."""
    return read_token(data_dir / STORED_NAME)


def store_token(data_dir: Path, token: str) -> Path:
    """Put a token into the data folder, where a running recorder finds it, and return the file.

    Args:
        data_dir: created, 0700, if it is missing.
        token: as `cleaned` returns it.

    Raises:
        Refused: the folder cannot be written to.

    Guarantees:
        Whoever reads the file meanwhile gets the old token or the new one, whole; it is 0600 from its first byte on,
        and survives a power cut after return.
    """
    path = data_dir / STORED_NAME
    beside = data_dir / f".{STORED_NAME}-{secrets.token_hex(8)}"
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            _write_whole(fd, f"{token}\n".encode())
        finally:
            os.close(fd)
        beside.replace(path)
        _sync(data_dir)
    except OSError as exc:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise Refused(
            f"cannot store the token in {data_dir}: {exc.strerror}; set TICKVAULT_DATA_DIR to a folder you own"
        ) from exc
    return path


def _write_whole(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
    os.fsync(fd)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
