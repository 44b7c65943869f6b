"""The schedule is the real one: every field of every step of the recorded schedules."""

import gzip
import json
from pathlib import Path

import pytest

from simkit.engine.dialect import dialect_of
from simkit.engine.recording import read_recording, replay
from simkit.engine.settings import EngineSettings
from simkit.engine.state import (
    CHUNKS_BEFORE_END,
    CHUNKS_LEAVING_NONE,
    CHUNKS_TO_ANY,
    CHUNKS_TO_LAST,
    CHUNKS_TOLD_ONCE,
    DROP_BY_KIND,
    PAD_BEHIND_HIT,
    PAD_BESIDE,
    PAD_NOBODY,
    PAD_OR_WAIT,
    STATES_LOST,
)
from simkit.errors import InputError

OWN = Path(__file__).parent / "recordings"


def test_every_recorded_schedule_is_reproduced(shared: Path) -> None:
    files = sorted((shared / "golden").glob("*.jsonl.gz"))
    assert files
    differences = {path.name: replay(read_recording(path)) for path in files}
    assert {name: difference for name, difference in differences.items() if difference} == {}


@pytest.mark.parametrize("path", sorted(OWN.glob("*.jsonl.gz")), ids=lambda path: path.name.removesuffix(".jsonl.gz"))
def test_random_schedules_of_every_release_are_reproduced(path: Path) -> None:
    assert replay(read_recording(path)) is None


def test_there_are_recordings_of_releases_from_0_16_to_0_33() -> None:
    releases = {path.name.split(".")[1] for path in OWN.glob("*.jsonl.gz")}
    assert releases >= {"16", "18", "19", "22", "23", "24", "27", "28", "30", "31", "32", "33"}


def test_a_changed_recording_is_told_by_step_and_field(shared: Path) -> None:
    recording = read_recording(shared / "golden" / "a02_light20.jsonl.gz")
    step = recording.steps[100]
    step["n"] = [int(tokens) + 1 for tokens in step["n"]]  # type: ignore[attr-defined]
    assert (replay(recording) or "").startswith(f"step {step['t']}: n is ")


def test_a_shorter_recording_is_told(shared: Path) -> None:
    recording = read_recording(shared / "golden" / "a01_single.jsonl.gz")
    recording.steps.pop()
    assert "the recording has ended" in (replay(recording) or "")


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08\x00", b"not gzip"])
def test_what_is_no_recording_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a recorded schedule") as caught:
        read_recording(path)
    assert "\n" not in str(caught.value)


def test_who_cancels_before_they_arrive_cancels_nothing(shared: Path) -> None:
    """Only who is alive is cancelled: step 4 is jumped over, and who comes at step 5 stays."""
    recording = read_recording(shared / "golden" / "a02_light20.jsonl.gz")
    for request in recording.requests:
        if int(str(request["arr"])) > 0:
            request["abort"] = int(str(request["arr"])) - 1
    assert replay(recording) is None


CONFIG = {
    "block_size": 4, "num_gpu_blocks": 9, "max_num_batched_tokens": 16, "max_num_seqs": 4, "max_model_len": 32,
    "long_prefill_token_threshold": 0, "long_prefill_token_threshold_adaptive": False, "enable_chunked_prefill": True,
    "enable_prefix_caching": False, "policy": "fcfs", "async_scheduling": False, "watermark": 0.0,
    "scheduler_reserve_full_isl": True, "max_num_active_seqs": None,
}  # fmt: skip
REQUEST = {"id": 0, "arr": 0, "segs": [["s", 1, 5]], "out": 1, "max_tokens": 1}


