"""The documentation has everything that the code has, and the code keeps what the documentation says of it."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer

import tickvault
from tickvault import errors, health
from tickvault.cli import program
from tickvault.delivery import Delivery
from tickvault.model import SCHEMAS
from tickvault.settings import SETTINGS
from tickvault.web import metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "tickvault"
REFERENCE = ROOT / "docs" / "reference"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
MODULES = sorted(
    one.name
    for one in pkgutil.walk_packages(tickvault.__path__, "tickvault.")
    if not one.name.endswith("_pb2") and not one.name.endswith("__main__")
)
SOURCES = {
    path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py") if "_pb2" not in path.name
}
# What fails here would fail for every reader of the code: tasks outside a group are lost, and so are their errors.
FORBIDDEN = {"ensure_future", "gather", "add_done_callback", "get_event_loop"}


def page(name: str) -> str:
    return (REFERENCE / name).read_text(encoding="utf-8")


def commands(group: Any, path: tuple[str, ...] = ("tickvault",)) -> Iterator[tuple[str, Any]]:
    """Yield (full name, command) of every command that does something itself."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


COMMANDS = dict(commands(typer.main.get_command(program())))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_documented(name: str) -> None:
    """Each command has a section, and in it, or among the common ones, each option and argument."""
    text = page("commands.md")
    section = re.search(rf"^## `{name}`\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"docs/reference/commands.md has no section `{name}`"
    common = text.partition("## Common options")[2].partition("\n## ")[0]
    for option in COMMANDS[name].params:
        if option.param_type_name == "argument":
            assert f"`{option.name.upper()}`" in section[1]
            continue
        for word in option.opts:
            assert re.search(rf"`{word}[` ]", section[1] + common), f"{word} of {name} is not in commands.md"


def test_no_command_is_only_documented() -> None:
    """What commands.md has a section for exists."""
    assert set(re.findall(r"^## `(.+)`$", page("commands.md"), re.MULTILINE)) == set(COMMANDS)


def test_every_metric_is_documented() -> None:
    """Each metric family of the status server is in metrics.md, under the name that Prometheus shows."""
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(metrics))) if isinstance(node, ast.Call)]
    names = {
        first.value + ("_total" if getattr(call.func, "id", "") == "CounterMetricFamily" else "")
        for call in calls
        if call.args and isinstance(first := call.args[0], ast.Constant) and str(first.value).startswith("tickvault_")
    }
    assert len(names) >= 13
    documented = set(re.findall(r"^\| `(tickvault_\w+)", page("metrics.md"), re.MULTILINE))
    assert documented == names


@pytest.mark.parametrize(
    "one",
    [health.Snapshot, health.FeedHealth, health.KeysHealth, health.MarketHealth, health.SinkHealth],
    ids=lambda one: one.__name__,
)
def test_every_field_of_the_snapshot_is_documented(one: type) -> None:
    """What `status --json` prints is described."""
    for field in one.__slots__:  # type: ignore[attr-defined]
        assert f"`{field}`" in page("metrics.md")


