"""The building blocks of scan.html: one file, no scripts, nothing from outside; light, dark or printed.

Whatever comes from files (names, paths, DICOM texts) is escaped here and nowhere else: the functions take plain texts,
except where an argument is called ``content`` or ``blocks``.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape

Cell = str | int | tuple[str, ...]

_STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --back: #ffffff; --soft: #5b616b; --line: #d8dbe0; --tile: #f3f4f6;
        --good: #0072b2; --bad: #e69f00; --why: #9c4a00; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e7ea; --back: #16181c; --soft: #9aa0aa; --line: #343840; --tile: #1f2227;
          --good: #56b4e9; --bad: #e69f00; --why: #f0b35a; }
}
* { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 78rem;
       margin: 0 auto; padding: 1rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin-bottom: .3rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p, ul { max-width: 50rem; } nav a { margin-right: 1rem; color: var(--good); }
.soft { color: var(--soft); }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0; }
.tile { background: var(--tile); border-radius: 8px; padding: .5rem 1rem; min-width: 6.5rem; }
.tile b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .85rem; }
.scroll { overflow-x: auto; margin: .7rem 0; overflow-wrap: break-word; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem 1rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1.2rem 1.6rem; }
.charts figure { margin: 0; break-inside: avoid; }
.charts figcaption { font-size: .9rem; font-weight: 600; }
.charts p { margin: 0; font-size: .8rem; color: var(--soft); }
svg { width: 100%; height: auto; display: block; }
svg text { font: 10px system-ui, sans-serif; fill: var(--soft); }
.good { fill: var(--good); } .bad { fill: var(--bad); } .axis { stroke: var(--line); }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin: 0 .3rem 0 .8rem; }
.scans { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); gap: 1rem; }
.scans figure { margin: 0; break-inside: avoid; }
.scans img { width: 100%; height: auto; display: block; background: #000; border-radius: 4px; }
.none { background: var(--tile); color: var(--soft); border-radius: 4px; aspect-ratio: 3; display: grid;
        place-items: center; font-size: .85rem; }
.scans figcaption { font-size: .82rem; line-height: 1.35; margin-top: .3rem; }
.scans figcaption b { display: block; } .scans figcaption span { color: var(--soft); display: block; }
.scans figcaption .why { color: var(--why); }
details summary { cursor: pointer; color: var(--good); }
@media print { body { max-width: none; font-size: 12px; } nav { display: none; } }
"""
# Even a text that slipped through unescaped could load nothing and run nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
# Control characters, and those that reverse the direction of what follows, can make a name look like another.
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def plain(text: object) -> str:
    """Text for HTML: escaped, with control characters made visible as ``<U+202E>``."""
    return escape(_INVISIBLE.sub(lambda found: f"<U+{ord(found.group()):04X}>", str(text)))


def document(title: str, content: str) -> str:
    """The whole page."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{plain(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{plain(title)}</h1>\n{content}</body>\n</html>\n"
    )


def contents(titles: Sequence[str]) -> str:
    """Links to the sections of these titles."""
    return "<nav>" + "".join(f'<a href="#{_anchor(title)}">{plain(title)}</a>' for title in titles) + "</nav>\n"


def section(title: str, content: str) -> str:
    """A heading, and below it what belongs to it."""
    return f'<section id="{_anchor(title)}">\n<h2>{plain(title)}</h2>\n{content}</section>\n'


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z]+", "-", title.lower()).strip("-")


def heading(text: str) -> str:
    """A heading inside a section."""
    return f"<h3>{plain(text)}</h3>\n"


def paragraph(text: str, soft: bool = False) -> str:
    """A paragraph, on request in the colour of remarks."""
    kind = ' class="soft"' if soft else ""
    return f"<p{kind}>{plain(text)}</p>\n"


def bullets(texts: Sequence[str]) -> str:
    """A list."""
    return "<ul>\n" + "".join(f"<li>{plain(text)}</li>\n" for text in texts) + "</ul>\n"


def folded(title: str, content: str) -> str:
    """Something that a click opens."""
    return f"<details><summary>{plain(title)}</summary>\n{content}</details>\n"


def tiles(numbers: dict[str, int]) -> str:
    """Large numbers with their names below."""
    one = "".join(
        f'<div class="tile"><b>{number:,}</b><span>{plain(name)}</span></div>' for name, number in numbers.items()
    )
    return f'<div class="tiles">{one}</div>\n'


def table(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table; whole numbers stand at the right, several texts in a cell below each other."""
    numeric = {place for row in rows for place, cell in enumerate(row) if isinstance(cell, int)}
    head = "".join(_cell("th", text, place in numeric) for place, text in enumerate(header))
    lines = ["".join(_cell("td", cell, place in numeric) for place, cell in enumerate(row)) for row in rows]
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f'<div class="scroll"><table>\n<tr>{head}</tr>\n{body}</table></div>\n'


def _cell(tag: str, cell: Cell, numeric: bool) -> str:
    texts = [f"{cell:,}"] if isinstance(cell, int) else [cell] if isinstance(cell, str) else cell
    kind = ' class="number"' if numeric else ""
    return f"<{tag}{kind}>{'<br>'.join(plain(text) for text in texts)}</{tag}>"


def scans(cards: Sequence[str]) -> str:
    """Cards of scans, as many beside each other as fit."""
    return f'<div class="scans">\n{"".join(cards)}</div>\n'


def card(name: str, facts: Sequence[str], why: Sequence[str], png: bytes | None, missing: str = "") -> str:
    """A picture, or what to say where there is none, with the name of the scan, facts, and why it is shown."""
    lines = "".join(f"<span>{plain(fact)}</span>" for fact in facts)
    lines += "".join(f'<span class="why">{plain(reason)}</span>' for reason in why)
    return f"<figure>{_image(name, png, missing)}<figcaption><b>{plain(name)}</b>{lines}</figcaption></figure>\n"


def _image(name: str, png: bytes | None, missing: str) -> str:
    if png is None:
        return f'<div class="none">{plain(missing)}</div>'
    content = base64.b64encode(png).decode("ascii")
    return f'<img src="data:image/png;base64,{content}" alt="{plain(name)}">'
