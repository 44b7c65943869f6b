"""One page that holds everything: no network, no script, style or font from elsewhere."""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from simkit.report.data import ReportData, at
from simkit.report.fleet import fleet_section
from simkit.report.markup import embedded_json, text
from simkit.report.palette import DARK_PARTS, PARTS, css_variables
from simkit.report.sections import SECTIONS, banners, verdict_tables
from simkit.report.verdict import verdict


def render_report(data: ReportData) -> str:
    """The report as one HTML document in UTF-8; the same data gives the same bytes.

    Needs no script to be read: page.js sorts tables and hides parts of bars. All text that comes from outside (names,
    ids, paths) is escaped, and a content security policy lets the browser run page.js alone and load nothing.
    """
    judged = verdict(data)
    sections = [(section.anchor, section.heading, section.content(data)) for section in SECTIONS]
    if at(data.summary, "fleet") is not None:
        sections.insert(1, ("fleet", "Fleet", fleet_section(data)))
    return page(data.title, banners(data, judged), verdict_tables(data, judged), sections, _machine_readable(data))


def page(
    title: str, banners_html: str, numbers_html: str, sections: Sequence[tuple[str, str, str]], data: object
) -> str:
    """A page of the house: banners, what it comes to in numbers, sections of (anchor, heading, HTML), data as JSON."""
    script = _resource("page.js")
    replacements = {
        "@TITLE@": text(title, 200),
        "@POLICY@": _policy(script),
        "@STYLE@": _style(),
        "@BANNERS@": banners_html,
        "@NAVIGATION@": "".join(f'<a href="#{anchor}">{text(heading)}</a>' for anchor, heading, _ in sections),
        "@VERDICT@": numbers_html,
        "@SECTIONS@": "\n".join(_section(*section) for section in sections),
        "@DATA@": embedded_json("report-data", data),
        "@SCRIPT@": script,
    }
    # each piece of the template is written once, so that no value's text can be taken for a placeholder
    pieces = _resource("page.html").split("\n")
    return "\n".join(_fill(piece, replacements) for piece in pieces)


def _fill(line: str, replacements: dict[str, str]) -> str:
    for name, value in replacements.items():
        before, found, after = line.partition(name)
        if found:
            return before + value + after
    return line


def _section(anchor: str, heading: str, content: str) -> str:
    title = f'<h2 id="{anchor}-h">{text(heading)}</h2>'
    return f'<section id="{anchor}" aria-labelledby="{anchor}-h">{title}\n{content}</section>'


def _policy(script: str) -> str:
    """The page may run this one script, by its hash, and fetch nothing."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"


def _style() -> str:
    dark = f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {css_variables(DARK_PARTS)} }} }}"
    parts = " ".join(f".{part} {{ background: var(--part-{part}); }}" for part in PARTS)
    return f":root {{ {css_variables(PARTS)} }}\n{dark}\n{parts}\n{_resource('page.css')}"


def _machine_readable(data: ReportData) -> dict[str, object]:
    return {
        "title": data.title,
        "summary": data.summary,
        "slo": data.slo,
        "sweep": [vars(point) for point in data.sweep],
        "sensitivity": [{"step_time_factor": row.step_time_factor, **vars(row.point)} for row in data.sensitivity],
        "config": data.config,
        "versions": data.versions,
        "complete": data.result.complete,
    }


def _resource(name: str) -> str:
    return files("simkit.report").joinpath(name).read_text(encoding="utf-8")
