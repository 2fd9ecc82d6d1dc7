"""Every error tickvault raises on purpose, by what its receiver may do.

    TickvaultError
    ├── ConfigurationError      exit 2: correct the settings and start again
    ├── Refused                 exit 1: the command cannot be carried out now; the message says what to do
    ├── TokenRefused            the broker refused the token; another one is needed
    ├── FeedUnavailable         the broker cannot be reached or closed the feed; try again later
    ├── JournalDamaged          what is stored is not what was written
    ├── JournalFull             no room on the disk; nothing was written
    │   └── StateHeld           another program holds state.db; nothing has changed
    └── SinkError               raised by a sink's write, each telling delivery what to do
        ├── SinkUnavailable     try the same batch again later
        ├── SinkMisconfigured   alarm, and try slowly: somebody has to mend something
        ├── BatchTooLarge       send it in two halves
        └── BatchRejected       these rows will never be accepted

Anything else that leaves a sink is a bug in it, and parks it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = [
    "BatchRejected",
    "BatchTooLarge",
    "ConfigurationError",
    "FeedUnavailable",
    "JournalDamaged",
    "JournalFull",
    "Refused",
    "SinkError",
    "SinkMisconfigured",
    "SinkUnavailable",
    "StateHeld",
    "TickvaultError",
    "TokenRefused",
]


class TickvaultError(Exception):
    """Root of the tree; its text is one line for the operator: what was expected, what came, what to do next."""

    exit_code = 1


class ConfigurationError(TickvaultError):
    """The settings cannot be used as they are."""

    exit_code = 2


class Refused(TickvaultError):
    """The command cannot be carried out in the present state."""


class TokenRefused(TickvaultError):
    """The broker does not accept the access token."""


class FeedUnavailable(TickvaultError):
    """The broker's API or feed cannot be used at present."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class JournalDamaged(TickvaultError):
    """Stored bytes fail their check.

    Args:
        message: where, and what.
        path: the file that they are in; None when frames are missing and no file is to blame.
    """

    def __init__(self, message: str, *, path: Path | None = None) -> None:
        super().__init__(message)
        self.path = path


class JournalFull(TickvaultError):
    """The disk has no room for the batch; nothing of it was written."""


class StateHeld(JournalFull):
    """Another program has `state.db` open in a transaction; nothing has changed. Waited for as room on the disk is."""


class SinkError(TickvaultError):
    """What a sink raises on purpose."""


class SinkUnavailable(SinkError):
    """The store cannot take the batch now: down, slow, overloaded. Keep everything and try again.

    Args:
        message: the cause, in one line, without secrets.
        retry_after_s: how long the store asked to be left alone, if it said so.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SinkMisconfigured(SinkError):
    """The store refuses us until somebody mends a setting: 401, 403, 404."""


class BatchTooLarge(SinkError):
    """The store cannot take this many bytes in one request."""


class BatchRejected(SinkError):
    """The store refuses some of the rows for good.

    Args:
        message: the store's words.
        rejected: row index within the batch → the store's words, when it named them; every other row is stored.
            None when it did not: nothing is known about any row, and delivery bisects.
    """

    def __init__(self, message: str, *, rejected: Mapping[int, str] | None = None) -> None:
        super().__init__(message)
        self.rejected = rejected
