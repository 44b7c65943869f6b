"""A step log is read whole, or refused with one line that names the place."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simkit.calibrate import step_log
from simkit.calibrate.recorded_workload import recorded_workload
from simkit.calibrate.step_features import step_features, went_on
from simkit.calibrate.step_log import read_step_log
from simkit.errors import InputError

HEADER = {"kind": "header", "format": "simkit-measured-run-1", "engine": "e", "device": "d"}
REQUEST = {"kind": "request", "id": "a", "arrival": 0.1, "prompt_tokens": 5, "output_tokens": 2}
STEP = {
    "kind": "step",
    "schedule_start": 0.2,
    "schedule_end": 0.21,
    "update_start": 0.3,
    "update_end": 0.31,
    "batch": [["a", 5, 0]],
}


def text(*lines: dict[str, object]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_recorded_runs_add_up(shared: Path) -> None:
    """Every token a request was due is in exactly one step, after the tokens computed before it."""
    log = read_step_log(shared / "fidelity/vllm_cpu/run0.jsonl.gz")
    assert (log.steps, len(log.requests), log.header.max_num_batched_tokens) == (1517, 60, 512)
    by_id = {line.id: line for line in log.requests}
    for number, name in enumerate(log.names):
        own = log.share_request == number
        done = np.cumsum(log.share_tokens[own])
        np.testing.assert_array_equal(log.share_before[own], done - log.share_tokens[own])
        # the last output token is sampled and never computed
        assert done[-1] == by_id[name].prompt_tokens + by_id[name].output_tokens - 1
        assert len(by_id[name].token_times) == by_id[name].output_tokens


def test_recorded_workload_is_the_clients(shared: Path) -> None:
    log = read_step_log(shared / "fidelity/vllm_cpu/run1.jsonl.gz")
    workload = recorded_workload(log)
    assert len(workload) == 60
    assert workload.request_id is not None
    assert workload.request_id[0] == "0"
    assert workload.arrival_us[0] == round(log.requests[0].arrival * 1e6)
    assert np.all(np.diff(workload.arrival_us) >= 0)


@pytest.mark.parametrize(
    "pack", [bytes, gzip.compress, zstandard.ZstdCompressor().compress], ids=["plain", "gz", "zst"]
)
def test_plain_and_packed_logs_read_alike(tmp_path: Path, pack: object) -> None:
    assert callable(pack)
    path = tmp_path / "log"
    path.write_bytes(pack(text(HEADER, STEP, REQUEST).encode()))
    log = read_step_log(path)
    assert (log.steps, log.names, log.share_tokens.tolist()) == (1, ("a",), [5])


def test_features_are_counted_by_hand(tmp_path: Path) -> None:
    later = STEP | {"schedule_start": 0.32, "schedule_end": 0.33, "update_start": 0.40, "update_end": 0.42}
    idle = later | {"schedule_start": 0.52, "schedule_end": 0.53, "update_start": 0.60, "update_end": 0.61}
    path = tmp_path / "log"
    # a chunk of 5; then a decode of it beside a chunk of 3 after 10; then, after a pause, a step of nothing
    path.write_text(
        text(HEADER, STEP, later | {"batch": [["a", 1, 5], ["b", 3, 10]]}, idle | {"batch": []}), encoding="utf-8"
    )
    log = read_step_log(path)
    assert went_on(log).tolist() == [True, False, False]
    steps = step_features(log)
    assert steps.columns().tolist() == [[1, 5, 1, 1 + 2 + 3 + 4 + 5], [1, 4, 2, 6 + 11 + 12 + 13]]
    assert steps.longest.tolist() == [5, 13]
    assert steps.decodes_only.tolist() == [False, False]
    np.testing.assert_allclose(steps.device_s, [0.09, 0.07])
    np.testing.assert_allclose(steps.host_s, [0.01 + 0.01 + 0.01, np.nan])


def without(line: dict[str, object], key: str) -> dict[str, object]:
    return {name: value for name, value in line.items() if name != key}


# text, what follows the path in the message
BAD: dict[str, tuple[str, str]] = {
    "empty": ("", ": is empty"),
    "no header": (text(STEP), ":1: kind: the first line is no header"),
    "other format": (
        text(HEADER | {"format": "simkit-measured-run-2"}),
        ":1: format='simkit-measured-run-2': is not known",
    ),
    "unknown header key": (text(HEADER | {"blok_size": 16}), ":1: blok_size: unknown key; did you mean 'block_size'"),
    "bad header value": (text(HEADER | {"block_size": 0}), ":1: block_size=0"),
    "more blocks than any machine has": (text(HEADER | {"num_gpu_blocks": 1 << 31}), ":1: num_gpu_blocks=2147483648"),
    "no steps": (text(HEADER, REQUEST), ": holds no step line"),
    "unknown kind": (text(HEADER, {"kind": "stp"}), ":2: kind='stp': is not known; did you mean 'step'"),
    "no kind": (text(HEADER, {"a": 1}), ":2: kind: is missing"),
    "second header": (text(HEADER, HEADER), ":2: kind='header': a second header"),
    "no JSON": (text(HEADER) + "{,\n", ":2: "),
    "an array": (text(HEADER) + "[1]\n", ":2: is not a mapping"),
    "NaN time": (text(HEADER, STEP | {"update_end": float("nan")}), ":2: update_end="),
    "infinite time": (text(HEADER, STEP | {"update_end": float("inf")}), ":2: update_end="),
    "negative time": (text(HEADER, STEP | {"schedule_start": -1.0}), ":2: schedule_start=-1.0"),
    "text for a time": (text(HEADER, STEP | {"update_end": "0.31"}), ":2: update_end='0.31'"),
    "missing time": (text(HEADER, without(STEP, "update_end")), ":2: update_end: is missing"),
    "times cross": (text(HEADER, STEP | {"update_start": 0.2}), ":2: update_start=0.2: is before schedule_end=0.21"),
    "steps overlap": (text(HEADER, STEP, STEP), ":3: schedule_start=0.2: is before the last step's update_end=0.31"),
    "no tokens": (text(HEADER, STEP | {"batch": [["a", 0, 0]]}), ":2: batch.0.1=0"),
    "negative past": (text(HEADER, STEP | {"batch": [["a", 1, -1]]}), ":2: batch.0.2=-1"),
    "fraction of a token": (text(HEADER, STEP | {"batch": [["a", 1.5, 0]]}), ":2: batch.0.1=1.5"),
    "twice in a step": (
        text(HEADER, STEP | {"batch": [["a", 1, 0], ["a", 1, 1]]}),
        ":2: batch: a request is in it twice",
    ),
    "unknown request": (text(HEADER, REQUEST | {"id": "b"}, STEP), ":3: batch: request 'a' has no request line"),
    "request twice": (text(HEADER, REQUEST, REQUEST), ":3: id='a': is the id of an earlier request"),
    "tokens run backwards": (
        text(HEADER, REQUEST | {"token_times": [0.3, 0.2]}),
        ":2: token_times: 0.2 s comes after 0.3 s",
    ),
    "unknown step key": (text(HEADER, STEP | {"wating": 0}), ":2: wating: unknown key; did you mean 'waiting'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_logs_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    path = tmp_path / "log.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_step_log(path)
    said = str(caught.value)
    assert said.startswith(f"{path}{message}")
    assert "\n" not in said


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_step_log(tmp_path / "absent.jsonl")
    with pytest.raises(InputError, match="is a directory"):
        read_step_log(tmp_path)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(text(HEADER, STEP).encode())[:-12])
    with pytest.raises(InputError, match="truncated or damaged"):
        read_step_log(cut)


def test_too_many_steps_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_log, "MAX_STEPS", 1)
    later = STEP | {"schedule_start": 0.4, "schedule_end": 0.4, "update_start": 0.5, "update_end": 0.5}
    path = tmp_path / "log"
    path.write_text(text(HEADER, STEP, later), encoding="utf-8")
    with pytest.raises(InputError, match=r"log:3: more than 1 steps"):
        read_step_log(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_byte_never_escapes_as_another_error(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(text(HEADER, REQUEST, STEP).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "log"
    path.write_bytes(bytes(raw))
    log, said = None, ""
    try:
        log = read_step_log(path)
    except InputError as error:
        said = str(error)
    assert "\n" not in said
    assert log is None or (log.steps == 1 and np.all(np.isfinite(log.update_end_s)))
