"""The cheapest deployment against a search of every kind and every number of replicas."""

from pathlib import Path

import pytest

from simkit.cli import fleet_plan
from simkit.engine.deployment import Deployment
from simkit.errors import InputError, PartialResultError
from simkit.metrics.slo import promise
from simkit.plan.answer import CANNOT, TOO_SLOW, Question, answer, least_number, start, try_replicas
from simkit.plan.parallel import Workers
from simkit.plan.scenario import Stresses, scenarios
from simkit.plan.search import SearchResult, cheapest_usd, pareto, search
from simkit.plan.space import DeviceOffer, Kind, SearchSpace, kinds
from simkit.plan.study import Study
from simkit.workloads.presets import preset
from simkit.workloads.workload import Workload

BASE = Deployment(model="llama-3.1-8b", device="h100")
SPACES = {
    "devices": SearchSpace(devices=("h100", "l40s", "a100"), replicas=6),  # type: ignore[arg-type]
    "tensor": SearchSpace(tensor=(1, 2, 4), replicas=5),
    "precision": SearchSpace(weights=(None, "fp8"), kv=("bf16", "fp8"), replicas=4),
    "engine": SearchSpace(engine={"max_num_seqs": (16, 64), "max_num_batched_tokens": (512, 4096)}, replicas=6),
    "schedulers": SearchSpace(engine={"discipline": ("vllm-v1", "sarathi", "vllm-v0")}, replicas=4),
}
CASES = [
    ("devices", 8.0, {"ttft_p99_s": 1.0, "tpot_p99_s": 0.05}),
    ("devices", 30.0, {"ttft_p90_s": 0.5, "tpot_p90_s": 0.04}),
    ("devices", 20.0, {"ttft_s": 1.0, "tpot_s": 0.04, "attainment": 0.9}),
    ("tensor", 30.0, {"tpot_p99_s": 0.02}),
    ("tensor", 60.0, {"e2e_p90_s": 6.0}),
    ("precision", 45.0, {"tpot_p95_s": 0.03}),
    ("precision", 70.0, {"itl_p99_s": 0.3, "ttft_p99_s": 1.0}),
    ("engine", 15.0, {"ttft_p99_s": 2.0, "tpot_mean_s": 0.03}),
    ("engine", 40.0, {"ntpot_p99_s": 0.08, "goodput_per_s": 30.0}),
    ("schedulers", 25.0, {"ttft_p99_s": 1.0, "tpot_p99_s": 0.03}),
]


def question(workload: Workload, rate: float, slo: dict[str, float], *robust: str) -> Question:
    return Question(workload, rate, promise(slo), scenarios(robust, Stresses(), None))


def grid(options: list[Kind], asked: Question) -> list[tuple[float, int, int, int]]:
    """(price, GPUs, kind, replicas) of everything that holds, by trying everything."""
    found = []
    for kind in options:
        try:
            spec = asked.spec_of(kind)
        except InputError:
            continue
        for replicas in range(1, kind.most_replicas + 1):
            if try_replicas(spec, asked, replicas)[0].holds:
                found.append((replicas * kind.replica_usd_per_hour, replicas * kind.gpus, kind.number, replicas))
    return sorted(found)


@pytest.mark.parametrize(("space", "rate", "slo"), CASES)
def test_search_finds_what_an_exhaustive_grid_finds(
    chat: Workload, space: str, rate: float, slo: dict[str, float]
) -> None:
    options = kinds(SPACES[space], BASE)
    asked = question(chat, rate, slo)
    everything = grid(options, asked)
    found = search(options, asked)
    if not everything:
        assert found.chosen is None
        return
    assert found.chosen is not None
    kind, one = found.chosen
    assert (one.usd_per_hour, (one.replicas or 0) * kind.gpus, kind.number, one.replicas) == everything[0]


def test_most_cases_have_an_answer_and_a_choice(chat: Workload) -> None:
    """The ten cases would say nothing if all were impossible or all answers the first kind's."""
    chosen = [search(kinds(SPACES[s], BASE), question(chat, rate, slo)).chosen for s, rate, slo in CASES]
    held = [one for one in chosen if one is not None]
    assert len(held) >= 8
    assert len({(kind.number, one.replicas) for kind, one in held}) >= 5