def log_events() -> Iterator[tuple[str, str]]:
    """Yield (event, level) of every call of a logger in src."""
    for tree in SOURCES.values():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            logger = node.func.value
            conditional = isinstance(logger, ast.IfExp) or node.func.attr in {"debug", "info", "warning", "error"}
            if not (conditional and getattr(logger, "id", "") in {"log", "_log"}):
                continue
            match node.args[0]:
                case ast.Constant(value=str(event)):
                    yield event, node.func.attr
                case ast.JoinedStr(values=[ast.Constant(value="sink."), _]):
                    yield from (("sink.retrying", "warning"), ("sink.misconfigured", "warning"))
                case other:
                    pytest.fail(f"a log event whose name is not a constant: {ast.unparse(other)}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.IfExp) and node.args:
                yield ast.literal_eval(node.args[0]), "warning"


def test_every_log_event_is_documented() -> None:
    """log-events.md has each event with its level, and no others."""
    rows = [line.split(" | ") for line in page("log-events.md").splitlines() if line.startswith("| `")]
    documented = {event: row[1] for row in rows for event in re.findall(r"`([^`]+)`", row[0])}
    used = dict(log_events())
    assert set(used) == set(documented)
    assert [event for event, level in used.items() if level not in documented[event]] == []


def test_conditions_of_a_sink_are_the_ones_known_here() -> None:
    """The one event whose name is put together at run time has these endings."""
    conditions = re.findall(r"self\._say\(\"(\w+)\"", inspect.getsource(Delivery))
    assert set(conditions) == {"retrying", "misconfigured"}


def test_every_error_is_documented() -> None:
    """errors.md has each public error class."""
    documented = set(re.findall(r"^\| `(\w+)`", page("errors.md"), re.MULTILINE))
    subclasses = {errors.TickvaultError}
    while more := {sub for one in subclasses for sub in one.__subclasses__()} - subclasses:
        subclasses |= more
    public = {
        one.__name__
        for one in subclasses
        if not one.__name__.startswith("_") and one.__module__.startswith("tickvault.")
    }
    assert documented == public
    assert set(errors.__all__) <= documented


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_is_documented(setting: Any) -> None:
    """settings.md has each setting under all its names."""
    for name in setting.names:
        assert f"`{name}`" in page("settings.md")


@pytest.mark.parametrize("table", SCHEMAS)
def test_every_column_is_documented(table: str) -> None:
    """tables.md has each table, and each of its columns in the order of the schema."""
    section = page("tables.md").partition(f"\n## {table}\n")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    documented = [column for row in rows for column in re.findall(r"`(\w+)`", row)]
    assert set(documented) == set(SCHEMAS[table].names)


def test_the_readme_is_short() -> None:
    """The README fits two screens, and begins with the two commands."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 80
    assert [line.split("#")[0].strip() for line in lines[3:5]] == ["make demo", "make test"]


# What a machine did is another figure on another one, and in another run.
MEASURED = re.compile(
    r"\d[\d.,]* ?(?:µs|ms of CPU|MB/s|GB/s|[Mk]?/s|(?:updates|frames|rows) a second|% of a core|B an update)(?!\w)"
)
PACES = {"540 updates a second", "540/s", "5,000/s"}  # at which it is measured
# These have figures of their own: of what a decision was taken on, and written by what measured them.
OWN = {"adr", "benchmarks", "reliability.md"}


@pytest.mark.parametrize("path", [one for one in PAGES if not OWN & {one.parent.name, one.name}])
def test_figures_are_the_benchmarks(path: Path) -> None:
    """A speed in the documentation stands in the results of the benchmarks too, to the letter."""
    told = "".join(one.read_text(encoding="utf-8") for one in (ROOT / "benchmarks").glob("*.md"))
    claimed = set(MEASURED.findall(path.read_text(encoding="utf-8"))) - PACES
    assert {one for one in claimed if one not in told} == set()


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(path: Path) -> None:
    """Every link to a file of the repository leads somewhere, its anchor included."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        there = (path.parent / file).resolve() if file else path
        known = there.exists() and (not anchor or anchor in anchors(there.read_text(encoding="utf-8")))
        if not known or not there.is_relative_to(ROOT):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_one_sentence_a_line(path: Path) -> None:
    """A line of running text ends with its sentence, so that a change of a sentence is a change of a line."""
    text = re.sub(r"```.*?```|<!--.*?-->", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    running = [line for line in text.splitlines() if re.match(r"[A-Z`\[]", line) and not line.startswith("|")]
    wrapped = [line for line in running if not re.search(r"[.:;?!)…]$", line) and " " in line]
    several = [line for line in running if re.search(r"[a-z)`]\. [A-Z]", re.sub(r"`[^`]*`|e\.g\.", "", line))]
    assert wrapped + several == []


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock", "requirements-bench.lock"])
def test_locks_name_no_source(name: str) -> None:
    """Where packages come from is the installing machine's affair; what they are is fixed by hashes."""
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"--(find-links|index-url|extra-index-url|trusted-host)", text)
    assert "--hash=sha256:" in text


def test_tasks_live_in_groups() -> None:
    """No task is made that nobody waits for."""
    found = []
    for path, tree in SOURCES.items():
        for node in ast.walk(tree):
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            bare = (
                name == "create_task"
                and isinstance(node, ast.Attribute)
                and ast.unparse(node.value) in {"asyncio", "loop"}
            )
            if name in FORBIDDEN or bare or (name == "create_task" and isinstance(node, ast.Name)):
                found.append(f"{path.relative_to(ROOT)}: {ast.unparse(node)}")
    assert found == []


def test_tasks_have_names() -> None:
    """Every task can be told apart in a dump."""
    calls = [
        (path, node)
        for path, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "create_task"
    ]
    assert calls
    unnamed = [ast.unparse(node) for _, node in calls if not any(word.arg == "name" for word in node.keywords)]
    assert unnamed == []


@pytest.mark.parametrize("name", MODULES)
def test_public_names_are_listed_and_described(name: str) -> None:
    """A module says what is public, sorted; each such class and function has a docstring, its public methods too."""
    module = importlib.import_module(name)
    assert module.__doc__
    listed = list(getattr(module, "__all__", []))
    if not hasattr(module, "__path__"):
        assert listed, f"{name} has no __all__"
    # Ruff's order (RUF022): constants, classes, the rest; each sorted.
    assert listed == sorted(listed, key=lambda one: (0 if one.isupper() else 1 if one[0].isupper() else 2, one))
    undescribed = []
    for one in listed:
        value = getattr(module, one)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        members = [
            (f"{one}.{member}", code)
            for member, code in (vars(value).items() if inspect.isclass(value) else ())
            if not member.startswith("_")
            and (inspect.isfunction(code) or isinstance(code, (property, classmethod, staticmethod)))
        ]
        undescribed += [label for label, code in [(one, value), *members] if not getattr(code, "__doc__", None)]
    assert undescribed == []
