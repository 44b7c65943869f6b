"""Measured TTFT and TPOT of whole deployments: `silicon_sample.csv` of the distribution aiconfigurator-core.

    rows = read_silicon_sample()                       # of the installed distribution, or of a file of that form
    whole = [row for row in rows if row.mode == "agg" and row.backend == "vllm" and row.device is not None]
    row.model, row.device, row.tensor, row.input_tokens, row.output_tokens, row.concurrency   # what ran
    row.ttft_s, row.tpot_s                                                                    # what was measured

A row is the mean of a client that keeps `concurrency` requests in flight (a closed loop), each of `input_tokens` and
`output_tokens`. The file holds what was measured and nothing of AIConfigurator's own estimates. Some runs are in it
twice, from two dumps, equal to the ninth digit: `without_repeats` keeps one. Licence: Apache-2.0, NVIDIA.
"""

import csv
import re
from pathlib import Path
from typing import Literal, NamedTuple

from simkit.calibrate.aic_source import SYSTEMS, systems_folder
from simkit.errors import InputError

FILE = "silicon_sample.csv"
LARGEST_FILE_BYTES = 64 << 20

Mode = Literal["agg", "disagg"]


class Pool(NamedTuple):
    """The engines that serve one phase, or both; None where the row does not say."""

    workers: int | None
    batch: int | None  # the most requests of a step
    tensor: int | None
    pipeline: int | None
    attention_data: int | None  # copies of attention, each with requests of its own
    expert_tensor: int | None  # slices of each expert
    expert_parallel: int | None  # GPUs that experts are spread over


class SiliconRow(NamedTuple):
    """One measured deployment."""

    line: int  # of the file
    id: str
    model: str  # Hugging Face name
    system: str  # theirs, h200_sxm
    device: str | None  # ours; None where `simkit devices` has no such device
    backend: str  # vllm, sglang, trtllm
    backend_version: str
    precision: str  # bf16, fp8, fp4, int4; empty where not said
    gemm_precision: str
    moe_precision: str
    mode: Mode  # agg: one pool does both phases; disagg: prefill and decode apart
    input_tokens: int
    output_tokens: int
    concurrency: int | None  # requests in flight
    serving: Pool  # of an agg row
    prefill: Pool  # of a disagg row
    decode: Pool
    ttft_s: float
    tpot_s: float
    source: str  # dump, date, container image

    @property
    def tensor(self) -> int | None:
        """Tensor parallel GPUs of an agg row."""
        return self.serving.tensor


def read_silicon_sample(path: Path | None = None) -> list[SiliconRow]:
    """The rows of a file, by default the installed distribution's.

    Raises:
        InputError: naming the file, line and column, if it is absent, too large, or a value does not pass.
    """
    path = systems_folder() / FILE if path is None else path
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise InputError(f"{path}: larger than {LARGEST_FILE_BYTES >> 20} MiB; this is no {FILE}")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}; name a {FILE}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; name a {FILE}") from None
    reader = csv.DictReader(text.splitlines())
    try:
        missing = [name for name in _NEEDED if name not in (reader.fieldnames or [])]
        if missing:
            raise InputError(f"{path}: column {missing[0]!r} is missing; name a {FILE}")
        return [_row(cells, f"{path}:{number}", number) for number, cells in enumerate(reader, start=2)]
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: is no line of a CSV table: {error}; name a {FILE}") from None


def without_repeats(rows: list[SiliconRow]) -> list[SiliconRow]:
    """The first of every set of rows that tell the same run: equal but for line, id, source and the ninth digit."""
    seen: dict[tuple[object, ...], SiliconRow] = {}
    for row in rows:
        plain = row._replace(line=0, id="", source="", ttft_s=0.0, tpot_s=0.0)
        seen.setdefault((plain, f"{row.ttft_s:.8e}", f"{row.tpot_s:.8e}"), row)
    return list(seen.values())


def _row(cells: dict[str, str], place: str, number: int) -> SiliconRow:
    if None in cells or None in cells.values():
        raise InputError(f"{place}: does not have as many cells as the header; repair the line")
    mode = cells["mode"]
    if mode not in ("agg", "disagg"):
        raise InputError(f"{place}: mode={mode[:40]!r}: is not known; agg or disagg")
    return SiliconRow(
        line=number,
        id=cells["id"],
        model=cells["model_path"],
        system=cells["system"],
        device=SYSTEMS.get(cells["system"]),
        backend=cells["backend"],
        backend_version=cells["backend_version"],
        precision=cells["precision"],
        gemm_precision=cells["gemm_quant_mode"],
        moe_precision=cells["moe_quant_mode"],
        mode="agg" if mode == "agg" else "disagg",
        input_tokens=_needed(cells, "isl", place),
        output_tokens=_needed(cells, "osl", place),
        concurrency=_concurrency(cells),
        serving=_pool(cells, "", place),
        prefill=_pool(cells, "prefill_", place),
        decode=_pool(cells, "decode_", place),
        ttft_s=_time_ms(cells, "silicon_ttft_ms", place) / 1e3,
        tpot_s=_time_ms(cells, "silicon_tpot_ms", place) / 1e3,
        source=cells["silicon_data_source"],
    )


def _pool(cells: dict[str, str], prefix: str, place: str) -> Pool:
    def size(name: str) -> int | None:
        return _count(cells, prefix + name, place)

    return Pool(
        workers=_count(cells, f"{prefix}num_workers", place) if prefix else 1,
        batch=size("batch_size"),
        tensor=size("tp_size"),
        pipeline=size("pp_size"),
        attention_data=size("attention_dp_size"),
        expert_tensor=size("moe_tp_size"),
        expert_parallel=size("moe_ep_size"),
    )


def _count(cells: dict[str, str], name: str, place: str) -> int | None:
    """A whole number; None where empty, or 0, which the file has for "does not apply"."""
    text = cells.get(name, "")
    if text == "":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (0.0 <= value <= 1e9 and value == int(value)):
        raise InputError(f"{place}: {name}={text[:40]!r}: is not a count")
    return int(value) or None


def _needed(cells: dict[str, str], name: str, place: str) -> int:
    value = _count(cells, name, place)
    if value is None:
        raise InputError(f"{place}: {name} is empty; give a count of tokens")
    return value


def _time_ms(cells: dict[str, str], name: str, place: str) -> float:
    try:
        value = float(cells[name])
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1e9:
        raise InputError(f"{place}: {name}={cells[name][:40]!r}: is not a time above 0 ms")
    return value


def _concurrency(cells: dict[str, str]) -> int | None:
    """As the source says it."""
    named = re.search(r"silicon_concurrency=(\d{1,9})", cells["silicon_data_source"])
    return int(named[1]) if named else None


_NEEDED = (
    "id",
    "silicon_data_source",
    "backend",
    "backend_version",
    "model_path",
    "system",
    "precision",
    "mode",
    "isl",
    "osl",
    "gemm_quant_mode",
    "moe_quant_mode",
    "silicon_ttft_ms",
    "silicon_tpot_ms",
)
