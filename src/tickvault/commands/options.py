"""The options that commands share, and what they come to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import typer

from tickvault import hidden

if TYPE_CHECKING:
    from tickvault.settings import Settings

__all__ = [
    "AsJson",
    "Config",
    "DataDir",
    "Duration",
    "EnvFile",
    "configure_logs",
    "settings_of",
    "show_help",
]

_LIKE_A_SECRET: Final = 20  # characters of a part of a path; fewer are a word

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Data folder; default TICKVAULT_DATA_DIR.", show_default=False)
]
Config = Annotated[Path | None, typer.Option("--config", help="TOML file with settings.", show_default=False)]
EnvFile = Annotated[Path, typer.Option("--env-file", help="File with settings as NAME=value.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Duration = Annotated[
    float | None, typer.Option("--duration", min=0, help="Stop by itself after so many seconds.", show_default=False)
]


def show_help(context: typer.Context) -> None:
    """Show what a group of commands has when none of them is named."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def settings_of(data_dir: Path | None, config: Path | None, env_file: Path | None) -> Settings:
    """Return the settings that a command's options, the environment and the files give; their secrets are hidden."""
    from tickvault.settings import load_settings

    overrides = {} if data_dir is None else {"TICKVAULT_DATA_DIR": str(data_dir)}
    settings = load_settings(environ=os.environ, env_file=env_file, config_file=config, overrides=overrides)
    hidden.hide(_secrets(settings))
    return settings


def configure_logs(settings: Settings, *, watched: bool) -> None:
    """Log as the settings say."""
    from tickvault import logs

    logs.configure(level=settings.log_level, form=settings.log_format, file=settings.log_file, watched=watched)


def _secrets(settings: Settings) -> list[str]:
    """Return all that must not leave the program but to the server it is for."""
    from tickvault.brokers.upstox.token_files import stored_token

    influx, notify, http = settings.influx, settings.notify, settings.http
    secrets = [
        settings.upstox.access_token,
        settings.upstox.client_secret,
        influx.token if influx else None,
        influx.password if influx else None,
        notify.secret if notify else None,
        http.token if http else None,
    ]
    return [
        *(secret.get_secret_value() for secret in secrets if secret is not None),
        *_secrets_in_urls(settings),
        stored_token(settings.data_dir) or "",
    ]


def _secrets_in_urls(settings: Settings) -> list[str]:
    """Return passwords, query values and long parts of the paths of addresses in use: any may be a credential."""
    upstox, influx, notify = settings.upstox, settings.influx, settings.notify
    urls = [upstox.token_url, settings.instruments_list_url, *(settings.nats_url or "").split(",")]
    urls += [influx.url if influx else None, notify.url if notify else None]
    found = []
    for url in filter(None, urls):
        parts = urlsplit(url)
        user = unquote(parts.username or "")
        found += [unquote(parts.password or "") or user, *(value for _, value in parse_qsl(parts.query))]
        # A webhook's address is often its own secret: https://hooks.example/services/T0/B0/XXXX.
        found += [unquote(part) for part in parts.path.split("/") if len(part) >= _LIKE_A_SECRET]
    return [value for value in found if value]
