"""The table of cases, checked before anything is averaged."""

from __future__ import annotations

import pandas as pd

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
        UserError: if columns or rows are missing, a row stands twice, a case has two subjects, or a metric is missing
            where there is something to measure.
    """
    _check_columns(cases)
    table = cases.reset_index(drop=True).copy()
    table[TEXT_COLUMNS] = table[TEXT_COLUMNS].astype(str)
    for column in ("labelled", "repeat"):
        table[column] = table[column].astype("Int64")
    _check_unique(table)
    _check_subjects(table)
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
