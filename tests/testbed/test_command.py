"""`simkit testbed` end to end, as a user starts it, with a decoder that takes a millisecond a step."""

import gzip
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the testbed runs torch; install the extra gpu, or its CPU build")

from simkit.calibrate.step_log import read_step_log

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]

CONFIG = """
deployment:
  model: {model}
  engine: {{max_num_batched_tokens: 64, max_num_seqs: 8, max_model_len: 128, num_gpu_blocks_override: 100}}
workload:
  generate:
    requests: {requests}
    arrivals: {{kind: poisson, rate_per_s: {rate}}}
    lengths:
      kind: independent
      input: {{kind: lognormal, median_tokens: 20, sigma: 0.6, min_tokens: 4, max_tokens: 60}}
      output: {{kind: lognormal, median_tokens: 8, sigma: 0.5, min_tokens: 2, max_tokens: 20}}
testbed: {{threads: 1, dtype: float32, device: cpu}}
"""
MODEL = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 500,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "torch_dtype": "float32",
}


def command(*arguments: object) -> list[str]:
    main = "from simkit.cli.main import entry; entry()"
    return [sys.executable, "-c", main, "testbed", *map(str, arguments)]


@pytest.fixture(scope="module")
def simkit() -> Run:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command(*arguments), capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)

    return run


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`written(requests, rate)`: a configuration."""
    folder = tmp_path_factory.mktemp("config")
    (folder / "model.json").write_text(json.dumps(MODEL))

    def write(requests: int = 20, rate: float = 40.0) -> Path:
        path = folder / f"{requests}-{rate}.yaml"
        path.write_text(CONFIG.format(model=folder / "model.json", requests=requests, rate=rate))
        return path

    return write


@pytest.fixture(scope="module")
def result(simkit: Run, written: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("result")
    done = simkit(written(), "--json", "--out", out)
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)


def test_measured_stands_beside_predicted(result: tuple[Path, dict]) -> None:
    _, tree = result
    assert tree["complete"] is True
    assert tree["replay"]["identical"] == tree["replay"]["steps"] == tree["measured"]["batch"]["steps"]
    for metric in ("ttft", "tpot", "itl", "e2e"):
        for quantile in ("p50", "p90", "p99"):
            pair = tree["quantities"][f"{metric}_{quantile}_s"]
            assert pair["measured"] > 0
            assert pair["predicted"] > 0
    for name in ("output_tokens_per_s", "kv_mean_share", "batch_requests_mean", "host_a_step_mean_s"):
        assert tree["quantities"][name]["measured"] > 0
    assert {"decode", "all"} <= tree["steps"].keys()
    assert sum(e["steps"] for kind, e in tree["steps"].items() if kind != "all") == tree["steps"]["all"]["steps"]
    assert tree["step_time"].startswith("calibrated just now")


def test_the_directory_holds_log_profile_numbers_and_page(result: tuple[Path, dict]) -> None:
    out, tree = result
    log = read_step_log(out / "measured.jsonl.gz")
    assert log.steps == tree["replay"]["steps"]
    assert log.header.partial is None
    assert json.loads((out / "comparison.json").read_text())["quantities"] == tree["quantities"]
    assert json.loads((out / "profile.json").read_text())["schema"] == "simkit.profile/1"
    page = (out / "report.html").read_text()
    assert "Measured beside predicted" in page
    assert page.count("<svg") == 8


def test_a_profile_or_earlier_logs_predict_too(
    simkit: Run, result: tuple[Path, dict], written: Callable[..., Path]
) -> None:
    out, _ = result
    by_profile = simkit(written(), "--profile", out / "profile.json", "--json")
    assert by_profile.returncode == 0, by_profile.stderr
    assert json.loads(by_profile.stdout)["step_time"].startswith("calibrated on ")
    by_logs = simkit(written(), "--steps", out / "measured.jsonl.gz", "--json")
    assert by_logs.returncode == 0, by_logs.stderr
    assert json.loads(by_logs.stdout)["step_time"].startswith("a fit of earlier logs")
    table = simkit(written(), "--no-calibrate", "--out", out / "other")
    assert table.returncode == 0
    assert "TTFT" in table.stderr


def test_drafts_are_served_in_both_clocks(simkit: Run, written: Callable[..., Path]) -> None:
    drafts = [f"deployment.engine.{each}" for each in ("speculative_tokens=3", "acceptance=0.7")]
    done = simkit(written(), *(part for setting in drafts for part in ("--set", setting)), "--json")
    assert done.returncode == 0, done.stderr
    tree = json.loads(done.stdout)
    assert tree["replay"]["identical"] == tree["replay"]["steps"]
    assert tree["limits"]["speculative_tokens"] == 3


def test_ctrl_c_keeps_the_log(
    written: Callable[..., Path], started: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    # two hours of arrivals
    process = started(command(written(7200, 1.0), "--no-calibrate", "--out", tmp_path), cwd=ROOT)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("serving 7,200 requests, which arrive over")
    time.sleep(8.0)  # in which some of them have come
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "interrupted after step" in errors
    log = read_step_log(tmp_path / "measured.jsonl.gz")
    assert log.header.partial is not None
    assert log.header.partial.startswith("interrupted after step")
    assert log.steps > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--set", "testbed.layer=2"), "testbed.layer: unknown key; did you mean 'layers'?"),
        (("--device", "cuda"), "no CUDA device"),
        (("--dtype", "float23"), "testbed.dtype='float23'"),
        (("--calibrate", "--steps", "x.jsonl"), "--steps and --calibrate: each says where step times come from"),
        (("--set", "deployment.engine.async_scheduling=true", "--clock", "processor"), "testbed.clock=processor"),
        (
            (
                "--set",
                "deployment.engine.async_scheduling=true",
                "--set",
                "deployment.engine.speculative_tokens=2",
                "--set",
                "deployment.engine.acceptance=0.5",
            ),
            "deployment.engine.speculative_tokens=2: not with asynchronous scheduling",
        ),
        (("--set", "deployment.layout.tensor=2"), "the testbed runs one device"),
        (("--set", "deployment.kv=fp8"), "deployment.kv: the testbed computes in testbed.dtype"),
        (("--profile", "nowhere.json"), "nowhere.json: cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    simkit: Run, written: Callable[..., Path], arguments: tuple[str, ...], says: str
) -> None:
    done = simkit(written(), *arguments, "--json")
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_log_that_cannot_be_written_where_it_should_is_kept_elsewhere(
    simkit: Run, written: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, spare = tmp_path / "out", tmp_path / "spare"
    (out / "measured.jsonl.gz").mkdir(parents=True)
    spare.mkdir()
    monkeypatch.setenv("TMPDIR", str(spare))
    done = simkit(written(), "--no-calibrate", "--out", out)
    assert done.returncode == 2, done.stderr
    assert "Device busy" in done.stderr
    kept = list(spare.glob("simkit-testbed-*/measured.jsonl.gz"))
    assert len(kept) == 1
    assert f"measured.jsonl.gz: is a directory; choose another place; the log is in {kept[0]} instead" in done.stderr
    assert json.loads(gzip.decompress(kept[0].read_bytes()).splitlines()[0])["kind"] == "header"


def test_the_cpu_experiment_is_connected(tmp_path: Path) -> None:
    """Its short form: everything runs and is written; its times mean nothing."""
    script = ROOT / "experiments/testbed/cpu.py"
    done = subprocess.run(
        [sys.executable, script, "--quick", "--out", tmp_path], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("steps of 3 logs planned alike") == 2
    assert done.stdout.count(": counts") == 6
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    for way, folder in (("one step at a time", tmp_path), ("asynchronous scheduling", tmp_path / "asynchronous")):
        assert len(list(folder.glob("attempt-*.jsonl.gz"))) == 3
        assert len(list(folder.glob("calibration-*.jsonl.gz"))) == 4
        assert (folder / "repeat-1.html").stat().st_size > 10_000
        rows = numbers[way]["rows"]
        assert [row["name"] for row in rows] == [
            f"{metric} {q}" for metric in ("E2E", "TTFT", "ITL") for q in ("p50", "p90")
        ]
        assert all(len(row["measured_s"]) == 1 and row["predicted_s"] > 0 for row in rows)
