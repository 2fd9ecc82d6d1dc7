"""The Dockerfile's steps without Docker, and the image's commands with its environment, as an unprivileged user.

The builder's steps run as they stand, in a folder that stands for the root of the file system: absolute paths of the
Dockerfile become paths in it. What needs root, and the base image, are not run. The rest of the file system is made
read-only, as compose.yaml has it.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from servers import free_ports, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
USER = 10001
READY_WITHIN_S = 60.0
OF_THE_IMAGE = re.compile(r"(?<![\w./])/(opt/tickvault|build|data|run/tickvault)\b")


def dockerfile() -> list[list[tuple[str, str]]]:
    """Return the stages, each the instructions behind its FROM."""
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8")).replace("\\\n", " ")
    stages: list[list[tuple[str, str]]] = []
    for line in filter(str.strip, text.splitlines()):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            stages.append([])
        else:
            stages[-1].append((word, rest.strip()))
    return stages


def in_context(path: str) -> bool:
    """Tell whether .dockerignore lets a file into the build: the last pattern that fits it or a folder of it decides."""
    parts = path.split("/")
    parents = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    kept = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        subjects = parts if "**/" in line else parents
        if line and not line.startswith("#") and any(fits(subject, pattern) for subject in subjects):
            kept = line.startswith("!")
    return kept


def fits(path: str, pattern: str) -> bool:
    return path.count("/") == pattern.count("/") and fnmatch.fnmatchcase(path, pattern)


USABLE = "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))"


def python_and_user() -> tuple[str, dict[str, Any]]:
    """Return a Python and, for root, the arguments that make a subprocess another user's who may run that Python.

    Root's own Python can lie in a folder that nobody else may enter; without any other one, the steps are run as root.
    """
    own = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    own = own if own.exists() else Path(sys.executable)
    if os.geteuid() != 0:
        return str(own), {}
    other = {"user": USER, "group": USER, "extra_groups": []}
    for candidate in (str(own), "/usr/bin/python3", "/usr/local/bin/python3"):
        with contextlib.suppress(OSError):
            if subprocess.run([candidate, "-c", USABLE], cwd="/", stderr=subprocess.DEVNULL, **other).returncode == 0:
                return candidate, other
    return str(own), {}


def set_writable(folder: Path, *, writable: bool) -> None:
    """Give or take the right to write to everything below a folder, and to the folder."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            mode = stat.S_IMODE(path.stat().st_mode)
            path.chmod(mode | stat.S_IWUSR if writable else mode & ~0o222)


