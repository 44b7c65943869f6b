"""Prefill and decode apart, as a user says it: `1P2D`, or how many of each and their tensor parallelism."""

import re

from pydantic import BaseModel, ConfigDict, Field, model_validator

TOGETHER = "together"
MOST_OF_A_ROLE = 64
_SHORT = re.compile(r"([1-9][0-9]?)[pP]([1-9][0-9]?)[dD]")


class Split(BaseModel):
    """A group: so many replicas that compute prompts and so many that generate, behind one gateway."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prefill: int = Field(ge=1, le=MOST_OF_A_ROLE, description="replicas that compute prompts")
    decode: int = Field(ge=1, le=MOST_OF_A_ROLE, description="replicas that generate")
    prefill_tensor: int | None = Field(default=None, ge=1, le=64, description="default the search's `tensor`")
    decode_tensor: int | None = Field(default=None, ge=1, le=64, description="default the search's `tensor`")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, given: object) -> object:
        if not isinstance(given, str):
            return given
        found = _SHORT.fullmatch(given)
        if found is None:
            raise ValueError(
                f"{given!r} is no split; write {TOGETHER}, or 1P2D for one prefill and two decode replicas"
            )
        return {"prefill": int(found[1]), "decode": int(found[2])}

    @property
    def label(self) -> str:
        """As users write it, with the tensor parallelism of a role where it is its own."""
        own = [
            f"{role} tensor {tensor}"
            for role, tensor in (("prefill", self.prefill_tensor), ("decode", self.decode_tensor))
            if tensor is not None
        ]
        return f"{self.prefill}P{self.decode}D" + (f" ({', '.join(own)})" if own else "")
