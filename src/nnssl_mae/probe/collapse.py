"""How much of its feature space a network uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DEAD = 0.01  # of the root mean square spread of all channels: a linear layer must amplify it a hundredfold to see it
_SMALLEST = 1e-12

Features = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Use:
    """How features of one stage, sampled at ``positions`` places, use their ``channels``."""

    channels: int
    positions: int
    effective_rank: float
    """Of the deviations from the mean; between 1 and the smaller of channels and positions, 0 if nothing varies."""
    dead: float
    """Share of channels that do not vary, 0 to 1."""
    cosine: float
    """Mean cosine between the features of two places; 1 = everywhere the same."""


def use_of(features: Features) -> Use:
    """Measures features (positions, channels)."""
    features = np.asarray(features, dtype=np.float64)
    return Use(
        channels=features.shape[1],
        positions=features.shape[0],
        effective_rank=effective_rank(features - features.mean(axis=0)),
        dead=dead_share(features),
        cosine=mean_cosine(features),
    )


def effective_rank(matrix: Features) -> float:
    """The exponential of the entropy of the normalised singular values (Roy and Vetterli 2007); 0 of a zero matrix.

    n equal singular values give n, a matrix of rank one gives 1.
    """
    values = np.linalg.svd(np.asarray(matrix, dtype=np.float64), compute_uv=False)
    total = values.sum()
    if total <= _SMALLEST:
        return 0.0
    shares = values[values > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def dead_share(features: Features) -> float:
    """Share of channels whose standard deviation is under 1 % of the root mean square of all; 1 if nothing varies.

    Args:
        features: (positions, channels).
    """
    spread = np.asarray(features, dtype=np.float64).std(axis=0)
    typical = np.sqrt(np.mean(spread**2))
    return float((spread <= max(_DEAD * typical, _SMALLEST)).mean())


def mean_cosine(features: Features) -> float:
    """Mean cosine over all pairs of different rows of features (positions, channels); zero rows count as 0.

    From the length of the sum of the unit vectors, so that no pair is looked at.

    Raises:
        ValueError: fewer than two positions.
    """
    number = len(features)
    if number < 2:
        raise ValueError("a cosine needs two positions")
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    units = np.divide(features, lengths, out=np.zeros_like(features, dtype=np.float64), where=lengths > _SMALLEST)
    together = float(np.square(units.sum(axis=0)).sum() - np.square(units).sum())
    return together / (number * (number - 1))
