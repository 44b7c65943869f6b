"""One HTTP request from its body to the end of its answer."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import numpy as np

from simkit.engine.state import I64
from simkit.serve.answer import Answer
from simkit.serve.bodies import ChatBody, CompletionBody, answer_length
from simkit.serve.engine import PacedEngine
from simkit.serve.messages import DONE, Dialect, error, event, usage
from simkit.serve.tokens import answer_words, content_ids, text_tokens


class EngineStoppedError(Exception):
    """The engine failed, or the server is being stopped: no answer will be completed."""

    def __init__(self) -> None:
        super().__init__("the engine has stopped; see the server's log")


@dataclass
class Exchange:
    """The answers to one body, one a prompt, and the words they will say."""

    body: CompletionBody | ChatBody
    dialect: Dialect
    answers: list[Answer]
    words: list[Iterator[str]]
    reasons: list[str]
    bell: asyncio.Event
    engine: PacedEngine

    def close(self) -> None:
        """Give up what is not finished: the client is gone, or has all."""
        for answer in self.answers:
            self.engine.cancel(answer)

    async def whole(self) -> dict[str, object]:
        """The response in one piece, once all of it is due."""
        try:
            async for _ in self._news():
                pass
            texts = ["".join(words) for words in self.words]
            return self.dialect.whole(texts, self.reasons, self.answers)
        finally:
            self.close()

    async def stream(self) -> AsyncIterator[bytes]:
        """The response as server-sent events, each token when it is due; closed early, it frees the engine."""
        sent = [0] * len(self.answers)
        try:
            async for due in self._news():
                out = [piece for i, upto in enumerate(due) for piece in self._chunks(i, sent, upto)]
                if out:
                    yield b"".join(out)
            if self.body.include_usage:
                yield event(self.dialect.closing_usage(self.answers))
            yield DONE
        except EngineStoppedError as stopped:  # as vLLM ends a stream that fails
            yield event(error(str(stopped), "InternalServerError", 500))
            yield DONE
        finally:
            self.close()

    async def _news(self) -> AsyncIterator[list[int]]:
        """How many tokens of each answer are due, whenever that changes, until all are."""
        while True:
            if any(answer.failed for answer in self.answers):
                raise EngineStoppedError
            yield [answer.delivered for answer in self.answers]
            if all(answer.finished for answer in self.answers):
                return
            await self.bell.wait()
            self.bell.clear()

    def _chunks(self, index: int, sent: list[int], upto: int) -> Iterator[bytes]:
        """The events of one answer's tokens past those sent; as many tokens a chunk as the client asked for."""
        total = self.answers[index].output_tokens
        while sent[index] < upto:
            begins = sent[index] == 0
            size = 1 if begins else min(self.body.stream_interval, total - sent[index])
            if sent[index] + size > upto:
                return
            if begins:
                yield from (self._event(chunk, 0) for chunk in self.dialect.first(index))
            text = "".join(next(self.words[index]) for _ in range(size))
            sent[index] += size
            reason = self.reasons[index] if sent[index] == total else None
            yield self._event(self.dialect.tokens(index, text, reason), sum(sent))

    def _event(self, chunk: dict[str, object], sent: int) -> bytes:
        if self.body.usage_in_chunks:
            chunk = chunk | {"usage": usage(self.answers, sent)}
        return event(chunk)


def begin(
    engine: PacedEngine, body: CompletionBody | ChatBody, dialect: Dialect, answer_tokens: int | None
) -> Exchange:
    """Hand a body's prompts to the engine; InputError, and nothing done, if one of them cannot be served."""
    limits = engine.limits
    prompts = body.prompts()
    lengths = [answer_length(body, len(prompt), limits.max_model_len, answer_tokens) for prompt in prompts]
    bell = asyncio.Event()
    answers = []
    for prompt, length in zip(prompts, lengths, strict=True):
        contents = np.zeros(0, dtype=np.int64)
        if limits.prefix_caching:
            contents = _contents(prompt, length.output, limits.block_size)
        answers.append(engine.submit(len(prompt), length.output, length.max_tokens, contents, bell, body.priority))
    return Exchange(
        body=body,
        dialect=dialect,
        answers=answers,
        words=[answer_words(prompt, length.output) for prompt, length in zip(prompts, lengths, strict=True)],
        reasons=["length" if length.output == length.max_tokens else "stop" for length in lengths],
        bell=bell,
        engine=engine,
    )


def _contents(prompt: list[int], output: int, block_size: int) -> I64:
    """Names of the blocks of prompt and answer: in the next turn of a chat the answer is part of the prompt."""
    answer = [token for word in answer_words(prompt, output) for token in text_tokens(word)]
    return content_ids([*prompt, *answer], block_size)
