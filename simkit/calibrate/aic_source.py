"""Where AIConfigurator's measured tables lie: the data files of the distribution `aiconfigurator-core`.

The files are found without importing the package, whose own code is not needed. They are Parquet, so `pyarrow` is.
Licence of the tables: Apache-2.0, NVIDIA.
"""

import importlib.metadata
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from simkit.errors import InputError, suggestion

if TYPE_CHECKING:
    import pandas as pd

DISTRIBUTION = "aiconfigurator-core"
INSTALL = "pip install 'simkit-serving[aic]'"

# their system -> our device; None where `simkit devices` has no such device
SYSTEMS: dict[str, str | None] = {
    "a100_pcie": "a100-80gb-pcie",
    "a100_sxm": "a100-80gb",
    "a30": None,
    "b200_sxm": "b200",
    "b300_sxm": None,
    "b60": None,
    "gb200": None,
    "gb300": None,
    "h100_pcie": "h100-pcie",
    "h100_sxm": "h100-sxm",
    "h200_sxm": "h200",
    "l4": "l4",
    "l40s": "l40s",
    "rtx_pro_6000_server": "rtx-pro-6000",
}
BACKENDS = ("vllm", "sglang", "trtllm")


class TableOrigin(NamedTuple):
    """One of their tables."""

    path: Path
    version: str  # of the engine, or of NCCL


def systems_folder() -> Path:
    """The folder that holds their systems.

    Raises:
        InputError: the distribution is not installed, or holds no such folder.
    """
    try:
        files = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(f"{DISTRIBUTION} is not installed; {INSTALL}") from None
    folder = Path(str(files.locate_file("aiconfigurator_core/systems")))
    if not folder.is_dir():
        raise InputError(f"{DISTRIBUTION} {files.version} holds no measured tables at {folder}; {INSTALL}")
    return folder


def distribution_version() -> str:
    """The installed version; InputError if none is."""
    systems_folder()
    return importlib.metadata.version(DISTRIBUTION)


def installed() -> bool:
    """Whether the tables are there."""
    try:
        systems_folder()
    except InputError:
        return False
    return True


def check_system(system: str, backend: str) -> None:
    """Pass if their tables know both; InputError otherwise."""
    if system not in SYSTEMS:
        raise InputError(f"--system {system}: is not known; {suggestion(system, SYSTEMS)}")
    if backend not in BACKENDS:
        raise InputError(f"--backend {backend}: is not known; {suggestion(backend, BACKENDS)}")
    if not (systems_folder() / "data" / system).is_dir():
        raise InputError(f"--system {system}: {DISTRIBUTION} {distribution_version()} has no tables for it")


def find_table(system: str, family: str, source: str, file: str, version: str | None) -> TableOrigin | None:
    """Their newest table, or that of `version`; None if there is none.

    Args:
        system: theirs.
        family: the folder of an operator: gemm, attention, moe, comm.
        source: the engine, or nccl.
        file: without its ending.
        version: of the engine; None is the newest.
    """
    folder = systems_folder() / "data" / system / family / source
    if not folder.is_dir():
        return None
    found = sorted(folder.glob(f"*/{file}.parquet"), key=lambda path: version_key(path.parent.name))
    if version is not None:
        found = [path for path in found if path.parent.name == version]
    return TableOrigin(found[-1], found[-1].parent.name) if found else None


def versions_of(system: str, backend: str) -> list[str]:
    """The engine versions that their tables of a system name, oldest first."""
    folder = systems_folder() / "data" / system
    names = {path.parent.name for path in folder.glob(f"*/{backend}/*/*.parquet")}
    return sorted(names, key=version_key)


def version_key(version: str) -> tuple[tuple[int, str], ...]:
    """Versions in their order (PEP 440): 1.3.0rc3 before 1.3.0, that before 1.3.0.post2, all before 1.3.1."""
    # where a version ends stands -2: above the words of what comes before a release, below `post` and any number
    ranks = [
        (int(part), "") if part.isdigit() else (-1 if part == "post" else -3, part)
        for part in re.findall(r"\d+|[a-z]+", version)
    ]
    return (*ranks, (-2, ""))


def read_parquet(path: Path, wanted: tuple[str, ...], absent: dict[str, int | str]) -> "pd.DataFrame":
    """Some columns of a Parquet file; one that older files lack is filled with what it was then, `absent`.

    Raises:
        InputError: it cannot be read, or lacks another column.
    """
    import pandas as pd

    if find_spec("pyarrow") is None:
        raise InputError(f"{path}: Parquet needs pyarrow; {INSTALL}")
    try:
        frame = pd.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {str(error).splitlines()[0][:200]}; {INSTALL}") from None
    for name in wanted:
        if name in absent and name not in frame:
            frame[name] = absent[name]
        if name not in frame:
            raise InputError(f"{path}: column {name!r} is missing; this version of {DISTRIBUTION} is not known here")
    return frame[list(wanted)]
