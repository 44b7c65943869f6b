"""What clients ask: the bodies of the two endpoints, and how long the answers will be.

Fields that say nothing about timing (temperature, tools, logprobs ..) are ignored, and so are unknown ones: load
generators send many (vLLM ignores unknown fields too).
"""

from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simkit.errors import InputError
from simkit.invalid import first_error
from simkit.serve.tokens import chat_tokens, text_tokens

DEFAULT_ANSWER_TOKENS = 256  # where neither client nor server says when an answer ends
COMPLETION_MAX_TOKENS = 16  # OpenAI's and vLLM's default of /v1/completions

Count = Annotated[int, Field(ge=1, le=1 << 30)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 40)]


class StreamOptions(BaseModel):
    """`stream_options`."""

    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False
    continuous_usage_stats: bool = False


class Body(BaseModel):
    """What both endpoints take."""

    model_config = ConfigDict(extra="ignore")
    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    stream_interval: Count = 1  # tokens a chunk, after the first (vLLM 0.32)
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    min_tokens: Annotated[int, Field(ge=0, le=1 << 30)] = 0
    ignore_eos: bool | None = False
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    priority: Annotated[int, Field(ge=-(1 << 30), le=1 << 30)] = 0

    @property
    def include_usage(self) -> bool:
        """Whether a last chunk tells the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def usage_in_chunks(self) -> bool:
        """Whether every chunk does."""
        return self.include_usage and self.stream_options is not None and self.stream_options.continuous_usage_stats


class CompletionBody(Body):
    """POST /v1/completions."""

    prompt: str | list[TokenId] | list[str] | list[list[TokenId]]

    def prompts(self) -> list[list[int]]:
        """Token ids of each prompt."""
        if isinstance(self.prompt, str):
            return [text_tokens(self.prompt)]
        if not self.prompt:
            raise InputError("prompt: is empty; send at least one")
        if isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [text_tokens(each) if isinstance(each, str) else _ids(each) for each in self.prompt]

    def limit(self) -> int | None:
        """The most tokens an answer may have."""
        return self.max_tokens or COMPLETION_MAX_TOKENS


class TextPart(BaseModel):
    """One part of a message; parts that are not text count as nothing."""

    model_config = ConfigDict(extra="ignore")
    type: str
    text: str = ""


class Message(BaseModel):
    """One message."""

    model_config = ConfigDict(extra="ignore")
    role: str
    content: str | list[TextPart] | None = None

    def text(self) -> str:
        """Its text, whichever way it came."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class ChatBody(Body):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]

    def prompts(self) -> list[list[int]]:
        """Token ids of the conversation."""
        return [chat_tokens([(message.role, message.text()) for message in self.messages])]

    def limit(self) -> int | None:
        """The most tokens the answer may have; None: what the context has room for."""
        return self.max_completion_tokens or self.max_tokens


class Length(NamedTuple):
    """How long an answer will be."""

    output: int  # tokens it will have
    max_tokens: int  # the most it may have; if `output` is less, it stops by itself


def read_body(kind: type[CompletionBody] | type[ChatBody], data: bytes) -> CompletionBody | ChatBody:
    """A body from JSON; InputError in one line."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise InputError(first_error(error, "body", [])) from None


def answer_length(
    body: CompletionBody | ChatBody, prompt: int, max_model_len: int, answer_tokens: int | None
) -> Length:
    """How long the answer to a prompt of `prompt` tokens will be.

    `answer_tokens` is when the server's answers stop by themselves, if they do; `ignore_eos` and `min_tokens` overrule
    it. Raises InputError, as vLLM answers 400, where prompt and limit do not fit the context.
    """
    if prompt < 1:
        raise InputError("prompt: has no tokens; send at least one")
    room = max_model_len - prompt
    asked = body.limit()
    limit = room if asked is None else asked
    if room < 1 or limit > room:
        wanted = "the answer" if asked is None else f"{asked} of the answer"
        raise InputError(
            f"This model's maximum context length is {max_model_len} tokens, and the prompt has {prompt}: no room for "
            f"{wanted}; shorten the prompt or lower max_tokens"
        )
    if body.min_tokens > limit:
        raise InputError(f"min_tokens={body.min_tokens}: above max_tokens={limit}; lower it")
    natural = answer_tokens
    if natural is None and asked is None:
        natural = DEFAULT_ANSWER_TOKENS
    if natural is None or body.ignore_eos:
        return Length(limit, limit)
    return Length(min(limit, max(natural, body.min_tokens)), limit)


def _ids(tokens: list[int] | int) -> list[int]:
    return tokens if isinstance(tokens, list) else [tokens]
