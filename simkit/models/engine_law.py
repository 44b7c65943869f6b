"""What a real engine adds to its kernels: the constants fitted on measured runs, `laws/engine.yaml`.

Each has a physical meaning and a range it must lie in; none belongs to a model or to a run. How they were fitted, and
what each leave-one-out gives, is in docs/validate.md.
"""

from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simkit.errors import InputError
from simkit.invalid import first_error
from simkit.models.front_end import FrontEndLaw
from simkit.yaml_file import read_mapping

ENGINE_FILE = Path(__file__).parent / "laws" / "engine.yaml"


class EngineLaw(BaseModel):
    """Constants of vLLM V1 on servers of today."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    all_reduce_factor: float = Field(ge=0.3, le=2.0, description="collectives in the engine, relative to the tables")
    elementwise_us: float = Field(ge=0.3, le=5.0, description="one norm, rotary embedding, activation or cache write")
    sort_bytes_per_logit: float = Field(ge=16.0, le=3000.0, description="memory traffic of top-p and top-k sampling")
    step_us: float = Field(ge=0.0, le=2000.0, description="the device waits between two steps")
    chunk_layer_us: float = Field(ge=0.0, le=200.0, description="a layer of a step with a prompt in it: no full graph")
    front_end_ms: float = Field(ge=0.0, le=50.0, description="HTTP, tokenisation, hand-over, and the way back")
    front_end_token_us: float = Field(ge=0.0, le=50.0, description="the same, for each token of the prompt")
    old_host_factor: float = Field(ge=1.0, le=4.0, description="how much longer hosts of `old_host_devices` take")
    old_host_devices: tuple[str, ...] = ()

    def host_factor(self, device: str) -> float:
        """How much longer this device's host takes than a current one."""
        return self.old_host_factor if device in self.old_host_devices else 1.0

    def front_end(self, device: str) -> FrontEndLaw:
        """What a client waits for beside the engine's steps, before its first token."""
        host = self.host_factor(device)
        return FrontEndLaw(self.front_end_ms * 1e6 * host, self.front_end_token_us * 1e3 * host)


FITTED = tuple(name for name in EngineLaw.model_fields if name != "old_host_devices")
"""The constants that are fitted on measured runs; at most ten."""


@cache
def engine_law() -> EngineLaw:
    """The fitted constants that ship with this version."""
    try:
        return EngineLaw.model_validate(read_mapping(ENGINE_FILE))
    except ValidationError as error:
        raise InputError(first_error(error, str(ENGINE_FILE), EngineLaw.model_fields)) from error
