"""`simkit run` end to end."""

import builtins
import csv
import gzip
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from simkit.cli.console import whole_or_nothing
from simkit.cli.main import entry
from simkit.errors import PartialResultError

LLAMA = ("--model", "llama-3.1-8b", "--device", "h100")


def outcome(process) -> dict:  # type: ignore[no-untyped-def, type-arg]
    """The JSON that a run printed, after checking that it is all it printed."""
    assert process.returncode == 0, process.stderr
    tree = json.loads(process.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    counts = tree["requests"]
    assert counts["arrived"] == counts["finished"] + counts["rejected"]
    assert counts["unfinished"] == 0
    assert tree["kv"]["blocks"] == tree["kv"]["blocks_free_at_end"]
    assert tree["step_time"]["provenance"] == "calibrated"
    return tree


def test_a_trace_is_replayed(simkit, azure: Path) -> None:  # type: ignore[no-untyped-def]
    tree = outcome(simkit("run", *LLAMA, "--trace", azure, "--json"))
    assert tree["requests"]["finished"] == 120
    assert 0 < tree["latency_s"]["ttft"]["p50"] < tree["latency_s"]["e2e"]["p50"]


@pytest.mark.parametrize(
    ("trace", "requests"),
    [
        ("azure2023/AzureLLMInferenceTrace_conv.csv.gz", 19_366),
        ("azure2023/AzureLLMInferenceTrace_code.csv.gz", 8_819),
        ("mooncake/conversation_trace.jsonl.gz", 12_031),
    ],
)
def test_public_traces_are_replayed_whole(simkit, shared: Path, trace: str, requests: int) -> None:  # type: ignore[no-untyped-def]
    tree = outcome(simkit("run", *LLAMA, "--trace", shared / "traces" / trace, "--json"))
    assert tree["requests"]["arrived"] == requests
    if "mooncake" in trace:
        # of 37.4 % that a cache without limit finds, this one keeps the part that its memory holds
        assert 0.02 < tree["prefix_cache"]["hit_rate"] < 0.374
        assert tree["saturation"]["saturated"]
        assert tree["latency_s"]["ttft"]["p99"] is None


def test_rates_are_over_the_traffic_wherever_a_trace_begins_to_count(simkit, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Milliseconds since 1970, as a log has them, and since the first request: the same run."""
    trees = []
    for name, first_ms in (("epoch", 1_700_000_000_000), ("own", 0)):
        rows = [{"timestamp": first_ms + 500 * i, "input_length": 600, "output_length": 20} for i in range(100)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        trees.append(outcome(simkit("run", *LLAMA, "--trace", tmp_path / f"{name}.jsonl", "--json")))
    epoch, own = trees
    for part in ("throughput", "goodput", "kv", "busy_fraction", "duration_s", "latency_s"):
        assert epoch[part] == own[part], part
    assert own["throughput"]["requests_per_s"] == pytest.approx(2.0, rel=0.02)
    assert "the first request came at 1700000000 s" in epoch["workload"]["notes"][0]
    assert own["workload"]["notes"] == []


def test_rows_left_out_are_told_of(simkit, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    rows = [f"2023-11-16 18:00:{i:02}.0000000,100,{i % 2}" for i in range(40)]
    (tmp_path / "trace.csv").write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n")
    done = simkit("run", *LLAMA, "--trace", tmp_path / "trace.csv", "--out", tmp_path / "out", "--json")
    assert outcome(done)["workload"]["dropped_rows"] == {"no_output": 20}
    assert "rows left out while reading: 20 (no_output 20)" in done.stderr
    assert "left out while reading: no_output 20" in (tmp_path / "out" / "report.html").read_text()


def test_the_same_seed_gives_the_same_bytes_in_two_processes(simkit, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    arguments = (*LLAMA, "--preset", "azure-conv-2023", "-n", 500, "--json")
    files = []
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        outcome(simkit("run", *arguments, "--seed", seed, "--out", tmp_path / name))
        files.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert set(files[0]) == {"config.yaml", "summary.json", "requests.csv.gz", "report.html", "trace.json.gz"}
    assert files[0] == files[1]
    latency = [json.loads(found["summary.json"])["latency_s"] for found in files]
    assert latency[0] != latency[2]


def test_each_requests_waterfall_sums_to_its_latency(simkit, azure: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    outcome(simkit("run", *LLAMA, "--trace", azure, "--out", tmp_path / "out", "--json"))
    text = gzip.decompress((tmp_path / "out" / "requests.csv.gz").read_bytes()).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 120
    for row in rows:
        parts = ("front_end_ns", "queue_ns", "prefill_ns", "decode_ns", "stalled_ns", "preempted_ns", "host_ns")
        assert sum(int(row[part]) for part in parts) == int(row["finish_ns"]) - int(row["arrival_ns"])
        assert int(row["front_end_ns"]) > 1_000_000


def test_littles_law_holds_on_a_replay(simkit, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Arrivals per second times mean E2E is the mean number in the system, by the requests and by their batches."""
    tree = outcome(simkit("run", *LLAMA, "--preset", "azure-conv-2023", "-n", 5000, "--json"))
    duration = tree["duration_s"]
    by_latency = tree["latency_s"]["e2e"]["mean"] * 5000 / duration
    waiting = tree["latency_s"]["queue"]["mean"] * 5000 / duration
    # in this workload the device is busy throughout, so steps per second times requests a step run at a time
    tokens = tree["batch"]["requests_mean"] * tree["batch"]["steps"]
    in_steps = tokens * (duration * tree["busy_fraction"] / tree["batch"]["steps"]) / duration
    assert by_latency - waiting == pytest.approx(in_steps, rel=0.25)


def test_prompts_beyond_the_context_are_counted_not_cut(simkit, azure: Path) -> None:  # type: ignore[no-untyped-def]
    limit = 500
    tree = outcome(
        simkit("run", *LLAMA, "--trace", azure, "--set", f"deployment.engine.max_model_len={limit}", "--json")
    )
    beyond = sum(100 + 7 * i + 1 + i % 40 > limit for i in range(120))
    assert 0 < beyond == tree["requests"]["rejected"]


def test_the_output_for_people_is_on_stderr(simkit, azure: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    process = simkit("run", *LLAMA, "--trace", azure, "--uncalibrated", cwd=tmp_path)
    assert process.returncode == 0
    assert process.stdout == ""
    assert "uncalibrated" in process.stderr
    assert (tmp_path / "simkit-result" / "report.html").exists()


def test_an_interrupted_run_keeps_what_it_has_and_says_so(
    simkit,
    started: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,  # type: ignore[no-untyped-def]
) -> None:
    preset = (*LLAMA, "--preset", "azure-conv-2023", "--json")
    # where the engine is compiled first, the smaller run would take longer than the larger one's replay
    assert simkit("run", *preset, "-n", "10").returncode == 0
    begun = time.monotonic()
    assert simkit("run", *preset, "-n", "300000").returncode == 0
    process = started(
        [
            *(sys.executable, "-c", "from simkit.cli.main import entry; entry()"),
            *("run", *preset, "-n", "2000000", "--out", tmp_path / "out"),
        ]
    )
    # when all of the smaller run is over, the larger one is in the midst of its replay
    time.sleep(time.monotonic() - begun)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "partial" in stderr
    assert "Traceback" not in stderr
    tree = json.loads(stdout)
    assert tree["complete"] is False
    assert 0 < tree["requests"]["unfinished"] < 2_000_000
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["complete"] is False
    assert "partial" in (tmp_path / "out" / "report.html").read_text().lower()


VERBS = {
    "run": (*LLAMA, "--preset", "azure-conv-2023", "-n", "100"),
    "plan": (*LLAMA, "--preset", "azure-conv-2023", "-n", "100", "--slo", "ttft_p99=1"),
    "context": (*LLAMA, "--preset", "azure-conv-2023", "-n", "100", "--slo", "ttft_p99=1"),
    "compare": ("one.yaml", "one.yaml", "--out", "here"),
    "validate": ("measured.json",),
}


@pytest.mark.parametrize(
    ("verb", "stage"),
    [
        ("run", "simkit.cli.config"),
        ("run", "simkit.engine.warm_up"),
        ("plan", "simkit.cli.config"),
        ("context", "simkit.cli.config"),
        ("compare", "simkit.cli.config"),
        ("validate", "simkit.fidelity.validate"),
    ],
)
def test_an_interrupt_before_anything_was_computed_is_told(
    verb: str, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in the midst of an import, and nothing of the result is there."""

    def interrupted(name: str, *others: object, **named: object) -> object:
        if name == stage:
            raise KeyboardInterrupt
        return real(name, *others, **named)

    real = builtins.__import__
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builtins, "__import__", interrupted)
    monkeypatch.setattr(sys, "argv", ["simkit", verb, *VERBS[verb]])
    with pytest.raises(SystemExit) as ended:
        entry()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "simkit: interrupted before anything was computed; nothing was written\n"
    assert not list(tmp_path.iterdir())


def test_a_signal_while_a_command_starts_ends_in_one_line(
    started: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """The signal comes as the verb begins: its first imports are under way."""
    script = (
        "import os, signal, simkit.cli.run as verb; from simkit.cli.main import entry\n"
        "real = verb.options.overrides\n"
        "verb.options.overrides = lambda *g: (os.kill(os.getpid(), signal.SIGINT), real(*g))[1]\n"
        "entry()"
    )
    process = started([sys.executable, "-c", script, "run", *VERBS["run"]], cwd=tmp_path)
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stdout) == (130, "")
    assert stderr == "simkit: interrupted before anything was computed; nothing was written\n"


@pytest.mark.parametrize("while_importing", ["typer", "simkit.cli.workload"])
def test_a_signal_while_the_verbs_are_imported_ends_in_one_line(
    started: Callable[..., subprocess.Popen[str]], while_importing: str
) -> None:
    script = (
        "import os, signal, sys; from simkit.__main__ import start\n"
        "class Finder:\n"
        "    def find_spec(self, name, *rest):\n"
        f"        if name == {while_importing!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "start()"
    )
    process = started([sys.executable, "-c", script, "models"])
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stdout) == (130, "")
    assert stderr == "simkit: interrupted before anything was computed; nothing was written\n"


def test_the_package_is_the_command(started: Callable[..., subprocess.Popen[str]]) -> None:
    process = started([sys.executable, "-m", "simkit", "--version"])
    stdout, _ = process.communicate(timeout=120)
    assert (process.returncode, stdout) == (0, "simkit 0.1.0\n")


def test_an_interrupt_of_what_has_no_partial_answer_is_told() -> None:
    with pytest.raises(PartialResultError, match="nothing was written"), whole_or_nothing():
        raise KeyboardInterrupt


def agents_session(starts_s: list[float]) -> dict[str, object]:
    """A session in the form of kv-cache-tester: each request follows from the one before, 1 s of thought between."""
    requests = [
        {"t": t, "type": "n", "in": 200 * (i + 1), "out": 20, "hash_ids": list(range(3 * (i + 1))), "api_time": 2.0}
        for i, t in enumerate(starts_s)
    ]
    return {"id": "made up", "block_size": 64, "requests": requests}


@pytest.mark.parametrize("replicas", [1, 2])
def test_agents_sessions_wait_for_their_answers(simkit, tmp_path: Path, replicas: int) -> None:  # type: ignore[no-untyped-def]
    """Recorded requests come 3 s apart and take 2 s; answered in less than 2 s, closed loops are over sooner."""
    folder = tmp_path / "sessions"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.json").write_text(json.dumps(agents_session([0.0, 3.0, 6.0, 9.0])))
    ends = {}
    for replay in ("open", "closed"):
        config = tmp_path / f"{replay}.yaml"
        config.write_text(
            "deployment: {model: llama-3.1-8b, device: h100}\n"
            f"workload: {{trace: {folder}}}\n"
            f"cluster: {{replicas: {replicas}, router: sticky, sessions: {{replay: {replay}}}}}\n"
        )
        out = tmp_path / replay
        tree = outcome(simkit("run", config, "--out", out, "--json"))
        assert tree["requests"]["finished"] == 8
        assert tree["prefix_cache"]["hit_tokens"] > 0
        with gzip.open(out / "requests.csv.gz", "rt") as file:
            rows = list(csv.DictReader(file))
        ends[replay] = tree["duration_s"]
        sent = [int(row["arrival_ns"]) for row in rows]
        assert sent == sorted(sent)
    assert ends["open"] > 9.0
    assert 3.0 < ends["closed"] < 6.0


def test_engines_that_share_experts(simkit, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Eight engines of DeepSeek-V3, one a GPU: alone refused with what to write, as a cluster served."""
    base = (
        "deployment: {model: deepseek-v3, device: h200, layout: {data: 8, expert: 8}, engine: {max_model_len: 16384}}\n"
    )
    base += "workload: {preset: azure-conv-2023, requests: 60, rate: 8}\n"
    config = tmp_path / "config.yaml"
    config.write_text(base)
    refused = simkit("run", config, "--json")
    assert refused.returncode == 2
    assert "data_parallel: 8" in refused.stderr
    config.write_text(base + "cluster: {pools: [{name: all, data_parallel: 8}], router: data_parallel}\n")
    tree = outcome(simkit("run", config, "--json"))
    assert tree["requests"]["finished"] == 60
    assert len(tree["fleet"]["replicas"]) == 8
