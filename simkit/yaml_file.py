"""Reading a bounded YAML file from disk, errors in one line."""

from pathlib import Path

import yaml

from simkit.bounded_file import read_bounded
from simkit.errors import InputError

LARGEST_YAML_BYTES = 1 << 20


def read_yaml(path: Path, expected: str, most_bytes: int = LARGEST_YAML_BYTES) -> object:
    """What a YAML file holds, of plain types alone; `expected` says in an error line what should be there.

    Raises:
        InputError: the file cannot be read, is over `most_bytes`, is not YAML, or repeats itself by alias.
    """
    raw = read_bounded(path, most_bytes, expected)
    try:
        return yaml.load(raw, Loader=_NoAliases)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "malformed"
        raise InputError(f"{path}{line}: is not YAML: {problem}; {expected}") from None
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise InputError(f"{path}: is not YAML text: {type(error).__name__}; {expected}") from None


def read_mapping(path: Path, expected: str = "a YAML mapping is expected") -> dict[str, object]:
    """The mapping that a YAML file holds; keys as text. Raises InputError as `read_yaml`, and for what is none."""
    content = read_yaml(path, expected)
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}; {expected}")
    return {str(key): value for key, value in content.items()}


class _NoAliases(yaml.SafeLoader):
    """Safe loading without aliases, whose nesting can grow a small file beyond any memory."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not accepted", self.get_mark())
        return super().compose_node(parent, index)
