"""`tickvault disk`: what the data folder takes, what a day brings, and when the disk is full."""

from __future__ import annotations

import datetime as dt
import shutil
from pathlib import Path

from tickvault import render, usage
from tickvault.commands.options import AsJson, Config, DataDir, EnvFile, settings_of
from tickvault.datafolder import recorded
from tickvault.model import IST

__all__ = ["disk"]


def disk(
    as_json: AsJson = False, data_dir: DataDir = None, config: Config = None, env_file: EnvFile = Path(".env")
) -> None:
    """Show what each store takes, and when the disk is full."""
    settings = settings_of(data_dir, config, env_file)
    folder = recorded(settings.data_dir)
    reserve = settings.disk_reserve.of(shutil.disk_usage(folder).total)
    today = dt.datetime.now(IST).date()
    one = usage.measure(folder, retain_s=settings.retain_s, reserve=reserve, today=today)
    if as_json:
        render.dump_json(
            {
                "stores": one.stores,
                "days": {date.isoformat(): sizes for date, sizes in one.days.items()},
                "bytes_a_day": one.a_day,
                "free_bytes": one.free,
                "total_bytes": one.total,
                "reserve_bytes": one.reserve,
                "full_on": one.full_on,
            }
        )
        return
    render.table(
        ("store", "MB", "MB a day"),
        [(name, _mb(size), _mb(one.a_day[name]) if name in one.a_day else "") for name, size in one.stores.items()],
    )
    render.table(
        ("date", "journal MB", "parquet MB"),
        [(date, _mb(sizes.get("journal", 0)), _mb(sizes.get("parquet", 0))) for date, sizes in one.days.items()],
    )
    when = "not within ten years" if one.full_on is None else one.full_on.isoformat()
    render.columns(
        [
            ("free", f"{_mb(one.free)} of {_mb(one.total)} MB, reserve {_mb(one.reserve)} MB"),
            ("full", f"{when}, growing as lately and with {settings.retain_s / 86_400:g} days of the journal kept"),
        ]
    )


def _mb(size: float) -> str:
    return f"{size / 1e6:,.1f}"
