"""This machine's CPU as a device: the operators are those of the testbed, and the whole path runs in seconds."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="measuring needs torch; install the extra gpu, or its CPU build")

import torch
from typer.testing import CliRunner

from simkit.calibrate.check import check_profile, measured_dtype, measured_heads
from simkit.calibrate.cpu_attention import CpuCache, attend, chunk_part, decode_parts
from simkit.calibrate.cpu_bench import CpuBench
from simkit.calibrate.cpu_memory import Arena
from simkit.calibrate.cpu_operators import cpu_call
from simkit.calibrate.cpu_seen import cpu_seen
from simkit.calibrate.measure import UnmeasurableError, measure
from simkit.calibrate.operator_model import fit_operators
from simkit.calibrate.operator_profile import read_operator_profile
from simkit.calibrate.operator_sizes import AttentionShape
from simkit.calibrate.points import PlannedPoint, Point
from simkit.calibrate.points_plan import plan_points
from simkit.calibrate.points_scope import Scope
from simkit.cli.calibrate_measure import parse_seconds
from simkit.cli.main import app
from simkit.errors import InputError, TargetNotMetError
from simkit.models.catalog import load_model
from simkit.testbed import paged_attention
from simkit.testbed.inputs import Chunk, Decodes, StepInputs

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 499,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.fixture(scope="module")
def profile(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole command with a budget of six seconds, which a quiet machine does not use up."""
    out = tmp_path_factory.mktemp("profiles") / "cpu"
    options = f"--device cpu --model {model} --budget 6s --out {out} --max-num-seqs 4 --max-num-batched-tokens 16"
    done = CliRunner().invoke(app, ["calibrate", "measure", *options.split(), "--max-model-len", "128", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["profile"] == str(out)
    return out


def test_attention_is_the_testbeds() -> None:
    """Calibration cannot import the testbed, so its calls are written twice: the same bits, or one has changed."""
    torch.manual_seed(0)
    keys, values = torch.randn(2, 1, 90, 16, 2, 8)
    rng = np.random.default_rng(0)
    contexts = np.array([5, 250, 33, 17, 240, 100])
    blocks = rng.permutation(89)[: 6 * 16].reshape(-1)[:84].reshape(6, 14)
    blocks = np.concatenate([blocks, blocks[:, :2]], axis=1) + 1
    table = rng.permutation(89)[:4] + 1
    decodes, chunk = Decodes(np.arange(6), blocks, contexts), Chunk(first=6, tokens=20, past=30, blocks=table)
    q = torch.randn(26, 4, 8)
    step = StepInputs(np.zeros(26), np.zeros(26), np.zeros(26), decodes, (chunk,), np.zeros(1))
    theirs = paged_attention.attention_parts(step, 16, torch.device("cpu"))
    expected = paged_attention.attend(paged_attention.KVCache(keys, values), 0, q, theirs)
    ours = [*decode_parts(np.arange(6), blocks, contexts), chunk_part(6, 20, 30, table)]
    assert len(ours) == len(theirs) > 2
    mixed = torch.empty_like(q)
    for part in ours:
        mixed[part.rows] = attend(CpuCache(keys[0], values[0]), q[part.rows], part)
    assert torch.equal(mixed, expected)


def test_every_planned_operator_runs(model: Path) -> None:
    scope = Scope((load_model(str(model)),), 64, 4, 128, 1024)
    plan = plan_points(scope, host_copies=False)
    arena = Arena(1 << 20, torch.bfloat16)
    for table in {planned.point.table for planned in plan}:
        for planned in [planned for planned in plan if planned.point.table == table][::3]:
            cpu_call(planned.point, arena)()


def test_experts_and_copies_run() -> None:
    arena = Arena(1 << 20, torch.bfloat16)
    cpu_call(Point("moe", ("bf16", 5, 64, 32, 4, 2, 1, 1, "even")), arena)()
    cpu_call(Point("copy", ("device_to_device", 4096)), arena)()


@pytest.mark.parametrize(
    ("point", "why"),
    [
        (Point("gemm", ("fp8", 4, 64, 64)), "fp8 is not timed on a CPU"),
        (Point("gemm", ("bf16", 4, 1 << 20, 1 << 20)), "2 GiB is the most"),
        (Point("copy", ("host_to_device", 4096)), "no host beside it"),
        (Point("collective", ("all_reduce", 2, 4096)), "collective is not timed on a CPU"),
        (Point("attention_decode", ("bf16", 4, 2, 16, 128, 1, 64, 64, "")), "windowed"),
        (Point("elementwise", ("latent_norm", 4, 64, 512)), "latent_norm is not timed"),
    ],
)
def test_what_a_cpu_does_not_run_is_said(point: Point, why: str) -> None:
    with pytest.raises(UnmeasurableError, match=why):
        cpu_call(point, Arena(1 << 20, torch.bfloat16))


def test_weights_are_taken_in_turn() -> None:
    arena = Arena(1 << 20, torch.bfloat16)
    views = arena.views(64, 64)
    places = {next(views).data_ptr() for _ in range(300)}
    assert len(places) == (1 << 20) // (64 * 64 * 2)


def test_a_longer_operator_takes_longer() -> None:
    """Eight times the work of a product that is bound by compute: 8 times the time, within a factor of 2."""
    bench = CpuBench("fp32", 1, 1 << 20)
    small, large = (Point("gemm", ("fp32", tokens, 512, 512)) for tokens in (64, 512))
    found = measure(bench, [PlannedPoint(small, 0), PlannedPoint(large, 0)], 1.0).timings
    assert 4.0 < found[large].median_ns / found[small].median_ns < 16.0


def test_the_command_measures_every_table_and_holds_points_out(profile: Path) -> None:
    stored = read_operator_profile(profile)
    header = stored.header
    assert (header.device, header.origin.kind) == ("cpu", "measured")
    assert header.seen.multiprocessors == 1
    assert header.kernels.sha256 is not None
    assert {"torch", "numpy", "python"} <= set(header.versions)
    assert set(stored.tables) >= {"gemm", "attention_decode", "attention_prefill", "elementwise", "host", "sampling"}
    assert any((frame["use"] == "held_out").any() for frame in stored.tables.values())
    assert any("sentinel" in note for note in header.notes)
    assert measured_dtype(stored) == "bf16"
    assert measured_heads(stored) == {AttentionShape(4, 2, 16)}


def test_a_measured_profile_is_fitted(profile: Path) -> None:
    model = fit_operators(read_operator_profile(profile))
    times = model.gemm_ns(np.array([1.0, 32.0]), n=192, k=64)
    assert times is not None
    assert (times.ns > 0).all()
    assert model.decode_attention_ns(np.array([2.0]), np.array([64.0]), AttentionShape(4, 2, 16)) is not None


def test_a_profile_checked_where_it_was_made_is_compared_point_by_point(profile: Path) -> None:
    """A wide limit: what is tested is the path, on a machine that other tests share."""
    drift = check_profile(read_operator_profile(profile), points=12, budget_s=2.0, limit=3.0)
    assert drift.points == 12
    assert drift.holds


def test_a_profile_that_does_not_hold_ends_in_exit_code_3(profile: Path, tmp_path: Path) -> None:
    """Times stored ten times too long are not those of this machine."""
    from simkit.calibrate.operator_profile import write_operator_profile

    stored = read_operator_profile(profile)
    for frame in stored.tables.values():
        frame[["median_ns", "p10_ns", "p90_ns"]] *= 10.0
    write_operator_profile(stored, tmp_path / "slow")
    done = CliRunner().invoke(app, ["calibrate", "check", str(tmp_path / "slow"), "--points", "10", "--budget", "2s"])
    assert isinstance(done.exception, TargetNotMetError)
    assert "does not hold here" in str(done.exception)


def test_the_cpu_is_described() -> None:
    seen = cpu_seen(2)
    assert seen.multiprocessors == 2
    assert seen.name.endswith("2 threads")


def test_budgets_are_read() -> None:
    assert [parse_seconds(text) for text in ("480s", "8m", "90", "1.5m")] == [480.0, 480.0, 90.0, 90.0]
    for text in ("", "8h", "-3s", "0s", "1e9s"):
        with pytest.raises(InputError, match="--budget"):
            parse_seconds(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--device cpu --dtype bf17", "--dtype bf17: is not known"),
        ("--device cpu --budget soon", "--budget soon"),
        ("--device gpu", "--device gpu: is not known; did you mean 'cpu'"),
        ("--device cpu --trace a.csv --preset azure-conv-2023", "--trace and --preset: give one"),
    ],
)
def test_bad_options_are_one_clear_line(model: Path, tmp_path: Path, options: str, message: str) -> None:
    arguments = ["calibrate", "measure", "--model", str(model), "--out", str(tmp_path / "p"), *options.split()]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, InputError)
    assert message in str(done.exception)


@pytest.mark.slow
def test_the_experiment_measures_predicts_and_composes(tmp_path: Path) -> None:
    """The plumbing of experiments/calibrate/cpu.py; how well it does is for a quiet machine to say."""
    script = Path(__file__).resolve().parents[2] / "experiments/calibrate/cpu.py"
    out = tmp_path / "cpu"
    subprocess.run([sys.executable, str(script), "--out", str(out), "--budget", "20s"], check=True, capture_output=True)
    found = json.loads((out / "report.json").read_text())
    assert {row["table"] for row in found["held_out"]} == {
        "gemm",
        "attention_decode",
        "attention_prefill",
        "elementwise",
    }
    assert 0.0 < found["held_out_median"] < 1.0
    assert found["steps"]["all"]["steps"] > 50
    assert "aim 8 %" in (out / "report.md").read_text()
