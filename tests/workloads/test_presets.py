"""Presets draw what the traces they are named after look like."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from simkit.errors import InputError
from simkit.workloads.describe import describe
from simkit.workloads.presets import known_presets, load_preset, preset
from simkit.workloads.quantiles import LEVELS
from simkit.workloads.readers import read_workload
from simkit.workloads.sharing import ideal_sharing

TRACES = {
    "azure-code-2023": "azure2023/AzureLLMInferenceTrace_code.csv.gz",
    "azure-conv-2023": "azure2023/AzureLLMInferenceTrace_conv.csv.gz",
    "mooncake-conversation": "mooncake/conversation_trace.jsonl.gz",
    "arxiv-summarization": "vidur/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv.gz",
}


@pytest.mark.parametrize("name", known_presets())
def test_every_preset_says_whose_statistics_it_holds(name: str) -> None:
    found = load_preset(name)
    assert found.name == name
    assert min(len(found.source), len(found.licence), len(found.what)) > 2
    assert found.input_tokens.levels == LEVELS
    drawn = preset(name, requests=100, rate_per_s=1)
    assert drawn.provenance["license"] == found.licence


@pytest.mark.parametrize("name", TRACES)
def test_drawn_lengths_are_distributed_as_the_traces(name: str, shared: Path) -> None:
    trace = read_workload(shared / "traces" / TRACES[name], lengths_only=True)
    drawn = preset(name, requests=40_000, rate_per_s=1)
    for column in ("prompt_tokens", "output_tokens"):
        distance = stats.ks_2samp(getattr(drawn, column), getattr(trace, column)).statistic
        assert distance < 0.02, column
        assert getattr(drawn, column).mean() == pytest.approx(getattr(trace, column).mean(), rel=0.04)


@pytest.mark.parametrize("name", ["azure-code-2023", "azure-conv-2023"])
def test_drawn_gaps_are_distributed_as_azures(name: str, shared: Path) -> None:
    trace = read_workload(shared / "traces" / TRACES[name])
    drawn = preset(name, requests=40_000)
    distance = stats.ks_2samp(np.diff(drawn.arrival_us), np.diff(trace.arrival_us)).statistic
    # the table's mean is 2 % above the trace's, and a tenth of the code trace's gaps lie within 1 % of 0.1 s
    assert distance < 0.05
    assert describe(drawn).gap_cv == pytest.approx(describe(trace).gap_cv, rel=0.15)
    assert describe(drawn).rate_per_s == pytest.approx(describe(trace).rate_per_s, rel=0.1)


def test_sharegpt_has_its_published_medians() -> None:
    drawn = preset("sharegpt-first-turn", requests=40_000, rate_per_s=1)  # facts/workloads.md, section 1
    assert np.quantile(drawn.prompt_tokens, [0.5, 0.9, 0.99]) == pytest.approx([134, 752, 2581], rel=0.06)
    assert np.quantile(drawn.output_tokens, [0.5, 0.9, 0.99]) == pytest.approx([121, 485, 771], rel=0.06)


def test_drawn_mooncake_chats_share_about_what_the_trace_does(shared: Path) -> None:
    trace = ideal_sharing(read_workload(shared / "traces/mooncake/conversation_trace.jsonl.gz"))
    drawn = ideal_sharing(preset("mooncake-conversation", requests=12_031))
    assert trace is not None
    assert drawn is not None
    assert drawn.block_hit_rate == pytest.approx(trace.block_hit_rate, abs=0.03)
    assert drawn.token_hit_rate == pytest.approx(trace.token_hit_rate, abs=0.03)
    assert drawn.requests_hit_beyond_first == pytest.approx(trace.requests_hit_beyond_first, abs=0.03)


def test_bundled_presets_are_what_the_script_makes(shared: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    path = root / "experiments/presets/make_presets.py"
    found = importlib.util.spec_from_file_location("make_presets", path)
    assert found is not None
    assert found.loader is not None
    script = importlib.util.module_from_spec(found)
    sys.modules["make_presets"] = script  # dataclasses look their module up
    try:
        found.loader.exec_module(script)
        for origin in script.MADE_FROM:
            text = script.yaml_of(script.statistics_of(origin, shared / "traces"))
            assert text == (root / f"simkit/workloads/facts/{origin.name}.yaml").read_text()
    finally:
        del sys.modules["make_presets"]


def test_rate_size_and_process_can_be_chosen() -> None:
    drawn = preset("azure-code-2023", duration_s=2000, rate_per_s=20, arrivals="poisson", seed=3)
    found = describe(drawn)
    assert found.rate_per_s == pytest.approx(20, rel=0.03)
    assert found.gap_cv == pytest.approx(1, abs=0.02)
    bursty = describe(preset("azure-conv-2023", requests=30_000, arrivals="gamma", cv=3.0))
    assert bursty.gap_cv == pytest.approx(3, rel=0.1)


def test_choices_that_cannot_be_are_errors() -> None:
    with pytest.raises(InputError, match="did you mean 'azure-conv-2023'"):
        preset("azure-conv-203")
    with pytest.raises(InputError, match="no arrival times of its own; give a rate"):
        preset("arxiv-summarization")
    with pytest.raises(InputError, match="not both"):
        preset("azure-conv-2023", requests=1, duration_s=1)
    with pytest.raises(InputError, match="no table of gaps"):
        preset("arxiv-summarization", rate_per_s=1, arrivals="quantiles")
    with pytest.raises(InputError, match="above 0"):
        preset("azure-conv-2023", requests=0)
