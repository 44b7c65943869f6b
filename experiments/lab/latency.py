"""Latency against prompt length and against generated length, prefill and decode apart."""

import numpy as np
from figure import Line, draw
from probe import decode_step, expected_s, fitted_model, lab_bench, measured_s, prefill_step

PROMPTS = (16, 32, 64, 128, 256, 512, 1024)
CONTEXTS = (16, 64, 128, 256, 512, 1024, 2000)


def run(device: str, clock: str, out: str) -> dict[str, object]:
    """Time prefills and decodes, add decodes up to answers, draw both."""
    bench = lab_bench(device, clock)
    model = fitted_model(bench, 1024)
    prefill = [prefill_step(bench, tokens) for tokens in PROMPTS]
    decode = [decode_step(bench, 1, context) for context in CONTEXTS]
    prefill_s = [measured_s(bench, step) for step in prefill]
    decode_s = [measured_s(bench, step) for step in decode]
    told_prefill = [expected_s(model, step) for step in prefill]
    told_decode = [expected_s(model, step) for step in decode]
    draw(
        f"{out}/latency_prompt.svg",
        "Prefill: time against prompt length",
        "prompt tokens",
        "s",
        [Line("measured", PROMPTS, prefill_s), Line("predicted", PROMPTS, told_prefill, predicted=True)],
    )
    draw(
        f"{out}/latency_decode.svg",
        "Decode: time of one token against context",
        "tokens of context",
        "s",
        [Line("measured", CONTEXTS, decode_s), Line("predicted", CONTEXTS, told_decode, predicted=True)],
        from_zero=True,
    )
    answers = np.array([1, 16, 64, 128, 256, 512])
    whole = {tokens: answer_s(128, tokens, prefill_s[3], decode_s) for tokens in answers.tolist()}
    told = {tokens: answer_s(128, tokens, told_prefill[3], told_decode) for tokens in answers.tolist()}
    draw(
        f"{out}/latency_generated.svg",
        "A request of 128 prompt tokens: time against generated length",
        "generated tokens",
        "s",
        [
            Line("measured steps, added up", tuple(whole), list(whole.values())),
            Line("predicted", tuple(told), list(told.values()), predicted=True),
        ],
    )
    return {
        "device": bench.executor.identity.device,
        "prompt_tokens": PROMPTS,
        "prefill_s": prefill_s,
        "predicted_prefill_s": told_prefill,
        "context_tokens": CONTEXTS,
        "decode_s": decode_s,
        "predicted_decode_s": told_decode,
        "a prompt token, s": (prefill_s[-1] - prefill_s[3]) / (PROMPTS[-1] - PROMPTS[3]),
        "a generated token, s": decode_s[2],
        "generated_tokens": tuple(whole),
        "answer_s": list(whole.values()),
        "predicted_answer_s": list(told.values()),
    }


def answer_s(prompt: int, generated: int, prefill_s: float, decode_s: list[float]) -> float:
    """Prefill, which gives the first token, and a decode for each other one, at the context it has by then."""
    contexts = np.arange(prompt + 1, prompt + generated)
    return prefill_s + float(np.interp(contexts, CONTEXTS, decode_s).sum())
