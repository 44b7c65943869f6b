"""The `plan` section of a configuration: what may be deployed, how much is asked, its price, what must not break."""

from pydantic import BaseModel, ConfigDict, Field, field_validator

from simkit.cluster.routers import ROUTERS
from simkit.errors import suggestion
from simkit.plan.cost import Prices
from simkit.plan.demand import Demand
from simkit.plan.scenario import KNOWN, Stresses
from simkit.plan.space import SearchSpace


class PlanSettings(BaseModel):
    """Everything beside deployment, workload and SLO."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    search: SearchSpace = Field(default_factory=SearchSpace)
    demand: Demand = Field(default_factory=Demand)
    prices: Prices = Field(default_factory=Prices)
    robust: tuple[str, ...] = Field(default=(), description=f"scenarios that must hold too: {', '.join(KNOWN)}")
    stresses: Stresses = Field(default_factory=Stresses)
    router: str = Field(default="round_robin", description="of the fleet that is checked in the end")
    front: bool = Field(default=False, description="answer every kind, for the whole Pareto front")
    sure: float | None = Field(default=None, gt=0, le=1, description="keep the promise with this probability, say 0.9")
    step_time_spread: float | None = Field(
        default=None, ge=0, le=1, description="of ln(true / assumed step time); default by where the times come from"
    )
    replications: int = Field(default=20, ge=2, le=1000, description="behind each interval")

    @field_validator("robust")
    @classmethod
    def _scenarios_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in KNOWN:
                raise ValueError(f"{name!r} is not known; {suggestion(name, KNOWN)}")
        return names

    @field_validator("router")
    @classmethod
    def _router_is_known(cls, name: str) -> str:
        if name not in ROUTERS:
            raise ValueError(f"{name!r} is not known; {suggestion(name, ROUTERS)}")
        return name
