"""Prefill and decode apart: where the time goes, what is moved, and that nothing is lost on the way."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_clusters import random_workload, small_spec

from simkit.cluster.checks import check_fleet
from simkit.cluster.disaggregated import serve_disaggregated
from simkit.cluster.handover import Disaggregation
from simkit.cluster.result import FleetResult
from simkit.cluster.roster import Member
from simkit.cluster.serve import serve_cluster
from simkit.cluster.settings import Cluster
from simkit.cluster.topology import LinkSpec
from simkit.engine.deployment import Deployment, ReplicaSpec
from simkit.engine.simulate import simulate
from simkit.errors import InputError
from simkit.metrics.result import WATERFALL, Status
from simkit.workloads.workload import Prefixes, Workload

BLOCK_BYTES = 16 * 32 * 2 * 8 * 128 * 2  # 16 tokens of Llama-3.1-8B: 32 layers, K and V, 8 heads of 128, 2 bytes


def apart(spec: ReplicaSpec, prefills: int, decodes: int) -> list[Member]:
    return [Member(spec, "prefill")] * prefills + [Member(spec, "decode")] * decodes


def at_once(prompts: list[int], outputs: list[int]) -> Workload:
    return Workload(
        name="at once",
        arrival_us=np.zeros(len(prompts), dtype=np.int64),
        prompt_tokens=np.array(prompts, dtype=np.int32),
        output_tokens=np.array(outputs, dtype=np.int32),
    )


def over(gb_per_s: float, **more: object) -> Disaggregation:
    link = LinkSpec(gb_per_s=gb_per_s, achieved=1.0)
    return Disaggregation.model_validate({"link": link, **more})


def ttft_ns(fleet: FleetResult) -> np.ndarray:
    return fleet.requests.first_token_ns - fleet.requests.arrival_ns


def test_one_request_s_ttft_is_its_prefill_its_transfer_and_a_step(spec: ReplicaSpec) -> None:
    """1,000 prompt tokens: 62 full blocks go over the link, the last 8 tokens are computed where it decodes."""
    fleet = serve_disaggregated(at_once([1000], [20]), apart(spec, 1, 1), over(1.0))
    alone = simulate(at_once([1000], [1]), spec.limits, spec.tables, spec.num_blocks)
    transfer_ns = 62 * BLOCK_BYTES
    assert fleet.handover is not None
    assert fleet.handover.bytes_moved == 62 * BLOCK_BYTES
    assert fleet.requests.transfer_ns.tolist() == [transfer_ns]
    decode = fleet.replicas[1].requests
    assert (
        ttft_ns(fleet)[0] == alone.requests.finish_ns[0] + transfer_ns + decode.first_token_ns[0] - decode.arrival_ns[0]
    )
    assert decode.hit_tokens.tolist() == [0]  # what came over the link is no hit
    assert fleet.replicas[1].computed_tokens == 8 + 19


def test_two_transfers_on_one_link_take_twice_as_long_each(spec: ReplicaSpec) -> None:
    """Two prompts of one length are prefilled in one step, so their KV leaves at one moment."""
    for shared_by, slower in (("sender", 2), ("all", 2)):
        fleet = serve_disaggregated(at_once([700, 700], [5, 5]), apart(spec, 1, 2), over(0.5, shared_by=shared_by))
        assert fleet.requests.transfer_ns.tolist() == [slower * 2 * 43 * BLOCK_BYTES] * 2
        assert fleet.handover is not None
        assert fleet.handover.link_busy_ns == 2 * 2 * 43 * BLOCK_BYTES  # work is conserved
    fleet = serve_disaggregated(at_once([700, 700], [5, 5]), apart(spec, 1, 2), over(0.5, shared_by="receiver"))
    assert fleet.requests.transfer_ns.tolist() == [2 * 43 * BLOCK_BYTES] * 2


def test_layer_by_layer_only_the_last_layer_is_seen(spec: ReplicaSpec) -> None:
    """Over a link that outpaces prefill, TTFT has one layer's transfer instead of all 32."""
    whole = serve_disaggregated(at_once([1000], [5]), apart(spec, 1, 1), over(50.0))
    layerwise = serve_disaggregated(at_once([1000], [5]), apart(spec, 1, 1), over(50.0, layerwise=True))
    assert whole.requests.transfer_ns[0] == pytest.approx(62 * BLOCK_BYTES / 50, abs=2)
    assert layerwise.requests.transfer_ns[0] == pytest.approx(62 * BLOCK_BYTES / 50 / 32, abs=2)
    assert layerwise.handover is not None
    assert layerwise.handover.bytes_moved == 62 * BLOCK_BYTES
    # over a slow one it begins a layer's time after prefill does
    slow = serve_disaggregated(at_once([1000], [5]), apart(spec, 1, 1), over(1.0, layerwise=True))
    hidden_ns = int(slow.requests.prefill_ns[0] - slow.replicas[1].requests.prefill_ns[0]) * 31 // 32
    assert slow.requests.transfer_ns[0] == pytest.approx(62 * BLOCK_BYTES - hidden_ns, abs=10)


