"""Attention's quadratic term: where it passes the linear layers, for a decoder narrow enough to show it here.

Per token a layer's linear parts take 2 P FLOP for its P weights, attention at context n takes 4 n H d; over a prompt of
n tokens that is 2 P n against 2 n^2 H d: the two are equal at n = P / (H d).
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from figure import Line, draw
from probe import DECODER, lab_bench, measured_s, prefill_step

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
NARROW = {"hidden_size": 192, "num_attention_heads": 3, "num_key_value_heads": 3, "intermediate_size": 384}


def run(device: str, clock: str, out: str) -> dict[str, object]:
    """Time whole prefills, fit a n + b n^2 on the shorter half, predict the longer one."""
    shape = json.loads(DECODER.read_text()) | NARROW | {"num_hidden_layers": 2, "max_position_embeddings": 16384}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "narrow.json"
        path.write_text(json.dumps(shape))
        bench = lab_bench(device, clock, str(path), longest=max(LENGTHS))
    times = [measured_s(bench, prefill_step(bench, n), 5 if n < 4096 else 3) for n in LENGTHS]
    n = np.array(LENGTHS, dtype=np.float64)
    t = np.array(times)
    known = n <= 2048
    columns = np.column_stack([np.ones(len(n)), n, n * n])
    scaled = columns[known] / t[known, None]  # by relative error
    base, linear, square = np.maximum(np.linalg.lstsq(scaled, np.ones(known.sum()), rcond=None)[0], 1e-15)
    told = columns @ np.array([base, linear, square])
    width = NARROW["num_attention_heads"] * 64
    weights = 4 * NARROW["hidden_size"] * width + 3 * NARROW["hidden_size"] * NARROW["intermediate_size"]
    draw(
        f"{out}/quadratic.svg",
        "Prefill of a narrow decoder: linear and quadratic parts",
        "prompt tokens",
        "s",
        [
            Line("measured", LENGTHS, times),
            Line("predicted from up to 2,048 tokens", LENGTHS, told.tolist(), predicted=True),
            Line("linear part", LENGTHS, (base + linear * n).tolist(), faint=True),
            Line("quadratic part", LENGTHS, (square * n * n).tolist(), faint=True),
        ],
    )
    return {
        "device": bench.executor.identity.device,
        "prompt_tokens": LENGTHS,
        "prefill_s": times,
        "predicted_s": told.tolist(),
        "crossover_tokens measured (linear part = quadratic part)": linear / square,
        "crossover_tokens by FLOPs": weights / width,
        "exponent from 4096 to 8192 tokens": float(np.log2(times[-1] / times[-2])),
        "exponent from 64 to 256 tokens": float(np.log(times[2] / times[0]) / np.log(4)),
    }
