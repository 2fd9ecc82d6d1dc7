"""What an answer of InfluxDB or VictoriaMetrics means: for delivery, for single rows, about the server. Pure.

Laws. A status that nobody has thought of keeps the data: rows are refused only in words that speak of rows. Every
message is one bounded line with the operator's next step.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from yarl import URL

from tickvault.backoff import retry_after_s
from tickvault.errors import BatchRejected, BatchTooLarge, SinkError, SinkMisconfigured, SinkUnavailable

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Mapping

    from tickvault.sinks.lineprotocol import Lines

__all__ = [
    "Answer",
    "beyond_retention",
    "judge",
    "misses_database",
    "named_rows",
    "version_of",
    "words",
]

_MAX_WORDS_CHARS: Final = 300

_ACCEPTED: Final = frozenset({200, 201, 202, 204, 206, 207, 208})
_OVERLOADED: Final = frozenset({408, 425, 429})
_ROWS_REFUSED: Final = frozenset({400, 406, 422})
_NEXT_STEP: Final = {
    401: "check INFLUX_TOKEN, or INFLUX_USERNAME and INFLUX_PASSWORD",
    403: "grant the user or token the right to write to the bucket",
    404: "check INFLUX_URL, INFLUX_API, INFLUX_ORG and INFLUX_BUCKET; the bucket has to exist",
}
# Words of 400 and 500 answers that blame a setting or a limit of the server, not the rows.
_SETTING_WORDS: Final = re.compile(
    r"max-values-per-tag|max-series-per-database|retention policy not found|database is required"
    r"|unsupported path|invalid precision|would exceed (?:number of|limit of)"
)
_ROW_WORDS: Final = re.compile(r"unable to parse|partial write|field type conflict")
_TRANSPORT_WORDS: Final = re.compile(r"gzip|unexpected EOF")
_BEYOND_RETENTION: Final = re.compile(
    r"points beyond retention policy(?: dropped=(\d+))?|dropped (\d+) points outside retention policy"
)
_QUOTED_LINE: Final = re.compile(r"unable to parse '")
_NUMBERED: Final = "partial write of line protocol occurred"
_MAX_NUMBERED: Final = 100  # InfluxDB 3 tells of no more: from then on some are refused without a number


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a server said.

    Attributes:
        text: its body, decoded, at most the bound's length.
        cut: whether the body was longer.
    """

    status: int
    text: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False


def judge(answer: Answer, shown: str, now: dt.datetime) -> SinkError | None:
    """Return what an answer to a write means for delivery; None for accepted.

    Args:
        answer: what the server said, secrets blotted out.
        shown: the server's address, for the message.
        now: wall clock, against which a Retry-After that is a date is read.
    """
    status, text = answer.status, answer.text
    message = f"{shown} answered {status}: {words(answer)}"
    if status == 413:
        return BatchTooLarge(message)
    if 300 <= status < 400:
        return SinkMisconfigured(f"{message}; it redirects to {_redirect(answer)}: set INFLUX_URL to the last address")
    if status in _ACCEPTED | _ROWS_REFUSED and "text/html" in answer.headers.get("Content-Type", ""):
        return SinkMisconfigured(f"{message}; that is a web page: set INFLUX_URL to the database itself")
    if status in _ACCEPTED:
        return None
    blames_rows = bool(_ROW_WORDS.search(text))
    if _SETTING_WORDS.search(text) and status in {400, 406, 422, 500}:
        return SinkMisconfigured(f"{message}; raise the server's limit or correct the INFLUX_ settings")
    if status in _ROWS_REFUSED and (blames_rows or not _TRANSPORT_WORDS.search(text)):
        return BatchRejected(message)
    if status >= 500 and blames_rows:
        return BatchRejected(message)
    if status in _OVERLOADED or status in _ROWS_REFUSED or status >= 500 or status < 300:
        return SinkUnavailable(message, retry_after_s=retry_after_s(answer.headers.get("Retry-After", ""), now))
    return SinkMisconfigured(f"{message}; {_NEXT_STEP.get(status, 'check INFLUX_URL')}")


def _redirect(answer: Answer) -> str:
    try:
        target = URL(answer.headers.get("Location", ""))
        return str(target.origin()) if target.absolute else "another path"
    except ValueError:
        return "something that is no address"


def beyond_retention(answer: Answer) -> int | None:
    """Return how many points the server dropped for their age; it has stored the others that it could read."""
    found = _BEYOND_RETENTION.search(answer.text) if answer.status in {400, 422, 500} else None
    return int(found[1] or found[2] or 1) if found else None


def named_rows(answer: Answer, part: Lines) -> Mapping[int, str]:
    """Return the rows whose lines the answer quotes or numbers, with its words; nothing if any cannot be traced."""
    if answer.cut:
        return {}
    return _numbered(answer, part) or _quoted(_message(answer.text), part)


def _numbered(answer: Answer, part: Lines) -> Mapping[int, str]:
    """Read what `/api/v3/write_lp?accept_partial=true` says: numbers of lines, from 1."""
    told = _json(answer.text)
    found = told.get("data")
    if told.get("error") != _NUMBERED or not isinstance(found, list) or not 0 < len(found) < _MAX_NUMBERED:
        return {}
    named: dict[int, str] = {}
    for one in found:
        number, why = (one.get("line_number"), one.get("error_message")) if isinstance(one, dict) else (None, None)
        if type(number) is not int or not 1 <= number <= len(part) or not isinstance(why, str):
            return {}
        named[part.rows[number - 1].as_py()] = _plain(why)
    return named


def _quoted(text: str, part: Lines) -> Mapping[int, str]:
    """Read what InfluxDB 1 says: the lines themselves."""
    starts = [found.end() for found in _QUOTED_LINE.finditer(text)]
    if not starts:
        return {}
    rows: dict[str, list[int]] = {}
    for line, row in zip(part.text.to_pylist(), part.rows.to_pylist(), strict=True):
        rows.setdefault(line.removesuffix("\n"), []).append(row)
    named: dict[int, str] = {}
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        quoted = text[start:end]
        cuts = (found.start() for found in re.finditer("': ", quoted))
        cut = next((at for at in cuts if quoted[:at] in rows), None)
        if cut is None:
            return {}
        why = quoted[cut + 3 :].partition("\n")[0].partition(" dropped=")[0]
        named.update(dict.fromkeys(rows[quoted[:cut]], why[:_MAX_WORDS_CHARS]))
    return named


def misses_database(answer: Answer) -> bool:
    """Return whether the write failed because its database was never created (v1)."""
    return answer.status == 404 and "database not found" in answer.text


def version_of(answer: Answer) -> str:
    """Return the version an answer to /ping or /health tells, without its v; empty if it tells none."""
    told = answer.headers.get("X-Influxdb-Version", "")
    if not told and answer.status == 200:
        told = _json_text(answer.text, "version")
    return told.removeprefix("v") if re.match(r"v?\d+\.", told) else ""


def _message(text: str) -> str:
    return _json_text(text, "error") or _json_text(text, "message") or text


def _json_text(text: str, name: str) -> str:
    found = _json(text).get(name)
    return found if isinstance(found, str) else ""


def _json(text: str) -> Mapping[str, object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def words(answer: Answer) -> str:
    """Return the answer's message in one bounded line."""
    return _plain(_message(answer.text)) or "no words"


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^\x20-\x7e\u00a0-\uffff]", " ", text).split())[:_MAX_WORDS_CHARS]
