"""Each arm against each control as a table: difference, interval, test, effect and verdict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from nnssl_mae.comparison.contrasts import Contrast, Outcome, contrasts_of, outcome_of
from nnssl_mae.comparison.groups import Group
from nnssl_mae.comparison.statistics import holm
from nnssl_mae.comparison.verdicts import Family, verdict

PAIR_COLUMNS = [
    *("dataset", "labelled", "metric", "arm", "control", "difference", "low", "high", "n_subjects", "p", "p_holm"),
    *("effect", "rank_biserial", "better", "worse", "equal", "seed_sd", "verdict"),
]
_EQUAL = 1e-12
"""Differences below this are rounding, not better or worse."""


def pair_table(
    groups: Sequence[Group], arms: Sequence[str], controls: Sequence[str], seed: int, resamples: int
) -> pd.DataFrame:
    """Columns `PAIR_COLUMNS`, see `Comparison.pairs`.

    "all" is the mean of the datasets' differences, with subjects resampled within their dataset. Its p ranks the
    differences of all subjects together; that needs no equal spread in all datasets, but gives each subject the same
    weight, where the mean gives it to each dataset.
    """
    contrasts = contrasts_of(groups, arms, controls)
    outcomes = [outcome_of(contrast, seed, resamples) for contrast in contrasts]
    families = _families(contrasts, outcomes)
    rows = [_row(*of_pair) for of_pair in zip(contrasts, outcomes, families, strict=True)]
    return pd.DataFrame(rows, columns=PAIR_COLUMNS).astype({"labelled": "Int64"})


def _families(contrasts: Sequence[Contrast], outcomes: Sequence[Outcome]) -> list[Family]:
    """The corrected p of each contrast; a family is all tests of one metric."""
    p = np.array([outcome.p for outcome in outcomes])
    names = np.array([contrast.metric.name for contrast in contrasts])
    corrected, sizes = np.full(len(p), np.nan), np.zeros(len(p), dtype=int)
    for name in set(names):
        corrected[names == name] = holm(p[names == name])
        sizes[names == name] = np.isfinite(p[names == name]).sum()
    return [Family(float(p_holm), int(size)) for p_holm, size in zip(corrected, sizes, strict=True)]


def _row(contrast: Contrast, outcome: Outcome, family: Family) -> dict[str, object]:
    gains = contrast.differences if contrast.metric.higher_is_better else -contrast.differences
    return {
        "dataset": contrast.dataset,
        "labelled": contrast.labelled,
        "metric": contrast.metric.name,
        "arm": contrast.arm,
        "control": contrast.control,
        "difference": contrast.mean,
        "low": outcome.interval.low,
        "high": outcome.interval.high,
        "n_subjects": len(gains),
        "p": outcome.p,
        "p_holm": family.p_holm,
        "effect": outcome.effect,
        "rank_biserial": outcome.rank_biserial,
        "better": int((gains > _EQUAL).sum()),
        "worse": int((gains < -_EQUAL).sum()),
        "equal": int((np.abs(gains) <= _EQUAL).sum()),
        "seed_sd": contrast.seed_sd,
        "verdict": verdict(contrast, outcome, family),
    }
