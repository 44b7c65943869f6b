"""Our kernels behind the executor's interface, in Triton's interpreter: padded, batched and chunked give the same."""

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("torch", reason="the testbed runs torch; install the extra gpu, or its CPU build")
pytest.importorskip("triton", reason="the kernels need triton")

from simkit.engine.settings import EngineSettings
from simkit.engine.state import Limits
from simkit.errors import InputError
from simkit.models.architecture import Architecture
from simkit.models.huggingface import architecture_from_config
from simkit.testbed.inputs import NOTHING_FED, Chunk, Decodes, Fed, StepInputs
from simkit.testbed.kernel_batch import capture_for, host_batch, packed, padded_decodes, unpacked
from simkit.testbed.kernel_executor import KernelExecutor, kernel_executor
from simkit.testbed.prompts import prompt_tokens
from simkit.testbed.replay import replay
from simkit.testbed.serving import serve_measured
from simkit.testbed.wall_clock import Clock
from simkit.workloads.transform import selected
from simkit.workloads.workload import Workload

BLOCKS = 24


@pytest.fixture(scope="module")
def tiny() -> Architecture:
    config = {
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 32,
        "vocab_size": 199,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }
    return architecture_from_config(config, "tiny")


def rules(tokens: int = 64, asynchronous: bool = False) -> Limits:
    settings = EngineSettings(async_scheduling=asynchronous, enable_prefix_caching=False)
    return settings.limits(BLOCKS, 64, tokens, 4)


@pytest.fixture(scope="module")
def few() -> Workload:
    return Workload(
        name="few",
        arrival_us=np.zeros(3, dtype=np.int64),
        prompt_tokens=np.array([20, 5, 1], dtype=np.int32),
        output_tokens=np.array([4, 5, 4], dtype=np.int32),
    )


def executor(tiny: Architecture, sizes: tuple[int, ...], tokens: int = 64) -> KernelExecutor:
    return kernel_executor(tiny, 0, "float32", BLOCKS, rules(tokens), sizes, device="cpu")


def test_padded_chunked_and_alone_give_the_same_tokens(
    tiny: Architecture, few: Workload, tick_clock: type[Clock]
) -> None:
    eager = serve_measured(few, executor(tiny, ()), rules(), clock=tick_clock)
    assert eager.failure == ""
    answers = [output.tolist() for output in eager.outputs]
    padded = serve_measured(few, executor(tiny, (2, 4)), rules(), clock=tick_clock)
    assert [output.tolist() for output in padded.outputs] == answers
    chunked = serve_measured(few, executor(tiny, (4,), 8), rules(8), clock=tick_clock)
    assert [output.tolist() for output in chunked.outputs] == answers
    prompts = prompt_tokens(few, 199)
    alone = serve_measured(
        selected(few, np.array([0])), executor(tiny, (4,)), rules(), prompts=prompts[:1], clock=tick_clock
    )
    assert alone.outputs[0].tolist() == answers[0]


def test_asynchronously_the_tokens_are_the_same(tiny: Architecture, few: Workload, tick_clock: type[Clock]) -> None:
    """Steps follow one another padded after eager, eager after padded, and padded to another size."""
    answers = serve_measured(few, executor(tiny, ()), rules(), clock=tick_clock).outputs
    for sizes, tokens in (((2, 4), 64), ((2, 4), 8), ((), 8)):
        run = serve_measured(few, executor(tiny, sizes, tokens), rules(tokens, True), clock=tick_clock)
        assert run.failure == ""
        assert [output.tolist() for output in run.outputs] == [output.tolist() for output in answers]
        assert replay(run).identical == len(run.steps)


def test_what_is_fed_is_what_the_step_before_sampled(tiny: Architecture, mixed: StepInputs) -> None:
    ours = executor(tiny, (2, 4))
    first = ours.launch(mixed, lambda: 0)[1].result().tokens
    fed = Fed(np.array([1, 0]), np.array([2, 0]))
    step = StepInputs(
        tokens=np.array([0, 0]), positions=np.array([21, 3]), slots=np.array([53, 67]),
        decodes=Decodes(np.array([0, 1]), np.array([[2, 3], [4, 0]]), np.array([22, 4])), chunks=(),
        sampled=np.array([0, 1]), fed=fed,
    )  # fmt: skip
    told = ours.launch(step, lambda: 0)[1].result().tokens
    known = step._replace(tokens=first[[0, 2]], fed=NOTHING_FED)
    assert told.tolist() == ours.run(known).tolist()
    assert told.tolist() != ours.run(step._replace(fed=NOTHING_FED)).tolist()


