"""A made-up engine whose step times follow the model exactly, and its log."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

STEP_S, TOKEN_S, REQUEST_S, PAIR_S = 8e-3, 2e-4, 5e-4, 3e-7
HOST_S, HOST_REQUEST_S = 4e-4, 5e-5
HEADER: dict[str, object] = {
    "kind": "header",
    "format": "simkit-measured-run-1",
    "engine": "made up",
    "device": "none",
    "block_size": 16,
}

WriteLog = Callable[..., Path]


def steps(count: int, seed: int, noise: float = 0.0) -> Iterator[dict[str, object]]:
    """Steps of up to 8 requests, of which one in ten is a prefill chunk; times are multiplied by lognormal noise."""
    random = np.random.default_rng(seed)
    now = 0.5
    for _ in range(count):
        requests = int(random.integers(1, 9))
        batch, tokens, pairs = [], 0, 0.0
        for request in range(requests):
            new = int(random.integers(2, 200)) if random.random() < 0.1 else 1
            before = int(random.integers(0, 2000))
            batch.append([str(request), new, before])
            tokens += new
            pairs += new * before + new * (new + 1) / 2
        device = (STEP_S + TOKEN_S * tokens + REQUEST_S * requests + PAIR_S * pairs) * random.lognormal(0.0, noise)
        host = HOST_S + HOST_REQUEST_S * requests
        start, planned = now, now + 0.5 * host
        yield {
            "kind": "step",
            "schedule_start": start,
            "schedule_end": planned,
            "update_start": planned + device,
            "update_end": planned + device + 0.3 * host,
            "batch": batch,
        }
        now = planned + device + 0.5 * host


@pytest.fixture
def write_log(tmp_path: Path) -> WriteLog:
    """Write lines, a header first unless told, as a log; returns its path."""

    def write(lines: list[dict[str, object]], name: str = "run.jsonl", header: dict[str, object] = HEADER) -> Path:
        path = tmp_path / name
        text = "".join(json.dumps(line) + "\n" for line in [header, *lines])
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return write
