"""Fitted operators against the closed forms that their measurements came from."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from simkit.calibrate.collective_model import fit_collectives
from simkit.calibrate.gemm_model import fit_gemm
from simkit.calibrate.host_model import fit_host
from simkit.calibrate.moe_model import fit_moe, moe_work
from simkit.calibrate.operator_model import OperatorModel, fit_operators
from simkit.calibrate.operator_profile import OperatorProfile
from simkit.calibrate.operator_sizes import AttentionShape, MoeShape, context_array, read_contexts, write_contexts
from simkit.calibrate.provenance import Tag
from simkit.calibrate.size_line import size_line

from .made_up_profile import (
    BATCHES,
    CONTEXTS,
    decode_ns,
    decode_table,
    gemm_ns,
    gemm_table,
    header,
    made_up_profile,
    prefill_ns,
    table,
    work_ns,
)

SHAPE = AttentionShape(32, 8, 128)


@pytest.fixture(scope="module")
def model() -> OperatorModel:
    return fit_operators(made_up_profile())


def test_a_size_that_was_timed_is_given_back(model: OperatorModel) -> None:
    tokens = np.array([1.0, 64.0, 8192.0])
    gemm = model.gemm_ns(tokens, 4096, 2048)
    assert gemm is not None
    np.testing.assert_allclose(gemm.ns, gemm_ns(tokens, 4096, 2048), rtol=1e-9)
    assert (gemm.tag == Tag.MEASURED).all()
    batch, each = np.meshgrid(np.array(BATCHES, float), np.array(CONTEXTS, float), indexing="ij")
    decode = model.decode_attention_ns(batch, batch * each, SHAPE)
    assert decode is not None
    np.testing.assert_allclose(decode.ns, decode_ns(batch, batch * each, 32, 8), rtol=1e-9)
    assert (decode.tag == Tag.MEASURED).all()
    prefill = model.prefill_attention_ns(np.array(1024.0), np.array(4096.0), SHAPE)
    assert prefill is not None
    assert float(prefill.ns) == pytest.approx(float(prefill_ns(1024, 4096, 32)))
    assert prefill.tag == Tag.MEASURED


def test_nothing_to_do_takes_no_time(model: OperatorModel) -> None:
    zero = np.zeros(1)
    for found in (
        model.gemm_ns(zero, 4096, 4096),
        model.decode_attention_ns(zero, zero, SHAPE),
        model.prefill_attention_ns(zero, zero, SHAPE),
        model.host_ns(zero),
    ):
        assert found is not None
        assert found.ns[0] == 0.0


def test_a_shape_between_those_timed_is_interpolated(model: OperatorModel) -> None:
    tokens = np.array([16.0, 256.0, 4096.0])
    found = model.gemm_ns(tokens, 6144, 3072)
    assert found is not None
    np.testing.assert_allclose(found.ns, gemm_ns(tokens, 6144, 3072), rtol=0.06)
    assert (found.tag == Tag.INTERPOLATED).all()


def test_sizes_between_those_timed_are_interpolated(model: OperatorModel) -> None:
    batch, each = np.array([3.0, 48.0, 200.0]), np.array([700.0, 700.0, 3000.0])
    decode = model.decode_attention_ns(batch, batch * each, SHAPE)
    assert decode is not None
    np.testing.assert_allclose(decode.ns, decode_ns(batch, batch * each, 32, 8), rtol=0.05)
    assert (decode.tag == Tag.INTERPOLATED).all()
    prefill = model.prefill_attention_ns(np.array([600.0, 2048.0]), np.array([3000.0, 512.0]), SHAPE)
    assert prefill is not None
    np.testing.assert_allclose(prefill.ns, prefill_ns([600, 2048], [3000, 512], 32), rtol=0.05)
    assert (prefill.tag == Tag.INTERPOLATED).all()


def test_a_head_count_that_was_not_timed_is_found_between_others() -> None:
    frame = decode_table()
    kept = frame[~((frame["heads"] == 16) & (frame["kv_heads"] == 4))]
    model = fit_operators(OperatorProfile(header(), {"attention_decode": kept}))
    batch, each = np.array([8.0, 64.0, 256.0]), np.array([1024.0, 4096.0, 1024.0])
    found = model.decode_attention_ns(batch, batch * each, AttentionShape(16, 4, 128))
    assert found is not None
    np.testing.assert_allclose(found.ns, decode_ns(batch, batch * each, 16, 4), rtol=0.06)


def test_beyond_all_sizes_the_last_efficiency_stays_and_is_flagged(model: OperatorModel) -> None:
    gemm = model.gemm_ns(np.array([65536.0]), 8192, 8192)
    assert gemm is not None
    assert gemm.tag[0] == Tag.EXTRAPOLATED
    assert gemm.ns[0] == pytest.approx(float(gemm_ns(65536, 8192, 8192)), rel=0.05)
    decode = model.decode_attention_ns(np.array([256.0]), np.array([256.0 * 131072]), SHAPE)
    assert decode is not None
    assert decode.tag[0] == Tag.EXTRAPOLATED
    assert decode.ns[0] == pytest.approx(float(decode_ns(256, 256 * 131072, 32, 8)), rel=0.05)


def test_what_was_not_timed_is_none_or_flagged(model: OperatorModel) -> None:
    assert model.gemm_ns(np.ones(1), 1024, 1024, "fp8") is None
    assert model.all_reduce_ns(np.ones(1), 8) is None
    assert model.elementwise_ns("norm", np.ones(1)) is None
    other = model.decode_attention_ns(np.array([4.0]), np.array([4096.0]), AttentionShape(32, 8, 256))
    assert other is not None
    assert other.tag[0] == Tag.EXTRAPOLATED


def test_a_stair_is_kept_where_rounding_up_predicts_better() -> None:
    """Times that jump at every multiple of 64 tokens: halfway between two sizes the next one's time is right."""
    tokens = np.arange(64, 1025, 64)
    ns = 5_000.0 + 100.0 * np.ceil(tokens / 128) * 128
    rows = [table("gemm", ns * (n / 1024), tokens=tokens, n=n, k=1024) for n in (1024, 2048, 4096)]
    model = fit_gemm(pd.concat(rows, ignore_index=True), 132)
    assert model.ns(np.array([600.0]), 1024, 1024).ns[0] == pytest.approx(5_000.0 + 100.0 * 640)


