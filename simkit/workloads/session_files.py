"""Where agents' sessions are kept: a folder of .json files, a tar of them (plain, gzip or zstd), or one file."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import zstandard

from simkit.bounded_file import read_bounded
from simkit.errors import InputError
from simkit.workloads.source import ZSTD_WINDOW_BYTES

MAX_FILE_BYTES = 1 << 27
MAX_ALL_BYTES = 4 << 30
MAX_FILES = 100_000
TARS = (".tar", ".tar.gz", ".tgz", ".tar.zst")
EXPECTED = "a session is a few MiB of JSON"


class SessionFile(NamedTuple):
    """One session, as yet unread."""

    name: str  # without its ending
    place: str  # for messages
    raw: bytes


def may_hold_sessions(path: Path) -> bool:
    """Whether a path is none that a trace with one request a line could have: a folder with .json files, or a tar."""
    if path.is_dir():
        return any(path.glob("*.json"))
    return path.name.endswith(TARS) and path.is_file()


def session_files(path: Path, most: int | None) -> Iterator[SessionFile]:
    """The first `most` sessions by name of a folder, the first in order of a tar, or the one of a file.

    Raises InputError where there is none, or more than fits the bounds.
    """
    most = min(most or MAX_FILES, MAX_FILES)
    if path.is_dir():
        found = sorted(path.glob("*.json"))[:most]
        if not found:
            raise InputError(f"{path}: holds no *.json file; give the folder of the sessions")
        for file in found:
            yield SessionFile(file.stem, str(file), read_bounded(file, MAX_FILE_BYTES, EXPECTED))
    elif path.name.endswith(TARS):
        yield from _members(path, most)
    else:
        yield SessionFile(path.stem, str(path), read_bounded(path, MAX_FILE_BYTES, EXPECTED))


def _members(path: Path, most: int) -> Iterator[SessionFile]:
    count, total = 0, 0
    try:
        with _opened(path) as tar:
            for member in tar:
                if count == most:
                    break
                file = tar.extractfile(member) if member.isreg() and member.name.endswith(".json") else None
                if file is None:
                    continue
                place = f"{path}: {member.name[:200]}"
                total += member.size
                if member.size > MAX_FILE_BYTES or total > MAX_ALL_BYTES:
                    bounds = f"{MAX_FILE_BYTES >> 20} MiB, or {MAX_ALL_BYTES >> 30} GiB in all"
                    raise InputError(f"{place}: is larger than {bounds}; {EXPECTED}")
                count += 1
                yield SessionFile(Path(member.name).stem, place, file.read())
    except (tarfile.TarError, zstandard.ZstdError, EOFError, OSError) as error:
        raise InputError(f"{path}: cannot be read as a tar ({error}); fetch the file again") from None
    if count == 0:
        raise InputError(f"{path}: holds no *.json file; give a tar of sessions")


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar as a stream, of which no more is unpacked than is read."""
    if not path.name.endswith(".zst"):
        with tarfile.open(path, "r|*") as tar:
            yield tar
        return
    context = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
    with path.open("rb") as packed, context.stream_reader(packed) as stream, tarfile.open(None, "r|", stream) as tar:
        yield tar
