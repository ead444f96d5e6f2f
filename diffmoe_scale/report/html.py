"""Pieces of a self-contained HTML page. All text is escaped here; only `Markup` goes in as it is."""

import base64
import html
import mimetypes
from collections.abc import Collection, Sequence

STYLE = """
:root { color-scheme: light; --ink: #1f2933; --gray: #616e7c; --line: #e4e7eb; --soft: #f5f7fa; --blue:
  #2563eb; --amber: #b45309; }
* { box-sizing: border-box; }
body { margin: 0; background: white; color: var(--ink); font: 15px/1.55 system-ui, -apple-system, "Segoe
  UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 28px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 44px 0 12px; padding-bottom: 6px; border-bottom: 1px solid var(--line); }
p { margin: 8px 0; max-width: 78ch; }
.note { color: var(--gray); font-size: 13.5px; }
.missing { background: #fffbeb; border-left: 3px solid var(--amber); padding: 10px 14px; border-radius: 0
  6px 6px 0; max-width: none; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size:
  12.5px; }
code { background: var(--soft); padding: 1px 5px; border-radius: 4px; overflow-wrap: anywhere; }
.missing code { background: #fef3c7; }
pre { background: var(--soft); padding: 14px 16px; border-radius: 8px; overflow-x: auto; line-height: 1.45;
  margin: 10px 0; }
details { margin: 12px 0; }
summary { cursor: pointer; color: var(--blue); font-size: 14px; }
.facts { display: grid; grid-template-columns: repeat(4, 1fr); gap: 1px; margin: 18px 0; padding: 0;
  background: var(--line);
  border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.facts div { background: white; padding: 11px 14px; }
.facts dt { color: var(--gray); font-size: 12.5px; }
.facts dd { margin: 1px 0 0; font-size: 17px; font-weight: 600; font-variant-numeric: tabular-nums; }
.facts dd small { display: block; color: var(--gray); font-size: 12px; font-weight: 400; }
table { border-collapse: collapse; margin: 14px 0; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 18px 7px 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align:
  middle; }
th { color: var(--gray); font-size: 12.5px; font-weight: 500; }
td.number, th.number { text-align: right; }
tr.total td { font-weight: 600; border-bottom: 0; }
.bar { position: relative; width: 260px; height: 12px; background: var(--soft); border-radius: 3px; }
.bar i { position: absolute; inset: 0 auto 0 0; background: var(--blue); border-radius: 3px; }
.bar b { position: absolute; top: -3px; bottom: -3px; width: 2px; background: var(--amber); }
figure { margin: 16px 0; }
figcaption { color: var(--gray); font-size: 13px; margin-top: 4px; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; display: block; }
footer { margin-top: 56px; color: var(--gray); font-size: 12.5px; }
@media print {
  body { font-size: 11pt; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  main { max-width: none; padding: 0; }
  h2 { break-after: avoid; }
  figure, table, .facts { break-inside: avoid; }
}
"""


class Markup(str):
    """HTML that is already right."""


def escape(text: object) -> Markup:
    return (
        text
        if isinstance(text, Markup)
        else Markup(html.escape(str(text).replace("\0", "\N{REPLACEMENT CHARACTER}")))
    )


def element(tag: str, *content: object, kind: str = "") -> Markup:
    """`<tag class="kind">content</tag>`."""
    attribute = f' class="{html.escape(kind)}"' if kind else ""
    return Markup(f"<{tag}{attribute}>{''.join(escape(part) for part in content)}</{tag}>")


def join(parts: Sequence[object]) -> Markup:
    return Markup("\n".join(escape(part) for part in parts))


def figure(data: bytes, *, kind: str, caption: str) -> Markup:
    """An image with its caption, in the page itself; `kind` is svg, png or jpeg."""
    media_type = mimetypes.types_map[f".{kind}"]
    source = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
    words = html.escape(caption)
    return Markup(f'<figure><img alt="{words}" src="{source}"><figcaption>{words}</figcaption></figure>')


def facts(entries: Sequence[tuple[str, str, str]]) -> Markup:
    """Boxes of (name, value, small print)."""
    boxes = [
        element(
            "div", element("dt", name), element("dd", value, *([element("small", small)] if small else []))
        )
        for name, value, small in entries
    ]
    return element("dl", *boxes, kind="facts")


def table(
    rows: Sequence[Sequence[object]],
    *,
    header: Sequence[object] = (),
    numbers: Collection[int] = (),
    has_total: bool = False,
) -> Markup:
    """`numbers` are the columns set to the right; the last row may be a total."""

    def cells(tag: str, row: Sequence[object]) -> list[Markup]:
        return [
            element(tag, cell, kind="number" if index in numbers else "") for index, cell in enumerate(row)
        ]

    lines = [element("tr", *cells("th", header))] if header else []
    for index, row in enumerate(rows):
        lines.append(
            element("tr", *cells("td", row), kind="total" if has_total and index == len(rows) - 1 else "")
        )
    return element("table", *lines)


def bar(value: float, mark: float) -> Markup:
    """A bar of length `value` with a line at `mark`, both in [0, 1]."""
    length, line = f"width:{100 * value:.1f}%", f"left:{100 * mark:.1f}%"
    return Markup(f'<div class="bar"><i style="{length}"></i><b style="{line}"></b></div>')


def fold(title: str, text: str) -> Markup:
    """Text that a click opens."""
    return element("details", element("summary", title), element("pre", text))


def missing(what: str, command: str) -> Markup:
    """What is not there, and the command that makes it."""
    return element("p", what, " ", element("code", command), kind="missing")


def page(title: str, body: Markup) -> str:
    """A whole document that needs no other file."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""
