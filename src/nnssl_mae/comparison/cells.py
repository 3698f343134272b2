"""Means of each arm in each dataset, with intervals over subjects and spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from nnssl_mae.comparison.groups import Group
from nnssl_mae.comparison.scores import Scores, spread_over_seeds
from nnssl_mae.comparison.statistics import MINIMUM_SUBJECTS, interval_of_mean

CELL_COLUMNS = [
    *("dataset", "labelled", "arm", "metric", "mean", "low", "high", "seed_sd"),
    *("n_subjects", "n_replicates", "n_failures", "hole"),
]
LABEL_COLUMNS = [*CELL_COLUMNS[:4], "label", *CELL_COLUMNS[4:]]


def cell_table(groups: Sequence[Group], seed: int, resamples: int) -> pd.DataFrame:
    """Means over labels: columns `CELL_COLUMNS`, see `Comparison.cells`; undefined entries do not count."""
    cells = [
        _place(group, arm, metric.name) | _numbers(group, arm, group.scores(arm, metric), seed, resamples)
        for group in groups
        for metric in group.metrics
        for arm in group.arms
    ]
    return _table(cells, CELL_COLUMNS)


def label_table(groups: Sequence[Group], seed: int, resamples: int) -> pd.DataFrame:
    """Means of single labels: columns `LABEL_COLUMNS`; labels without a score in any arm have no rows."""
    cells = []
    for group in groups:
        for metric in group.metrics:
            for label in group.axes.labels:
                of_arms = {arm: group.scores(arm, metric).of_label(label) for arm in group.arms}
                if any(np.isfinite(scores.values).any() for scores in of_arms.values()):
                    cells += [
                        _place(group, arm, metric.name)
                        | {"label": label}
                        | _numbers(group, arm, scores, seed, resamples)
                        for arm, scores in of_arms.items()
                    ]
    return _table(cells, LABEL_COLUMNS)


def _place(group: Group, arm: str, metric: str) -> dict[str, object]:
    return {"dataset": group.dataset, "labelled": group.labelled, "arm": arm, "metric": metric}


def _numbers(group: Group, arm: str, scores: Scores, seed: int, resamples: int) -> dict[str, object]:
    subjects = scores.subject_means()
    subjects = subjects[~np.isnan(subjects)]
    counts = {
        "n_subjects": len(subjects),
        "n_replicates": group.replicates[arm],
        "n_failures": group.failures[arm],
        "hole": group.holes[arm],
    }
    if group.holes[arm] or len(subjects) == 0:
        return counts
    means = {"mean": subjects.mean(), "seed_sd": spread_over_seeds(scores.seed_means())}
    if len(subjects) < MINIMUM_SUBJECTS:
        return counts | means
    low, high = interval_of_mean([subjects], seed, resamples)
    return counts | means | {"low": low, "high": high}


def _table(cells: list[dict[str, object]], columns: list[str]) -> pd.DataFrame:
    numbers = dict.fromkeys(("mean", "low", "high", "seed_sd"), "float64")
    counts = dict.fromkeys(("n_subjects", "n_replicates", "n_failures"), "int64")
    return pd.DataFrame(cells, columns=columns).astype({"labelled": "Int64"} | numbers | counts)
