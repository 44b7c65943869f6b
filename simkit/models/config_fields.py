"""Reading named fields of a stranger's JSON object, each checked, each error naming the file and the field."""

from collections.abc import Mapping
from difflib import get_close_matches

from simkit.errors import InputError

# No published decoder comes near: a larger number is a damaged or hostile file, and would exhaust memory later.
_LARGEST = 10**9


class ConfigFields:
    """The fields of one JSON object, read by the type they should have."""

    def __init__(self, place: str, values: Mapping[str, object]) -> None:
        self.place = place
        self._values = values

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._values.get(name) is not None

    def error(self, name: str, problem: str) -> InputError:
        """The error that says what is wrong with field `name` of this file."""
        return InputError(f"{self.place}: field '{name}' {problem}")

    def positive(self, name: str, default: int | None = None, most: int = _LARGEST) -> int:
        """A whole number of 1 to `most`; `default` when the field is absent or null."""
        return self._whole(name, default, 1, most)

    def count(self, name: str, default: int | None = None) -> int:
        """A whole number of 0 or more; `default` when the field is absent or null."""
        return self._whole(name, default, 0, _LARGEST)

    def number(self, name: str, default: float | None = None) -> float:
        """A number above 0 and up to a million; `default` when the field is absent or null."""
        value = self._present(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1e6:
            raise self.error(name, f"is {str(value)[:40]!r}; a number above 0 and up to 1e6 is expected")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """true or false; `default` when the field is absent or null."""
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(name, f"is {value!r}; true or false is expected")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string; `default` when the field is absent or null."""
        value = self._present(name, default)
        if not isinstance(value, str):
            raise self.error(name, f"is {value!r}; a string is expected")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of strings, empty when the field is absent or null."""
        value = self._values.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise self.error(name, "is not a list of strings")
        return list(value)

    def positives(self, name: str) -> list[int]:
        """A list of whole numbers of 1 or more, empty when the field is absent or null."""
        value = self._values.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.error(name, f"is {str(value)[:40]!r}; a list of whole numbers is expected")
        for entry in value:
            if isinstance(entry, bool) or not isinstance(entry, int) or not 1 <= entry <= _LARGEST:
                raise self.error(name, f"holds {str(entry)[:40]!r}; whole numbers of 1 or more are expected")
        return list(value)

    def indices(self, name: str, below: int) -> frozenset[int]:
        """A list of layer indices, each in 0 .. below - 1; empty when the field is absent or null."""
        value = self._values.get(name)
        if value is None:
            return frozenset()
        if not isinstance(value, list):
            raise self.error(name, f"is {value!r}; a list of layer indices is expected")
        for entry in value:
            if isinstance(entry, bool) or not isinstance(entry, int) or not 0 <= entry < below:
                raise self.error(name, f"holds {entry!r}; layer indices are 0 to {below - 1}")
        return frozenset(value)

    def switches(self, name: str, length: int) -> list[bool] | None:
        """A list of `length` zeros and ones; None when the field is absent, null or empty."""
        value = self._values.get(name)
        if value is None or value == []:
            return None
        if not isinstance(value, list) or len(value) != length or not all(entry in (0, 1) for entry in value):
            raise self.error(name, f"is not a list of {length} zeros and ones")
        return [bool(entry) for entry in value]

    def child(self, name: str) -> "ConfigFields":
        """The fields of a nested object."""
        value = self._present(name, None)
        if not isinstance(value, dict):
            raise self.error(name, f"is {str(value)[:40]!r}; an object is expected")
        return ConfigFields(f"{self.place}: {name}", value)

    def values(self) -> dict[str, object]:
        """All fields as they stand in the file."""
        return dict(self._values)

    def with_defaults(self, defaults: Mapping[str, object]) -> "ConfigFields":
        """The same fields, those absent or null taken from `defaults`."""
        present = {name: value for name, value in self._values.items() if value is not None}
        return ConfigFields(self.place, {**defaults, **present})

    def replaced(self, values: Mapping[str, object]) -> "ConfigFields":
        """The same fields, those of `values` in place of the file's."""
        return ConfigFields(self.place, {**self._values, **values})

    def names(self) -> list[str]:
        """The names of all fields."""
        return [str(key) for key in self._values]

    def _whole(self, name: str, default: int | None, least: int, most: int) -> int:
        value = self._present(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(name, f"is {str(value)[:40]!r}; a whole number is expected")
        if not least <= value <= most:
            raise self.error(name, f"is {value}; a whole number from {least} to {most} is expected")
        return value

    def _present(self, name: str, default: object) -> object:
        value = self._values.get(name)
        if value is not None:
            return value
        if default is not None:
            return default
        near = get_close_matches(name, self.names(), n=1, cutoff=0.8)
        hint = f"; did you misspell it as '{near[0]}'?" if near and near[0] != name else ""
        raise self.error(name, f"{'is null' if name in self._values else 'is missing'}{hint}")
