"""Groups of prefill and decode replicas among the candidates: against a grid, bounds, closed forms."""

import json
import shlex
import time

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from simkit.engine.deployment import Deployment, resolve
from simkit.metrics.result import WATERFALL
from simkit.metrics.slo import promise
from simkit.plan.answer import CANNOT, Question, kind_tree, start
from simkit.plan.bounds import bounds
from simkit.plan.confidence import StepTimeError
from simkit.plan.decision import decide
from simkit.plan.fleet import replay_share, share_served
from simkit.plan.group_resources import HANDOVER, group_in_use, group_with_more
from simkit.plan.knee import find_knee
from simkit.plan.launch_apart import launch_apart
from simkit.plan.parallel import Workers
from simkit.plan.resources import resources
from simkit.plan.search import search
from simkit.plan.settings import PlanSettings
from simkit.plan.space import DeviceOffer, Kind, SearchSpace, kinds
from simkit.plan.tree import decision_tree
from simkit.plan.unit import Group, serve, serve_groups, work_out
from simkit.plan.use import groups_use
from simkit.plan.words import verdict
from simkit.workloads.presets import preset
from simkit.workloads.workload import Workload

from .test_search import grid

BASE = Deployment(model="llama-3.1-8b", device="h100")
SPLITS = SearchSpace.model_validate({"disaggregated": ["together", "1P1D", "1P2D", "2P1D"], "replicas": 2})
# a TPOT that decodes keep only where no prompt comes between: apart wins; one that they keep anyhow: together does
CASES = [
    (40.0, {"ttft_p90_s": 0.5, "tpot_p90_s": 0.012}, "1P1D"),
    (20.0, {"ttft_p99_s": 1.0, "tpot_p99_s": 0.05}, "together"),
]


def asked(workload: Workload, rate: float, slo: dict[str, float]) -> Question:
    return Question(workload, rate, promise(slo))


@pytest.fixture(scope="module")
def group() -> Group:
    kind = kinds(SearchSpace.model_validate({"disaggregated": ["1P2D"]}), BASE)[0]
    unit = work_out(kind, resolve)
    assert isinstance(unit, Group)
    return unit


@pytest.mark.parametrize(("rate", "slo", "wins"), CASES)
def test_search_finds_what_an_exhaustive_grid_finds(
    chat: Workload, rate: float, slo: dict[str, float], wins: str
) -> None:
    options = kinds(SPLITS, BASE)
    question = asked(chat, rate, slo)
    everything = grid(options, question)
    chosen = search(options, question).chosen
    assert chosen is not None
    kind, one = chosen
    assert (one.usd_per_hour, (one.replicas or 0) * kind.gpus, kind.number, one.replicas) == everything[0]
    assert kind.label.endswith(wins)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tree", "rate", "slo"),
    [
        ({"devices": ["h100", "l40s"], "replicas": 4}, 25.0, {"ttft_p99_s": 1.0, "tpot_p99_s": 0.02}),
        ({"kv": ["bf16", "fp8"], "replicas": 3}, 60.0, {"tpot_p95_s": 0.012, "ttft_p95_s": 0.4}),
        ({"tensor": [1, 2], "replicas": 3}, 30.0, {"ttft_s": 0.3, "tpot_s": 0.009, "attainment": 0.9}),
        ({"weights": [None, "fp8"], "replicas": 3}, 30.0, {"e2e_p90_s": 4.0}),
    ],
)
def test_search_finds_what_larger_grids_find(
    chat: Workload, tree: dict[str, object], rate: float, slo: dict[str, float]
) -> None:
    options = kinds(SearchSpace.model_validate({"disaggregated": ["together", "1P1D", "2P1D"], **tree}), BASE)
    question = asked(chat, rate, slo)
    everything = grid(options, question)
    chosen = search(options, question).chosen
    if not everything:
        assert chosen is None
        return
    assert chosen is not None
    kind, one = chosen
    assert (one.usd_per_hour, (one.replicas or 0) * kind.gpus, kind.number, one.replicas) == everything[0]


@pytest.mark.slow
def test_two_hundred_candidates_of_both_sorts_take_less_than_half_a_minute() -> None:
    tree = {
        "models": ["llama-3.1-8b", "qwen3-14b"],
        "devices": ["h100", "l40s", "a100", "h200", "rtx-4090"],
        "tensor": [1, 2],
        "weights": [None, "fp8"],
        "kv": ["bf16", "fp8"],
        "disaggregated": ["together", "1P1D", "2P1D"],
    }
    options = kinds(SearchSpace.model_validate(tree), BASE)
    assert len(options) >= 200
    traffic = preset("azure-conv-2023", requests=5000, seed=0, arrivals="poisson")
    question = asked(traffic, 40.0, {"ttft_p99_s": 1.0, "tpot_p99_s": 0.05})
    search(options[:3], question, every=True)
    begun = time.process_time()
    assert search(options, question).chosen is not None
    assert time.process_time() - begun < 30


