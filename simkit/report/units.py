"""Numbers as people read them: three significant digits and a unit, in one place."""

import math
from numbers import Real

MISSING = "—"

_TIME = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_SIZE = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))


def significant(value: float) -> str:
    """`value` to 3 significant digits, never in exponent form below 1e15; thousands are grouped.

    >>> significant(0.012345), significant(9.999), significant(12345.6)
    ('0.0123', '10.0', '12,346')
    """
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.3g}"
    rounded = float(f"{value:.3g}")
    decimals = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:.{decimals}f}"


def seconds(value_s: float | None) -> str:
    """A duration in s as `12.3 ms`, `4.56 s`, `3 min 20 s` or `2 h 5 min`; a dash where it is not known."""
    if value_s is None or not math.isfinite(value_s):
        return MISSING
    if value_s == 0:
        return "0 s"
    size = abs(value_s)
    if size >= 119.5:
        sign, whole = "-" if value_s < 0 else "", round(size)
        if whole >= 7200:
            return f"{sign}{whole // 3600:,} h {whole % 3600 // 60} min"
        return f"{sign}{whole // 60} min {whole % 60} s"
    return _scaled(value_s, _TIME)


def size(value_bytes: float | None) -> str:
    """A number of bytes in binary units, `14.9 GiB`; a dash where it is not known."""
    if value_bytes is None or not math.isfinite(value_bytes):
        return MISSING
    return "0 B" if value_bytes == 0 else _scaled(value_bytes, _SIZE)


def rate(value_per_s: float | None, noun: str) -> str:
    """A rate of `noun`s a second, `12.3 req/s`; a dash where it is not known."""
    if value_per_s is None or not math.isfinite(value_per_s):
        return MISSING
    return f"{significant(value_per_s)} {noun}/s"


def count(value: float | None) -> str:
    """A number of things: whole numbers in full with grouped thousands, others to 3 digits."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{int(value):,}" if float(value).is_integer() else significant(value)


def share(fraction: float | None) -> str:
    """A share, 0 to 1, in percent: `99.95 %`; what is neither all nor nothing never rounds to 100 % or 0 %."""
    if fraction is None or not math.isfinite(fraction):
        return MISSING
    percent = 100.0 * fraction
    if percent in (0.0, 100.0):
        return f"{percent:.0f} %"
    if 99.995 <= percent < 100.0:
        return "> 99.99 %"
    if 0.0 < percent < 0.005:
        return "< 0.01 %"
    if percent > 100.0 or percent < 0.0:
        return f"{significant(percent)} %"
    return f"{percent:.2f} %" if percent >= 99.0 or percent < 1.0 else f"{percent:.1f} %"


def multiple(factor: float | None) -> str:
    """A factor, `1.25 ×`; a dash where it is not known."""
    if factor is None or not math.isfinite(factor):
        return MISSING
    return f"{factor:.4g} ×"


def by_name(name: str, value: object) -> str:
    """A value formatted by the unit that its name ends in: `_s`, `_per_s`, `_bytes`, `fraction`, `_rate`, `share`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return MISSING
    if not isinstance(value, Real):
        return str(value)
    value = float(value)
    if name.endswith("_per_s"):
        return rate(
            value, name.removesuffix("_per_s").split("_")[-1].replace("requests", "req").replace("tokens", "tok")
        )
    if name.endswith("_s"):
        return seconds(value)
    if name.endswith("_bytes"):
        return size(value)
    if name.endswith(("fraction", "_rate", "share")):
        return share(value)
    return count(value)


def _scaled(value: float, units: tuple[tuple[float, str], ...]) -> str:
    """`value` in the largest unit of which it has at least one after rounding, else in the smallest."""
    for scale, name in units:
        # 999.9 µs rounds to a whole ms and is printed as one
        if float(f"{abs(value) / scale:.3g}") >= 1.0:
            return f"{significant(value / scale)} {name}"
    scale, name = units[-1]
    return f"{significant(value / scale)} {name}"
