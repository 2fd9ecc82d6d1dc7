"""What the user set: names → one typed, frozen tree.

Four steps, each a module: read the layers (`layers`: the only I/O, and the environment is an argument); settle which
text each setting has (`precedence`); let pydantic-settings give the texts their types (`values`); build the tree, with
what follows from several settings at once (`loading`). SETTINGS (`table`) drives all of them, and
docs/reference/settings.md. A folder, since its parts say nothing without one another.
"""

from tickvault.settings.demands import check_plaintext, plain_hosts, require_recordable
from tickvault.settings.loading import load_settings
from tickvault.settings.precedence import is_placeholder
from tickvault.settings.table import SETTINGS, Setting
from tickvault.settings.tree import (
    Compact,
    DiskFull,
    DiskReserve,
    HttpSettings,
    InfluxApi,
    InfluxLayout,
    InfluxSettings,
    LogFormat,
    LogLevel,
    NotifySettings,
    Settings,
    UpstoxSettings,
)
from tickvault.settings.values import parse_list

__all__ = [
    "SETTINGS",
    "Compact",
    "DiskFull",
    "DiskReserve",
    "HttpSettings",
    "InfluxApi",
    "InfluxLayout",
    "InfluxSettings",
    "LogFormat",
    "LogLevel",
    "NotifySettings",
    "Setting",
    "Settings",
    "UpstoxSettings",
    "check_plaintext",
    "is_placeholder",
    "load_settings",
    "parse_list",
    "plain_hosts",
    "require_recordable",
]
