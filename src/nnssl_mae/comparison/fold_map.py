"""The folds of a dataset: which cases each is validated on, how many it is trained on, and whose the cases are."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnssl_mae.errors import UserError
from nnssl_mae.files import read_json

SPLITS = "splits_final.json"
FEW_LABELS = "nnssl_folds.json"


@dataclass(frozen=True)
class FoldMap:
    """What a dataset's preprocessed folder says of its folds; empty where it is gone."""

    validation: tuple[tuple[str, ...], ...] = ()
    """Cases of each fold of ``splits_final.json``."""
    few: dict[str, Any] = field(default_factory=dict)
    """``folds`` of ``nnssl_folds.json``: labelled cases and repeat of each few-label fold."""
    subjects: dict[str, str] = field(default_factory=dict)
    """Subject of each case, if known."""

    def validation_cases(self, fold: str) -> tuple[str, ...] | None:
        """None if ``splits_final.json`` does not know the fold; nnU-Net then drew a split of its own."""
        known = fold.isdigit() and int(fold) < len(self.validation)
        return self.validation[int(fold)] if known else None

    def labelled(self, fold: str) -> int | None:
        """How many labelled cases a few-label fold trains on; none of a stock fold."""
        return int(self.few[fold]["labelled"]) if fold in self.few else None

    def repeat(self, fold: str) -> int | None:
        """Which draw of that many cases it is; none of a stock fold."""
        return int(self.few[fold]["repeat"]) if fold in self.few else None


def read_fold_map(preprocessed: Path | None) -> FoldMap:
    """Reads both files of a dataset's preprocessed folder; what is not there is left empty.

    Raises:
        UserError: a file is damaged.
    """
    if preprocessed is None:
        return FoldMap()
    splits, few = preprocessed / SPLITS, preprocessed / FEW_LABELS
    few_labels = read_json(few, "run nnssl-mae splits again") if few.is_file() else {}
    subjects, folds = few_labels.get("subjects", {}), few_labels.get("folds", {})
    if not isinstance(subjects, dict) or not isinstance(folds, dict) or not all(map(_is_few, folds.values())):
        raise UserError(f"{few} is damaged; run nnssl-mae splits again")
    return FoldMap(_validation(splits) if splits.is_file() else (), folds, subjects)


def _validation(path: Path) -> tuple[tuple[str, ...], ...]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return tuple(tuple(str(case) for case in fold["val"]) for fold in content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error!r}); put back the one that the models were trained with"
        ) from error


def _is_few(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), int) for key in ("labelled", "repeat"))
