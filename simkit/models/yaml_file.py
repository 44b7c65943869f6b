"""Reading a bounded YAML mapping from disk, errors in one line."""

from pathlib import Path

import yaml

from simkit.errors import InputError

LARGEST_YAML_BYTES = 1 << 20


def read_mapping(path: Path) -> dict[str, object]:
    """The mapping a YAML file holds; keys as text.

    Raises:
        InputError: the file cannot be read, is over 1 MiB, is not YAML, repeats itself by alias, or is no mapping.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_YAML_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(raw) > LARGEST_YAML_BYTES:
        raise InputError(f"{path}: is larger than {LARGEST_YAML_BYTES >> 20} MiB")
    try:
        content = yaml.load(raw, Loader=_NoAliases)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark is not None else ""
        raise InputError(f"{path}:{line} is not YAML: {getattr(error, 'problem', None) or 'malformed'}") from error
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise InputError(f"{path}: is not YAML text: {type(error).__name__}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}; a mapping is expected")
    return {str(key): value for key, value in content.items()}


class _NoAliases(yaml.SafeLoader):
    """Safe loading without aliases, whose nesting can grow a small file beyond any memory."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not accepted", self.get_mark())
        return super().compose_node(parent, index)
