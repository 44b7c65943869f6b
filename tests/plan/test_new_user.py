"""A new user's way: a model, a device and a trace that simkit does not know, to a plan; and the other commands."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from simkit.cli.main import app
from simkit.errors import InputError

# a decoder of Mistral's family that is in no catalog
CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 64000,
    "max_position_embeddings": 16384,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
CARD = """
my-card:
  memory_gib: {value: 47.5, source: "torch.cuda total_memory"}
  bandwidth_gb_per_s: {value: 1200, source: "vendor"}
  tflops: {bf16: 300, fp8: 600, source: "vendor, dense"}
  multiprocessors: {value: 100, source: "vendor"}
  l2_mib: {value: 64, source: "vendor"}
  power_w: {value: 350, source: "vendor"}
  link: {kind: pcie, gb_per_s: 64, source: "PCIe 5.0 x16, one direction"}
  usd_per_hour: {value: 0.9, source: "our contract"}
"""


def simkit(folder: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", "from simkit.cli.main import entry; entry()", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "100"}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=300)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """What a user has: config.json, card.yaml, mine.csv."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "card.yaml").write_text(CARD)
    rng = random.Random(1)
    at_ms = 0.0
    lines = ["ts_ms,tokens_in,tokens_out,team"]
    for _ in range(800):
        at_ms += rng.expovariate(1 / 120)
        lines.append(f"{at_ms:.0f},{rng.randint(50, 3000)},{rng.randint(1, 300)},x")
    (tmp_path / "mine.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


OWN = ("--model", "config.json", "--device", "card.yaml", "--trace", "mine.csv")
COLUMNS = ("--columns", "arrival=ts_ms,prompt=tokens_in,output=tokens_out", "--time-unit", "ms")
SLO = ("--slo", "ttft_p99=2", "--slo", "tpot_p99=0.08")
QUICK = ("--set", "plan.replications=3", "--set", "plan.search.replicas=16")


def test_own_model_device_and_trace_lead_to_a_plan(home: Path) -> None:
    lost = simkit(home, "plan", *OWN, *SLO, "--demand", 20)
    assert lost.returncode == 2
    assert "--columns arrival=NAME" in lost.stderr  # the error says what to do next
    done = simkit(home, "plan", *OWN, *COLUMNS, *SLO, *QUICK, "--demand", 20, "--out", "plan")
    assert done.returncode == 0, done.stderr
    said = done.stderr[done.stderr.index("Deploy ") :]
    assert "my-card" in said
    assert "uncalibrated" in said
    assert {"plan.json", "plan.html", "deployment.yaml"} <= {path.name for path in (home / "plan").iterdir()}
    tree = json.loads((home / "plan" / "plan.json").read_text())
    assert len(tree["verdict"]) <= 15
    decision = tree["decision"]
    assert decision["bill"]["total_usd_per_hour"] == pytest.approx(0.9 * decision["gpus"])
    assert "CHECKPOINT" in decision["launch"]["vllm"]
    page = (home / "plan" / "plan.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://llm", "")


@pytest.mark.slow
def test_plans_are_the_same_bytes_every_time(home: Path) -> None:
    pages = []
    for name in ("one", "two"):
        done = simkit(home, "plan", *OWN, *COLUMNS, *SLO, *QUICK, "--demand", 10, "--out", name)
        assert done.returncode == 0, done.stderr
        pages.append([(home / name / file).read_bytes() for file in ("plan.json", "plan.html")])
    assert pages[0] == pages[1]


def test_what_cannot_be_kept_ends_in_three_and_says_what_could(home: Path) -> None:
    done = simkit(
        home,
        "plan",
        *OWN,
        *COLUMNS,
        "--slo",
        "tpot_p99=0.002",
        "--demand",
        5,
        "--json",
        "--set",
        "plan.search.replicas=4",
    )
    assert done.returncode == 3
    tree = json.loads(done.stdout)
    assert tree["infeasible"]["binding"] == "tpot_p99_s"
    assert tree["infeasible"]["gap"] > 1
    assert 1 <= len(tree["infeasible"]["nearest"]) <= 3
    assert tree["verdict"][0].startswith("Nothing that was allowed holds")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--set", "plan.serch.kv=[fp8]", "--demand", 5), "did you mean 'search'"),
        (("--robust", "n-2"), "did you mean 'n-1'"),
        (("--robust", "growth"), "plan.demand.growth"),
        (("--cluster", "slurm", "--demand", 5), "ray is"),
        (("--users", 100), "requests_per_user_hour"),
        (("--demand", 5, "--disaggregated", "1D1P"), "1P2D"),
        (("--set", "cluster={router: random}"), "--demand"),
        (("--demand", 5, "--set", "cluster={replicas: 3}"), "cluster.replicas"),
        (("--demand", 5, "--set", "cluster={pools: [{name: a}]}"), "simkit run"),
        (("--demand", 5, "--disaggregated", "1P1D", "--set", "cluster={router: random}"), "gateway of their own"),
        (("--demand", 5, "--set", "deployment.layout.data=2"), "layout.data"),
        (("--demand", 5, "--set", "plan.search.engine={max_num_seq: [1]}"), "max_num_seqs"),
        (("--demand", 5, "--columns", "arrival"), "ROLE=NAME"),
        (("--demand", 5, "--columns", "arival=ts_ms,prompt=tokens_in,output=tokens_out"), "did you mean 'arrival'"),
    ],
)
def test_bad_input_is_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], said: str
) -> None:
    monkeypatch.chdir(home)
    given = COLUMNS if "--columns" not in arguments else ()
    result = CliRunner().invoke(app, ["plan", *map(str, (*OWN, *given, *SLO, *arguments))])
    assert isinstance(result.exception, InputError)
    assert said in str(result.exception)
    assert "\n" not in str(result.exception)


