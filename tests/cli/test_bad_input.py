"""Bad input of any kind: exit code 2 and one line that names the place and the fix."""

import gzip
import os
from pathlib import Path

import pytest

LLAMA = ("--model", "llama-3.1-8b", "--device", "h100")
PRESET = ("--preset", "azure-conv-2023")
H100 = "deployment: {model: llama-3.1-8b, device: h100}\n"
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
ROW = "2023-11-16 18:00:00.0000000,100,10\n"
LATER = "2023-11-16 18:00:09.0000000,100,10\n"


def one_line(process, *words: str) -> None:  # type: ignore[no-untyped-def]
    assert process.returncode == 2, process.stderr
    assert process.stdout == ""
    assert "Traceback" not in process.stderr
    assert len(process.stderr.strip().splitlines()) == 1, process.stderr
    for word in words:
        assert word in process.stderr, (word, process.stderr)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (HEADER, ["empty", "no r"]),
        ("", ["empty"]),
        (HEADER + ROW + "2023-11-16 18:00:01.0000000,nan,10\n", [":3", "ContextTokens"]),
        (HEADER + ROW + "2023-11-16 18:00:01.0000000,-5,10\n", [":3", "ContextTokens", "-5"]),
        (HEADER + ROW + "2023-11-16 18:00:01.0000000,5,1e99\n", [":3", "GeneratedTokens"]),
        (HEADER + ROW + "never,5,10\n", [":3", "TIMESTAMP", "never"]),
        (HEADER + LATER + ROW, [":3", "--sort"]),
        ("a,b,c\n1,2,3\n", ["format"]),
    ],
)
def test_a_bad_trace(simkit, tmp_path: Path, content: str, words: list[str]) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "trace.csv"
    path.write_text(content)
    process = simkit("run", *LLAMA, "--trace", path, "--json")
    one_line(process, "trace.csv")
    assert any(word in process.stderr for word in words), process.stderr
    assert all(word in process.stderr for word in words if word.startswith((":", "--"))), process.stderr


def test_a_truncated_gzip(simkit, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress((HEADER + ROW * 1000).encode())[:-20])
    one_line(simkit("run", *LLAMA, "--trace", path), "trace.csv.gz")


def test_a_draft_that_is_not_known(simkit) -> None:  # type: ignore[no-untyped-def]
    drafts = ("--set", "deployment.engine.speculative_tokens=3", "--set", "deployment.engine.acceptance=0.7")
    named = ("--set", "deployment.engine.speculative_method=draft_model")
    process = simkit("run", *LLAMA, *PRESET, *drafts, *named)
    one_line(process, "deployment.engine.speculative_method=draft_model", "speculative_model is missing")
    process = simkit(
        "run", *LLAMA, *PRESET, *drafts, *named, "--set", "deployment.engine.speculative_model=lama-3.2-1b"
    )
    one_line(process, "deployment.engine.speculative_model=lama-3.2-1b", "did you mean 'llama-3.2-1b'")


