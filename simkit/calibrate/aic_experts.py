"""Which experts of AIConfigurator's tables have no gate: two matrices, not three. The tables do not say.

The models of its shapes lie beside the tables. Those whose experts square a ReLU (Nemotron-H; hidden is then the latent
size, where there is one) have none, and their collector times them so since the versions below: from these on their
weights would else be read at 1.4 times the memory's bandwidth (H200: 6.6 TB/s), before at no more than others' (4.2).
"""

import json
from typing import TYPE_CHECKING

from simkit.calibrate.aic_source import systems_folder, version_key

if TYPE_CHECKING:
    import pandas as pd

PLAIN = "relu2"  # `mlp_hidden_act` of a model without gates
SINCE = {"vllm": "0.24", "sglang": "0.5.14", "trtllm": "1.3.0rc0"}
MODEL = ("hidden", "width", "experts", "top_k")
_KEYS = ("moe_intermediate_size", "n_routed_experts", "num_experts_per_tok")  # of a config.json, beside hidden


def with_matrices(frame: "pd.DataFrame", engine: str, version: str) -> "pd.DataFrame":
    """Rows of a `moe` table with the matrices that an expert of each has."""
    if engine in SINCE and version_key(version) >= version_key(SINCE[engine]):
        plain = _plain_models()
        models = zip(*(frame[name] for name in MODEL), strict=True)
        return frame.assign(matrices=[2 if model in plain else 3 for model in models])
    return frame.assign(matrices=3)


def _plain_models() -> set[tuple[int, ...]]:
    """(hidden, width, experts, experts a token) of the models without gates."""
    found = set()
    for path in sorted((systems_folder().parent / "model_configs").glob("*.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(config, dict) and config.get("mlp_hidden_act") == PLAIN:
            hidden = config.get("moe_latent_size") or config.get("hidden_size")
            sizes = [size for size in (hidden, *map(config.get, _KEYS)) if isinstance(size, int)]
            if len(sizes) == len(MODEL):
                found.add(tuple(sizes))
    return found
