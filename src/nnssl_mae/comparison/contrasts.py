"""One arm against one control: the differences within subjects, in a dataset or over several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnssl_mae.comparison.groups import Group
from nnssl_mae.comparison.kinds import METRICS, Metric
from nnssl_mae.comparison.scores import on_common_entries, spread_of_difference_over_seeds
from nnssl_mae.comparison.statistics import (
    MINIMUM_SUBJECTS,
    Interval,
    Numbers,
    cohens_dz,
    interval_of_mean,
    rank_biserial,
    wilcoxon_p,
)

ALL_DATASETS = "all"


@dataclass(frozen=True)
class Contrast:
    """One arm against one control.

    Attributes:
        dataset: name, or "all".
        labelled: number of labelled training cases, None for all.
        metric: which score.
        arm: what is compared.
        control: with what.
        strata: for each dataset the differences arm - control of its subjects; none where there are no differences.
        seed_sd: spread of the mean difference over seeds, NaN if each arm was trained once.
        obstacle: why there are no differences, "" if there are.
        left_out: datasets that "all" leaves out because some arm is not whole there.
    """

    dataset: str
    labelled: int | None
    metric: Metric
    arm: str
    control: str
    strata: tuple[Numbers, ...] = ()
    seed_sd: float = math.nan
    obstacle: str = ""
    left_out: int = 0

    @property
    def differences(self) -> Numbers:
        """Of all subjects of all datasets."""
        return np.concatenate(self.strata) if self.strata else np.empty(0)

    @property
    def mean(self) -> float:
        """Mean over datasets of their mean differences, NaN if there are none."""
        return float(np.mean([differences.mean() for differences in self.strata])) if self.strata else math.nan

    @property
    def enough_subjects(self) -> bool:
        """Whether there are as many independent subjects as a test needs."""
        return len(self.differences) >= MINIMUM_SUBJECTS


@dataclass(frozen=True)
class Outcome:
    """What needs enough subjects: interval, p before correction, d_z and rank-biserial correlation; NaN for fewer."""

    interval: Interval
    p: float
    effect: float
    rank_biserial: float


def outcome_of(contrast: Contrast, seed: int, resamples: int) -> Outcome:
    """Interval, test and effect sizes of a contrast."""
    if not contrast.enough_subjects:
        return Outcome(Interval(math.nan, math.nan), math.nan, math.nan, math.nan)
    differences = contrast.differences
    return Outcome(
        interval=interval_of_mean(contrast.strata, seed, resamples),
        p=wilcoxon_p(differences),
        effect=cohens_dz(differences),
        rank_biserial=rank_biserial(differences),
    )


def contrasts_of(groups: Sequence[Group], arms: Sequence[str], controls: Sequence[str]) -> list[Contrast]:
    """Every arm that is no control against every control, by metric, number of labelled cases, control and arm.

    After the datasets of one number of labelled cases, if they are several, comes one over "all" of them.
    """
    contrasts: list[Contrast] = []
    for metric in METRICS:
        for labelled in dict.fromkeys(group.labelled for group in groups):
            measured = [group for group in groups if group.labelled == labelled and metric in group.metrics]
            for control in controls:
                for arm in arms:
                    if arm not in controls:
                        contrasts += _over_datasets(measured, metric, arm, control)
    return contrasts


def _over_datasets(groups: Sequence[Group], metric: Metric, arm: str, control: str) -> list[Contrast]:
    single = [_in_dataset(group, metric, arm, control) for group in groups]
    if len(groups) < 2:
        return single
    usable = [contrast for contrast, group in zip(single, groups, strict=True) if group.whole and contrast.strata]
    return [*single, _overall(single[0], usable, len(groups) - len(usable))]


def _in_dataset(group: Group, metric: Metric, arm: str, control: str) -> Contrast:
    place = (group.dataset, group.labelled, metric, arm, control)
    holes = [f"{name} has a hole ({group.holes[name]})" for name in (arm, control) if group.holes[name]]
    if holes:
        return Contrast(*place, obstacle="; ".join(holes))
    of_arm, of_control = on_common_entries([group.scores(arm, metric), group.scores(control, metric)], metric)
    differences = of_arm.subject_means() - of_control.subject_means()
    differences = differences[~np.isnan(differences)]  # nothing to segment in this subject, and nothing predicted
    if len(differences) == 0:
        return Contrast(*place, obstacle="nothing to segment in any case, and nothing predicted")
    seed_sd = spread_of_difference_over_seeds(of_arm, of_control)
    return Contrast(*place, strata=(differences,), seed_sd=seed_sd)


def _overall(example: Contrast, usable: Sequence[Contrast], left_out: int) -> Contrast:
    place = (ALL_DATASETS, example.labelled, example.metric, example.arm, example.control)
    if len(usable) < 2:
        return Contrast(*place, obstacle="fewer than two datasets are whole for all arms", left_out=left_out)
    # Networks of different datasets are trained independently: the variances of their means add.
    seed_sd = math.sqrt(sum(contrast.seed_sd**2 for contrast in usable)) / len(usable)
    strata = tuple(differences for contrast in usable for differences in contrast.strata)
    return Contrast(*place, strata=strata, seed_sd=seed_sd, left_out=left_out)