def _write(path: Path, config: dict[str, object], request: dict[str, object], version: str = "0.32.0") -> Path:
    """A recording of one request that is over after one step, worked by hand."""
    step = {"kind": "step", "t": 0, "req": [0], "n": [5], "c0": [0], "new": [[0, 0]], "free0": 6, "run0": 1, "wait0": 0}
    lines = [
        {"kind": "header", "format": "vllm-golden-1", "name": "x", "vllm": version, "config": CONFIG | config},
        {"kind": "requests", "requests": [REQUEST | request]},
        step | {"cached": 0, "fin": [0], "gen": 1, "free1": 8, "run1": 0},
        {"kind": "end", "free_end": 8},
    ]
    path.write_bytes(gzip.compress("\n".join(json.dumps(line) for line in lines).encode()))
    return path


@pytest.mark.parametrize("version", ["0.12.1", "0.32.0", "0.99.0", "1.2.0"])
def test_a_recording_of_any_version_is_replayed(tmp_path: Path, version: str) -> None:
    recording = read_recording(_write(tmp_path / "x.jsonl.gz", {}, {}, version))
    assert recording.engine == {"0.12.1": "vllm-0.16", "0.32.0": "vllm-0.32"}.get(version, "vllm-0.33")
    assert replay(recording) is None


@pytest.mark.parametrize(
    ("config", "request_", "said"),
    [
        ({"block_size": 0}, {}, "config.block_size=0"),
        ({"num_gpu_blocks": 10**13}, {}, "config.num_gpu_blocks="),
        ({"num_gpu_blocks": 2}, {}, "6 tokens are more than the 4 of all blocks"),
        ({"policy": "lifo"}, {}, "config.policy='lifo'"),
        ({"kv_connector": "x"}, {}, "config.kv_connector: unknown key"),
        ({"num_speculative_tokens": 3}, {}, "num_speculative_tokens=3 needs acceptance"),
        ({"num_speculative_tokens": 3, "acceptance": 0.5, "async_scheduling": True}, {}, "without async_scheduling"),
        (
            {"num_speculative_tokens": 3, "acceptance": 0.5, "speculative_method": "mind"},
            {},
            "speculative_method='mind'",
        ),
        ({"enable_chunked_prefill": False}, {}, "without chunked prefill"),
        ({"prefix_cache_retention_interval": 6}, {}, "no multiple of block_size=4"),
        ({}, {"segs": []}, "requests.0.segs="),
        ({}, {"segs": [["o", 99, 3]]}, "no such request"),
        ({}, {"segs": [["s", 1, 32]]}, "leave no room"),
        ({}, {"out": 10**12, "max_tokens": 10**12}, "requests.0.out="),
        ({}, {"out": 2}, "more than max_tokens=1"),
    ],
)
def test_what_cannot_be_replayed_is_one_line(
    tmp_path: Path, config: dict[str, object], request_: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError) as caught:
        read_recording(_write(tmp_path / "x.jsonl.gz", config, request_))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_off_may_be_there_and_unknown(tmp_path: Path) -> None:
    config = {"max_num_partial_prefills": 0, "kv_sharing_fast_prefill": False, "num_gpu_blocks": 9}
    assert replay(read_recording(_write(tmp_path / "x.jsonl.gz", config, {"deadline": None}))) is None


def test_a_context_longer_than_the_memory_is_replayed_where_its_requests_fit(tmp_path: Path) -> None:
    recording = read_recording(_write(tmp_path / "x.jsonl.gz", {"max_model_len": 4096}, {}))
    assert replay(recording) is None


