"""A stored profile of operators predicts a bench: its tables are the sum of what the decoder calls."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("torch", reason="the testbed runs torch; install the extra gpu, or its CPU build")

from simkit.calibrate.operator_profile import (
    DeviceSeen,
    Header,
    KernelSource,
    OperatorProfile,
    Origin,
    write_operator_profile,
)
from simkit.calibrate.profile_tables import columns
from simkit.engine.settings import EngineSettings
from simkit.errors import InputError
from simkit.models.catalog import load_model
from simkit.models.steptables import StepTables, interpolate
from simkit.testbed.bench import Bench, set_up
from simkit.testbed.settings import TestbedSettings
from simkit.testbed.stored_profile import stored_tables

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB = 64, 2, 4, 2, 16, 128, 500
MODEL = {
    "model_type": "llama", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "intermediate_size": FFN, "vocab_size": VOCAB,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "hidden_act": "silu", "torch_dtype": "bfloat16",
}  # fmt: skip
# [k, n] of the products of `simkit.testbed.decoder.run_step`, a layer's and the last
PRODUCTS = [(HIDDEN, (HEADS + 2 * KV_HEADS) * HEAD_DIM), (HEADS * HEAD_DIM, HIDDEN), (HIDDEN, 2 * FFN), (FFN, HIDDEN)]
LAST = (HIDDEN, VOCAB)
PASSES = 5 * LAYERS + 2  # norm, rotation, cache write, norm, activation; embedding and last norm


def product_ns(k: int, n: int) -> float:
    return 2_000.0 + 2.0 * k * n


PASS_NS, ROW_NS, STEP_NS, REQUEST_NS, TOKEN_NS = 5_000.0, 7_000.0, 20_000.0, 1_000.0, 10.0


def decode_ns(context: float) -> float:
    return 3_000.0 + 20.0 * context


def table(table_name: str, median_ns: object, **sizes: object) -> pd.DataFrame:
    filled = {"kernel": "", "contexts": "", "p10_ns": np.nan, "p90_ns": np.nan, "repeats": 5, "known": "measured"}
    filled |= {"use": "fit", "kv_dtype": "bf16", "dtype": "bf16", "window": 0, "head_dim": HEAD_DIM, "batch": 1}
    frame = pd.DataFrame({**sizes, "median_ns": median_ns})
    for column in columns(table_name):
        if column.name not in frame:
            frame[column.name] = filled[column.name]
    return frame[[column.name for column in columns(table_name)]]


def grid(*axes: object) -> list[np.ndarray]:
    return [axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")]


@pytest.fixture(scope="module")
def profile() -> OperatorProfile:
    """Times by closed forms."""
    products = np.array([*PRODUCTS, LAST])
    which, tokens = grid(np.arange(len(products)), (1, 2, 4, 8, 16, 32, 64, 128))
    k, n = products[which].T
    batch, each = grid((1, 2, 4, 8), (16, 32, 64, 128, 256, 512))
    chunk, past = grid((2, 8, 32, 128), (0, 64, 256))
    names = ["embedding", "norm", "rope", "kv_write", "activation"]
    index, moved = grid(np.arange(len(names)), (64, 1024, 16384, 262144))
    rows = np.array([1, 2, 4, 8])
    requests, taken = grid((1, 2, 4, 8), (8, 64, 128))
    shape = {"heads": HEADS, "kv_heads": KV_HEADS}
    return OperatorProfile(
        Header(
            name="made up", created="2026-01-31", simkit_version="0", device="cpu", seen=DeviceSeen(name="a CPU"),
            kernels=KernelSource(name="closed forms"), origin=Origin(kind="measured", name="arithmetic"),
        ),
        {
            "gemm": table("gemm", product_ns(k, n), tokens=tokens, n=n, k=k),
            "attention_decode": table(
                "attention_decode", decode_ns(batch * each), batch=batch, context_tokens=batch * each,
                longest_tokens=each, **shape,
            ),
            "attention_prefill": table(
                "attention_prefill", 4_000.0 + 5.0 * chunk * (past + chunk / 2), chunk=chunk, past=past, **shape
            ),
            "elementwise": table(
                "elementwise", np.full(len(moved), PASS_NS), name=np.array(names)[index], tokens=1, width=64,
                bytes=moved,
            ),
            "sampling": table("sampling", ROW_NS * rows, name="greedy", rows=rows, vocab=VOCAB),
            "host": table(
                "host", STEP_NS + REQUEST_NS * requests + TOKEN_NS * taken, part="prepare", requests=requests,
                tokens=taken,
            ),
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.json"
    path.write_text(json.dumps(MODEL))
    return path


def bench(model: Path, dtype: str = "bfloat16", asynchronous: bool = False) -> Bench:
    engine = EngineSettings(
        max_num_batched_tokens=128, max_num_seqs=8, max_model_len=512, num_gpu_blocks_override=300,
        async_scheduling=asynchronous,
    )  # fmt: skip
    return set_up(str(model), engine, TestbedSettings(device="cpu", dtype=dtype))


def decode_step_ns(tables: StepTables, requests: int, context: int) -> float:
    """What the engine's clock makes of a step of decodes."""
    attention = interpolate(tables.decode_ns, requests, context)
    return float(tables.linear_ns[requests] + tables.sample_ns[requests] + attention)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(("requests", "context"), [(1, 100), (4, 700), (8, 2000)])
