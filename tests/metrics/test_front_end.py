"""What a client waits for beside the engine."""

from dataclasses import replace

import numpy as np
import pytest

from simkit.engine.deployment import Deployment, resolve
from simkit.metrics.front_end import with_front_end
from simkit.metrics.latency import finished_latencies
from simkit.metrics.result import WATERFALL, RequestColumns, RunResult, Status
from simkit.models.front_end import NO_FRONT_END, FrontEndLaw
from simkit.plan.sweep import replay
from simkit.workloads.presets import preset
from simkit.workloads.workload import Workload


@pytest.fixture(scope="module")
def chat() -> Workload:
    return preset("azure-conv-2023", requests=120, seed=2, arrivals="poisson")


def served(chat: Workload, law: FrontEndLaw) -> RunResult:
    spec = resolve(Deployment(model="llama-3.1-8b", device="h100"))
    return replay(replace(spec, front_end=law), chat)


def test_a_client_waits_so_much_longer_and_the_engine_does_the_same(chat: Workload) -> None:
    """TTFT and E2E grow by 4 ms and 10 us a prompt token, exactly; TPOT, queue and the engine's events stay."""
    engine, client = served(chat, NO_FRONT_END), served(chat, FrontEndLaw(4e6, 10e3))
    before, after = finished_latencies(engine.requests), finished_latencies(client.requests)
    added_ns = 4_000_000 + 10_000 * chat.prompt_tokens.astype(np.int64)
    assert np.array_equal(client.requests.first_token_ns - engine.requests.first_token_ns, added_ns)
    assert np.array_equal(client.requests.finish_ns - engine.requests.finish_ns, added_ns)
    assert after.ttft_s == pytest.approx(before.ttft_s + added_ns / 1e9)
    assert after.tpot_s == pytest.approx(before.tpot_s, nan_ok=True)
    assert np.array_equal(before.queue_s, after.queue_s)
    assert np.array_equal(engine.events.time_ns, client.events.time_ns)
    assert engine.end_ns == client.end_ns


def test_parts_sum_to_what_the_client_sees(chat: Workload) -> None:
    requests = served(chat, FrontEndLaw(3_812_345.6, 3_261.7)).requests
    assert requests.front_end_ns.min() > 3_812_345
    parts = sum(getattr(requests, part) for part in WATERFALL)
    assert np.array_equal(parts, requests.finish_ns - requests.arrival_ns)


def test_who_was_not_answered_has_no_front_end(chat: Workload) -> None:
    requests = served(chat, NO_FRONT_END).requests
    status = np.full(len(requests), Status.FINISHED, dtype=np.int8)
    status[:3] = (Status.REJECTED, Status.TIMED_OUT, Status.UNFINISHED)
    cut: RequestColumns = replace(requests, status=status)
    seen = with_front_end(cut, np.full(len(requests), 7, dtype=np.int64))
    assert seen.front_end_ns[:4].tolist() == [0, 0, 0, 7]
    # the unfinished one has had tokens, and its client has had the first of them
    assert (seen.first_token_ns - requests.first_token_ns)[:4].tolist() == [0, 0, 7, 7]
    assert (seen.finish_ns - requests.finish_ns)[:4].tolist() == [0, 0, 0, 7]


def test_only_calibrated_times_come_with_a_front_end() -> None:
    """The A100 servers' slower host (`old_host_factor`) is in it too."""
    h100, a100 = (resolve(Deployment(model="llama-3.1-8b", device=device)) for device in ("h100", "a100-80gb"))
    assert 2e6 < h100.front_end.request_ns < a100.front_end.request_ns < 10e6
    plain = resolve(Deployment(model="llama-3.1-8b", device="h100", step_time="uncalibrated"))
    assert plain.front_end == NO_FRONT_END
