"""Where log lines go: stderr, or a file; one line per change of state, JSON when nobody watches."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, cast

import structlog

from tickvault import hidden
from tickvault.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import TextIO, TypeAlias

    from structlog.typing import EventDict, WrappedLogger

    Renderer: TypeAlias = Callable[[WrappedLogger, str, EventDict], str]

__all__ = ["configure"]

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure(*, level: str, form: str, file: Path | None, watched: bool = False) -> None:
    """Set up logging for this process; no line has what is `hidden`.

    Args:
        level: debug, info, warning or error.
        form: console, json, or auto: console on a terminal.
        file: gets every line too, as JSON; appended to, 0600.
        watched: a live line is on the terminal: only warnings are shown beside it.
    """
    as_json = form == "json" or (form == "auto" and not sys.stderr.isatty())
    shown = _json if as_json else _console(colors=sys.stderr.isatty())
    least_shown = max(_LEVELS[level], _LEVELS["warning"] if watched else 0)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # As text: a structured traceback carries local variables, and with them frames and tokens.
            structlog.processors.format_exc_info,
            _Lines(shown, None if file is None else _opened(file), least_shown),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Stderr())),
        cache_logger_on_first_use=False,
    )


class _Stderr:
    """What stderr is at the time: while a live line is on the terminal, something that writes above it."""

    def write(self, text: str) -> None:
        sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


class _Lines:
    """Renders an event for stderr and for the file, and takes secrets out: the last of several lines of defence."""

    def __init__(self, render: Renderer, file: TextIO | None, least_shown: int) -> None:
        self._render = render
        self._file = file
        self._least_shown = least_shown

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> str:
        if self._file is not None:
            self._file.write(hidden.scrubbed(_json(logger, method, dict(event))) + "\n")
        if _LEVELS.get(event["level"], _LEVELS["error"]) < self._least_shown:
            raise structlog.DropEvent
        return hidden.scrubbed(self._render(logger, method, event))


def _json(logger: WrappedLogger, method: str, event: EventDict) -> str:
    return str(structlog.processors.JSONRenderer(default=str)(logger, method, event))


def _console(*, colors: bool) -> Renderer:
    return structlog.dev.ConsoleRenderer(colors=colors)


def _opened(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        return path.open("a", encoding="utf-8", buffering=1)
    except OSError as exc:
        raise ConfigurationError(
            f"TICKVAULT_LOG_FILE: cannot write to {path}: {exc.strerror}; name a file in a folder you own, or remove it"
        ) from exc
