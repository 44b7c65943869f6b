"""Others' measurements become profiles: hand-made files in their form, and their real ones where they are at hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simkit.calibrate.aic_import import import_aic
from simkit.calibrate.aic_source import SYSTEMS, installed, version_key, versions_of
from simkit.calibrate.operator_model import fit_operators
from simkit.calibrate.operator_profile import read_operator_profile, write_operator_profile
from simkit.calibrate.silicon_sample import FILE, read_silicon_sample, without_repeats
from simkit.calibrate.vidur_import import import_vidur
from simkit.errors import InputError
from simkit.models.device import known_devices

needs_aic = pytest.mark.skipif(not installed(), reason="aiconfigurator-core is not installed")

MLP = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj", "input_layernorm", "attn_rope", "mlp_act")


@pytest.fixture
def vidur(tmp_path: Path) -> Path:
    """Vidur's forms: a model of 32 heads, 8 KV heads, width 4096, 2 GPUs."""
    folder = tmp_path / "vidur"
    folder.mkdir()
    sizes = {"n_head": 32, "n_kv_head": 8, "n_embd": 4096, "n_expanded_embd": 14336, "use_gated_mlp": True}
    rows = [
        {f"time_stats.{name}.median": 0.01 * (i + 1) for i, name in enumerate(MLP)}
        | sizes
        | {"num_tokens": tokens, "num_tensor_parallel_workers": 2}
        for tokens in (1, 128)
    ]
    pd.DataFrame(rows).to_csv(folder / "model.mlp.csv", index=False)
    common = {"n_embd": 4096, "n_q_head": 32, "n_kv_head": 8, "num_tensor_parallel_workers": 2}
    common |= {"attention_backend": "AttentionBackend.FLASH_ATTENTION"}
    attention = [
        common
        | {"is_prefill": True, "batch_size": 1, "prefill_chunk_size": 64, "kv_cache_size": 128}
        | {"time_stats.attn_prefill.median": 0.02},
        common
        | {"is_prefill": False, "batch_size": 4, "prefill_chunk_size": 0, "kv_cache_size": 99}
        | {"time_stats.attn_decode.median": 0.03},
    ]
    pd.DataFrame(attention).to_csv(folder / "model.attention.csv.gz", index=False)
    reduce = [
        {"time_stats.all_reduce.median": time, "num_workers": 2, "devices_per_node": node, "size": 2048}
        for time, node in ((0.05, 2), (0.04, 2), (9.0, 1))
    ]
    pd.DataFrame(reduce).to_csv(folder / "box.all_reduce.csv", index=False)
    return folder


def test_vidurs_gemms_are_those_of_one_gpu(vidur: Path) -> None:
    """2 GPUs: 16 query heads and 4 KV heads of 128 each, so qkv is 4096 -> 2048 + 2 x 512; gate and up 14336."""
    gemm = import_vidur(vidur, "a100").tables["gemm"]
    shapes = {tuple(row) for row in gemm[gemm["tokens"] == 128][["n", "k", "median_ns"]].to_numpy().tolist()}
    assert shapes == {(3072, 4096, 10e3), (4096, 2048, 20e3), (14336, 4096, 30e3), (4096, 7168, 40e3)}


def test_tables_of_two_devices_are_not_mixed(vidur: Path) -> None:
    """As in Vidur's own repository: a folder a device, and the network's files named after the boxes."""
    (vidur / "h100").mkdir()
    (vidur / "model.mlp.csv").rename(vidur / "h100" / "model.mlp.csv")
    (vidur / "box.all_reduce.csv").rename(vidur / "h100_dgx.all_reduce.csv")
    assert import_vidur(vidur, "h100").header.device == "h100-sxm"
    with pytest.raises(InputError, match=r"h100.*: is of h100, not of a100-80gb; name the folder of one device"):
        import_vidur(vidur, "a100")


def test_vidurs_attention_counts_the_new_token(vidur: Path) -> None:
    tables = import_vidur(vidur, "a100").tables
    decode = tables["attention_decode"].iloc[0]
    assert (decode["heads"], decode["kv_heads"], decode["head_dim"]) == (16, 4, 128)
    assert (decode["batch"], decode["context_tokens"], decode["median_ns"]) == (4, 400, 30e3)
    prefill = tables["attention_prefill"].iloc[0]
    assert (prefill["chunk"], prefill["past"], prefill["median_ns"]) == (64, 128, 20e3)


def test_the_slowest_rank_of_one_node_is_a_collective(vidur: Path) -> None:
    collective = import_vidur(vidur, "a100").tables["collective"]
    assert collective[["kind", "gpus", "bytes", "median_ns"]].to_numpy().tolist() == [["all_reduce", 2, 2048, 50e3]]


