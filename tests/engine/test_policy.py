"""A discipline from a file: the same as ours when it says the same, and one clear line when it is wrong."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numba
import numpy as np
import pytest

import simkit.engine.vllm_v1
from simkit.engine.discipline import Engine, engine
from simkit.engine.histories import random_history
from simkit.engine.loop import IDLE, advance, iterate
from simkit.engine.policy import InterpretedWarning
from simkit.engine.replica import new_replica
from simkit.engine.selftest import state_bytes
from simkit.engine.state import ABORT, NEVER, NEXT_ARRIVAL, NOW, REQUEST, ROWS, UNFINISHED, Replica, records
from simkit.errors import InputError
from simkit.models.steptables import constant_tables

VLLM = Path(simkit.engine.vllm_v1.__file__)
EXAMPLE = Path(__file__).resolve().parents[2] / "experiments/own_discipline/decode_first.py"


def written(folder: Path, text: str, name: str = "mine.py") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def runs_as_ours(name: str, seeds: range) -> None:
    theirs = engine(name)
    for seed in seeds:
        history = random_history(seed)
        one, other = history.replica(), history.replica()
        assert theirs.advance(one, history.tables, NEVER, 10**6) == IDLE
        assert advance(other, history.tables, NEVER, 10**6) == IDLE
        assert state_bytes(one) == state_bytes(other), seed


def test_our_own_discipline_as_a_users_file_does_the_same(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", InterpretedWarning)
        runs_as_ours(written(tmp_path, VLLM.read_text()), range(100))


def test_what_numba_cannot_compile_runs_interpreted_and_does_the_same(tmp_path: Path) -> None:
    # a dictionary of strings is beyond numba without its runtime
    strings = "    {str(row): 'seen'}.get('x', object())\n"
    text = VLLM.read_text().replace("    threshold = _long", strings + "    threshold = _long")
    name = written(tmp_path, text)
    with pytest.warns(InterpretedWarning, match="^runs interpreted, numba cannot compile it: ") as told:
        engine(name)
    assert told[0].filename == name
    assert text.splitlines()[told[0].lineno - 1].startswith("def schedule")
    runs_as_ours(name, range(10))


def test_helpers_of_the_file_need_no_decorator(tmp_path: Path) -> None:
    runs_as_ours(written(tmp_path, VLLM.read_text().replace("@inlined\n", "")), range(20))


@pytest.fixture
def no_jit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Policies run interpreted, which takes no compiling."""
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)


def run_interpreted(name: str) -> None:
    history = random_history(4)
    with pytest.warns(InterpretedWarning, match="NUMBA_DISABLE_JIT"):
        found = engine(name)
    found.advance(history.replica(), history.tables, NEVER, 10**6)


def run_some(found: Engine) -> None:
    for seed in range(4, 30):
        history = random_history(seed)
        found.advance(history.replica(), history.tables, NEVER, 10**6)


def test_a_mistake_while_it_runs_names_file_line_and_step(tmp_path: Path, no_jit: None) -> None:
    name = written(tmp_path, "def schedule(r, row):\n    if r.at[0] >= 0:\n        missing(r)\n")
    with pytest.raises(InputError, match=r"mine\.py:3: step 1: NameError: name 'missing' is not defined"):
        run_interpreted(name)


def test_a_mistake_inside_an_action_names_the_policys_line(tmp_path: Path, no_jit: None) -> None:
    imports = "from simkit.engine.actions import give\n\n\n"
    text = imports + "def schedule(r, row):\n    while True:\n        give(r, row, 0, 1, 0)\n"
    with pytest.raises(InputError, match=r"mine\.py:6: step 1: IndexError: .* \(in give\)"):
        run_interpreted(written(tmp_path, text))


