"""Bills, demands and intervals of shares against hand-worked figures."""

import math
from datetime import date

import pytest

from simkit.plan.cost import Prices, Use, ledger
from simkit.plan.demand import Demand, Growth, Users

USE = Use(
    gpus=4,
    prefill_share=0.3,
    decode_share=0.45,
    requests_per_s=10.0,
    input_tokens_per_s=12_000.0,
    output_tokens_per_s=2_000.0,
)


@pytest.mark.parametrize("tariff", [0.0, 0.2])
def test_ledgers_sum_to_their_totals(tariff: float) -> None:
    bill = ledger(USE, 3.0, 700.0, None, Prices(usd_per_kwh=tariff))
    assert sum(bill.usd_per_hour.values()) == pytest.approx(bill.total_usd_per_hour, rel=1e-12)
    assert sum(bill.watts.values()) == pytest.approx(bill.total_watts, rel=1e-12)
    tokens = 3600 * (
        USE.input_tokens_per_s * bill.usd_per_million_input + USE.output_tokens_per_s * bill.usd_per_million_output
    )
    assert tokens / 1e6 == pytest.approx(bill.total_usd_per_hour, rel=1e-12)
    assert bill.usd_per_request * USE.requests_per_s * 3600 == pytest.approx(bill.total_usd_per_hour, rel=1e-12)
    assert bill.joules_per_token * 14_000 == pytest.approx(bill.total_watts, rel=1e-12)
    assert bill.usd_per_hour["electricity"] == pytest.approx(tariff * bill.total_watts / 1000)


def test_a_bill_by_hand() -> None:
    """4 GPUs at 3 USD/h; 100 W idle, 600 W in prefill, 400 W in decode, 30, 45 and 25 % of the time, PUE 1.5."""
    prices = Prices(pue=1.5, carbon_g_per_kwh=500, prefill_power=1.0, decode_power=2 / 3)
    bill = ledger(USE, 3.0, 600.0, 100.0, prices)
    assert bill.total_usd_per_hour == pytest.approx(12.0)
    assert bill.usd_per_month == pytest.approx(8760.0)
    assert bill.total_watts == pytest.approx(4 * (0.3 * 600 + 0.45 * 400 + 0.25 * 100) * 1.5)
    # 12 USD/h: 0.3 / 0.75 of it for 43.2 million input tokens, the rest for 7.2 million output tokens
    assert bill.usd_per_million_input == pytest.approx(4.8 / 43.2)
    assert bill.usd_per_million_output == pytest.approx(7.2 / 7.2)
    assert bill.carbon_kg_per_hour == pytest.approx(2.31 * 0.5)


def test_an_idle_fleet_has_a_bill_and_no_price_a_token() -> None:
    bill = ledger(Use(2, 0.0, 0.0, 0.0, 0.0, 0.0), 1.0, 500.0, 50.0, Prices(pue=1.0))
    assert bill.total_usd_per_hour == 2.0
    assert bill.total_watts == 100.0
    assert math.isnan(bill.usd_per_million_output)


def test_users_and_growth_by_hand() -> None:
    users = Users(count=3600, requests_per_user_hour=10, peak_factor=2.0)
    demand = Demand(users=users, growth=Growth(per_month=0.1, start=date(2026, 11, 1)))
    assert demand.rate(5.0) == 20.0
    assert demand.users_at(30.0) == 5400
    assert demand.growth is not None
    # 1.1^4 = 1.4641 < 1.5 < 1.1^5
    assert demand.growth.runs_out(1.5) == (5, date(2027, 4, 1))
    assert demand.growth.runs_out(0.9) == (0, date(2026, 11, 1))
    assert Growth(per_month=0.0).runs_out(1.0) is None
    season = Growth(factors=(1.0, 1.4, 0.8), months=2)
    assert season.peak() == 1.4
    assert season.runs_out(1.2) == (1, date(2026, 2, 1))
    assert Demand().rate(7.0) == 7.0
