"""Experts spread over GPUs: skew against brute force, exchanges against DeepEP's published times, bytes by hand."""

import numpy as np
import pytest

from simkit.models.catalog import load_model
from simkit.models.device import load_device
from simkit.models.expert_parallel import peers_of, skew_of, zipf_skew
from simkit.models.layout import Layout
from simkit.models.memory import plan_memory
from simkit.models.operators import Operator, linear_operators
from simkit.models.roofline import operator_ns
from simkit.models.sharding import weight_bytes_per_stage

TOKENS = np.array([1.0, 128.0, 4096.0])


def operators(layout: Layout, name: str, model: str = "deepseek-v3") -> list[Operator]:
    return [found for found in linear_operators(load_model(model), layout, TOKENS) if found.name == name]


def test_zipf_of_nothing_is_even_and_one_gpu_has_no_skew() -> None:
    assert zipf_skew(256, 8, 0.0) == pytest.approx(1.0, rel=1e-12)
    assert skew_of(Layout(), 256) == 1.0
    assert skew_of(Layout(tensor=8, expert=8, expert_skew=1.4), 256) == 1.4
    assert skew_of(Layout(tensor=8, expert=8, expert_zipf=0.5), 256) == zipf_skew(256, 8, 0.5)


def test_zipf_skew_of_two_experts_a_gpu_each_is_the_larger_share() -> None:
    """1 and 1/2: the larger has 2/3, over a mean of 1/2, wherever it is placed."""
    assert zipf_skew(2, 2, 1.0) == pytest.approx((2 / 3) / (1 / 2), rel=1e-12)


def test_zipf_skew_of_four_experts_on_two_gpus_is_the_mean_over_all_placements() -> None:
    """Shares 12, 6, 4, 3 of 25: three ways to pair, the larger sides 18, 16 and 15."""
    assert zipf_skew(4, 2, 1.0) == pytest.approx((18 + 16 + 15) / 3 / 25 * 2, rel=0.01)


def test_copies_of_a_token_against_draws() -> None:
    """How many other GPUs have one of a token's experts, drawn with replacement of GPUs."""
    rng = np.random.default_rng(0)
    gpus, experts_a_token = 16, 8
    drawn = rng.integers(0, gpus, (20_000, experts_a_token))
    near, far = peers_of(Layout(data=gpus, expert=gpus, gpus_per_node=8), experts_a_token)
    assert near == pytest.approx(np.mean([len(set(row) & set(range(1, 8))) for row in drawn.tolist()]), rel=0.02)
    assert far == pytest.approx(np.mean([len(set(row) & set(range(8, 16))) for row in drawn.tolist()]), rel=0.02)


def test_engines_exchange_tokens_and_others_do_not() -> None:
    assert operators(Layout(tensor=8, expert=8), "exchange") == []
    layout = Layout(data=8, expert=8)
    (exchange,) = operators(layout, "exchange")
    # 58 layers with experts; 7 others, each with a chance of 1 - (7/8)^8; 7168 x (1 byte there + 2 back)
    expected = 58 * TOKENS * 7 * (1 - (7 / 8) ** 8) * 7168 * 3
    assert exchange.sent_bytes == pytest.approx(expected, rel=1e-9)
    assert exchange.launches == 116
    assert operators(layout, "exchange_network") == []
    (network,) = operators(Layout(data=16, expert=16), "exchange_network")
    assert network.link_bytes_per_s == 50e9


@pytest.mark.parametrize(("gpus", "dispatch_us", "combine_us"), [(64, 186, 353), (128, 192, 369), (256, 194, 360)])
def test_exchange_over_the_network_against_deep_ep(gpus: int, dispatch_us: float, combine_us: float) -> None:
    """DeepEP README, low-latency kernels, RDMA alone, 128 tokens, hidden 7168, top 8, fp8 there and bf16 back.

    It sends a copy for each expert, we one for each GPU: nearly the same on so many.
    """
    layout = Layout(data=gpus, expert=gpus, gpus_per_node=1)
    (network,) = operators(layout, "exchange_network")
    whole = operator_ns(network, load_device("h100"), load_model("deepseek-v3"), None)[1] / 58
    assert whole / 1e3 == pytest.approx(dispatch_us + combine_us, rel=0.2)


def test_exchange_over_nvlink_against_deep_ep() -> None:
    """DeepEP README, 4,096 tokens on 8 H800 (200 GB/s one way): 153 GB/s there, 158 GB/s back, without latencies."""
    (exchange,) = operators(Layout(data=8, expert=8), "exchange")
    h800 = load_device("h100")
    h800 = h800.model_copy(update={"link": h800.link.model_copy(update={"gb_per_s": 200.0})})
    whole_ns = operator_ns(exchange, h800, load_model("deepseek-v3"), None)[2]
    a_byte_of_each = exchange.sent_bytes[2] / 3
    published_ns = (a_byte_of_each / 153e9 + 2 * a_byte_of_each / 158e9) * 1e9
    assert whole_ns == pytest.approx(published_ns, rel=0.06)


def test_skew_stretches_products_and_messages() -> None:
    even, uneven = (Layout(data=8, expert=8, expert_skew=skew) for skew in (1.0, 1.5))
    for name in ("exchange", "experts_gate_up", "experts_down"):
        for one, other in zip(operators(even, name), operators(uneven, name), strict=True):
            field = "sent_bytes" if name == "exchange" else "flops"
            assert getattr(other, field) == pytest.approx(1.5 * getattr(one, field), rel=1e-12)
            assert other.weight_bytes.tolist() == one.weight_bytes.tolist()
    for name in ("qkv_down", "o", "shared_down"):
        assert operators(even, name)[0].flops.tolist() == operators(uneven, name)[0].flops.tolist()


def test_eight_engines_compute_what_one_of_eight_times_the_tokens_does() -> None:
    """The products of one GPU's experts: with 8 engines of T tokens as with 1 of 8 T, spread over as many GPUs."""
    arch = load_model("deepseek-v3")
    shared = linear_operators(arch, Layout(data=8, expert=8), TOKENS)
    alone = linear_operators(arch, Layout(tensor=8, expert=8), 8 * TOKENS)
    for name in ("experts_gate_up", "experts_down"):
        (one,) = [found for found in shared if found.name == name]
        (other,) = [found for found in alone if found.name == name]
        assert one.flops == pytest.approx(other.flops, rel=1e-12)
        assert one.weight_bytes == pytest.approx(other.weight_bytes, rel=1e-12)


def test_experts_are_held_once_by_all_engines() -> None:
    """671e9 parameters in fp8 do not fit a GPU of 141 GB, nor with experts copied; 256 experts over 8 do."""
    arch, device = load_model("deepseek-v3"), load_device("h200")
    spread = weight_bytes_per_stage(arch, Layout(data=8, expert=8))[0]
    experts = arch.parameters_by_group["experts"]
    rest = arch.weight_bytes() - experts
    # the embedding and lm_head have 16 bits and are not cut over engines
    assert spread == pytest.approx(experts / 8 + rest, rel=0.01)
    plan = plan_memory(arch, device, Layout(data=8, expert=8), max_model_len=32_768)
    assert plan.num_blocks > 0