def test_held_out_rows_are_not_looked_at() -> None:
    honest = gemm_table()
    lying = honest.assign(use="held_out", median_ns=1.0, tokens=honest["tokens"] + 1)
    both = pd.concat([honest, lying], ignore_index=True)
    first = fit_operators(OperatorProfile(header(), {"gemm": honest}))
    second = fit_operators(OperatorProfile(header(), {"gemm": both}))
    asked = np.array([3.0, 100.0, 5000.0])
    one, two = first.gemm_ns(asked, 4096, 4096), second.gemm_ns(asked, 4096, 4096)
    assert one is not None
    assert two is not None
    np.testing.assert_array_equal(one.ns, two.ns)


def test_experts_between_configurations() -> None:
    """Experts on a device that follows its roofline exactly; one hidden size is left out."""

    def ns(tokens: np.ndarray, shape: MoeShape) -> np.ndarray:
        return work_ns(*moe_work(tokens, shape))

    tokens = np.array([1.0, 8.0, 64.0, 512.0, 4096.0])
    rows = []
    for hidden in (1024, 2048, 4096, 8192):
        for width in (512, 1024, 2048, 4096):
            shape = MoeShape(hidden, width, 64, 4)
            sizes = {"hidden": hidden, "width": width, "experts": 64, "top_k": 4, "tensor": 1, "expert": 1}
            rows.append(table("moe", ns(tokens, shape), tokens=tokens.astype(int), routing="balanced", **sizes))
    model = fit_moe(pd.concat(rows, ignore_index=True))
    known = model.ns(tokens, MoeShape(2048, 1024, 64, 4))
    np.testing.assert_allclose(known.ns, ns(tokens, MoeShape(2048, 1024, 64, 4)), rtol=1e-9)
    assert (known.tag == Tag.MEASURED).all()
    asked = MoeShape(3072, 1536, 64, 4)
    np.testing.assert_allclose(model.ns(tokens, asked).ns, ns(tokens, asked), rtol=0.08)


