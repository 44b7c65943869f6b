"""Chats drawn from distributions: users who ask, read, think and ask again, each time with all that was said before."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from simkit.workloads.lengths import LengthSpec, drawn
from simkit.workloads.streams import streams
from simkit.workloads.workload import I64, Prefixes, Workload

MOST_TOKENS = 1 << 22
Number = TypeVar("Number", np.int64, np.float64)


class ChatSpec(BaseModel):
    """What a chat is. Turns are geometric, think times exponential, starts Poisson; lengths as specified."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "chats"
    sessions: int = Field(ge=1, le=10_000_000)
    sessions_per_s: float = Field(gt=0, le=1e6, allow_inf_nan=False)
    turns_mean: float = Field(default=3.5, ge=1, le=1e4, description="ShareGPT's conversations: 3.5")
    think_s_mean: float = Field(default=10.0, ge=0, le=1e6)
    system_tokens: int = Field(default=0, ge=0, le=MOST_TOKENS, description="a system prompt that all chats share")
    question: LengthSpec
    answer: LengthSpec
    context_limit: int = Field(default=MOST_TOKENS, ge=2, le=MOST_TOKENS, description="a chat ends before it is longer")
    block_tokens: int = Field(default=16, ge=1, le=1024, description="of the ids that name shared content")


def chats(spec: ChatSpec, seed: int = 0) -> Workload:
    """The chats of a spec: `session_id`, `turn` and `think_us` say how to replay them closed.

    The arrival times are those of an open replay in which answers take no time. A prompt is everything before it, so a
    turn's ids begin with those of the turn before, answers included.
    """
    starts, turns, thinks, questions, answers = streams(seed, 5)
    count = spec.sessions
    start_s = np.cumsum(starts.exponential(1 / spec.sessions_per_s, count))
    per_chat = turns.geometric(1 / spec.turns_mean, count).astype(np.int64)
    n = int(per_chat.sum())
    chat = np.repeat(np.arange(count), per_chat)
    turn = np.arange(n) - np.repeat(np.cumsum(per_chat) - per_chat, per_chat)
    think_s = np.where(turn == 0, 0.0, thinks.exponential(spec.think_s_mean, n) if spec.think_s_mean > 0 else 0.0)
    question = drawn(spec.question, questions.random(n)).astype(np.int64)
    answer = drawn(spec.answer, answers.random(n)).astype(np.int64)
    whole = _within(chat, question + answer) + spec.system_tokens  # tokens of a chat after each turn
    prompt = whole - answer
    wait_s = _within(chat, think_s)
    keep = whole <= spec.context_limit
    arrival_us = np.rint((start_s[chat] + wait_s) * 1e6).astype(np.int64)
    order = np.argsort(arrival_us, kind="stable")
    rows = order[keep[order]]
    return Workload(
        name=spec.name,
        arrival_us=arrival_us[rows],
        prompt_tokens=prompt[rows].astype(np.int32),
        output_tokens=answer[rows].astype(np.int32),
        session_id=tuple(f"chat-{i}" for i in chat[rows].tolist()),
        prefixes=_prefixes(spec, chat[rows], whole[rows]),
        source=f"chats {spec.name}, seed {seed}",
        extra={
            "turn": tuple(turn[rows].tolist()),
            "think_us": tuple(np.rint(think_s[rows] * 1e6).astype(np.int64).tolist()),
        },
    )


def _within(chat: I64, values: NDArray[Number]) -> NDArray[Number]:
    """Running sums that begin anew with each chat."""
    total = np.cumsum(values)
    first = np.flatnonzero(np.diff(chat, prepend=-1))
    before = np.where(first > 0, total[first - 1], 0)
    within: NDArray[Number] = total - np.repeat(before, np.diff(np.append(first, len(chat))))
    return within


def _prefixes(spec: ChatSpec, chat: I64, tokens: I64) -> Prefixes:
    """Ids of prompts and answers: the system prompt's blocks are everybody's, the others their chat's."""
    size = spec.block_tokens
    shared = spec.system_tokens // size
    blocks = (tokens // size).astype(np.int64)
    start = np.concatenate(([0], np.cumsum(blocks)))
    place = np.arange(start[-1]) - np.repeat(start[:-1], blocks)
    longest = int(blocks.max(initial=0)) + 1
    own = shared + np.repeat(chat, blocks) * longest + place
    return Prefixes(size, start, np.where(place < shared, place, own).astype(np.int64))
