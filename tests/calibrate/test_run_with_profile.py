"""`simkit run` with an operator profile: its times, their provenance, and whose device it is."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from simkit.calibrate.operator_profile import OperatorProfile, profile_folder, write_operator_profile
from simkit.cli.main import app
from simkit.errors import InputError

from .made_up_profile import gemm_table, made_up_profile

RUN = ("run", "--model", "llama-3.1-8b", "--preset", "azure-conv-2023", "--rate", "2", "-n", "40", "--json")


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profiles") / "made-up"
    write_operator_profile(made_up_profile(), folder)
    return folder


def test_a_run_says_what_share_of_its_time_is_known_how(profile: Path) -> None:
    done = CliRunner().invoke(app, [*RUN, "--device", "h100", "--profile", str(profile)], catch_exceptions=False)
    tree = json.loads(done.stdout)["step_time"]
    assert tree["provenance"] == "operators measured: made up, 2026-01-31"
    assert "not measured: elementwise" in tree["note"]
    shares = tree["share_of_time"]
    assert list(shares) == ["measured", "interpolated", "extrapolated", "assumed"]
    assert sum(shares.values()) == pytest.approx(1.0)
    # Llama's GEMMs lie between the widths that were timed; its heads were timed; elementwise kernels were not
    assert shares["interpolated"] > shares["measured"] > 0.0
    assert shares["assumed"] > 0.0


def test_replicas_that_do_the_same_know_as_much_as_one_does(profile: Path, tmp_path: Path) -> None:
    """The same requests twice, dealt in turn, are one replica's requests on each of two."""
    found = []
    for copies in (1, 2):
        lines = [f"{i},{2000 + 10 * i},{20 + i}\n" * copies for i in range(40)]
        trace = tmp_path / f"{copies}.csv"
        trace.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n" + "".join(lines))
        own = ("--model", "llama-3.1-8b", "--device", "h100", "--profile", str(profile), "--trace", str(trace))
        fleet = ("--set", f"cluster.replicas={copies}", "--json")
        done = CliRunner().invoke(app, ["run", *own, *fleet], catch_exceptions=False)
        found.append(json.loads(done.stdout)["step_time"]["share_of_time"])
    assert found[1] == pytest.approx(found[0], abs=1e-12)


def test_a_draft_s_runs_are_not_the_profile_s_and_the_note_says_so(profile: Path) -> None:
    engine = "deployment.engine."
    drafts = {"speculative_tokens": 3, "acceptance": 0.7, "speculative_method": "eagle"}
    found = []
    for more in ({}, {"draft_step_ms": 0}):
        told = [word for name, value in (drafts | more).items() for word in ("--set", f"{engine}{name}={value}")]
        own = [*RUN, "--device", "h100", "--profile", str(profile), *told]
        found.append(json.loads(CliRunner().invoke(app, own, catch_exceptions=False).stdout))
    derived, nothing = found
    assert "(by public kernel measurements, not by the profile)" in derived["step_time"]["note"]
    assert derived["step_time"]["provenance"] == "operators measured: made up, 2026-01-31"
    assert "eagle" not in nothing["step_time"]["note"]
    assert derived["latency_s"]["tpot"]["mean"] > 1.05 * nothing["latency_s"]["tpot"]["mean"]
    assert derived["memory_bytes"] == nothing["memory_bytes"]


def test_a_profile_of_another_device_is_refused_unless_allowed(profile: Path) -> None:
    wrong = [*RUN, "--device", "h200", "--profile", str(profile)]
    with pytest.raises(InputError, match="was measured on h100-sxm, and the deployment is on h200; give --device h100"):
        CliRunner().invoke(app, wrong, catch_exceptions=False)
    allowed = CliRunner().invoke(app, [*wrong, "--set", "profile_any_device=true"], catch_exceptions=False)
    assert allowed.exit_code == 0


def test_published_tables_of_a_device_that_is_not_known_are_of_another_one_too(tmp_path: Path) -> None:
    whole = made_up_profile()
    for kind, place in (("imported", tmp_path / "published"), ("measured", tmp_path / "own")):
        origin = whole.header.origin.model_copy(update={"kind": kind})
        header = whole.header.model_copy(update={"device": "gb200", "origin": origin})
        write_operator_profile(OperatorProfile(header, whole.tables), place)
    with pytest.raises(InputError, match="was measured on gb200, and the deployment is on h100-sxm"):
        CliRunner().invoke(
            app, [*RUN, "--device", "h100", "--profile", str(tmp_path / "published")], catch_exceptions=False
        )
    own = [*RUN, "--device", "h100", "--profile", str(tmp_path / "own")]
    assert CliRunner().invoke(app, own, catch_exceptions=False).exit_code == 0


def test_a_profile_may_be_named_by_its_header(profile: Path) -> None:
    assert profile_folder(profile) == profile_folder(profile / "profile.json") == profile
    assert profile_folder(profile / "gemm.csv") is None


def test_a_report_tells_errors_and_draws_them(profile: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    done = CliRunner().invoke(
        app, ["calibrate", "report", str(profile), "--out", str(page), "--json"], catch_exceptions=False
    )
    tree = json.loads(done.stdout)
    regions = {(error["table"], error["region"]) for error in tree["errors"]}
    assert ("gemm", "shapes") in regions
    assert ("attention_decode", "cells") in regions
    html = page.read_text()
    assert html.count("<svg") == 2 * len(regions)
    assert "predicted against measured" in html
    again = tmp_path / "again.html"
    CliRunner().invoke(app, ["calibrate", "report", str(profile), "--out", str(again)], catch_exceptions=False)
    assert again.read_bytes() == page.read_bytes()


def test_a_profile_too_small_to_judge_says_so(tmp_path: Path, profile: Path) -> None:
    whole = made_up_profile()
    write_operator_profile(OperatorProfile(whole.header, {"gemm": gemm_table().head(1)}), tmp_path / "tiny")
    with pytest.raises(InputError, match="no table is large enough"):
        CliRunner().invoke(app, ["calibrate", "report", str(tmp_path / "tiny")], catch_exceptions=False)
