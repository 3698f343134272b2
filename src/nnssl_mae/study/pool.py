"""How many labels a dataset has for training, as far as it is known before its folds are drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence

from nnssl_mae.errors import UserError
from nnssl_mae.few_labels.splits_file import SPLITS
from nnssl_mae.study.place import LabelledSet, few_label_counts, file_ending

_STOCK_FOLDS = 5


def check_counts(labelled: LabelledSet, counts: Sequence[int | str], fold: int) -> None:
    """Refuses label counts that the dataset has not.

    Raises:
        UserError: names the largest possible.
    """
    wanted, there = max(few_label_counts(counts), default=0), _pool(labelled, fold)
    if wanted > there:
        raise UserError(
            f"labelled: {wanted} is more than the {there} training cases that {labelled.name} has in fold {fold}; "
            f"write at most {there}, or all"
        )


def _pool(labelled: LabelledSet, fold: int) -> int:
    try:
        splits = json.loads((labelled.preprocessed / SPLITS).read_text(encoding="utf-8"))
        return len(splits[fold]["train"])
    except (OSError, ValueError, LookupError, TypeError):  # not there yet: nnU-Net will cut in five
        cases = len(list((labelled.raw / "labelsTr").glob(f"*{file_ending(labelled)}")))
        return cases - cases // _STOCK_FOLDS - (fold < cases % _STOCK_FOLDS)
