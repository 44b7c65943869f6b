"""What a deployment costs and draws, booked so that the parts sum to the whole: money, energy, carbon."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

HOURS_PER_MONTH = 730.0


class Prices(BaseModel):
    """What is not a property of the device. Power figures are shares of a GPU's limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # a rented GPU's price holds its electricity; owners give their tariff and the GPU's cost of ownership as its price
    usd_per_kwh: float = Field(default=0.0, ge=0, le=100, allow_inf_nan=False, description="0: in the GPU's price")
    # average of large data centres (Uptime Institute Global Data Center Survey 2024: 1.56; hyperscalers 1.1 to 1.2)
    pue: float = Field(default=1.2, ge=1, le=5, allow_inf_nan=False, description="site power over IT power")
    # world average of electricity in 2023 (Ember, Global Electricity Review 2024: 480 g/kWh)
    carbon_g_per_kwh: float = Field(default=480.0, ge=0, le=5000, allow_inf_nan=False)
    # assumed; H100 boards report 70 to 120 W of 700 W when idle
    idle_power: float = Field(default=0.14, ge=0, le=1, allow_inf_nan=False)
    # prompt phases draw near the limit, token phases markedly less (Patel et al., Splitwise, ISCA 2024, figure 9;
    # POLCA, ASPLOS 2024); the two shares are read off roughly and assumed for every device
    prefill_power: float = Field(default=1.0, ge=0, le=1.5, allow_inf_nan=False)
    decode_power: float = Field(default=0.65, ge=0, le=1.5, allow_inf_nan=False)


@dataclass(frozen=True)
class Use:
    """What a fleet does on the average; device time is split into prefill, decode and idle, shares that sum to 1."""

    gpus: int
    prefill_share: float
    decode_share: float
    requests_per_s: float
    input_tokens_per_s: float
    output_tokens_per_s: float

    @property
    def idle_share(self) -> float:
        """No step under way."""
        return max(0.0, 1.0 - self.prefill_share - self.decode_share)


@dataclass(frozen=True)
class Ledger:
    """The hour's bill. Each list of lines sums to its total."""

    usd_per_hour: dict[str, float]  # prefill, decode, idle: the GPUs' price by what they do; electricity
    watts: dict[str, float]  # prefill, decode, idle, cooling and losses
    total_usd_per_hour: float
    total_watts: float
    usd_per_month: float
    usd_per_request: float
    usd_per_million_input: float  # with the output's, times the tokens: the total
    usd_per_million_output: float
    joules_per_token: float  # of input and output tokens alike, at the site's meter
    joules_per_output_token: float
    carbon_g_per_request: float
    carbon_kg_per_hour: float


def ledger(use: Use, usd_per_gpu_hour: float, limit_w: float, idle_w: float | None, prices: Prices) -> Ledger:
    """The bill of a fleet; figures a token are NaN where no token flows.

    Idle time and electricity are charged to input and output in the proportion in which these keep the device busy.
    """
    idle_w = prices.idle_power * limit_w if idle_w is None else idle_w
    prefill_w = idle_w + max(0.0, prices.prefill_power * limit_w - idle_w)
    decode_w = idle_w + max(0.0, prices.decode_power * limit_w - idle_w)
    watts = {
        "prefill": use.gpus * use.prefill_share * prefill_w,
        "decode": use.gpus * use.decode_share * decode_w,
        "idle": use.gpus * use.idle_share * idle_w,
    }
    watts["cooling and losses"] = (prices.pue - 1) * sum(watts.values())
    total_w = sum(watts.values())
    price = use.gpus * usd_per_gpu_hour
    shares = {"prefill": use.prefill_share, "decode": use.decode_share}
    usd = {name: price * share for name, share in shares.items()}
    usd["idle"] = price - usd["prefill"] - usd["decode"]
    usd["electricity"] = total_w / 1000 * prices.usd_per_kwh
    total = price + usd["electricity"]
    busy = use.prefill_share + use.decode_share
    input_part = use.prefill_share / busy if busy > 0 else 0.5
    tokens = use.input_tokens_per_s + use.output_tokens_per_s
    return Ledger(
        usd_per_hour=usd,
        watts=watts,
        total_usd_per_hour=total,
        total_watts=total_w,
        usd_per_month=total * HOURS_PER_MONTH,
        usd_per_request=_per(total / 3600, use.requests_per_s),
        usd_per_million_input=1e6 * _per(total * input_part / 3600, use.input_tokens_per_s),
        usd_per_million_output=1e6 * _per(total * (1 - input_part) / 3600, use.output_tokens_per_s),
        joules_per_token=_per(total_w, tokens),
        joules_per_output_token=_per(total_w, use.output_tokens_per_s),
        carbon_g_per_request=_per(total_w / 3.6e6 * prices.carbon_g_per_kwh, use.requests_per_s),
        carbon_kg_per_hour=total_w / 1000 * prices.carbon_g_per_kwh / 1000,
    )


def _per(amount: float, flow: float) -> float:
    return amount / flow if flow > 0 else float("nan")
