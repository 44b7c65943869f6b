"""What a precision costs in the kernels beside attention: the same two errors as `quality.py`, as a table.

    python experiments/kernels/quality_other.py      these alone; `quality.py` prints them after its own

int8 weights are quantised by output channel; in all, their error is against the weights before.
"""

# ruff: noqa: E402  `quality` chooses the interpreter before kernels are defined
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from quality import DEVICE, SEEDS, Outcome, Row, normal, relative, table

from simkit.kernels.gated_activation import gated_activation, gated_activation_reference
from simkit.kernels.int8_gemm import int8_gemm, int8_gemm_reference, quantize_int8
from simkit.kernels.interpreter_numbers import exact_numbers
from simkit.kernels.layer_norm import layer_norm, layer_norm_reference
from simkit.kernels.moe_gemm import (
    combine,
    combine_reference,
    grouped_gemm,
    grouped_gemm_config,
    grouped_gemm_reference,
)
from simkit.kernels.moe_routing import order_by_expert, route, route_reference
from simkit.kernels.rms_norm import rms_norm, rms_norm_reference
from simkit.kernels.sampling import SamplingParameters, sampling_probabilities, sampling_probabilities_reference

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TOKENS, HIDDEN, WIDTH, EXPERTS, K = 24, 256, 192, 8, 2
EPS = 1e-6


def root_mean_square(dtype: torch.dtype, seed: int) -> Outcome:
    x, residual, weight = (normal(seed + i, *shape) for i, shape in enumerate([(TOKENS, HIDDEN)] * 2 + [(HIDDEN,)]))
    narrow = [t.to(dtype) for t in (x, weight, residual)]
    same, _ = rms_norm_reference(narrow[0], narrow[1], EPS, narrow[2])
    exact, _ = rms_norm_reference(x.double(), weight, EPS, residual.double())
    return Outcome(rms_norm(narrow[0], narrow[1], EPS, narrow[2]), same, exact)


def layer(dtype: torch.dtype, seed: int) -> Outcome:
    x, residual, weight = (normal(seed + i, *shape) for i, shape in enumerate([(TOKENS, HIDDEN)] * 2 + [(HIDDEN,)]))
    narrow = [t.to(dtype) for t in (x, weight, residual)]
    same, _ = layer_norm_reference(narrow[0], narrow[1], None, EPS, narrow[2])
    exact, _ = layer_norm_reference(x.double(), weight, None, EPS, residual.double())
    return Outcome(layer_norm(narrow[0], narrow[1], None, EPS, narrow[2]), same, exact)


def activation(name: str) -> Callable[[torch.dtype, int], Outcome]:
    def run(dtype: torch.dtype, seed: int) -> Outcome:
        x = normal(seed, TOKENS, 2 * WIDTH) * 2
        narrow = x.to(dtype)
        exact = gated_activation_reference(x, name)
        return Outcome(gated_activation(narrow, name), gated_activation_reference(narrow, name), exact)

    return run


def probabilities(dtype: torch.dtype, seed: int) -> Outcome:
    """At temperature 0.7 over 4,096 tokens; filters would only show which token is next to their edge."""
    logits = normal(seed, 6, 4096) * 3
    parameters = SamplingParameters(
        torch.full((6,), 0.7, device=DEVICE),
        torch.zeros(6, dtype=torch.int32, device=DEVICE),
        torch.ones(6, device=DEVICE),
        torch.zeros(6, device=DEVICE),
        torch.arange(6, device=DEVICE),
        torch.zeros(6, dtype=torch.int32, device=DEVICE),
    )
    narrow = logits.to(dtype)
    same = sampling_probabilities_reference(narrow, parameters)
    exact = sampling_probabilities_reference(logits, parameters)
    return Outcome(sampling_probabilities(narrow, parameters), same, exact)


