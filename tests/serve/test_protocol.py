"""What goes over the wire; the golden transcripts are written by hand, from what vLLM 0.32 sends."""

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import pytest

from simkit.engine.deployment import Deployment, ReplicaSpec, resolve
from simkit.engine.settings import EngineSettings
from simkit.models.steptables import constant_tables

Running = Callable[..., AbstractAsyncContextManager[tuple[object, object]]]
FAST = {"time_scale": 20}

GOLDEN_CHAT = """\
data: {"id":"chatcmpl-me","object":"chat.completion.chunk","created":0,"model":"llama-3.1-8b","choices":[{"index":0,\
"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}

data: {"id":"chatcmpl-me","object":"chat.completion.chunk","created":0,"model":"llama-3.1-8b","choices":[{"index":0,\
"delta":{"content":" WORD"},"logprobs":null,"finish_reason":null}]}

data: {"id":"chatcmpl-me","object":"chat.completion.chunk","created":0,"model":"llama-3.1-8b","choices":[{"index":0,\
"delta":{"content":" WORD"},"logprobs":null,"finish_reason":null}]}

data: {"id":"chatcmpl-me","object":"chat.completion.chunk","created":0,"model":"llama-3.1-8b","choices":[{"index":0,\
"delta":{"content":" WORD"},"logprobs":null,"finish_reason":"length"}]}

data: {"id":"chatcmpl-me","object":"chat.completion.chunk","created":0,"model":"llama-3.1-8b","choices":[],\
"usage":{"prompt_tokens":15,"total_tokens":18,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":0}}}

data: [DONE]

"""

GOLDEN_COMPLETION = """\
data: {"id":"cmpl-me","object":"text_completion","created":0,"model":"llama-3.1-8b","choices":[{"index":0,\
"text":" WORD","logprobs":null,"finish_reason":null}]}

data: {"id":"cmpl-me","object":"text_completion","created":0,"model":"llama-3.1-8b","choices":[{"index":0,\
"text":" WORD","logprobs":null,"finish_reason":"length"}]}

data: [DONE]

"""


def plain(text: str) -> str:
    """A transcript without what differs from run to run: the date, and which words were said."""
    lines = []
    for line in text.split("\n"):
        if line.startswith("data: {"):
            chunk = json.loads(line.removeprefix("data: "))
            assert chunk["created"] > 1_700_000_000
            chunk["created"] = 0
            for choice in chunk["choices"]:
                said = choice.get("delta", choice)
                key = "text" if "text" in said else "content"
                if said[key]:
                    assert said[key].startswith(" ")
                    assert said[key].count(" ") == 1
                    said[key] = " WORD"
            line = "data: " + json.dumps(chunk, separators=(",", ":"))
        lines.append(line)
    return "\n".join(lines)


def chunks_of(text: str) -> list[dict[str, object]]:
    events = [line.removeprefix("data: ") for line in text.split("\n") if line]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def test_golden_chat_stream(running: Running) -> None:
    async def scenario() -> str:
        async with running(**FAST) as (client, _):
            response = await client.post(
                "/v1/chat/completions",
                headers={"x-request-id": "me", "x-session-affinity": "s"},
                json={
                    "model": "llama-3.1-8b",
                    "messages": [{"role": "user", "content": [{"type": "text", "text": "say three words,"}]}],
                    "max_completion_tokens": 3,
                    "stream": True,
                    "stream_options": {"include_usage": True},
                    "repetition_penalty": 1.1,
                    "logprobs": None,
                    "never heard of": {"it": 1},
                },
            )
            assert response.headers["content-type"].startswith("text/event-stream")
            return str(response.text)

    # 15: begin; start, user, end, newlines; say, three, words and a comma; end of turn; start, assistant (in two
    # parts, it is long), end, newlines
    assert plain(asyncio.run(scenario())) == GOLDEN_CHAT


def test_golden_completion_stream(running: Running) -> None:
    async def scenario() -> str:
        async with running(**FAST) as (client, _):
            body = {"prompt": [1, 2, 3], "max_tokens": 2, "stream": True, "ignore_eos": True}
            response = await client.post("/v1/completions", headers={"x-request-id": "me"}, json=body)
            return str(response.text)

    assert plain(asyncio.run(scenario())) == GOLDEN_COMPLETION


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [("the of", [2]), (["the", "a b c"], [1, 3]), ([5, 6, 7, 8], [4]), ([[5, 6], [7]], [2, 1])],
)
def test_prompts_of_every_form(running: Running, prompt: object, tokens: list[int]) -> None:
    async def scenario() -> tuple[dict[str, object], list[dict[str, object]]]:
        async with running(**FAST) as (client, _):
            body = {"prompt": prompt, "max_tokens": 3}
            whole = (await client.post("/v1/completions", json=body)).json()
            stream = await client.post("/v1/completions", json=body | {"stream": True})
            return whole, chunks_of(stream.text)

    whole, chunks = asyncio.run(scenario())
    assert whole["usage"]["prompt_tokens"] == sum(tokens)
    assert whole["usage"]["completion_tokens"] == 3 * len(tokens)
    assert [choice["finish_reason"] for choice in whole["choices"]] == ["length"] * len(tokens)
    for i, choice in enumerate(whole["choices"]):
        said = [c for chunk in chunks for c in chunk["choices"] if c["index"] == i]
        assert "".join(c["text"] for c in said) == choice["text"]
        assert [c["finish_reason"] for c in said] == [None, None, "length"]


