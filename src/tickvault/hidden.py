"""What no output may contain: the secrets of this process, blotted out whatever form they are written in.

The last of several lines of defence: no message is made with a secret in it, and what others make (a library's
exception, a server's words, a bug of ours) passes through here on its way out.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, TextIO, cast
from urllib.parse import quote, quote_plus

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MASK", "hide", "scrubbed", "scrubbing"]

MASK: Final = "***"
_SHORTEST: Final = 4  # characters of a secret: shorter ones would blacken ordinary words

_forms: tuple[str, ...] = ()  # of the process, as its output is


def hide(secrets: Iterable[str]) -> None:
    """Blot out these texts from now on, as they are and as JSON, URLs and Python write them."""
    global _forms
    found = set(_forms)
    for secret in secrets:
        if len(secret) >= _SHORTEST:
            found |= {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
            found |= {quote(secret), quote(secret, safe=""), quote_plus(secret), repr(secret)[1:-1]}
    _forms = tuple(sorted(found, key=len, reverse=True))  # a secret within another must not spoil it


def scrubbed(text: str) -> str:
    """Return the text without secrets."""
    for form in _forms:
        if form in text:
            text = text.replace(form, MASK)
    return text


def scrubbing(stream: TextIO) -> TextIO:
    """Return a stream that writes to another one, without secrets; once is enough."""
    return stream if isinstance(stream, _Scrubbing) else cast("TextIO", _Scrubbing(stream))


class _Scrubbing:
    """Everything of a stream but its `write`: also tracebacks, warnings and other programs' logging end here."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(scrubbed(text))

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
