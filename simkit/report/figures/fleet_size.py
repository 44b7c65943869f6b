"""A fleet over time: replicas that serve, and those that are paid for."""

from collections.abc import Sequence

from matplotlib.ticker import MaxNLocator

from simkit.report.figures.axes import elapsed, plain_numbers
from simkit.report.figures.svg import panel, to_svg
from simkit.report.palette import PARTS
from simkit.report.units import count, seconds


def fleet_size(at_s: Sequence[float], serving: Sequence[float], paid_for: Sequence[float], end_s: float) -> str:
    """An SVG of two step lines: each number holds from its time in `at_s`, ascending, to the next or to `end_s`."""
    with panel("Replicas") as (figure, axes):
        scale_s, _ = elapsed(axes.xaxis, end_s)
        x = [*(at / scale_s for at in at_s), end_s / scale_s]
        for label, values, colour in (("paid for", paid_for, PARTS["queue"]), ("serving", serving, PARTS["decode"])):
            axes.step(x, [*values, values[-1]], where="post", color=colour, label=label, linewidth=1.1)
        axes.set_xlim(0, end_s / scale_s)
        plain_numbers(axes.yaxis)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_ylim(0, max(paid_for) * 1.25)  # room for the legend
        axes.set_ylabel("replicas")
        axes.legend(loc="upper left", ncols=2)
        said = f"{count(min(serving))} to {count(max(serving))} serving, at most {count(max(paid_for))} paid for"
        return to_svg(figure, "fleet-size", f"Replicas over {seconds(end_s)}: {said}")
