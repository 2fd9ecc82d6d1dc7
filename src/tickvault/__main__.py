"""The process `tickvault`: what must be settled before Arrow is loaded, then the command line."""

from __future__ import annotations

import os
import sys

__all__ = ["arrange", "main"]


def arrange() -> None:
    """Have Arrow take its memory where Python does, and leave out what nobody here uses.

    Its Parquet writer takes from the pool that Arrow finds when it is loaded, whatever is set later, and a second pool
    keeps room of its own: 20 MB for the first file. The client of Amazon's store, which `pyarrow.fs` can do without,
    takes 3 MB.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    sys.modules.setdefault("pyarrow._s3fs", None)  # type: ignore[arg-type]


def main() -> None:
    """Run the command line."""
    arrange()
    from tickvault.cli import main as command  # it loads Arrow

    command()


if __name__ == "__main__":
    main()
