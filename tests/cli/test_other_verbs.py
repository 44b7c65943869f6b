"""The verbs beside `run`."""

import json
import shutil
from pathlib import Path

import pytest

from simkit.workloads.readers import read_workload

RECORDINGS = Path(__file__).parents[1] / "conformance" / "recordings"


def ok(process) -> str:  # type: ignore[no-untyped-def]
    assert process.returncode == 0, process.stderr
    return str(process.stdout)


def test_plan_finds_a_rate_with_error_bars(simkit, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    arguments = ("--model", "llama-3.1-8b", "--device", "h100", "--preset", "azure-conv-2023", "--arrivals", "poisson")
    limits = ("-n", 1500, "--seeds", 3, "--slo", "ttft_p99=1", "--slo", "tpot_p99=0.05")
    tree = json.loads(ok(simkit("plan", *arguments, *limits, "--json", "--out", tmp_path / "out")))
    rate = tree["rate_per_s"]
    assert 5 < rate["lowest"] <= rate["median"] <= rate["highest"] < tree["throughput_bound_per_s"]
    sensitivity = tree["step_time_sensitivity"]
    assert sensitivity["0.9"]["median"] > sensitivity["1"]["median"] > sensitivity["1.1"]["median"]
    assert tree["at_capacity"]["measured_s"]["tpot_p99_s"] <= 0.05
    assert json.loads((tmp_path / "out" / "plan.json").read_text()) == tree


def test_plan_without_an_answer_says_what_binds_and_exits_3(simkit) -> None:  # type: ignore[no-untyped-def]
    arguments = ("--model", "llama-3.1-8b", "--device", "l4", "--preset", "azure-conv-2023", "-n", 300, "--seeds", 1)
    context = ("--set", "deployment.engine.max_model_len=8192")
    process = simkit("plan", *arguments, *context, "--slo", "tpot_p50=0.0001", "--json")
    assert process.returncode == 3, process.stderr
    assert "tpot_p50_s" in process.stderr
    assert json.loads(process.stdout)["rate_per_s"]["median"] is None


def test_conform_counts_and_exits_1_on_a_difference(simkit, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for release in ("v0.33.0", "v0.16.0"):
        for path in RECORDINGS.glob(f"{release}-*0*.jsonl.gz"):
            shutil.copy(path, tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) > 4
    for given in (files, [tmp_path], [tmp_path / files[0].name, *files[1:]]):
        assert ok(simkit("conform", *given)).splitlines() == [f"{len(files)} passed, 0 failed"]
    # the rules that tell states twice are not those of 0.33
    other = simkit("conform", RECORDINGS / "v0.33.0-ks00209.jsonl.gz", "--engine", "vllm-0.32")
    assert other.returncode == 1
    assert "step 2: req is [0, 1, 2], recorded [0, 1, 2, 3]" in other.stdout
    assert other.stdout.endswith("0 passed, 1 failed\n")


def test_a_folder_without_recordings_is_bad_input(simkit, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "notes.txt").write_text("nothing")
    done = simkit("conform", tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        f"simkit: {tmp_path}: no recordings, *.jsonl or *.jsonl.gz, are in this folder; give one that has some\n"
    )


def test_a_step_log_becomes_a_profile_that_run_takes(simkit, shared: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    profile = tmp_path / "profile.json"
    log = shared / "fidelity" / "vllm_cpu" / "run0.jsonl.gz"
    assert "held-out error" in ok(simkit("calibrate", "fit", "--steps", log, "--out", profile))
    arguments = ("--model", "llama-3.2-1b", "--device", "h100", "--preset", "azure-conv-2023", "-n", 50)
    tree = json.loads(ok(simkit("run", *arguments, "--rate", 0.1, "--profile", profile, "--json")))
    assert tree["step_time"]["provenance"].startswith("calibrated on")
    assert "extrapolated" in tree["step_time"]["note"]


def test_models_and_devices_are_listed_and_described(simkit) -> None:  # type: ignore[no-untyped-def]
    models = json.loads(ok(simkit("models", "--json")))["models"]
    assert next(row for row in models if row["name"] == "llama-3.1-8b")["kv_bytes_per_token"] == 131_072
    assert len(json.loads(ok(simkit("devices", "--json")))["devices"]) >= 12
    assert "source" in ok(simkit("devices", "h100", "--json"))
    rows = {row["name"]: row["step_times"] for row in json.loads(ok(simkit("devices", "--json")))["devices"]}
    # what `run` would say of each without a profile
    assert (rows["h100-sxm"], rows["l4"], rows["mi300x"]) == ("calibrated", "calibrated as l40s", "datasheet")
    shown = ok(simkit("devices", "l4"))
    assert "calibrated as l40s" in shown
    assert shown.count("datasheet") >= 3  # figures with their sources
    assert "llama-3.1-70b" in ok(simkit("models"))


def test_workload_round_trip(simkit, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    drawn = tmp_path / "drawn.trace.jsonl.zst"
    ok(simkit("workload", "generate", "mooncake-conversation", drawn, "-n", 200, "--seed", 3))
    ok(simkit("workload", "convert", drawn, tmp_path / "again.jsonl", "--to", "mooncake"))
    first, second = read_workload(drawn), read_workload(tmp_path / "again.jsonl")
    assert first.prompt_tokens.tolist() == second.prompt_tokens.tolist()
    assert first.prefixes is not None
    assert second.prefixes is not None
    found = json.loads(ok(simkit("workload", "describe", drawn, "--json")))
    assert found["requests"] == 200
    assert found["prompt_tokens"]["mean"] == pytest.approx(first.prompt_tokens.mean())
    assert "azure-conv-2023" in ok(simkit("workload", "presets"))


def test_help_names_every_verb(simkit) -> None:  # type: ignore[no-untyped-def]
    text = ok(simkit("--help"))
    for verb in ("run", "plan", "conform", "calibrate", "models", "devices", "workload"):
        assert verb in text


def test_validate_that_could_replay_nothing_is_bad_input(simkit, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    load = {
        "system_prompts": 1,
        "users_per_prompt": 2,
        "system_prompt_len": 16,
        "question_len": 32,
        "output_len": 4,
        "stages": [[2.0, 5.0]],
    }
    run = {
        "model": "llama-3.1-8b",
        "hardware": "h100",
        "workload_spec": load,
        "measured": {"whole": {"itl_mean_ms": 8}},
    }
    runs = tmp_path / "runs.json"
    runs.write_text(json.dumps([{**run, "id": "two", "data_parallel": 2}, {**run, "id": "what", "model": "no-such"}]))
    for flags in ((), ("--json",)):
        done = simkit("validate", runs, *flags)
        assert done.returncode == 2
        assert "no run could be replayed: two: data_parallel=2" in done.stderr
        assert "(and 1 more)" in done.stderr
    assert [row["id"] for row in json.loads(done.stdout)["not_run"]] == ["two", "what"]
    runs.write_text(json.dumps([{**run, "id": "two", "data_parallel": 2}, {**run, "id": "one"}]))
    assert "not run: two" in ok(simkit("validate", runs))


def test_a_trace_with_columns_of_its_own_is_described_and_converted(simkit, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    mine = tmp_path / "mine.csv"
    mine.write_text("when_ms,in,out,chat\n" + "".join(f"{1000 * i},{10 + i},{5},c{i % 2}\n" for i in range(20)))
    flags = ("--columns", "arrival=when_ms,prompt=in,output=out,session=chat", "--time-unit", "ms")
    tree = json.loads(ok(simkit("workload", "describe", mine, *flags, "--json")))
    assert (tree["requests"], tree["span_s"], tree["sessions"]) == (20, 19.0, 2)
    assert tree["prompt_tokens"]["total"] == sum(range(10, 30))
    ours = tmp_path / "mine.trace.jsonl"
    ok(simkit("workload", "convert", mine, ours, *flags))
    read = read_workload(ours)
    assert read.prompt_tokens.tolist() == list(range(10, 30))
    assert read.session_id is not None
    assert read.session_id[:2] == ("c0", "c1")
    refused = simkit("workload", "convert", mine, ours, *flags, "--cv", "2")
    assert refused.returncode == 2
    assert "--cv 2" in refused.stderr
