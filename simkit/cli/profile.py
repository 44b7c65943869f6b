"""Step times of a profile in place of those that a deployment would have by itself."""

from dataclasses import replace
from pathlib import Path

from simkit.calibrate.front_end import front_end_law
from simkit.calibrate.operator_model import fit_operators
from simkit.calibrate.operator_profile import OperatorProfile, profile_folder, read_operator_profile
from simkit.calibrate.operator_tables import operator_tables
from simkit.calibrate.profile import Profile, read_profile
from simkit.calibrate.profile_sources import shipped_profiles
from simkit.calibrate.step_model import whole_step_tables
from simkit.engine.deployment import ReplicaSpec, with_draft_time
from simkit.errors import InputError
from simkit.models.calibrated import calibrated_law
from simkit.models.device import Device, load_device
from simkit.models.engine_law import engine_law
from simkit.models.kernel_laws import laws_of
from simkit.models.precision import Precision, parse_kv_precision, parse_precision
from simkit.models.roofline import roofline_law
from simkit.models.step_law import StepLaw, TableSizes, with_stages


def with_profile(spec: ReplicaSpec, path: Path, any_device: bool) -> ReplicaSpec:
    """The replica with the step times of a profile: a directory of operators, or the file of a whole-step model.

    A name that is no path is that of a profile that ships.

    Raises:
        InputError: the profile cannot be read, or is of another device and `any_device` is false.
    """
    path = path if path.exists() else shipped_profiles().get(str(path), path)
    if not path.exists():
        raise InputError(f"profile {path}: there is no such folder or file; give what `simkit calibrate` wrote")
    folder = profile_folder(path)
    if folder is not None:
        profile = read_operator_profile(folder)
        _check_device(profile.header.device, spec.device, path, any_device, profile.header.origin.kind == "imported")
        return _operators(spec, profile)
    whole = read_profile(path)
    _check_device(whole.device, spec.device, path, any_device)
    return _whole_step(spec, whole)


def _check_device(name: str, device: Device, path: Path, any_device: bool, published: bool = False) -> None:
    """InputError if the profile is of another device than the deployment.

    A name that no device has is what somebody called a machine of their own, and not held to, but where it is
    `published`: tables name whose they are.
    """
    try:
        known = load_device(name).name
    except InputError:
        if not published:
            return
        known = name
    if known != device.name and not any_device:
        raise InputError(
            f"{path}: was measured on {known}, and the deployment is on {device.name}; give --device {known}, another "
            "profile, or --set profile_any_device=true to use it all the same"
        )


def _operators(spec: ReplicaSpec, profile: OperatorProfile) -> ReplicaSpec:
    model = fit_operators(profile)
    deployment, limits = spec.deployment, spec.limits
    kv = parse_kv_precision(deployment.kv, "deployment.kv")
    sizes = TableSizes(
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_num_seqs=limits.max_running,
        max_model_len=limits.max_model_len,
        kv_tokens=spec.context_tokens,
        enforce_eager=deployment.engine.enforce_eager,
    )
    weights = _weights(spec)
    law = _law(spec, weights)
    tables, known = operator_tables(model, spec.architecture, spec.device, law, deployment.layout, sizes, weights, kv)
    missing = [name for name in ("gemm", "attention_decode", "attention_prefill", "elementwise", "host")
               if name not in profile.tables]  # fmt: skip
    note = f"device {profile.header.device}"
    if missing:
        note += f"; not measured: {', '.join(missing)}"
    tables = with_stages(tables, spec.architecture, deployment.layout)
    if profile.header.origin.kind == "imported":  # of an engine's kernels, not of our own, which cut each context
        tables = tables._replace(alone_ns=spec.tables.alone_ns)
    found = replace(spec, tables=tables, provenance=profile.provenance, provenance_note=note, known=known)
    return _drafting(found, sizes)


def _weights(spec: ReplicaSpec) -> Precision | None:
    text = spec.deployment.weights
    return None if text is None else parse_precision(text, "deployment.weights")


def _law(spec: ReplicaSpec, weights: Precision | None) -> StepLaw:
    """What `simkit run` would use without a profile."""
    found = laws_of(spec.device)
    if found is None or spec.deployment.step_time == "uncalibrated":
        return roofline_law(spec.architecture, spec.device, weights)
    layout, sampling = spec.deployment.layout, spec.deployment.sampling
    return calibrated_law(spec.architecture, spec.device, layout, weights, found[0], engine_law(), sampling)


def _whole_step(spec: ReplicaSpec, profile: Profile) -> ReplicaSpec:
    limits = spec.limits
    sizes = (limits.max_num_batched_tokens, limits.max_running, limits.max_model_len)
    tables = whole_step_tables(profile.step, *sizes, spec.context_tokens)
    tables = with_stages(tables, spec.architecture, spec.deployment.layout)
    beyond = profile.extrapolated(*sizes)
    note = "; ".join(beyond) if beyond else "all sizes that the limits allow were measured"
    front_end = front_end_law(profile.front_end)
    found = replace(spec, tables=tables, provenance=profile.provenance, provenance_note=note, front_end=front_end)
    return _drafting(found, TableSizes(*sizes, enforce_eager=spec.deployment.engine.enforce_eager))


def _drafting(spec: ReplicaSpec, sizes: TableSizes) -> ReplicaSpec:
    """The replica with its draft's runs, which profiles do not have; a note says whose times those are."""
    found = with_draft_time(spec, sizes)
    if found is spec:
        return spec
    calibrated = laws_of(spec.device) is not None and spec.deployment.step_time == "calibrated"
    source = "public kernel measurements" if calibrated else "a roofline"
    return replace(found, provenance_note=f"{found.provenance_note} (by {source}, not by the profile)")