TWICE = (
    "    if r.batches[row].length > 0:\n"
    "        r.entries[row, 1:2] = r.entries[row, 0:1]\n"
    "        r.batches[row].length = 2\n    # a step that"
)
BUDGET = "r.limits.max_num_batched_tokens - kept, cuts)"
MORE_BUDGET = BUDGET.replace("kept,", "kept + 9,")


@pytest.mark.parametrize(
    ("rule", "old", "new"),
    [
        ("budget kept", BUDGET, MORE_BUDGET),
        ("given what is due", "give(r, row, request, due, computed)", "give(r, row, request, due + 1, computed)"),
        ("given what is due", "give(r, row, request, due, hit)", "give(r, row, request, 0, hit)"),
        ("given what is due", "admit(r, request, hits, hit + due)\n", "if r.batches[row].length: return\n"),
        ("memory for its tokens", "while not grow(r, request, computed + due):", "while False:"),
        ("batch in order", "    # a step that", TWICE),
    ],
)
def test_a_broken_rule_stops_a_run(rule: str, old: str, new: str, tmp_path: Path, no_jit: None) -> None:
    text = VLLM.read_text()
    assert text.count(old) == 1
    name = written(tmp_path, text.replace(old, new))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InterpretedWarning)
        found = engine(name)
    with pytest.raises(InputError, match=f"mine.py: step [0-9]+: ValueError: {rule}: "):
        run_some(found)


