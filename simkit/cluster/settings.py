"""A cluster as a user describes it: the `cluster:` section of a configuration."""

from collections.abc import Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from simkit.cluster.admission import Admission
from simkit.cluster.autoscaling import Autoscaling
from simkit.cluster.client import Clients
from simkit.cluster.faults import Faults
from simkit.cluster.handover import Disaggregation
from simkit.cluster.resend import LostJobs
from simkit.cluster.sessions import Sessions
from simkit.cluster.startup import Startup
from simkit.cluster.tiers import Tier
from simkit.engine.deployment import Deployment

MOST_REPLICAS = 100_000


class Pool(BaseModel):
    """Equal replicas."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "default"
    replicas: int = Field(default=1, ge=0, le=MOST_REPLICAS)
    deployment: Deployment | None = Field(default=None, description="default the configuration's")
    data_parallel: int = Field(default=1, ge=1, le=1024, description="engines of a replica, each with its own KV cache")
    per_node: int = Field(
        default=8, ge=1, le=MOST_REPLICAS, description="engines on one machine; they go down together"
    )


class Cluster(BaseModel):
    """Replicas, how requests get to them, and what happens meanwhile."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    replicas: int = Field(default=1, ge=0, le=MOST_REPLICAS, description="of the configuration's deployment")
    pools: tuple[Pool, ...] = Field(default=(), description="in place of `replicas`, where they differ")
    router: str | Mapping[str, object] | None = Field(
        default=None,
        description="a name, or kind and settings; default round_robin or, where prefill is apart, the prefill replica "
        "with least to do",
    )
    admission: Admission = Field(default_factory=Admission)
    clients: Clients = Field(default_factory=Clients)
    lost_jobs: LostJobs = Field(default_factory=LostJobs)
    sessions: Sessions = Field(default_factory=lambda: Sessions(replay="open"))
    faults: Faults = Field(default_factory=Faults)
    startup: Startup = Field(default_factory=Startup)
    autoscaling: tuple[Autoscaling, ...] = Field(default=(), description="one for each pool that scales")
    disaggregation: Disaggregation | None = Field(default=None, description="prefill and decode on pools of their own")
    tiers: tuple[Tier, ...] = Field(default=(), description="KV behind the device caches, the fastest first")
    processes: int = Field(default=1, ge=1, le=1024, description="for routing that does not look at the load")

    @model_validator(mode="after")
    def _pools_fit(self) -> Self:
        names = [pool.name for pool in self.all_pools()]
        if len(set(names)) < len(names):
            raise ValueError("two pools have the same name; name them apart")
        if self.pools and self.replicas != 1:
            raise ValueError("give replicas or pools, not both")
        for scaling in self.autoscaling:
            if scaling.pool not in names:
                raise ValueError(f"autoscaling names pool {scaling.pool!r}; there are {', '.join(names)}")
        if sum(pool.replicas for pool in self.all_pools()) == 0 and not self.autoscaling:
            raise ValueError("no replicas, and nothing that starts one; give at least one")
        for what, given in (
            ("autoscaling of pool", [scaling.pool for scaling in self.autoscaling]),
            ("tier", [tier.name for tier in self.tiers]),
        ):
            twice = [name for name in given if given.count(name) > 1]
            if twice:
                raise ValueError(f"{what} {twice[0]!r} is there twice; give it once")
        self._check_pools_apart()
        if not (self.disaggregation or self.tiers) and self.faults.breaks_links:
            raise ValueError("faults: link_down is of links that KV goes over; it needs disaggregation or tiers")
        return self

    def _check_pools_apart(self) -> None:
        """Raise ValueError for prefill or decode without a replica, and without anything that starts one."""
        if self.disaggregation is None:
            return
        scaled = {scaling.pool for scaling in self.autoscaling if scaling.most > 0}
        there = {pool.name for pool in self.all_pools() if pool.replicas > 0} | scaled
        for side in ("prefill", "decode"):
            names = getattr(self.disaggregation, side)
            if not there & set(names):
                raise ValueError(
                    f"disaggregation.{side}: {', '.join(names)} has no replicas, and nothing that starts one; give at "
                    "least one"
                )

    def all_pools(self) -> tuple[Pool, ...]:
        """The pools, the only one made of `replicas` where none are named."""
        return self.pools or (Pool(replicas=self.replicas),)

    @property
    def chosen_router(self) -> str | Mapping[str, object]:
        """The router, where prefill is not apart."""
        return "round_robin" if self.router is None else self.router

    @property
    def on_the_clock(self) -> bool:
        """Whether it has anything that happens between arrivals and answers."""
        plain = Cluster()
        parts = ("admission", "clients", "sessions", "faults")
        return bool(self.autoscaling) or any(getattr(self, part) != getattr(plain, part) for part in parts)
