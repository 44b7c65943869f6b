"""A matplotlib figure as SVG that can stand with others inside one page and follow its light or dark scheme."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simkit.report.palette import FAINT, GRID, INK, PARTS

WIDTH_IN, HEIGHT_IN = 4.9, 2.9  # small enough that text stays readable when a phone shrinks it to 3.8 in

# matplotlib types this by the names of all its settings since 3.11, by str before
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: searchable, small, in the reader's font
    "svg.hashsalt": "simkit",  # ids do not change from run to run
    "font.size": 9.0,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": FAINT,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "lines.linewidth": 1.6,
}
_VARIABLES = {INK: "--ink", FAINT: "--faint", GRID: "--grid"} | {c: f"--part-{n}" for n, c in PARTS.items()}


@contextmanager
def panel(title: str) -> Iterator[tuple[Figure, Axes]]:
    """A figure with one empty panel, to be drawn and turned to SVG inside the `with` block."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the reader's own matplotlibrc must not change a report
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title)
        yield figure, axes


def to_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an `<svg>` element whose ids start with `name`, unique in the page; `description` is read aloud."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return inline(buffer.getvalue(), name, description)


def inline(document: str, name: str, description: str) -> str:
    """An SVG document made fit to stand inside a page: no prolog, no size, own ids, colours as CSS variables."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]*)"', svg)
    opening = f'<svg viewBox="{box[1] if box else "0 0 1 1"}" role="img" aria-label="{escape(description)}">'
    svg = opening + svg[svg.index(">") + 1 :]
    svg = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'(?:xlink:)?href="#([^"]*)"', rf'href="#{name}-\1"', svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(f": {colour}", f": var({variable})")
    # a hundredth of a point is more than a screen shows, and a third of the bytes
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"\d+\.\d{3,}", lambda n: f"{float(n[0]):.2f}", path[0]), svg)
    return re.sub(r"\n\s*", "\n", svg).strip()
