"""The schedule is the real one: every field of every step of the recorded schedules."""

from pathlib import Path

import pytest

from simkit.engine.recording import read_recording, replay
from simkit.errors import InputError


def test_every_recorded_schedule_is_reproduced(shared: Path) -> None:
    files = sorted((shared / "golden").glob("*.jsonl.gz"))
    assert files
    differences = {path.name: replay(read_recording(path)) for path in files}
    assert {name: difference for name, difference in differences.items() if difference} == {}


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
