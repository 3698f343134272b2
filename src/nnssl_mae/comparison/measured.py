"""What a comparison is made of, on disk: measured once, it can be summarised again elsewhere without any image.

A comparison's folder holds it as ``cases.csv``, ``convergence.csv`` and ``measured.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas

from nnssl_mae.comparison.cases import TEXT_COLUMNS
from nnssl_mae.comparison.entries import Unfinished
from nnssl_mae.comparison.names import CASES, CURVES, REST
from nnssl_mae.comparison.page import About
from nnssl_mae.errors import UserError
from nnssl_mae.files import read_json, sha256

_AGAIN = "make the comparison again from the models"
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class Measured:
    """Scores of all cases, and what else a summary needs."""

    cases: pandas.DataFrame
    curves: pandas.DataFrame
    unfinished: tuple[Unfinished, ...]
    overlap: Mapping[str, str | None]
    """Of each arm a sentence on overlap between pre-training and test data, None if nobody checked."""
    order: tuple[str, ...]
    """Arms as the user named them; others follow."""
    about: About

    def rest(self) -> dict[str, Any]:
        """All but the two tables, for ``measured.json``."""
        return {
            "unfinished": [asdict(hole) for hole in self.unfinished],
            "overlap": dict(self.overlap),
            "order": list(self.order),
            "about": {
                "title": self.about.title,
                "arms": dict(self.about.arms),
                "cases": self.about.cases,
                "warnings": list(self.about.warnings),
                "remarks": list(self.about.remarks),
            },
        }


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the two tables: ``measured.json`` is written last, and of no others."""
    return {name: sha256(folder / name) for name in (CASES, CURVES)}


def read_measured(folder: Path) -> Measured:
    """What an earlier comparison measured.

    Raises:
        UserError: the folder holds no comparison, or a damaged one.
    """
    for name in (CASES, CURVES, REST):
        if not (folder / name).is_file():
            raise UserError(f"{folder} holds no {name}; give the folder that `nnssl-mae compare` wrote with -o")
    rest = read_json(folder / REST, _AGAIN)
    if rest.get("sha256") != digests(folder):
        raise UserError(f"{folder} holds tables of different comparisons, or changed ones; {_AGAIN}")
    try:
        return Measured(
            cases=_table(folder / CASES, TEXT_COLUMNS),
            curves=_table(folder / CURVES, ["dataset", "arm", "replicate", "fold"]),
            unfinished=tuple(map(_hole, rest["unfinished"])),
            overlap={str(arm): None if said is None else str(said) for arm, said in rest["overlap"].items()},
            order=tuple(map(str, rest["order"])),
            about=_about(**rest["about"]),
        )
    except _DAMAGED as error:
        raise UserError(f"{folder} holds a damaged comparison ({error!r}); {_AGAIN}") from error


def _hole(content: Mapping[str, Any]) -> Unfinished:
    dataset, arm, replicate, fold, why = (str(content[key]) for key in ("dataset", "arm", "replicate", "fold", "why"))
    labelled, repeat = (None if content[key] is None else int(content[key]) for key in ("labelled", "repeat"))
    return Unfinished(dataset, arm, replicate, fold, labelled, repeat, why)


def _about(
    title: str, arms: Mapping[str, str], remarks: Sequence[str], cases: str = "", warnings: Sequence[str] = ()
) -> About:
    """Earlier versions wrote neither ``cases`` nor ``warnings``."""
    return About(
        title=str(title),
        arms={str(arm): str(words) for arm, words in arms.items()},
        cases=str(cases),
        warnings=tuple(map(str, warnings)),
        remarks=tuple(map(str, remarks)),
    )


def _table(file: Path, texts: list[str]) -> pandas.DataFrame:
    """Texts stay as they are: a label may be called NA, and a fold 0 is no number."""
    table = pandas.read_csv(
        file, dtype=dict.fromkeys(texts, str), keep_default_na=False, na_values=[""], float_precision="round_trip"
    )
    table[texts] = table[texts].fillna("")
    for column in table.columns.difference(texts):
        table[column] = pandas.to_numeric(table[column])
    return table.astype({"labelled": "Int64", "repeat": "Int64"})
