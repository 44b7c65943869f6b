"""A profile of operators (`simkit calibrate measure`) as the step tables of a bench.

On a GPU what the profile lacks comes from the law that `simkit run` takes. A CPU has none, so there a profile must have
every operator of the decoder. Scheduling is not among them: on the virtual clock it then takes no time.
"""

from pathlib import Path

import numpy as np

from simkit.calibrate.emitted_step_time import prepare_line
from simkit.calibrate.measure_device import known_name
from simkit.calibrate.operator_model import OperatorModel, fit_operators
from simkit.calibrate.operator_profile import OperatorProfile
from simkit.calibrate.operator_tables import operator_tables
from simkit.errors import InputError
from simkit.models.architecture import Architecture
from simkit.models.calibrated import calibrated_law
from simkit.models.device import Device, known_devices, load_device
from simkit.models.engine_law import engine_law
from simkit.models.kernel_laws import laws_of
from simkit.models.layout import Layout
from simkit.models.operators import F64, Operator
from simkit.models.roofline import roofline_law
from simkit.models.step_law import StepLaw, TableSizes
from simkit.models.steptables import StepTables
from simkit.testbed.bench import Bench
from simkit.testbed.torch_import import torch

# what a profile may call the 16-bit types, which a device runs at one rate
SIXTEEN_BITS = {"bfloat16": "bf16", "float16": "bf16"}


def stored_tables(profile: OperatorProfile, path: Path, arch: Architecture, bench: Bench) -> StepTables:
    """The tables of an architecture, cut as the bench has it, by a profile read from `path`.

    Raises:
        InputError: a profile of another kind of device or of other numbers than the bench computes with, or one that
            lacks an operator.
    """
    on_cuda = _captures(bench) is not None
    _check_numbers(profile, path, bench)
    device = _device(profile, path, on_cuda)
    limits = bench.limits
    sizes = TableSizes(
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_num_seqs=limits.max_running,
        max_model_len=limits.max_model_len,
        kv_tokens=bench.executor.num_blocks * limits.block_size,
        capture_sizes=_captures(bench),
        enforce_eager=not _captures(bench),
    )
    law = _gpu_law(arch, device) if on_cuda else _no_law(path)
    model = fit_operators(profile)
    # weights of 16 bits are timed themselves, so no datasheet's ratio comes in
    tables = operator_tables(model, arch, device, law, Layout(), sizes, "bf16", "bf16").tables
    return tables if on_cuda else _with_inputs(tables, model, profile, limits.pipeline_depth > 1)


def _captures(bench: Bench) -> tuple[int, ...] | None:
    """The bench's CUDA graphs; None for an executor that has none by nature."""
    sizes: tuple[int, ...] | None = getattr(bench.executor, "capture_sizes", None)
    return sizes


def _check_numbers(profile: OperatorProfile, path: Path, bench: Bench) -> None:
    """InputError unless the profile timed products of the bench's dtype."""
    mine = str(bench.executor.identity.model["dtype"])
    timed = sorted(set(profile.tables["gemm"]["dtype"])) if "gemm" in profile.tables else []
    if mine not in SIXTEEN_BITS:
        raise InputError(f"testbed.dtype={mine}: profiles of operators time 16-bit numbers; set --dtype bfloat16")
    if SIXTEEN_BITS[mine] not in timed:
        raise InputError(f"{path}: times products of {', '.join(timed) or 'nothing'}, not of {mine}; measure these")


def _device(profile: OperatorProfile, path: Path, on_cuda: bool) -> Device:
    """The datasheet beside a profile; InputError if it is of another device than this one."""
    name = profile.header.device
    known = name in known_devices()
    if not on_cuda:
        if known:
            raise InputError(f"{path}: was measured on {name}, and this is a CPU; measure this one (--device cpu)")
        return load_device(known_devices()[0])  # is not looked at: see `stored_tables`
    here = known_name(str(torch.cuda.get_device_name()))
    if not known or load_device(name).name != here:
        raise InputError(f"{path}: was measured on {name}, and this is {here}; measure this one")
    return load_device(here)


def _gpu_law(arch: Architecture, device: Device) -> StepLaw:
    """What `simkit run` uses without a profile."""
    found = laws_of(device)
    if found is None:
        return roofline_law(arch, device, None)
    return calibrated_law(arch, device, Layout(), None, found[0], engine_law(), "plain")


def _no_law(path: Path) -> StepLaw:
    def missing(operator: Operator) -> F64:
        if not np.any(operator.flops) and not np.any(operator.memory_bytes):
            return np.zeros_like(operator.memory_bytes)
        raise InputError(f"{path}: has no times of {operator.name}; measure again with a longer --budget")

    return StepLaw(operator_ns=missing, launch_ns=0.0, eager_launch_ns=0.0, host_step_ns=0.0, host_request_ns=0.0)


def _with_inputs(tables: StepTables, model: OperatorModel, profile: OperatorProfile, overlap: bool) -> StepTables:
    """The making of a step's inputs, which a CPU's profile has apart: the device waits for it, or the host's time."""
    line = prepare_line(profile.tables["host"]) if "host" in profile.tables else None
    if line is None or (model.host is not None and model.host.step_ns is not None):
        return tables
    step_ns, request_ns, token_ns = line(0, 0), line(1, 0) - line(0, 0), line(0, 1) - line(0, 0)
    rows = np.arange(len(tables.host_ns))
    if overlap:  # of decodes mostly, whose tokens are as many as they
        return tables._replace(host_ns=tables.host_ns + np.where(rows > 0, step_ns + (request_ns + token_ns) * rows, 0))
    tokens = np.arange(len(tables.linear_ns))
    return tables._replace(
        linear_ns=tables.linear_ns + np.where(tokens > 0, step_ns + token_ns * tokens, 0.0),
        sample_ns=tables.sample_ns + request_ns * rows,
    )
