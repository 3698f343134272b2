"""The folds of a dataset: which cases each is validated on, how many it is trained on, and whose the cases are."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnssl_mae.errors import UserError
from nnssl_mae.few_labels.splits_file import FIRST_FEW_LABEL_FOLD, MAP, MAP_VERSION, SPLITS
from nnssl_mae.files import read_json

Cases = tuple[str, ...]


@dataclass(frozen=True)
class FoldMap:
    """What a dataset's preprocessed folder says of its folds; empty where it is gone."""

    training: tuple[Cases, ...] = ()
    """Training cases of each fold of ``splits_final.json``."""
    validation: tuple[Cases, ...] = ()
    """Validation cases of each."""
    few: dict[str, Any] = field(default_factory=dict)
    """``folds`` of ``nnssl_folds.json``: labelled cases and repeat of each few-label fold."""
    subjects: dict[str, str] = field(default_factory=dict)
    """Subject of each case, if known."""

    def validation_cases(self, fold: str) -> Cases | None:
        """None if ``splits_final.json`` does not know the fold; nnU-Net then drew a split of its own."""
        known = fold.isdecimal() and int(fold) < len(self.validation)
        return self.validation[int(fold)] if known else None

    def training_cases(self, fold: str) -> set[str]:
        """Those of a fold; of a name that is no known fold's number, those of all folds."""
        if fold.isdecimal() and int(fold) < len(self.training):
            return set(self.training[int(fold)])
        return {case for cases in self.training for case in cases}

    def labelled(self, fold: str) -> int | None:
        """How many labelled cases a few-label fold trains on; none of a stock fold."""
        return int(self.few[fold]["labelled"]) if fold in self.few else None

    def repeat(self, fold: str) -> int | None:
        """Which draw of that many cases it is; none of a stock fold."""
        return int(self.few[fold]["repeat"]) if fold in self.few else None

    def why_unknown(self, fold: str) -> str:
        """Why nobody knows how many labelled cases a few-label fold was trained on; empty for any other fold."""
        if not is_few_label_fold(fold) or fold in self.few:
            return ""
        return (
            f"nobody knows how many labelled cases it was trained on, for no {MAP} of its training dataset names fold "
            f"{fold}: put that file back (of predictions also plans.json), or choose other folds with --fold"
        )


def is_few_label_fold(fold: str) -> bool:
    """Whether a fold's number is one that ``nnssl-mae splits`` gives to folds with few labels."""
    return fold.isdecimal() and int(fold) >= FIRST_FEW_LABEL_FOLD


def read_fold_map(preprocessed: Path | None) -> FoldMap:
    """Reads both files of a dataset's preprocessed folder; what is not there is left empty.

    Raises:
        UserError: a file is damaged, or the two contradict each other.
    """
    if preprocessed is None:
        return FoldMap()
    splits, few = preprocessed / SPLITS, preprocessed / MAP
    training, validation = _splits(splits) if splits.is_file() else ((), ())
    folds, subjects = _few_labels(few) if few.is_file() else ({}, {})
    for fold, entry in folds.items():
        if int(fold) < len(training) and len(set(training[int(fold)])) != entry["labelled"]:
            raise UserError(
                f"Fold {fold} of {splits} has {len(set(training[int(fold)]))} training cases and {few} says "
                f"{entry['labelled']}; put back the two files that the models were trained with (see their .backup)"
            )
    return FoldMap(training, validation, folds, subjects)


def _splits(path: Path) -> tuple[tuple[Cases, ...], tuple[Cases, ...]]:
    """Training and validation cases of each fold."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, list):
            raise TypeError("no list of folds")
        return tuple(_names(fold["train"]) for fold in content), tuple(_names(fold["val"]) for fold in content)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({error!r}); put back the one that the models were trained with"
        ) from error


def _names(value: Any) -> Cases:
    """Names of cases, none of which leads out of a folder."""
    if not isinstance(value, list) or not all(isinstance(name, str) and not {"/", "\\"} & {*name} for name in value):
        raise TypeError("a list of cases is none")
    return tuple(value)


def _few_labels(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Folds and subjects."""
    content = read_json(path, "run nnssl-mae splits again")
    if content.get("version") != MAP_VERSION:
        raise UserError(
            f"{path} is of version {content.get('version')!r}, and version {MAP_VERSION} is known here; use the "
            "version of nnssl-mae that wrote it, or put back the file"
        )
    subjects, folds = content.get("subjects", {}), content.get("folds", {})
    usable = isinstance(folds, dict) and all(_is_few(*item) for item in folds.items())
    if not usable or not isinstance(subjects, dict) or not all(isinstance(name, str) for name in subjects.values()):
        raise UserError(f"{path} is damaged; put it back, or run nnssl-mae splits again")
    return folds, subjects


def _is_few(fold: str, entry: Any) -> bool:
    if not is_few_label_fold(fold) or not isinstance(entry, dict):
        return False
    least = {"labelled": 1, "repeat": 0}  # and True is no number
    return all(type(entry.get(key)) is int and entry[key] >= smallest for key, smallest in least.items())
