"""One colour a meaning, the same in every figure, told apart by colour-blind readers.

Hues: Okabe and Ito, "Color Universal Design" (2008), https://jfly.uni-koeln.de/color/, with grey for the host.
A figure is drawn in the light colours; each becomes a CSS variable in the page, where the dark scheme changes it.
"""

PARTS = {  # the parts of a request's waterfall
    "front_end": "#c8b400",
    "queue": "#e69f00",
    "prefill": "#0072b2",
    "decode": "#009e73",
    "stalled": "#cc79a7",
    "preempted": "#d55e00",
    "host": "#8a8f98",
    "transfer": "#56b4e9",
}
PART_MEANING = {
    "front_end": "HTTP, tokenisation and hand-over between processes, there and back",
    "queue": "waiting to be admitted for the first time",
    "prefill": "its prompt being computed",
    "decode": "its own output tokens being computed",
    "stalled": "admitted, but others' prefill held the device",
    "preempted": "thrown out for lack of KV blocks, until recomputed",
    "host": "the device waited for the host",
    "transfer": "its KV on a link, from prefill to decode or from a slower tier",
}
PART_NAME = {part: part.replace("_", " ") for part in PARTS}
INK = "#1b1c1d"
FAINT = "#6a6d72"
GRID = "#dcdddf"
DARK_PARTS = {
    "front_end": "#f0e442",
    "queue": "#f0b429",
    "prefill": "#4ba3e3",
    "decode": "#2fc79a",
    "stalled": "#e39cc4",
    "preempted": "#f0814a",
    "host": "#9aa0a8",
    "transfer": "#9fd5f5",
}

METRIC = {"ttft": PARTS["prefill"], "tpot": PARTS["decode"], "itl": PARTS["decode"], "e2e": INK}


def css_variables(colours: dict[str, str]) -> str:
    """CSS declarations `--part-NAME: COLOUR;` of a scheme."""
    return " ".join(f"--part-{name}: {colour};" for name, colour in colours.items())