def test_a_collective_is_alpha_and_beta_between_sizes() -> None:
    size = np.array([1 << 10, 1 << 16, 1 << 20, 1 << 24])
    frame = table("collective", 7_000.0 + size / 200.0, kind="all_reduce", gpus=8, bytes=size)
    model = fit_collectives(frame)
    for asked in (5_000.0, 3e6, 1e9):
        assert float(model.ns("all_reduce", np.array(asked), 8).ns) == pytest.approx(7_000.0 + asked / 200.0)
    assert model.ns("all_reduce", np.array(1e9), 8).tag == Tag.EXTRAPOLATED
    assert model.ns("all_reduce", np.array(1e6), 4).tag == Tag.EXTRAPOLATED


def test_a_line_over_size_never_falls() -> None:
    """Pool adjacent violators by hand: 5, 3 become their mean 4; the rest rises already."""
    line = size_line(np.array([1.0, 2.0, 3.0]), np.array([5.0, 3.0, 9.0]))
    np.testing.assert_allclose(line.ns, [4.0, 4.0, 9.0])


def test_noise_at_the_largest_sizes_does_not_make_larger_ones_free() -> None:
    """10 us + 1 ns a byte, but of the two largest the smaller one took longer: made to rise, both are one time."""
    size = np.array([1e4, 1e5, 9e5, 1e6])
    ns = np.array([2e4, 1.1e5, 1.02e6, 1.0e6])
    line = size_line(size, ns)
    assert float(line.at(np.array(1e8)).ns) == pytest.approx(1e4 + 1e8, rel=0.05)
    flat = size_line(np.array([1e5, 1e6]), np.array([7e3, 7e3]))
    assert float(flat.at(np.array(1e8)).ns) >= 7e5


def test_experts_beyond_their_own_sizes_are_extrapolated_though_others_were_timed_further() -> None:
    sizes = {"width": 512, "experts": 64, "top_k": 4, "tensor": 1, "expert": 1, "routing": "balanced"}
    rows = []
    for hidden, most in ((1024, 4096), (2048, 512)):
        tokens = np.array([size for size in (1, 8, 64, 512, 4096) if size <= most])
        ns = work_ns(*moe_work(tokens.astype(float), MoeShape(hidden, 512, 64, 4)))
        rows.append(table("moe", ns, tokens=tokens, hidden=hidden, **sizes))
    model = fit_moe(pd.concat(rows, ignore_index=True))
    asked = np.array([100.0, 512.0, 1000.0, 4096.0])
    tags = model.ns(asked, MoeShape(2048, 512, 64, 4)).tag.tolist()
    assert tags == [Tag.INTERPOLATED, Tag.MEASURED, Tag.EXTRAPOLATED, Tag.EXTRAPOLATED]
    assert (model.ns(asked, MoeShape(1024, 512, 64, 4)).tag <= Tag.INTERPOLATED).all()


def test_full_attention_is_not_as_short_as_the_window_that_stands_in_for_it() -> None:
    """Only layers that see 1,024 tokens were timed: those that see all 65,536 read 64 times as much."""
    frame = decode_table()
    each = frame["context_tokens"] // frame["batch"]
    ns = decode_ns(frame["batch"], frame["batch"] * np.minimum(each, 1024), frame["heads"], frame["kv_heads"])
    windowed = OperatorProfile(header(), {"attention_decode": frame.assign(window=1024, median_ns=ns)})
    model = fit_operators(windowed)
    batch, total = np.array([64.0]), np.array([64.0 * 65_536])
    own = model.decode_attention_ns(batch, total, AttentionShape(32, 8, 128, window=1024))
    other = model.decode_attention_ns(batch, total, SHAPE)
    assert own is not None
    assert other is not None
    assert own.ns[0] == pytest.approx(float(decode_ns(64, 64 * 1024, 32, 8)), rel=0.05)
    assert other.ns[0] == pytest.approx(float(decode_ns(64, 64 * 65_536, 32, 8)), rel=0.1)
    assert other.tag[0] == Tag.EXTRAPOLATED


def test_host_time_is_a_step_and_its_requests() -> None:
    requests = np.array([1, 4, 16, 64, 256])
    model = fit_host(table("host", 150e3 + 2e3 * requests, part="step", requests=requests, tokens=requests))
    assert model.ns(np.array([100.0])).ns[0] == pytest.approx(350e3)
    assert model.ns(np.array([1000.0])).tag[0] == Tag.EXTRAPOLATED


