"""What to cite, as BibTeX: the one place where lines such as those of recipes become entries.

Papers that shipped recipes name have whole entries in ``configs/papers.bib``. Of others a line is all there is; it
reads ``Wald et al. 2025, TITLE, arXiv:2412.17041`` or ``Isensee et al. 2021, TITLE, JOURNAL 18, 203-211``, with
``doi:`` in place of ``arXiv:`` where there is one. Whatever else somebody wrote becomes a note, word for word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import chain, count

from nnssl_mae.recipes.reading import configs_folder

NNUNET = "Isensee et al. 2021, nnU-Net, Nature Methods 18, 203-211"
"""To be cited with every recipe: all of them are trained, fine-tuned and predicted by it."""

_LINE = re.compile(r"(?P<author>\D+?) (?P<year>\d{4}), (?P<title>.+)")
_ARXIV = re.compile(_LINE.pattern + r", arXiv:(?P<eprint>\d{4}\.\d{4,5})(?:v\d+)?")
_DOI = re.compile(_LINE.pattern + r", doi:(?P<doi>10\.[^\s{}]+)")
_JOURNAL = re.compile(
    _LINE.pattern
    + r", (?P<journal>[^,\d]+) (?P<volume>\d+), (?P<first>\d+)-(?P<last>\d+)(?:, doi:(?P<doi>10\.[^\s{}]+))?"
)
# What may stand before "arXiv:". A closed list, because titles have commas too.
_VENUES = {"IEEE TIP": "IEEE Transactions on Image Processing"}
_BIBTEX = re.compile(r"@\w+\s*\{\s*(?P<key>[^,\s{}]+)\s*,.*\}", re.DOTALL)
_ARXIV_NUMBER = re.compile(r"(?:arXiv:\s*|eprint\s*=\s*[{\"]+\s*)(\d{4}\.\d{4,5})", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+")


def bibliography(citations: Iterable[str]) -> str:
    """BibTeX of each paper once, in the order given, no two entries under one key; empty if there is none.

    Two citations are of one paper if they have the same arXiv number, or else the same words in any case.
    """
    papers: dict[str, str] = {}
    for citation in citations:
        papers.setdefault(_paper(citation), citation)
    taken: set[str] = set()
    entries = (_shipped().get(paper) or bibtex(citation) for paper, citation in papers.items())
    return "\n\n".join(_under_a_free_key(entry, taken) for entry in entries)


@cache
def _shipped() -> Mapping[str, str]:
    """Whole entries by paper; the one without an arXiv number is nnU-Net's."""
    text = (configs_folder() / "papers.bib").read_text(encoding="utf-8")
    entries = [entry.strip() for entry in text.split("\n\n") if entry.strip()]
    return {_paper(entry if _ARXIV_NUMBER.search(entry) else NNUNET): entry for entry in entries}


def bibtex(citation: str) -> str:
    """A line such as ``Roe et al. 2025, Title, arXiv:2501.00001`` as BibTeX; what is BibTeX already stays."""
    if _is_bibtex(citation.strip()):
        return "".join(letter for letter in citation.strip() if letter.isprintable() or letter == "\n")
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in citation).split())
    if match := _JOURNAL.fullmatch(text):
        pages = f"{match['first']}--{match['last']}"
        more = {"journal": match["journal"], "volume": match["volume"], "pages": pages, "doi": match["doi"]}
        return _paper_entry("article", match["author"], match["year"], match["title"], more)
    if match := _ARXIV.fullmatch(text):
        return _preprint(match["author"], match["year"], match["title"], match["eprint"])
    if match := _DOI.fullmatch(text):
        return _paper_entry("misc", match["author"], match["year"], match["title"], {"doi": match["doi"]})
    match = _LINE.fullmatch(text)
    key = _key(match["author"], match["year"], match["title"]) if match else "citation"
    return _entry("misc", key, {"note": _plain(text)})


def _preprint(author: str, year: str, title: str, number: str) -> str:
    more = {"eprint": number, "archivePrefix": "arXiv"}
    for venue, journal in _VENUES.items():
        if title.endswith(f", {venue}"):
            return _paper_entry("article", author, year, title.removesuffix(f", {venue}"), {"journal": journal, **more})
    return _paper_entry("misc", author, year, title, more)


def _paper_entry(kind: str, author: str, year: str, title: str, more: Mapping[str, str | None]) -> str:
    authors = re.sub(r",? et al\.?$", " and others", author).replace(", ", " and ")
    # Two pairs of braces: bibliography styles would write nnU-Net and 3D in small letters.
    fields = {"author": _plain(authors), "title": f"{{{_plain(title)}}}", "year": year}
    return _entry(kind, _key(author, year, title), fields | {name: value for name, value in more.items() if value})


def _entry(kind: str, key: str, fields: Mapping[str, str]) -> str:
    lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
    return f"@{kind}{{{key},\n{lines}\n}}"


def _key(author: str, year: str, title: str) -> str:
    """First author, year, first word of the title with more than three letters, or all of a shorter title."""
    words = _WORD.findall(title)
    word = next((word for word in words if len(word) > 3), "".join(words))
    first = _WORD.search(author)
    return f"{first[0] if first else 'citation'}{year}{word}".lower()


def _plain(text: str) -> str:
    """Text for a field: no brace or backslash, which could end the entry, and signs of TeX as they look."""
    return re.sub(r"[&%#$_]", r"\\\g<0>", re.sub(r"[{}\\]", "", text))


def _is_bibtex(text: str) -> bool:
    return _BIBTEX.fullmatch(text) is not None and text.count("{") == text.count("}")


def _paper(citation: str) -> str:
    """What is equal for two citations of one paper."""
    number = _ARXIV_NUMBER.search(citation)
    return number[1] if number else " ".join(citation.lower().split())


def _under_a_free_key(entry: str, taken: set[str]) -> str:
    """The entry, under another key if its own is taken; the key is added to ``taken``."""
    match = _BIBTEX.fullmatch(entry)
    assert match is not None, "every entry of bibtex() has a key"
    candidates = (f"{match['key']}{ending}" for ending in chain([""], (f"-{number}" for number in count(2))))
    key = next(candidate for candidate in candidates if candidate not in taken)
    taken.add(key)
    return f"{entry[: match.start('key')]}{key}{entry[match.end('key') :]}"
