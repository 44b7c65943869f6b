"""Prompts that go on from earlier ones, as chats do: block ids whose sharing has a stated shape."""

from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from simkit.workloads.lengths import correlated
from simkit.workloads.prefix_groups import group_prefixes
from simkit.workloads.quantiles import QuantileTable
from simkit.workloads.table import ranges
from simkit.workloads.workload import I32, I64, Prefixes


class Groups(BaseModel):
    """Requests in groups; each begins with its group's text, which comes before the drawn prompt length."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["groups"] = "groups"
    groups: int = Field(ge=1, le=10_000_000)
    prefix_tokens: int = Field(ge=1, le=2**30)
    zipf: float = Field(default=0.0, ge=0, le=10)  # popularity of the k-th group is k^-zipf; 0: all alike
    share: float = Field(default=1.0, gt=0, le=1)  # of requests that are in a group at all

    def apply(self, prompt: I32, rng: np.random.Generator) -> tuple[I32, Prefixes | None]:
        """Prompt lengths with the prefixes added, and the blocks shared."""
        weight = np.arange(1, self.groups + 1, dtype=np.float64) ** -self.zipf
        group = rng.choice(self.groups, size=len(prompt), p=weight / weight.sum())
        member = rng.random(len(prompt)) < self.share
        longer = np.minimum(prompt.astype(np.int64) + np.where(member, self.prefix_tokens, 0), 2**31 - 1)
        names = [str(g) if m else None for g, m in zip(group.tolist(), member.tolist(), strict=True)]
        shared = np.where(member, self.prefix_tokens, 0).astype(np.int64)
        return longer.astype(np.int32), group_prefixes(names, shared)


class Continued(BaseModel):
    """All prompts begin with `common_blocks` same blocks; a share of them also repeats more of one earlier prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["continued"] = "continued"
    block_tokens: int = Field(ge=1, le=1 << 20)
    common_blocks: int = Field(default=0, ge=0, le=1 << 20)
    share_by_length: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(min_length=1, max_length=1000)
    """Of requests that repeat more than the common blocks, for equal parts of the requests from short to long."""
    hit_share: QuantileTable  # of such a prompt's blocks: how many are repeated
    hit_rank_correlation: float = Field(default=0.0, ge=-1, le=1)  # Spearman's, of that share and the prompt's length
    age_requests: QuantileTable  # how many requests ago those blocks were last used

    def apply(self, prompt: I32, rng: np.random.Generator) -> tuple[I32, Prefixes | None]:
        """The prompt lengths as they are, and the blocks shared; ids of unfilled last blocks included."""
        n = len(prompt)
        blocks = -(-prompt.astype(np.int64) // self.block_tokens)
        length_share = (np.argsort(np.argsort(prompt, kind="stable"), kind="stable") + 0.5) / n
        by_length = np.array(self.share_by_length)
        repeats = rng.random(n) < by_length[(length_share * len(by_length)).astype(np.int64)]
        hit_share = self.hit_share.at(correlated(length_share, rng, self.hit_rank_correlation))
        wanted = np.rint(hit_share * blocks).astype(np.int64)
        age = np.maximum(np.rint(self.age_requests.at(rng.random(n))), 1).astype(np.int64)
        common = np.minimum(self.common_blocks, blocks)
        hits = np.where(repeats, np.maximum(wanted, common), common)
        row = np.arange(n)
        # an age from before the first request is wrapped to one after it, so that early requests repeat like all others
        near = np.where(age <= row, row - age, row - 1 - age % np.maximum(row, 1))
        parent = np.where(hits > common, _parents(blocks, hits, near), -1)
        hits = np.where(parent < 0, common, hits)
        return prompt, self._chained(blocks, hits, parent)

    def _chained(self, blocks: I64, hits: I64, parent: I64) -> Prefixes:
        start = np.concatenate(([0], np.cumsum(blocks)))
        ids = np.arange(int(start[-1]), dtype=np.int64) + self.common_blocks
        first = np.minimum(self.common_blocks, blocks)
        ids[ranges(start[:-1], first)] = ranges(np.zeros(len(blocks), np.int64), first)
        for i in np.flatnonzero(parent >= 0).tolist():  # in order: a parent's own blocks stand before they are copied
            at, source, count = int(start[i]), int(start[parent[i]]), int(hits[i])
            ids[at : at + count] = ids[source : source + count]
        return Prefixes(self.block_tokens, start, ids, "ceil")


SEARCH = 256  # requests looked at for one that is long enough


def _parents(blocks: I64, hits: I64, near: I64) -> I64:
    """[n] the request nearest to `near`, at or before it, that has the blocks to be repeated; -1: none has."""
    parent = np.full(len(blocks), -1, dtype=np.int64)
    for i in range(len(blocks)):
        last = int(near[i])
        if last < 0:
            continue
        past = blocks[max(0, last - SEARCH) : last + 1][::-1]
        enough = np.flatnonzero(past >= hits[i])
        if len(enough):
            parent[i] = last - int(enough[0])
    return parent


PrefixSpec = Annotated[Groups | Continued, Field(discriminator="kind")]

PREFIXES: dict[str, type[Groups] | type[Continued]] = {"groups": Groups, "continued": Continued}
