"""What a result was made with."""

import platform
from importlib.metadata import version

import simkit


def versions() -> dict[str, str]:
    """Versions of simkit, Python and the libraries that numbers depend on."""
    libraries = {name: version(name) for name in ("numpy", "numba", "pandas")}
    return {"simkit": simkit.__version__, "python": platform.python_version(), **libraries}
