"""The list of scans that a prepared dataset does not hold, and why."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

import pandas

LEFT_OUT = "left_out.csv"


@dataclass(frozen=True, order=True)
class LeftOut:
    """A scan that is not in the dataset."""

    path: str
    case: str
    check: str
    """Word of the check that it failed, or ``rule`` if a rule of the user left it out."""
    detail: str
    """Why, as a part of a sentence."""


def each(rows: pandas.DataFrame) -> Iterator[Any]:
    """Rows of a catalogue with their columns as attributes (pandas' types do not know the columns)."""
    return iter(rows.itertuples())


def rejected(rows: pandas.DataFrame) -> list[LeftOut]:
    """Rows of a catalogue that was looked at before."""
    return [LeftOut(row.path, row.case, row.check or "rule", row.detail or row.rule) for row in each(rows)]


def as_csv(scans: Iterable[LeftOut]) -> bytes:
    """A table with a head line, sorted by path."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([entry.name for entry in fields(LeftOut)])
    writer.writerows(astuple(scan) for scan in sorted(scans))
    # A name that is no text (bytes of another encoding) must not end everything.
    return text.getvalue().encode(errors="backslashreplace")


def counted(scans: Sequence[LeftOut]) -> str:
    """``12 (7 duplicate, 5 spacing)``."""
    counts = Counter(scan.check for scan in scans)
    return f"{len(scans)} ({', '.join(f'{number} {check}' for check, number in counts.most_common())})"
