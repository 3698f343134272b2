"""What came out of timing training steps, and the ratios that follow from it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from nnssl_mae.bench.ceilings import Ceilings, Work
from nnssl_mae.bench.measuring import Timing, middle_half
from nnssl_mae.bench.step_variants import Variant


@dataclass(frozen=True)
class StepResult:
    """Of one variant."""

    variant: Variant
    timing: Timing | None
    """Of each timed step; None if there is a problem."""
    work: Work | None
    """What a step asks of the device."""
    peak: int | None
    """Most bytes that it held at once on the GPU; None on a CPU."""
    problem: str | None = None
    """``out of memory`` or ``not compiled``."""

    @property
    def voxels_per_second(self) -> float | None:
        """Of the patches, hidden or not."""
        return None if self.timing is None else self.variant.setting.voxels / self.timing.median


@dataclass(frozen=True)
class Group:
    """Variants that were timed in turn, with one batch in one number format."""

    ceilings: Ceilings
    results: Sequence[StepResult]


@dataclass(frozen=True)
class Ratio:
    """How many times as fast one variant is as another."""

    of: Variant
    to: str
    """Name of the other one."""
    value: float
    """The median over rounds of the ratio within a round: what slows the machine for a while slows both."""
    quartiles: tuple[float, float]
    """The middle half of these ratios lies between these."""


def ratios_of(results: Sequence[StepResult]) -> list[Ratio]:
    """Each of ours against its baseline, where both were timed."""
    timings = {result.variant.name: result.timing for result in results}
    found = []
    for result in results:
        baseline = result.variant.baseline
        other = timings.get(baseline) if baseline is not None else None
        if baseline is not None and other is not None and result.timing is not None:
            found.append(_ratio(result.variant, baseline, other, result.timing))
    return found


def _ratio(variant: Variant, baseline: str, other: Timing, own: Timing) -> Ratio:
    rounds = [slow / fast for slow, fast in zip(other.wall, own.wall, strict=True)]
    return Ratio(variant, baseline, statistics.median(rounds), middle_half(rounds))