def test_a_send_is_within_one_node(vidur: Path) -> None:
    """Vidur timed two GPUs of one node and two of two nodes; on its A100s 64 MiB take 0.294 and 8.586 ms."""
    sends = [
        {"time_stats.send_recv.median": time, "num_workers": 2, "devices_per_node": node, "size": 1 << 26}
        for time, node in ((0.294, 2), (8.586, 1))
    ]
    pd.DataFrame(sends).to_csv(vidur / "box.send_recv.csv", index=False)
    collective = import_vidur(vidur, "a100").tables["collective"]
    send = collective[collective["kind"] == "send"]
    assert send[["gpus", "bytes"]].to_numpy().tolist() == [[2, 1 << 26]]
    assert send["median_ns"].iloc[0] == pytest.approx(294e3)


def test_a_vidur_import_is_a_profile_that_reads_and_fits(vidur: Path, tmp_path: Path) -> None:
    write_operator_profile(import_vidur(vidur, "a100"), tmp_path / "out")
    again = read_operator_profile(tmp_path / "out")
    assert again.header.device == "a100-80gb"
    model = fit_operators(again)
    found = model.gemm_ns(np.array([128.0]), 3072, 4096)
    assert found is not None
    assert found.ns[0] == pytest.approx(10e3)


def test_a_folder_that_is_not_vidurs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no CSV named like Vidur's"):
        import_vidur(tmp_path, "a100")
    (tmp_path / "x.mlp.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"x.mlp.csv: column .* is missing"):
        import_vidur(tmp_path, "a100")
    with pytest.raises(InputError, match="device 'a1000' is not known"):
        import_vidur(tmp_path, "a1000")


def test_a_vidur_table_that_is_damaged_is_refused(vidur: Path) -> None:
    path = vidur / "model.attention.csv.gz"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"model.attention.csv.gz: is damaged"):
        import_vidur(vidur, "a100")


def test_a_vidur_table_with_words_for_sizes_is_refused(vidur: Path) -> None:
    path = vidur / "model.mlp.csv"
    path.write_text(path.read_text().replace("4096", "wide"))
    with pytest.raises(InputError, match=r"model.mlp.csv: holds what is no number"):
        import_vidur(vidur, "a100")


