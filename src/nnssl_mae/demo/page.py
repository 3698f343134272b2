"""A plain, self-contained HTML page: light and dark, readable on a phone."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

_STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --back: #ffffff; --soft: #667; --line: #d8dbe0; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e7ea; --back: #16181c; --soft: #9aa0aa; --line: #343840; }
}
body { font: 16px/1.55 system-ui, sans-serif; color: var(--text); background: var(--back);
       max-width: 60rem; margin: 0 auto; padding: 1rem 1rem 4rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
figure { margin: 1rem 0; } img { width: 100%; height: auto; border-radius: 6px; }
figcaption { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
"""


def document(title: str, sections: Sequence[str]) -> str:
    """The whole page; ``sections`` are HTML, everything else is escaped."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{''.join(sections)}</body>\n</html>\n"
    )


def section(title: str, content: str) -> str:
    """A heading and HTML below it."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}</section>\n"


def paragraphs(texts: Sequence[str]) -> str:
    """One paragraph a text."""
    return "".join(f"<p>{escape(text)}</p>\n" for text in texts)


def bullets(texts: Sequence[str]) -> str:
    """A list."""
    return "<ul>\n" + "".join(f"<li>{escape(text)}</li>\n" for text in texts) + "</ul>\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls sideways on a narrow screen."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="scroll"><table>\n<tr>{head}</tr>\n{body}</table></div>\n'


def picture(path: Path, caption: str) -> str:
    """A PNG, embedded, with its caption."""
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    source = f"data:image/png;base64,{content}"
    return (
        f'<figure>\n<img src="{source}" alt="{escape(caption)}">\n'
        f"<figcaption>{escape(caption)}</figcaption>\n</figure>\n"
    )
