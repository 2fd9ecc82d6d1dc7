"""The options that commands share, and what they come to."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qsl, urlsplit

import typer

from tickvault import logs
from tickvault.brokers.upstox.token_files import stored_token
from tickvault.settings import Settings, load_settings

__all__ = [
    "AsJson",
    "Config",
    "DataDir",
    "Duration",
    "EnvFile",
    "configure_logs",
    "resolve",
    "settings_of",
    "show_help",
]

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
    """Return the settings that a command's options, the environment and the files give."""
    overrides = {} if data_dir is None else {"TICKVAULT_DATA_DIR": str(data_dir)}
    return load_settings(environ=os.environ, env_file=env_file, config_file=config, overrides=overrides)


def configure_logs(settings: Settings, *, watched: bool) -> None:
    """Log as the settings say, with every secret they hold blotted out."""
    influx, notify, http = settings.influx, settings.notify, settings.http
    secrets = [
        settings.upstox.access_token,
        settings.upstox.client_secret,
        influx.token if influx else None,
        influx.password if influx else None,
        notify.secret if notify else None,
        http.token if http else None,
    ]
    logs.configure(
        level=settings.log_level,
        form=settings.log_format,
        file=settings.log_file,
        secrets=[
            *(secret.get_secret_value() for secret in secrets if secret is not None),
            *_secrets_in_urls(settings),
            stored_token(settings.data_dir) or "",
        ],
        watched=watched,
    )


def _secrets_in_urls(settings: Settings) -> list[str]:
    """Return passwords and query values of the addresses in use: any of them may be a credential."""
    upstox, influx, notify = settings.upstox, settings.influx, settings.notify
    urls = [upstox.token_url, settings.instruments_list_url, settings.nats_url]
    urls += [influx.url if influx else None, notify.url if notify else None]
    found = []
    for url in filter(None, urls):
        parts = urlsplit(url)
        found += [parts.password or "", *(value for _, value in parse_qsl(parts.query))]
    return [value for value in found if value]


def resolve(host: str) -> list[str]:
    """Return the addresses of a host."""
    return [str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
