"""Where log lines go: stderr, or a file; one line per change of state, JSON when nobody watches."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from structlog.typing import EventDict, Processor, WrappedLogger

__all__ = ["configure"]

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_MASK: Final = "***"


def configure(*, level: str, form: str, file: Path | None, secrets: Iterable[str], watched: bool = False) -> None:
    """Set up logging for this process.

    Args:
        level: debug, info, warning or error.
        form: console, json, or auto: console on a terminal.
        file: instead of stderr; appended to, 0600.
        secrets: texts that no line may contain, whatever is logged; replaced by `***`.
        watched: a live line is on the terminal: only warnings are shown beside it.
    """
    stream = sys.stderr
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        stream = file.open("a", encoding="utf-8", buffering=1)
    on_terminal = stream.isatty()
    as_json = form == "json" or (form == "auto" and not on_terminal)
    last: list[Processor] = [structlog.processors.JSONRenderer(default=str)]
    if not as_json:
        plain = structlog.dev.plain_traceback
        last = [structlog.dev.ConsoleRenderer(colors=on_terminal, exception_formatter=plain)]
    else:
        # As text: a structured traceback carries local variables, and with them frames and tokens.
        last.insert(0, structlog.processors.format_exc_info)
    least = max(_LEVELS[level], _LEVELS["warning"] if watched and file is None else 0)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _Mask([secret for secret in secrets if secret]),
            *last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )


class _Mask:
    """Takes secrets out of every value of a log line: the last of several lines of defence."""

    def __init__(self, secrets: list[str]) -> None:
        self._secrets = secrets

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        if self._secrets:
            for name, value in event.items():
                event[name] = self._masked(value)
        return event

    def _masked(self, value: Any) -> Any:
        if isinstance(value, str):
            for secret in self._secrets:
                value = value.replace(secret, _MASK)
        return value
