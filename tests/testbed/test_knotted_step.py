"""The knotted model finds the law that made a log, and its tables say the same."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the testbed runs torch; install the extra gpu, or its CPU build")

from simkit.models.steptables import interpolate
from simkit.testbed.knotted_step import KnottedStep, fit_knotted, knotted_tables

FLAT_TO, FLAT_S, TOKEN_S = 256, 0.005, 2e-5
DECODE_S, CONTEXT_S, CHUNK_S, PAIR_S, HOST_S = 1e-6, 4e-9, 2e-3, 3e-10, 4e-4


def linear_s(tokens: float) -> float:
    return FLAT_S + TOKEN_S * max(0.0, tokens - FLAT_TO)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> KnottedStep:
    """From 3,000 steps of a device that is flat up to 256 tokens, then a line."""
    rng = np.random.default_rng(0)
    lines = [{"kind": "header", "format": "simkit-measured-run-1", "engine": "made", "device": "made"}]
    now = 0.0
    for _ in range(3000):
        decodes, chunks = int(rng.integers(0, 200)), int(rng.integers(0, 3))
        contexts = rng.integers(1, 4000, decodes)
        batch = [[f"d{i}", 1, int(c) - 1] for i, c in enumerate(contexts)]
        shares = [(int(rng.integers(2, 1000)), int(rng.integers(0, 2000))) for _ in range(chunks)]
        batch += [[f"c{i}", new, past] for i, (new, past) in enumerate(shares)]
        if not batch:
            continue
        pairs = sum(new * past + new * (new + 1) / 2 for new, past in shares)
        tokens = decodes + sum(new for new, _ in shares)
        device = linear_s(tokens) + DECODE_S * decodes + CONTEXT_S * contexts.sum() + CHUNK_S * chunks + PAIR_S * pairs
        times = [now, now + HOST_S / 2, now + HOST_S / 2 + device, now + HOST_S + device]
        names = ("schedule_start", "schedule_end", "update_start", "update_end")
        lines.append({"kind": "step", **dict(zip(names, times, strict=True)), "batch": batch})
        now = times[-1]
    path = tmp_path_factory.mktemp("log") / "made.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return fit_knotted([path])


def test_the_law_is_found(fitted: KnottedStep) -> None:
    sizes = np.array([1.0, 8, 64, 200, 256, 700, 1500, 2100])
    assert fitted.linear_s(sizes) == pytest.approx([linear_s(n) for n in sizes], rel=0.03)
    assert fitted.context_s == pytest.approx(CONTEXT_S, rel=0.05)
    assert fitted.pair_s == pytest.approx(PAIR_S, rel=0.05)
    assert fitted.chunk_s == pytest.approx(CHUNK_S, rel=0.05)
    assert fitted.host_step_s + 100 * fitted.host_request_s == pytest.approx(HOST_S, rel=0.01)


def test_the_tables_say_the_same(fitted: KnottedStep) -> None:
    tables = knotted_tables(fitted, 2048, 256, 4096, 1 << 20)
    assert tables.linear_ns[0] == 0
    assert tables.linear_ns[700] == pytest.approx(1e9 * linear_s(700), rel=0.03)
    decode = interpolate(tables.decode_ns, 64, 64 * 1000)
    assert decode == pytest.approx(1e9 * (64 * fitted.decode_s + 64_000 * fitted.context_s), rel=1e-3)
    chunk = interpolate(tables.prefill_ns, 512, 1024)
    pairs = 512 * 1024 + 512 * 513 / 2
    assert chunk == pytest.approx(1e9 * (fitted.chunk_s + fitted.pair_s * pairs), rel=3e-3)


def test_time_never_falls_with_tokens(fitted: KnottedStep) -> None:
    assert (np.diff(knotted_tables(fitted, 2048, 256, 4096, 1 << 20).linear_ns[1:]) >= -1e-6).all()


def test_what_a_step_with_drafts_costs_besides_is_no_cost_of_a_request(tmp_path: Path) -> None:
    """Proposing takes 20 ms however many requests get drafts; a cost by request says too little of small batches."""
    rng = np.random.default_rng(1)
    lines: list[dict[str, object]] = [
        {"kind": "header", "format": "simkit-measured-run-1", "engine": "made", "device": "made", "block_size": 16,
         "num_gpu_blocks": 100, "max_num_batched_tokens": 256, "max_num_seqs": 16},
        *({"kind": "request", "id": f"d{i}", "arrival": 0.0, "prompt_tokens": 10, "output_tokens": 500,
           "token_times": [], "end": None} for i in range(16)),
        {"kind": "request", "id": "c", "arrival": 0.0, "prompt_tokens": 1000, "output_tokens": 1, "token_times": [],
         "end": None},
    ]  # fmt: skip
    now = 0.0
    for step in range(400):
        checking = int(rng.integers(2, 17)) if step % 2 else 0  # never one alone
        ending = (
            int(rng.integers(0, 3)) if checking < 14 else 0
        )  # of whose answer one token is left: nothing to propose
        batch = [[f"d{i}", 4, int(rng.integers(20, 400))] for i in range(checking)]
        batch += [[f"d{i}", 1, int(rng.integers(20, 400))] for i in range(checking, checking + ending)]
        chunk = int(rng.integers(16, 180)) if step % 3 == 0 or not batch else 0
        batch += [["c", chunk, 0]] if chunk else []
        tokens = 4 * checking + ending + chunk
        device = 0.015 + 3e-4 * tokens + 0.002 * (checking + ending) + (0.020 if checking else 0.0)
        times = [now, now + 1e-4, now + 1e-4 + device, now + 2e-4 + device]
        names = ("schedule_start", "schedule_end", "update_start", "update_end")
        lines.append({"kind": "step", **dict(zip(names, times, strict=True)), "batch": batch})
        now = times[-1]
    path = tmp_path / "drafts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = fit_knotted([path])
    assert found.draft_s == pytest.approx(0.020, rel=0.02)
    assert found.decode_s == pytest.approx(0.002, rel=0.05)
    # one alone, which was never seen: tokens, decodes, context, chunks, pairs, drafts
    alone = np.array([[4.0, 1.0, 100.0, 0.0, 0.0, 1.0]])
    assert found.device_s(alone)[0] == pytest.approx(0.015 + 4 * 3e-4 + 0.002 + 0.020, rel=0.02)
