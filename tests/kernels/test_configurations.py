"""The table of configurations: lookups, and that a tuning script can rewrite it."""

from pathlib import Path

import pytest
import torch

from simkit.kernels.configurations import NAMES, Configuration, architecture_of, choose, read, write

NARROW = Configuration("k", 80, {"dtype": "bf16", "size": 64}, {"BLOCK": 16}, 4, 2, "compiled")
WIDE = Configuration("k", 80, {"dtype": "bf16"}, {"BLOCK": 32}, 4, 2, "compiled")
NEW = Configuration("k", 90, {"dtype": "bf16"}, {"BLOCK": 64}, 8, 3, "timed on a device, 2026-11-22")
TABLE = (NARROW, WIDE, NEW)


def test_the_first_entry_that_fits_is_taken() -> None:
    assert choose(TABLE, "k", 80, {"dtype": "bf16", "size": 64}) == NARROW
    assert choose(TABLE, "k", 80, {"dtype": "bf16", "size": 65}) == WIDE


@pytest.mark.parametrize(("architecture", "wanted"), [(75, WIDE), (86, WIDE), (90, NEW), (120, NEW)])
def test_an_unknown_device_is_given_the_nearest_older_ones(architecture: int, wanted: Configuration) -> None:
    assert choose(TABLE, "k", architecture, {"dtype": "bf16", "size": 65}) == wanted


def test_nothing_that_fits_is_said() -> None:
    with pytest.raises(
        ValueError, match=r"^k: no configuration for dtype fp64, size 1; add one to configurations.json"
    ):
        choose(TABLE, "k", 80, {"dtype": "fp64", "size": 1})


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    write(TABLE, tmp_path / "table.json")
    assert read(tmp_path / "table.json") == TABLE
    write(read(), tmp_path / "same.json")
    assert read(tmp_path / "same.json") == read()


@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_every_shape_that_launchers_take_has_an_entry(architecture: int, dtype: str) -> None:
    entries = read()
    for cache in {dtype, "fp8e4nv"} if architecture >= 89 else {dtype}:
        kinds = {"dtype": dtype, "cache": cache}
        for head_dim in (1, 64, 128, 129, 256):
            for kernel in ("decode", "prefill", "rope_cache"):
                assert choose(entries, kernel, architecture, {**kinds, "head_dim": head_dim, "rows": 64, "group": 128})
        for latent_dim, heads in ((16, 1), (512, 128)):
            assert choose(entries, "mla_decode", architecture, {**kinds, "latent_dim": latent_dim, "heads": heads})


def test_names_are_tritons() -> None:
    import triton.language as tl

    assert {name: getattr(tl, {"fp8e4nv": "float8e4nv"}.get(name, name.replace("fp", "float"))).name
            for name in NAMES.values() if name != "bf16"} == {n: n for n in NAMES.values() if n != "bf16"}  # fmt: skip
    assert tl.bfloat16.name == "bf16"
    assert architecture_of(torch.device("cpu")) == 90
