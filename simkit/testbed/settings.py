"""The `testbed` section of a configuration: how the decoder is built and on what it runs."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

CaptureSize = Annotated[int, Field(ge=1, le=4096)]


class TestbedSettings(BaseModel):
    """What a measured run needs to know beside the deployment and the workload."""

    __test__ = False  # no test, whatever pytest thinks of the name

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: Literal["cpu", "cuda"] | None = Field(default=None, description="default cuda where there is one")
    layers: int | None = Field(default=None, ge=1, description="of the model's, for small machines; default all")
    threads: int | None = Field(default=None, ge=1, le=4096, description="CPU threads, bound to as many cores")
    dtype: str | None = Field(default=None, description="of weights and cache; default float32, on cuda bfloat16")
    clock: Literal["wall", "processor"] = Field(
        default="wall", description="processor: time that others take of a shared CPU does not count; one thread only"
    )
    seed: int = Field(default=0, ge=0, description="of weights and prompts")
    capture_sizes: tuple[CaptureSize, ...] | None = Field(
        default=None, max_length=512, description="decode batches with a CUDA graph of their own; default vLLM's"
    )
    draft_layers: int = Field(default=1, ge=1, description="of the draft of deployment.engine.speculative_tokens")
