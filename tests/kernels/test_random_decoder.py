"""A decoder composed of the kernels against one in plain torch: however the work is cut up, the logits are the same."""

from collections.abc import Callable
from copy import deepcopy
from functools import cache

import pytest
import torch
from plain_decoder import plain_logits
from small_decoders import FORMS, PAGE_TOKENS, Book, prompt, small_decoder

from simkit.kernels.random_decoder import random_decoder, run_step
from simkit.kernels.step_batch import Share, StepBatch, step_batch
from simkit.models.architecture import LatentAttention, Layer

# Both sides compute in f32, and logits are up to 4, or up to 43 of tied embeddings, which are not scaled down: a unit
# of rounding is up to 43 * 2^-24 = 2.6e-6. The largest difference seen is 9.3e-6; planted mistakes make 0.056 and more.
ACCEPTED = 2e-5
MISTAKEN = 1e-2


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference; infinite where a value is NaN."""
    return float((found - wanted).abs().nan_to_num(nan=torch.inf).max())


@pytest.mark.parametrize("form", FORMS)
def test_prefill_and_decodes_match_the_plain_model(form: str) -> None:
    book = Book(small_decoder(form))
    tokens = prompt(21, seed=1)
    wanted = plain_logits(book.decoder, tokens)
    assert apart(book.run(book.share("a", tokens[:18]))[0], wanted[17]) <= ACCEPTED
    for i in range(18, 21):
        assert apart(book.run(book.share("a", tokens[i : i + 1]))[0], wanted[i]) <= ACCEPTED


@pytest.mark.parametrize(
    ("form", "chunk"),
    [*(("llama GQA", chunk) for chunk in (1, 3, 15, 16, 17, 32, 36, 37)), ("mistral window", 6), ("gpt2", 11)],
)
def test_a_prompt_in_chunks_of_any_size_gives_the_logits_of_one_pass(form: str, chunk: int) -> None:
    book = Book(small_decoder(form))
    tokens = prompt(37, seed=2)
    wanted = plain_logits(book.decoder, tokens)
    for begin in range(0, 37, chunk):
        end = min(begin + chunk, 37)
        found = book.run(book.share("a", tokens[begin:end]))[0]
        assert apart(found, wanted[end - 1]) <= ACCEPTED, f"chunk {begin} to {end}"


@pytest.mark.parametrize("seed", range(2))
def test_a_prompt_in_chunks_of_random_sizes_gives_the_logits_of_one_pass(seed: int) -> None:
    book = Book(small_decoder("llama GQA"))
    tokens = prompt(60, seed=3)
    wanted = plain_logits(book.decoder, tokens)
    cuts = torch.randperm(59, generator=torch.Generator().manual_seed(seed))[:6].sort().values + 1
    for begin, end in zip([0, *cuts.tolist()], [*cuts.tolist(), 60], strict=True):
        assert apart(book.run(book.share("a", tokens[begin:end]))[0], wanted[end - 1]) <= ACCEPTED


def test_decoding_through_the_cache_gives_what_recomputing_gives() -> None:
    book = Book(small_decoder("mistral window"))
    tokens = prompt(30, seed=4)
    logits = book.run(book.share("a", tokens))[0]
    for step in range(4):
        tokens.append(int(logits.argmax()))
        logits = book.run(book.share("a", tokens[-1:]))[0]
        recomputed = book.run(book.share(f"again {step}", tokens))[0]
        assert apart(logits, recomputed) <= ACCEPTED
        book.preempt(f"again {step}")
    assert apart(logits, plain_logits(book.decoder, tokens)[-1]) <= ACCEPTED


@pytest.mark.parametrize("form", ["llama GQA", "gemma2", "glm4 moe"])
def test_a_mixed_step_gives_each_request_what_it_gets_alone(form: str) -> None:
    book = Book(small_decoder(form))
    texts = {
        name: prompt(length, seed) for seed, (name, length) in enumerate({"a": 20, "b": 33, "c": 5, "d": 17}.items())
    }
    wanted = {name: plain_logits(book.decoder, tokens) for name, tokens in texts.items()}
    book.run(book.share("a", texts["a"][:19]), book.share("b", texts["b"][:10]))
    # a decode, a chunk after a past, a prompt's only token but one, and a new prompt that goes on later
    found = book.run(
        book.share("b", texts["b"][10:30]),
        book.share("c", texts["c"][:1]),
        book.share("a", texts["a"][19:]),
        book.share("d", texts["d"], samples=False),
    )
    assert [apart(found[0], wanted["b"][29]), apart(found[1], wanted["c"][0])] <= [ACCEPTED] * 2
    assert apart(found[2], wanted["a"][19]) <= ACCEPTED
    assert len(found) == 3
    found = book.run(book.share("c", texts["c"][1:]), book.share("b", texts["b"][30:]))
    assert max(apart(found[0], wanted["c"][4]), apart(found[1], wanted["b"][32])) <= ACCEPTED


@pytest.mark.parametrize("same_step", [False, True], ids=["later", "same step"])
def test_a_shared_prefix_is_computed_once(same_step: bool) -> None:
    book = Book(small_decoder("llama GQA"))
    prefix, tails = prompt(2 * PAGE_TOKENS, seed=5), (prompt(6, seed=6), prompt(9, seed=7))
    first = book.share("a", prefix + tails[0])
    book.held["b"], book.past["b"] = book.held["a"][:2], 2 * PAGE_TOKENS
    second = book.share("b", tails[1])
    found = book.run(first, second) if same_step else [*book.run(first), *book.run(second)]
    for logits, tail in zip(found, tails, strict=True):
        assert apart(logits, plain_logits(book.decoder, prefix + tail)[-1]) <= ACCEPTED
    more = prompt(2, seed=8)
    for name, tail, token in (("a", tails[0], more[0]), ("b", tails[1], more[1])):
        logits = book.run(book.share(name, [token]))[0]
        assert apart(logits, plain_logits(book.decoder, [*prefix, *tail, token])[-1]) <= ACCEPTED


def test_a_preempted_request_is_recomputed_and_goes_on() -> None:
    book = Book(small_decoder("llama GQA"), pages=6)
    tokens, other = prompt(40, seed=9), prompt(50, seed=10)
    wanted = plain_logits(book.decoder, tokens)
    book.run(book.share("a", tokens[:30]))
    for i in range(30, 34):
        book.run(book.share("a", tokens[i : i + 1]))
    book.preempt("a")
    book.run(book.share("b", other))  # takes the pages that a had, and writes to them
    book.preempt("b")
    # prompt and outputs again, in two chunks, then on with decoding
    book.run(book.share("a", tokens[:20], samples=False))
    assert apart(book.run(book.share("a", tokens[20:35]))[0], wanted[34]) <= ACCEPTED
    for i in range(35, 40):
        assert apart(book.run(book.share("a", tokens[i : i + 1]))[0], wanted[i]) <= ACCEPTED


def pages_in_order(*order: int) -> Callable[[StepBatch], StepBatch]:
    return lambda batch: batch._replace(page_table=batch.page_table[:, list(order)].contiguous())


MISTAKES: dict[str, Callable[[StepBatch], StepBatch]] = {
    # full pages in another order would change nothing: attention sums over keys, which hold their own positions
    "first and last page swapped": pages_in_order(2, 1, 0),
    "page table one late": pages_in_order(0, 0, 1),
    "page table one early": pages_in_order(1, 2, 2),
    "positions one too large": lambda batch: batch._replace(positions=batch.positions + 1),
    "positions one too small": lambda batch: batch._replace(positions=batch.positions - 1),
    "contexts one too long": lambda batch: batch._replace(context_tokens=batch.context_tokens + 1),
    "contexts one too short": lambda batch: batch._replace(context_tokens=batch.context_tokens - 1),
    "slots one too large": lambda batch: batch._replace(slots=batch.slots + 1),
    "slots one too small": lambda batch: batch._replace(slots=batch.slots - 1),
    "the row before sampled": lambda batch: batch._replace(sampled=(batch.sampled - 1).clamp(min=0)),
    "tokens one late": lambda batch: batch._replace(tokens=batch.tokens.roll(1)),
}


TEXT, OTHER = prompt(47, seed=11), prompt(20, seed=12)


@cache
def half_way() -> Book:
    """Two requests, one of 38 tokens in three pages; what a wrong look-up finds is a number, not NaN."""
    book = Book(small_decoder("llama GQA"), pages=8)
    for number, pool in enumerate(book.caches):
        pool.k.normal_(generator=torch.Generator().manual_seed(number))
        pool.v.normal_(generator=torch.Generator().manual_seed(10 + number))
    book.run(book.share("a", TEXT[:38]), book.share("b", OTHER[:19]))
    return book


@pytest.mark.parametrize("mistake", [*MISTAKES, "none"])
@pytest.mark.parametrize("chunk", [1, 9], ids=["decode", "chunk"])
def test_a_planted_mistake_is_caught(mistake: str, chunk: int) -> None:
    book = deepcopy(half_way())
    # decodes stand first and the request in question last, so that there is a token and a row before it
    batch = book.batch(book.share("b", OTHER[19:]), book.share("a", TEXT[38 : 38 + chunk]))
    if mistake != "none":
        batch = MISTAKES[mistake](batch)
    found = run_step(book.decoder, book.caches, batch)[1]
    difference = apart(found, plain_logits(book.decoder, TEXT[: 38 + chunk])[-1])
    assert difference <= ACCEPTED if mistake == "none" else difference > MISTAKEN


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_decoders_are_near_the_plain_model(dtype: torch.dtype) -> None:
    book = Book(small_decoder("llama GQA", dtype=dtype))
    tokens = prompt(25, seed=13)
    wanted = plain_logits(book.decoder, tokens)  # from the same 16-bit weights, in float32
    book.run(book.share("a", tokens[:20], samples=False))
    found = book.run(book.share("a", tokens[20:24]))[0].float()
    # some 20 roundings of values of this size in a row, two layers deep
    assert apart(found, wanted[23]) <= 20 * {torch.float16: 2**-11, torch.bfloat16: 2**-8}[dtype] * float(wanted.std())


def test_what_is_not_computed_here_is_refused() -> None:
    latent = LatentAttention(4, None, 32, 16, 16, 16)
    form = FORMS["llama GQA"]
    with pytest.raises(ValueError, match="latent attention"):
        random_decoder(
            form.__class__("x", "deepseek_v3", 32, 61, (Layer(latent, form.layers[0].ffn),), 64), device="cpu"
        )
    with pytest.raises(ValueError, match=r"^layers: is 3; llama has 2"):
        random_decoder(form, layers=3, device="cpu")
    with pytest.raises(ValueError, match=r"^dtype: is torch.float64"):
        random_decoder(form, dtype=torch.float64, device="cpu")


def test_batches_that_do_not_fit_are_refused() -> None:
    book = Book(small_decoder("llama GQA"))
    with pytest.raises(ValueError, match=r"^shares\[0\]: 17 tokens; its 1 pages of 16 hold fewer"):
        step_batch([Share([1], 16, [0], True)], PAGE_TOKENS, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"^shares\[0\]: 0 tokens after 3"):
        step_batch([Share([], 3, [0], True)], PAGE_TOKENS, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"^batch: a context of 257 tokens"):
        run_step(book.decoder, book.caches, book.batch(Share([1], 256, list(range(17)), True)))
