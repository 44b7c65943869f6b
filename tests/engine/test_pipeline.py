"""Pipeline stages: batches in flight on each, against closed forms of a pipeline that is filled and drained."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simkit.engine.checked_run import checked_run
from simkit.engine.deployment import Deployment, resolve
from simkit.engine.histories import History, random_history
from simkit.engine.loop import iterate
from simkit.engine.settings import EngineSettings
from simkit.engine.simulate import simulate
from simkit.engine.state import IN_FLIGHT, OLDEST, Limits
from simkit.errors import InputError
from simkit.metrics.result import RunResult
from simkit.models.calibrated import calibrated_tables
from simkit.models.catalog import load_model
from simkit.models.device import load_device
from simkit.models.layout import Layout
from simkit.models.step_law import TableSizes
from simkit.models.steptables import StepTables, constant_tables
from simkit.workloads.workload import Workload

BUDGET = 1000
STAGE_NS = 10_000


def staged(stage_ns: list[int], tables: StepTables | None = None) -> StepTables:
    """Tables whose step takes so long on each stage, whatever is in it."""
    plain = constant_tables(BUDGET, 64, step_ns=float(sum(stage_ns))) if tables is None else tables
    shares = np.array(stage_ns) / sum(stage_ns)
    return plain._replace(stage_linear_ns=shares[:, None] * plain.linear_ns[None, :], stage_attention=shares)


def limits(stages: int) -> Limits:
    return Limits(
        max_num_batched_tokens=BUDGET,
        max_running=64,
        max_model_len=10_000,
        block_size=16,
        pipeline_depth=stages,
        stages=stages,
    )


def served(stage_ns: list[int], prompts: list[int], outputs: list[int]) -> RunResult:
    workload = Workload(
        name="all at once",
        arrival_us=np.zeros(len(prompts), dtype=np.int64),
        prompt_tokens=np.array(prompts, dtype=np.int32),
        output_tokens=np.array(outputs, dtype=np.int32),
    )
    return simulate(workload, limits(len(stage_ns)), staged(stage_ns), 100_000)


@pytest.mark.parametrize("stages", [1, 2, 3, 8])
def test_one_request_by_itself_gains_nothing(stages: int) -> None:
    one = served([STAGE_NS] * stages, [100], [50])
    assert one.requests.finish_ns.tolist() == [50 * stages * STAGE_NS]
    assert one.requests.decode_ns.tolist() == [49 * stages * STAGE_NS]
    assert one.busy_ns == one.end_ns


@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("batches", [1, 2, 7, 40])
def test_a_train_of_equal_batches_has_the_bubbles_of_gpipe(stages: int, batches: int) -> None:
    """Share of the stages' time that is idle: (p - 1) / (m + p - 1) (Huang et al., GPipe, 2019, section 2.3)."""
    train = served([STAGE_NS] * stages, [BUDGET] * batches, [1] * batches)
    assert train.steps == batches
    idle = 1.0 - batches * STAGE_NS / train.end_ns
    assert idle == pytest.approx((stages - 1) / (batches + stages - 1), rel=1e-12)


@pytest.mark.parametrize("stage_ns", [[5_000, 20_000, 10_000], [20_000, 5_000], [3_000, 3_000, 3_000, 30_000]])
def test_the_slowest_stage_sets_the_pace(stage_ns: list[int]) -> None:
    """Permutation flow shop of equal jobs: sum of the stages, and the slowest for each job after the first."""
    train = served(stage_ns, [BUDGET] * 9, [1] * 9)
    assert train.end_ns == sum(stage_ns) + 8 * max(stage_ns)


@pytest.mark.parametrize("stages", [2, 4])
def test_as_many_batches_as_stages_leave_no_bubble(stages: int) -> None:
    """Prompts that fill a batch each start apart and stay apart: a token a stage time, but for filling and draining."""
    tokens = 30
    full = served([STAGE_NS] * stages, [BUDGET] * stages, [tokens] * stages)
    assert full.end_ns == (tokens * stages + stages - 1) * STAGE_NS


@pytest.mark.parametrize("stages", [2, 4])
def test_one_batch_of_all_leaves_all_stages_but_one_idle(stages: int) -> None:
    """Prompts that fit a batch together stay together (vLLM does not part them): a step a pipeline's length."""
    together = served([STAGE_NS] * stages, [100] * 10, [30] * 10)
    assert together.steps == 30
    assert together.end_ns == 30 * stages * STAGE_NS


