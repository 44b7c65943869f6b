"""How long a replica takes to be ready: a machine, the engine's start, the weights over a link."""

from pydantic import BaseModel, ConfigDict, Field

from simkit.engine.deployment import ReplicaSpec


class Startup(BaseModel):
    """Times of a cold start. Without settings a replica is there at once but for its weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provision_s: float = Field(default=0.0, ge=0, le=1e6, description="until there is a machine")
    # 1 to 3 minutes are common for CUDA graphs and compilation; no figure of ours yet, so it is the user's to give
    engine_s: float = Field(default=0.0, ge=0, le=1e6, description="start of the engine, once the weights are there")
    load_gb_per_s: float = Field(default=2.0, gt=0, le=1e4, description="weights of all GPUs of a replica, 1e9 bytes/s")

    def restart_ns(self, spec: ReplicaSpec) -> int:
        """Weights and engine, on a machine that is there."""
        weights_bytes = (spec.memory.weight_bytes + spec.memory.draft_bytes) * spec.deployment.layout.gpus
        return round((weights_bytes / (self.load_gb_per_s * 1e9) + self.engine_s) * 1e9)

    def cold_ns(self, spec: ReplicaSpec) -> int:
        """All of it."""
        return round(self.provision_s * 1e9) + self.restart_ns(spec)
