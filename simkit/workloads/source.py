"""From a path to chunks of decoded lines: plain, gzip or zstd by their magic bytes, with every size bounded."""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import zstandard

from simkit.errors import InputError, suggestion

MAX_DECOMPRESSED_BYTES = 16 << 30
MAX_LINE_BYTES = 64 << 20
CHUNK_BYTES = 4 << 20
# An RLE block of 4 bytes stands for 128 KiB (RFC 8878, 3.1.1.2), so a piece of 4 KiB cannot become more than 128 MiB.
ZSTD_PIECE_BYTES = 4 << 10
ZSTD_WINDOW_BYTES = 1 << 27  # what `zstd --long=27` writes

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
NOT_READ = {
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a Parquet file",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}


@dataclass(frozen=True)
class Chunk:
    """Whole lines of a file, in order."""

    first_line: int  # number of the first line, from 1
    text: str  # lines end in "\n" (the file's last one perhaps not)


def line_chunks(path: Path) -> Iterator[Chunk]:
    """The decoded lines of a file, some MiB at a time.

    Raises InputError for a file that is missing, a directory, unreadable, truncated, not UTF-8 or beyond the bounds.
    """
    try:
        with _open(path) as file:
            yield from _chunks(path, file)
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise InputError(f"{path}: compressed data is truncated or damaged ({error}); fetch the file again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def _open(path: Path) -> BinaryIO:
    if path.is_dir():
        raise InputError(f"{path}: is a directory; name one trace file in it")
    try:
        return path.open("rb")
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = suggestion(path.name, siblings) if siblings else "its folder does not exist either"
        near = near if near.startswith(("did", "its")) else "check the path"
        raise InputError(f"{path}: no such file; {near}") from None


def _chunks(path: Path, file: BinaryIO) -> Iterator[Chunk]:
    line, total = 1, 0
    parts: list[bytes] = []  # the beginning of a line whose end is yet to come
    waiting = 0
    for piece in _decompressed(path, file):
        total += len(piece)
        if total > MAX_DECOMPRESSED_BYTES:
            raise InputError(f"{path}: is larger than {MAX_DECOMPRESSED_BYTES >> 30} GiB decompressed; split it")
        cut = piece.rfind(b"\n") + 1
        if cut:
            text = _decoded(path, b"".join([*parts, piece[:cut]]), line)
            yield Chunk(line, text)
            line += text.count("\n")
            parts, waiting = [], 0
        parts.append(piece[cut:])
        waiting += len(piece) - cut
        if waiting > MAX_LINE_BYTES:
            raise InputError(f"{path}:{line}: a line is longer than {MAX_LINE_BYTES >> 20} MiB; is this a trace?")
    if waiting:
        yield Chunk(line, _decoded(path, b"".join(parts), line))


def _decoded(path: Path, data: bytes, first_line: int) -> str:
    try:
        return data.decode("utf-8-sig" if first_line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        value = hex(data[error.start])
        raise InputError(f"{path}:{line}: byte {value} is not UTF-8 text; convert the file with iconv") from None


def _decompressed(path: Path, file: BinaryIO) -> Iterator[bytes]:
    head = file.read(8)
    rest = _Prepended(head, file)
    if head.startswith(GZIP_MAGIC):
        with gzip.GzipFile(fileobj=rest, mode="rb") as unzipped:  # type: ignore[call-overload]
            while piece := unzipped.read(CHUNK_BYTES):
                yield piece
    elif head.startswith(ZSTD_MAGIC):
        yield from _zstd(rest)
    else:
        for magic, what in NOT_READ.items():
            if head.startswith(magic):
                raise InputError(f"{path}: is {what}; traces are UTF-8 text, plain or packed with gzip or zstd")
        while piece := rest.read(CHUNK_BYTES):
            yield piece


def _zstd(file: "_Prepended") -> Iterator[bytes]:
    """All frames of a zstd stream; `stream_reader` is not used because it takes a cut file for a whole one."""
    context = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
    frame, ended = context.decompressobj(), False
    parts: list[bytes] = []
    size = 0
    while data := file.read(ZSTD_PIECE_BYTES):
        while data:
            if ended:
                frame, ended = context.decompressobj(), False
            parts.append(frame.decompress(data))
            size += len(parts[-1])
            ended = frame.eof
            data = frame.unused_data if ended else b""
            if size >= CHUNK_BYTES:
                yield b"".join(parts)
                parts, size = [], 0
    if not ended:
        raise EOFError("the last zstd frame does not end")
    yield b"".join(parts)


class _Prepended:
    """A stream whose first bytes were looked at and are read again; pipes cannot seek."""

    def __init__(self, head: bytes, file: BinaryIO) -> None:
        self._head, self._file = head, file

    def read(self, size: int = -1) -> bytes:
        if not self._head:
            return self._file.read(size)
        if size < 0:
            head, self._head = self._head, b""
            return head + self._file.read()
        head, self._head = self._head[:size], self._head[size:]
        return head if self._head else head + self._file.read(size - len(head))