def test_price_rises_with_the_rate_and_falls_with_the_promise(chat: Workload) -> None:
    options = kinds(SPACES["devices"].model_copy(update={"replicas": 12}), BASE)

    def price(rate: float, tpot: float) -> float:
        found = search(options, question(chat, rate, {"ttft_p99_s": 1.0, "tpot_p99_s": tpot})).chosen
        return float("inf") if found is None else found[1].usd_per_hour or 0.0

    by_rate = [price(rate, 0.05) for rate in (2, 5, 10, 20, 40, 60, 80)]
    assert by_rate == sorted(by_rate)
    assert by_rate[0] < by_rate[-1]
    by_promise = [price(20, tpot) for tpot in (0.004, 0.015, 0.02, 0.03, 0.05, 0.1)]
    assert by_promise == sorted(by_promise, reverse=True)
    assert by_promise[0] == float("inf")


def test_a_study_taken_up_again_ends_as_one_that_never_stopped(chat: Workload, tmp_path: Path) -> None:
    options = kinds(SPACES["engine"].model_copy(update={"kv": ("bf16", "fp8"), "tensor": (1, 2), "replicas": 9}), BASE)
    asked = question(chat, 30.0, {"tpot_p99_s": 0.04})
    whole = search(options, asked)

    class StopError(Exception):
        pass

    def stop_after(settled: int) -> None:
        if settled == 5:
            raise StopError

    path = tmp_path / "study.jsonl"
    with pytest.raises(StopError):
        search(options, asked, study=Study(path, "k"), on_answer=stop_after)
    kept = path.read_text()
    path.write_text(kept + '{"number": 1')  # cut off in the middle of a line
    again = search(options, asked, study=Study(path, "k"))
    assert path.read_text().startswith(kept)
    assert again == whole
    assert len(Study(path, "k").answers) == len(options)
    with pytest.raises(InputError, match="another question"):
        Study(path, "other")
    path.write_text("{}\n")
    with pytest.raises(InputError, match="no study"):
        Study(path, "k")


@pytest.mark.slow
def test_processes_change_nothing(chat: Workload) -> None:
    options = kinds(SPACES["devices"], BASE)
    asked = question(chat, 30.0, {"ttft_p99_s": 1.0, "tpot_p99_s": 0.05})
    assert search(options, asked, Workers(2)) == search(options, asked)


@pytest.mark.slow
def test_ray_changes_not_a_byte(chat: Workload) -> None:
    ray = pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    options = kinds(SPACES["precision"], BASE)
    asked = question(chat, 45.0, {"tpot_p95_s": 0.03})
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        over_ray = search(options, asked, Workers(2, "ray"))
    finally:
        ray.shutdown()
    here = search(options, asked)
    assert as_bytes(over_ray) == as_bytes(here)


def as_bytes(found: SearchResult) -> list[str]:
    return [one.model_dump_json() for one in found.answers]


def test_what_cannot_run_or_is_too_slow_is_settled_without_a_replay(chat: Workload) -> None:
    large = Deployment(model="llama-3.1-70b", device="l40s")
    found = search(kinds(SearchSpace(), large), question(chat, 1.0, {"tpot_p99_s": 0.1}))
    assert found.answers[0].status == CANNOT
    assert "does not fit" in found.answers[0].reason
    slow = search(kinds(SearchSpace(), BASE), question(chat, 1.0, {"tpot_p50_s": 1e-4}))
    assert slow.answers[0].status == TOO_SLOW
    assert slow.answers[0].tried == ()
    assert slow.chosen is None


def test_one_replica_down_needs_one_more_or_none(chat: Workload) -> None:
    kind = kinds(SearchSpace(replicas=12), BASE)[0]
    slo = {"ttft_p99_s": 1.0, "tpot_p99_s": 0.05}
    plain = answer(start(kind, question(chat, 40.0, slo)), question(chat, 40.0, slo)).replicas
    robust = question(chat, 40.0, slo, "n-1")
    spared = answer(start(kind, robust), robust).replicas
    assert plain is not None
    assert spared == plain + 1