@pytest.mark.slow
def test_context_and_compare_run_on_the_same_files(home: Path) -> None:
    lengths = ("--lengths", "4096,8192", "--rates", "2", "--kv", "bf16,fp8")
    done = simkit(home, "context", *OWN, *COLUMNS, "--slo", "ttft_p99=10", *lengths, "--out", "context", "--json")
    assert done.returncode == 0, done.stderr
    tree = json.loads(done.stdout)
    assert [cell["max_context"] for cell in tree["cells"]] == [4096, 8192, 4096, 8192]
    assert (home / "context" / "context.html").read_text().count("<svg") == 8
    shared = (
        "workload: {trace: mine.csv, columns: {arrival: ts_ms, prompt: tokens_in, output: tokens_out}, time_unit: ms}"
    )
    for name, kv in (("a", "bf16"), ("b", "bf16"), ("c", "fp8")):
        text = f"deployment: {{model: config.json, device: card.yaml, kv: {kv}}}\n{shared}\n"
        (home / f"{name}.yaml").write_text(text + "slo: {tpot_p99_s: 0.08}\nreplicas: 2\n")
    done = simkit(home, "compare", "a.yaml", "b.yaml", "c.yaml", "--replications", 3, "--json", "--out", "compare")
    assert done.returncode == 0, done.stderr
    tree = json.loads(done.stdout)
    same, other = tree["differences"]
    assert same["same"]
    assert all(interval == [0.0, 0.0, 0.0] for interval in same["figures"].values())
    assert not other["same"]
    assert (home / "compare" / "compare.html").exists()
    alone = simkit(home, "compare", "a.yaml")
    assert alone.returncode == 2
    assert "give two or more" in alone.stderr


def test_a_users_slips_are_told_with_their_remedy(home: Path) -> None:
    """What a walk from a fresh clone stumbled over: each message says what to do."""
    dates = ["when,tokens_in,tokens_out"]
    dates += [f"2026-11-02T09:{i // 60:02d}:{i % 60:02d}.5,{9000 if i == 7 else 500},50" for i in range(600)]
    (home / "dates.csv").write_text("\n".join(dates) + "\n")
    own = ("--model", "config.json", "--device", "card.yaml", "--trace", "dates.csv", *SLO, "--demand", 2)
    named = ("--columns", "arrival=when,prompt=tokens_in,output=tokens_out")
    lost = simkit(home, "plan", *own, *named)
    assert lost.returncode == 2
    assert "--time-unit clock" in lost.stderr
    short = ("--time-unit", "clock", "--set", "deployment.engine.max_model_len=8192")
    rejected = simkit(home, "plan", *own, *named, *short, "--json")
    assert rejected.returncode == 3
    assert "1 of 600 requests are longer" in json.loads(rejected.stdout)["verdict"][0]
    assert "deployment.engine.max_model_len=9050" in json.loads(rejected.stdout)["verdict"][0]
    (home / "card.yaml").write_text("my-card:\n  memory_gib: {value: 47.5, source: vendor}\n")
    bare = simkit(home, "plan", *own, *named, "--time-unit", "clock")
    assert bare.returncode == 2
    assert "usd_per_hour" in bare.stderr
    assert "{value: 864, source: datasheet}" in bare.stderr
    (home / "config.json").write_text(json.dumps({**CONFIG, "model_type": "unheard-of"}))
    (home / "card.yaml").write_text(CARD)
    unknown = simkit(home, "plan", *own, *named, "--time-unit", "clock")
    assert unknown.returncode == 2
    assert "model_type" in unknown.stderr