def test_a_full_decode_replica_holds_prefill_up(spec: ReplicaSpec) -> None:
    """A cache of 255 blocks, prompts of 63: of ten requests some wait with their KV where it was computed."""
    fleet = serve_disaggregated(at_once([1000] * 10, [300] * 10), apart(spec, 1, 1), over(100.0))
    check_fleet(fleet, at_once([1000] * 10, [300] * 10))
    assert fleet.handover is not None
    assert fleet.handover.most_kept_blocks >= 2 * 63
    # nobody comes to decode before somebody has left: the fifth waits for most of the first one's 300 tokens
    waits = np.sort(fleet.requests.queue_ns)
    assert waits[-1] > 2 * int(fleet.requests.decode_ns.min())
    roomy = serve_disaggregated(at_once([1000] * 10, [300] * 10), apart(spec, 1, 4), over(100.0))
    assert roomy.requests.queue_ns.max() < waits[-1]


def test_short_prompts_are_prefilled_where_they_decode(spec: ReplicaSpec, chats: Callable[..., Workload]) -> None:
    workload = chats(200, 20.0, 3)
    fleet = serve_disaggregated(workload, apart(spec, 1, 1), over(10.0, local_below_tokens=100_000))
    assert fleet.handover is not None
    assert (fleet.handover.handed_over, fleet.handover.bytes_moved) == (0, 0)
    alone = simulate(workload, spec.limits, spec.tables, spec.num_blocks)
    assert np.array_equal(fleet.requests.first_token_ns, alone.requests.first_token_ns)
    assert not np.array_equal(fleet.requests.first_token_ns, np.zeros(200))


def test_a_prefix_that_decode_has_is_not_sent_again(spec: ReplicaSpec) -> None:
    """The second request, a minute later, has 512 of its 1,000 tokens in common with the first."""
    start, ids = np.array([0, 2, 4], dtype=np.int64), np.array([7, 8, 7, 8], dtype=np.int64)
    workload = replace(
        at_once([1000, 1000], [5, 5]),
        arrival_us=np.array([0, 60_000_000], dtype=np.int64),
        prefixes=Prefixes(256, start, ids),
    )
    fleet = serve_disaggregated(workload, apart(spec, 1, 1), over(1.0))
    assert fleet.requests.transfer_ns.tolist() == [62 * BLOCK_BYTES, (62 - 32) * BLOCK_BYTES]
    assert fleet.requests.hit_tokens.tolist() == [0, 512]
    assert fleet.replicas[1].requests.hit_tokens.tolist() == [0, 0]


def test_kv_on_its_way_is_no_hit_for_a_prompt_that_was_begun_before_it_came(spec: ReplicaSpec) -> None:
    """The second prompt, short and computed where it decodes, comes while the first one's KV goes over the link."""
    start, ids = np.array([0, 2, 4], dtype=np.int64), np.array([7, 8, 7, 8], dtype=np.int64)
    workload = replace(
        at_once([1000, 600], [50, 50]),
        arrival_us=np.array([0, 100_000], dtype=np.int64),
        prefixes=Prefixes(256, start, ids),
    )
    fleet = serve_disaggregated(workload, apart(spec, 1, 1), over(1.0, local_below_tokens=700))
    assert fleet.handover is not None
    assert (fleet.handover.handed_over, fleet.handover.local) == (1, 1)
    arrived_ns = fleet.requests.arrival_ns[0] + fleet.requests.queue_ns[0] + fleet.requests.prefill_ns[0]
    landed_ns = arrived_ns + fleet.requests.transfer_ns[0]
    assert fleet.requests.scheduled_ns[1] < landed_ns - 10_000_000
    assert fleet.requests.hit_tokens.tolist() == [0, 0]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.booleans())
