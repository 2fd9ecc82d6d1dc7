"""From texts to values: each setting's type, what is refused, and in which words."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from tickvault.addresses import checked_url, split_listen
from tickvault.model import Mode  # noqa: TC001  (pydantic asks for it when Typed is made)
from tickvault.selections import unquoted
from tickvault.settings.tree import Compact, DiskFull, DiskReserve, InfluxApi, InfluxLayout, LogFormat, LogLevel
from tickvault.subscriptions import shortened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["Typed", "parse_list", "unquoted"]

_SINKS: Final = ("parquet", "influx", "nats")
_EVENTS: Final = (
    "data.stored",
    "gap.opened",
    "gap.closed",
    "sink.parked",
    "sink.recovered",
    "token.rejected",
    "token.expiring",
    "disk.low",
)
_QUANTITY: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*([A-Za-z%]+)", re.ASCII)
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES: Final = {"mb": 10**6, "gb": 10**9, "tb": 10**12, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse_list(text: str) -> tuple[str, ...]:
    """Return the items between commas: trimmed, without quotes, each once, in order, none empty.

    One pair of quotes goes, round the whole list or round each item; blanks inside an item stay.
    """
    whole = unquoted(text)
    items = whole.split(",") if whole != text.strip() else [unquoted(item) for item in text.split(",")]
    return tuple(dict.fromkeys(item.strip() for item in items if item.strip()))


def _quantity(text: str, units: Mapping[str, float], expected: str) -> float:
    match = _QUANTITY.fullmatch(text)
    if not match or match[2].lower() not in units:
        raise ValueError(expected)
    return float(match[1]) * units[match[2].lower()]


def _duration(text: str) -> float:
    return _quantity(text, _SECONDS, "expected a number and one of d, h, m, s, e.g. 3d, 12h, 30m or 90s")


def _disk_reserve(text: str) -> DiskReserve:
    expected = "expected less than 100%, or a size, e.g. 5%, 10GB or 500MB"
    if not text.endswith("%"):
        return DiskReserve(percent=None, bytes=int(_quantity(text, _BYTES, expected)))
    percent = _quantity(text, {"%": 1}, expected)
    if percent >= 100:
        raise ValueError(expected)
    return DiskReserve(percent=percent, bytes=None)


def _yes_or_no(text: str) -> bool:
    match text.lower():
        case "true" | "yes" | "1" | "on":
            return True
        case "false" | "no" | "0" | "off":
            return False
    raise ValueError("expected true or false")


def _listen(text: str) -> tuple[str, int] | None:
    return None if text.lower() == "off" else split_listen(text)


def _master_list(text: str) -> str | None:
    return None if text.lower() == "off" else checked_url(text, ("https", "http"))


def _web_url(text: str) -> str:
    return checked_url(text, ("http", "https"))


def _base_url(text: str) -> str:
    return _web_url(text).rstrip("/")


def _nats_url(text: str) -> str:
    return ",".join(checked_url(item, ("nats", "tls", "ws", "wss")) for item in parse_list(text) or [""])


def _header_safe(secret: SecretStr) -> SecretStr:
    """Pass a token that can stand in an HTTP header; anything else would fail late, with the token in the message."""
    token = secret.get_secret_value()
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError("expected a token in one piece, of printable ASCII characters without blanks")
    return secret


def _members(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    choices = tuple(known)

    def parse(text: str) -> tuple[str, ...]:
        items = tuple(dict.fromkeys(item.lower() for item in parse_list(text)))
        unknown = [item for item in items if item not in choices]
        if unknown:
            raise ValueError(f"{shortened(unknown[0])} is unknown: expected names out of {', '.join(choices)}")
        return items

    return parse


def _events(text: str) -> tuple[str, ...] | None:
    return None if text.lower() == "all" else _members(_EVENTS)(text)


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError("expected a path; the home folder it names is unknown") from None


_Url = Annotated[str, AfterValidator(_web_url)]
_BaseUrl = Annotated[str, AfterValidator(_base_url)]
_Token = Annotated[SecretStr, AfterValidator(_header_safe)]
_Word = TypeVar("_Word", bound=StrEnum)
_AnyCase = Annotated[_Word, BeforeValidator(str.lower)]
_Names = Annotated[tuple[str, ...], BeforeValidator(parse_list)]
_Path = Annotated[Path, BeforeValidator(_path)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Typed(BaseSettings):
    """Every setting under its first name, with its type. What has a default in the table is required here."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=False)

    UPSTOX_ACCESS_TOKEN: _Token | None = None
    UPSTOX_TOKEN_URL: _Url | None = None
    UPSTOX_CLIENT_ID: str | None = None
    UPSTOX_CLIENT_SECRET: SecretStr | None = None
    UPSTOX_REDIRECT_URI: _Url | None = None
    UPSTOX_API_URL: _BaseUrl
    UPSTOX_INSTRUMENTS_URL: Annotated[str | None, BeforeValidator(_master_list)]
    UPSTOX_PLUS: Annotated[bool, BeforeValidator(_yes_or_no)]
    TICKVAULT_INSTRUMENTS: _Names = ()
    TICKVAULT_INSTRUMENTS_URL: _Url | None = None
    TICKVAULT_MODE: _AnyCase[Mode]
    TICKVAULT_DATA_DIR: _Path
    TICKVAULT_SINKS: Annotated[tuple[str, ...], BeforeValidator(_members(_SINKS))]
    INFLUX_URL: _BaseUrl | None = None
    INFLUX_ORG: str | None = None
    INFLUX_BUCKET: str | None = None
    INFLUX_TOKEN: _Token | None = None
    INFLUX_USERNAME: str | None = None
    INFLUX_PASSWORD: SecretStr | None = None
    INFLUX_API: _AnyCase[InfluxApi]
    INFLUX_LAYOUT: Annotated[tuple[InfluxLayout, ...], BeforeValidator(_members(InfluxLayout))]
    INFLUX_DEPTH: Annotated[int, Field(ge=0, le=30)]
    TICKVAULT_NOTIFY_URL: _Url | None = None
    TICKVAULT_NOTIFY_EVENTS: Annotated[tuple[str, ...] | None, BeforeValidator(_events)]
    TICKVAULT_NOTIFY_SECRET: SecretStr | None = None
    TICKVAULT_NOTIFY_INTERVAL_S: _Seconds
    TICKVAULT_NOTIFY_RETRY_S: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    TICKVAULT_QUEUE_FRAMES: Annotated[int, Field(ge=1)]
    TICKVAULT_QUEUE_MB: Annotated[float, Field(gt=0, le=1_000_000)]
    TICKVAULT_HTTP: Annotated[tuple[str, int] | None, BeforeValidator(_listen)]
    TICKVAULT_HTTP_TOKEN: _Token | None = None
    TICKVAULT_RETAIN: Annotated[float, BeforeValidator(_duration)]
    TICKVAULT_DISK_RESERVE: Annotated[DiskReserve, BeforeValidator(_disk_reserve)]
    TICKVAULT_DISK_FULL: _AnyCase[DiskFull]
    TICKVAULT_COMPACT: _AnyCase[Compact]
    TICKVAULT_SHUTDOWN_S: _Seconds
    TICKVAULT_LOG_LEVEL: _AnyCase[LogLevel]
    TICKVAULT_LOG_FORMAT: _AnyCase[LogFormat]
    TICKVAULT_LOG_FILE: _Path | None = None
    NATS_URL: Annotated[str, AfterValidator(_nats_url)] | None = None
    TICKVAULT_ALLOW_PLAINTEXT: _Names = ()
    REPLACE_INSTRUMENT_KEY_WITH_TRADE_SYMBOL: str | None = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  (pydantic-settings passes it)
        init_settings: PydanticBaseSettingsSource,
        *_: object,
        **__: object,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from the constructor only: pydantic's own sources read the process environment by themselves."""
        return (init_settings,)
