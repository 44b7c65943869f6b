"""How wrong a profile's fitted times are on measurements that the fit did not see, by operator and regime."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from simkit.calibrate.attention_kind import attention_shape
from simkit.calibrate.chip import Chip, chip_of
from simkit.calibrate.collective_model import fit_collectives
from simkit.calibrate.copy_model import fit_copies
from simkit.calibrate.decode_model import fit_decode
from simkit.calibrate.elementwise_model import fit_elementwise, fit_sampling
from simkit.calibrate.expert_kernels import SIZES, moe_shape
from simkit.calibrate.gemm_model import fit_gemm
from simkit.calibrate.host_model import fit_host
from simkit.calibrate.latent_attention import as_decode, as_prefill
from simkit.calibrate.mixed_model import alone_of, fit_mixed
from simkit.calibrate.moe_model import fit_moe
from simkit.calibrate.operator_profile import OperatorProfile
from simkit.calibrate.operator_sizes import context_array
from simkit.calibrate.prefill_model import fit_prefill
from simkit.calibrate.provenance import Tag, Times
from simkit.calibrate.regions import regions

if TYPE_CHECKING:
    import pandas as pd

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

BOOTSTRAPS = 500
FEWEST_GROUPS = 5  # shapes to draw from; of fewer, their sizes are drawn, and of few of these the rows
SEED = 20260


class Given(NamedTuple):
    """What a prediction may look at beside the rows of its own table."""

    chip: Chip
    tables: "dict[str, pd.DataFrame]"


class Predicted(NamedTuple):
    """Predictions of held-out rows."""

    table: str
    region: str
    rule: str
    rows: "pd.DataFrame"  # the held-out rows
    times: Times  # [rows]
    groups: tuple[I64, ...]  # [rows] each: which rows stand together, the coarsest first; the bootstrap draws these
    fitted_rows: int


class OperatorError(BaseModel):
    """Errors of one part of one region; shares of the measured time, 0.04 is 4 %."""

    model_config = ConfigDict(frozen=True)

    table: str
    region: str
    part: str = Field(description="dtype or regime; all for the whole region")
    rows: int
    mape: float = Field(description="mean absolute error")
    low: float = Field(description="of a 90 % interval of mape, whole shapes drawn again; NaN of a single row")
    high: float
    p50: float
    p90: float
    p95: float
    worst: float
    bias: float = Field(description="mean signed error")
    interpolated: float = Field(description="share of the rows whose prediction said so; the rest was extrapolated")


def held_out_predictions(profile: OperatorProfile) -> Iterator[Predicted]:
    """Each table fitted without some of its rows, and these predicted.

    A table that has rows kept as held-out is judged on these; any other one region after the other (`regions.py`).
    """
    given = Given(chip_of(profile.header), profile.tables)
    for name, frame in profile.tables.items():
        predict = _PREDICT.get(name)
        if predict is None or not all(_even(profile.tables.get(other)) for other in _NEEDS.get(name, ())):
            continue
        kept = (frame["use"] == "held_out").to_numpy()
        if kept.any():
            if not _even(frame):  # a measurement that ended early may have nothing else to fit
                continue
            found = [("held out", "points kept apart when they were measured", kept)]
        else:
            found = [(region.name, region.rule, region.held) for region in regions(name, frame)]
        for region, rule, held in found:
            rows = frame[held].reset_index(drop=True)
            times = predict(frame[~held], rows, given)
            alike = (_GROUP[name], [*_GROUP[name], _FINER[name]])
            groups = tuple(np.asarray(rows.groupby(columns).ngroup(), np.int64) for columns in alike)
            yield Predicted(name, region, rule, rows, times, groups, int((~held).sum()))


def _even(frame: "pd.DataFrame | None") -> bool:
    """Whether a table has a row to fit that is no ragged batch, on which ragged ones rest."""
    if frame is None:
        return False
    fitted = frame["use"] == "fit"
    return bool((fitted & (frame["contexts"] == "")).any() if "contexts" in frame else fitted.any())


def errors(predicted: Predicted) -> list[OperatorError]:
    """The errors of a region: whole, by dtype where there are several, by regime."""
    everything = np.ones(len(predicted.rows), np.bool_)
    parts = [("all", everything)]
    for column in ("dtype", "kv_dtype", "kind", "name"):
        if column in predicted.rows and predicted.rows[column].nunique() > 1:
            parts += [
                (str(word), (predicted.rows[column] == word).to_numpy())
                for word in sorted(predicted.rows[column].unique())
            ]
    parts += _regimes(predicted)
    return [_error(predicted, part, which) for part, which in parts if which.any()]


def _regimes(predicted: Predicted) -> list[tuple[str, NDArray[np.bool_]]]:
    """By what bounds the work: tokens of a step for linear layers, measured time for the others."""
    if predicted.table in ("gemm", "moe", "elementwise"):
        size, edges = predicted.rows["tokens"].to_numpy(np.float64), (33.0, 257.0)
        names = ("up to 32 tokens", "33 to 256 tokens", "over 256 tokens")
    else:
        size, edges = predicted.rows["median_ns"].to_numpy(np.float64), (30e3, 300e3)
        names = ("under 30 us", "30 to 300 us", "over 300 us")
    place = np.searchsorted(np.array(edges), size, side="right")
    return [(name, place == i) for i, name in enumerate(names)]


def _error(predicted: Predicted, part: str, which: NDArray[np.bool_]) -> OperatorError:
    ns = predicted.rows["median_ns"].to_numpy(np.float64)[which]
    off = predicted.times.ns[which] / ns - 1.0
    size = np.abs(off)
    low, high = _interval(size, _drawn(predicted.groups, which))
    return OperatorError(
        table=predicted.table,
        region=predicted.region,
        part=part,
        rows=len(off),
        mape=float(size.mean()),
        low=low,
        high=high,
        p50=float(np.median(size)),
        p90=float(np.percentile(size, 90)),
        p95=float(np.percentile(size, 95)),
        worst=float(size.max()),
        bias=float(off.mean()),
        interpolated=float((predicted.times.tag[which] <= 1).mean()),
    )


def _drawn(groups: tuple[I64, ...], which: NDArray[np.bool_]) -> I64:
    """What is drawn again of a part: the coarsest groups that it has enough of, else its rows one by one."""
    # a part may have one shape where its region has many: drawn as a whole, it would seem known exactly
    enough = (group[which] for group in groups if len(np.unique(group[which])) >= FEWEST_GROUPS)
    return next(enough, np.arange(int(which.sum()), dtype=np.int64))


def _interval(size: F64, group: I64) -> tuple[float, float]:
    """The 5th and 95th percentile of the mean when whole groups are drawn again: rows of a shape err alike.

    NaN of a single group, of which nothing can be said.
    """
    _, index = np.unique(group, return_inverse=True)
    if index.max() == 0:
        return float("nan"), float("nan")
    sums, counts = np.bincount(index, weights=size), np.bincount(index)
    rng = np.random.default_rng(SEED)
    drawn = rng.integers(0, len(sums), (BOOTSTRAPS, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return float(np.percentile(means, 5)), float(np.percentile(means, 95))


def _each(rows: "pd.DataFrame", columns: list[str], ns: "Callable[[pd.DataFrame], Times]") -> Times:
    """Predictions made for each group of equal shape."""
    out, tag = np.empty(len(rows)), np.empty(len(rows), np.int8)
    for index in rows.groupby(columns).indices.values():
        found = ns(rows.iloc[index])
        out[index], tag[index] = found.ns, found.tag
    return Times(out, tag)


def _gemm(fit: "pd.DataFrame", rows: "pd.DataFrame", given: Given) -> Times:
    model = fit_gemm(fit, given.chip.multiprocessors)

    def ns(part: "pd.DataFrame") -> Times:
        first = part.iloc[0]
        return model.ns(_column(part, "tokens"), int(first["n"]), int(first["k"]), str(first["dtype"]))

    return _each(rows, ["dtype", "n", "k"], ns)


def _decode(fit: "pd.DataFrame", rows: "pd.DataFrame", given: Given) -> Times:
    model = fit_decode(fit, given.chip)

    def ns(part: "pd.DataFrame") -> Times:
        shape = attention_shape(part.iloc[0])
        found = model.ns(_column(part, "batch"), _column(part, "context_tokens"), shape)
        for i, text in enumerate(part["contexts"]):
            if text:
                one = model.ragged_ns(context_array(text), shape)
                found.ns[i], found.tag[i] = one.ns, one.tag
        return found

    return _each(rows, _ATTENTION, ns)


def _prefill(fit: "pd.DataFrame", rows: "pd.DataFrame", given: Given) -> Times:
    model = fit_prefill(fit)

    def ns(part: "pd.DataFrame") -> Times:
        first = part.iloc[0]
        return model.ns(_column(part, "chunk"), _column(part, "past"), attention_shape(first), int(first["batch"]))

    return _each(rows, [*_ATTENTION, "batch"], ns)


def _mixed(fit: "pd.DataFrame", rows: "pd.DataFrame", given: Given) -> Times:
    alone = {name: frame[frame["use"] == "fit"] for name, frame in given.tables.items()}
    decode = fit_decode(alone["attention_decode"], given.chip).ns
    prefill = fit_prefill(alone["attention_prefill"]).ns
    model = fit_mixed(fit, decode, prefill)
    return _each(rows, _ATTENTION, lambda part: model.together(*alone_of(part, decode, prefill)))


def _moe(fit: "pd.DataFrame", rows: "pd.DataFrame", given: Given) -> Times:
    model = fit_moe(fit)

    def ns(part: "pd.DataFrame") -> Times:
        first = part.iloc[0]
        shape = moe_shape([int(first[name]) for name in SIZES], str(first["dtype"]))
        return model.ns(_column(part, "tokens"), shape, str(first["routing"]))

    return _each(rows, ["dtype", "routing", *SIZES], ns)


def _collective(fit: "pd.DataFrame", rows: "pd.DataFrame", given: Given) -> Times:
    model = fit_collectives(fit)

    def ns(part: "pd.DataFrame") -> Times:
        return model.ns(str(part["kind"].iloc[0]), _column(part, "bytes"), int(part["gpus"].iloc[0]))

    return _each(rows, ["kind", "gpus"], ns)


def _elementwise(fit: "pd.DataFrame", rows: "pd.DataFrame", given: Given) -> Times:
    model = fit_elementwise(fit)
    return _each(rows, ["name"], lambda part: model.ns(str(part["name"].iloc[0]), _column(part, "bytes")))


def _sampling(fit: "pd.DataFrame", rows: "pd.DataFrame", given: Given) -> Times:
    model = fit_sampling(fit)
    return _each(rows, ["vocab"], lambda part: model.ns(_column(part, "rows"), int(part["vocab"].iloc[0])))


def _host(fit: "pd.DataFrame", rows: "pd.DataFrame", given: Given) -> Times:
    model = fit_host(fit)
    ns, tag = np.full(len(rows), model.launch_ns or np.nan), np.full(len(rows), int(Tag.MEASURED), np.int8)
    steps, prepared = ((rows["part"] == part).to_numpy() for part in ("step", "prepare"))
    if steps.any():
        ns[steps], tag[steps] = model.ns(_column(rows, "requests")[steps])
    if prepared.any() and model.prepare is not None:
        ns[prepared] = model.prepare.ns(_column(rows, "requests"), _column(rows, "tokens"))[prepared]
        tag[prepared] = Tag.INTERPOLATED
    return Times(ns, tag)


def _copy(fit: "pd.DataFrame", rows: "pd.DataFrame", given: Given) -> Times:
    model = fit_copies(fit)
    return _each(rows, ["direction"], lambda part: model.ns(str(part["direction"].iloc[0]), _column(part, "bytes")))


def _column(part: "pd.DataFrame", name: str) -> F64:
    return part[name].to_numpy(np.float64)


_ATTENTION = ["kv_dtype", "heads", "kv_heads", "head_dim", "window"]
_PREDICT: "dict[str, Callable[[pd.DataFrame, pd.DataFrame, Given], Times]]" = {
    "gemm": _gemm,
    "attention_decode": _decode,
    "attention_prefill": _prefill,
    "mla_decode": lambda fit, rows, given: _decode(as_decode(fit), as_decode(rows), given),
    "mla_prefill": lambda fit, rows, given: _prefill(as_prefill(fit), as_prefill(rows), given),
    "attention_mixed": _mixed,
    "moe": _moe,
    "collective": _collective,
    "elementwise": _elementwise,
    "sampling": _sampling,
    "host": _host,
    "copy": _copy,
}
_NEEDS = {"attention_mixed": ("attention_decode", "attention_prefill")}
_GROUP = {
    "gemm": ["dtype", "n", "k"],
    "attention_decode": _ATTENTION,
    "attention_prefill": _ATTENTION,
    "mla_decode": ["kv_dtype", "heads"],
    "mla_prefill": ["kv_dtype", "heads"],
    "attention_mixed": _ATTENTION,
    "moe": ["dtype", *SIZES],
    "collective": ["kind", "gpus"],
    "elementwise": ["name"],
    "sampling": ["vocab"],
    "host": ["part"],
    "copy": ["direction"],
}
_FINER = {
    "gemm": "tokens",
    "attention_decode": "batch",
    "attention_prefill": "chunk",
    "mla_decode": "batch",
    "mla_prefill": "chunk",
    "attention_mixed": "chunk",
    "moe": "tokens",
    "collective": "bytes",
    "elementwise": "tokens",
    "sampling": "rows",
    "host": "requests",
    "copy": "bytes",
}
