"""Statistics of paired scores of few subjects: intervals, signed ranks, corrections, effect sizes, pairs needed.

Every function is pure. `differences` are arm - control, one number a subject; subjects are independent of each other
(seeds, repeats and folds are averaged before). What was chosen where text books differ:

- **Interval**: the percentile bootstrap, widened for few subjects (Hesterberg, "What Teachers Should Know About the
  Bootstrap", The American Statistician 69, 2015). Resamples of n values vary less than n new subjects would, and the
  plain percentile interval forgets that the spread itself is an estimate: what is called 95 % covers 85 % at n = 6 and
  91 % at n = 10. BCa (Efron 1987) corrects skewness but not this, and covers less than the plain one where tails are
  heavy. Reading the quantiles further out, by sqrt(n / (n - 1)) and by t instead of z, brings 93-95 % from n = 6 on for
  symmetric scores; skewed ones (exponential) get 89 % at n = 6 and 92 % at n = 20, as by a t interval.
- **Wilcoxon signed rank**: exact up to `EXACT_UP_TO` subjects, by counting all assignments of signs to the ranks at
  hand, so ties need no approximation; beyond that scipy's normal approximation. Zeros are taken out first, as Wilcoxon
  did.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

Numbers = npt.NDArray[np.float64]

MINIMUM_SUBJECTS = 6
"""Fewer subjects get no p-value: 5 differences of one sign have the two-sided exact p 2 / 2**5 = .0625, above .05."""

EXACT_UP_TO = 50
"""Subjects up to which the signed-rank distribution is counted; 2**50 is still exact in a float64."""

EFFICIENCY_OF_RANKS = 3 / math.pi
"""Pairs that a paired t-test needs for each pair of a signed-rank test with normal differences (Pitman efficiency)."""

_ROUNDING = 12
"""Decimals kept before values are ranked: averages over seeds that differ by rounding only are ties."""

_VALUES_AT_ONCE = 1_000_000


class Interval(NamedTuple):
    """Both ends of an interval, in the unit of the values; NaN where it cannot be given."""

    low: float
    high: float


def interval_of_mean(
    strata: Sequence[npt.ArrayLike], seed: int = 0, resamples: int = 10000, level: float = 0.95
) -> Interval:
    """Bootstrap interval of a mean of subjects, or of the mean of several datasets' means.

    Args:
        strata: for each dataset the values (n,) of its subjects; each counts the same whatever its n. Subjects are
            resampled within their dataset.
        seed: the same seed gives the same interval.
        resamples: number of bootstrap resamples.
        level: nominal coverage.

    Returns:
        The interval; NaN twice if a dataset has fewer than 2 subjects.
    """
    samples = [np.asarray(values, dtype=np.float64) for values in strata]
    if not samples or min(len(values) for values in samples) < 2:
        return Interval(math.nan, math.nan)
    error, degrees = standard_error(samples)
    if error == 0:
        mean = float(np.mean([values.mean() for values in samples]))
        return Interval(mean, mean)
    rng = np.random.default_rng(seed)
    means = np.mean([_resampled_means(values, resamples, rng) for values in samples], axis=0)
    tail = _widened_tail(samples, error, degrees, level)
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(low), float(high))


def interval_of_difference(
    arm: npt.ArrayLike, control: npt.ArrayLike, seed: int = 0, resamples: int = 10000, level: float = 0.95
) -> Interval:
    """Paired bootstrap interval of the mean of arm - control; both (n,), the same subjects in the same order."""
    differences = np.asarray(arm, dtype=np.float64) - np.asarray(control, dtype=np.float64)
    return interval_of_mean([differences], seed, resamples, level)


def standard_error(strata: Sequence[npt.ArrayLike]) -> tuple[float, float]:
    """Standard error of the mean of the datasets' means, and its degrees of freedom (Welch-Satterthwaite).

    One dataset gives the familiar sd / sqrt(n) and n - 1. Every dataset needs at least 2 subjects.
    """
    samples = [np.asarray(values, dtype=np.float64) for values in strata]
    sizes = np.array([len(values) for values in samples])
    variances = np.array([_spread(values) ** 2 for values in samples]) / sizes
    total = variances.sum()
    degrees = total**2 / (variances**2 / (sizes - 1)).sum() if total > 0 else float((sizes - 1).sum())
    return math.sqrt(total) / len(samples), float(degrees)


def wilcoxon_p(differences: npt.ArrayLike) -> float:
    """Two-sided p of Wilcoxon's signed-rank test (Wilcoxon, Biometrics Bulletin 1, 1945).

    Args:
        differences: (n,), one a subject. Zeros are left out of the ranks; only zeros give p = 1.

    Returns:
        p in (0, 1]; NaN for fewer than `MINIMUM_SUBJECTS` subjects (zeros count as subjects).
    """
    values = _rounded(differences)
    if len(values) < MINIMUM_SUBJECTS:
        return math.nan
    moved = values[values != 0]
    if len(moved) == 0:
        return 1.0
    if len(moved) > EXACT_UP_TO:
        return float(stats.wilcoxon(moved).pvalue)
    return _exact_signed_rank_p(moved)


def smallest_p(subjects: int) -> float:
    """The smallest two-sided p that a signed-rank test of so many subjects can give: all on one side."""
    return min(1.0, 2.0 ** (1 - subjects))


def holm(p_values: npt.ArrayLike) -> Numbers:
    """Holm's step-down correction (Holm, Scandinavian Journal of Statistics 6, 1979).

    Args:
        p_values: (k,); NaN = no test was done, which is no member of the family.

    Returns:
        Corrected p (k,) in the same order, at most 1; NaN stays NaN.
    """
    p = np.asarray(p_values, dtype=np.float64)
    corrected = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    hypotheses_left = len(order) - np.arange(len(order))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * hypotheses_left))
    return corrected


def cohens_dz(differences: npt.ArrayLike) -> float:
    """Mean difference in standard deviations of the differences (Lakens, Frontiers in Psychology 4:863, 2013).

    0 if no subject differs; NaN for one subject, and where all differ by the same amount (no spread to divide by).
    """
    values = _rounded(differences)
    if len(values) < 2:
        return math.nan
    if not values.any():
        return 0.0
    spread = _spread(values)
    return float(values.mean() / spread) if spread > 0 else math.nan


def rank_biserial(differences: npt.ArrayLike) -> float:
    """Matched-pairs rank-biserial correlation (Kerby, Comprehensive Psychology 3, 2014).

    The share of the rank sum with positive sign minus that with negative sign: 1 = every difference is positive, -1 =
    every one negative. Zeros are left out; 0 if there are only zeros.
    """
    values = _rounded(differences)
    moved = values[values != 0]
    if len(moved) == 0:
        return 0.0
    ranks = stats.rankdata(np.abs(moved))
    return float((ranks * np.sign(moved)).sum() / ranks.sum())


def average_ranks(scores: npt.ArrayLike, higher_is_better: bool) -> Numbers:
    """Mean rank of each arm over datasets, 1 = best; arms with the same score share the middle of their ranks.

    Args:
        scores: (datasets, arms) without NaN: an arm without a score in a dataset has no rank there.
        higher_is_better: False for distances.

    Returns:
        (arms,)

    Raises:
        ValueError: if a score is NaN or there is no dataset.
    """
    table = np.round(np.asarray(scores, dtype=np.float64), _ROUNDING)
    if table.ndim != 2 or len(table) == 0 or np.isnan(table).any():
        raise ValueError("Ranks need a score of every arm in every dataset.")
    return np.asarray(stats.rankdata(-table if higher_is_better else table, axis=1).mean(axis=0))


def pairs_needed(sd: float, difference: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Subjects that a study needs to see a mean difference by a signed-rank test.

    Power of the two-sided paired t-test (noncentral t), divided by `EFFICIENCY_OF_RANKS`; never below
    `MINIMUM_SUBJECTS`. Example: sd .05 needs 11 pairs for .05 Dice and 55 for .02.

    Args:
        sd: standard deviation of the paired differences, e.g. from a pilot.
        difference: the mean difference to see, in the same unit, not 0.
        power: share of such studies that shall see it.
        alpha: level of the test; divide it by the number of comparisons for the first step of Holm's correction.

    Raises:
        ValueError: if sd is negative, difference is 0, or power and alpha are not 0 < alpha < power < 1.
    """
    if not (sd >= 0 and abs(difference) > 0 and 0 < alpha < power < 1):
        raise ValueError(f"No number of pairs for sd {sd}, difference {difference}, power {power}, alpha {alpha}.")
    if sd == 0:
        return MINIMUM_SUBJECTS
    standardised = abs(difference) / sd
    enough = 2
    while _power(standardised * math.sqrt(enough), enough - 1, alpha) < power:
        enough *= 2
    too_few = enough // 2
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if _power(standardised * math.sqrt(middle), middle - 1, alpha) < power:
            too_few = middle
        else:
            enough = middle
    return max(MINIMUM_SUBJECTS, math.ceil(enough / EFFICIENCY_OF_RANKS))