def test_a_broken_rule_stops_a_compiled_run(tmp_path: Path) -> None:
    found = engine(written(tmp_path, VLLM.read_text().replace(BUDGET, MORE_BUDGET)))
    with pytest.raises(InputError, match=r"mine\.py.*: step [0-9]+: ValueError: budget kept: "):
        run_some(found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def schedule(r, row)\n    pass\n", r"mine\.py:1: syntax error: expected ':'"),
        ("def shedule(r, row):\n    pass\n", r"mine\.py: has no function schedule\(r, row\); did you mean 'shedule'\?"),
        ("x = 1\n", r"mine\.py: has no function schedule\(r, row\); define it"),
        ("schedule = 3\n", r"mine\.py: has no function schedule\(r, row\); define it"),
        ("\n\ndef schedule(r):\n    pass\n", r"mine\.py:3: schedule\(r\) is called .*; write def schedule\(r, row\)"),
        ("def schedule(r, row):\n    yield 1\n", r"mine\.py:1: schedule must not yield"),
        ("import math\nimport not_there\n", r"mine\.py:2: ModuleNotFoundError: No module named 'not_there'"),
        ("from simkit.engine.actions import gife\n", r"mine\.py:1: ImportError: cannot import name 'gife'"),
        ("1 / 0\n", r"mine\.py:1: ZeroDivisionError"),
        ("x = '\0'\n", r"mine\.py"),
    ],
)
def test_a_file_that_is_no_discipline_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        engine(written(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_path_that_is_no_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
    (tmp_path / "huge.py").write_bytes(b"#" * (1 << 20) + b"\n")
    for name, message in {
        "absent.py": "cannot be read",
        "folder.py": "cannot be read",
        "latin.py": "is not UTF-8",
        "huge.py": "is larger than 1 MiB",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            engine(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_an_unknown_name_suggests_one() -> None:
    with pytest.raises(InputError, match=r"'vlm-v1': unknown, and no path of a \.py file; did you mean 'vllm-v1'\?"):
        engine("vlm-v1")


def test_a_function_of_another_name_and_an_edited_file(tmp_path: Path, no_jit: None) -> None:
    name = written(tmp_path, "def mine(r, row):\n    raise ValueError('first')\n")
    with pytest.raises(InputError, match="ValueError: first"):
        run_interpreted(name + ":mine")
    written(tmp_path, "def mine(r, row):\n    raise ValueError('second')\n")
    with pytest.raises(InputError, match="ValueError: second"):
        run_interpreted(name + ":mine")


def test_an_entry_point_of_another_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_jit: None) -> None:
    package = tmp_path / "their_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "words.py").write_text("WORD = 'by entry point'\n")
    (package / "order.py").write_text("from .words import WORD\n\ndef fill(r, row):\n    raise ValueError(WORD)\n")
    info = tmp_path / "their_package-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[simkit.disciplines]\ntheirs = their_package.order:fill\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match=r"order\.py:4: step 1: ValueError: by entry point"):
        run_interpreted("theirs")
    with pytest.raises(InputError, match="did you mean 'theirs'"):
        engine("their")


def test_machine_code_of_a_file_is_taken_from_the_disk(tmp_path: Path) -> None:
    """Two processes, one after the other; numba counts what it took from its cache."""
    program = (
        "import json, sys\n"
        "from simkit.engine.discipline import engine\n"
        "from simkit.engine.histories import random_history\n"
        "from simkit.engine.state import NEVER\n"
        "h = random_history(1)\n"
        "r = h.replica()\n"
        "e = engine(sys.argv[1])\n"
        "assert e.advance(r, h.tables, NEVER, 10**6) == 0\n"
        "print(json.dumps([r.at.tolist(), e.name]))\n"
    )
    name = written(tmp_path, EXAMPLE.read_text() + f"\n# {tmp_path}\n")
    command = [sys.executable, "-c", program, name]
    found = [json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout) for _ in range(2)]
    assert found[0] == found[1]
    folder = Path(numba.config.CACHE_DIR)
    assert list(folder.rglob(f"*{found[0][1]}*.nbc"))


def batches(name: str, requests: list[tuple[int, int, int]], budget: int) -> list[list[tuple[int, int, int]]]:
    """(request, tokens, before) of each step, under a discipline; a step lasts 10 ns."""
    rows = records(len(requests), REQUEST)
    for i, (arrival, prompt, output) in enumerate(requests):
        rows[i] = (10 * arrival, prompt, output, output, 0, output, 0, NEVER, 0, 0)
    limits = random_history(0).limits._replace(
        max_num_batched_tokens=budget, max_running=4, max_model_len=64, block_size=4, ordering=0, pipeline_depth=1,
        prefix_caching=False, chunked_prefill=True, watermark_blocks=0, long_prefill_token_threshold=0,
        adaptive_long_prefill=False, preemptive=False,
    )  # fmt: skip
    r: Replica = new_replica(limits, rows, np.zeros(0, np.int64), records(0, ABORT), 100)
    tables = constant_tables(budget, 4, step_ns=10.0)
    step = iterate if name == "vllm-v1" else engine(name).iterate
    found = []
    while r.at[UNFINISHED] or r.at[NEXT_ARRIVAL] < r.at[ROWS]:
        if not r.at[UNFINISHED]:
            r.at[NOW] = max(r.at[NOW], rows["arrival_ns"][r.at[NEXT_ARRIVAL]])
        row = len(found) % 2
        step(r, tables)
        entries = r.entries[row, : r.batches["length"][row]]
        found.append([(int(e.request), int(e.tokens), int(e.before)) for e in entries])
    return found


def test_the_worked_example_by_hand() -> None:
    """A budget of 8, of which prompts get at most 4 while somebody answers."""
    assert batches(str(EXAMPLE), [(0, 3, 4), (1, 10, 2), (1, 2, 1)], budget=8) == [
        [(0, 3, 0)],
        # 0 answers: 4 of the other 7 tokens go to prompts, all to the first of them
        [(0, 1, 3), (1, 4, 0)],
        [(0, 1, 4), (1, 4, 4)],
        # what the last 2 of 1's prompt leave of 4 goes to 2's
        [(0, 1, 5), (1, 2, 8), (2, 2, 0)],
        [(1, 1, 10)],
    ]
    # vLLM V1 gives all that is left to the prompt
    assert batches("vllm-v1", [(0, 3, 4), (1, 10, 2), (1, 2, 1)], budget=8)[1] == [(0, 1, 3), (1, 7, 0)]
