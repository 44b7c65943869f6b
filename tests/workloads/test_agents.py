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
        ('{"requests": [{"type": "n", "t": NaN, "in": 1, "out": 1}]}', "t=nan is no number of seconds"),
        ('{"requests": [{"type": "n", "t": 1e300, "in": 1, "out": 1}]}', r"t=1e\+300 is no number of seconds"),
        ('{"requests": [{"type": "n", "t": 0, "api_time": Infinity, "in": 1, "out": 1}]}', "api_time=inf"),
        ('{"requests": [{"type": "n", "t": 0, "in": 1000000000000, "out": 1}]}', "in=1000000000000 is no number of"),
        ('{"requests": [{"type": "n", "t": 0, "in": 1, "out": -1}]}', "out=-1 is no number of tokens"),
    ],
)
def test_what_is_no_session_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match="holds no"):
        read_agent_sessions(tmp_path)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=said):
        read_agent_sessions(tmp_path)


def test_a_file_name_with_blanks_names_its_requests_whole(tmp_path: Path) -> None:
    (tmp_path / "my first session.json").write_text(json.dumps(SESSION))
    (tmp_path / "my_first_session.json").write_text(json.dumps(SESSION))
    read = read_agent_sessions(tmp_path)
    ids = read.request_id
    assert ids is not None
    assert read.session_id is not None
    assert len(set(ids)) == 10
    assert len(set(read.session_id)) == 2
    named = [name for parents in read.extra["parent_id"] if parents for name in str(parents).split()]
    assert len(named) == 10
    assert set(named) <= set(ids)


def test_files_of_one_name_in_two_folders_are_two_sessions_that_share_nothing(tmp_path: Path) -> None:
    for place in ("x", "y"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "s.json").write_text(json.dumps(SESSION))
    with tarfile.open(tmp_path / "two.tar", "w") as tar:
        for place in ("x", "y"):
            tar.add(tmp_path / place / "s.json", f"{place}/s.json")
    read = read_agent_sessions(tmp_path / "two.tar")
    assert read.session_id is not None
    assert read.prefixes is not None
    rows = {name: [row for row, other in enumerate(read.session_id) if other == name] for name in read.session_id}
    assert [len(found) for found in rows.values()] == [5, 5]
    start, ids = read.prefixes.start, read.prefixes.ids
    first, second = ({i for row in found for i in ids[start[row] : start[row + 1]]} for found in rows.values())
    assert not first & second


def test_requests_without_an_answer_are_kept_and_told(tmp_path: Path) -> None:
    broken_off = {**request(0.0, 1.0, 64, [1], ""), "out": 0}
    (tmp_path / "a.json").write_text(json.dumps({"requests": [broken_off, request(9.0, 1.0, 128, [1, 2])]}))
    read = read_agent_sessions(tmp_path)
    assert read.output_tokens.tolist() == [1, 10]
    assert read.notes == ("1 requests of no token are taken to have 1",)
