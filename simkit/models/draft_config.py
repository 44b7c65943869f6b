"""The draft that a deployment names, or the usual one of its kind."""

from pathlib import Path
from typing import Literal

from simkit.errors import InputError
from simkit.models.architecture import Architecture
from simkit.models.catalog import is_bundled, load_model
from simkit.models.config_fields import ConfigFields
from simkit.models.draft import Draft, DraftMethod, draft_model, eagle, usual_draft
from simkit.models.huggingface import architecture_from_config, called, config_path, object_in
from simkit.models.precision import Precision

_WRAPPED = ("transformer_layer_config", "model")  # by speculators, by vLLM's EAGLEConfig


def load_draft(method: DraftMethod, model: str | None, target: Architecture, weights: Precision | None) -> Draft:
    """The draft by `method` for `target`.

    Args:
        method: vLLM's name of its kind.
        model: a draft model's name or config.json; of EAGLE and MTP the config.json of a checkpoint, or None for what
            these usually are.
        target: the model that checks.
        weights: precision that the target's linear layers are told; MTP's are stored alike.

    Raises:
        InputError: a draft model is not named, a name is unknown, or a file is not understood.
    """
    if method == "draft_model":
        if model is None:
            raise InputError("a draft model has no usual shape; name one")
        return draft_model(load_model(model))
    if model is None:
        return usual_draft(method, target, weights)
    if is_bundled(model):
        raise InputError(
            f"{model!r} is a model by itself, no draft by {method}; give the path of the draft's config.json, leave it "
            "out for the usual shape, or set speculative_method: draft_model"
        )
    if method == "mtp":
        other = load_model(model)
        if other.hidden != target.hidden:
            raise InputError(
                f"{other.name} is of width {other.hidden} and {target.name} of {target.hidden}; give the config.json "
                "of the target's own MTP"
            )
        return usual_draft("mtp", other, weights)
    return _read_eagle(method, config_path(Path(model).expanduser()), target)


def _read_eagle(method: Literal["eagle", "eagle3"], path: Path, target: Architecture) -> Draft:
    """A published head: its decoder's fields lie beside EAGLE's own, or are wrapped."""
    whole = object_in(path)
    inside = next((value for name in _WRAPPED if isinstance(value := whole.get(name), dict)), whole)
    fields = ConfigFields(str(path), {**inside, **whole})
    made_for = fields.positive("target_hidden_size", target.hidden)
    if made_for != target.hidden:
        raise fields.error(
            "target_hidden_size",
            f"is {made_for}, and {target.name} is of width {target.hidden}; give the config.json of one made for it",
        )
    arch = architecture_from_config(inside, str(path))
    reduced = fields.positive("draft_vocab_size", arch.vocab)
    return eagle(method, arch, target, reduced).called(called(path))
