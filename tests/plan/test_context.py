"""The context plan: more context never costs less, its tail is in view, and its bills add up."""

import json
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from simkit.engine.deployment import Deployment, ReplicaSpec, resolve
from simkit.engine.settings import EngineSettings
from simkit.errors import InputError
from simkit.metrics.slo import promise
from simkit.plan.answer import resolve_kind
from simkit.plan.confidence import StepTimeError
from simkit.plan.context import (
    RETRIEVED,
    WHOLE,
    WINDOWED,
    ContextSettings,
    Retrieval,
    after,
    context_workload,
    longest,
    windowed,
    windowed_of,
    with_retrieval,
)
from simkit.plan.context_cells import Cell, ContextQuestion, cells, line_of
from simkit.plan.context_words import context_verdict
from simkit.plan.sweep import replay
from simkit.report.context_page import context_notes, context_page, context_table
from simkit.report.markup import text
from simkit.workloads.transform import rate_to
from simkit.workloads.workload import Workload

LENGTHS = (4096, 8192, 16384, 32768, 65536)
SLO = {"ttft_p99_s": 12.0, "tpot_p99_s": 0.15}


def asked(chat: Workload, settings: ContextSettings) -> ContextQuestion:
    base = Deployment(model="llama-3.1-8b", device="h100")
    return ContextQuestion(base, chat, 4.0, promise(SLO), settings, resolve_kind, 3.0, 700.0)


@pytest.fixture(scope="module")
def found(chat: Workload) -> tuple[ContextQuestion, list[Cell]]:
    question = asked(chat, ContextSettings(lengths=LENGTHS, rates=(2.0, 6.0), kv=("bf16", "fp8")))
    return question, cells(question)


def column(found: list[Cell], kv: str, rate: float) -> list[Cell]:
    return [cell for cell in found if (cell.kv, cell.rate_per_s) == (kv, rate)]


@pytest.mark.parametrize("kv", ["bf16", "fp8"])
@pytest.mark.parametrize("rate", [2.0, 6.0])
def test_a_longer_context_never_needs_less(found: tuple[ContextQuestion, list[Cell]], kv: str, rate: float) -> None:
    line = [cell.filled for cell in column(found[1], kv, rate)]
    held = [cell for cell in line if cell is not None]
    assert len(held) >= 4
    assert line[: len(held)] == held  # from the first that does not hold on, none does
    for values in (
        [cell.gpus for cell in held],
        [cell.usd_per_hour for cell in held],
        [cell.ttft_p50_s for cell in held],
        [1 / (cell.held_per_replica or 1e-9) for cell in held],
    ):
        assert values == sorted(values)


def test_more_traffic_and_wider_caches_never_need_less(found: tuple[ContextQuestion, list[Cell]]) -> None:
    for kv in ("bf16", "fp8"):
        for slow, fast in zip(column(found[1], kv, 2.0), column(found[1], kv, 6.0), strict=True):
            if fast.filled is not None:
                assert slow.filled is not None
                assert slow.filled.gpus <= fast.filled.gpus
    for wide, narrow in zip(column(found[1], "bf16", 6.0), column(found[1], "fp8", 6.0), strict=True):
        # half the bytes a token: twice the tokens, but for what is left over
        assert narrow.fits_at_once == pytest.approx(2 * wide.fits_at_once, rel=0.01)


def test_prices_a_request_sum_to_the_hour(found: tuple[ContextQuestion, list[Cell]]) -> None:
    _, all_cells = found
    for cell in all_cells:
        if cell.filled is None:
            continue
        assert cell.filled.usd_per_request * 3600 * cell.rate_per_s == pytest.approx(cell.filled.usd_per_hour)
        assert cell.filled.usd_per_hour == pytest.approx(3.0 * cell.filled.gpus)


def test_the_verdict_is_short_and_names_the_longest(found: tuple[ContextQuestion, list[Cell]]) -> None:
    lines = context_verdict(*found)
    assert 1 < len(lines) <= 15
    assert "65,536" in lines[0]
    line = line_of(found[1], WHOLE, "bf16", 2.0)
    assert line.longest == 65536
    # a doubling of all prompts would at least double prefill; of a twentieth of them less, and never below 1
    assert all(0.97 < times < 16 for _, _, times in line.doublings)


def test_long_requests_are_the_same_at_every_length(chat: Workload) -> None:
    marked = [longest(context_workload(chat, length, 0.05), length) for length in (32768, 65536, 131072)]
    assert np.array_equal(marked[0], marked[1])
    assert np.array_equal(marked[1], marked[2])
    assert 0.03 < marked[0].mean() < 0.07
    short = context_workload(chat, 512, 0.05)
    assert int((short.prompt_tokens + short.output_tokens).max()) == 512
    assert short.prompt_tokens.min() >= 1


