"""A file system of a few MB, really full: code that runs on it, in a process of its own.

A tmpfs in a name space of its own needs no rights on most kernels (`unshare -rm`); where that is forbidden but we are
root, as in a plain container, the same without a user name space, or a plain mount, does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
_MOUNT = 'mount -t tmpfs -o size="$1" tickvault "$2" && shift 2 && exec "$@"'
_WAYS = (("unshare", "-rm"), ("unshare", "-m"), ())


def on_small_disk(place: Path, size: str, module: str, *words: str, within_s: float = 100) -> str:
    """Run `python -m module place words…` with a tmpfs of `size` mounted at `place`; return what it prints."""
    place.mkdir(exist_ok=True)
    environ = {**os.environ, "PYTHONPATH": str(TESTS)}
    said = []
    for way in _WAYS:
        ready = [*way, "sh", "-c", _MOUNT, "sh", size, str(place)]
        tried = subprocess.run([*ready, "true"], capture_output=True, text=True, check=False)
        if not way and tried.returncode == 0:
            subprocess.run(["umount", str(place)], check=True)
        if tried.returncode != 0:
            said.append(tried.stderr)
            continue
        try:
            done = subprocess.run(
                [*ready, sys.executable, "-m", module, str(place), *words],
                capture_output=True, text=True, check=False, timeout=within_s, env=environ,
            )  # fmt: skip
        finally:
            if not way:
                subprocess.run(["umount", str(place)], check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    raise AssertionError(f"no small file system can be had here: {said}")
