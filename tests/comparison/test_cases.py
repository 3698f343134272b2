"""What a table of cases must fulfil before anything is averaged."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from nnssl_mae.comparison.cases import checked_cases
from nnssl_mae.errors import UserError
from tests.comparison.cases_table import cases_table

ARM = ("Dataset001", "MAE", "r")
SCORES = {ARM: np.full((6, 1), 0.5)}


def folds(**numbers: int | None) -> pd.DataFrame:
    """The same cases in several folds (``f0``) with these numbers of labelled cases."""
    tables = [cases_table(SCORES, fold=name[1:], labelled=labelled) for name, labelled in numbers.items()]
    return pd.concat(tables, ignore_index=True)


@pytest.mark.parametrize("both", [{"f0": None, "f100": None}, {"fall": None, "f0": None}])
def test_a_fold_of_unknown_labels_is_not_averaged_with_another(both: dict[str, int | None]) -> None:
    with pytest.raises(UserError, match=r"case00 of Dataset001 .*--fold"):
        checked_cases(folds(**both))


def test_folds_that_overlap_in_part_are_no_cross_validation() -> None:
    both = folds(f0=None, f1=None)
    with pytest.raises(UserError, match=r"several folds of arm MAE .*0, 1"):
        checked_cases(both[(both["fold"] == "0") | (both["case"] == "case03")])


@pytest.mark.parametrize("both", [{"f0": None, "f1": None}, {"f0": None, "f100": 1}, {"f100": 1, "f101": 1}])
def test_models_of_several_folds_may_predict_one_test_set(both: dict[str, int | None]) -> None:
    assert len(checked_cases(folds(**both))) == 12


def test_arms_are_measured_against_the_same_references() -> None:
    table = cases_table({ARM: SCORES[ARM], ("Dataset001", "scratch", "r"): SCORES[ARM]})
    table.loc[7, "voxels_reference"] = 60
    with pytest.raises(UserError, match="case01 of Dataset001 has a different size"):
        checked_cases(table)
    table.loc[7, "failure"] = "unreadable"
    assert len(checked_cases(table)) == 12
