"""The report as one HTML file that needs nothing beside it."""

import base64
from collections.abc import Mapping
from html import escape

from divjax.lab.sheet import CAPTION, OTHERS, Sheet, Table, parts_table, stored_line

_STYLE = """
:root { color-scheme: light; --ink: #1f2933; --soft: #5a6672; --rule: #dfe4e9; --paper: #ffffff;
  --beside: #2f5d8a; --reproduced: #2b7a4b; --contradicted: #b3362b; --inconclusive: #5a6672; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f6f8; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 800px; margin: 0 auto; padding: 40px 44px 56px; background: var(--paper);
  min-height: 100vh; }
.over { margin: 0; color: var(--soft); font-size: 14px; }
.over a { color: inherit; }
h1 { margin: 4px 0 10px; font-size: 34px; line-height: 1.15; letter-spacing: -0.01em; }
h2 { margin: 40px 0 10px; font-size: 19px; line-height: 1.3; }
.claim { margin: 0 0 26px; font-size: 19px; line-height: 1.45; max-width: 62ch; }
.verdict { border-left: 5px solid var(--tone); padding: 4px 0 4px 18px; margin: 0 0 24px; }
.verdict strong { display: block; font-size: 24px; line-height: 1.25; color: var(--tone); }
.verdict p { margin: 4px 0 0; max-width: 62ch; }
.reproduced { --tone: var(--reproduced); } .contradicted { --tone: var(--contradicted); }
.inconclusive { --tone: var(--inconclusive); } .beside { --tone: var(--beside); }
.scroll { overflow-x: auto; margin: 0 0 8px; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; line-height: 1.4;
  font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 13px;
  vertical-align: bottom; }
th, td { padding: 7px 18px 7px 0; border-bottom: 1px solid var(--rule); }
td { vertical-align: top; } th:last-child, td:last-child { padding-right: 0; }
.figures td:not(:first-child) { white-space: nowrap; }
.status { color: var(--tone); font-weight: 600; }
.hash { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 12px;
  overflow-wrap: anywhere; min-width: 16ch; }
figure { margin: 0; } figure img { display: block; width: 100%; height: auto; }
figcaption { margin-top: 8px; color: var(--soft); font-size: 14px; line-height: 1.45;
  max-width: 70ch; }
p.note { max-width: 66ch; }
.setup { font-size: 14.5px; } .setup td:first-child { white-space: nowrap; color: var(--soft); }
details { margin-top: 18px; } summary { cursor: pointer; font-weight: 600; }
@media (max-width: 600px) { main { padding: 24px 18px 40px; } h1 { font-size: 28px; }
  .claim { font-size: 17px; } figure img { margin: 0 -8px; width: calc(100% + 16px); }
  th, td { padding-right: 12px; }
  .parts thead { display: none; }
  .parts tr { display: block; padding: 10px 0; border-bottom: 1px solid var(--rule); }
  .parts td { display: flex; gap: 12px; padding: 2px 0; border: 0; }
  .parts td:first-child { font-weight: 600; }
  .parts td:not(:first-child)::before { content: attr(data-label); flex: 0 0 8em;
    color: var(--soft); font-weight: 400; } }
@media print { body { background: none; } main { padding: 0; } }
"""


def _table(table: Table, kind: str = "figures") -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    body = "".join(
        "<tr>"
        + "".join(_cell(name, text) for name, text in zip(table.columns, line, strict=True))
        + "</tr>"
        for line in table.lines
    )
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(column: str, text: str) -> str:
    classes = {"status": f"status {text}", "sha256": "hash"}
    return (
        f'<td class="{classes.get(column, "")}" data-label="{escape(column)}">{escape(text)}</td>'
    )


def _figure(title: str, svg: bytes, caption: str = "") -> str:
    picture = base64.b64encode(svg).decode()
    return (
        f'<h2>{escape(title)}</h2><figure><img alt="{escape(title)}" '
        f'src="data:image/svg+xml;base64,{picture}"><figcaption>{escape(caption)}</figcaption></figure>'
    )


def _head(s: Sheet) -> str:
    e, v = s.experiment, s.verdict
    before, status, after = (escape(text) for text in stored_line(s))
    beside = f'<p>{before} <span class="status {status}">{status}</span> {after}</p>'
    return (
        f'<p class="over">divjax experiment, preset {escape(s.label)}, '
        f'<a href="https://arxiv.org/abs/{escape(e.paper)}">arXiv {escape(e.paper)}</a></p>'
        f"<h1>{escape(s.title)}</h1>"
        f'<p class="claim">{escape(s.sentence)}</p>'
        f'<div class="verdict {v.status}"><strong>{v.status.capitalize()}</strong>'
        f"<p>{escape(v.reason[:1].upper() + v.reason[1:])}.</p>{beside if before else ''}</div>"
    )


def page(s: Sheet, figures: Mapping[str, bytes]) -> str:
    """The whole page; `figures` maps titles to svg."""
    first, *others = figures.items()
    blocks = [
        _head(s),
        _table(parts_table(s.verdict.parts), "figures parts"),
        _figure(*first, CAPTION),
        *(f"<h2>{escape(title)}</h2>{_table(table)}" for title, table in s.tables.items()),
        *(_figure(title, picture) for title, picture in others),
        *(f'<p class="note">{escape(note)}</p>' for note in s.notes),
        f"<h2>{OTHERS}</h2>{_table(s.others, 'figures parts')}" if s.others.lines else "",
        "<h2>How it was run</h2>",
        _table(Table(("", ""), s.setup), "setup"),
        _table(s.data, "setup") if s.data.lines else "<p>No data were read.</p>",
        f"<details><summary>Configuration</summary>{_table(s.config, 'setup')}</details>",
    ]
    title = f"{s.title}: {s.verdict.status}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(blocks)}</main></body></html>\n"
    )