class Image:
    """What the Dockerfile describes, below a folder.

    Attributes:
        root: stands for `/`.
        env: what ENV of the final stage sets.
        command: entrypoint and default command; `health`: the health check.
        as_user: makes a subprocess the unprivileged user's.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.context = root / "context"
        self._copy_context()
        (root / "tmp").mkdir(mode=0o777)
        python, self.as_user = python_and_user()
        (root / "bin").mkdir()
        (root / "bin/python").write_text(f'#!/bin/sh\nexec {python} "$@"\n')
        (root / "bin/python").chmod(0o755)
        self.own(root)
        builder, final = dockerfile()
        for word, text in builder:
            self._step(word, text)
        self.env = {}
        for word, text in final:
            if word == "ENV":
                assigned = dict(item.split("=", 1) for item in shlex.split(text))
                self.env |= {
                    name: self.here(value.replace("$PATH", "/bin:/usr/bin")) for name, value in assigned.items()
                }
        self._copy_final([text for word, text in final if word == "COPY"])
        last = dict(final)
        self.entrypoint: list[str] = json.loads(last["ENTRYPOINT"])
        self.command = self.entrypoint + json.loads(last["CMD"])
        self.health = [self.here(word) for word in json.loads(last["HEALTHCHECK"].partition("CMD ")[2])]

    def here(self, text: str) -> str:
        """Put the image's absolute paths below our root."""
        return OF_THE_IMAGE.sub(lambda found: f"{self.root}{found[0]}", text)

    def own(self, *paths: Path) -> None:
        """Give files to the unprivileged user."""
        if self.as_user:
            for path in (one for top in paths for one in (top, *top.rglob("*"))):
                os.chown(path, USER, USER, follow_symlinks=False)

    def build(self, command: str, cwd: Path) -> None:
        """Run a step of the build, with the machine's pip settings and a cache that the module's venvs share."""
        env = {name: value for name, value in os.environ.items() if name not in {"VIRTUAL_ENV", "PYTHONPATH"}}
        env |= {"PATH": f"{self.root}/bin:{os.environ['PATH']}", "HOME": str(self.root)}
        env |= {"PIP_CACHE_DIR": str(self.root / "cache"), "TMPDIR": str(self.root / "tmp")}
        done = subprocess.run(
            ["sh", "-ec", command], cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=500,
            **self.as_user,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout.decode(errors="replace")[-4000:]

    def _copy_context(self) -> None:
        # What is not under these is excluded by the first line; walking .venv to learn that takes long.
        for top in (*ROOT.glob("*"), *ROOT.glob(".env*")):
            if top.name.startswith(".") and top.is_dir():
                continue
            for path in (one for one in (top, *top.rglob("*")) if one.is_file()):
                relative = path.relative_to(ROOT)
                if in_context(relative.as_posix()):
                    (self.context / relative).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, self.context / relative)

    def _step(self, word: str, text: str) -> None:
        match word:
            case "WORKDIR":
                self._workdir = Path(self.here(text))
                self._workdir.mkdir(parents=True)
                (self.root / "opt").mkdir(exist_ok=True)
                self.own(self._workdir, self.root / "opt")
            case "COPY":
                *sources, _ = text.split()
                for source in sources:
                    if source == ".":
                        shutil.copytree(self.context, self._workdir, dirs_exist_ok=True)
                    else:
                        shutil.copy(self.context / source, self._workdir)
                self.own(self._workdir)
            case "RUN":
                self.build(self.here(text), self._workdir)
            case "ENV":
                assert all(name.startswith("PIP_") for name in re.findall(r"(\w+)=", text)), (
                    "only pip's, which we replace"
                )
            case _:
                pytest.fail(f"the builder has a step that this test does not know: {word} {text}")

    def _copy_final(self, copies: Sequence[str]) -> None:
        for text in copies:
            *sources, target = text.split()
            if sources[0].startswith("--from="):
                assert sources[1:] == [target], "the venv stays at its path"
                assert Path(self.here(target)).is_dir()
            else:
                Path(self.here(target)).mkdir(parents=True)
                for source in sources:
                    shutil.copy(self.context / source, self.here(target))


class Container:
    """One data folder, and commands of the image run on it with nothing in the environment but what is said here."""

    def __init__(self, image: Image, folder: Path, env: Mapping[str, str]) -> None:
        self.image = image
        self.folder = folder
        self.env = {**image.env, "HOME": str(folder), "TICKVAULT_DATA_DIR": str(folder / "data"), **env}

    def run(self, command: Sequence[str], timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._found(command), env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=timeout,
            **self.image.as_user,
        )  # fmt: skip

    @contextlib.contextmanager
    def running(self, command: Sequence[str], log: str) -> Iterator[subprocess.Popen[bytes]]:
        with (self.folder / log).open("wb") as out:
            process = subprocess.Popen(
                self._found(command),
                env=self.env,
                cwd=self.folder,
                stdout=out,
                stderr=subprocess.STDOUT,
                **self.image.as_user,
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    def said(self, log: str) -> str:
        return (self.folder / log).read_text(encoding="utf-8", errors="replace")

    def healthy(self) -> bool:
        return self.run(self.image.health).returncode == 0

    def _found(self, command: Sequence[str]) -> list[str]:
        program = shutil.which(command[0], path=self.env["PATH"])
        assert program is not None, command
        return [program, *command[1:]]


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """Build once a module, in a folder that another user can reach."""
    root = Path(tempfile.mkdtemp(prefix="tickvault-image-"))
    root.chmod(0o755)
    try:
        built = Image(root)
        set_writable(root / "opt", writable=False)
        yield built
    finally:
        if (root / "opt").exists():
            set_writable(root / "opt", writable=True)
        shutil.rmtree(root)


@pytest.fixture
def folder(image: Image) -> Path:
    """Return a fresh folder of the unprivileged user."""
    one = Path(tempfile.mkdtemp(dir=image.root))
    image.own(one)
    return one


@contextlib.contextmanager
def simulator(container: Container, command: Sequence[str] = ("tickvault", "simulate")) -> Iterator[dict[str, str]]:
    """Run a simulator on a free port; yield the settings with which compose.yaml's demo points at one."""
    demo = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]["demo"]["environment"]
    with container.running([*command, "--port", "0"], "simulator.log"):
        wait_until(
            lambda: "simulator listening on " in container.said("simulator.log"),
            f"the simulator listens: {container.folder}/simulator.log",
            READY_WITHIN_S,
        )
        found = re.search(r"listening on (\S+)", container.said("simulator.log"))
        assert found is not None
        yield {
            name: text.replace("http://127.0.0.1:8765", found[1]) for name, text in demo.items() if "8765" in text
        } | {"TICKVAULT_SINKS": demo["TICKVAULT_SINKS"]}


