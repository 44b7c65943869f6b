"""A result's files on disk."""

import os
from pathlib import Path

import pytest

from simkit.errors import InputError
from simkit.report.directory import write_together


def test_where_the_disk_is_full_nothing_of_the_new_result_stands_beside_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {tmp_path / name: b"old" for name in ("summary.json", "report.html", "requests.csv.gz")}
    write_together(old)
    real, opened = os.fdopen, []

    def full_at_the_second(handle: int, mode: str) -> object:
        opened.append(handle)
        if len(opened) == 2:
            os.close(handle)
            raise OSError(28, "No space left on device")
        return real(handle, mode)

    monkeypatch.setattr(os, "fdopen", full_at_the_second)
    with pytest.raises(InputError, match=r"report\.html: no space left on device"):
        write_together(dict.fromkeys(old, b"new"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {path.name: b"old" for path in old}


def test_all_files_are_there_when_it_returns(tmp_path: Path) -> None:
    paths = write_together({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    assert [path.read_bytes() for path in paths] == [b"1", b"2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