def test_chunks_of_a_prompt_follow_one_another_through_the_stages() -> None:
    """A later chunk needs the KV of an earlier one on its own stage only: five chunks take 5 + 4 - 1 stage times."""
    assert served([STAGE_NS] * 4, [5 * BUDGET], [1]).end_ns == 8 * STAGE_NS


def test_who_was_preempted_with_a_token_on_its_way_is_overtaken() -> None:
    """Three stages of 10 us, steps of 32 tokens, six blocks of 16, worked by hand (vLLM 0.32, waiting loop).

    A fills the first step, B and a token of C the second, the rest of C the third; each holds two blocks. At 30 us A is
    back, needs a third block, and preempts C, whose third step is under way until 50 us. At 40 us B is back, with a
    place left; C stands first in the queue, but its token is not there: D, for which the free block is enough, goes
    before it. C needs three blocks, and comes when B is over.
    """
    workload = Workload(
        name="by hand",
        arrival_us=np.zeros(4, dtype=np.int64),
        prompt_tokens=np.array([32, 31, 32, 16], dtype=np.int32),
        output_tokens=np.array([10, 7, 5, 1], dtype=np.int32),
    )
    steps_of_32 = limits(3)._replace(max_num_batched_tokens=32)
    found = simulate(workload, steps_of_32, staged([STAGE_NS] * 3), 7).requests
    assert found.scheduled_ns.tolist() == [0, 10_000, 10_000, 40_000]
    assert found.preemptions.tolist() == [0, 0, 1, 0]
    assert found.finish_ns[3] == 70_000
    assert found.finish_ns[2] == found.finish_ns.max()


def pipelined(seed: int, stages: int) -> History:
    history = random_history(seed)
    tables = staged(list(range(1, stages + 1)), history.tables)
    return replace(history, limits=history.limits._replace(pipeline_depth=stages, stages=stages), tables=tables)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 5))
def test_every_rule_holds_with_stages(seed: int, stages: int) -> None:
    """Blocks, queues, tokens, and waterfalls that add up to the latency to the nanosecond."""
    checked_run(pipelined(seed, stages), iterate)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 4))
def test_a_token_is_in_one_batch_in_flight_at_most(seed: int, stages: int) -> None:
    history = pipelined(seed, stages)
    r = history.replica()
    for _ in range(400):
        iterate(r, history.tables)
        sampled: Counter[int] = Counter()
        for place in range(int(r.at[IN_FLIGHT])):
            row = (int(r.at[OLDEST]) + place) % len(r.batches)
            entries = r.entries[row, : int(r.batches["length"][row])]
            sampling = entries["request"][entries["samples"] > 0]
            sampled.update(sampling[r.progress["preemptions"][sampling] == 0].tolist())
        assert not sampled or max(sampled.values()) == 1


def test_stages_of_a_model_add_up_to_it() -> None:
    """31, 32, 32 and 31 layers take what 126 take in one piece, and three sends."""
    arch, device = load_model("llama-3.1-405b"), load_device("h100")
    sizes = TableSizes(max_num_batched_tokens=2048, max_num_seqs=64, max_model_len=8192)
    whole = calibrated_tables(arch, device, Layout(tensor=8), sizes=sizes)
    parts = calibrated_tables(arch, device, Layout(tensor=8, pipeline=4), sizes=sizes)
    assert parts.stage_linear_ns.sum(axis=0) == pytest.approx(parts.linear_ns, rel=1e-12)
    assert parts.stage_attention.tolist() == [31 / 126, 32 / 126, 32 / 126, 31 / 126]
    tokens = np.array([1, 64, 2048])
    sends = parts.linear_ns[tokens] - whole.linear_ns[tokens]
    # two messages of [tokens, 16384] x 2 bytes, an eighth from each GPU, for each of three hops
    at_least = 3 * 2 * tokens * 16384 * 2 / 8 / device.link_bytes_per_s * 1e9
    assert np.all(sends > at_least)
    assert np.all(sends < 0.05 * whole.linear_ns[tokens])
    inner = parts.stage_linear_ns[1, 64] / parts.stage_linear_ns[3, 64]
    assert inner == pytest.approx(32 / 31, rel=0.02)


def test_a_deployment_has_a_batch_for_each_stage() -> None:
    layout = Layout(tensor=4, pipeline=2)
    spec = resolve(Deployment(model="llama-3.1-70b", device="h100", layout=layout))
    assert (spec.limits.stages, spec.limits.pipeline_depth, len(spec.tables.stage_attention)) == (2, 2, 2)
    engine = EngineSettings(discipline="static")
    with pytest.raises(InputError, match=r"layout\.pipeline=2: discipline static knows no"):
        resolve(Deployment(model="llama-3.1-70b", device="h100", layout=layout, engine=engine))
