"""What the user set, as one typed, frozen tree."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from tickvault.model import Subscription
from tickvault.selections import Key, Selection

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import SecretStr

    from tickvault.model import Mode

__all__ = [
    "Compact",
    "DiskFull",
    "DiskReserve",
    "HttpSettings",
    "InfluxApi",
    "InfluxLayout",
    "InfluxSettings",
    "LogFormat",
    "LogLevel",
    "NotifySettings",
    "Settings",
    "UpstoxSettings",
]


class InfluxApi(StrEnum):
    """Which write API an InfluxDB server has."""

    AUTO = "auto"
    V1 = "v1"
    V2 = "v2"
    V3 = "v3"


class InfluxLayout(StrEnum):
    """How rows become points."""

    TICKVAULT = "tickvault"
    TRADEDATAFEED = "tradedatafeed"


class LogLevel(StrEnum):
    """The least important line that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How a log line looks."""

    AUTO = "auto"
    CONSOLE = "console"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstoxSettings:
    """How the broker is reached. At most one of token and token URL is there; addresses stay out of the repr.

    Attributes:
        token_file: the file that `access_token` is from, if a NAME_FILE names one; `env_file` the `.env` file in use.
            A recorder looks into both for a new token.
        client_id, client_secret, redirect_uri: the user's app, for `tickvault login`.
    """

    access_token: SecretStr | None
    token_file: Path | None = field(compare=False)
    env_file: Path | None = field(compare=False)
    token_url: str | None = field(repr=False)
    api_url: str = field(repr=False)
    instruments_url: str | None = field(repr=False)
    client_id: str | None
    client_secret: SecretStr | None
    redirect_uri: str | None
    plus: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class InfluxSettings:
    """Where and how points are written. `url` has no trailing slash; `depth` is 0 to 30 book levels."""

    url: str = field(repr=False)
    org: str | None
    bucket: str | None
    token: SecretStr | None
    username: str | None
    password: SecretStr | None
    api: InfluxApi
    layouts: tuple[InfluxLayout, ...]
    depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifySettings:
    """Who is told what. `events` and `sinks` are None for all of them."""

    url: str = field(repr=False)
    events: tuple[str, ...] | None
    sinks: tuple[str, ...] | None
    secret: SecretStr | None
    interval_s: float
    retry_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """Where the web server listens; `explicit` when the user said so. Port 0 is any free port."""

    host: str
    port: int
    token: SecretStr | None
    explicit: bool


class DiskFull(StrEnum):
    """What to do below the reserve when nothing that is delivered is left to remove."""

    STOP = "stop"
    DROP_OLDEST = "drop_oldest"


class Compact(StrEnum):
    """When a recorder rewrites closed days of the Parquet store."""

    AUTO = "auto"
    OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskReserve:
    """Free disk space that intake leaves alone: exactly one of the two."""

    percent: float | None
    bytes: int | None

    def of(self, total_bytes: int) -> int:
        """Return the bytes that are to stay free on a disk of this size."""
        return self.bytes if self.bytes is not None else int(total_bytes * (self.percent or 0.0) / 100)

    def __str__(self) -> str:
        return f"{self.percent:g} %" if self.bytes is None else f"{self.bytes:,} bytes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything the user set, checked.

    Attributes:
        selections: in the user's order, each once; when there are any, `instruments_list_url` is None.
        influx: None when there is no URL; there whether or not the sink runs.
        http: None when it is off.
        warnings: one line each, for the caller to say once.
    """

    upstox: UpstoxSettings
    selections: tuple[Selection, ...]
    instruments_list_url: str | None = field(repr=False)
    mode: Mode
    data_dir: Path
    sinks: tuple[str, ...]
    influx: InfluxSettings | None
    notify: NotifySettings | None
    queue_frames: int
    queue_bytes: int
    http: HttpSettings | None
    retain_s: float
    disk_reserve: DiskReserve
    disk_full: DiskFull
    compact: Compact
    shutdown_s: float
    log_level: LogLevel
    log_format: LogFormat
    log_file: Path | None
    nats_url: str | None = field(repr=False)
    allow_plaintext: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        """The instrument keys among the selections."""
        return tuple(
            Subscription(instrument_key=one.what.key, mode=one.mode)
            for one in self.selections
            if isinstance(one.what, Key)
        )
