"""Collectives and sends of layouts that are larger than a node."""

from contextlib import nullcontext

import numpy as np
import pytest

from simkit.errors import InputError
from simkit.models.calibrated import calibrated_tables
from simkit.models.catalog import load_model
from simkit.models.device import load_device
from simkit.models.layout import Layout, check_layout
from simkit.models.operators import Operator, linear_operators, sampling_operators
from simkit.models.roofline import operator_ns, roofline_tables
from simkit.models.step_law import TableSizes

ARCH = load_model("llama-3.1-70b")
H100 = load_device("h100")


def by_name(operators: list[Operator]) -> dict[str, Operator]:
    return {operator.name: operator for operator in operators}


def played(nodes: int, near: int, words: int) -> tuple[np.ndarray, int, int]:
    """The three steps played with real numbers: what each GPU ends with, and words that each sends near and far."""
    rng = np.random.default_rng(0)
    held = rng.integers(0, 100, (nodes, near, words))
    part = words // near
    # reduce-scatter: each GPU gives each neighbour that one's part
    mine = held.reshape(nodes, near, near, part).sum(axis=1)
    sent_near = (near - 1) * part
    # each part is cut once more among the nodes: there and back
    summed = mine.sum(axis=0)
    sent_far = 2 * (nodes - 1) * (part // nodes)
    # all-gather
    sent_near += (near - 1) * part
    together = np.broadcast_to(summed.reshape(-1), (nodes, near, words))
    assert (together == held.sum(axis=(0, 1))).all()
    return together, sent_near, sent_far


@pytest.mark.parametrize(("nodes", "near"), [(1, 8), (2, 8), (4, 4), (2, 1)])
def test_sums_send_what_their_steps_played_out_send(nodes: int, near: int) -> None:
    layout = Layout(tensor=nodes * near, gpus_per_node=near)
    tokens = 100.0
    _, sent_near, sent_far = played(nodes, near, 100 * ARCH.hidden)
    found = by_name(linear_operators(ARCH, layout, np.array([tokens])))
    sums = 2 * len(ARCH.layers) + 1
    in_node = found["all_reduce"].sent_bytes[0] if near > 1 else 0.0
    between = found["all_reduce_network"].sent_bytes[0] if nodes > 1 else 0.0
    assert in_node == pytest.approx(2 * sums * sent_near)
    assert between == pytest.approx(2 * sums * sent_far)


@pytest.mark.parametrize(("nodes", "near"), [(2, 8), (4, 2), (4, 1)])
def test_gathered_logits_reach_every_gpu_once(nodes: int, near: int) -> None:
    """What a GPU is sent is all but its own share of the vocabulary: first from its peers, then from its neighbours."""
    layout = Layout(tensor=nodes * near, gpus_per_node=near)
    found = by_name(sampling_operators(ARCH, layout, np.array([7.0])))
    share = 7 * ARCH.vocab * 2 / layout.tensor
    assert found["logits_gather_network"].sent_bytes[0] == pytest.approx((nodes - 1) * share)
    near_bytes = found["logits_gather"].sent_bytes[0] if near > 1 else 0.0
    assert near_bytes == pytest.approx((near - 1) * nodes * share)


# (bytes, us, out of place): nccl-tests issue 232, two nodes with one H100 each, NCCL's tree over one NDR card
PUBLISHED = ((8 << 20, 231.4), (16 << 20, 420.5), (32 << 20, 812.3))


@pytest.mark.parametrize(("message_bytes", "us"), PUBLISHED)
def test_a_sum_over_two_nodes_takes_what_was_published(message_bytes: int, us: float) -> None:
    layout = Layout(tensor=2, gpus_per_node=1)
    tokens = message_bytes / (2 * ARCH.hidden)
    found = by_name(linear_operators(ARCH, layout, np.array([tokens])))["all_reduce_network"]
    one = operator_ns(found, H100, ARCH, None)[0] / (2 * len(ARCH.layers) + 1)
    assert one / 1e3 == pytest.approx(us, rel=0.15)


@pytest.mark.parametrize("kind", ["roofline", "calibrated"])
def test_a_tensor_group_over_two_nodes_is_slower_than_one_node_of_as_many(kind: str) -> None:
    def step_ns(layout: Layout) -> np.ndarray:
        if kind == "roofline":
            tables = roofline_tables(ARCH, H100, layout, max_num_batched_tokens=2048, max_num_seqs=32)
        else:
            tables = calibrated_tables(ARCH, H100, layout, sizes=TableSizes(2048, 32))
        return tables.linear_ns[1:]

    apart, together = step_ns(Layout(tensor=8, gpus_per_node=4)), step_ns(Layout(tensor=8))
    assert (apart > together).all()
    slow = step_ns(Layout(tensor=8, gpus_per_node=4, network_gb_per_s=10.0))
    assert (slow > apart).all()
    # every sum goes to the other node and back: 12.5 us each way, whatever its size
    assert apart[0] - together[0] > 2 * len(ARCH.layers) * 25e3


@pytest.mark.parametrize(
    ("layout", "near", "far"),
    [
        (Layout(tensor=8, pipeline=2), 0, 1),
        (Layout(tensor=4, pipeline=2), 1, 0),
        (Layout(tensor=2, pipeline=8), 6, 1),
        (Layout(tensor=16, pipeline=3), 0, 2),
    ],
)
def test_a_stage_sends_over_the_network_where_its_successor_is_in_another_node(
    layout: Layout, near: int, far: int
) -> None:
    tokens = np.array([10.0])
    a_hop = 10 * 2 * ARCH.hidden * 2 / layout.tensor
    found = by_name(linear_operators(ARCH, layout, tokens))
    assert (found["send"].sent_bytes[0] if near else 0.0) == pytest.approx(near * a_hop)
    assert (found["send_network"].sent_bytes[0] if far else 0.0) == pytest.approx(far * a_hop)
    stages = [by_name(linear_operators(ARCH, layout, tokens, stage=stage)) for stage in range(layout.pipeline)]
    assert sum("send" in stage for stage in stages) == near
    assert sum("send_network" in stage for stage in stages) == far


def test_a_group_that_fills_no_whole_nodes_is_refused() -> None:
    with pytest.raises(InputError, match="tensor 4: does not fill nodes of 3 GPUs evenly"):
        check_layout(ARCH, Layout(tensor=4, gpus_per_node=3))


@pytest.mark.parametrize(("per_node", "pipeline", "fits"), [(6, 2, False), (8, 2, True), (4, 3, True), (6, 1, True)])
def test_a_stage_that_would_lie_in_two_nodes_is_refused(per_node: int, pipeline: int, fits: bool) -> None:
    layout = Layout(tensor=4, pipeline=pipeline, gpus_per_node=per_node)
    with (
        nullcontext()
        if fits
        else pytest.raises(InputError, match="in two nodes of 6 GPUs; set gpus_per_node to a mult")
    ):
        check_layout(ARCH, layout)


@pytest.mark.parametrize(("tensor", "pipeline"), [(16, 4), (8, 4), (2, 8)])
def test_stages_of_whole_nodes_or_parts_of_one_are_not(tensor: int, pipeline: int) -> None:
    layout = Layout(tensor=tensor, pipeline=pipeline)
    assert not any(layout.parts_a_stage(stage) for stage in range(pipeline))
