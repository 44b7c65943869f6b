"""How much traffic is asked: a rate, a number of users, or either growing by the month."""

import math
from datetime import date
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MONTHS_MOST = 120


class Users(BaseModel):
    """People instead of a rate; the busiest hour is what must be served."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int = Field(ge=1, le=10**10)
    requests_per_user_hour: float = Field(gt=0, le=1e6, allow_inf_nan=False, description="averaged over a day")
    peak_factor: float = Field(default=2.0, ge=1, le=100, description="busiest hour over the day's average")

    @property
    def rate_per_s(self) -> float:
        """Requests a second in the busiest hour."""
        return self.count * self.requests_per_user_hour * self.peak_factor / 3600


class Growth(BaseModel):
    """The rate month by month, from a start; by a constant factor, or as a list."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    per_month: float | None = Field(default=None, gt=-1, le=10, allow_inf_nan=False, description="0.08 for 8 %")
    factors: tuple[float, ...] | None = Field(
        default=None, min_length=1, max_length=MONTHS_MOST, description="of the rate, one a month from the start on"
    )
    start: date = Field(default=date(2026, 1, 1), description="the month that the rate is of")
    months: int = Field(
        default=12, ge=1, le=MONTHS_MOST, description="how long the plan must hold with --robust growth"
    )

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.per_month is None) == (self.factors is None):
            raise ValueError("give exactly one of per_month and factors")
        if self.factors is not None and min(self.factors) <= 0:
            raise ValueError("factors must be above 0")
        return self

    def factor(self, month: int) -> float:
        """Of the rate, `month` months from the start; a list's last value goes on."""
        if self.factors is not None:
            return self.factors[min(month, len(self.factors) - 1)]
        assert self.per_month is not None, "the validator asked for one of them"
        return float((1 + self.per_month) ** month)

    def peak(self) -> float:
        """The largest factor within `months`."""
        return max(self.factor(month) for month in range(self.months + 1))

    def runs_out(self, held: float) -> tuple[int, date] | None:
        """The first month whose factor is above `held`, and when it begins; None within ten years."""
        for month in range(MONTHS_MOST + 1):
            if self.factor(month) > held:
                return month, self.month(month)
        return None

    def month(self, number: int) -> date:
        """The first day of the month `number` months from the start."""
        years, months = divmod(self.start.month - 1 + number, 12)
        return date(self.start.year + years, months + 1, 1)


class Demand(BaseModel):
    """What must be served, by all replicas together; without rate and users, the workload's own rate."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rate_per_s: float | None = Field(default=None, gt=0, le=1e9, allow_inf_nan=False)
    users: Users | None = None
    growth: Growth | None = None

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.rate_per_s is not None and self.users is not None:
            raise ValueError("give rate_per_s or users, not both")
        return self

    def rate(self, own_rate_per_s: float) -> float:
        """Requests a second today, `own_rate_per_s` being the workload's; NaN if nothing says it."""
        if self.rate_per_s is not None:
            return self.rate_per_s
        return self.users.rate_per_s if self.users is not None else own_rate_per_s

    def users_at(self, rate_per_s: float) -> int | None:
        """How many users a rate serves in the busiest hour; None where the demand is not in users."""
        if self.users is None:
            return None
        return math.floor(rate_per_s / self.users.rate_per_s * self.users.count)