def detectable_difference(error: float, degrees: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """The mean difference that a signed-rank test sees in a share `power` of studies as precise as this one.

    Args:
        error: standard error of the mean difference.
        degrees: its degrees of freedom, see `standard_error`.
        power: share of studies.
        alpha: level of the test.

    Returns:
        A positive difference in the unit of `error`; 0 if `error` is 0.
    """
    highest = 1.0
    while _power(highest, degrees, alpha) < power:
        highest *= 2
    in_errors = optimize.brentq(lambda shift: _power(shift, degrees, alpha) - power, 0, highest)
    return float(in_errors) * error / math.sqrt(EFFICIENCY_OF_RANKS)


def _resampled_means(values: Numbers, resamples: int, rng: np.random.Generator) -> Numbers:
    n = len(values)
    at_once = max(1, _VALUES_AT_ONCE // n)
    parts = [
        values[rng.integers(0, n, size=(min(at_once, resamples - first), n))].mean(axis=1)
        for first in range(0, resamples, at_once)
    ]
    return np.concatenate(parts)


def _widened_tail(samples: Sequence[Numbers], error: float, degrees: float, level: float) -> float:
    """Probability to cut at each end of the resampled means so that the interval covers `level`."""
    resampled_error = math.sqrt(sum(values.var() / len(values) for values in samples)) / len(samples)
    t = stats.t.ppf((1 + level) / 2, degrees)
    return float(stats.norm.cdf(-t * error / resampled_error))


def _exact_signed_rank_p(moved: Numbers) -> float:
    doubled_ranks = np.rint(2 * stats.rankdata(np.abs(moved))).astype(int)  # ties have halves: twice a rank is whole
    ways = np.zeros(doubled_ranks.sum() + 1)  # ways[s]: assignments of signs whose positive ranks sum to s / 2
    ways[0] = 1
    for rank in doubled_ranks:
        ways[rank:] += ways[:-rank].copy()
    positive = doubled_ranks[moved > 0].sum()
    smaller = min(positive, doubled_ranks.sum() - positive)
    return float(min(1.0, 2 * ways[: smaller + 1].sum() / 2.0 ** len(moved)))


def _power(shift: float, degrees: float, alpha: float) -> float:
    """Power of the two-sided t-test whose statistic is shifted by so many standard errors, in the right direction.

    Rejections on the wrong side are no success, and scipy returns NaN for their tiny probability.
    """
    return float(stats.nct.sf(stats.t.ppf(1 - alpha / 2, degrees), degrees, shift))


def _spread(values: Numbers) -> float:
    """Standard deviation (n - 1), and exactly 0 where values differ by rounding only."""
    spread = float(values.std(ddof=1))
    return spread if spread > 10.0**-_ROUNDING else 0.0


def _rounded(values: npt.ArrayLike) -> Numbers:
    return np.asarray(np.round(np.asarray(values, dtype=np.float64), _ROUNDING), dtype=np.float64)
