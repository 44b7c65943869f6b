"""HTML from values: whatever text comes in, markup never does."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

# C0 and C1 controls, surrogates and marks that reverse the direction of what follows: an id may hold them, a page not
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Cell:
    """A table cell: its text, and the number it sorts by where that is not the text."""

    text: str
    sort: float | None = None


def text(value: object, limit: int = 2000) -> str:
    """`value` as HTML text, also fit for a quoted attribute; cut to `limit` characters."""
    raw = str(value)
    if len(raw) > limit:
        raw = raw[: limit - 1] + "…"
    return escape(_UNPRINTABLE.sub("�", raw))


def table(
    caption: str, head: Sequence[str], rows: Sequence[Sequence[Cell | str]], css: str = "", sortable: bool = False
) -> str:
    """A table whose first column names the row; with `sortable`, page.js makes the headings buttons."""
    classes = " ".join(name for name in (css, "sortable" if sortable else "") if name)
    headings = "".join(f'<th scope="col">{text(name)}</th>' for name in head)
    body = "\n".join(f"<tr>{''.join(_cell(cell, i == 0) for i, cell in enumerate(row))}</tr>" for row in rows)
    top = f"<thead><tr>{headings}</tr></thead>\n" if any(head) else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{text(caption)}"><table class="{text(classes)}">'
        f"<caption>{text(caption)}</caption>\n{top}<tbody>\n{body}\n</tbody></table></div>"
    )


def figures(svgs: Sequence[str], caption: str) -> str:
    """SVGs beside each other, with a caption that tells how to read them."""
    panels = "\n".join(f'<div class="panel">{svg}</div>' for svg in svgs)
    return f'<figure><div class="grid">\n{panels}\n</div><figcaption>{text(caption)}</figcaption></figure>'


def embedded_json(identifier: str, value: object) -> str:
    """A block of data for programs that read the page; no text in it can end the block."""
    data = json.dumps(plain(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return f'<script type="application/json" id="{text(identifier)}">{data}</script>'


def plain(value: object, depth: int = 32) -> object:
    """`value` in JSON's types: NaN and infinities become null, anything else its text; `depth` levels at most."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth == 0:
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(inner, depth - 1) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner, depth - 1) for inner in value]
    item = getattr(value, "item", None)  # numpy's scalars
    return plain(item(), depth - 1) if callable(item) and getattr(value, "ndim", None) == 0 else str(value)


def _cell(cell: Cell | str, heading: bool) -> str:
    content, sort = (cell.text, cell.sort) if isinstance(cell, Cell) else (cell, None)
    key = f' data-sort="{sort!r}"' if sort is not None and math.isfinite(sort) else ""
    return f'<th scope="row"{key}>{text(content)}</th>' if heading else f"<td{key}>{text(content)}</td>"
