"""The held-out errors that docs/calibrate.md states, on the tables that aiconfigurator-core installs."""

from dataclasses import replace
from pathlib import Path
from time import perf_counter

import pytest

from simkit.calibrate.aic_import import import_aic
from simkit.calibrate.aic_source import installed
from simkit.calibrate.operator_errors import errors, held_out_predictions
from simkit.calibrate.operator_model import fit_operators
from simkit.calibrate.operator_profile import OperatorProfile
from simkit.calibrate.vidur_import import import_vidur

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not installed(), reason="aiconfigurator-core is not installed"),
]

# (table, region, part, the MAPE that the docs state, rounded up to a tenth of a point)
STATED = {
    "h200_sxm": [
        ("gemm", "shapes", "bf16", 0.037),
        ("gemm", "shapes", "fp8", 0.032),
        ("gemm", "token blocks of shapes", "bf16", 0.035),
        ("gemm", "token blocks of shapes", "fp8", 0.028),
        ("gemm", "shapes", "fp8_block", 0.034),
        ("gemm", "token blocks of shapes", "fp8_block", 0.035),
        ("attention_decode", "cells", "all", 0.036),
        ("attention_decode", "heads", "all", 0.024),
        ("mla_decode", "cells", "all", 0.027),
        ("mla_decode", "heads", "all", 0.018),
        ("mla_prefill", "cells", "all", 0.047),
        ("mla_prefill", "heads", "all", 0.038),
        ("attention_prefill", "cells", "all", 0.053),
        ("attention_prefill", "heads", "all", 0.059),
        ("moe", "models", "all", 0.109),
        ("moe", "configurations", "all", 0.053),
        ("moe", "token blocks", "all", 0.046),
    ],
    "h100_sxm": [
        ("gemm", "shapes", "bf16", 0.040),
        ("gemm", "shapes", "fp8", 0.036),
        ("gemm", "token blocks of shapes", "bf16", 0.039),
        ("gemm", "token blocks of shapes", "fp8", 0.032),
        ("gemm", "shapes", "fp8_block", 0.045),
        ("gemm", "token blocks of shapes", "fp8_block", 0.045),
        ("attention_decode", "cells", "all", 0.036),
        ("attention_decode", "heads", "all", 0.025),
        ("mla_decode", "cells", "all", 0.030),
        ("mla_decode", "heads", "all", 0.020),
        ("mla_prefill", "cells", "all", 0.040),
        ("mla_prefill", "heads", "all", 0.042),
        ("attention_prefill", "cells", "all", 0.055),
        ("attention_prefill", "heads", "all", 0.059),
        ("moe", "models", "all", 0.099),
        ("moe", "configurations", "all", 0.051),
        ("moe", "token blocks", "all", 0.041),
    ],
}


@pytest.fixture(scope="module", params=sorted(STATED))
def system(request: pytest.FixtureRequest) -> tuple[str, OperatorProfile]:
    profile = import_aic(request.param, "vllm")
    wanted = ("gemm", "attention_decode", "attention_prefill", "mla_decode", "mla_prefill", "moe")
    return request.param, replace(profile, tables={name: profile.tables[name] for name in wanted})


def test_held_out_errors_are_those_stated(system: tuple[str, OperatorProfile]) -> None:
    name, profile = system
    found = {
        (error.table, error.region, error.part): error.mape
        for predicted in held_out_predictions(profile)
        for error in errors(predicted)
    }
    for table, region, part, stated in STATED[name]:
        assert found[table, region, part] <= stated, (table, region, part)


def test_a_fit_takes_seconds(system: tuple[str, OperatorProfile]) -> None:
    began = perf_counter()
    fit_operators(system[1])
    assert perf_counter() - began < 5.0


@pytest.mark.parametrize(("device", "stated"), [("a100", 0.061), ("h100", 0.065)])
def test_shapes_of_vidur_are_as_wrong_as_stated(shared: Path, device: str, stated: float) -> None:
    profile = import_vidur(shared / "profiles" / "vidur" / device, device)
    gemms = replace(profile, tables={"gemm": profile.tables["gemm"]})
    whole = [errors(predicted)[0] for predicted in held_out_predictions(gemms) if predicted.region == "shapes"]
    assert [error.part for error in whole] == ["all"]
    assert whole[0].mape <= stated
