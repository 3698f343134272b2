"""Tables of cases for tests, from arrays of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd


def cases_table(
    scores: Mapping[tuple[str, str, str], object],
    metric: str = "dice",
    fold: str = "0",
    labelled: int | None = None,
    repeat: int | None = None,
    subjects: Sequence[str] | None = None,
) -> pd.DataFrame:
    """One row for each case and label.

    Args:
        scores: (dataset, arm, replicate) -> (cases, labels); NaN is an entry that is empty in reference and prediction.
        metric: which column they fill; others are NaN.
        fold: nnU-Net's.
        labelled: number of labelled cases.
        repeat: which draw of them.
        subjects: of each case; the case itself without.
    """
    rows = []
    for (dataset, arm, replicate), values in scores.items():
        for (case, label), score in np.ndenumerate(np.asarray(values, dtype=float)):
            row = dict.fromkeys(("dice", "nsd", "hd95", "lesion_f1"), np.nan) | {metric: score}
            name = f"case{case:02d}"
            row |= {"dataset": dataset, "arm": arm, "replicate": replicate, "fold": fold}
            row |= {"labelled": labelled, "repeat": repeat, "case": name, "label": "abc"[label], "failure": ""}
            row |= {"subject": subjects[case] if subjects else name}
            row |= dict.fromkeys(("voxels_reference", "voxels_predicted"), 0 if np.isnan(score) else 100)
            rows.append(row)
    return pd.DataFrame(rows).astype({"labelled": "Int64", "repeat": "Int64"})
