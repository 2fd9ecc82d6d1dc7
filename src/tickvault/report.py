"""`tickvault report`: what a developer needs to understand a bug, in one archive that may be shown to anybody.

No token, price, account, instrument key, or address of a server is in it. What is said of settings is chosen one by
one; every text from elsewhere loses its figures (`anonymous`), and the secrets that are known are blotted out of the
whole (`hidden`).
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import io
import json
import platform
import re
import socket
import sqlite3
import sys
import tarfile
from contextlib import closing
from dataclasses import fields, is_dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import pyarrow.parquet as pq

from tickvault import __version__, hidden, resolving, snapshots
from tickvault.addresses import reach_of_url
from tickvault.anonymous import HIDDEN, anonymous, anonymous_values
from tickvault.brokers.upstox.token_files import stored_token
from tickvault.checks import run_checks
from tickvault.datafolder import holder
from tickvault.errors import Refused, TickvaultError
from tickvault.sinks.parquet import scan
from tickvault.state import open_reader, read_view

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tickvault.settings import Settings

__all__ = ["parts", "write"]

_LIBRARIES: Final = (
    "aiohttp", "duckdb", "prometheus-client", "protobuf", "ptars", "pyarrow", "pydantic-settings", "rich", "structlog",
    "typer",
)  # fmt: skip
# What has texts from elsewhere; the others are of our own making from end to end.
_TOLD: Final = frozenset({"status.json", "gaps.json", "log.txt", "check.json"})
_SHORTEST: Final = 4  # characters of a name: shorter ones would spoil ordinary words
_COLOURS: Final = re.compile(r"\x1b\[[\d;]*m")
_LOG_LINES: Final = 1000
_LOG_BYTES: Final = 2_000_000
_GAPS: Final = 2000
_FILES: Final = 5000
_BROKEN: Final = (TickvaultError, OSError, sqlite3.Error, ValueError)


def parts(settings: Settings, *, log: Path | None, check: bool, now: dt.datetime) -> dict[str, str]:
    """Return the files of a report: name → text. A part that cannot be made says why in its place.

    Args:
        settings: of the recorder.
        log: file with its log lines; None for that of the settings.
        check: also do what `tickvault check` does.
        now: wall clock, aware.
    """
    makers: dict[str, Callable[[], object]] = {
        "versions.json": _versions,
        "settings.json": lambda: _shown(settings),
        "status.json": lambda: _status(settings),
        "gaps.json": lambda: _gaps(settings.data_dir),
        "files.json": lambda: _listing(settings.data_dir),
        "forms.json": lambda: _forms(settings.data_dir),
        "log.txt": lambda: _log_lines(log or settings.log_file),
    }
    if check:
        makers["check.json"] = lambda: _checked(settings)
    made = {name: _made(make) for name, make in makers.items()}
    names = _private(settings)
    for name in _TOLD & made.keys():
        for private in sorted(names, key=len, reverse=True):
            made[name] = made[name].replace(private, names[private])
    made = {name: hidden.scrubbed(text) for name, text in made.items()}
    return {"README.txt": _readme(made, now), **made}


def write(path: Path, made: Mapping[str, str], now: dt.datetime) -> None:
    """Put a report's files into a new archive, 0600.

    Raises:
        Refused: it cannot be written, or is there already.
    """
    try:
        with path.open("xb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            path.chmod(0o600)
            for name, text in made.items():
                data = text.encode()
                member = tarfile.TarInfo(f"tickvault-report/{name}")
                member.size, member.mtime, member.mode = len(data), int(now.timestamp()), 0o600
                archive.addfile(member, io.BytesIO(data))
    except OSError as exc:
        raise Refused(f"cannot write {path}: {exc.strerror}; name a new file in a folder you own with --out") from exc


def _made(make: Callable[[], object]) -> str:
    try:
        found = make()
    except _BROKEN as exc:
        found = {"unavailable": anonymous(f"{type(exc).__name__}: {exc}")}
    return found if isinstance(found, str) else json.dumps(found, indent=1, default=str) + "\n"


def _readme(made: Mapping[str, str], now: dt.datetime) -> str:
    listed = "\n".join(f"{name:<16}{len(text):>9,} characters" for name, text in made.items())
    return (
        f"A report of tickvault {__version__}, {now:%Y-%m-%d %H:%M %Z}, for a bug report.\n\n{listed}\n\n"
        f"No token, password, price, account or instrument key is meant to be in it: figures in texts became {HIDDEN}, "
        f"and secrets {hidden.MASK}.\nLook through it all the same before you show it to anybody.\n"
    )


def _private(settings: Settings) -> dict[str, str]:
    """Return what names the user, the account or a machine → by what it is replaced."""
    upstox, influx = settings.upstox, settings.influx
    tokens = [upstox.access_token.get_secret_value() if upstox.access_token else "", stored_token(settings.data_dir)]
    names = {claim: "ACCOUNT" for token in tokens if token for claim in _claims(token)}
    names |= {upstox.client_id or "": "CLIENT_ID", str(Path.home()): "HOME", str(Path.cwd()): "HERE"}
    if influx is not None:
        names |= {influx.org or "": "ORG", influx.bucket or "": "BUCKET", influx.username or "": "USER"}
    for name, url in _addresses(settings).items():
        if reach_of_url(url) != "loopback":
            names[urlsplit(url).hostname or ""] = f"HOST_OF_{name.upper()}"
    names |= {socket.gethostname(): "MACHINE", str(settings.data_dir.absolute()): "DATA_DIR"}
    return {private: shown for private, shown in names.items() if len(private) >= _SHORTEST}


def _claims(token: str) -> list[str]:
    """Return the texts that a JWT has: whose it is, and of which app."""
    try:
        payload = token.split(".")[1]
        body = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError, RecursionError):
        return []
    return [one for one in body.values() if isinstance(one, str)] if isinstance(body, dict) else []


def _addresses(settings: Settings) -> dict[str, str]:
    upstox, influx, notify = settings.upstox, settings.influx, settings.notify
    found = {
        "upstox_api_url": upstox.api_url,
        "upstox_instruments_url": upstox.instruments_url,
        "upstox_token_url": upstox.token_url,
        "instruments_url": settings.instruments_list_url,
        "influx_url": influx.url if influx else None,
        "notify_url": notify.url if notify else None,
    }
    return {name: url for name, url in found.items() if url}


# -- the parts


def _versions() -> dict[str, object]:
    found: dict[str, object] = {"tickvault": __version__, "python": sys.version.split()[0]}
    found |= {"sqlite": sqlite3.sqlite_version, "system": platform.system(), "kernel": platform.release()}
    found |= {"machine": platform.machine(), "libc": " ".join(platform.libc_ver())}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _shown(value: Any, name: str = "") -> Any:
    """Return settings by their kind: numbers and words out of a list as they are, everything else only as `set`."""
    match value:
        case None | bool() | int() | float():
            return value
        case Enum():
            return value.value
        case str() if name.endswith("url"):
            parts_ = urlsplit(value)
            return f"{parts_.scheme}, {reach_of_url(value)} host, {'with' if parts_.query else 'without'} a query"
        case str() if name == "host":
            return f"{reach_of_url(f'//{value}')} host"
        case str() if name in {"sinks", "events", "layouts"}:
            return value
        case str() if name == "warnings":
            return anonymous(value)
        case tuple() if name == "selections":
            kinds = [type(one.what).__name__.lower() for one in value]
            return {kind: kinds.count(kind) for kind in sorted(set(kinds))}
        case tuple():
            return [_shown(one, name) for one in value]
        case _ if is_dataclass(value):
            return {field.name: _shown(getattr(value, field.name), field.name) for field in fields(value)}
        case _:
            return "set"


def _status(settings: Settings) -> dict[str, object]:
    folder, http = settings.data_dir, settings.http
    token = http.token.get_secret_value() if http and http.token else None
    told = asyncio.run(snapshots.ask(holder(folder), token))
    one = snapshots.take(folder)
    return anonymous_values((snapshots.with_feed(one, told) if told else one).json())


def _gaps(folder: Path) -> object:
    view = read_view(folder / "state.db")
    gaps = view.gaps[-_GAPS:] if view is not None else ()
    return [
        anonymous_values({field.name: getattr(gap, field.name) for field in fields(gap)}) for gap in gaps
    ]  # fmt: skip


def _listing(folder: Path) -> object:
    """Return what is in the data folder: name, size, mode, time of change."""
    found = []
    for path in sorted(folder.rglob("*"))[:_FILES]:
        stat = path.lstat()
        changed = dt.datetime.fromtimestamp(stat.st_mtime, dt.UTC).isoformat(timespec="seconds")
        found.append([str(path.relative_to(folder)), stat.st_size, oct(stat.st_mode), changed])
    return found


def _forms(folder: Path) -> object:
    """Return the forms of the files: versions, tables, counts of the small ones, columns; no row of any."""
    found: dict[str, object] = {}
    for path in [*sorted(folder.glob("*.db")), *sorted((folder / "journal").glob("*.db"))[-1:]]:
        try:
            found[path.name] = _form(path, count=path.parent == folder)
        except sqlite3.Error as exc:
            found[path.name] = anonymous(str(exc))
    newest = {file.table: file.path for file in sorted(scan(folder / "parquet"), key=lambda file: file.hi)}
    found |= {f"parquet/{table}": _columns(path) for table, path in newest.items()}
    return found


def _form(path: Path, *, count: bool) -> dict[str, object]:
    with closing(open_reader(path)) as db:
        tables = dict(db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table' ORDER BY name"))
        form: dict[str, object] = {"version": db.execute("PRAGMA user_version").fetchone()[0], "tables": tables}
        if count:
            form["rows"] = {
                name: db.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]  # noqa: S608 - a table's own name
                for name in tables
            }
        return form


def _columns(path: Path) -> object:
    return {field.name: str(field.type) for field in pq.read_schema(path)}


def _log_lines(path: Path | None) -> str:
    if path is None:
        return (
            "no file: TICKVAULT_LOG_FILE is not set; --log names one with the lines, from `journalctl` for instance\n"
        )
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LOG_BYTES))
        lines = file.read(_LOG_BYTES).decode(errors="replace").splitlines()[-_LOG_LINES:]
    return "\n".join(map(_log_line, lines)) + "\n"


def _log_line(line: str) -> str:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    return json.dumps(anonymous_values(entry)) if isinstance(entry, dict) else anonymous(_COLOURS.sub("", line))


def _checked(settings: Settings) -> object:
    rows = asyncio.run(run_checks(settings, resolving.resolve))
    return [{"ok": row.ok, "what": row.what, "found": anonymous(row.found)} for row in rows]
