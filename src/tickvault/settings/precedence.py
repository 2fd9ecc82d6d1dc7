"""Which text each setting has, out of all that was given.

Laws. A name is first settled by precedence; then the names of one setting have to agree. Blank, and a placeholder of a
template, is not set.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tickvault.errors import ConfigurationError
from tickvault.settings.layers import read_text
from tickvault.settings.table import BY_FILE_NAME, BY_NAME, KNOWN
from tickvault.settings.values import unquoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tickvault.settings.layers import Findings, Layer
    from tickvault.settings.table import Setting

__all__ = ["Given", "is_placeholder", "settle"]

# What TradeDataFeed's templates, README and compose files have where a value belongs.
_PLACEHOLDERS: Final = frozenset(
    {
        "your-token",
        "comma-separated-list-of-instruments",
        "influxdb-url",
        "influxdb-organization",
        "influxdb-bucket-name",
        "influxdb-token",
        "your-api-fetch-token-url",
        "your-access-token",
        "your-instruments-list-url",
        "<instrument1>, <instrument2>,...",
        "your-data-feed-update-notification-url",
        "influxdb-org",
        "your-influxdb-token",
        "your_org_name",
        "your_bucket_name",
        "your_influxdb_token",
        "your_data_feed_update_url",
        "your_access_token_url_or_empty_if_not_used",
        "your_instruments_list_url_or_empty_if_not_used",
    }
)
_PLACEHOLDER_FORM: Final = re.compile(r"url-to-[a-z-]+|example-\d+")


@dataclass(frozen=True, slots=True)
class Given:
    """A text, the name it was given under and where; `file` that it was read from, `names` when there are several."""

    text: str
    name: str
    where: str
    file: Path | None = None
    names: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        """Return where a message says it stands."""
        return f"{self.name} in {self.where}"


def settle(overrides: Layer, layers: Sequence[Layer], findings: Findings) -> dict[str, Given]:
    """Return the text of each setting that has one, by its first name.

    Args:
        overrides: wins over every layer under whatever name; a blank there means not set.
        layers: the strongest first.
        findings: gets what is wrong or doubtful.
    """
    known = [(layer, _known(layer, findings)) for layer in (overrides, *layers)]
    overridden = {_setting_of(name).name for name in known[0][1]}
    candidates: dict[str, list[Given]] = {}
    settled: set[str] = set()
    for layer, values in known:
        for name, raw in values.items():
            setting = _setting_of(name)
            if name in settled or (layer is not overrides and setting.name in overridden):
                continue
            given = _meaningful(Given(unquoted(raw), name, layer.where), findings)
            if given:
                settled.add(name)
                candidates.setdefault(setting.name, []).append(given)
    return {name: _agreed(name, found, findings) for name, found in candidates.items()}


def _setting_of(name: str) -> Setting:
    return BY_NAME.get(name) or BY_FILE_NAME[name]


def _known(layer: Layer, findings: Findings) -> dict[str, str]:
    """Return a layer's settings; what is no setting there and is not another program's is a problem."""
    known = {name: text for name, text in layer.values.items() if name in KNOWN}
    for name in layer.values:
        if name not in known and (layer.ours or name.upper().startswith("TICKVAULT_")):
            findings.problems.append(f"{name} in {layer.where} is not a setting; did you mean {_nearest(name)}?")
    return known


def _nearest(name: str) -> str:
    name = name.upper()
    exact = (name, name.removeprefix("TICKVAULT_"), f"TICKVAULT_{name}")
    return next((known for known in exact if known in KNOWN), difflib.get_close_matches(name, KNOWN, 1, 0)[0])


def is_placeholder(text: str) -> bool:
    """Tell whether a text is what a template of TradeDataFeed has where a value belongs."""
    return text.lower() in _PLACEHOLDERS or _PLACEHOLDER_FORM.fullmatch(text.lower()) is not None


def _meaningful(given: Given, findings: Findings) -> Given | None:
    """Return what was given, read from its file where it names one; None when it counts as not set."""
    if given.text and given.name in BY_FILE_NAME:
        try:
            text = read_text(Path(given.text), f"{given.origin}{_shown_path(given.text)}").strip()
        except ConfigurationError as exc:
            findings.problems.append(str(exc))
            return None
        if not text:
            findings.warnings.append(f"the file that {given.origin} names is empty; it counts as not set")
        given = replace(given, text=text, file=Path(given.text).expanduser())
    if is_placeholder(given.text):
        findings.warnings.append(f"{given.origin} still has a template's placeholder; it counts as not set")
        return None
    return given if given.text else None


def _shown_path(text: str) -> str:
    """Return a path to show; nothing for what may be the secret itself, put where its path belongs."""
    return f" ({text!r})" if text.startswith(("/", "./", "../", "~")) and len(text) < 200 else ""


def _agreed(name: str, candidates: Sequence[Given], findings: Findings) -> Given:
    """Return one of the texts given for a setting, its first name's if there; that they differ is a problem."""
    chosen = next((given for given in candidates if given.name == name), candidates[0])
    differing = [other for other in candidates if other.text != chosen.text]
    if differing:
        origins = " and ".join(given.origin for given in (chosen, *differing))
        findings.problems.append(f"{origins} mean one setting and differ; keep one of them")
    return replace(chosen, names=tuple(given.name for given in candidates))