def frames(container: Container) -> int:
    """Count what is journalled; a recorder that has just started may not have a journal yet."""
    done = container.run(["tickvault", "journal", "stats", "--json"])
    if "nothing is recorded" in done.stderr:
        return 0
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["frames"])


def status_code(url: str, token: str = "") -> int:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as exc:
        exc.close()
        return exc.code


def test_the_build_sees_only_what_it_needs(image: Image) -> None:
    """Neither `.env` nor data, tests or caches are in the context; what the package is made of is."""
    found = {path.relative_to(image.context).as_posix() for path in image.context.rglob("*") if path.is_file()}
    tops = {path.split("/")[0] for path in found}
    assert tops <= {"LICENSE", "README.md", "pyproject.toml", "requirements.lock", "src", "deploy"}
    assert {"src/tickvault/cli.py", "deploy/healthcheck.py", "requirements.lock"} <= found
    assert not [path for path in found if "__pycache__" in path or path.endswith((".pyc", ".yaml"))]
    for private in (
        ".env",
        "data/journal/1.db",
        "deploy/secrets/token",
        "src/tickvault/__pycache__/cli.pyc",
        ".git/config",
    ):
        assert not in_context(private), private


def test_the_entrypoint_is_the_program(image: Image, folder: Path) -> None:
    """Its arguments are those of `docker run`."""
    done = Container(image, folder, {}).run([*image.entrypoint, "--version"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tickvault ")


def test_without_settings_it_says_what_to_set(image: Image, folder: Path) -> None:
    """`docker run` of the image as it is ends with 2 and names token and instruments."""
    done = Container(image, folder, {}).run(image.command)
    assert done.returncode == 2
    assert "UPSTOX_ACCESS_TOKEN" in done.stderr
    assert "TICKVAULT_INSTRUMENTS" in done.stderr


def test_it_records_for_a_time(image: Image, folder: Path) -> None:
    """The default command with a duration ends with 0 and has recorded into the data folder only."""
    with simulator(Container(image, folder, {})) as demo:
        (port,) = free_ports(1)
        container = Container(image, folder, {**demo, "TICKVAULT_HTTP": f"127.0.0.1:{port}"})
        done = container.run([*image.command, "--duration", "5"])
        assert done.returncode == 0, done.stderr
        assert frames(container) > 0
        assert list((folder / "data/parquet/ticks").rglob("*.parquet"))
    assert {path.name for path in folder.iterdir()} == {"data", "simulator.log"}


def test_health_follows_the_recorder(image: Image, folder: Path) -> None:
    """Unhealthy before it runs, healthy while it does, unhealthy after SIGTERM, at which it ends with 0."""
    with simulator(Container(image, folder, {})) as demo:
        (port,) = free_ports(1)
        container = Container(image, folder, {**demo, "TICKVAULT_HTTP": f"127.0.0.1:{port}"})
        assert not container.healthy()
        with container.running(image.command, "recorder.log") as process:
            wait_until(container.healthy, f"the recorder is healthy: {folder}/recorder.log", READY_WITHIN_S)
            wait_until(lambda: frames(container) > 0, f"it records: {folder}/recorder.log", READY_WITHIN_S)
            process.terminate()
            assert process.wait(45) == 0, container.said("recorder.log")
        assert not container.healthy()


def test_with_compose_secrets_only_health_is_open(image: Image, folder: Path) -> None:
    """The drawn token opens the status server, is what `status` uses, and the health check needs none."""
    secrets = folder / "secrets"
    secrets.mkdir()
    image.own(secrets)
    drawn = Container(image, folder, {}).run(
        ["python", image.here("/opt/tickvault/deploy/make_secrets.py"), str(secrets)]
    )
    assert drawn.returncode == 0, drawn.stderr
    with simulator(Container(image, folder, {})) as demo:
        (port,) = free_ports(1)
        http = {"TICKVAULT_HTTP": f"127.0.0.1:{port}", "TICKVAULT_HTTP_TOKEN_FILE": str(secrets / "http-token")}
        container = Container(image, folder, {**demo, **http})
        with container.running(image.command, "recorder.log") as process:
            wait_until(container.healthy, f"the recorder is healthy: {folder}/recorder.log", READY_WITHIN_S)
            token = (secrets / "http-token").read_text()
            url = f"http://127.0.0.1:{port}/api/status"
            assert (status_code(url), status_code(url, token)) == (401, 200)
            shown = container.run(["tickvault", "status", "--json"])
            assert shown.returncode == 0, shown.stderr
            assert token not in shown.stdout + shown.stderr
            process.terminate()
            assert process.wait(45) == 0, container.said("recorder.log")
        assert token not in container.said("recorder.log")


def test_without_a_status_server_health_is_the_lock(image: Image, folder: Path) -> None:
    """TICKVAULT_HTTP=off: healthy while the recorder holds its folder."""
    with simulator(Container(image, folder, {})) as demo:
        container = Container(image, folder, {**demo, "TICKVAULT_HTTP": "off"})
        with container.running(image.command, "recorder.log") as process:
            wait_until(container.healthy, f"the recorder is healthy: {folder}/recorder.log", READY_WITHIN_S)
            wait_until(lambda: frames(container) > 0, f"it records: {folder}/recorder.log", READY_WITHIN_S)
            process.terminate()
            assert process.wait(45) == 0, container.said("recorder.log")


def test_pip_install_alone_gives_the_program(image: Image, folder: Path) -> None:
    """`pip install .` into an empty venv, from a copy without .git: version, simulate, run and demo."""
    source = folder / "copy"
    shutil.copytree(image.context, source)
    image.own(source)
    assert not (source / ".git").exists()
    image.build(f"python -m venv {folder}/venv && {folder}/venv/bin/python -m pip install --quiet .", source)
    work = folder / "work"
    work.mkdir()
    image.own(work)
    (port,) = free_ports(1)
    env = {"PATH": f"{folder}/venv/bin:/bin:/usr/bin", "TICKVAULT_HTTP": f"127.0.0.1:{port}"}
    installed = Container(image, work, env)
    assert installed.run(["tickvault", "--version"]).stdout.startswith("tickvault ")
    with simulator(installed) as demo:
        recorder = Container(image, work, {**env, **demo})
        done = recorder.run(["tickvault", "run", "--duration", "5"])
        assert done.returncode == 0, done.stderr
        assert frames(recorder) > 0
    shown = Container(image, work, {**env, "TICKVAULT_DATA_DIR": ""}).run(["tickvault", "demo", "--duration", "5"])
    assert shown.returncode == 0, shown.stderr
    asked = installed.run(
        ["tickvault", "query", "--data-dir", "demo-data", "--format", "csv", "SELECT count(*) FROM ticks"]
    )
    assert asked.returncode == 0, asked.stderr
    assert int(asked.stdout.split()[-1]) > 0