def test_no_replay_of_a_group_beats_its_bounds(chat: Workload, group: Group) -> None:
    slo = promise({"ttft_p50_s": 9.0, "ttft_mean_s": 9.0, "tpot_p50_s": 9.0, "e2e_mean_s": 99.0, "ntpot_p90_s": 9.0})
    known = bounds(group, chat, slo)
    assert set(known.limits_per_s) == {"prefill compute", "decode compute", "KV", "link"}
    crowded = serve(group, Workload("at once", chat.arrival_us * 0, chat.prompt_tokens, chat.output_tokens))
    end_s = max(run.end_ns for run in crowded.runs) / 1e9
    assert known.rate_per_s > len(chat) / end_s
    alone = replay_share(group, chat, 1, 0.02 * known.rate_per_s, slo)
    for key, floor in known.floors_s.items():
        assert 0 < floor < alone.figures[key]


def test_a_slow_link_bounds_what_a_group_holds(chat: Workload) -> None:
    """KV of a prompt token of Llama-3.1-8B: 2 x 32 layers x 8 heads x 128 x 2 bytes; one link of 1e8 x 0.85 bytes/s."""
    tree = {"disaggregated": ["1P1D"], "link": {"gb_per_s": 0.1}, "replicas": 2}
    kind = kinds(SearchSpace.model_validate(tree), BASE)[0]
    known = bounds(work_out(kind, resolve), chat, promise({"ttft_p99_s": 99.0}))
    moved = ((chat.prompt_tokens - 1) // 16 * 16).mean() * 2 * 32 * 8 * 128 * 2
    assert known.limited_by == "link"
    assert known.limits_per_s["link"] == pytest.approx(0.85e8 / moved, rel=1e-9)
    begun = start(kind, asked(chat, 10.0, {"ttft_p99_s": 99.0}))
    assert begun.verdict is not None
    assert "link alone; 2 are allowed" in begun.verdict.reason


def test_a_group_costs_what_its_gpus_cost() -> None:
    tree = {"disaggregated": [{"prefill": 2, "decode": 3, "decode_tensor": 4}], "devices": [{"device": "h100"}]}
    kind = kinds(SearchSpace.model_validate(tree), BASE)[0]
    assert kind.gpus == 2 * 1 + 3 * 4
    assert kind.replica_usd_per_hour == pytest.approx(14 * kind.usd_per_hour)
    assert kind.label == "llama-3.1-8b, h100-sxm, tensor 4, 2P3D (decode tensor 4)"
    few = SearchSpace(disaggregated=("1P1D",), devices=(DeviceOffer(device="h100", available=5),))  # type: ignore[arg-type]
    assert kinds(few, BASE)[0].most_replicas == 2
    assert json.loads(json.dumps(kind_tree(kind)))["apart"]["decodes"] == 3


def test_splits_that_cannot_be_are_told_why(chat: Workload) -> None:
    for wrong in ("1D1P", "0P1D", "apart"):
        with pytest.raises(ValidationError, match="is no split"):
            SearchSpace.model_validate({"disaggregated": [wrong]})
    tree = {"disaggregated": ["1P1D"], "engine": {"discipline": ["sarathi"]}}
    begun = start(kinds(SearchSpace.model_validate(tree), BASE)[0], asked(chat, 1.0, {"ttft_p99_s": 1.0}))
    assert begun.verdict is not None
    assert begun.verdict.status == CANNOT
    assert "vllm-v1" in begun.verdict.reason
    link = kinds(SearchSpace.model_validate({"disaggregated": ["1P1D"], "link": {"kind": "infiniband"}}), BASE)[0]
    begun = start(link, asked(chat, 1.0, {"ttft_p99_s": 1.0}))
    assert begun.verdict is not None
    assert "did you mean 'infiniband-" in begun.verdict.reason


def test_each_role_is_charged_its_own_work(chat: Workload, group: Group) -> None:
    """FLOPs are twice the parameters a token, prompts at the prefill replica, answers at the two decode replicas."""
    served = serve(group, chat)
    used = group_in_use(group, served)
    span_s = (max(run.end_ns for run in served.runs) - int(served.requests.arrival_ns[0])) / 1e9
    peak = group.decode.device.flops_per_s("bf16")
    prompts = 2 * 7.0e9 * chat.prompt_tokens.sum() / span_s / peak
    answers = 2 * 7.0e9 * chat.output_tokens.sum() / span_s / peak / 2
    assert used["prefill compute"] is not None
    assert prompts < used["prefill compute"] < 1.4 * prompts
    assert used["decode compute"] is not None
    # besides its answer a request has up to 16 tokens of its prompt computed where it decodes
    assert answers < used["decode compute"] < 1.4 * answers + 2 * 7.5e9 * 16 * len(chat) / span_s / peak / 2
    moved = ((chat.prompt_tokens - 1) // 16 * 16).sum() * 131072
    assert used[HANDOVER] == pytest.approx(moved / (span_s * 0.85 * 50e9), rel=0.02)
    seen = replay_share(group, chat, 1, 12.0, promise({"ttft_p99_s": 1.0}))
    use = groups_use(group, 1, 12.0, seen, served, 3)
    assert use.prefill_share + use.decode_share + use.idle_share == pytest.approx(1.0)
    busy = sum(run.busy_ns for run in served.runs) / 3e9
    end_s = max(run.end_ns for run in served.runs) / 1e9
    assert use.prefill_share + use.decode_share == pytest.approx(busy / end_s)


def test_clients_of_groups_wait_for_one_front_end(chat: Workload, group: Group) -> None:
    """From arrival to the last token, each ns is in one part of the waterfall, and the front end is its law's."""
    seen = serve_groups(group, 2, chat).requests
    parts = sum(getattr(seen, name) for name in WATERFALL)
    assert np.array_equal(seen.finish_ns - seen.arrival_ns, parts)
    assert np.array_equal(seen.front_end_ns, group.decode.front_end.ns(chat.prompt_tokens))
    assert seen.front_end_ns.min() > 0


def test_what_binds_a_group_does_not_depend_on_the_load_of_the_replay(chat: Workload, group: Group) -> None:
    slo = promise({"ttft_p90_s": 0.5, "tpot_p90_s": 0.012})
    knee = find_knee(group, chat, 1, slo).rate_per_s
    assert knee is not None
    first = []
    for load in (0.05, 1.0):
        _, served = share_served(group, chat, 1, load * knee, slo)
        first.append(resources(group, served, chat, slo, 1, knee, load=load)[0])
    assert first[0].name == first[1].name
    assert first[0].gain == first[1].gain
    assert first[0].gain is not None
    assert first[0].gain > 0.05


def test_more_of_the_link_is_a_faster_link(group: Group) -> None:
    faster = group_with_more(group, HANDOVER, 1.5)
    assert faster is not None
    assert faster.link.bytes_per_s() == pytest.approx(1.5 * group.link.bytes_per_s())
    assert faster.link.latency_ns() == group.link.latency_ns()
    wider = group_with_more(group, "decode KV", 1.5)
    assert wider is not None
    assert (wider.prefill.num_blocks, wider.decode.num_blocks > group.decode.num_blocks) == (
        group.prefill.num_blocks,
        True,
    )


def test_commands_name_both_roles(chat: Workload, group: Group) -> None:
    told = launch_apart(group, 3, 30.0, chat, promise({"ttft_p99_s": 1.0, "ttft_s": 1.0, "attainment": 0.9}))
    prefill, decode, router = told.vllm.split("\n\n")
    assert prefill.startswith("# prefill: 3 of it\nvllm serve")
    assert decode.startswith("# decode: 6 of it\nvllm serve")
    for text, role in ((prefill, "kv_producer"), (decode, "kv_consumer")):
        words = shlex.split(text.split("\n", 1)[1])
        transfer = json.loads(words[words.index("--kv-transfer-config") + 1])
        assert transfer == {"kv_connector": "NixlConnector", "kv_role": role}
    assert "--vllm-pd-disaggregation" in router
    assert told.sglang.count("--disaggregation-mode prefill") == 1
    assert told.sglang.count("--disaggregation-mode decode") == 1
    servers = [one for one in yaml.safe_load_all(told.kubernetes) if one["kind"] == "Deployment"]
    assert [(one["metadata"]["name"], one["spec"]["replicas"]) for one in servers] == [
        ("llm-prefill", 3),
        ("llm-decode", 6),
    ]
    for one in servers:  # a gated model's token, where the cluster has one
        (token,) = one["spec"]["template"]["spec"]["containers"][0]["env"]
        assert token["name"] == "HF_TOKEN"
        assert token["valueFrom"]["secretKeyRef"] == {"name": "hf-token-secret", "key": "token", "optional": True}


@pytest.mark.slow
def test_everything_is_said_of_a_chosen_group(chat: Workload) -> None:
    question = asked(chat, 40.0, {"ttft_p90_s": 0.5, "tpot_p90_s": 0.012})
    settings = PlanSettings.model_validate({"demand": {"rate_per_s": 40}, "replications": 2})
    kind: Kind = kinds(SearchSpace.model_validate({"disaggregated": ["1P1D"]}), BASE)[0]
    d = decide(question, kind, 2, settings, StepTimeError(0.1, "test"))
    lines = verdict(d, None, question.promise, settings)
    assert lines[0].startswith("Deploy 2 groups of llama-3.1-8b, h100-sxm, 1P1D: 4 GPUs")
    assert len(lines) <= 15
    assert sum(d.bill.usd_per_hour.values()) == pytest.approx(d.bill.total_usd_per_hour)
    assert d.bill.total_usd_per_hour == pytest.approx(4 * kind.usd_per_hour)
    assert {one.name for one in d.resources} >= {"prefill compute", "decode bandwidth", HANDOVER}
    assert d.resources[0].name.startswith("decode")
    assert d.knee.rate_per_s is not None
    assert any("1P2D" in change.words for change in d.changes)
    assert all(np.isclose(sum(one.parts_s.values()), one.e2e_s) for one in d.waterfalls)
    tree = json.dumps(decision_tree(d), default=str)
    shared = decide(question, kind, 2, settings, StepTimeError(0.1, "test"), workers=Workers(2))
    assert json.dumps(decision_tree(shared), default=str) == tree