def test_retrieval_shortens_the_long_ones_and_comes_later(chat: Workload) -> None:
    how = Retrieval(chunks=4, chunk_tokens=256, question_tokens=100, latency_s=2.0)
    whole = context_workload(chat, 32768, 0.05)
    chunks = with_retrieval(whole, 32768, how)
    assert int(chunks.prompt_tokens.max()) <= max(1124, int(chat.prompt_tokens.max()))
    assert np.count_nonzero(chunks.prompt_tokens == 1124) >= np.count_nonzero(longest(whole, 32768))
    assert np.all(np.diff(chunks.arrival_us) >= 0)
    moved = int(chunks.arrival_us.sum() - whole.arrival_us.sum())
    assert moved == 2_000_000 * np.count_nonzero(longest(whole, 32768))


def test_a_search_takes_its_time_from_the_promise() -> None:
    left = after(promise({"ttft_p99_s": 1.0, "tpot_p99_s": 0.05}), 0.25)
    assert [target.limit_s for target in left.targets] == [0.75, 0.05]
    with pytest.raises(InputError, match="retrieval takes"):
        after(promise({"ttft_p99_s": 0.2}), 0.25)


def test_retrieval_and_windows_are_cheaper_than_whole_documents(chat: Workload) -> None:
    settings = ContextSettings(lengths=(65536,), rates=(6.0,), retrieval=Retrieval(), window_tokens=4096)
    by_way = {cell.way: cell for cell in cells(asked(chat, settings))}
    whole, retrieval, window = (by_way[way].filled for way in (WHOLE, RETRIEVED, WINDOWED))
    assert whole is not None
    assert retrieval is not None
    assert window is not None
    assert retrieval.gpus < whole.gpus
    assert window.gpus <= whole.gpus
    assert window.ttft_p50_s < whole.ttft_p50_s
    # 5 % of 6 requests/s for 3600 s at 0.1 USD a thousand searches
    assert retrieval.usd_per_hour == pytest.approx(3.0 * retrieval.gpus + 0.05 * 6 * 3.6 * 0.1)


@pytest.fixture(scope="module")
def llama() -> ReplicaSpec:
    return resolve(Deployment(model="llama-3.1-8b", device="h100", engine=EngineSettings(max_model_len=32768)))


def test_a_window_as_long_as_the_context_changes_no_prefill(llama: ReplicaSpec) -> None:
    assert np.array_equal(windowed(llama, 10**6).tables.prefill_ns, llama.tables.prefill_ns)
    short = windowed(llama, 1024).tables.prefill_ns
    assert np.all(short <= llama.tables.prefill_ns)
    assert short[-1, -1] < llama.tables.prefill_ns[-1, -1]


@pytest.mark.parametrize("window", [512, 4096, 16000])
def test_a_request_holds_its_window_a_block_and_its_step(llama: ReplicaSpec, window: int) -> None:
    """vLLM's SlidingWindowSpec: window - 1 tokens, those in flight, and a block, for a window may begin within one."""
    own = windowed(llama, window)
    assert own.num_blocks == llama.num_blocks
    in_flight = llama.limits.max_num_batched_tokens * llama.limits.pipeline_depth
    assert own.blocks_of(32768) == -(-min(window - 1 + in_flight, 32768) // 16) + 1
    alone = Workload("one", np.zeros(1, np.int64), np.array([30_000], np.int32), np.array([100], np.int32))
    held = replay(own, alone).series.kv_used.max() * (own.num_blocks - 1)
    assert window / 16 <= held <= own.blocks_of(32768) + 1


def test_a_window_that_is_asked_for_serves_as_one_that_the_model_has(chat: Workload, tmp_path: Path) -> None:
    """Mistral-7B v0.1 sees 4,096 tokens in every layer; v0.2 is the same without (sliding_window: null)."""
    config = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "torch_dtype": "bfloat16",
        "vocab_size": 32000,
    }
    specs = []
    for name, window in (("v0.1", 4096), ("v0.2", None)):
        path = tmp_path / name / "config.json"
        path.parent.mkdir()
        path.write_text(json.dumps({**config, "sliding_window": window}))
        engine = EngineSettings(max_model_len=16384)
        specs.append(resolve(Deployment(model=str(path), device="l40s", engine=engine)))
    told, asked_for = specs[0], windowed(specs[1], 4096)
    assert (asked_for.limits, asked_for.num_blocks) == (told.limits, told.num_blocks)
    traffic = context_workload(rate_to(chat, 2.0), 16384, 0.2)
    ends = [replay(spec, traffic) for spec in (told, asked_for)]
    assert ends[0].end_ns == pytest.approx(ends[1].end_ns, rel=0.01)
    assert np.abs(ends[0].series.kv_used.max() - ends[1].series.kv_used.max()) < 0.02
    assert ends[0].requests.preemptions.sum() == ends[1].requests.preemptions.sum()


