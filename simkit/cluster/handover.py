"""Prefill and decode on separate replicas: what a user says of it, and what is told of it afterwards."""

from dataclasses import dataclass
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from simkit.cluster.topology import LinkSpec, SharedBy


class Disaggregation(BaseModel):
    """Replicas of some pools compute prompts, those of others generate; KV goes over links from one to the other.

    As vLLM's connectors do it: a prefill replica computes the prompt and keeps its KV until it has been fetched; the
    decode replica holds blocks for it before it comes, computes the last tokens of the prompt and puts out every token,
    the first too. So TTFT contains the transfer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prefill: tuple[str, ...] = Field(default=("prefill",), min_length=1, description="names of the pools")
    decode: tuple[str, ...] = Field(default=("decode",), min_length=1)
    link: LinkSpec = LinkSpec(kind="infiniband-ndr")
    shared_by: SharedBy = Field(default="sender", description="which transfers meet on one link")
    layerwise: bool = Field(
        default=False,
        description="KV of a layer leaves once computed; decode blocks are held from before prefill",
    )
    local_below_tokens: int = Field(
        default=0, ge=0, description="a prompt with fewer tokens to compute is prefilled by its decode replica"
    )
    local_when_queued: int | None = Field(
        default=None, ge=0, description="so is any, while more than so many requests wait for a prefill replica"
    )

    @model_validator(mode="after")
    def _apart(self) -> Self:
        both = set(self.prefill) & set(self.decode)
        if both:
            raise ValueError(f"pool {min(both)!r} is in both prefill and decode; name it in one")
        return self


@dataclass(frozen=True)
class HandoverTotals:
    """What went over the links."""

    handed_over: int  # requests
    local: int  # requests that their decode replica prefilled
    bytes_moved: int  # by the links' count
    bytes_owed: int  # by the requests': blocks of full prompt tokens that the decode replica had not
    bytes_given_up: int  # of these, what was not moved because an end, the link or the client was lost
    taken_up: int  # transfers that began anew, to another decode replica, when theirs was lost
    link_busy_ns: int  # added up over links
    links: int  # that were used
    most_kept_blocks: int  # of one prefill replica at a time, computed and not fetched
