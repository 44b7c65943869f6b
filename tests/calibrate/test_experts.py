"""The law of experts, what is carried over between configurations, and which kernel a configuration runs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simkit.calibrate import aic_experts
from simkit.calibrate.expert_kernels import fit_kernels
from simkit.calibrate.kriging import krige
from simkit.calibrate.moe_model import fit_moe
from simkit.calibrate.operator_sizes import MoeShape
from simkit.calibrate.profile_csv import table_bytes, table_frame
from simkit.calibrate.provenance import Tag

from .made_up_profile import FIXED_NS, table

TOKENS = np.array([1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192])
MODELS = ((2048, 768, 128, 8), (4096, 1536, 128, 8), (5120, 8192, 16, 1), (6144, 2560, 160, 8), (7168, 2048, 256, 8))


def even_copies(experts: int, top_k: int, tokens: int) -> np.ndarray:
    """Copies for each expert where tokens are dealt to experts in turn; `top_k` divides `experts`."""
    stride = experts // top_k
    if tokens >= stride:
        return np.bincount(
            (np.arange(tokens)[:, None] + np.arange(0, experts, stride)).ravel() % experts, minlength=experts
        )
    first = np.arange(tokens) * stride // tokens
    return np.bincount((first[:, None] + np.arange(0, experts, stride)).ravel(), minlength=experts)


def tiled_ns(tokens: int, shape: MoeShape) -> float:
    """A device with tiles of 16 and 128 rows, 100 and 600 TFLOP/s; weights at 4 TB/s; 24 bytes a copy x width."""
    copies = even_copies(shape.experts, shape.top_k, tokens)
    elements = 3.0 * shape.hidden * shape.width / shape.tensor
    read = (copies > 0).sum() * elements * 2.0 / 4e3
    tiles = min((-(-copies // rows)).sum() * rows / flops for rows, flops in ((16, 100e3), (128, 600e3)))
    moved = tokens * shape.top_k * (6.0 * shape.hidden + 12.0 * shape.width / shape.tensor) / 4e3
    return FIXED_NS + max(read, tiles * 2.0 * elements) + moved


def measured(models: tuple[tuple[int, int, int, int], ...], **more: object) -> pd.DataFrame:
    rows = []
    for hidden, width, experts, top_k in models:
        for tensor in (1, 2, 4, 8):
            shape = MoeShape(hidden, width, experts, top_k, tensor)
            ns = [tiled_ns(int(tokens), shape) for tokens in TOKENS]
            sizes = {
                "hidden": hidden,
                "width": width,
                "experts": experts,
                "top_k": top_k,
                "tensor": tensor,
                "expert": 1,
            }
            rows.append(table("moe", ns, tokens=TOKENS, routing="balanced", **sizes, **more))
    return pd.concat(rows, ignore_index=True)


def test_a_model_of_few_wide_experts_is_predicted_from_models_of_many_narrow_ones() -> None:
    """Mixtral 8x7B, 8 experts of which a token takes 2, on a device of tiles: a twentieth of the others' experts."""
    model = fit_moe(measured(MODELS))
    for tensor in (1, 4):
        shape = MoeShape(4096, 14336, 8, 2, tensor)
        found = model.ns(TOKENS.astype(float), shape)
        expected = np.array([tiled_ns(int(tokens), shape) for tokens in TOKENS])
        off = np.abs(found.ns / expected - 1.0)
        assert off.mean() < 0.10
        assert off.max() < 0.35
        assert (found.tag == Tag.EXTRAPOLATED).all()


def test_another_cut_of_a_timed_model_is_near() -> None:
    frame = measured(MODELS)
    held = (frame["hidden"] == 4096) & (frame["tensor"] == 4)
    found = fit_moe(frame[~held]).ns(TOKENS.astype(float), MoeShape(4096, 1536, 128, 8, 4))
    off = np.abs(found.ns / frame[held]["median_ns"].to_numpy() - 1.0)
    assert off.mean() < 0.05


def test_times_do_not_depend_on_the_order_of_rows() -> None:
    frame = measured(MODELS)
    shape = MoeShape(4096, 14336, 8, 2)
    one, other = (fit_moe(rows).ns(TOKENS.astype(float), shape).ns for rows in (frame, frame[::-1]))
    np.testing.assert_array_equal(one, other)


def test_a_step_without_tokens_takes_nothing() -> None:
    found = fit_moe(measured(MODELS)).ns(np.array([[0.0, 100.0], [0.0, 1e5]]), MoeShape(4096, 1536, 128, 8))
    assert (found.ns[:, 0] == 0).all()
    assert (found.ns[:, 1] > 0).all()


