"""tickvault records a broker's live market data feed and loses none of it."""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("tickvault")