def test_a_vidur_table_that_is_too_long_is_refused_not_cut(vidur: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simkit.calibrate.vidur_import.MOST_ROWS", 2)
    with pytest.raises(InputError, match=r"box.all_reduce.csv: more than 2 rows"):
        import_vidur(vidur, "a100")


def test_versions_are_ordered_as_people_count() -> None:
    names = ["0.5.6.post2", "0.5.14", "0.5.10", "1.3.0rc20", "1.3.0rc3", "0.24.0", "0.9.0"]
    ordered = ["0.5.6.post2", "0.5.10", "0.5.14", "0.9.0", "0.24.0", "1.3.0rc3", "1.3.0rc20"]
    assert sorted(names, key=version_key) == ordered


def test_a_release_is_newer_than_its_candidates() -> None:
    """The order that PEP 440 gives them."""
    names = ["1.3.1", "1.3.0.post2", "1.3.0.post1", "1.3.0", "1.3.0rc20", "1.3.0rc3"]
    assert sorted(names, key=version_key) == names[::-1]


def test_their_systems_are_devices_here() -> None:
    assert {name for name in SYSTEMS.values() if name} <= set(known_devices())


@needs_aic
def test_aiconfigurators_h200_has_the_published_rows() -> None:
    """Counted in the Parquet files of aiconfigurator-core 0.12.0; prefill without its rows of one token."""
    profile = import_aic("h200_sxm", "vllm")
    rows = {name: len(frame) for name, frame in profile.tables.items()}
    assert rows["gemm"] == 107_225
    assert rows["attention_decode"] == 62_166
    assert profile.header.device == "h200"
    gemm = profile.tables["gemm"]
    one = gemm[(gemm["tokens"] == 4096) & (gemm["n"] == 4096) & (gemm["k"] == 4096) & (gemm["dtype"] == "bf16")]
    # 2 x 4096^3 FLOPs at the 989 TFLOP/s of the datasheet take 139 us; cuBLAS reaches 75 to 90 % of it
    assert 139e3 / 0.9 < float(one["median_ns"].iloc[0]) < 139e3 / 0.75


@needs_aic
def test_latent_attention_is_borrowed_where_the_engine_was_not_timed() -> None:
    """16 heads, a prompt of 8192: 320 x 16 x 8192^2 FLOPs; a form with three times as many is not taken."""
    profile = import_aic("h200_sxm", "vllm")
    assert any("kernels of sglang" in note and "trtllm" in note for note in profile.header.notes)
    prefill = profile.tables["mla_prefill"]
    one = prefill[(prefill["heads"] == 16) & (prefill["chunk"] == 8192) & (prefill["batch"] == 1)]
    one = one[one["kv_dtype"] == "bf16"]
    assert len(one) == 1
    teraflops = 320 * 16 * 8192**2 / float(one["median_ns"].iloc[0]) / 1e3
    assert 400 < teraflops < 989  # the datasheet's peak
    decode = profile.tables["mla_decode"]
    assert set(decode["kv_rank"]) == {512}
    assert (decode["context_tokens"] == decode["longest_tokens"] * decode["batch"]).all()


@needs_aic
@pytest.mark.parametrize(
    ("system", "backend", "version", "said"),
    [
        ("h200sxm", "vllm", None, "--system h200sxm: is not known; did you mean 'h200_sxm'"),
        ("h200_sxm", "vlm", None, "--backend vlm: is not known; did you mean 'vllm'"),
        ("h200_sxm", "vllm", "9.9", "--version 9.9: not among those of vllm"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_one(system: str, backend: str, version: str | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        import_aic(system, backend, version)


@pytest.mark.slow
@needs_aic
def test_every_system_and_engine_they_have_imports_and_fits() -> None:
    for system in ("a100_sxm", "b200_sxm", "l40s"):
        for backend in ("vllm", "sglang", "trtllm"):
            if versions_of(system, backend):
                profile = import_aic(system, backend)
                fit_operators(profile)
                assert profile.tables, (system, backend)


@needs_aic
def test_the_silicon_sample_is_whole() -> None:
    rows = read_silicon_sample()
    assert len(rows) == 5_221
    assert 4_000 < len(without_repeats(rows)) < 5_221
    first = rows[0]
    assert (first.model, first.backend, first.backend_version) == ("MiniMaxAI/MiniMax-M2.5", "vllm", "0.19.0")
    assert (first.input_tokens, first.output_tokens, first.concurrency, first.tensor) == (8192, 1024, 128, 4)
    assert first.ttft_s == pytest.approx(0.97231, rel=1e-4)
    assert first.tpot_s == pytest.approx(0.033443, rel=1e-4)


def silicon(path: Path, **changes: str) -> Path:
    """A sample of one row."""
    cells = {
        "id": "a",
        "silicon_data_source": "x; silicon_concurrency=16; y",
        "backend": "vllm",
        "backend_version": "0.19.0",
        "model_path": "meta-llama/Llama-3.1-70B",
        "system": "h100_sxm",
        "precision": "fp8",
        "mode": "agg",
        "isl": "1024",
        "osl": "128",
        "gemm_quant_mode": "fp8",
        "moe_quant_mode": "",
        "tp_size": "4.0",
        "silicon_ttft_ms": "100.5",
        "silicon_tpot_ms": "10.25",
    } | changes
    path.write_text(",".join(cells) + "\n" + ",".join(cells.values()) + "\n")
    return path


def test_a_silicon_row_is_read_in_our_units(tmp_path: Path) -> None:
    row = read_silicon_sample(silicon(tmp_path / FILE))[0]
    assert (row.device, row.tensor, row.concurrency) == ("h100-sxm", 4, 16)
    assert (row.ttft_s, row.tpot_s) == (0.1005, 0.01025)
    assert row.prefill.tensor is None


def test_a_silicon_cell_that_no_table_has_is_refused(tmp_path: Path) -> None:
    """Longer than the 131,072 characters that Python's reader takes."""
    with pytest.raises(InputError, match=r"silicon_sample.csv:\d+: is no line of a CSV table: field larger than"):
        read_silicon_sample(silicon(tmp_path / FILE, precision="x" * 200_000))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"isl": "-3"}, "isl='-3': is not a count"),
        ({"isl": ""}, "isl is empty"),
        ({"silicon_ttft_ms": "0"}, "silicon_ttft_ms='0': is not a time"),
        ({"mode": "both"}, "mode='both': is not known; agg or disagg"),
        ({"tp_size": "2.5"}, "tp_size='2.5': is not a count"),
    ],
)
def test_a_bad_silicon_row_is_named(tmp_path: Path, changes: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=f"{FILE}:2: {said}"):
        read_silicon_sample(silicon(tmp_path / FILE, **changes))