def test_more_requests_fit_at_once_where_a_window_slides(chat: Workload) -> None:
    settings = ContextSettings(lengths=(131072,), rates=(1.0,), window_tokens=4096)
    whole, window = cells(asked(chat, settings))
    # as vLLM admits: a request may hold its window, the tokens of two steps in flight, and a block
    assert window.fits_at_once / whole.fits_at_once == pytest.approx(131072 / (-(-(4095 + 2 * 8192) // 16) + 1) / 16)
    assert window.filled is not None
    assert whole.filled is None or window.filled.gpus <= whole.filled.gpus


def of_length(base: Deployment) -> Callable[[int], ReplicaSpec]:
    return lambda n: resolve(
        base.model_copy(update={"engine": base.engine.model_copy(update={"max_model_len": n})}),
    )


@pytest.mark.parametrize("window", [512, 4096, 5000])
def test_windows_fit_where_no_whole_context_does(window: int) -> None:
    """What a replica without room for a whole context does is what one of its kind with room does, on fewer blocks."""
    ordinary = of_length(Deployment(model="llama-3.1-8b", device="h100"))

    def no_whole_one(length: int) -> ReplicaSpec:
        if length > 8192:
            raise InputError("the KV cache holds 8192 tokens")
        return ordinary(length)

    short, whole = windowed_of(no_whole_one, 65536, window), windowed_of(ordinary, 65536, window)
    assert (short.limits, short.num_blocks, short.memory) == (whole.limits, whole.num_blocks, whole.memory)
    assert short.deployment == whole.deployment
    assert all(np.array_equal(one, other) for one, other in zip(short.tables, whole.tables, strict=True))


def test_a_length_is_answered_for_its_window_where_memory_does_not_hold_it_whole(chat: Workload) -> None:
    settings = ContextSettings(lengths=(65536,), rates=(0.2,), window_tokens=4096, long_share=0.05)
    small = Deployment(model="llama-3.1-8b", device="l4")
    loose = promise({"ttft_p50_s": 60.0})
    whole, window = cells(replace(asked(chat, settings), deployment=small, promise=loose))
    assert "KV cache holds" in whole.reason
    assert window.filled is not None, window.reason
    # vLLM's SlidingWindowSpec: the window, two steps of 2,048 tokens in flight, and a block
    usable = resolve(small.model_copy(update={"engine": EngineSettings(max_model_len=8192)})).num_blocks - 1
    assert window.fits_at_once == pytest.approx(usable / (-(-(4095 + 2 * 2048) // 16) + 1))


@pytest.mark.parametrize(
    ("engine", "length"),
    [
        ({"disable_hybrid_kv_cache_manager": True}, 65536),  # whole contexts are charged
        ({"engine": "vllm-0.19"}, 65536),  # admission waits for the whole context
        ({"discipline": "sglang"}, 65536),
        ({}, 262144),  # longer than the model's own
    ],
)
def test_a_window_makes_no_room_where_whole_contexts_are_asked_for(engine: dict[str, object], length: int) -> None:
    small = Deployment(model="llama-3.1-8b", device="l4", engine=EngineSettings.model_validate(engine))
    with pytest.raises(InputError, match=r"KV cache holds|takes at most"):
        windowed_of(of_length(small), length, 4096)


def test_windows_that_do_not_fit_say_what_they_need() -> None:
    blocks = EngineSettings(num_gpu_blocks_override=600)
    with pytest.raises(InputError, match=r"window_tokens=8192: a request of 65536 tokens may hold 769 blocks"):
        windowed_of(of_length(Deployment(model="llama-3.1-8b", device="l4", engine=blocks)), 65536, 8192)


def test_layers_with_windows_of_their_own_see_no_more_than_these(chat: Workload) -> None:
    gemma = resolve(Deployment(model="gemma-3-4b", device="h100", engine=EngineSettings(max_model_len=8192)))
    settings = ContextSettings(lengths=(8192,), rates=(1.0,), window_tokens=1025)
    with pytest.raises(InputError, match="give 1024 or fewer"):
        cells(replace(asked(chat, settings), deployment=gemma.deployment))
    near = windowed(gemma, 1024)
    # all 7 groups as the 6 that have a window
    window, whole = (gemma.memory.groups.window, gemma.memory.groups.full)
    per_group = (gemma.blocks_of(8192) - whole * 8192 // 16) / window
    assert near.blocks_of(8192) == (window + whole) * per_group
    kept, less = (replay(spec, context_workload(chat, 8192, 0.5)) for spec in (gemma, near))
    assert less.end_ns <= kept.end_ns
    assert less.series.kv_used.max() < kept.series.kv_used.max()


def test_what_does_not_fit_says_so(chat: Workload) -> None:
    question = asked(chat, ContextSettings(lengths=(8192, 131072), rates=(1.0,)))
    small = Deployment(model="llama-3.1-8b", device="l4")
    import dataclasses

    found = cells(dataclasses.replace(question, deployment=small))
    assert found[1].filled is None
    assert "KV cache holds" in found[1].reason


def test_every_empty_cell_names_its_reason_and_each_reason_is_told_once(chat: Workload) -> None:
    settings = ContextSettings(lengths=(8192, 131072, 262144), rates=(1.0, 2.0))
    small = replace(asked(chat, settings), deployment=Deployment(model="llama-3.1-8b", device="l4"))
    found = cells(small)
    screen = Console(width=200, file=StringIO())
    screen.print(context_table(found))
    rows = screen.file.getvalue().splitlines()[1:]  # type: ignore[attr-defined]
    assert ["— (1)" in row for row in rows] == [False, True, False] * 2
    assert ["— (2)" in row for row in rows] == [False, False, True] * 2
    too_small, too_long = context_notes(found)
    assert too_small == f"(1) {found[1].reason}"
    assert "KV cache holds" in too_small
    assert too_long == f"(2) {found[2].reason}"
    assert "takes at most 131072 tokens" in too_long
    lines = context_verdict(small, found)
    page = context_page(small, found, lines, {"config": {}})
    assert all(page.count(text(note)) == 1 for note in (too_small, too_long))
    assert context_notes([found[0]]) == []


def test_the_longest_context_says_how_sure_its_promise_is(chat: Workload) -> None:
    """Slower steps miss what steps as assumed keep: doubt of 30 % cannot leave the promise sure."""
    settings = ContextSettings(lengths=(4096, 32768), rates=(6.0,))
    question = replace(asked(chat, settings), error_of=lambda _: StepTimeError(0.3, "test"))
    shorter, longer = cells(question)
    assert shorter.kept is None
    assert longer.filled is not None
    assert longer.kept is not None
    assert longer.kept.low < longer.kept.value < 1.0
    assert f"promise kept with probability {longer.kept.value:.2f}" in "\n".join(context_verdict(question, [longer]))


def test_every_way_of_answering_says_how_sure_its_longest_is(chat: Workload) -> None:
    settings = ContextSettings(lengths=(4096, 8192), rates=(6.0,), retrieval=Retrieval(), window_tokens=2048)
    question = replace(asked(chat, settings), error_of=lambda _: StepTimeError(0.1, "test"))
    found = cells(question)
    assert [cell.kept is not None for cell in found] == [False, True] * 3
    assert all(0 <= cell.kept.low <= cell.kept.value <= cell.kept.high <= 1 for cell in found if cell.kept is not None)
    ways = next(line for line in context_verdict(question, found) if line.startswith("At 8,192 tokens"))
    assert ways.count("promise kept with probability") == 2


def test_the_verdict_names_how_far_each_way_goes(chat: Workload) -> None:
    """An L4's memory holds 26,336 tokens: no whole document of 32,768, but the chunks and the window of one."""
    settings = ContextSettings(lengths=(8192, 32768), rates=(1.0,), retrieval=Retrieval(), window_tokens=2048)
    question = replace(asked(chat, settings), deployment=Deployment(model="llama-3.1-8b", device="l4"))
    found = cells(question)
    longest = {way: line_of(found, way, "bf16", 1.0).longest for way in question.ways}
    assert longest[WHOLE] == 8192
    otherwise = context_verdict(question, found)[0].partition(" Otherwise answered, ")[2]
    assert otherwise == (
        f"by retrieval: up to {longest['retrieval']:,} tokens; by a sliding window: up to {longest['window']:,} tokens."
    )
    lost = [replace(cell, filled=None) if cell.way == "retrieval" else cell for cell in found]
    assert "by retrieval: none;" in context_verdict(question, lost)[0]


def test_a_long_verdict_says_what_it_leaves_out_and_keeps_the_ways(chat: Workload) -> None:
    rates = tuple(float(rate) for rate in range(1, 10))
    settings = ContextSettings(lengths=(1024, 2048), rates=rates, retrieval=Retrieval())
    question = asked(chat, settings)
    one = next(
        iter(cells(replace(question, settings=settings.model_copy(update={"rates": (1.0,), "lengths": (1024,)}))))
    )
    every = [replace(one, way=way, rate_per_s=rate, max_context=length) for way, _, rate, length in question.places()]
    lines = context_verdict(question, every)
    assert len(lines) == 15
    assert "retrieval" in lines[1]
    assert lines[-1] == "6 more lines of this kind are in context.html."
