"""Reading measured runs: every field is checked, and an error names file, run and field."""

import json
from pathlib import Path
from typing import Any

import pytest

from simkit.errors import InputError
from simkit.fidelity.measured_runs import LARGEST_FILE_BYTES, MeasuredRun, UnreadRun, read_measured_runs, runs_of
from tests.fidelity.conftest import run


def written(folder: Path, tree: object) -> Path:
    path = folder / "runs.json"
    path.write_text(json.dumps(tree))
    return path


def test_a_run_is_read_whole(tmp_path: Path) -> None:
    (read,) = read_measured_runs(written(tmp_path, [run()]))
    assert read.workload_spec.prompt_tokens == 140
    assert read.workload_spec.users == 6
    assert read.workload_spec.stage_requests() == [40, 40]
    assert read.output_tokens == 18.5
    assert read.measured["whole"].e2e_p90_ms is None


def test_what_was_asked_stands_in_for_what_was_generated(tmp_path: Path) -> None:
    tree = run()
    del tree["mean_output_tokens_implied"]
    assert read_measured_runs(written(tmp_path, [tree]))[0].output_tokens == 20


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tensor_parallel": 0}, "tensor_parallel=0"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization=1.5"),
        ({"tensor_parallel": 5000}, "tensor_parallel=5000"),
        ({"kv_blocks": 1 << 30}, "kv_blocks=1073741824"),
        ({"max_model_len": 1}, "max_model_len=1"),
        ({"max_num_batched_tokens": 1 << 30}, "max_num_batched_tokens=1073741824"),
        ({"measured": {}}, "measured"),
        ({"measured": {"stage2": {"itl_mean_ms": 8.0}}}, "the load has 2 stages"),
        ({"measured": {"whole": {"itl_mean_ms": -1.0}}}, "itl_mean_ms=-1.0"),
        ({"measured": {"whole": {"itl_mean_ms": float("nan")}}}, "itl_mean_ms"),
        ({"workload_spec": {**run()["workload_spec"], "stages": []}}, "stages"),
        ({"workload_spec": {**run()["workload_spec"], "stages": [[0.01, 1.0]]}}, "sends no request"),
        ({"workload_spec": {**run()["workload_spec"], "stages": [[1e5, 1e4]]}}, "more than 5,000,000 requests"),
    ],
)
def test_a_bad_field_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = written(tmp_path, [run(**change)])
    with pytest.raises(InputError) as caught:
        read_measured_runs(path)
    assert str(path) in str(caught.value)
    assert "'a'" in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_keys_that_are_not_known_are_kept_to_be_named(tmp_path: Path) -> None:
    measured = {"whole": {"itl_mean_ms": 8.0, "itl_p90_ms": 9.0}}
    (read,) = read_measured_runs(written(tmp_path, [run(cluster="west", measured=measured)]))
    assert read.unused == ("cluster", "itl_p90_ms")


def test_a_key_of_the_load_that_is_not_known_is_refused(tmp_path: Path) -> None:
    load = {**run()["workload_spec"], "question_len_std": 30}
    with pytest.raises(InputError, match="question_len_std: unknown key"):
        read_measured_runs(written(tmp_path, [run(workload_spec=load)]))


def test_null_is_as_if_left_out(tmp_path: Path) -> None:
    names = ("tensor_parallel", "weight_precision", "gpu_memory_utilization", "cpu_offload", "kv_blocks", "workload")
    (read,) = read_measured_runs(written(tmp_path, [run(**dict.fromkeys(names))]))
    assert (read.tensor_parallel, read.gpu_memory_utilization, read.weight_precision) == (1, 0.9, None)


def test_a_bad_run_does_not_keep_the_others_from_being_read(tmp_path: Path) -> None:
    path = written(tmp_path, [run(), run(id="b", workload_spec={"kind": "chat"}), "c"])
    good, bad, worse = runs_of(path)
    assert isinstance(good, MeasuredRun)
    assert isinstance(bad, UnreadRun)
    assert isinstance(worse, UnreadRun)
    assert (bad.id, worse.id) == ("b", "run 2")
    assert "kind: unknown key" in bad.reason


def test_two_runs_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two runs have it"):
        read_measured_runs(written(tmp_path, [run(), run()]))


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, '{"id": 1}', "[]", "nonsense", "[1]"])
def test_what_is_no_list_of_runs_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "runs.json"
    path.write_text(content)
    with pytest.raises(InputError):
        read_measured_runs(path)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    with path.open("wb") as file:
        file.truncate(LARGEST_FILE_BYTES + 1)
    with pytest.raises(InputError, match="larger than 64 MiB"):
        read_measured_runs(path)


def test_a_missing_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_measured_runs(tmp_path / "none.json")
