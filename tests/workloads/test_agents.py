"""Sessions of coding agents, from their JSON to who waits for whom."""

import json
import tarfile
from pathlib import Path

import pytest
import zstandard

from simkit.errors import InputError
from simkit.workloads.agents import read_agent_sessions
from simkit.workloads.arrivals import Poisson
from simkit.workloads.readers import read_workload


def request(t: float, api: float, size: int, ids: list[int], stop: str = "tool_use") -> dict[str, object]:
    return {"t": t, "type": "n", "in": size, "out": 10, "hash_ids": ids, "stop": stop, "api_time": api}


SESSION = {
    "id": "one",
    "block_size": 64,
    "requests": [
        request(0.0, 7.0, 200, [1, 2, 3]),
        # stands at its end: it began at 20 - 12 = 8 s, a second after the answer it follows from
        {
            "t": 20.0,
            "type": "subagent",
            "duration_ms": 12_000,
            "requests": [request(0.0, 2.0, 70, [9]), request(5.0, 7.0, 140, [9, 10], "end_turn")],
        },
        request(30.0, 3.0, 300, [1, 2, 3, 4], "end_turn"),
        request(100.0, 3.0, 320, [1, 2, 3, 4, 5], "end_turn"),
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.json").write_text(json.dumps(SESSION))
    (tmp_path / "b.json").write_text(json.dumps({**SESSION, "requests": SESSION["requests"][:1]}))  # type: ignore[index]
    return tmp_path


def test_who_waits_for_whom_and_how_long(folder: Path) -> None:
    read = read_agent_sessions(folder, sessions=1)
    assert (read.arrival_us / 1e6).tolist() == [0, 8, 13, 30, 100]
    assert read.prompt_tokens.tolist() == [200, 70, 140, 300, 320]
    parents = read.extra["parent_id"]
    ids = read.request_id
    assert ids is not None
    assert parents == (None, ids[0], ids[1], f"{ids[0]} {ids[2]}", ids[3])
    # 8 - 7, 13 - 10, 30 - 20, 100 - 33
    assert read.extra["think_us"] == (0, 1_000_000, 3_000_000, 10_000_000, 67_000_000)
    assert read.extra["kind"] == ("tool", "subagent", "subagent", "text", "text")


def test_ids_are_the_sessions_own(folder: Path) -> None:
    read = read_agent_sessions(folder)
    assert read.prefixes is not None
    assert read.prefixes.block_tokens == 64
    both = [row for row, prompt in enumerate(read.prompt_tokens) if prompt == 200]
    assert read.session_id is not None
    assert {read.session_id[row] for row in both} == {"a", "b"}
    first, second = (set(read.prefixes.ids[read.prefixes.start[row] :][:3].tolist()) for row in both)
    assert not first & second


def test_sessions_start_as_a_poisson_process(folder: Path) -> None:
    one, same, other = (read_agent_sessions(folder, starts=Poisson(rate_per_s=0.1), seed=seed) for seed in (1, 1, 2))
    assert one.arrival_us.tolist() == same.arrival_us.tolist() != other.arrival_us.tolist()


def test_a_folder_a_tar_and_a_file_are_recognised(folder: Path, tmp_path: Path) -> None:
    whole = read_agent_sessions(folder)
    for ending, packed in ((".tar", "w"), (".tar.gz", "w:gz")):
        with tarfile.open(tmp_path / f"some{ending}", packed) as tar:
            tar.add(folder / "a.json", "traces/a.json")
            tar.add(folder / "b.json", "traces/b.json")
    plain = (tmp_path / "some.tar").read_bytes()
    (tmp_path / "some.tar.zst").write_bytes(zstandard.ZstdCompressor().compress(plain))
    for path in (folder, *(tmp_path / f"some{ending}" for ending in (".tar", ".tar.gz", ".tar.zst"))):
        read = read_workload(path)
        assert read.arrival_us.tolist() == whole.arrival_us.tolist()
        assert read.extra["parent_id"] == whole.extra["parent_id"]
    assert len(read_workload(folder / "a.json")) == 5
    (tmp_path / "some.tar.zst").write_bytes(zstandard.ZstdCompressor().compress(plain)[:-200])
    with pytest.raises(InputError, match="cannot be read as a tar"):
        read_workload(tmp_path / "some.tar.zst")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "has no list of requests"),
        ('{"requests": [{"type": "n"}]}', "is no session"),
        ('{"requests": [{"type": "n", "t": "x", "in": 1, "out": 1}]}', "is no session"),
    ],
)
def test_what_is_no_session_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match="holds no"):
        read_agent_sessions(tmp_path)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=said):
        read_agent_sessions(tmp_path)
