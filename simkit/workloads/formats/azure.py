"""Azure's public LLM inference traces: CSV with wall-clock times and lengths.

Schema: Azure/AzurePublicDataset, AzureLLMInferenceDataset2023.md and 2024.md; the 2025 multimodal trace adds NumImages.
"""

from simkit.workloads.cells import Integer, WallClock, tokens
from simkit.workloads.format import Format, lengths_positive, no_output
from simkit.workloads.table import Field

FORMAT = Format(
    name="azure",
    syntax="csv",
    what="Azure LLM inference traces, CSV: TIMESTAMP, ContextTokens, GeneratedTokens",
    fields=(
        Field("TIMESTAMP", "arrival_us", WallClock()),
        Field("ContextTokens", "prompt_tokens", tokens()),
        Field("GeneratedTokens", "output_tokens", tokens()),
        Field("NumImages", "image_count", Integer(0, 2**31 - 1), required=False),
    ),
    # none in the 2023 traces; an answer without a token has no first token to wait for
    rules=(no_output("no_output"), lengths_positive("ContextTokens", "GeneratedTokens")),
    clock="wall",
)
