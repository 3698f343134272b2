"""Statistics against examples worked by hand, full enumeration and scipy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from nnssl_mae.comparison.statistics import (
    MINIMUM_SUBJECTS,
    average_ranks,
    cohens_dz,
    detectable_difference,
    holm,
    interval_of_difference,
    interval_of_mean,
    pairs_needed,
    rank_biserial,
    smallest_p,
    standard_error,
    wilcoxon_p,
)


def _p_by_enumeration(differences: list[float]) -> float:
    """Share of all assignments of signs whose rank sum is as far from the middle as the one seen."""
    moved = np.array([value for value in differences if value != 0])
    ranks = stats.rankdata(np.abs(moved))
    seen = abs((ranks * np.sign(moved)).sum())
    sums = [abs((ranks * signs).sum()) for signs in itertools.product([-1, 1], repeat=len(moved))]
    return float(np.mean(np.array(sums) >= seen - 1e-9))


@pytest.mark.parametrize("subjects", [6, 9, 14, 30, 50])
def test_signed_rank_p_is_scipys_exact_one(subjects: int) -> None:
    differences = np.random.default_rng(subjects).normal(0.3, 1, subjects)
    assert wilcoxon_p(differences) == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue, rel=1e-9)


@pytest.mark.parametrize(
    "differences",
    [
        [1, 2, 3, 4, 5, 6],
        [1, -1, 1, 1, 2, 2, -3],
        [0, 0, 1, 1, 2, -2, 3, 3],
        [0.1, -0.1, 0.2, 0.2, 0.2, -0.3, 0.4, 0.4, 0.4],
    ],
)
def test_signed_rank_p_with_ties_and_zeros_is_that_of_all_signs(differences: list[float]) -> None:
    assert wilcoxon_p(differences) == pytest.approx(_p_by_enumeration(differences), rel=1e-12)


def test_ties_by_rounding_are_ties() -> None:
    exact = [0.3, 0.3, -0.3, 0.1, 0.2, 0.5, 0.4]
    rounded = [0.1 + 0.2, 0.3, -(0.1 + 0.2), 0.1, 0.2, 0.5, 0.4]
    assert wilcoxon_p(rounded) == wilcoxon_p(exact)


def test_signed_rank_p_of_many_subjects_is_scipys() -> None:
    differences = np.random.default_rng(0).normal(0.2, 1, 120)
    assert wilcoxon_p(differences) == pytest.approx(stats.wilcoxon(differences).pvalue)


def test_no_difference_at_all_has_p_1() -> None:
    assert wilcoxon_p(np.zeros(8)) == 1


def test_p_does_not_depend_on_which_arm_comes_first() -> None:
    differences = np.array([0.1, 0.2, -0.05, 0.3, 0.25, 0.0, 0.4])
    assert wilcoxon_p(differences) == wilcoxon_p(-differences)


def test_no_p_for_so_few_subjects_that_none_could_be_below_5_percent() -> None:
    assert smallest_p(MINIMUM_SUBJECTS - 1) > 0.05 >= smallest_p(MINIMUM_SUBJECTS)
    assert math.isnan(wilcoxon_p(np.ones(MINIMUM_SUBJECTS - 1)))
    assert wilcoxon_p(np.ones(MINIMUM_SUBJECTS)) == smallest_p(MINIMUM_SUBJECTS) == 0.03125


def test_holm_by_hand() -> None:
    # .005 * 4 = .02; .01 * 3 = .03; .03 * 2 = .06; .04 * 1 = .04, not below the one before: .06
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


def test_what_was_not_tested_is_no_member_of_the_family() -> None:
    np.testing.assert_allclose(holm([0.02, math.nan, 0.5]), [0.04, math.nan, 0.5])
    assert np.isnan(holm([math.nan, math.nan])).all()


def test_corrected_p_stays_below_1() -> None:
    np.testing.assert_array_equal(holm([0.6, 0.7, 0.9]), [1, 1, 1])


def test_effect_sizes_by_hand() -> None:
    assert cohens_dz([1, 2, 3]) == pytest.approx(2.0)  # mean 2, sd 1
    assert rank_biserial([1, -2, 3]) == pytest.approx((1 - 2 + 3) / 6)
    assert rank_biserial([0, 0, 5, 7]) == 1
    assert rank_biserial([-5, -7]) == -1


def test_effect_sizes_without_differences_or_spread() -> None:
    assert cohens_dz([0, 0, 0]) == 0 == rank_biserial([0, 0, 0])
    assert math.isnan(cohens_dz([0.1 + 0.2, 0.3, 0.3]))
    assert math.isnan(cohens_dz([1.0]))


def test_ranks_by_hand() -> None:
    dice = [[0.9, 0.8, 0.7], [0.5, 0.5, 0.6], [0.3, 0.3, 0.3]]
    # 1 2 3; 2.5 2.5 1; 2 2 2
    np.testing.assert_allclose(average_ranks(dice, higher_is_better=True), [5.5 / 3, 6.5 / 3, 2.0])
    # 3 2 1; 1.5 1.5 3; 2 2 2
    np.testing.assert_allclose(average_ranks(dice, higher_is_better=False), [6.5 / 3, 5.5 / 3, 2.0])


def test_no_rank_where_a_score_is_missing() -> None:
    with pytest.raises(ValueError, match="every arm in every dataset"):
        average_ranks([[0.5, math.nan]], higher_is_better=True)


def test_pairs_that_the_trial_with_sd_5_points_planned() -> None:
    assert pairs_needed(sd=0.05, difference=0.05) == 11
    assert pairs_needed(sd=0.05, difference=0.02) == 55
    assert pairs_needed(sd=0.05, difference=-0.02) == 55


def test_more_pairs_for_less_difference_or_more_certainty_and_never_too_few_for_a_test() -> None:
    assert pairs_needed(0.05, 0.01) > pairs_needed(0.05, 0.02)
    assert pairs_needed(0.05, 0.02, power=0.9) > pairs_needed(0.05, 0.02)
    assert pairs_needed(0.05, 0.02, alpha=0.01) > pairs_needed(0.05, 0.02)
    assert pairs_needed(0.0, 0.1) == pairs_needed(0.001, 0.5) == MINIMUM_SUBJECTS


def test_no_number_of_pairs_shows_no_difference() -> None:
    with pytest.raises(ValueError, match="difference 0"):
        pairs_needed(0.05, 0)


def test_what_a_planned_study_detects_is_what_it_was_planned_for() -> None:
    pairs = pairs_needed(0.05, 0.02)
    detectable = detectable_difference(0.05 / math.sqrt(pairs), pairs - 1)
    assert detectable == pytest.approx(0.02, rel=0.03)
    assert detectable_difference(0.05 / math.sqrt(pairs), pairs - 1, alpha=0.05 / 10) > detectable


@pytest.mark.parametrize("degrees", [1, 1.5, 4, 40, 400])
@pytest.mark.parametrize("tests", [1, 20, 500])
def test_detectable_difference_is_found_however_few_subjects(degrees: float, tests: int) -> None:
    assert 0 < detectable_difference(1.0, degrees, alpha=0.05 / tests) < math.inf


def test_interval_is_the_quantile_of_all_resamples() -> None:
    values = np.array([0.0, 1.0, 3.0, 4.0])
    means = np.array([np.mean(draw) for draw in itertools.product(values, repeat=4)])
    tail = stats.norm.cdf(-math.sqrt(4 / 3) * stats.t.ppf(0.75, 3))
    expected = np.quantile(means, [tail, 1 - tail], method="inverted_cdf")
    np.testing.assert_allclose(interval_of_mean([values], resamples=50_000, level=0.5), expected, atol=1e-9)


def test_interval_of_many_subjects_is_that_of_t() -> None:
    values = np.random.default_rng(1).normal(0.8, 0.1, 400)
    expected = stats.t.interval(0.95, 399, values.mean(), values.std(ddof=1) / 20)
    np.testing.assert_allclose(interval_of_mean([values]), expected, atol=0.05 * (expected[1] - expected[0]))


def test_interval_moves_with_the_values_and_repeats_with_the_seed() -> None:
    values = np.random.default_rng(2).normal(0, 1, 12)
    np.testing.assert_allclose(interval_of_mean([values + 5]), np.add(interval_of_mean([values]), 5))
    assert interval_of_mean([values], seed=3) == interval_of_mean([values], seed=3)
    assert interval_of_mean([values], seed=3) != interval_of_mean([values], seed=4)


def test_paired_interval_ignores_how_hard_a_subject_is() -> None:
    hardness = np.linspace(0, 100, 10)
    gain = np.array([1.0, 1.2, 0.8, 1.1, 0.9, 1.0, 1.3, 0.7, 1.0, 1.0])
    paired = interval_of_difference(hardness + gain, hardness)
    np.testing.assert_allclose(paired, interval_of_mean([gain]))
    assert 0.8 < paired.low < 1 < paired.high < 1.2


def test_datasets_count_the_same_whatever_their_size_and_are_resampled_within() -> None:
    constant = [np.full(40, 0.1), np.full(5, 0.5)]
    assert interval_of_mean(constant) == pytest.approx((0.3, 0.3))


def test_no_interval_for_one_subject() -> None:
    assert np.isnan(interval_of_mean([[0.5]])).all()
    assert np.isnan(interval_of_mean([[0.5, 0.6], [0.7]])).all()


def test_standard_error_over_datasets_by_hand() -> None:
    error, degrees = standard_error([[0.0, 2.0], [1.0, 1.0, 1.0, 1.0]])  # variances of the means: 2 / 2 and 0
    assert error == pytest.approx(0.5)
    assert degrees == pytest.approx(1.0)
    error, degrees = standard_error([[1.0, 2.0, 3.0]])
    assert (error, degrees) == pytest.approx((1 / math.sqrt(3), 2))
