"""Directions that features use, of matrices whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from nnssl_mae.probe.collapse import dead_share, effective_rank, mean_cosine, use_of


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_equal_directions_all_count(size: int) -> None:
    assert effective_rank(np.eye(size)) == pytest.approx(size)
    assert effective_rank(7 * np.eye(size)) == pytest.approx(size)


def test_one_direction_counts_one() -> None:
    assert effective_rank(np.outer(noise(20), noise(6))) == pytest.approx(1, abs=1e-6)
    assert effective_rank(np.zeros((4, 3))) == 0


def test_the_entropy_of_known_singular_values() -> None:
    shares = np.array([0.5, 0.25, 0.25])
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert effective_rank(np.diag([2.0, 1.0, 1.0])) == pytest.approx(expected)


def test_a_constant_added_to_all_features_is_no_direction() -> None:
    features = noise(400, 5)
    assert use_of(features + 1000).effective_rank == pytest.approx(use_of(features).effective_rank, rel=1e-6)
    assert use_of(features).effective_rank == pytest.approx(5, rel=0.02)


def test_channels_that_do_not_vary_are_dead() -> None:
    features = noise(100, 4)
    features[:, 1] = 3
    features[:, 2] *= 1e-4
    assert dead_share(features) == 0.5
    assert dead_share(np.ones((5, 3))) == 1


def test_the_mean_cosine_is_that_of_all_pairs() -> None:
    features = noise(7, 3)
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    pairs = [units[a] @ units[b] for a in range(7) for b in range(7) if a != b]
    assert mean_cosine(features) == pytest.approx(np.mean(pairs))
    assert mean_cosine(np.ones((4, 3))) == pytest.approx(1)
    assert mean_cosine(np.array([[1.0, 0], [-1, 0]])) == pytest.approx(-1)
    with pytest.raises(ValueError, match="two positions"):
        mean_cosine(np.ones((1, 3)))