def test_nothing_is_lost_and_nothing_leaks(seed: int, prefills: int, decodes: int, layerwise: bool, late: bool) -> None:
    """No lost request, no leaked block on either side, bytes moved = bytes owed, and it ends: on small caches."""
    rng = np.random.default_rng(seed)
    workload = random_workload(rng)
    members = []
    for pool, count in (("prefill", prefills), ("decode", decodes)):
        size = int(rng.choice([33, 40, 200]))
        caching = pool == "decode" or bool(rng.random() < 0.5)
        members += [Member(small_spec(size, int(rng.choice([1, 3, 8])), caching, late), pool)] * count
    asked = {
        "shared_by": str(rng.choice(["sender", "receiver", "all"])),
        "layerwise": layerwise,
        "local_below_tokens": int(rng.choice([0, 20])),
        "local_when_queued": [None, 0, 3][int(rng.integers(0, 3))],
    }
    rate = float(rng.choice([0.01, 0.3, 10.0]))
    fleet = serve_disaggregated(workload, members, over(rate, **asked))
    check_fleet(fleet, workload)  # accounts, tokens, waterfalls, blocks free at the end
    assert set(fleet.requests.status.tolist()) <= {Status.FINISHED, Status.REJECTED}
    assert fleet.handover is not None
    assert fleet.handover.bytes_moved == fleet.handover.bytes_owed
    done = fleet.requests.status == Status.FINISHED
    assert fleet.handover.handed_over + fleet.handover.local == done.sum()
    parts = sum(getattr(fleet.requests, part)[done] for part in WATERFALL)
    assert np.array_equal(parts, (fleet.requests.finish_ns - fleet.requests.arrival_ns)[done])
    assert all((getattr(fleet.requests, part) >= 0).all() for part in WATERFALL)
    again = serve_disaggregated(workload, members, over(rate, **asked))
    assert np.array_equal(again.requests.finish_ns, fleet.requests.finish_ns)


def test_as_a_section_of_a_configuration(spec: ReplicaSpec, chats: Callable[..., Workload]) -> None:
    described = {
        "pools": [{"name": "p", "replicas": 1}, {"name": "d", "replicas": 2}],
        "disaggregation": {"prefill": ["p"], "decode": ["d"], "link": {"kind": "nvlink4"}},
    }

    def same(deployment: Deployment | None) -> ReplicaSpec:
        return spec

    workload = chats(100, 10.0, 1)
    fleet = serve_cluster(workload, Cluster.model_validate(described), same)
    check_fleet(fleet, workload)
    assert fleet.accounts.finished == 100
    with pytest.raises(ValueError, match="decode: d has no replicas, and nothing that starts one"):
        Cluster.model_validate({**described, "pools": [{"name": "p"}, {"name": "d", "replicas": 0}]})


def test_bad_input_is_one_line(spec: ReplicaSpec) -> None:
    workload = at_once([10], [1])
    with pytest.raises(InputError, match="pool 'decode' has no replica"):
        serve_disaggregated(workload, [Member(spec, "prefill")], over(1.0))
    with pytest.raises(InputError, match="in neither prefill nor decode"):
        serve_disaggregated(workload, [*apart(spec, 1, 1), Member(spec, "third")], over(1.0))
    other = replace(spec, deployment=spec.deployment.model_copy(update={"kv": "fp8"}))
    with pytest.raises(InputError, match="KV can only be handed over between equal ones"):
        serve_disaggregated(workload, [Member(spec, "prefill"), Member(other, "decode")], over(1.0))
    with pytest.raises(InputError, match=r"link.kind='infiniband' is not known"):
        serve_disaggregated(workload, apart(spec, 1, 1), Disaggregation(link=LinkSpec(kind="infiniband")))
