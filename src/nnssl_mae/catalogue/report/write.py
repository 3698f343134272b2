"""Writes scan.html: what a catalogue holds, what was left out and why, and pictures that show a person the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas
from numpy.typing import NDArray
from rich.console import Console

from nnssl_mae.catalogue.report.outliers import find_outliers, groups, median_picture
from nnssl_mae.catalogue.report.pictures import THUMBNAILS, as_png, read_pictures, read_shrunk
from nnssl_mae.catalogue.report.sections import (
    MOST_OF_A_REASON,
    MOST_OUTLIERS,
    MOST_REASONS,
    Contents,
    by_reason,
    counts,
    whole_page,
)
from nnssl_mae.catalogue.rules import notes
from nnssl_mae.catalogue.table import REJECTED, read_catalogue
from nnssl_mae.errors import UserError
from nnssl_mae.files import whole_file

PAGE = "scan.html"
MOST_SAMPLED = 300
"""Accepted scans in the random sample, at most."""
MOST_BYTES = 9_000_000
"""Of all pictures together: with the text, the page stays below some 14 MB."""
_MOST_TYPICAL = 8


def write_report(folder: Path, console: Console, sample: int = 48, seed: int = 0) -> Path:
    """Writes ``scan.html`` into the folder of a catalogue, and prints where it lies and what it counts.

    Args:
        folder: of the catalogue.
        console: to print on.
        sample: how many accepted scans to show, drawn evenly over data sets and modalities; at most 300.
        seed: decides which ones.

    Raises:
        UserError: there is no catalogue, it or its pictures are damaged, or ``sample`` or ``seed`` is negative.
    """
    for option, value in (("--sample", sample), ("--seed", seed)):
        if value < 0:
            raise UserError(f"{option} {value} is not possible; give 0 or more")
    contents = _gather(folder, console, min(sample, MOST_SAMPLED), seed)
    target = folder / PAGE
    with whole_file(target) as temporary:
        temporary.write_text(whole_page(contents), encoding="utf-8")
    for line in _summary(contents, folder):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return target


def sample_scans(rows: pandas.DataFrame, count: int, seed: int) -> list[str]:
    """Cases drawn at random, in turns from every combination of data set and modality, so that rare ones are seen."""
    shuffled = rows.iloc[np.random.default_rng(seed).permutation(len(rows))]
    turn = shuffled.groupby(["dataset", "modality"], sort=False, dropna=False).cumcount()
    drawn = shuffled.iloc[np.argsort(turn.to_numpy(), kind="stable")[:count]]
    return [str(case) for case in drawn.sort_values(["dataset", "modality", "case"])["case"]]


def _gather(folder: Path, console: Console, sample: int, seed: int) -> Contents:
    catalogue = read_catalogue(folder)
    accepted = catalogue.accepted.reset_index(drop=True)
    shrunk, known = read_shrunk(folder, accepted["case"].tolist(), console if (folder / THUMBNAILS).is_file() else None)
    outliers = find_outliers(accepted, shrunk, known, seed)
    sampled = sample_scans(accepted, sample, seed)
    shown = [*sampled, *(outlier.case for outlier in outliers[:MOST_OUTLIERS])]
    rejected = catalogue.rows[catalogue.rows["verdict"] == REJECTED]
    for _, rows in by_reason(rejected)[:MOST_REASONS]:
        shown += rows["case"][:MOST_OF_A_REASON].tolist()
    available = read_pictures(folder, shown)
    kept = _within_budget(available, shown)
    return Contents(
        name=folder.resolve().name,
        catalogue=catalogue,
        sample=sampled,
        outliers=outliers,
        typical=_typical(accepted, shrunk, known, seed),
        without_picture=int((~known).sum()),
        pictures=kept,
        too_many=available.keys() - kept.keys(),
    )


def _typical(
    accepted: pandas.DataFrame, shrunk: NDArray[np.uint8], known: NDArray[np.bool_], seed: int
) -> dict[str, bytes]:
    """The median picture of the largest groups, by their name."""
    largest = sorted(groups(accepted), key=lambda group: -len(group.reference))[:_MOST_TYPICAL]
    medians = {group.label: median_picture(group, shrunk, known, seed) for group in largest}
    return {label: as_png(median) for label, median in medians.items() if median is not None}


def _within_budget(pictures: dict[str, bytes], order: Sequence[str]) -> dict[str, bytes]:
    """The pictures in the order of their cases, each as often as its case occurs, until the page is full."""
    kept: dict[str, bytes] = {}
    left = MOST_BYTES
    for case, times in Counter(order).items():
        if case in pictures and times * len(pictures[case]) <= left:
            kept[case] = pictures[case]
            left -= times * len(pictures[case])
    return kept


def _outliers_in_words(number: int) -> str:
    if number == 1:
        return "1 accepted scan is an outlier: look at it."
    return f"{number} accepted scans are outliers: look at them."


def _summary(contents: Contents, folder: Path) -> list[str]:
    numbers = counts(contents.rows)
    lines = [
        f"{numbers['scans']} scans of {numbers['subjects']} subjects: {numbers['accepted']} accepted, "
        f"{numbers['rejected']} rejected.",
        *(f"  {reason}: {len(rows)}" for reason, rows in by_reason(contents.rejected)),
        _outliers_in_words(len(contents.outliers)),
    ]
    if not (folder / THUMBNAILS).is_file():
        lines.append(f"{folder / THUMBNAILS} is missing, so that the page has no pictures.")
    elif contents.without_picture:
        has = "scan has" if contents.without_picture == 1 else "scans have"
        lines.append(f"{contents.without_picture} accepted {has} no picture.")
    return [*lines, *notes(contents.catalogue), f"Open {folder / PAGE}"]