def test_rules_begin_with_the_version_that_has_them() -> None:
    """From the sources of the wheels 0.16.0 to 0.33.0, and schedules recorded from both sides of each boundary."""
    since = {
        "has_reserve_full_isl": 19, "has_watermark": 24, "uncached_free_to_front": 24, "passed_over_counts": 28,
        "pads_groups_more": 18, "caps_windows": 20, "frees_settled": 26, "thins_windows": 29,
        "uncached_leave_to_front": 23,
        "admits_with_lookahead": 23, "hashes_next_token": 33, "has_draft_reserve": 17, "has_draft_slots": 28,
        "lone_request_uncapped": 31, "has_active_limits": 31, "serves_past_self_victim": 33, "registers_accepted": 33,
    }  # fmt: skip
    padding = {25: PAD_OR_WAIT, 26: PAD_OR_WAIT, 27: PAD_OR_WAIT, 28: PAD_OR_WAIT, 29: PAD_BESIDE}
    for minor in range(16, 34):
        rules = dialect_of(f"vllm-0.{minor}")._asdict()
        assert rules.pop("draft_padding") == padding.get(minor, PAD_NOBODY if minor < 25 else PAD_BEHIND_HIT)
        assert rules.pop("hit_drop") == DROP_BY_KIND + sum(minor >= first for first in (20, 30, 32))
        states = {26: CHUNKS_TO_LAST, 30: CHUNKS_LEAVING_NONE, 31: CHUNKS_LEAVING_NONE, 32: CHUNKS_BEFORE_END}
        states |= dict.fromkeys((27, 28, 29), CHUNKS_TO_ANY) | {33: CHUNKS_TOLD_ONCE}
        assert rules.pop("state_chunks") == states.get(minor, STATES_LOST)
        assert rules.pop("checkpointing") == {32: ("Mamba2",), 33: ("Mamba2", "GDN")}.get(minor, ())
        assert rules == {rule: minor >= first for rule, first in since.items()}


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("v0.28.0-s00046", (24,)), ("v0.29.0-s01111", (28,)), ("v0.30.0-s00015", (29, 28)),
        ("v0.32.0-s00113", (33,)), ("v0.33.0-s00113", (32,)), ("v0.33.0-s00101", (32,)),
        ("v0.16.0-da00139", (17,)), ("v0.17.1-d00147", (16,)), ("v0.19.1-dx00027", (20,)), ("v0.22.1-d00131", (23,)),
        ("v0.23.0-d00202", (22,)), ("v0.25.1-dw01065", (24,)), ("v0.28.0-d00147", (27,)), ("v0.29.0-dx00087", (30,)),
        ("v0.31.0-dx00045", (32,)), ("v0.32.0-dx00066", (31, 33)), ("v0.33.0-daw00026", (32,)),
    ],
)  # fmt: skip
def test_a_release_drafts_by_its_own_rules(name: str, others: tuple[int, ...]) -> None:
    recording = read_recording(OWN / f"{name}.jsonl.gz")
    assert recording.config["num_speculative_tokens"]
    for minor in others:
        assert replay(recording, f"vllm-0.{minor}") is not None


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("v0.16.0-da00139", ("eagle",)), ("v0.23.0-d00202", ("ngram", "eagle")), ("v0.22.1-d00131", ("draft_model",)),
        ("v0.28.0-d00147", ("ngram", "mtp")), ("v0.33.0-d00053", ("ngram", "draft_model")),
    ],
)  # fmt: skip
def test_kinds_of_drafts_are_told_apart(name: str, others: tuple[str, ...]) -> None:
    recording = read_recording(OWN / f"{name}.jsonl.gz")
    for other in others:
        recording.config["speculative_method"] = other
        assert replay(recording) is not None


@pytest.mark.parametrize("setting", ["max_num_active_seqs", "long_prefill_token_threshold_adaptive"])
def test_a_setting_that_the_version_does_not_have_is_refused(setting: str) -> None:
    with pytest.raises(InputError, match=f"engine.{setting}=.*vllm-0.30 does not have it"):
        EngineSettings.model_validate({"engine": "vllm-0.30", setting: 1}).dialect()
    EngineSettings.model_validate({"engine": "vllm-0.31", setting: 1}).dialect()


@pytest.mark.parametrize("interval", [0, 64, "dense"])
def test_retention_is_a_setting_since_0_29(interval: int | str) -> None:
    with pytest.raises(InputError, match=r"prefix_cache_retention_interval=.*vllm-0.28 does not have it"):
        EngineSettings.model_validate({"engine": "vllm-0.28", "prefix_cache_retention_interval": interval}).dialect()
    EngineSettings.model_validate({"engine": "vllm-0.29", "prefix_cache_retention_interval": interval}).dialect()
