"""Scripts: those that come with the simulator, by name, and files of the user's own."""

from __future__ import annotations

import importlib.resources
import json
import math
import tomllib
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tickvault.errors import ConfigurationError
from tickvault.simulator.behaviours import Evidence
from tickvault.simulator.calendar import parse_calendar, parse_time_s
from tickvault.simulator.clock import check_speed, parse_start_ms
from tickvault.simulator.rules import checked_rules
from tickvault.simulator.script import ACTIONS, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tickvault.simulator.calendar import Calendar
    from tickvault.simulator.script import Step

__all__ = ["Script", "listing", "load_script", "parse_script", "parse_steps", "script_names", "timeline"]

_FIELDS: Final = ("about", "evidence", "source", "start", "speed", "rules", "calendar", "steps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What a simulator plays.

    Attributes:
        name: of a built-in one, or its file.
        about: one line.
        evidence: that the broker does it too; UNKNOWN in a file that does not say.
        source: who says so, or what is missing.
        steps: what happens, and when.
        rules: arguments of Rules that differ from the settings'.
        calendar: in place of the settings'.
        start: when in India the clock starts, unless the settings say.
        speed: of the clock, unless the settings say.
    """

    name: str = "steps"
    about: str = ""
    evidence: Evidence = Evidence.UNKNOWN
    source: str = ""
    steps: tuple[Step, ...] = ()
    rules: Mapping[str, Any] = field(default_factory=dict)
    calendar: Calendar | None = None
    start: str | None = None
    speed: float | None = None


def script_names() -> tuple[str, ...]:
    """Return the names of the scripts that come with the simulator."""
    files = (importlib.resources.files("tickvault.simulator") / "scripts").iterdir()
    return tuple(sorted(one.name.removesuffix(".toml") for one in files if one.name.endswith(".toml")))


def listing() -> str:
    """Return the built-in scripts, one a line, each with what it does."""
    scripts = [load_script(name) for name in script_names()]
    width = max(len(one.name) for one in scripts)
    return "\n".join(f"{one.name:{width}}  {one.about} ({one.evidence})" for one in scripts)


def load_script(which: str | Path) -> Script:
    """Read a script: a built-in one's name, or a file.

    A file is TOML or, when it is called *.json, JSON: an object, or a list of steps only.

    Raises:
        ConfigurationError: there is none, it cannot be read, is not TOML or JSON, or a field is not as described.
    """
    path = Path(which)
    builtin = isinstance(which, str) and not path.suffix and path.name == which
    if builtin and which in script_names():
        text = (importlib.resources.files("tickvault.simulator") / "scripts" / f"{which}.toml").read_text("utf-8")
        return parse_script(tomllib.loads(text), name=str(which))
    where = f"--script {which}"
    try:
        text = path.read_text(encoding="utf-8")
        document: object = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as exc:
        names = script_names()
        hint = nearest(str(which), names) if builtin else ""
        raise ConfigurationError(
            f"{where}: cannot be read: {exc.strerror}; name a TOML or JSON file, or one of `--script list`{hint}"
        ) from exc
    except ValueError as exc:
        kind = "JSON" if path.suffix == ".json" else "TOML (JSON files must be called *.json)"
        raise ConfigurationError(f"{where}: not valid {kind}: {exc}") from exc
    return parse_script({"steps": document} if isinstance(document, list) else document, name=str(which))


def parse_script(document: object, *, name: str = "script") -> Script:
    """Turn a document into a script.

    Raises:
        ConfigurationError: names the field or the step, what was expected and what was got.
    """
    where = f"--script {name}"
    if not isinstance(document, dict):
        raise ConfigurationError(f"{where}: expected an object with steps, got {type(document).__name__}")
    for key in document:
        if key not in _FIELDS:
            raise ConfigurationError(
                f"{where}: unknown field {key!r}; expected {', '.join(_FIELDS)}{nearest(key, _FIELDS)}"
            )
    texts = {key: document.get(key, "") for key in ("about", "evidence", "source", "start")}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise ConfigurationError(f"{where}: {key}: expected a text, got {value!r}")
    evidence = texts["evidence"] or Evidence.UNKNOWN.value
    if evidence not in list(Evidence):
        raise ConfigurationError(f"{where}: evidence: expected one of {', '.join(Evidence)}; got {evidence!r}")
    start = texts["start"] or None
    if start is not None:
        parse_start_ms(start, 0, f"{where}: start")
    speed = document.get("speed")
    if speed is not None:
        if isinstance(speed, bool) or not isinstance(speed, (int, float)):
            raise ConfigurationError(f"{where}: speed: expected a number, got {speed!r}")
        check_speed(speed, f"{where}: speed")
    calendar = document.get("calendar")
    return Script(
        name=name,
        about=texts["about"],
        evidence=Evidence(evidence),
        source=texts["source"],
        steps=parse_steps(document.get("steps", []), where=where, start=start),
        rules=checked_rules(document.get("rules", {}), f"{where}: rules"),
        calendar=None if calendar is None else parse_calendar(calendar, f"{where}: calendar"),
        start=start,
        speed=None if speed is None else float(speed),
    )


def parse_steps(document: object, *, where: str = "script", start: str | None = None) -> tuple[Step, ...]:
    """Turn a list of objects into steps; those with a time of day, `at`, count from `start`.

    Raises:
        ConfigurationError: names the step, what was expected and what was got.
    """
    if not isinstance(document, list):
        raise ConfigurationError(f"{where}: expected a list of steps, got {type(document).__name__}")
    return tuple(_parse(item, f"{where}: step {number}", start) for number, item in enumerate(document, 1))


def timeline(steps: tuple[Step, ...], until_s: float = math.inf) -> Iterator[tuple[float, Step]]:
    """Yield (seconds after start, step) in order, repetitions included, up to `until_s`."""
    due = [(step.at_s, order, step) for order, step in enumerate(steps)]
    while due:
        at_s, order, step = min(due, key=lambda entry: entry[:2])
        if at_s > until_s:
            return
        yield at_s, step
        due.remove((at_s, order, step))
        if step.every_s > 0:
            due.append((at_s + step.every_s, order, step))


def _parse(item: object, where: str, start: str | None) -> Step:
    if not isinstance(item, dict):
        raise ConfigurationError(f"{where}: expected an object such as {{at_s = 5.0, do = 'close'}}, got {item!r}")
    values = {str(name): value for name, value in item.items()}
    do = values.pop("do", None)
    if "at" in values:
        values["at_s"] = _after_start_s(values.pop("at"), start, where)
    kind = ACTIONS.get(do) if isinstance(do, str) else None
    if kind is None:
        raise ConfigurationError(f"{where}: do: expected one of {', '.join(ACTIONS)}; got {do!r}{nearest(do, ACTIONS)}")
    step, where = where, f"{where} ({do})"
    allowed = {one.name: one for one in fields(kind)}
    for name in values:
        if name not in allowed:
            raise ConfigurationError(
                f"{where}: unknown field {name!r}; expected {', '.join(allowed)}{nearest(name, allowed)}"
            )
    for name, one in allowed.items():
        if name not in values and one.default is MISSING:
            raise ConfigurationError(f"{where}: {name} is missing; add {name} = <{one.type}>")
        if name in values:
            values[name] = _typed(values[name], str(one.type), f"{where}: {name}")
    try:
        return kind(**values)
    except ConfigurationError as exc:
        raise ConfigurationError(f"{step}: {exc}") from exc


def _after_start_s(at: object, start: str | None, where: str) -> float:
    if start is None:
        raise ConfigurationError(f"{where}: at: a time of day needs the script's start; add start, or use at_s")
    after_s = parse_time_s(at, f"{where}: at") - parse_time_s(start.rpartition("T")[2], "start")
    return after_s % 86_400.0


def _typed(value: object, kind: str, where: str) -> object:
    # bool is an int to Python, but not to whoever writes `code = true`.
    if kind == "float" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind == "int" and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind == "str" and isinstance(value, str):
        return value
    raise ConfigurationError(f"{where}: expected {kind}, got {value!r}")
