"""A decoder small enough to recompute by brute force, and a clock that ticks the same every time."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from simkit.engine.settings import EngineSettings
from simkit.engine.state import Limits
from simkit.testbed.shape import DecoderShape

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is defined, so before any import of one

if TYPE_CHECKING:
    from simkit.testbed.decoder import Decoder
    from simkit.testbed.torch_executor import TorchExecutor

TINY = DecoderShape(hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48, vocab=499)


class TickClock:
    """A millisecond passes whenever somebody looks."""

    def __init__(self) -> None:
        self.time_ns = 0

    def now_ns(self) -> int:
        self.time_ns += 1_000_000
        return self.time_ns

    def sleep_until(self, time_ns: int) -> None:
        self.time_ns = max(self.time_ns, time_ns)


@pytest.fixture(scope="session")
def decoder() -> "Decoder":
    """float64, so that a token never hangs on the order of a sum."""
    torch = pytest.importorskip("torch", reason="the testbed runs torch; install the extra gpu, or its CPU build")
    from simkit.testbed.decoder import random_decoder

    torch.set_num_threads(1)
    return random_decoder(TINY, seed=0, dtype="float64")


@pytest.fixture(scope="session")
def executor(decoder: "Decoder") -> Callable[..., "TorchExecutor"]:
    """`executor(num_blocks, decoder=decoder)`: an empty pool of blocks of 4 tokens."""
    from simkit.testbed.torch_executor import torch_executor

    def make(num_blocks: int = 200, of: "Decoder | None" = None) -> "TorchExecutor":
        return torch_executor(decoder if of is None else of, num_blocks, 4)

    return make


@pytest.fixture(scope="session")
def limits() -> Callable[..., Limits]:
    """`limits(num_blocks, **settings)`: blocks of 4 tokens, a context of 64, no prefix caching."""

    def make(num_blocks: int = 200, tokens: int = 256, requests: int = 8, **settings: object) -> Limits:
        fixed = {"block_size": 4, "async_scheduling": False, "enable_prefix_caching": False}
        return EngineSettings.model_validate(fixed | settings).limits(num_blocks, 64, tokens, requests)

    return make


@pytest.fixture(scope="session")
def tick_clock() -> type[TickClock]:
    """A clock that needs no time."""
    return TickClock


@pytest.fixture(scope="session")
def brute_force() -> Callable[..., list[int]]:
    """`brute_force(decoder, prompt, count)`: the right tokens."""
    return dense_outputs


def dense_outputs(decoder: "Decoder", prompt: np.ndarray, count: int) -> list[int]:
    """Greedy tokens by brute force in NumPy: the whole sequence again for each token, no cache, no batch, no blocks."""
    shape = decoder.shape
    tokens = prompt.tolist()
    for _ in range(count):
        x = decoder.embedding.numpy()[tokens]
        for layer in decoder.layers:
            w = {name: tensor.numpy() for name, tensor in layer._asdict().items()}
            x = x + _attention(shape, _norm(x, w["attention_norm"]) @ w["qkv"]) @ w["out"]
            gate, up = np.split(_norm(x, w["ffn_norm"]) @ w["gate_up"], 2, axis=1)
            x = x + (gate / (1 + np.exp(-gate)) * up) @ w["down"]
        tokens.append(int((_norm(x[-1:], decoder.norm.numpy()) @ decoder.lm_head.numpy()).argmax()))
    return tokens[len(prompt) :]


def _norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-5) * weight


def _attention(shape: DecoderShape, qkv: np.ndarray) -> np.ndarray:
    d, out = shape.head_dim, []
    for head in range(shape.heads):
        group = head // (shape.heads // shape.kv_heads)
        first_key = shape.heads + group
        first_value = shape.heads + shape.kv_heads + group
        q, k = (_turned(qkv[:, i * d : (i + 1) * d]) for i in (head, first_key))
        scores = q @ k.T / np.sqrt(d)
        scores[np.triu_indices(len(scores), 1)] = -np.inf
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        value = qkv[:, first_value * d : (first_value + 1) * d]
        out.append(weights / weights.sum(axis=1, keepdims=True) @ value)
    return np.concatenate(out, axis=1)


def _turned(x: np.ndarray) -> np.ndarray:
    """Rotary positions as complex multiplication: pair (i, i + d/2) at position p turns by p / 10000^(2i/d)."""
    half = x.shape[1] // 2
    pairs = x[:, :half] + 1j * x[:, half:]
    angle = np.arange(len(x))[:, None] / 10_000.0 ** (np.arange(half) / half)
    turned = pairs * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag], axis=1)
