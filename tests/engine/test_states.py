"""Models some of whose layers keep a state: each running request holds blocks for it, from admission to its end."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simkit.engine.checked_run import checked_run
from simkit.engine.deployment import Deployment, resolve
from simkit.engine.dialect import dialect_of
from simkit.engine.discipline import engine
from simkit.engine.histories import stateful_history
from simkit.engine.interpreted import interpreted
from simkit.engine.loop import IDLE, advance, iterate
from simkit.engine.replica import new_replica
from simkit.engine.selftest import state_bytes
from simkit.engine.settings import EngineSettings, windowed
from simkit.engine.state import ABORT, FREE_BLOCKS, NEVER, REQUEST, RUNNING_COUNT, Limits, records
from simkit.engine.stepping import complete, plan
from simkit.errors import InputError
from simkit.models.kv_groups import STATE_REACH, KvGroups
from simkit.models.steptables import constant_tables


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32))
def test_every_rule_holds_after_every_turn(seed: int) -> None:
    checked_run(stateful_history(seed), iterate)


def test_machine_code_and_plain_python_do_the_same() -> None:
    for seed in range(10):
        history = stateful_history(seed)
        one, other = history.replica(), history.replica()
        assert advance(one, history.tables, NEVER, 20_000) == IDLE
        assert interpreted().loop.advance(other, history.tables, NEVER, 20_000) == IDLE
        assert state_bytes(one) == state_bytes(other)


def test_counted_blocks_give_the_schedules_of_named_ones() -> None:
    preempted = 0
    for seed in range(200):
        history = stateful_history(seed)
        if history.limits.prefix_caching:
            continue
        made = []
        for named in (True, False):
            rows = history.requests.copy().view(np.recarray)
            blocks, abort = history.num_blocks, history.aborts
            made.append(new_replica(history.limits, rows, history.content_ids, abort, blocks, 4096, named))
        for r in made:
            assert advance(r, history.tables, NEVER, 100_000) == IDLE
            assert r.pool.counts[FREE_BLOCKS] == history.num_blocks - 1
        named, counted = made
        for part in ("ledger", "at", "running", "waiting"):
            assert getattr(counted, part).tobytes() == getattr(named, part).tobytes(), (seed, part)
        preempted += int(named.progress["preemptions"].any())
    assert preempted > 10


def test_states_bound_how_many_run_at_once() -> None:
    """20 usable blocks, 3 for the states and 1 for the tokens of each request: five run, and no more."""
    rows = records(8, REQUEST)
    rows["prompt"], rows["output"], rows["max_tokens"], rows["deadline_ns"] = 8, 5, 5, NEVER
    limits = Limits(64, 8, 16, 16, state_blocks=3)
    r = new_replica(limits, rows, np.zeros(0, dtype=np.int64), records(0, ABORT), 21)
    tables = constant_tables(64, 8, token_ns=10.0, step_ns=100.0)
    iterate(r, tables)
    assert (r.at[RUNNING_COUNT], r.pool.counts[FREE_BLOCKS]) == (5, 0)
    assert advance(r, tables, NEVER, 1000) == IDLE
    assert (int((r.progress["known"] == 13).sum()), r.pool.counts[FREE_BLOCKS]) == (8, 20)


@pytest.mark.parametrize(
    ("prompt", "told", "cut"),
    [
        (40, False, [32, 8]),
        (48, False, [32, 16]),
        (16, False, [16]),
        (17, False, [16, 1]),
        (100, False, [64, 32, 4]),
        (40, True, [40]),
        (48, True, [48]),
        (16, True, [16]),
        (17, True, [17]),
        (100, True, [64, 36]),
    ],
)
def test_a_prompt_is_cut_where_its_last_whole_block_ends(prompt: int, told: bool, cut: list[int]) -> None:
    """Blocks of 16 and a prompt of 40: 32 tokens, whose state can be cached, then the other 8; of 48, 32 and 16.

    Told inside the chunk, the state after 32 is there without a cut.
    """
    groups = KvGroups(1, 3, True, STATE_REACH, kept_states=True, checkpoints=told)
    limits = Limits(64, 8, 128, 16, prefix_caching=True)
    limits = windowed(limits, groups, dialect_of("vllm-0.32"), 0)
    rows = records(1, REQUEST)
    rows["prompt"], rows["output"], rows["max_tokens"], rows["deadline_ns"] = prompt, 4, 4, NEVER
    r = new_replica(limits, rows, np.zeros(0, dtype=np.int64), records(0, ABORT), 100)
    given = []
    while sum(given) < prompt:
        row = plan(r, 0)
        given.append(int(r.entries[row, 0].tokens))
        complete(r, row, 0, 100)
    assert given == cut


OWN = str(Path(__file__).parents[2] / "experiments" / "own_discipline" / "decode_first.py")


def deployment(**engine: object) -> Deployment:
    return Deployment(model="qwen3-next-80b-a3b", device="h200", layout={"tensor": 2}, engine=EngineSettings(**engine))


def test_a_deployment_has_blocks_large_enough() -> None:
    spec = resolve(deployment(max_model_len=32768, enable_prefix_caching=False))
    assert (spec.limits.block_size, spec.limits.state_blocks, spec.limits.full_groups) == (544, 3, 1)
    # 32,768 tokens are 61 blocks of 544, and the states 3
    assert spec.blocks_of(32768) == 64
    assert spec.kv_tokens == int(spec.num_blocks / 64 * 32768)


def test_prefix_caching_is_on_where_vllm_has_it_on() -> None:
    """And takes a second block a group: the state that is kept beside the one that changes."""
    spec = resolve(deployment(max_model_len=32768))
    assert spec.limits.prefix_caching
    assert (spec.limits.state_blocks, spec.limits.window_groups, spec.blocks_of(32768)) == (0, 3, 67)
    assert not resolve(deployment(max_model_len=32768, engine="vllm-0.25")).limits.prefix_caching


@pytest.mark.parametrize(
    ("model", "device", "engine", "told"),
    [
        ("qwen3-next-80b-a3b", "h200", "vllm-0.32", False),
        ("qwen3-next-80b-a3b", "h200", "vllm-0.33", True),
        ("qwen3-next-80b-a3b", "b200", "vllm-0.33", True),
        ("qwen3-next-80b-a3b", "a100-80gb-sxm", "vllm-0.33", False),  # FlashInfer has no kernel for it
        ("nemotron-3-nano-30b-a3b", "a100-80gb-sxm", "vllm-0.31", False),
        ("nemotron-3-nano-30b-a3b", "a100-80gb-sxm", "vllm-0.32", True),
    ],
)
def test_where_kernels_tell_states_inside_a_chunk(model: str, device: str, engine: str, told: bool) -> None:
    settings = EngineSettings(engine=engine, max_model_len=32768)
    spec = resolve(Deployment(model=model, device=device, layout={"tensor": 4}, engine=settings))
    limits = spec.limits
    assert (limits.prefix_caching, limits.state_checkpoints) == (True, told)
    contexts = limits.full_groups * -(-32768 // limits.block_size)
    assert spec.blocks_of(32768) == contexts + limits.window_groups * (3 if told else 2)
    # Gated DeltaNet's kernel tells them every 64 tokens, of which 272 are no multiple
    if model.startswith("qwen"):
        assert limits.block_size == (320 if told else 272)


def test_a_discipline_of_ones_own_serves_them_without_prefix_caching() -> None:
    """Short of memory: 12 requests and more at once have no room, by the blocks of their states."""
    spec = resolve(
        deployment(discipline=OWN, enable_prefix_caching=False, num_gpu_blocks_override=80, max_model_len=32768)
    )
    assert spec.limits.state_blocks == 3
    rows = records(60, REQUEST)
    rows["prompt"], rows["output"], rows["max_tokens"], rows["deadline_ns"] = 1500, 60, 60, NEVER
    r = new_replica(spec.limits, rows, np.zeros(0, dtype=np.int64), records(0, ABORT), spec.num_blocks)
    most = 0
    while engine(OWN).advance(r, spec.tables, NEVER, 1) != IDLE:
        most = max(most, int(r.at[RUNNING_COUNT]))
    # 79 blocks, 3 and 3 of 544 tokens a request
    assert (most, int((r.progress["known"] == 1560).sum()), int(r.pool.counts[FREE_BLOCKS])) == (13, 60, 79)


@pytest.mark.parametrize(
    ("engine", "named"),
    [
        (
            {"enable_prefix_caching": True, "engine": "vllm-0.25"},
            "enable_prefix_caching=true: under vllm-0.25 prefix caching is not modelled",
        ),
        ({"enable_chunked_prefill": False, "max_num_batched_tokens": 300000}, "enable_chunked_prefill=false: prefixes"),
        ({"max_num_batched_tokens": 512, "engine": "vllm-0.26"}, "vllm-0.26 wants room for a block of 544 tokens"),
        (
            {"speculative_tokens": 2, "acceptance": 0.5, "speculative_method": "mtp"},
            "speculative_tokens=2: drafts are not modelled",
        ),
        ({"discipline": "sglang"}, "discipline=sglang: its memory is not modelled"),
        (
            {"discipline": OWN},
            "decode_first.py: it does not end chunks where states of .* set enable_prefix_caching: false",
        ),
        ({"disable_hybrid_kv_cache_manager": True}, "disable_hybrid_kv_cache_manager=true: vLLM has no other memory"),
    ],
)
def test_what_is_not_modelled_is_refused(engine: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        resolve(deployment(**engine))
