"""A profile survives the disk, and a stranger's is checked field by field."""

import json
from pathlib import Path

import pytest

from simkit.calibrate.profile import Profile, profile_hash, profile_text, read_profile, write_profile
from simkit.calibrate.step_fit import fit_steps
from simkit.errors import InputError

from .conftest import WriteLog, steps


@pytest.fixture
def profile(write_log: WriteLog) -> Profile:
    return fit_steps([write_log(list(steps(80, seed=1, noise=0.05)))], created="2026-01-31")


def test_a_profile_reads_back_as_it_was_written(profile: Profile, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    write_profile(profile, path)
    again = read_profile(path)
    assert again == profile
    assert profile_hash(again) == profile_hash(profile)
    assert json.loads(path.read_text(encoding="utf-8"))["schema"] == "simkit.profile/1"


def test_the_same_logs_give_the_same_bytes(write_log: WriteLog) -> None:
    path = write_log(list(steps(80, seed=2, noise=0.05)))
    assert profile_text(fit_steps([path], "2026-01-31")) == profile_text(fit_steps([path], "2026-01-31"))


def test_limits_beyond_what_was_seen_are_named(profile: Profile) -> None:
    seen = profile.seen
    assert profile.extrapolated(seen.tokens, seen.requests, seen.context_tokens) == ()
    said = profile.extrapolated(8192, seen.requests, 131_072)
    assert said == (
        f"steps of more than {seen.tokens:,} tokens are extrapolated (the limit is 8,192)",
        f"steps of more than {seen.context_tokens:,} tokens of context are extrapolated (the limit is 131,072)",
    )


# keys to the value, the value, what the message says after the path
BAD: dict[str, tuple[tuple[str, ...], object, str]] = {
    "another schema": (("schema",), "simkit.profile/2", "schema='simkit.profile/2': is not known; did you mean"),
    "unknown key": (("step", "tokn_s"), 1.0, "step.tokn_s: unknown key; did you mean 'token_s'"),
    "negative time": (("step", "token_s"), -1e-4, "step.token_s=-0.0001"),
    "infinite time": (("step", "pair_s"), float("inf"), "step.pair_s="),
    "NaN time": (("step", "host", "step_s"), float("nan"), "step.host.step_s="),
    "text": (("step", "step_s"), "0.02", "step.step_s='0.02'"),
    "no date": (("created",), "yesterday", "created='yesterday'"),
    "no hash": (("sources",), [{"file": "a", "sha256": "abc", "steps": 1, "requests": 1}], "sources.0.sha256='abc'"),
    "no source": (("sources",), [], "sources="),
    "nothing seen": (("seen", "tokens"), 0, "seen.tokens=0"),
    "a step of no time": (
        ("step",),
        {"step_s": 0.0, "token_s": 0.0, "request_s": 0.0, "pair_s": 0.0, "host": {"step_s": 0.0, "request_s": 0.0}},
        "step: all coefficients are 0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_profile_is_refused_in_one_line(profile: Profile, tmp_path: Path, name: str) -> None:
    keys, value, message = BAD[name]
    content = json.loads(profile_text(profile))
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_profile(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_profile_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    with pytest.raises(InputError, match=r"profile.json: cannot be read: No such file"):
        read_profile(path)
    with pytest.raises(InputError, match="Is a directory"):
        read_profile(tmp_path)
    path.write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(InputError, match="is larger than 1 MiB"):
        read_profile(path)
    for content in (b"", b"{", b"[]", b"\xff\xfe", b"{}", b"null", b"[" * 10_000):
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            read_profile(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


def test_a_profile_that_cannot_be_written_says_so(profile: Profile, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent/profile.json: cannot be written: No such file"):
        write_profile(profile, tmp_path / "absent/profile.json")
