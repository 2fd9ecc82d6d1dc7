"""Curves as small pictures."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Curve", "draw"]

_INCHES: Final = (3.2, 2.4)  # of one figure
_DOTS_PER_INCH: Final = 90
_BLUE: Final = "#1f6fb2"
_COLUMNS: Final = 3


@dataclass(frozen=True, slots=True)
class Curve:
    """What was measured along one axis.

    Attributes:
        name: of the picture's file.
        across: what the axis counts.
        points: where on it.
        figures: by what and in which unit, one a point.
        logarithmic: the axis is.
    """

    name: str
    across: str
    points: Sequence[int]
    figures: dict[str, list[float]]
    logarithmic: bool


def draw(curve: Curve, folder: Path) -> None:
    """Write the curve's picture: a panel a figure, each from zero on, so that flat looks flat."""
    sys.path.append(str(Path("build/peers").resolve()))
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    columns = min(_COLUMNS, len(curve.figures))
    lines = -(-len(curve.figures) // columns)
    size = (_INCHES[0] * columns, _INCHES[1] * lines)
    whole, panels = plt.subplots(lines, columns, figsize=size, dpi=_DOTS_PER_INCH, squeeze=False, layout="constrained")
    for panel, (name, of) in zip(panels.flat, curve.figures.items(), strict=False):
        panel.plot(curve.points, of, marker="o", markersize=4, color=_BLUE)
        panel.set_title(name, fontsize=9)
        panel.set_ylim(0, max(of) * 1.25)
        panel.grid(alpha=0.3)
        panel.tick_params(labelsize=8)
        if curve.logarithmic:
            panel.set_xscale("log")
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    for panel in panels[-1]:
        panel.set_xlabel(curve.across, fontsize=8)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{curve.name}.png"
    whole.savefig(path, metadata={"Software": None})
    plt.close(whole)
    Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE, colors=32).save(path, optimize=True)
