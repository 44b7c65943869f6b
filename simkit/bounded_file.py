"""Reading a file of which only the name is known: whole, but never more than fits its kind."""

from pathlib import Path

from simkit.errors import InputError


def read_bounded(path: Path, most_bytes: int, expected: str) -> bytes:
    """What a file holds; `expected` is the end of an error line and says what should be there.

    Raises:
        InputError: the file cannot be read, or holds more than `most_bytes`, of which no more are read.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(most_bytes + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}; {expected}") from None
    if len(raw) > most_bytes:
        size = f"{most_bytes >> 20} MiB" if most_bytes >= 1 << 20 else f"{most_bytes >> 10} KiB"
        raise InputError(f"{path}: is larger than {size}; {expected}")
    return raw
