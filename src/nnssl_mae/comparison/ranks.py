"""Average rank of each arm over datasets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from nnssl_mae.comparison.groups import Group
from nnssl_mae.comparison.kinds import METRICS, Metric
from nnssl_mae.comparison.scores import Scores, on_common_entries
from nnssl_mae.comparison.statistics import average_ranks

RANK_COLUMNS = ["labelled", "metric", "arm", "rank", "n_datasets"]


def rank_table(groups: Sequence[Group], arms: Sequence[str]) -> pd.DataFrame:
    """Columns `RANK_COLUMNS`, see `Comparison.ranks`.

    Only datasets that are whole for all arms count, so that all arms are ranked over the same datasets; and arms are
    ranked on the same entries (`on_common_entries`), so where references are empty a rank may differ from the order of
    the means in `cells`.
    """
    rows = []
    for labelled in dict.fromkeys(group.labelled for group in groups):
        for metric in METRICS:
            measured = [group for group in groups if group.labelled == labelled and metric in group.metrics]
            if measured:
                whole = [group for group in measured if group.whole]
                ranks = _ranks(whole, metric) if whole else np.full(len(arms), np.nan)
                rows += [(labelled, metric.name, arm, rank, len(whole)) for arm, rank in zip(arms, ranks, strict=True)]
    return pd.DataFrame(rows, columns=RANK_COLUMNS).astype({"labelled": "Int64"})


def _ranks(groups: Sequence[Group], metric: Metric) -> np.ndarray:
    means = [
        [np.nanmean(scores.subject_means()) for scores in on_common_entries(_all_arms(group, metric), metric)]
        for group in groups
    ]
    return average_ranks(means, metric.higher_is_better)


def _all_arms(group: Group, metric: Metric) -> list[Scores]:
    return [group.scores(arm, metric) for arm in group.arms]
