"""What a probe found out about one checkpoint, and the same as plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from nnssl_mae.probe.baselines import BASELINES
from nnssl_mae.probe.collapse import Use
from nnssl_mae.probe.linear_probe import Marks
from nnssl_mae.probe.reconstruction import NETWORK, Reconstructions

COVERAGE = 0.95
"""Of :attr:`LinearProbe.prediction_limit`: half of the rest, every fortieth, lies above it by chance alone."""


@dataclass(frozen=True)
class Collapse:
    """Part two: the use of each stage, highest resolution first, by the checkpoint and by untrained networks."""

    trained: tuple[Use, ...]
    random: tuple[tuple[Use, ...], ...]

    def random_rank(self, stage: int) -> tuple[float, float]:
        """Mean and smallest effective rank of a stage over the untrained networks."""
        ranks = [uses[stage].effective_rank for uses in self.random]
        return float(np.mean(ranks)), float(np.min(ranks))


@dataclass(frozen=True)
class LinearProbe:
    """Part three."""

    trained: Marks
    random: tuple[Marks, ...]
    raw: Marks
    scans: int
    folds: int
    covered: float

    @property
    def random_mean(self) -> float:
        """Mean Dice over the untrained networks."""
        return float(np.mean([marks.mean_dice for marks in self.random]))

    @property
    def random_sd(self) -> float:
        """Standard deviation (n - 1) between them."""
        return float(np.std([marks.mean_dice for marks in self.random], ddof=1))

    @property
    def prediction_limit(self) -> float:
        """Dice by which one more untrained network may differ from ``random_mean``, in 95 of 100 cases.

        Both the mean and the spread come from few networks, so this is not two standard deviations: it is a prediction
        interval for one new draw from a normal distribution, ``t(0.975, n - 1) * sd * sqrt(1 + 1 / n)``, about 5
        standard deviations for 3 networks and 3 for 5.
        """
        number = len(self.random)
        quantile = float(stdtrit(number - 1, (1 + COVERAGE) / 2))  # of Student's t
        return quantile * self.random_sd * math.sqrt(1 + 1 / number)

    @property
    def wins(self) -> float:
        """Share of the test scans on which the checkpoint is better than every untrained network."""
        best = {scan: max(_low(marks.of_scans[scan]) for marks in self.random) for scan in self.trained.of_scans}
        return float(np.mean([_low(mark) > best[scan] for scan, mark in self.trained.of_scans.items()]))


def _low(value: float) -> float:
    return value if math.isfinite(value) else -math.inf


@dataclass(frozen=True)
class Probed:
    """All about one checkpoint. A part that could not be done is None, and ``notes`` say why."""

    label: str
    method: str | None
    epochs: int | None
    scans: tuple[str, ...]
    collapse: Collapse
    reconstructions: Reconstructions | None = None
    linear: LinearProbe | None = None
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """For tables and pictures."""
        return self.label if self.epochs is None else f"{self.label} (epoch {self.epochs})"


def as_json(found: Probed) -> dict[str, Any]:
    """Plain values without any path; numbers that do not exist are null."""
    plain: dict[str, Any] = {
        "checkpoint": found.label,
        "method": found.method,
        "epochs": found.epochs,
        "scans": list(found.scans),
        "reconstruction": None if found.reconstructions is None else _reconstruction(found.reconstructions),
        "features": {
            "trained": [asdict(use) for use in found.collapse.trained],
            "random": [[asdict(use) for use in uses] for uses in found.collapse.random],
        },
        "linear_probe": None if found.linear is None else _linear(found.linear),
        "notes": list(found.notes),
    }
    return {key: without_nan(value) for key, value in plain.items()}


def _reconstruction(found: Reconstructions) -> dict[str, Any]:
    return {
        "trained_ratio": found.trained_ratio,
        "block_edge_voxels": found.block_edge,
        "brightness_of_blocks_is_given": found.blocks_are_given,
        "ratios": [
            {
                "ratio": at.ratio,
                "mean_r2": {name: at.mean_r2(name) for name in (NETWORK, *BASELINES)},
                "mean_psnr_db": {name: at.mean_psnr(name) for name in (NETWORK, *BASELINES)},
                "share_of_scans_better_than_every_baseline": at.wins,
                "r2_of_scans": {name: values.tolist() for name, values in at.r2.items()},
            }
            for at in found.at
        ],
    }


def _linear(found: LinearProbe) -> dict[str, Any]:
    contestants: Mapping[str, Sequence[Marks]] = {
        "trained": [found.trained], "random": found.random, "raw_intensities": [found.raw]
    }  # fmt: skip
    return {
        "scans": found.scans,
        "folds": found.folds,
        "share_of_body_reached": found.covered,
        "random_mean_dice": found.random_mean,
        "random_sd_dice": found.random_sd,
        "prediction_limit_dice": found.prediction_limit,
        "share_of_scans_better_than_every_random_network": found.wins,
        **{
            name: [asdict(marks) | {"mean_dice": marks.mean_dice} for marks in each]
            for name, each in contestants.items()
        },
    }


def without_nan(value: Any) -> Any:
    """The same with None for numbers that are not finite, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
