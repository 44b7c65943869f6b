"""An operator profile survives the disk, and a stranger's is refused where it is wrong, by file, row and column."""

import gzip
import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest

from simkit.calibrate.operator_profile import (
    HEADER_FILE,
    OperatorProfile,
    operator_profile_hash,
    read_operator_profile,
    write_operator_profile,
)
from simkit.calibrate.profile_tables import TABLES, columns
from simkit.calibrate.provenance import TAGS
from simkit.errors import InputError
from simkit.models.table_shares import KNOWN

from .made_up_profile import header, made_up_profile, table

GEMM_HEAD = "dtype,tokens,n,k,kernel,median_ns,p10_ns,p90_ns,repeats,known,use"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A profile of two GEMMs, written."""
    folder = tmp_path / "small"
    profile = OperatorProfile(header(), {"gemm": table("gemm", [1000.0, 2000.0], tokens=[1, 2], n=64, k=32)})
    write_operator_profile(profile, folder)
    return folder


def rewrite(folder: Path, rows: list[str], head: str = GEMM_HEAD) -> None:
    """Another gemm.csv, listed with its true hash, so that only its content can be at fault."""
    raw = ("\n".join([head, *rows]) + "\n").encode()
    (folder / "gemm.csv").write_bytes(raw)
    tree = json.loads((folder / HEADER_FILE).read_text())
    tree["tables"]["gemm"] = {"file": "gemm.csv", "rows": len(rows), "sha256": hashlib.sha256(raw).hexdigest()}
    (folder / HEADER_FILE).write_text(json.dumps(tree))


@pytest.mark.parametrize("compress", [False, True])
def test_a_profile_reads_back_as_it_was_written(tmp_path: Path, compress: bool) -> None:
    profile = made_up_profile()
    written = write_operator_profile(profile, tmp_path / "p", compress)
    again = read_operator_profile(tmp_path / "p")
    assert again.header == written
    assert set(again.tables) == set(profile.tables)
    for name, frame in profile.tables.items():
        pd.testing.assert_frame_equal(
            again.tables[name], frame.round({"median_ns": 1}), check_dtype=False, check_exact=True
        )
        assert written.tables[name].rows == len(frame)


@pytest.mark.parametrize("compress", [False, True])
def test_the_same_profile_gives_the_same_bytes(tmp_path: Path, compress: bool) -> None:
    hashes = set()
    for name in ("a", "b"):
        written = write_operator_profile(made_up_profile(), tmp_path / name, compress)
        hashes.add(operator_profile_hash(written))
    assert len(hashes) == 1


def test_every_table_has_the_same_last_columns() -> None:
    for name in TABLES:
        assert [column.name for column in columns(name)][-6:] == [
            "median_ns",
            "p10_ns",
            "p90_ns",
            "repeats",
            "known",
            "use",
        ]


def test_tags_are_spelt_alike_everywhere() -> None:
    assert TAGS == KNOWN


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("bf16,0,64,32,,1000,,,3,measured,fit", "gemm.csv:3: tokens='0': is not from 1 to 2**40"),
        ("bf16,1.5,64,32,,1000,,,3,measured,fit", "gemm.csv:3: tokens='1.5': is not a whole number"),
        ("bf16,x,64,32,,1000,,,3,measured,fit", "gemm.csv:3: tokens='x': is not a number"),
        ("bf16,9,64,32,,-5,,,3,measured,fit", "gemm.csv:3: median_ns='-5': is not above 0"),
        ("bf16,9,64,32,,inf,,,3,measured,fit", "gemm.csv:3: median_ns='inf': is not a number"),
        ("bf16,9,64,32,,,,,3,measured,fit", "gemm.csv:3: median_ns='': is empty"),
        ("bf17,9,64,32,,1000,,,3,measured,fit", "gemm.csv:3: dtype='bf17': is not known; one of bf16"),
        ("bf16,9,64,32,,1000,,,3,guessed,fit", "gemm.csv:3: known='guessed': is not known"),
        ("bf16,9,64,32,,1000,1100,,3,measured,fit", "gemm.csv:3: median_ns=1000: is below p10_ns=1100"),
        ("bf16,9,64,32,,1000,,900,3,measured,fit", "gemm.csv:3: p90_ns=900: is below median_ns=1000"),
        ("bf16,1,64,32,,1000,,,3,measured,fit", "gemm.csv:3: the same sizes as an earlier row"),
    ],
)
def test_a_bad_value_is_named_with_its_file_and_line(small: Path, row: str, said: str) -> None:
    rewrite(small, ["bf16,1,64,32,,1000,,,3,measured,fit", row])
    with pytest.raises(InputError, match=said.replace("*", r"\*")):
        read_operator_profile(small)


def test_a_column_that_is_unknown_or_missing_is_named(small: Path) -> None:
    rewrite(small, ["bf16,1,64,32,,1000,,,3,measured,fit,1"], GEMM_HEAD + ",tokns")
    with pytest.raises(InputError, match="column 'tokns' is not known; did you mean 'tokens'"):
        read_operator_profile(small)
    rewrite(small, ["1,64,32,,1000,,,3,measured,fit"], GEMM_HEAD.removeprefix("dtype,"))
    with pytest.raises(InputError, match="column 'dtype' is missing"):
        read_operator_profile(small)


def test_a_table_that_was_changed_since_is_refused(small: Path) -> None:
    path = small / "gemm.csv"
    path.write_text(path.read_text().replace("1000", "1001"))
    with pytest.raises(InputError, match="sha256 differs"):
        read_operator_profile(small)


def test_a_header_of_another_format_or_with_a_wrong_key_is_refused(small: Path) -> None:
    path = small / HEADER_FILE
    text = path.read_text()
    path.write_text(text.replace("simkit.profile/2", "simkit.profile/3"))
    with pytest.raises(InputError, match=r"format='simkit.profile/3': is not known; did you mean 'simkit.profile/2'"):
        read_operator_profile(small)
    path.write_text(text.replace('"engine"', '"engin"'))
    with pytest.raises(InputError, match="engin: unknown key; did you mean 'engine'"):
        read_operator_profile(small)


def test_a_table_file_cannot_point_elsewhere(small: Path) -> None:
    path = small / HEADER_FILE
    path.write_text(path.read_text().replace("gemm.csv", "../gemm.csv"))
    with pytest.raises(InputError, match=r"tables\.gemm\.file"):
        read_operator_profile(small)


def test_a_bomb_of_zeros_is_not_unpacked_whole(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simkit.calibrate.profile_csv.LARGEST_CSV_BYTES", 1000)
    raw = gzip.compress(b"0" * 100_000)
    (small / "gemm.csv.gz").write_bytes(raw)
    tree = json.loads((small / HEADER_FILE).read_text())
    tree["tables"]["gemm"] |= {"file": "gemm.csv.gz", "sha256": hashlib.sha256(raw).hexdigest()}
    (small / HEADER_FILE).write_text(json.dumps(tree))
    with pytest.raises(InputError, match="unpacked"):
        read_operator_profile(small)


def test_a_folder_with_other_files_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(InputError, match=r"holds 'thesis.txt'"):
        write_operator_profile(made_up_profile(), tmp_path)
    assert (tmp_path / "thesis.txt").exists()