def test_a_step_takes_what_its_operators_take(
    profile: OperatorProfile, model: Path, asynchronous: bool, requests: int, context: int
) -> None:
    tables = stored_tables(profile, Path("p"), load_model(str(model)), bench(model, asynchronous=asynchronous))
    operators = LAYERS * (sum(product_ns(*each) for each in PRODUCTS) + decode_ns(context))
    operators += product_ns(*LAST) + PASSES * PASS_NS + ROW_NS * requests
    inputs = STEP_NS + (REQUEST_NS + TOKEN_NS) * requests
    # with two steps under way inputs are made while the device works
    on_device = operators if asynchronous else operators + inputs
    assert decode_step_ns(tables, requests, context) == pytest.approx(on_device, rel=0.02)
    assert tables.host_ns[requests] == pytest.approx(inputs if asynchronous else 0.0, rel=0.01)


def test_the_command_takes_the_directory(profile: OperatorProfile, model: Path, tmp_path: Path) -> None:
    write_operator_profile(profile, tmp_path / "stored")
    config = {
        "deployment": {
            "model": str(model),
            "engine": {"max_num_batched_tokens": 128, "max_num_seqs": 8, "max_model_len": 512,
                       "num_gpu_blocks_override": 300, "async_scheduling": True},
        },
        "workload": {"generate": {
            "requests": 12, "arrivals": {"kind": "poisson", "rate_per_s": 40.0},
            "lengths": {"kind": "independent", "input": {"kind": "constant", "tokens": 20},
                        "output": {"kind": "constant", "tokens": 6}},
        }},
        "testbed": {"device": "cpu", "dtype": "bfloat16", "threads": 1},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    main = "from simkit.cli.main import entry; entry()"
    given = ["testbed", tmp_path / "config.yaml", "--profile", tmp_path / "stored", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", main, *map(str, given)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    tree = json.loads(done.stdout)
    assert tree["step_time"] == "operators measured: made up, 2026-01-31"
    assert tree["replay"]["identical"] == tree["replay"]["steps"] > 12
    assert tree["limits"]["pipeline_depth"] == 2
    # what a decode or two take by this profile, whatever they take here
    one_ns = LAYERS * (sum(product_ns(*each) for each in PRODUCTS) + decode_ns(25))
    one_ns += product_ns(*LAST) + PASSES * PASS_NS + ROW_NS
    assert tree["steps"]["decode"]["expected_p50_s"] == pytest.approx(one_ns / 1e9, rel=0.15)
    assert tree["quantities"]["e2e_p50_s"]["measured"] > tree["quantities"]["e2e_p50_s"]["predicted"] > 0


def test_a_profile_of_other_numbers_or_another_device_is_refused(profile: OperatorProfile, model: Path) -> None:
    arch, place = load_model(str(model)), Path("p")
    with pytest.raises(InputError, match=r"testbed\.dtype=float32: profiles of operators time 16-bit numbers"):
        stored_tables(profile, place, arch, bench(model, "float32"))
    gpu = OperatorProfile(profile.header.model_copy(update={"device": "h100-sxm"}), profile.tables)
    with pytest.raises(InputError, match="p: was measured on h100-sxm, and this is a CPU"):
        stored_tables(gpu, place, arch, bench(model))
    without = {name: frame for name, frame in profile.tables.items() if name != "attention_prefill"}
    with pytest.raises(InputError, match="p: has no times of attention_prefill; measure again"):
        stored_tables(OperatorProfile(profile.header, without), place, arch, bench(model))
    single = profile.tables | {"gemm": profile.tables["gemm"].assign(dtype="fp32")}
    with pytest.raises(InputError, match="p: times products of fp32, not of bfloat16"):
        stored_tables(OperatorProfile(profile.header, single), place, arch, bench(model))
