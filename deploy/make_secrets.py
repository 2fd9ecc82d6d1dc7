"""Write the secrets that the containers of compose.yaml share: `make_secrets.py FOLDER`.

One that the environment gives is written down; one that it does not give, or gives as a template's placeholder, is
drawn once and then kept. So a fresh clone needs no preparation, and no secret of it is known to anybody.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from tickvault.settings import is_placeholder

# File → name in the environment.
GIVEN = {
    "influx-token": "INFLUX_TOKEN",
    "influx-password": "DOCKER_INFLUXDB_INIT_PASSWORD",
    "http-token": "TICKVAULT_HTTP_TOKEN",
}
# The containers that read them have different users; only they have the volume.
MODE = 0o444


def write(path: Path, text: str) -> None:
    """Write the file whole or not at all."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), MODE)
        file.write(text)
    fresh.replace(path)


def main(folder: Path) -> None:
    """Bring every secret into being."""
    for name, variable in GIVEN.items():
        path = folder / name
        given = os.environ.get(variable, "").strip()
        if given and not is_placeholder(given):
            write(path, given)
        elif not path.exists():
            write(path, secrets.token_urlsafe(32))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