@pytest.fixture
def mixed() -> StepInputs:
    """A chunk, then two decodes, as the engine may order them."""
    return StepInputs(
        tokens=np.array([5, 6, 7, 8, 9]),
        positions=np.array([3, 4, 5, 20, 2]),
        slots=np.array([19, 20, 21, 52, 66]),
        decodes=Decodes(np.array([3, 4]), np.array([[2, 3], [4, 0]]), np.array([21, 3])),
        chunks=(Chunk(0, 3, 3, np.array([1])),),
        sampled=np.array([2, 3, 4]),
    )


def test_decodes_stand_first_and_samples_keep_their_order(mixed: StepInputs) -> None:
    batch = host_batch(mixed)
    assert batch.tokens.tolist() == [8, 9, 5, 6, 7]
    assert batch.positions.tolist() == [20, 2, 3, 4, 5]
    assert batch.slots.tolist() == [52, 66, 19, 20, 21]
    assert batch.query_starts.tolist() == [0, 1, 2, 5]
    assert batch.page_table[:, :2].tolist() == [[2, 3], [4, 0], [1, 0]]
    assert batch.page_table.shape[1] % 16 == 0
    assert not batch.page_table[:, 2:].any()
    assert batch.context_tokens.tolist() == [21, 3, 6]
    assert batch.tokens[batch.sampled].tolist() == [7, 8, 9]
    fed = host_batch(mixed._replace(fed=Fed(np.array([4, 3]), np.array([0, 1])))).fed
    assert [each.tolist() for each in fed] == [[1, 0], [0, 1]]
    assert (batch.decodes, batch.max_query_tokens, batch.max_decode_context_tokens) == (2, 3, 21)


def test_one_copy_brings_all_arrays(mixed: StepInputs) -> None:
    batch = host_batch(mixed)
    step = unpacked(batch, packed(batch))
    for name in ("tokens", "positions", "slots", "sampled", "query_starts", "page_table", "context_tokens"):
        assert np.array_equal(getattr(step, name).numpy(), getattr(batch, name)), name
        assert (getattr(step, name).data_ptr() - step.tokens.data_ptr()) % 16 == 0, name


def test_padding_writes_to_nobodys_block(mixed: StepInputs) -> None:
    decodes = mixed._replace(
        tokens=np.array([8, 9]), positions=np.array([20, 2]), slots=np.array([52, 66]), chunks=(),
        decodes=mixed.decodes._replace(rows=np.array([0, 1])), sampled=np.array([0, 1]),
    )  # fmt: skip
    batch = padded_decodes(decodes, 4, 16, 96)
    assert batch.slots.tolist() == [52, 66, 0, 0]
    assert batch.context_tokens.tolist() == [21, 3, 0, 0]
    assert batch.page_table.shape == (4, 16)
    assert batch.max_decode_context_tokens == 96


def test_the_next_capture_is_chosen() -> None:
    assert [capture_for((1, 2, 8), n) for n in (1, 2, 3, 8, 9)] == [1, 2, 8, 8, None]
    assert capture_for((), 1) is None


def test_what_the_kernels_do_not_know_is_named(tiny: Architecture, make_mla: Callable[[], Architecture]) -> None:
    with pytest.raises(InputError, match="block_size=4: the kernels know blocks of"):
        kernel_executor(tiny, 0, "float32", 9, rules()._replace(block_size=4), (), "cpu")
    with pytest.raises(InputError, match="latent attention"):
        kernel_executor(make_mla(), 0, "float32", 9, rules(), (), "cpu")


def test_a_kernel_that_needs_more_than_the_chip_has_is_told(
    tiny: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime.errors import OutOfResources

    def refuse(*_: object) -> None:
        raise OutOfResources(300_000, 232_448, "shared memory")

    monkeypatch.setattr(KernelExecutor, "capture_all", refuse)
    with pytest.raises(InputError, match=r"tiny: a kernel does not run here .*shared memory"):
        executor(tiny, (2,))


@pytest.fixture
def make_mla() -> Callable[[], Architecture]:
    from simkit.models.catalog import load_model

    return lambda: load_model("deepseek-v2-lite")
