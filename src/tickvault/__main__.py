"""The process `tickvault`: what must be settled before Arrow is loaded, then the command line."""

from __future__ import annotations

import os

__all__ = ["arrange", "main"]


def arrange() -> None:
    """Have Arrow take its memory where Python does.

    Its Parquet writer takes from the pool that Arrow finds when it is loaded, whatever is set later, and a second pool
    keeps room of its own: 20 MB for the first file.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


def main() -> None:
    """Run the command line."""
    arrange()
    from tickvault.cli import main as command  # it loads Arrow

    command()


if __name__ == "__main__":
    main()
