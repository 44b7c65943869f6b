"""The page holds everything, loads nothing and lets no text become markup."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from simkit.metrics.latency import finished_latencies, slowest
from simkit.metrics.load import LoadPoint
from simkit.metrics.result import WATERFALL, RunResult, Status
from simkit.report.data import ReportData, Sensitivity
from simkit.report.html import render_report
from simkit.report.markup import embedded_json, plain, text
from simkit.report.waterfall import short_id

MakeResult = Callable[..., RunResult]
MakeData = Callable[..., ReportData]
VOID = {"meta", "link", "input", "br", "path", "use", "rect", "circle", "line"}
SECTIONS = ("verdict", "latency", "time", "load", "slowest", "sensitivity", "definitions", "configuration")


class Page(HTMLParser):
    """A strict reader: every element closed in order, everything of interest collected."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open and self.open[-1] == "script" else self.words).append(data)

    @property
    def said(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def page(data: ReportData) -> str:
    return render_report(data)


def test_page_is_one_file_of_moderate_size(page: str) -> None:
    assert 100_000 < len(page.encode()) < 600_000
    read = Page(page)
    for tag, attributes in read.tags:
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:")), f"<{tag} {name}={target}>"
    style = " ".join(re.findall(r"<style>.*?</style>", page, re.DOTALL))
    assert "@import" not in style
    assert "url(" not in style
    assert [attributes.get("id") for tag, attributes in read.tags if tag == "section"] == list(SECTIONS)


def test_ids_are_unique_and_references_resolve(page: str) -> None:
    read = Page(page)
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = set(re.findall(r'(?:href="#|url\(#|aria-labelledby=")([^")]+)', page))
    assert references
    assert references <= set(ids)


def test_the_policy_allows_the_page_script_and_no_other(page: str) -> None:
    script = page[page.rindex("<script>") + len("<script>") : page.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(a["content"] for t, a in Page(page).tags if t == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy


def test_same_data_same_bytes(data: ReportData, page: str) -> None:
    assert render_report(data) == page


def test_numbers_of_the_summary_can_be_read_back(data: ReportData, page: str) -> None:
    block = page[page.index('id="report-data">') + len('id="report-data">') :]
    read = json.loads(block[: block.index("</script>")])
    assert read["summary"]["latency_s"] == json.loads(json.dumps(data.summary["latency_s"]))
    assert [p["load"] for p in read["sweep"]] == [p.load for p in data.sweep]
    assert read["slo"] == data.slo


def test_warnings_come_before_numbers(make_data: MakeData, make_result: MakeResult) -> None:
    read = Page(render_report(make_data(make_result(n=60, complete=False), saturated=True)))
    said = read.said
    places = [said.index(words) for words in ("Overloaded", "Partial:", "Uncalibrated:", "In numbers")]
    assert places == sorted(places)
    assert "— not given: waiting requests grew" in said
    calibrated = replace(make_data(make_result(n=20)), summary={"step_time": {"provenance": "measured"}})
    assert "Uncalibrated" not in Page(render_report(calibrated)).said


def test_every_figure_is_described(page: str) -> None:
    svgs = [a for t, a in Page(page).tags if t == "svg"]
    assert len(svgs) == 4 + 5 + 4
    assert all(a["role"] == "img" and len(a["aria-label"] or "") > 20 for a in svgs)
    assert len({a["aria-label"] for a in svgs}) == len(svgs)
    bars = [a for t, a in Page(page).tags if t == "span" and a.get("class") == "bar"]
    assert len(bars) == 24
    assert all("E2E" in (a["aria-label"] or "") for a in bars)


def test_bars_are_as_long_as_their_latency(data: ReportData, page: str) -> None:
    requests = data.result.requests
    e2e = np.sort(requests.finish_ns - requests.arrival_ns)[::-1][:12]
    first_chart = page[page.index("Longest E2E") : page.index("Longest TTFT")]
    rows = first_chart.split('class="bar-row"')[1:]
    widths = [sum(map(float, re.findall(r"width:([\d.]+)%", row))) for row in rows]
    assert widths == pytest.approx(list(100 * e2e / e2e[0]), abs=0.01)


def test_slowest_requests_are_the_slowest(result: RunResult) -> None:
    known = finished_latencies(result.requests)
    assert len(known.row) == len(result.requests)
    brute = sorted(range(len(known.row)), key=lambda i: (-known.ttft_s[i], i))[:12]
    assert slowest(known, known.ttft_s, 12).tolist() == brute
    parts = sum(getattr(result.requests, name) for name in WATERFALL)
    assert known.e2e_s == pytest.approx(parts / 1e9)


HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'\x00\x1b[2J\ud800\u202e$\\frac$",
    "@SCRIPT@",
)


@pytest.mark.parametrize("evil", HOSTILE)
def test_no_text_becomes_markup(make_data: MakeData, make_result: MakeResult, evil: str) -> None:
    clean = Page(render_report(replace(make_data(make_result(n=30)), versions={"x": "1"})))
    dirty = replace(
        make_data(make_result(n=30, ids=tuple(f"{evil}{i}" for i in range(30))), title=evil),
        config={evil: {evil: [evil]}, "deployment": {"model": evil, "device": evil, "max_num_seqs": 14}, "seed": 1},
        versions={evil: evil},
    )
    dirty = replace(dirty, result=replace(dirty.result, notes=()))
    page = render_report(dirty)
    read = Page(page)
    page.encode("utf-8")
    assert [tag for tag, _ in read.tags] == [tag for tag, _ in clean.tags]
    assert len(re.findall(r"<script", page)) == 2


@given(st.text(st.characters(exclude_categories=())))
def test_embedded_data_survives_any_text(value: str) -> None:
    block = embedded_json("d", {value: value})
    inner = block.removeprefix('<script type="application/json" id="d">').removesuffix("</script>")
    assert not set(inner) & set("<>&")
    assert json.loads(inner) == {value: value}


@given(st.text(st.characters(exclude_categories=())))
def test_escaped_text_reads_back_as_itself(value: str) -> None:
    escaped = text(value, 10**6)
    assert not set(escaped) & set("<>\"'")
    escaped.encode("utf-8")
    if value.isprintable() and "\u202e" not in value:
        assert "".join(Page(f"<p>{escaped}</p>").words) == value


@given(st.text(), st.integers(4, 60))
def test_a_short_id_keeps_both_ends(label: str, length: int) -> None:
    short = short_id(label, length)
    assert len(short) == min(len(label), length)
    head, cut, tail = short.partition("…")
    assert short == label or (cut and len(tail) >= len(head) - 1 and label.startswith(head) and label.endswith(tail))


def test_values_that_json_has_not_become_null_or_text() -> None:
    mixed = {"a": math.nan, "b": np.float64(1.5), "c": np.int64(3), "d": {1: (1, math.inf)}, "e": Status.FINISHED}
    assert plain(mixed) == {"a": None, "b": 1.5, "c": 3, "d": {"1": [1, None]}, "e": 1}


def test_nothing_known_is_no_crash(make_result: MakeResult) -> None:
    empty = ReportData("nothing", make_result(n=0), {})
    read = Page(render_report(empty))
    assert "The workload held no requests." in read.said
    assert "No request finished" in read.said


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_handful_of_requests_is_enough(make_data: MakeData, make_result: MakeResult, n: int) -> None:
    Page(render_report(make_data(make_result(n=n))))


def test_unfinished_and_rejected_requests_have_no_latency(make_data: MakeData, make_result: MakeResult) -> None:
    result = make_result(n=40)
    status = result.requests.status.copy()
    status[:30] = Status.UNFINISHED
    status[30:] = Status.REJECTED
    stopped = replace(result, requests=replace(result.requests, status=status))
    page = render_report(make_data(stopped))
    drawn = set(re.findall(r'id="(cdf-[a-z0-9]+)-figure', page))
    assert drawn == {"cdf-itl"}  # gaps between the tokens of unfinished requests are known
    assert "No request finished." in Page(page).said
    assert "bar-row" not in page[page.index("</style>") :]
    silent = replace(stopped, itl=make_result(n=0).itl)
    assert "there is no latency to draw" in Page(render_report(make_data(silent))).said


numbers = st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.floats(1e-4, 100))


@settings(
    max_examples=15,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.builds(LoadPoint, *[numbers] * 9, st.booleans()), max_size=5), st.data())
def test_any_sweep_and_any_summary_draw(
    make_data: MakeData, make_result: MakeResult, sweep: list[LoadPoint], draw: st.DataObject
) -> None:
    leaves = st.one_of(st.none(), st.booleans(), st.integers(), numbers, st.text(max_size=5))
    trees = st.recursive(
        leaves, lambda inner: st.dictionaries(st.sampled_from(["p50", "p99", "mean"]), inner), max_leaves=4
    )
    known = ["requests", "latency_s", "goodput", "kv", "saturation", "batch", "prefix_cache", "step_time", "versions"]
    summary = draw.draw(st.dictionaries(st.sampled_from(known), trees))
    data = replace(
        make_data(make_result(n=5)),
        summary=summary,
        sweep=sweep,
        sensitivity=[Sensitivity(point.goodput_fraction, point) for point in sweep],
    )
    Page(render_report(data))
