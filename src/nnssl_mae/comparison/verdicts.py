"""What a difference between two arms allows to say, in one sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nnssl_mae.comparison.contrasts import Contrast, Outcome
from nnssl_mae.comparison.kinds import Metric
from nnssl_mae.comparison.looks import number
from nnssl_mae.comparison.statistics import detectable_difference, smallest_p, standard_error

LEVEL = 0.05
POWER = 0.8


@dataclass(frozen=True)
class Family:
    """The corrected p of a contrast, and for how many tests it was corrected."""

    p_holm: float
    tests: int


def verdict(contrast: Contrast, outcome: Outcome, family: Family) -> str:
    """One sentence, its numbers as in the tables. With too few subjects, no word on significance."""
    if contrast.obstacle:
        return f"no verdict: {contrast.obstacle}"
    size = f"{_number(contrast.mean, contrast.metric, sign=True)} {contrast.metric.words}"
    if not contrast.enough_subjects:
        return f"{size}, {_subjects(contrast)}, {_seeds(contrast)}: too few independent subjects for a test"
    lead = f"{size}{_interval(contrast, outcome)}, p(Holm) {_p(family.p_holm)}, {_subjects(contrast)}"
    if family.p_holm < LEVEL:
        return f"{lead}, {_seeds(contrast)}: {_direction(contrast, outcome)}"
    # An interval is of one pair, p of all: beside 0 and not significant is no sign of equality.
    opening = "no difference seen" if outcome.interval.low <= 0 <= outcome.interval.high else "not settled"
    return f"{opening}: {lead}, {_seeds(contrast)} ({_what_would_be_seen(contrast, family)})"


def _interval(contrast: Contrast, outcome: Outcome) -> str:
    if math.isnan(outcome.interval.low):
        return ""
    low, high = (_number(end, contrast.metric) for end in outcome.interval)
    return f" [{low}, {high}]"


def _subjects(contrast: Contrast) -> str:
    count, datasets = len(contrast.differences), len(contrast.strata)
    subjects = f"{count} subject{'s' if count != 1 else ''}"
    if contrast.left_out:
        return f"{subjects} in {datasets} of {datasets + contrast.left_out} datasets"
    return f"{subjects} in {datasets} datasets" if datasets > 1 else subjects


def _seeds(contrast: Contrast) -> str:
    if math.isnan(contrast.seed_sd):
        return "spread over seeds unknown"
    return f"spread over seeds {_number(contrast.seed_sd, contrast.metric)}"


def _direction(contrast: Contrast, outcome: Outcome) -> str:
    if contrast.mean * outcome.rank_biserial <= 0:
        return f"differs from {contrast.control}, but the mean and most subjects point in opposite directions"
    word = "better" if contrast.metric.gain(contrast.mean) > 0 else "worse"
    if contrast.seed_sd >= abs(contrast.mean):
        return f"{word} than {contrast.control} in these runs, but seeds differ by as much"
    return f"{word} than {contrast.control}"


def _what_would_be_seen(contrast: Contrast, family: Family) -> str:
    """How large a difference such a study finds, at the level that Holm's first step asks for."""
    count = len(contrast.differences)
    if smallest_p(count) * family.tests > LEVEL:
        return f"{count} subjects alone cannot pass the correction for {family.tests} comparisons"
    if min(len(differences) for differences in contrast.strata) < 2:
        return "a dataset with one subject: what would have been seen is unknown"
    error, degrees = standard_error(contrast.strata)
    if error == 0:
        return "all subjects differ by the same"
    least = _number(detectable_difference(error, degrees, POWER, LEVEL / family.tests), contrast.metric)
    return f"an effect of {least} or more would have been seen in {POWER * 100:.0f} % of such studies"


def _number(value: float, metric: Metric, sign: bool = False) -> str:
    return number(value, metric.digits, sign)


def _p(p: float) -> str:
    if p < 0.001:
        return "< .001"
    return "= 1" if p >= 0.9995 else f"= {p:.3f}".replace("0.", ".", 1)
