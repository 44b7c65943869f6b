"""The lab's figures: a few lines over logarithmic axes, measured solid, predicted dashed."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito


class Line(NamedTuple):
    """One line; a predicted one takes the colour of the line before it."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    predicted: bool = False
    faint: bool = False


def draw(path: str, title: str, x: str, y: str, lines: Sequence[Line], from_zero: bool = False) -> None:
    """Write an SVG whose bytes depend on the data alone."""
    with matplotlib.rc_context({"svg.hashsalt": "lab", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(5.6, 3.4), layout="constrained")
        axes = figure.add_subplot(title=title, xlabel=x, ylabel=y)
        axes.set_xscale("log", base=2)
        if from_zero:
            axes.set_ylim(bottom=0, top=1.2 * max(max(line.y) for line in lines))
        else:
            axes.set_yscale("log", base=2)
        colour = -1
        for line in lines:
            colour += 0 if line.predicted else 1
            style = "--" if line.predicted else ":" if line.faint else "-"
            marker = "" if line.predicted or line.faint else "o"
            axes.plot(line.x, line.y, style, marker=marker, markersize=3.5, color=COLOURS[colour % 6], label=line.label)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.grid(color="#dcdddf", linewidth=0.6)
        axes.legend(fontsize=8, frameon=False)
        figure.savefig(Path(path), metadata={"Date": None, "Creator": None})
