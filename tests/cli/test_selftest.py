"""`simkit selftest` as users run it."""

import json
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "experiments/own_discipline/decode_first.py"


def test_this_install_meets_theory_and_the_rules(simkit) -> None:  # type: ignore[no-untyped-def]
    process = simkit("selftest", "--histories", 20)
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    for name in ("M/M/1 mean wait", "Little's law", "budget kept", "nobody starved", "interpreted = compiled"):
        assert any(line.startswith(f"held   {name}: ") for line in lines), name
    assert lines[-1].endswith(" held, 0 broke")


def test_a_policy_that_keeps_the_rules_passes_as_json(simkit) -> None:  # type: ignore[no-untyped-def]
    process = simkit("selftest", "--policy", EXAMPLE, "--histories", 10, "--json")
    assert process.returncode == 0, process.stderr
    tree = json.loads(process.stdout)
    assert tree["passed"] is True
    assert tree["policy"] == str(EXAMPLE)
    assert all(finding["held"] for finding in tree["findings"])


def test_a_policy_that_breaks_one_is_told_the_rule_and_the_step(simkit, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "greedy.py"
    old = "budget = r.limits.max_num_batched_tokens\n"
    text = EXAMPLE.read_text()
    assert old in text
    file.write_text(text.replace(old, "budget = 2 * r.limits.max_num_batched_tokens\n"))
    process = simkit("selftest", "--policy", file, "--histories", 10)
    assert process.returncode == 1
    broke = [line for line in process.stdout.splitlines() if line.startswith("BROKE")]
    assert len(broke) == 1
    assert broke[0].startswith("BROKE  budget kept: a step's tokens are at most max_num_batched_tokens [history ")
    assert ", step " in broke[0]
    tree = json.loads(simkit("selftest", "--policy", file, "--histories", 10, "--json").stdout)
    assert tree["passed"] is False
    assert [f["step"] >= 1 for f in tree["findings"] if not f["held"]] == [True]


def test_what_is_no_policy_is_one_line_and_exit_2(simkit, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "wrong.py").write_text("def schedule(r):\n    pass\n")
    for name, said in {
        tmp_path / "absent.py": "cannot be read",
        tmp_path / "wrong.py": "wrong.py:1: schedule(r) is called with the replica and the batch's row",
        "nonsense": "--policy nonsense: no path of a .py file and no entry point",
    }.items():
        process = simkit("selftest", "--policy", name)
        assert process.returncode == 2
        assert said in process.stderr
        assert process.stderr.strip().count("\n") == 0
        assert process.stdout == ""
    assert simkit("selftest", "--histories", 0).returncode == 2


def test_run_takes_a_discipline_by_path(simkit) -> None:  # type: ignore[no-untyped-def]
    what = ("--model", "llama-3.1-8b", "--device", "h100", "--preset", "azure-conv-2023")
    load = (*what, "-n", 400, "--rate", 20, "--json")
    ours = simkit("run", *load)
    theirs = simkit("run", *load, "--set", f"deployment.engine.discipline={EXAMPLE}")
    assert (ours.returncode, theirs.returncode) == (0, 0), theirs.stderr
    one, other = json.loads(ours.stdout), json.loads(theirs.stdout)
    # the same requests, served otherwise: no token waits behind more than half a step of prompts
    assert one["requests"] == other["requests"]
    assert other["latency_of_this_run_s"]["itl"]["p99"] < one["latency_of_this_run_s"]["itl"]["p99"]
