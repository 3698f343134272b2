"""What ``nnssl-mae scan`` says on the screen."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nnssl_mae.catalogue.find import FoundScans, path_text, text_of
from nnssl_mae.catalogue.table import Catalogue
from nnssl_mae.console import say as print_as_it_is

_GUESSED = ("folder", "dicom", "file")
_MANY, _SHARE = 50, 0.5
_ENOUGH = 20
_SHOWN = 3


def say(console: Console, sentence: str, style: str | None = None) -> None:
    """As it is, also where names of files hold bytes that are no text."""
    print_as_it_is(console, text_of(sentence), style)


def print_found(found: FoundScans, console: Console) -> None:
    """How many scans there are, and what could not be searched."""
    files = sum(1 for one in found.found if not one.scan.series)
    series = len(found.found) - files
    more = f" and {series} DICOM series" if series else ""
    say(console, f"Found {files} files of scans{more}.")
    for folder, reason in found.closed[:_SHOWN]:
        say(console, f"{path_text(folder)} cannot be searched ({reason}).", style="yellow")
    if len(found.closed) > _SHOWN:
        say(console, f"... nor can {len(found.closed) - _SHOWN} more folders.", style="yellow")
    for mask in found.lonely_masks[:_SHOWN]:
        say(console, f"{path_text(mask)} is an exclusion mask by its name, but its scan is not there.", style="yellow")
    if len(found.lonely_masks) > _SHOWN:
        say(console, f"... so are {len(found.lonely_masks) - _SHOWN} more.", style="yellow")


def print_result(catalogue: Catalogue, folder: Path, earlier: Catalogue | None, console: Console) -> None:
    """Accepted, rejected by reason, and what looks wrong as a whole."""
    rows = catalogue.rows
    accepted = catalogue.accepted
    people = len(accepted[["dataset", "subject"]].drop_duplicates())
    say(console, f"{len(accepted)} of {len(rows)} scans accepted, of {people} subjects; {folder} holds the catalogue.")
    if len(accepted) < len(rows):
        console.print(_reasons(rows))
    for warning in (*_crowded(rows), *_gone(rows, earlier)):
        say(console, warning, style="yellow")


def _reasons(rows: pandas.DataFrame) -> Table:
    rejected = rows[rows["verdict"] != "accepted"]
    codes = rejected["check"].where(rejected["check"] != "", "rule: " + rejected["rule"])
    table = Table("rejected because", "scans", "for instance")
    for code, count in codes.value_counts(sort=True).items():
        first = rejected[codes == code].iloc[0]
        table.add_row(Text(str(code)), str(count), Text(f"{first['case']} {first['detail']}".strip()))
    return table


def _crowded(rows: pandas.DataFrame) -> list[str]:
    """A subject with very many scans is rather a site or a folder of something else."""
    guessed = rows[rows["subject_from"].isin(_GUESSED)]
    counts = Counter(zip(guessed["dataset"], guessed["subject"], strict=True)).most_common(_SHOWN)
    crowded = [
        (subject, count)
        for (_, subject), count in counts
        if count > _MANY or (count >= _ENOUGH and count > _SHARE * len(rows))
    ]
    return [
        f"Subject {subject} has {count} scans; if these are several persons, say whose they are by --subject-regex, "
        "or one person's scans will be used for training and validation."
        for subject, count in crowded
    ]


def _gone(rows: pandas.DataFrame, earlier: Catalogue | None) -> list[str]:
    if earlier is None:
        return []
    now = set(zip(rows["path"], rows["series"], strict=True))
    before = set(zip(earlier.rows["path"], earlier.rows["series"], strict=True))
    count = len(before - now)
    return [f"{count} scans of the earlier catalogue were not found any more."] if count else []