def test_a_price_of_ones_own_and_a_number_of_gpus_are_held_to(chat: Workload) -> None:
    asked = question(chat, 30.0, {"ttft_p99_s": 1.0, "tpot_p99_s": 0.05})
    dear = (DeviceOffer(device="h100", usd_per_hour=100), DeviceOffer(device="l40s"))
    found = search(kinds(SearchSpace(devices=dear), BASE), asked).chosen
    assert found is not None
    assert found[0].deployment.device == "l40s"
    few = (DeviceOffer(device="h100", usd_per_hour=100), DeviceOffer(device="l40s", available=1))
    found = search(kinds(SearchSpace(devices=few), BASE), asked).chosen
    assert found is not None
    assert found[0].deployment.device == "h100"


def test_the_front_is_what_no_other_beats(chat: Workload) -> None:
    space = SearchSpace(devices=("h100", "l40s"), tensor=(1, 2), replicas=8)  # type: ignore[arg-type]
    found = search(kinds(space, BASE), question(chat, 25.0, {"ttft_p99_s": 1.0, "tpot_p99_s": 0.05}), every=True)
    front = pareto(found.answers, "ttft_p99_s")
    points = {
        one.number: (one.usd_per_hour or 0.0, one.figures["ttft_p99_s"] or 0.0) for one in found.answers if one.holds
    }
    beaten = {
        i for i, (a, b) in points.items() if any(c <= a and d <= b and (c, d) != (a, b) for c, d in points.values())
    }
    assert set(front) == set(points) - beaten
    assert cheapest_usd(found.answers) == points[front[0]][0]


def test_least_number_is_found_wherever_it_is() -> None:
    for truth in range(1, 40):
        assert least_number(1, 39, lambda n, truth=truth: n >= truth) == truth  # type: ignore[misc]
    assert least_number(3, 39, lambda n: False) is None
    assert least_number(5, 4, lambda n: True) is None


def test_a_setting_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="max_num_seqs"):
        SearchSpace(engine={"max_num_seq": (1,)})
    with pytest.raises(InputError, match="block_size"):
        kinds(SearchSpace(engine={"block_size": (0,)}), BASE)
    with pytest.raises(InputError, match="combinations"):
        kinds(SearchSpace(engine={"block_size": tuple(range(1, 1001)), "max_num_seqs": tuple(range(1, 1001))}), BASE)


@pytest.mark.slow
def test_two_hundred_candidates_take_less_than_half_a_minute() -> None:
    import time

    space = SearchSpace(
        models=("llama-3.1-8b", "qwen3-14b"),
        devices=("h100", "l40s", "a100", "h200", "rtx-4090"),  # type: ignore[arg-type]
        tensor=(1, 2, 4),
        weights=(None, "fp8"),
        kv=("bf16", "fp8"),
        engine={"max_num_seqs": (64, 256)},
    )
    options = kinds(space, BASE)
    assert len(options) >= 200
    traffic = preset("azure-conv-2023", requests=5000, seed=0, arrivals="poisson")
    asked = question(traffic, 40.0, {"ttft_p99_s": 1.0, "tpot_p99_s": 0.05})
    search(options[:1], asked)
    begun = time.process_time()
    assert search(options, asked).chosen is not None
    assert time.process_time() - begun < 30


@pytest.mark.parametrize(("kept", "advice"), [(True, "the same command goes on$"), (False, "with --study FILE")])
def test_an_interrupted_search_says_how_it_goes_on(
    chat: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool, advice: str
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fleet_plan, "search", interrupted)
    study = Study(tmp_path / "study.jsonl" if kept else None, "key")
    question = Question(chat, 1.0, promise({"ttft_p99_s": 1.0}))
    with pytest.raises(PartialResultError, match=advice):
        fleet_plan._search([], question, Workers(), study, False)
