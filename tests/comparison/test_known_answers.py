"""Studies with a planted answer: the statistics find it, and find nothing where nothing is, at the rates they state."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from nnssl_mae.comparison.statistics import (
    detectable_difference,
    holm,
    interval_of_mean,
    pairs_needed,
    wilcoxon_p,
)
from nnssl_mae.comparison.summary import compare
from tests.comparison.cases_table import cases_table

SD = 0.04
"""Spread of paired differences of Dice, as fine-tuned models of one dataset have it."""


def _bounds(rate: float, studies: int) -> tuple[float, float]:
    """Where the share seen in so many studies lies in all but 1 of 1000 repetitions, if the rate is true."""
    margin = 3.3 * math.sqrt(rate * (1 - rate) / studies)
    return rate - margin, rate + margin


def _share_significant(gain: float, subjects: int, studies: int, seed: int) -> float:
    rng = np.random.default_rng(seed)
    return float(np.mean([wilcoxon_p(rng.normal(gain, SD, subjects)) < 0.05 for _ in range(studies)]))


def test_planted_gain_of_3_points_is_found_as_often_as_planned() -> None:
    for power in (0.8, 0.9):
        subjects = pairs_needed(SD, 0.03, power=power)
        low, high = _bounds(power, 1000)
        # Whole subjects and the t approximation of ranks add up to 3 points to the power asked for.
        assert low <= _share_significant(0.03, subjects, 1000, seed=1) <= high + 0.03


def test_planted_gain_of_3_points_is_found_in_20_subjects() -> None:
    assert detectable_difference(SD / math.sqrt(20), 19) < 0.03
    assert _share_significant(0.03, 20, 300, seed=2) >= 0.8


@pytest.mark.parametrize("subjects", [6, 10, 20])
def test_planted_nothing_is_significant_in_at_most_5_percent(subjects: int) -> None:
    assert _share_significant(0.0, subjects, 1500, seed=3) <= _bounds(0.05, 1500)[1]


def _coverage(draw: list[tuple[int, float]], studies: int, seed: int) -> float:
    """Share of intervals over datasets of (subjects, spread) that hold the true mean, 0."""
    rng = np.random.default_rng(seed)
    covered = 0
    for study in range(studies):
        strata = [rng.normal(0, spread, subjects) for subjects, spread in draw]
        low, high = interval_of_mean(strata, seed=study, resamples=1000)
        covered += low <= 0 <= high
    return covered / studies


@pytest.mark.parametrize("subjects", [10, 20])
def test_intervals_hold_the_truth_in_95_percent(subjects: int) -> None:
    low, high = _bounds(0.95, 1000)
    assert low <= _coverage([(subjects, SD)], 1000, seed=4) <= high


def test_intervals_of_six_subjects_hold_the_truth_nearly_as_often() -> None:
    assert _coverage([(6, SD)], 1000, seed=5) >= _bounds(0.93, 1000)[0]


def test_intervals_over_unlike_datasets_hold_the_truth_in_95_percent() -> None:
    low, high = _bounds(0.95, 800)
    assert low <= _coverage([(6, 0.02), (12, 0.08), (30, 0.04)], 800, seed=6) <= high


def test_holm_keeps_the_rate_of_any_false_finding() -> None:
    rng = np.random.default_rng(7)
    wrong, wrong_uncorrected, found = [], [], []
    for _ in range(600):
        gains = np.array([0.06] * 2 + [0.0] * 8)
        p = np.array([wilcoxon_p(rng.normal(gain, SD, 15)) for gain in gains])
        corrected = holm(p)
        wrong.append((corrected[2:] < 0.05).any())
        wrong_uncorrected.append((p[2:] < 0.05).any())
        found.append((corrected[:2] < 0.05).mean())
    assert np.mean(wrong) <= _bounds(0.05, 600)[1]
    assert np.mean(wrong_uncorrected) > 0.2
    assert np.mean(found) > 0.8


def _studies(count: int, subjects: int, seeds: int, subject_sd: float, gain: float, seed: int) -> pd.DataFrame:
    """Independent studies as datasets: how well an arm does differs between subjects, and a little between seeds."""
    rng = np.random.default_rng(seed)
    hardness = rng.normal(0.7, 0.1, (count, 1, subjects))
    arms = {
        arm: hardness + rng.normal(mean, subject_sd / math.sqrt(2), (count, 1, subjects)) + rng.normal(0, 0.005, shape)
        for shape in [(count, seeds, subjects)]
        for arm, mean in (("scratch", 0.0), ("MAE", gain))
    }
    return pd.concat(
        [
            cases_table({(f"Dataset{study:03d}", arm, f"seed{number}"): scores[study, number][:, None]})
            for arm, scores in arms.items()
            for study in range(count)
            for number in range(seeds)
        ]
    )


def test_seeds_are_no_subjects() -> None:
    """Each arm suits some subjects better than others; more seeds show that more clearly, and no arm is better."""
    cases = _studies(30, subjects=7, seeds=5, subject_sd=SD, gain=0.0, seed=8)
    pairs = compare(cases, "scratch", resamples=100).pairs
    single = pairs[pairs["dataset"] != "all"]
    assert (single["n_subjects"] == 7).all()
    assert (single["p"] < 0.05).mean() <= _bounds(0.05, 30)[1]
    wide = cases.pivot_table(index=["dataset", "case", "replicate"], columns="arm", values="dice")
    naive = (wide["MAE"] - wide["scratch"]).groupby(level="dataset").agg(wilcoxon_p)
    assert (naive < 0.05).mean() > 0.3, "seeds taken as subjects would have been found out"


def test_three_subjects_with_ten_seeds_give_no_word_on_significance() -> None:
    comparison = compare(_studies(1, subjects=3, seeds=10, subject_sd=SD, gain=0.1, seed=9), "scratch")
    (pair,) = comparison.pairs.itertuples()
    assert pair.n_subjects == 3
    assert math.isnan(pair.p) and math.isnan(pair.p_holm) and math.isnan(pair.low)
    assert pair.seed_sd > 0
    assert "too few independent subjects for a test" in pair.verdict
    assert "p(" not in pair.verdict and "better" not in pair.verdict


def test_planted_gain_reaches_the_verdict() -> None:
    comparison = compare(_studies(1, subjects=20, seeds=3, subject_sd=0.03, gain=0.05, seed=10), "scratch")
    (pair,) = comparison.pairs.itertuples()
    assert pair.low <= 0.05 <= pair.high
    assert pair.verdict.endswith("better than scratch")
