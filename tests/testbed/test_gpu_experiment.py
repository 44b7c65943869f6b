"""experiments/gpu/testbed.py up to its first device call: everything else of it, on a tiny decoder on the CPU."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("torch", reason="the testbed runs torch; install the extra gpu, or its CPU build")

from simkit.engine.settings import EngineSettings
from simkit.errors import InputError
from simkit.testbed.bench import Bench, set_up
from simkit.testbed.settings import TestbedSettings

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "experiments/gpu/testbed.py"
MODEL = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "vocab_size": 199,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "torch_dtype": "float32",
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    import importlib.util

    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec = importlib.util.spec_from_file_location("gpu_testbed", SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["gpu_testbed"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return module


@pytest.fixture(scope="module", params=[False, True], ids=["one step at a time", "asynchronous"])
def bench(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Bench:
    path = tmp_path_factory.mktemp("model") / "tiny.json"
    path.write_text(json.dumps(MODEL))
    engine = EngineSettings(
        max_num_batched_tokens=64,
        max_num_seqs=8,
        max_model_len=256,
        num_gpu_blocks_override=200,
        enable_prefix_caching=False,
        async_scheduling=request.param,
    )
    return set_up(str(path), engine, TestbedSettings(device="cpu"))


def test_the_plan_needs_no_gpu() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--plan"], capture_output=True, text=True, check=True, timeout=120)
    assert "llama-3.1-8b, bfloat16, all layers" in done.stdout
    assert "asynchronous scheduling off" in done.stdout


def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    command = [sys.executable, SCRIPT, "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("no CUDA device")
    assert not (tmp_path / "out").exists()


def test_everything_after_the_decoder(script: ModuleType, bench: Bench, tmp_path: Path) -> None:
    plan = script.Plan(
        max_model_len=256, max_num_seqs=8, bursts=(1, 6), rounds=2, run_s=1.0, most_requests=30,
        prompt_median=30, output_median=8,
    )  # fmt: skip
    found: dict[str, object] = {"machine": {"device": "none"}}
    logs, out = tmp_path / "logs", tmp_path / "out"
    logs.mkdir()
    out.mkdir()
    tables = script.calibrated(bench, plan, logs, found)
    assert set(tables) == {"knotted", "whole step"}
    knee = script.knee_per_s(bench.limits, 200, tables["knotted"], plan)
    assert knee > 1.0
    found["offline"] = script.offline(bench, plan)
    assert found["offline"]["throughput"]["output_tokens_per_s"] > 0
    found["load 0.5"] = script.at_load(bench, plan, 0.5, knee, tables, out, logs)
    assert found["offline"]["failure"] == ""
    found["load 0.8"] = "left out: 3 s were left"
    report = script.keep(found, out, logs)
    assert "## Load 0.5:" in report
    assert report.count("| TTFT p50 |") == 2
    assert "left out: 3 s were left" in report
    steps = found["load 0.5"]["steps planned alike"].split(" of ")
    assert steps[0] == steps[1]
    assert {path.name for path in out.iterdir()} == {"testbed.json", "testbed.md", "load-0.5.html", "logs.tar"}
    with tarfile.open(out / "logs.tar") as archive:
        assert set(archive.getnames()) == {"load-0.5.jsonl.gz", *(f"calibration-{i}.jsonl.gz" for i in range(4))}
    assert json.loads((out / "testbed.json").read_text())["load 0.8"] == "left out: 3 s were left"


def test_what_a_short_run_lacks_is_not_called_right(script: ModuleType) -> None:
    row = {"name": "ITL p99", "measured_s": 0.0123, "predicted_s": None, "error": None, "aim": 0.15, "met": False}
    assert script.row_line(row) == "| ITL p99 | 12.3 ms | none | none | 15% | missed |"
    row |= {"predicted_s": 0.012054, "error": -0.02, "met": True}
    assert script.row_line(row) == "| ITL p99 | 12.3 ms | 12.1 ms | -2.0% | 15% | met |"


def test_loads_share_the_time_that_is_left(script: ModuleType) -> None:
    assert script.share_s(400.0, 3, 75.0) == 75.0
    # (240 - 3 x 20) / 3
    assert script.share_s(240.0, 3, 75.0) == 60.0
    assert script.share_s(40.0, 1, 75.0) == 20.0
    assert script.share_s(39.0, 1, 75.0) is None


def test_a_load_that_fails_is_named_and_the_next_one_served(
    script: ModuleType, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = script.Plan(
        max_model_len=256, max_num_seqs=8, bursts=(1, 6), rounds=2, run_s=1.0, most_requests=10,
        prompt_median=30, output_median=8,
    )  # fmt: skip
    serve = script.at_load

    def fails_first(bench: Bench, plan: object, load: float, *more: object) -> dict[str, object]:
        if load == 0.5:
            raise RuntimeError("CUDA error: misaligned address")
        return serve(bench, plan, load, *more)

    def no_memory(*_: object) -> dict[str, object]:
        raise MemoryError

    monkeypatch.setattr(script, "LEAST_S", 0.5)
    monkeypatch.setattr(script, "answers_agree", no_memory)
    monkeypatch.setattr(script, "offline", no_memory)
    monkeypatch.setattr(script, "build", lambda plan: bench)
    monkeypatch.setattr(script, "at_load", fails_first)
    found: dict[str, object] = {"machine": {"device": "none"}}
    logs, out = tmp_path / "logs", tmp_path / "out"
    logs.mkdir()
    out.mkdir()
    assert script.measure(plan, found, out, logs, script.Stages()) is False
    assert found["requests with the same answer"] == found["offline"] == "MemoryError: "
    assert found["load 0.5"] == "RuntimeError: CUDA error: misaligned address"
    assert found["load 0.8"]["requests"] > 0
    assert "## Load 0.5: RuntimeError: CUDA error" in (out / "testbed.md").read_text()


def test_a_run_that_is_cut_short_leaves_what_it_has(
    script: ModuleType, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = script.Plan(max_model_len=256, max_num_seqs=8, bursts=(1, 6), rounds=2, prompt_median=30, output_median=8)

    def no_answers(found: dict[str, object]) -> bool:
        raise InputError("answers: step 1: RuntimeError: no kernel image")

    def interrupted(*_: object) -> dict[str, object]:
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "require_device", lambda: None)
    monkeypatch.setattr(script, "describe", lambda: {"device": "none"})
    monkeypatch.setattr(script, "answers_agree", no_answers)
    monkeypatch.setattr(script, "Plan", lambda async_scheduling: plan)
    monkeypatch.setattr(script, "build", lambda plan: bench)
    monkeypatch.setattr(script, "at_load", interrupted)
    monkeypatch.setattr(sys, "argv", ["testbed.py", "--out", str(tmp_path / "out"), "--watched"])
    with pytest.raises(KeyboardInterrupt):
        script.main()
    found = json.loads((tmp_path / "out/testbed.json").read_text())
    assert found["ended"].startswith("KeyboardInterrupt")
    assert found["requests with the same answer"] == "answers: step 1: RuntimeError: no kernel image"
    assert found["knee_requests_per_s"] > 0
    assert set(found["seconds"]) == {"answers", "decoder", "ready", "offline"}
    assert "- ended: KeyboardInterrupt" in (tmp_path / "out/testbed.md").read_text()
    with tarfile.open(tmp_path / "out/logs.tar") as archive:
        assert archive.getnames() == [f"calibration-{i}.jsonl.gz" for i in range(4)]
    # the same where the process was killed, which says nothing itself
    log = tmp_path / "out/stages.jsonl"
    begun = json.loads(log.read_text().splitlines()[-1])
    assert begun["stage"] == "load 0.5"
    assert begun["limit_s"] == pytest.approx(75.0 + 90.0)
    with log.open("a") as file:
        file.write('{"stage": "load 0.5", "cut": "no answer in 165 s"}\n')
    script.note_cut(tmp_path / "out", log)
    assert "- ended: load 0.5: no answer in 165 s" in (tmp_path / "out/testbed.md").read_text()
    assert json.loads((tmp_path / "out/testbed.json").read_text())["seconds"] == found["seconds"]