def test_max_tokens_and_where_answers_end(running: Running) -> None:
    chat = {"messages": [{"role": "user", "content": "hello"}]}

    async def scenario() -> list[tuple[int, str]]:
        async with running(answer_tokens=7, **FAST) as (client, _):
            ends = []
            for path, body in (
                ("/v1/completions", {"prompt": "x", "max_tokens": 5}),
                ("/v1/completions", {"prompt": "x", "max_tokens": 30}),
                ("/v1/completions", {"prompt": "x", "max_tokens": 30, "ignore_eos": True}),
                ("/v1/completions", {"prompt": "x", "max_tokens": 30, "min_tokens": 11}),
                ("/v1/completions", {"prompt": "x", "ignore_eos": True}),
                ("/v1/chat/completions", chat | {"max_tokens": 4}),
                ("/v1/chat/completions", chat | {"max_tokens": 4, "max_completion_tokens": 6}),
                ("/v1/chat/completions", chat),
            ):
                answer = (await client.post(path, json=body)).json()
                ends.append((answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]))
            return ends

    expected = [(5, "length"), (7, "stop"), (30, "length"), (11, "stop"), (16, "length")]
    assert asyncio.run(scenario()) == [*expected, (4, "length"), (6, "length"), (7, "stop")]


def test_usage_in_every_chunk_and_bundled_tokens(running: Running) -> None:
    async def scenario() -> list[dict[str, object]]:
        async with running(**FAST) as (client, _):
            body = {
                "messages": [{"role": "user", "content": "hi"}],
                "max_tokens": 8,
                "stream": True,
                "stream_interval": 3,
                "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            }
            return chunks_of((await client.post("/v1/chat/completions", json=body)).text)

    chunks = asyncio.run(scenario())
    # the role, one token at once, then threes, then what is left, then the usage
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [0, 1, 4, 7, 8, 8]
    words = [choice["delta"]["content"].count(" ") for chunk in chunks for choice in chunk["choices"]]
    assert words == [0, 1, 3, 3, 1]


def test_a_chat_reuses_what_it_said(running: Running) -> None:
    """The second turn's prompt begins with the first turn and its answer; whole blocks of 16 are found."""

    async def scenario() -> tuple[int, int, int]:
        async with running(**FAST) as (client, _):
            turn = [{"role": "user", "content": "one two three four five six seven eight nine ten"}]
            first = (await client.post("/v1/chat/completions", json={"messages": turn, "max_tokens": 60})).json()
            turn += [first["choices"][0]["message"], {"role": "user", "content": "and then?"}]
            second = (await client.post("/v1/chat/completions", json={"messages": turn, "max_tokens": 4})).json()
            usage = second["usage"]
            return (
                first["usage"]["total_tokens"],
                usage["prompt_tokens_details"]["cached_tokens"],
                usage["prompt_tokens"],
            )

    before, cached, prompt = asyncio.run(scenario())
    # the last token's KV is never computed
    assert cached == (before - 1) // 16 * 16
    assert prompt > before


def test_errors_are_as_openai_clients_expect(running: Running) -> None:
    async def scenario() -> list[tuple[int, str]]:
        async with running(max_body_bytes=10_000, **FAST) as (client, _):
            seen = []
            for path, content in (
                ("/v1/completions", b'{"prompt": "a", "max_tokens": 600}'),
                ("/v1/completions", b'{"prompt": "a", "max_tokens": 0}'),
                ("/v1/completions", b'{"prompt": ""}'),
                ("/v1/completions", b"{not json"),
                ("/v1/completions", b'{"max_tokens": 5}'),
                ("/v1/completions", b'{"prompt": "a", "n": 2}'),
                ("/v1/completions", b'{"prompt": "a", "max_tokens": 5, "min_tokens": 6}'),
                ("/v1/completions", b'{"prompt": "' + b"a" * 10_000 + b'"}'),
                ("/v1/completions", b'{"prompt": "a", "model": "gpt-7"}'),
                ("/v1/chat/completions", b'{"messages": []}'),
                ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": 5}]}'),
            ):
                response = await client.post(path, content=content)
                problem = response.json()["error"]
                assert problem["code"] == response.status_code
                assert "\n" not in problem["message"]
                seen.append((response.status_code, problem["message"]))
            return seen

    seen = asyncio.run(scenario())
    assert [code for code, _ in seen] == [400] * 8 + [404] + [400] * 2
    wanted = ["maximum context length is 512 tokens", "max_tokens=0", "no tokens", "body", "prompt: is missing", "n=2"]
    wanted += [
        "min_tokens=6: above max_tokens=5",
        "more than 10000 bytes",
        "`gpt-7` does not exist",
        "messages",
        "content",
    ]
    for (_, message), part in zip(seen, wanted, strict=True):
        assert part in message


def test_models_health_and_metrics(running: Running, spec: ReplicaSpec) -> None:
    async def scenario() -> tuple[dict[str, object], list[int], str]:
        async with running(model_name="mine", **FAST) as (client, _):
            for _ in range(2):
                await client.post("/v1/completions", json={"prompt": list(range(40)), "max_tokens": 5, "model": "mine"})
            models = (await client.get("/v1/models")).json()
            head, health = await client.head("/metrics"), await client.get("/health")
            assert head.text == ""
            return models, [head.status_code, health.status_code], (await client.get("/metrics")).text

    models, codes, text = asyncio.run(scenario())
    assert [card["id"] for card in models["data"]] == ["mine"]
    assert models["data"][0]["max_model_len"] == 512
    assert codes == [200, 200]
    from prometheus_client.parser import text_string_to_metric_families

    families = {family.name: family for family in text_string_to_metric_families(text)}
    value = {
        (sample.name, sample.labels.get("finished_reason")): sample.value
        for family in families.values()
        for sample in family.samples
        if "le" not in sample.labels
    }
    assert value["vllm:num_requests_running", None] == 0
    assert value["vllm:num_requests_waiting", None] == 0
    assert value["vllm:kv_cache_usage_perc", None] == 0
    assert value["vllm:prompt_tokens_total", None] == 80
    assert value["vllm:generation_tokens_total", None] == 10
    assert value["vllm:prefix_cache_queries_total", None] == 80
    assert value["vllm:prefix_cache_hits_total", None] == 32
    assert value["vllm:request_success_total", "length"] == 2
    assert value["vllm:time_to_first_token_seconds_count", None] == 2
    assert value["vllm:inter_token_latency_seconds_count", None] == 8
    # every step takes 20 ms
    assert value["vllm:inter_token_latency_seconds_sum", None] == pytest.approx(8 * 0.02)
    assert value["vllm:request_decode_time_seconds_sum", None] == pytest.approx(8 * 0.02)
    assert value["vllm:e2e_request_latency_seconds_count", None] == 2
    assert value["sim:pacing_lateness_seconds_count", None] >= 10
    assert not any(name.endswith("_created") for name, _ in value)
    buckets = [s.labels["le"] for s in families["vllm:time_to_first_token_seconds"].samples if "le" in s.labels]
    assert buckets[:4] == ["0.001", "0.005", "0.01", "0.02"]
    assert buckets[-2:] == ["2560.0", "+Inf"]
    assert families["vllm:num_requests_running"].samples[0].labels == {"model_name": "mine", "engine": "0"}


def test_every_accepted_draft_counts_as_a_token(running: Running) -> None:
    """All of 3 drafts accepted: after the first token four a step, so 13 tokens are 1 + 3 x 4, with three gaps."""
    engine = EngineSettings(
        max_model_len=512, max_num_seqs=8, max_num_batched_tokens=64, num_gpu_blocks_override=64,
        async_scheduling=False, speculative_tokens=3, acceptance=1.0,
    )  # fmt: skip
    drafting = replace(
        resolve(Deployment(model="llama-3.1-8b", device="h100", engine=engine)),
        tables=constant_tables(64, 8, step_ns=20_000_000),
    )

    async def scenario() -> tuple[int, str]:
        async with running(spec=drafting) as (client, _):
            body = {"prompt": list(range(20)), "max_tokens": 13}
            told = (await client.post("/v1/completions", json=body)).json()["usage"]["completion_tokens"]
            return told, (await client.get("/metrics")).text

    told, text = asyncio.run(scenario())
    assert told == 13
    value = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    labels = '{engine="0",model_name="llama-3.1-8b"}'
    assert float(value[f"vllm:generation_tokens_total{labels}"]) == 13
    assert float(value[f"vllm:inter_token_latency_seconds_count{labels}"]) == 3
