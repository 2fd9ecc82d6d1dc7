"""Makes a text fit for a stranger's eyes: no token, price, account or instrument in it, and still of use to a developer.

Texts come from everywhere: a store quotes the row that it refuses, the broker names an account, a gateway echoes a
request. So nothing is looked for and taken out; every figure, and every word with a figure in it, goes, but for the few
forms that are known to be harmless.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["HIDDEN", "anonymous", "anonymous_values"]

HIDDEN: Final = "#"

# Dates and times, statuses, close codes, the broker's error codes, modes, versions of three numbers (an IP address has
# four).
_KEPT: Final = (
    r"\b\d{4}-\d{2}-\d{2}(?:[ T]\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?:Z|[+-]\d{2}:?\d{2})?)?\b|"
    r"\bUDAPI\d+\b|\bHTTP \d{3}\b|\banswer(?:s|ed) (?:with )?\d{3}\b|\bcode \d{1,4}\b|\berror \d{3,4}\b"
    r"|\bline \d+\b|\bfull_d(?:5|30)\b|\bsha256\b|\butf-8\b|(?<![\w.])\d{1,3}\.\d{1,3}\.\d{1,4}(?![\w.])"
)
_GONE: Final = (
    r"[\w.+%-]+@[\w.-]+"  # an address of e-mail, or the user part of another
    r"|\beyJ[\w.+/=-]*"  # a JWT
    r"|(?<=symbol=)[^\s,]+"
    r"|\b[A-Za-z]+_[A-Z]+\|[^,;:'\"\)\]]*"  # an instrument key, up to where a list goes on
    r"|\b(?=\w*[A-Za-z])(?=\w*\d)\w+\b"  # letters and figures
    r"|[A-Za-z0-9+/=]{32,}"
    r"|\d+(?:[.,:]\d+)*"
)
_ANY: Final = re.compile(rf"(?P<kept>{_KEPT})|{_GONE}")
_PLACE: Final = re.compile(r'File "[^"]*?([^"/]+/[^"/]+\.py)"')  # of a traceback: where the program is installed goes
_RECORDER_ID: Final = re.compile(r"[0-9a-f]{12}")  # drawn at random
_MEASURED: Final = ("_s", "_ns", "_ms", "_bytes", "bytes")  # units of floats that are no price


def anonymous(text: str) -> str:
    """Return a text without figures and what contains them."""
    return _ANY.sub(lambda found: found["kept"] or HIDDEN, _PLACE.sub(r'File "\1"', text))


def anonymous_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON values without figures in texts, and without fractions that carry no unit in their name."""
    return {anonymous(name): _value(name, value) for name, value in values.items()}


def _value(name: str, value: Any) -> Any:
    match value:
        case str():
            return value if name == "recorder_id" and _RECORDER_ID.fullmatch(value) else anonymous(value)
        case float() if not name.endswith(_MEASURED):
            return HIDDEN
        case dict():
            return {anonymous(str(key)): _value(name, one) for key, one in value.items()} if _flat(value) else (
                anonymous_values(value)
            )  # fmt: skip
        case list() | tuple():
            return [_value(name, one) for one in value]
        case _:
            return value


def _flat(value: Mapping[str, Any]) -> bool:
    """Whether the keys of a mapping are names of things, and its values are what the mapping is named for."""
    return all(isinstance(one, float) for one in value.values())
