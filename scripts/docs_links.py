"""Hooks of mkdocs: links to files of the repository that are not in the site, and to folders, become names.

Pages are read in the repository, too, where ``[a recipe](../configs/mae.yaml)`` opens the file. The site holds no such
file. A link to a file that does not exist is left as it is, so that ``--strict`` refuses it. Docstrings name functions
in Sphinx's way (``:func:`name```), of which the site shows the name.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")
_ROLE = re.compile(r":(?:func|class|meth|mod|data):(?=<code)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Called by mkdocs with the text of each page."""
    docs = Path(config["docs_dir"])
    return without_outside_links(markdown, page.file.src_uri, docs)


def on_page_content(html: str, **_: Any) -> str:
    """Called by mkdocs with each page as HTML."""
    return _ROLE.sub("", html)


def without_outside_links(markdown: str, page: str, docs: Path) -> str:
    """A page with its links to folders and to files outside the folder of pages as code.

    Args:
        markdown: the page's text.
        page: where it is, relative to ``docs``, with forward slashes.
        docs: the folder of pages, called ``docs``, in the repository.
    """

    def replaced(link: re.Match[str]) -> str:
        words, target = link[1], link[2]
        where = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
        there = docs.parent / where
        in_site = where.startswith("docs/") and not there.is_dir()
        if "://" in target or where.startswith("..") or in_site or not there.exists():
            return link[0]
        return f"`{where}`" if words.strip("`") in (where, target) else f"{words} (`{where}`)"

    return _LINK.sub(replaced, markdown)
