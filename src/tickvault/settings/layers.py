"""Where settings stand: the environment, a `.env` file, a TOML file. Only here files are read."""

from __future__ import annotations

import io
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dotenv.parser import parse_stream
from dotenv.variables import parse_variables

from tickvault.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["ENV_FILE", "Findings", "Layer", "read_env_file", "read_text", "read_toml"]

ENV_FILE: Final = Path(".env")  # the one file that may be missing
# A token takes a few KB; a bound, so that a wrong path (a device, a log) cannot fill the memory.
_MAX_FILE_CHARS: Final = 1_000_000


@dataclass(slots=True)
class Findings:
    """What loading has to say."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Names → texts from one place; `ours` when nothing but settings belongs there."""

    where: str
    values: Mapping[str, str]
    ours: bool = False


def read_text(path: Path, what: str) -> str:
    """Return what a file has; nothing for a `.env` that is not there.

    Raises:
        ConfigurationError: it cannot be read as text of a reasonable size; begins with `what`.
    """
    try:
        with path.expanduser().open(encoding="utf-8-sig") as file:
            text = file.read(_MAX_FILE_CHARS + 1)
    except FileNotFoundError:
        if path == ENV_FILE:
            return ""
        raise ConfigurationError(f"{what}: there is no such file; create it or correct the path") from None
    except (OSError, ValueError, RuntimeError) as exc:
        # Not str(exc): of a decoding error it has bytes of the file.
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text, or has no such home folder"
        raise ConfigurationError(f"{what} cannot be read: {reason}; correct the path or the file") from None
    if len(text) > _MAX_FILE_CHARS:
        raise ConfigurationError(f"{what} has more than {_MAX_FILE_CHARS} characters; correct the path")
    return text


def read_env_file(path: Path, environ: Mapping[str, str], findings: Findings) -> Layer:
    """Return the layer of a `.env` file as python-dotenv reads it, except that `${NAME}` is taken from `environ`."""
    values: dict[str, str] = {}
    for binding in parse_stream(io.StringIO(read_text(path, f"env file {str(path)!r}"))):
        if binding.error:
            findings.warnings.append(f"line {binding.original.line} of {path} is not NAME=value and is ignored")
        elif binding.key is not None and binding.value is not None:
            scope = {**values, **environ}
            values[binding.key] = "".join(atom.resolve(scope) for atom in parse_variables(binding.value))
    return Layer(where=str(path), values=values)


def read_toml(path: Path, findings: Findings) -> Layer:
    """Return the layer of a TOML file; a table is a prefix (`[tickvault]` `mode` is TICKVAULT_MODE), a list its items."""
    try:
        document = list(_flattened(tomllib.loads(read_text(path, f"configuration file {str(path)!r}")), ""))
    except tomllib.TOMLDecodeError as exc:
        place = re.search(r"\(at .*\)$", str(exc))
        raise ConfigurationError(f"{str(path)!r} is not valid TOML {place[0] if place else ''}; correct it") from None
    except RecursionError:
        raise ConfigurationError(f"{str(path)!r} is nested without end; expected NAME = value") from None
    values: dict[str, str] = {}
    for name, value in document:
        if name in values:
            findings.problems.append(f"{name} is there twice in {path}; keep one of them")
        elif isinstance(value, list) and all(isinstance(item, str) and "," not in item for item in value):
            values[name] = ",".join(value)
        elif isinstance(value, str | int | float):
            values[name] = str(value).lower() if isinstance(value, bool) else str(value)
        else:
            findings.problems.append(f"{name} in {path}: expected a text, a number or a list of texts without commas")
    return Layer(where=str(path), values=values, ours=True)


def _flattened(table: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for key, value in table.items():
        name = f"{prefix}{key}".upper()
        if isinstance(value, dict):
            yield from _flattened(value, f"{name}_")
        else:
            yield name, value
