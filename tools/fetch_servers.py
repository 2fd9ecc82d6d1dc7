"""Fetch the real servers that the tests run against, and strace, without root and without installing anything.

Debian's own packages, checked by apt against the archive's signatures, are unpacked into `.servers/`, which git ignores.
Nothing is started. Run it as often as you like: a server that is there is left alone.

A server that cannot be had is said loudly and the tests that need it are skipped. With `CI=true` it is an error, so
that a green build always means that they ran.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

SERVERS_DIR: Final = Path(__file__).resolve().parent.parent / ".servers"

# Package → the binary in it, which is also the name the tests use.
BINARIES: Final = {
    "influxdb": "usr/bin/influxd",
    "victoria-metrics": "usr/bin/victoria-metrics",
    "nats-server": "usr/sbin/nats-server",
    "prometheus": "usr/bin/prometheus",
    "strace": "usr/bin/strace",
    "libunwind8": f"usr/lib/{platform.machine()}-linux-gnu/libunwind.so.8",  # what strace needs besides
}

# One stuck mirror must not hold up `make test` for ever; the largest package has 25 MB.
_STEP_TIMEOUT_S: Final = 300


class FetchError(Exception):
    """A package could not be fetched or unpacked; the text is the tool's last words."""


def binary_path(package: str) -> Path:
    """Return where the package's server is once fetched."""
    return SERVERS_DIR / package / BINARIES[package]


def fetch(package: str, apt: Path) -> str:
    """Make the package's server available and return what was done, in a few words.

    Args:
        package: a name of BINARIES.
        apt: folder for package lists of our own, refreshed by the first who needs them.

    Raises:
        FetchError: apt or dpkg-deb failed or is missing.
    """
    if binary_path(package).is_file():
        return "already there"
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=SERVERS_DIR) as folder:
        work = Path(folder)
        _unpack(_download(package, work, apt), package, work / "tree")
    return "fetched"


def _download(package: str, work: Path, apt: Path) -> Path:
    # Run by root, apt would drop to the user `_apt`, who may not write to our folder; for others it changes nothing.
    common = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3"]
    try:
        return _apt_download([*common, "download", package], work)
    except FetchError:
        # The machine has no package lists or stale ones, and only root may refresh them. Lists of our own need no
        # root and leave the machine as it was.
        private = [*common, *_private_lists(apt)]
        refreshed = _refresh(private, apt)
        try:
            return _apt_download([*private, "download", package], work)
        except FetchError as exc:
            raise FetchError(f"{exc} (apt-get update: {refreshed})") from exc


def _refresh(private: list[str], apt: Path) -> str:
    """Run `apt-get update` once per run of this tool and return its complaints."""
    said = apt / "update.said"
    if not said.exists():
        said.write_text(_run([*private, "update"], apt).stderr.strip()[-300:] or "fine")
    return said.read_text()


def _apt_download(command: list[str], work: Path) -> Path:
    done = _run(command, work)
    found = sorted(work.glob("*.deb"))
    if done.returncode != 0 or not found:
        raise FetchError(done.stderr.strip()[-300:] or f"{command[0]} said nothing, exit {done.returncode}")
    return found[0]


def _unpack(deb: Path, package: str, tree: Path) -> None:
    done = _run(["dpkg-deb", "-x", str(deb), str(tree)], deb.parent)
    if done.returncode != 0 or not (tree / BINARIES[package]).is_file():
        raise FetchError(f"{deb.name} holds no {BINARIES[package]}: {done.stderr.strip()[-300:]}")
    shutil.rmtree(SERVERS_DIR / package, ignore_errors=True)
    # A rename is what makes the folder count: an interrupted run leaves none under this name.
    tree.rename(SERVERS_DIR / package)


def _private_lists(folder: Path) -> list[str]:
    (folder / "lists/partial").mkdir(parents=True, exist_ok=True)
    (folder / "cache/archives/partial").mkdir(parents=True, exist_ok=True)
    return ["-o", f"Dir::State::Lists={folder / 'lists'}", "-o", f"Dir::Cache={folder / 'cache'}"]


def _run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=_STEP_TIMEOUT_S, check=False
        )
    except FileNotFoundError as exc:
        raise FetchError(f"{command[0]} is not on this machine (Debian or Ubuntu is needed)") from exc
    except subprocess.TimeoutExpired as exc:
        raise FetchError(f"{command[0]} took longer than {_STEP_TIMEOUT_S} s") from exc


def main(packages: list[str]) -> int:
    """Fetch the packages named, or all; return the exit code."""
    if unknown := set(packages) - set(BINARIES):
        print(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(BINARIES)}", file=sys.stderr)
        return 2
    missing = 0
    SERVERS_DIR.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".apt-", dir=SERVERS_DIR) as apt:
        for package in packages or BINARIES:
            try:
                print(f"{package}: {fetch(package, Path(apt))}")
            except FetchError as exc:
                missing += 1
                print(f"!!! {package} CANNOT BE HAD, ITS TESTS WILL NOT RUN: {exc}", file=sys.stderr)
    return 1 if missing and os.environ.get("CI") == "true" else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
