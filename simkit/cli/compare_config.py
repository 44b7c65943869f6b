"""The configuration of one contender of `simkit compare`."""

from pydantic import Field

from simkit.cli.config import Config


class CompareConfig(Config):
    """A configuration, and how many replicas of it at what price."""

    replicas: int = Field(default=1, ge=1, le=10_000)
    usd_per_hour: float | None = Field(default=None, ge=0, le=1e6, allow_inf_nan=False, description="of one GPU")
    step_time_spread: float | None = Field(default=None, ge=0, le=1)
