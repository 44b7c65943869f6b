"""The bundled models by name, and the one way to load a model: `load_model`.

Each file of `facts/` but `devices.yaml` holds models of one family: repository, aliases, published parameter count
with its source, and the fields of config.json that the family's reader needs. Adding a model is one entry.
"""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from simkit.errors import InputError, suggestion
from simkit.models.architecture import Architecture
from simkit.models.config_fields import ConfigFields
from simkit.models.huggingface import architecture_from_config, read_config
from simkit.yaml_file import read_mapping

CATALOG = Path(__file__).parent / "facts"
DEVICES_FILE = CATALOG / "devices.yaml"


@dataclass(frozen=True)
class CatalogEntry:
    """A bundled model: what it is called, where it comes from, and what was published about it."""

    name: str
    repository: str
    aliases: tuple[str, ...]
    published_parameters: int
    source: str
    architecture: Architecture


@cache
def _entries() -> dict[str, CatalogEntry]:
    found: dict[str, CatalogEntry] = {}
    for path in sorted(CATALOG.glob("*.yaml")):
        if path != DEVICES_FILE:
            models = ConfigFields(path.name, read_mapping(path))
            found |= {name: _entry(name, models.child(name)) for name in models.names()}
    return found


def _entry(name: str, fields: ConfigFields) -> CatalogEntry:
    published = fields.child("published")
    architecture = architecture_from_config(fields.child("config").values(), f"{fields.place}: config")
    return CatalogEntry(
        name=name,
        repository=fields.text("repository"),
        aliases=tuple(fields.texts("aliases")),
        published_parameters=published.positive("parameters", most=10**15),
        source=published.text("source"),
        architecture=replace(architecture, name=name),
    )


@cache
def _names() -> dict[str, str]:
    """Every accepted name in lower case (short names, repositories, aliases) and the short name it stands for."""
    return {
        alias.lower(): entry.name
        for entry in _entries().values()
        for alias in (*entry.aliases, entry.repository, entry.name)
    }


def known_models() -> list[str]:
    """The short names of all bundled models, sorted."""
    return sorted(_entries())


def catalog_entry(name: str) -> CatalogEntry:
    """The bundled model of this name, alias or Hugging Face repository, in any case.

    Raises:
        InputError: no bundled model is called so; the error names the nearest, and the other way to give a model.
    """
    short = _names().get(name.strip().lower())
    if short is None:
        raise InputError(
            f"model {name!r} is not known; {suggestion(name, known_models())} "
            "(or give the path of a Hugging Face config.json)"
        )
    return _entries()[short]


def is_bundled(name: str) -> bool:
    """Whether a bundled model is called so."""
    return name.strip().lower() in _names()


def load_model(name_or_path: str) -> Architecture:
    """The architecture of a bundled model by name, or of a Hugging Face config.json by path (the file or its folder).

    Raises:
        InputError: the name is unknown, or the file is not understood.
    """
    if is_bundled(name_or_path):
        return catalog_entry(name_or_path).architecture
    path = Path(name_or_path).expanduser()
    if name_or_path.endswith(".json") or path.exists():
        return read_config(path)
    return catalog_entry(name_or_path).architecture
