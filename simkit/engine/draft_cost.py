"""What a deployment's draft is, and what a run of it takes by the laws that time the model's own steps."""

from simkit.engine.settings import EngineSettings
from simkit.errors import InputError
from simkit.models.architecture import Architecture
from simkit.models.calibrated import as_cut, calibrated_law
from simkit.models.device import Device
from simkit.models.draft import Draft
from simkit.models.draft_config import load_draft
from simkit.models.draft_tables import DraftPass, draft_pass
from simkit.models.engine_law import engine_law
from simkit.models.kernel_laws import laws_of
from simkit.models.layout import Layout
from simkit.models.precision import Precision
from simkit.models.roofline import roofline_law
from simkit.models.step_law import TableSizes
from simkit.models.steptables import StepTables, drafting_ns, interpolate

NOTE_CONTEXT = 1024  # tokens that the request of a note's step has


def draft_of(settings: EngineSettings, arch: Architecture, layout: Layout, weights: Precision | None) -> Draft | None:
    """What proposes the tokens; None without drafts, and where they are looked up.

    Raises InputError, with the setting's name: a draft model is not named, the name is not known, or what it names
    cannot run beside the model.
    """
    method, model = settings.speculative_method, settings.speculative_model
    if settings.speculative_tokens == 0 or method == "ngram":
        return None
    if method == "draft_model" and model is None:
        raise InputError(
            "deployment.engine.speculative_method=draft_model: speculative_model is missing; name the smaller "
            "model, one of `simkit models` or a path of a config.json"
        )
    try:
        draft = load_draft(method, model, arch, weights)
        draft.check(arch, layout)
    except InputError as error:
        place = "method" if model is None else "model"
        raise InputError(f"deployment.engine.speculative_{place}={model or method}: {error}") from error
    return draft


def run_of(
    tables: StepTables,
    draft: Draft,
    device: Device,
    layout: Layout,
    sizes: TableSizes,
    kv: Precision,
    calibrated: bool,
) -> DraftPass:
    """A run of a draft beside the `tables` of its target; `calibrated`: by measured kernels, if there are any."""
    laws = laws_of(device) if calibrated else None
    shape, weights = draft.architecture, draft.weights
    if laws is None:
        return draft_pass(tables, roofline_law(shape, device, weights), draft, layout, sizes, kv)
    law = calibrated_law(shape, device, layout, weights, laws[0], engine_law(), "plain")
    run = draft_pass(tables, law, draft, layout, sizes, kv)
    return run._replace(first=as_cut(run.first, shape, device, draft.layout(layout), kv, sizes, laws[0]))


def draft_note(before: StepTables, after: StepTables, draft: Draft, speculative_tokens: int) -> str:
    """What a draft adds to the step of one request, for people."""
    alone, whole = (_step_ns(tables, speculative_tokens) for tables in (before, after))
    return (
        f"{draft.architecture.name} ({draft.parameters / 1e9:.2f}e9 parameters of its own) takes "
        f"{(whole - alone) / 1e6:.2f} of {whole / 1e6:.2f} ms of a step that checks {speculative_tokens} tokens of one "
        f"request after {NOTE_CONTEXT:,}"
    )


def _step_ns(tables: StepTables, speculative_tokens: int) -> float:
    """A step that checks the drafts of one request."""
    tokens = min(1 + speculative_tokens, len(tables.linear_ns) - 1)
    rows = min(tokens, len(tables.sample_ns) - 1)
    context = NOTE_CONTEXT + tokens
    attention = interpolate(tables.decode_ns, 1, context)
    if tables.window_tokens:
        attention += interpolate(tables.decode_window_ns, 1, min(context, tables.window_tokens))
    return float(tables.linear_ns[tokens] + tables.sample_ns[rows] + attention + drafting_ns(tables, 1))
