"""compare.html: one file, no scripts, nothing from outside; for a screen, a phone or paper."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nnssl_mae import __version__
from nnssl_mae.catalogue.report.page import (
    bullets,
    contents,
    document,
    folded,
    heading,
    paragraph,
    plain,
    section,
    table,
)
from nnssl_mae.comparison.figures import Picture
from nnssl_mae.comparison.kinds import METRICS
from nnssl_mae.comparison.summary import Comparison
from nnssl_mae.comparison.tables import (
    MISSING,
    NAMES,
    NO_CONTROL,
    NO_HOLES,
    Sheet,
    failure_sentences,
    hole_sentences,
    labels_sheet,
    means_sheet,
    pairs_sheet,
    ranks_sheet,
    verdicts,
)

_MOST_OPEN = 12
"""Sentences that are shown without a click."""
_LEAST_WIDTH = 560
"""Pixels of a picture."""


@dataclass(frozen=True)
class About:
    """What was asked for, for the page: no paths of this machine."""

    title: str = "Comparison of segmentation models"
    arms: Mapping[str, str] = field(default_factory=dict)
    """Of each arm, what it stands for, in words."""
    cases: str = ""
    """Which cases were measured, in a sentence; empty where an earlier version measured them."""
    warnings: Sequence[str] = ()
    """What may make the numbers mean something else than they seem to: sentences."""
    remarks: Sequence[str] = ()
    """How it was measured: sentences."""

    @property
    def first(self) -> tuple[str, ...]:
        """What stands before all other notes."""
        return (*([self.cases] if self.cases else []), *self.warnings)


def compare_page(comparison: Comparison, drawings: Sequence[tuple[Picture, bytes]], about: About) -> str:
    """The whole page.

    Args:
        comparison: the summary.
        drawings: pictures, each with its SVG file.
        about: what was compared.
    """
    drawn = {picture.name: _drawing(picture, svg) for picture, svg in drawings}
    differences = "".join(block for name, block in drawn.items() if name.startswith("differences"))
    parts = {
        "In short": _in_short(comparison, about),
        "Means": drawn.get("few_labels", "") + _sheet(means_sheet(comparison)),
        "Differences": differences + _differences(comparison),
        "Average ranks": drawn.get("ranks", "") + _sheet(ranks_sheet(comparison)),
        "Labels": _labels(comparison, drawn.get("labels", "")),
        "Convergence": drawn.get("convergence", ""),
        "Missing runs": _sentences(hole_sentences(comparison), NO_HOLES),
        "Failures": _failures(comparison),
        "How this was measured": bullets([*comparison.notes, *about.remarks])
        + paragraph(f"Written by nnssl_mae {__version__}.", soft=True),
    }
    parts = {title: content for title, content in parts.items() if content}
    sections = "".join(section(title, content) for title, content in parts.items())
    return document(about.title, contents(list(parts)) + sections)


def _in_short(comparison: Comparison, about: About) -> str:
    datasets = sorted(set(comparison.cells["dataset"]))
    words = f"{_number(len(comparison.arms), 'arm')} on {_number(len(datasets), 'dataset')}: {', '.join(datasets)}."
    if not comparison.controls:
        said = paragraph(NO_CONTROL)
    else:
        said = _sentences(verdicts(comparison), "No pair could be compared.")
    missing = len(comparison.holes)
    if missing:
        count = "1 run is" if missing == 1 else f"{missing} runs are"
        said = _warning(f"{count} missing; the cells concerned have no mean (see Missing runs).") + said
    said = "".join(map(_warning, about.warnings)) + said
    rows = [(arm, "control" if arm in comparison.controls else "", about.arms.get(arm, "")) for arm in comparison.arms]
    measured = paragraph(about.cases) if about.cases else ""
    return paragraph(words) + measured + said + table(("arm", "", "stands for"), rows)


def _differences(comparison: Comparison) -> str:
    sheets = [(metric, pairs_sheet(comparison, metric)) for metric in METRICS]
    blocks = [(metric, _sheet(sheet)) for metric, sheet in sheets if sheet is not None]
    first = "".join(block for metric, block in blocks if metric is METRICS[0])
    return first + "".join(folded(f"In {m.title}", block) for m, block in blocks if m is not METRICS[0])


def _labels(comparison: Comparison, drawing: str) -> str:
    sheet = labels_sheet(comparison)
    return drawing + (folded("As a table", _sheet(sheet)) if sheet is not None else "")


def _failures(comparison: Comparison) -> str:
    sentences = failure_sentences(comparison)
    if not sentences:
        return paragraph("No case failed.")
    words = f"{_number(len(sentences), 'case')} of a run failed; each is counted with the worst score."
    return paragraph(words) + _sentences(sentences, "")


def _sentences(sentences: Sequence[str], none: str) -> str:
    if not sentences:
        return paragraph(none)
    rest = sentences[_MOST_OPEN:]
    return bullets(sentences[:_MOST_OPEN]) + (folded(f"{len(rest)} more", bullets(rest)) if rest else "")


def _warning(text: str) -> str:
    return f'<p style="color:var(--why)"><b>{plain(text)}</b></p>\n'


def _sheet(sheet: Sheet | None) -> str:
    """A table whose numbers stand at the right; holes are in the colour of warnings."""
    if sheet is None:
        return ""
    head = "".join(_cell("th", place, text, sheet.header) for place, text in enumerate(sheet.header))
    lines = [f"<tr>{head}</tr>\n"]
    for title, rows in sheet.groups:
        if title:
            lines.append(f'<tr><th colspan="{len(sheet.header)}" style="padding-top:1rem">{plain(title)}</th></tr>\n')
        for row in rows:
            cells = "".join(_cell("td", place, text, sheet.header) for place, text in enumerate(row))
            lines.append(f"<tr>{cells}</tr>\n")
    return f'{heading(sheet.title)}<div class="scroll"><table>\n{"".join(lines)}</table></div>\n'


def _cell(tag: str, place: int, text: str, header: Sequence[str]) -> str:
    content = "<br>".join(plain(line) for line in text.split("\n"))
    if text.startswith(MISSING):
        return f'<{tag} style="color:var(--why)"><b>{content}</b></{tag}>'
    kind = "" if header[place] in NAMES else ' class="number"'
    return f"<{tag}{kind}>{content}</{tag}>"


def _drawing(picture: Picture, svg: bytes) -> str:
    """A picture as wide as it is drawn, or as the window; on white, also where the page is dark."""
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode('ascii')}"
    width = round(picture.figure.get_figwidth() * 96)
    least = min(width, _LEAST_WIDTH)  # a narrow window scrolls rather than make letters too small to read
    style = f"width:{width}px;max-width:100%;min-width:{least}px;height:auto;background:#fff;border-radius:6px"
    return (
        f'<figure style="margin:1rem 0;break-inside:avoid">{heading(picture.title)}'
        f'<div class="scroll"><img src="{source}" alt="{plain(picture.title)}" style="{style}"></div>'
        f'<figcaption class="soft" style="max-width:50rem">{plain(picture.caption)}</figcaption></figure>\n'
    )


def _number(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