def expert_weights(dtype: torch.dtype, seed: int) -> Outcome:
    """As a weight for every expert, so that another choice of experts counts as an error of the result."""
    logits = normal(seed, 4 * TOKENS, EXPERTS)

    def spread(weights: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        empty = torch.zeros(len(logits), EXPERTS, dtype=torch.float64, device=DEVICE)
        return empty.scatter(1, experts.long(), weights.double())

    narrow = logits.to(dtype)
    same, exact = (spread(*route_reference(x, K, "softmax")) for x in (narrow, logits))
    return Outcome(spread(*route(narrow, K, "softmax")), same, exact)


def mixture(dtype: torch.dtype, seed: int) -> Outcome:
    """Both products, the activation and the combine, of experts chosen once from f32 logits."""
    weights, experts = route(normal(seed, TOKENS, EXPERTS), K, "softmax")
    x = normal(seed + 1, TOKENS, HIDDEN)
    up, down = normal(seed + 2, EXPERTS, 2 * WIDTH, HIDDEN), normal(seed + 3, EXPERTS, HIDDEN, WIDTH)
    up, down = up * HIDDEN**-0.5, down * WIDTH**-0.5

    def reference(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        inner = gated_activation_reference(grouped_gemm_reference(x, up, experts, K), "silu")
        return combine_reference(grouped_gemm_reference(inner, down, experts, 1), weights)

    narrow = [t.to(dtype) for t in (x, up, down)]
    config = grouped_gemm_config(TOKENS * K, EXPERTS, dtype, x.device)
    order = order_by_expert(experts, EXPERTS, config.block_rows)
    inner = gated_activation(grouped_gemm(narrow[0], narrow[1], order, config, K), "silu")
    found = combine(grouped_gemm(inner, narrow[2], order, config, 1), weights)
    return Outcome(found, reference(*narrow), reference(x, up, down))


def linear_16(dtype: torch.dtype, seed: int) -> Outcome:
    """torch's own, to stand beside int8 weights."""
    x, weights = normal(seed, TOKENS, HIDDEN), normal(seed + 1, WIDTH, HIDDEN) * HIDDEN**-0.5
    narrow, narrow_weights = x.to(dtype), weights.to(dtype)
    same = narrow.double() @ narrow_weights.double().T
    return Outcome(narrow @ narrow_weights.T, same, x.double() @ weights.double().T)


def linear_int8(dtype: torch.dtype, seed: int) -> Outcome:
    x, weights = normal(seed, TOKENS, HIDDEN), normal(seed + 1, WIDTH, HIDDEN) * HIDDEN**-0.5
    quantised, narrow = quantize_int8(weights), x.to(dtype)
    same = int8_gemm_reference(narrow, quantised)
    return Outcome(int8_gemm(narrow, quantised), same, x.double() @ weights.double().T)


KERNELS: dict[str, Callable[[torch.dtype, int], Outcome]] = {
    "RMSNorm with residual": root_mean_square,
    "LayerNorm with residual": layer,
    "SiLU gate": activation("silu"),
    "GELU gate, tanh form": activation("gelu_tanh"),
    "sampling probabilities": probabilities,
    "expert weights, softmax": expert_weights,
    "mixture of experts": mixture,
    "linear layer (torch)": linear_16,
    "linear layer, int8 weights": linear_int8,
}


def rows() -> Iterator[Row]:
    """A row for each kernel and precision, the worst of the seeds."""
    for kernel, run in KERNELS.items():
        for name, dtype in DTYPES.items():
            outcomes = [run(dtype, 100 * seed) for seed in SEEDS]
            own = [relative(o.found, o.stored, o.exact) for o in outcomes]
            whole = [relative(o.found, o.exact, o.exact) for o in outcomes]
            worst = [max(column) for errors in (own, whole) for column in zip(*errors, strict=True)]
            yield Row(kernel, name, *worst)


def main() -> None:
    sys.stdout.write("\n" + table(list(rows())) + "\n")


if __name__ == "__main__":
    with exact_numbers():
        main()
