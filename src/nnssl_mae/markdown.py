"""Text and tables for the pages that are generated from the code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def escaped(text: str) -> str:
    """A text in one line, with what Markdown would take for markup outside `code` shielded."""
    text = " ".join(text.split())
    pieces = text.split("`")
    if len(pieces) % 2 == 0:  # a lone backtick is a letter
        pieces = [text.replace("`", "'")]
    for index in range(0, len(pieces), 2):
        pieces[index] = re.sub(r"([*<\[])", r"\\\1", pieces[index]).replace("__", r"\_\_")
    return "`".join(pieces)
