"""What goes back to clients: vLLM's JSON, whole or in server-sent events.

In a stream one chunk is one token, unless the client asked for more a chunk. The role of a chat answer comes with the
first token, not before: clients take it for the first token's time.
"""

import json
import time
from dataclasses import dataclass, field

from simkit.serve.answer import Answer

DONE = b"data: [DONE]\n\n"


def event(payload: dict[str, object]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(payload, separators=(",", ":")).encode() + b"\n\n"


def error(message: str, kind: str, code: int, param: str | None = None) -> dict[str, object]:
    """An error as vLLM's server writes it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def usage(answers: list[Answer], delivered: int | None = None) -> dict[str, object]:
    """Token counts of all of a request's answers, `delivered` tokens so far (None: all)."""
    prompt = sum(answer.prompt_tokens for answer in answers)
    generated = sum(answer.output_tokens for answer in answers) if delivered is None else delivered
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + generated,
        "completion_tokens": generated,
        "prompt_tokens_details": {"cached_tokens": sum(answer.cached_tokens for answer in answers)},
    }


@dataclass(frozen=True)
class Dialect:
    """How one HTTP request is answered: as a completion or as a chat."""

    chat: bool
    request_id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, texts: list[str], reasons: list[str], answers: list[Answer]) -> dict[str, object]:
        """The response that is not streamed."""
        choices = [self._whole_choice(i, text, reasons[i]) for i, text in enumerate(texts)]
        return self._envelope("chat.completion" if self.chat else "text_completion", choices) | {
            "usage": usage(answers)
        }

    def first(self, index: int) -> list[dict[str, object]]:
        """What goes right before an answer's first token."""
        return [self._chunk(index, {"role": "assistant", "content": ""}, None)] if self.chat else []

    def tokens(self, index: int, text: str, reason: str | None) -> dict[str, object]:
        """A chunk of tokens; `reason` with the last one."""
        if self.chat:
            return self._chunk(index, {"content": text}, reason)
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
        return self._envelope("text_completion", [choice])

    def closing_usage(self, answers: list[Answer]) -> dict[str, object]:
        """The last chunk, for clients that asked for it."""
        return self._envelope("chat.completion.chunk" if self.chat else "text_completion", []) | {
            "usage": usage(answers)
        }

    def _whole_choice(self, index: int, text: str, reason: str) -> dict[str, object]:
        said: dict[str, object] = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return {"index": index} | said | {"logprobs": None, "finish_reason": reason}

    def _chunk(self, index: int, delta: dict[str, object], reason: str | None) -> dict[str, object]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._envelope("chat.completion.chunk", [choice])

    def _envelope(self, kind: str, choices: list[dict[str, object]]) -> dict[str, object]:
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {
            "id": f"{prefix}-{self.request_id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }
