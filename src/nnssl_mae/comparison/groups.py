"""A dataset at one number of labelled cases: the scores of all arms, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
    """The groups of a checked table of cases, sorted by dataset and number of labelled cases (all labels last).

    Where every arm has a hole there is no row, and still a group.
    """
    places = pd.concat([cases[_PLACE], holes[_PLACE].astype(cases[_PLACE].dtypes.to_dict())])
    places = places.drop_duplicates().sort_values(_PLACE)
    return [_group(cases, holes, arms, *place) for place in places.itertuples(index=False, name=None)]


_PLACE = ["dataset", "labelled"]


def _is_at(table: pd.DataFrame, dataset: str, labelled: Any) -> pd.Series:
    same = table["labelled"].isna() if pd.isna(labelled) else table["labelled"].eq(labelled).fillna(False)
    return (table["dataset"] == dataset) & same.astype(bool)


def _group(cases: pd.DataFrame, holes: pd.DataFrame, arms: Sequence[str], dataset: str, labelled: Any) -> Group:
    rows = cases[_is_at(cases, dataset, labelled)]
    here = holes[_is_at(holes, dataset, labelled)]
    axes = axes_of(rows)
    measured = cases if rows.empty else rows
    metrics = tuple(metric for metric in METRICS if measured[metric.name].notna().any())
    of_arms = {arm: rows[rows["arm"] == arm] for arm in arms}
    return Group(
        dataset=dataset,
        labelled=None if pd.isna(labelled) else int(labelled),
        axes=axes,
        metrics=metrics,
        arms=tuple(arms),
        replicates={arm: of_arm["replicate"].nunique() for arm, of_arm in of_arms.items()},
        failures={arm: _failures(of_arm) for arm, of_arm in of_arms.items()},
        holes={arm: words(here[here["arm"] == arm]) for arm in arms},
        by_metric={arm: scores_of(of_arm, metrics, axes) for arm, of_arm in of_arms.items()},
    )


def _failures(rows: pd.DataFrame) -> int:
    failed = rows[rows["failure"] != ""]
    return len(set(zip(failed["replicate"], failed["fold"], failed["case"], strict=True)))
