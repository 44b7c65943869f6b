"""What becomes of the requests of a replica that is gone."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class LostJobs(BaseModel):
    """fail: their clients see an error; retry: the gateway sends them on, from the first token; resume: with their
    tokens so far, which the next replica computes as a longer prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: Literal["fail", "retry", "resume"] = "retry"
    most: int = Field(default=3, ge=0, le=1000, description="times that the gateway sends a request on")