def test_a_missing_file(simkit, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    one_line(simkit("run", *LLAMA, "--trace", tmp_path / "none.csv"), "none.csv")
    one_line(simkit("run", tmp_path / "none.yaml"), "none.yaml")


def test_a_directory_in_place_of_a_file(simkit, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    one_line(simkit("run", *LLAMA, "--trace", tmp_path), str(tmp_path))
    one_line(simkit("run", tmp_path), str(tmp_path), "YAML")
    one_line(simkit("conform", tmp_path), str(tmp_path))


def test_unsorted_and_malformed_rows_can_be_asked_for(simkit, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "trace.csv"
    path.write_text(HEADER + LATER + ROW + "2023-11-16 18:00:01.0000000,-5,10\n")
    process = simkit("run", *LLAMA, "--trace", path, "--sort", "--skip-bad-rows", "--json")
    assert process.returncode == 0, process.stderr
    assert '"dropped_rows": {\n' in process.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--model", "lama-3.1-8b", "--device", "h100", *PRESET],
            ["lama-3.1-8b", "llama-3.1-8b"],
        ),
        (["--model", "llama-3.1-8b", "--device", "h1000", *PRESET], ["h1000", "did you mean"]),
        ([*LLAMA, "--preset", "azure-con-2023"], ["azure-con-2023", "azure-conv-2023"]),
        ([*LLAMA], ["workload", "--trace"]),
        ([*PRESET], ["deployment", "--model"]),
        ([*LLAMA, *PRESET, "--slo", "ttfp_p99=1"], ["ttfp_p99_s", "ttft_p99_s"]),
        ([*LLAMA, *PRESET, "--slo", "ttft_p99"], ["--slo"]),
        ([*LLAMA, *PRESET, "--set", "deployment.engine.max_nun_seqs=3"], ["max_num_seqs"]),
        (
            [*LLAMA, *PRESET, "--set", "deployment.engine.num_gpu_blocks_override=2000000000"],
            ["num_gpu_blocks_override=2000000000", "16777216"],
        ),
        ([*LLAMA, *PRESET, "--set", "deployment.engine.block_size=0"], ["block_size=0"]),
        ([*LLAMA, *PRESET, "--set", "deployment.layout.tensor=3"], ["3", "tensor"]),
        ([*LLAMA, *PRESET, "--rate", "-1"], ["rate=-1"]),
        # what could make no difference is no option
        ([*LLAMA, *PRESET, "--sort"], ["sort", "preset"]),
        ([*LLAMA, *PRESET, "--format", "azure"], ["format", "preset"]),
        ([*LLAMA, *PRESET, "--columns", "arrival=a,prompt=b,output=c"], ["columns", "preset"]),
        ([*LLAMA, *PRESET, "--time-unit", "ms"], ["time_unit", "columns"]),
        ([*LLAMA, *PRESET, "--arrivals", "poisson", "--cv", "2"], ["cv 2", "gamma"]),
        (["--model", "llama-3.1-70b", "--device", "h100", *PRESET], ["fit"]),
        (
            [*LLAMA, *PRESET, "--set", "deployment.engine.num_gpu_blocks_override=9"],
            ["max_model_len"],
        ),
    ],
)
def test_a_bad_flag(simkit, arguments: list[str], words: list[str]) -> None:  # type: ignore[no-untyped-def]
    one_line(simkit("run", *arguments, "--json"), *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "deployment: {model: llama-3.1-8b, devise: h100}\nworkload: {preset: azure-conv-2023}\n",
            ["devise", "'device'"],
        ),
        ("deployment: [1]\nworkload: {preset: x}\n", ["deployment"]),
        ("- a\n", ["maps"]),
        ("a: [\n", [":2", "YAML"]),
        (
            H100 + "workload: {preset: azure-conv-2023}\nsla: {}\n",
            ["sla", "slo"],
        ),
        (H100 + "workload: {preset: a, trace: b}\n", ["exactly one"]),
    ],
)
def test_a_bad_configuration(simkit, tmp_path: Path, text: str, words: list[str]) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "config.yaml"
    path.write_text(text)
    one_line(simkit("run", path), "config.yaml", *words)


def test_an_output_directory_that_cannot_be_written(simkit, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "file"
    file.write_text("")
    one_line(simkit("run", *LLAMA, *PRESET, "--out", file), str(file), "--out")
    one_line(simkit("run", *LLAMA, *PRESET, "--out", file / "below"), "--out")
    if os.geteuid() == 0:
        one_line(simkit("run", *LLAMA, *PRESET, "--out", "/proc/simkit"), "--out")
    else:
        tmp_path.chmod(0o500)
        one_line(simkit("run", *LLAMA, *PRESET, "--out", tmp_path / "out"), "--out")


def test_one_request_has_no_rate(simkit, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "one.csv").write_text(HEADER + ROW)
    (tmp_path / "a.yaml").write_text(H100 + "workload: {trace: one.csv}\n")
    said = ("all requests arrive at once", "workload.arrivals=poisson")
    one_line(simkit("context", *LLAMA, "--trace", "one.csv", "--slo", "ttft_p99=1", "--json", cwd=tmp_path), *said)
    one_line(simkit("compare", "a.yaml", "a.yaml", "--json", cwd=tmp_path), *said)
