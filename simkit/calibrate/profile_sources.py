"""Where a device's step times can come from: profiles that ship with this package, importable tables, a datasheet."""

from pathlib import Path

from simkit.calibrate.aic_source import BACKENDS, SYSTEMS, installed, versions_of
from simkit.calibrate.operator_profile import HEADER_FILE, read_header

SHIPPED = Path(__file__).parent / "profiles"  # a directory of each


def shipped_profiles() -> dict[str, Path]:
    """The directories of the profiles that ship with this package, by name."""
    if not SHIPPED.is_dir():
        return {}
    return {path.parent.name: path.parent for path in sorted(SHIPPED.glob(f"*/{HEADER_FILE}"))}


def sources_of(device: str) -> dict[str, list[str]]:
    """What there is for a device (a name of `simkit devices`): `shipped` profiles, `importable` tables.

    Tables are listed by the command that imports them, if the distribution that holds them is installed. A device with
    neither has its datasheet figures alone.
    """
    shipped = [name for name, path in shipped_profiles().items() if read_header(path).device == device]
    importable = []
    if installed():
        systems = [system for system, known in SYSTEMS.items() if known == device]
        importable = [
            f"aic --system {system} --backend {backend}"
            for system in systems
            for backend in BACKENDS
            if versions_of(system, backend)
        ]
    return {"shipped": shipped, "importable": importable}
