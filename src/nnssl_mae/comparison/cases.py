"""The table of cases, checked before anything is averaged."""

from __future__ import annotations

import pandas as pd

from nnssl_mae.comparison.fold_map import is_few_label_fold
from nnssl_mae.comparison.kinds import METRICS
from nnssl_mae.errors import UserError

TEXT_COLUMNS = ["dataset", "arm", "replicate", "fold", "subject", "case", "label", "failure"]
NUMBER_COLUMNS = ["labelled", "repeat", "dice", "nsd", "hd95", "lesion_f1", "voxels_reference", "voxels_predicted"]
ROW_KEY = ["dataset", "arm", "replicate", "labelled", "repeat", "fold", "case", "label"]


def checked_cases(cases: pd.DataFrame) -> pd.DataFrame:
    """The table with plain types, and with scores only of labels that were measured.

    A label whose metric is missing in every case with something to measure was not measured (lesions are counted only
    in the labels that the user asked for); its entries become NaN, those of failures too, so they do not count.

    Raises:
        UserError: if columns or rows are missing, a row stands twice, a case has two subjects or two references, a
            case was validated in several folds, or a metric is missing where there is something to measure.
    """
    _check_columns(cases)
    table = cases.reset_index(drop=True).copy()
    table[TEXT_COLUMNS] = table[TEXT_COLUMNS].astype(str)
    for column in ("labelled", "repeat"):
        table[column] = table[column].astype("Int64")
    _check_unique(table)
    _check_subjects(table)
    _check_references(table)
    _check_folds_apart(table)
    for metric in METRICS:
        _blank_unmeasured(table, metric.name)
    return table


def _check_columns(cases: pd.DataFrame) -> None:
    missing = [column for column in TEXT_COLUMNS + NUMBER_COLUMNS if column not in cases.columns]
    if missing:
        raise UserError(f"The table of cases has no column {', '.join(missing)}; make it with `nnssl-mae compare`.")
    if cases.empty:
        raise UserError("The table of cases is empty; name datasets and arms for which results exist.")


def _check_unique(table: pd.DataFrame) -> None:
    twice = table.duplicated(ROW_KEY)
    if twice.any():
        row = table[twice].iloc[0]
        raise UserError(
            f"Case {row['case']}, label {row['label']} stands twice in the table of cases for arm {row['arm']}, "
            f"replicate {row['replicate']}, fold {row['fold']} of {row['dataset']}; give the two runs different "
            "replicate names."
        )


def _check_subjects(table: pd.DataFrame) -> None:
    subjects = table.groupby(["dataset", "case"])["subject"].nunique()
    if (subjects > 1).any():
        dataset, case = subjects[subjects > 1].index[0]
        raise UserError(
            f"Case {case} of {dataset} belongs to different subjects in different runs; "
            "use one rule for subjects for all."
        )


def _check_references(table: pd.DataFrame) -> None:
    """Else arms were measured against different labels."""
    measured = table[table["failure"] == ""]
    sizes = measured.groupby(["dataset", "case", "label"])["voxels_reference"].nunique()
    if (sizes > 1).any():
        dataset, case, label = sizes[sizes > 1].index[0]
        raise UserError(
            f"Label {label} of case {case} of {dataset} has a different size in the references of different runs; "
            "measure all arms again against the same labels."
        )


def _check_folds_apart(table: pd.DataFrame) -> None:
    """A case counts in one fold of a model. Models of a cross-validation may all predict the same test set, though."""
    all_labels = table[table["labelled"].isna() & table["repeat"].isna()]
    for (dataset, arm, replicate), rows in all_labels.groupby(["dataset", "arm", "replicate"]):
        cases = rows.groupby("fold")["case"].agg(frozenset)
        twice = rows.drop_duplicates(["fold", "case"]).loc[lambda one: one["case"].duplicated(keep=False)]
        test_set = cases.nunique() == 1 and all(_is_stock(fold) for fold in cases.index)
        if not (twice.empty or test_set):
            raise UserError(
                f"Case {twice['case'].iloc[0]} of {dataset} stands in several folds of arm {arm} ({replicate}) that "
                f"have no number of labelled cases: {', '.join(sorted(set(twice['fold'])))}; compare again and choose "
                "those that count with --fold."
            )


def _is_stock(fold: str) -> bool:
    return fold.isdecimal() and not is_few_label_fold(fold)


def _blank_unmeasured(table: pd.DataFrame, metric: str) -> None:
    """Make NaN, in place, what a metric says of labels that it was not measured for."""
    table[metric] = table[metric].astype(float)
    something = (table["voxels_reference"].fillna(0) > 0) | (table["voxels_predicted"].fillna(0) > 0)
    place = [table["dataset"], table["label"]]
    absent = (something & (table["failure"] == "") & table[metric].isna()).groupby(place).transform("any")
    present = ((table["failure"] == "") & table[metric].notna()).groupby(place).transform("any")
    table.loc[absent & ~present, metric] = float("nan")
    counted = table[metric].notna().groupby(place).transform("any")
    wrong = counted & table[metric].isna() & (something | (table["failure"] != ""))
    if wrong.any():
        row = table[wrong].iloc[0]
        raise UserError(
            f"{metric} of label {row['label']} is missing for case {row['case']} of arm {row['arm']} in "
            f"{row['dataset']} while other cases have it; measure all arms again with the same options."
        )