def test_making_inputs_is_a_step_its_requests_and_its_tokens() -> None:
    requests, tokens = (axis.ravel() for axis in np.meshgrid([1, 8, 64], [64, 512, 4096], indexing="ij"))
    ns = 90e3 + 2e3 * requests + 15.0 * tokens
    model = fit_host(table("host", ns, part="prepare", requests=requests, tokens=tokens))
    assert model.step_ns is None
    assert model.prepare is not None
    found = model.prepare.ns(np.array([0.0, 32.0]), np.array([0.0, 1000.0]))
    np.testing.assert_allclose(found, [0.0, 90e3 + 64e3 + 15e3], rtol=1e-6)


def test_a_copy_is_a_line_of_its_direction() -> None:
    """25 GB/s to the device, 20 back, 10 us each."""
    size = np.array([4096, 1 << 20, 1 << 28])
    there = table("copy", 10e3 + size / 25.0, direction="host_to_device", bytes=size)
    back = table("copy", 10e3 + size / 20.0, direction="device_to_host", bytes=size)
    model = fit_operators(OperatorProfile(header(), {"copy": pd.concat([there, back], ignore_index=True)}))
    found = model.copy_ns("device_to_host", np.array([float(1 << 24)]))
    assert found is not None
    assert found.ns[0] == pytest.approx(10e3 + (1 << 24) / 20.0)
    assert model.copy_ns("device_to_device", np.ones(1)) is None


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_what_a_mixed_launch_adds_of_its_shorter_part_is_found(share: float) -> None:
    whole = made_up_profile()
    chunk, batch = (axis.ravel() for axis in np.meshgrid([64, 256, 1024, 4096], [4, 16, 64], indexing="ij"))
    decode, prefill = decode_ns(batch, batch * 1024, 32, 8), prefill_ns(chunk, 0, 32)
    ns = np.maximum(decode, prefill) + share * np.minimum(decode, prefill)
    sizes = {"chunk": chunk, "past": 0, "batch": batch, "context_tokens": batch * 1024}
    mixed = table("attention_mixed", ns, heads=32, kv_heads=8, head_dim=128, **sizes)
    model = fit_operators(OperatorProfile(header(), {**whole.tables, "attention_mixed": mixed}))
    assert model.mixed is not None
    assert model.mixed.share == pytest.approx(share, abs=1e-6)
    found = model.mixed_attention_ns(*(np.array([float(x)]) for x in (1024, 0, 16, 16 * 1024)), SHAPE)
    assert found is not None
    truth = max(decode_ns(16, 16 * 1024, 32, 8), prefill_ns(1024, 0, 32))
    truth = truth + share * min(decode_ns(16, 16 * 1024, 32, 8), prefill_ns(1024, 0, 32))
    assert found.ns[0] == pytest.approx(float(truth))


def test_a_mixed_launch_that_was_not_timed_is_one_part_after_the_other(model: OperatorModel) -> None:
    found = model.mixed_attention_ns(*(np.array([float(x)]) for x in (1024, 0, 16, 16 * 1024)), SHAPE)
    assert found is not None
    assert found.ns[0] == pytest.approx(float(decode_ns(16, 16 * 1024, 32, 8) + prefill_ns(1024, 0, 32)))
    assert found.tag[0] == Tag.ASSUMED


def test_ragged_lengths_survive_being_written() -> None:
    lengths = np.array([512, 7, 512, 65536], dtype=np.int64)
    text = write_contexts(lengths)
    assert text == "1x7 2x512 1x65536"
    np.testing.assert_array_equal(context_array(text), np.sort(lengths))


@pytest.mark.parametrize("text", ["7", "x7", "2x", "2x-1", "0x5", "1x5,2x6"])
def test_ragged_lengths_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="REQUESTSxTOKENS"):
        read_contexts(text)


def test_every_query_is_vectorised(model: OperatorModel) -> None:
    asked = np.array([[1.0, 7.0], [100.0, 3000.0]])
    calls: list[Callable[[np.ndarray], object]] = [
        lambda x: model.gemm_ns(x, 4096, 4096),
        lambda x: model.decode_attention_ns(x, x * 500, SHAPE),
        lambda x: model.prefill_attention_ns(x, x, SHAPE),
    ]
    for call in calls:
        whole = call(asked)
        for i in np.ndindex(asked.shape):
            one = call(np.array(asked[i]))
            assert float(one.ns) == pytest.approx(float(whole.ns[i]), rel=1e-12)  # type: ignore[attr-defined]
            assert one.tag == whole.tag[i]  # type: ignore[attr-defined]