def test_an_expert_without_a_gate_reads_two_matrices() -> None:
    """Two tables of one law; in one every model has no gate, and takes two thirds of the time where weights decide."""
    gated = fit_moe(measured(MODELS))
    shape = MoeShape(3072, 1024, 128, 8)
    asked = np.array([64.0])
    three, two = gated.ns(asked, shape).ns, gated.ns(asked, shape._replace(matrices=2)).ns
    assert float(two[0] / three[0]) == pytest.approx(2.0 / 3.0, abs=0.08)


def test_a_configuration_runs_what_its_model_ran_and_a_new_model_what_most_ran() -> None:
    usual, other = MODELS[:4], MODELS[4:]
    frame = pd.concat([measured(usual, kernel="usual"), measured(other, kernel="other")], ignore_index=True)
    kernels, _ = fit_kernels(frame, "bf16")
    assert kernels.of(MoeShape(7168, 2048, 256, 8, 16)) == "other"
    assert kernels.of(MoeShape(4096, 1536, 128, 8, 16)) == "usual"
    assert kernels.of(MoeShape(4096, 14336, 8, 2)) == "usual"


def test_experts_that_are_spread_run_what_spread_ones_ran() -> None:
    whole = measured(MODELS, kernel="whole")
    spread = whole[whole["tensor"] == 2].assign(tensor=1, expert=2, kernel="spread")
    kernels, _ = fit_kernels(pd.concat([whole, spread], ignore_index=True), "bf16")
    assert kernels.of(MoeShape(4096, 14336, 8, 2, 1, 4)) == "spread"
    assert kernels.of(MoeShape(4096, 14336, 8, 2, 2, 1)) == "whole"


def test_kriging_keeps_what_is_near_and_forgets_what_is_far() -> None:
    places = np.array([[0.0, 0.0], [4.0, 0.0]])
    found = krige(places, np.array([[0.3, -0.2], [-0.1, 0.1]])).at(np.array([[0.0, 0.0], [4.0, 0.0], [60.0, 60.0]]))
    np.testing.assert_allclose(found[0], [0.3, -0.2], rtol=0.2)
    np.testing.assert_allclose(found[1], [-0.1, 0.1], rtol=0.3)
    np.testing.assert_allclose(found[2], 0.0, atol=1e-12)


def test_a_file_without_matrices_is_of_experts_with_a_gate(tmp_path: Path) -> None:
    frame = measured(MODELS[:1], matrices=2)
    again = table_frame("moe", table_bytes("moe", frame, False), tmp_path / "moe.csv")
    assert set(again["matrices"]) == {2}
    raw = table_bytes("moe", frame, False).decode().splitlines()
    place = raw[0].split(",").index("matrices")
    older = "\n".join(",".join(cell for i, cell in enumerate(line.split(",")) if i != place) for line in raw)
    assert set(table_frame("moe", older.encode(), tmp_path / "moe.csv")["matrices"]) == {3}


def test_experts_of_models_that_square_a_relu_have_no_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NVIDIA-Nemotron-3-Nano-30B-A3B and -Super-120B-A12B (latent), as their config.json say."""
    folder = tmp_path / "model_configs"
    folder.mkdir()
    relu = (
        '"mlp_hidden_act": "relu2", "num_experts_per_tok": {k}, "n_routed_experts": {e}, "moe_intermediate_size": {w}'
    )
    nano, latent = relu.format(k=6, e=128, w=1856), relu.format(k=22, e=512, w=2688)
    (folder / "nano.json").write_text('{"hidden_size": 2688, ' + nano + "}")
    (folder / "super.json").write_text('{"hidden_size": 4096, "moe_latent_size": 1024, ' + latent + "}")
    (folder / "other.json").write_text('{"hidden_size": 4096, "hidden_act": "silu", "moe_intermediate_size": 1536}')
    monkeypatch.setattr(aic_experts, "systems_folder", lambda: tmp_path / "systems")
    sizes = [(2688, 1856, 128, 6), (1024, 2688, 512, 22), (4096, 2688, 512, 22), (4096, 1536, 128, 8)]
    frame = pd.DataFrame(sizes, columns=["hidden", "width", "experts", "top_k"])
    assert aic_experts.with_matrices(frame, "vllm", "0.24.0")["matrices"].tolist() == [2, 2, 3, 3]
    # before, their collector timed all experts with a gate
    assert aic_experts.with_matrices(frame, "vllm", "0.19.0")["matrices"].tolist() == [3, 3, 3, 3]
