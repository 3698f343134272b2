"""A dataset at one number of labelled cases: the scores of all arms, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from nnssl_mae.comparison.holes import words
from nnssl_mae.comparison.kinds import METRICS, Metric
from nnssl_mae.comparison.scores import Axes, Scores, axes_of, scores_of


@dataclass(frozen=True)
class Group:
    """All arms in one dataset at one number of labelled cases.

    Attributes:
        dataset: name.
        labelled: number of labelled training cases, None for all.
        axes: labels, cases and subjects of all arms.
        metrics: those that were measured here.
        arms: all of the comparison, also those without a run here.
        replicates: for each arm how many were found.
        failures: for each arm how many cases failed, in any of its runs.
        holes: for each arm what is missing, in words; "" if it is whole.
        by_metric: for each arm and name of a metric its scores.
    """

    dataset: str
    labelled: int | None
    axes: Axes
    metrics: tuple[Metric, ...]
    arms: tuple[str, ...]
    replicates: dict[str, int]
    failures: dict[str, int]
    holes: dict[str, str]
    by_metric: dict[str, dict[str, Scores]]

    @property
    def whole(self) -> bool:
        """Whether no arm lacks anything."""
        return not any(self.holes.values())

    def scores(self, arm: str, metric: Metric) -> Scores:
        """Of one arm."""
        return self.by_metric[arm][metric.name]


def groups_of(cases: pd.DataFrame, holes: pd.DataFrame, arms: Sequence[str]) -> list[Group]:
    """The groups of a checked table of cases, sorted by dataset and number of labelled cases (all labels last)."""
    return [_group(rows, holes, arms) for _, rows in cases.groupby(["dataset", "labelled"], dropna=False, sort=True)]


def _group(rows: pd.DataFrame, holes: pd.DataFrame, arms: Sequence[str]) -> Group:
    dataset, labelled = str(rows["dataset"].iloc[0]), _count(rows["labelled"])
    same_count = holes["labelled"].isna() if labelled is None else holes["labelled"].eq(labelled).fillna(False)
    here = holes[(holes["dataset"] == dataset) & same_count.astype(bool)]
    axes = axes_of(rows)
    metrics = tuple(metric for metric in METRICS if rows[metric.name].notna().any())
    of_arms = {arm: rows[rows["arm"] == arm] for arm in arms}
    return Group(
        dataset=dataset,
        labelled=labelled,
        axes=axes,
        metrics=metrics,
        arms=tuple(arms),
        replicates={arm: of_arm["replicate"].nunique() for arm, of_arm in of_arms.items()},
        failures={arm: _failures(of_arm) for arm, of_arm in of_arms.items()},
        holes={arm: words(here[here["arm"] == arm]) for arm in arms},
        by_metric={arm: scores_of(of_arm, metrics, axes) for arm, of_arm in of_arms.items()},
    )


def _count(labelled: pd.Series) -> int | None:
    return None if labelled.isna().all() else int(labelled.iloc[0])


def _failures(rows: pd.DataFrame) -> int:
    failed = rows[rows["failure"] != ""]
    return len(set(zip(failed["replicate"], failed["fold"], failed["case"], strict=True)))
