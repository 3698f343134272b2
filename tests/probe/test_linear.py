"""The linear classifier, on planted relations and on noise."""

from __future__ import annotations

import numpy as np
import pytest

from nnssl_mae.probe.linear import Samples, balanced_accuracy, confusion, dice, fit, folds_of


def planted(seed: int, classes: int = 3, channels: int = 12, n: int = 300) -> Samples:
    """Classes are which of the first channels is largest; scales differ wildly between channels."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, channels))
    found = features[:, :classes].argmax(axis=1)
    return Samples(features * 10.0 ** np.arange(-3, channels - 3) + 5, found)


def noise(seed: int, classes: int = 3) -> Samples:
    rng = np.random.default_rng(seed)
    return Samples(rng.normal(size=(300, 12)), rng.integers(0, classes, 300))


def accuracy(train: list[Samples], test: Samples) -> float:
    classifier = fit(train, 3)
    return balanced_accuracy(confusion(test.classes, classifier.predict(test.features), 3))


def test_a_planted_relation_is_found_on_new_scans() -> None:
    assert accuracy([planted(0), planted(1), planted(2)], planted(3)) > 0.9


def test_noise_stays_at_chance_on_new_scans() -> None:
    assert accuracy([noise(0), noise(1), noise(2)], noise(3)) == pytest.approx(1 / 3, abs=0.1)


def weak(seed: int, n: int) -> Samples:
    """More channels than voxels, and a weak signal in many of them: next to no penalty learns the noise by heart."""
    direction = np.random.default_rng(9).normal(size=300) / 10
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 2, n)
    return Samples(rng.normal(size=(n, 300)) + np.outer(2 * classes - 1, direction), classes)


def test_the_penalty_is_chosen_for_new_scans() -> None:
    test = weak(10, 4000)
    chosen = fit([weak(seed, 100) for seed in range(4)], 2)
    assert chosen.penalty >= 0.1
    assert (chosen.predict(test.features) == test.classes).mean() > 0.8


def test_the_penalty_is_chosen_for_new_subjects() -> None:
    """Each subject was scanned twice: who leaves out one scan finds that learning the other one by heart pays."""
    scans = [scan for scan in (weak(seed, 100) for seed in range(4)) for _ in range(2)]
    assert fit(scans, 2, list("aabbccdd")).penalty >= 0.1
    assert fit(scans, 2).penalty < 0.1


def test_of_one_subject_there_is_nothing_to_choose_the_penalty_with() -> None:
    scans = [weak(0, 100), weak(1, 100)]
    assert fit(scans, 2, ["a", "a"]).penalty == fit(scans[:1], 2).penalty


def test_one_training_scan_is_enough() -> None:
    assert accuracy([planted(0)], planted(3)) > 0.85


def test_a_channel_that_never_varies_changes_nothing() -> None:
    def with_constant(samples: Samples) -> Samples:
        return Samples(np.concatenate([samples.features, np.full((300, 1), 7.0)], axis=1), samples.classes)

    train, test = [planted(0), planted(1)], planted(2)
    expected = fit(train, 3).predict(test.features)
    found = fit([with_constant(each) for each in train], 3).predict(with_constant(test).features)
    np.testing.assert_array_equal(found, expected)


def test_dice_and_accuracy_of_a_known_table() -> None:
    table = confusion(np.array([0, 0, 1, 1, 1, 2]), np.array([0, 1, 1, 1, 0, 0]), 4)
    np.testing.assert_array_equal(table[:3, :3], [[1, 1, 0], [1, 2, 0], [1, 0, 0]])
    np.testing.assert_allclose(dice(table), [2 / 5, 4 / 6, 0, np.nan])
    assert balanced_accuracy(table) == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)


def test_subjects_are_never_on_both_sides() -> None:
    groups = ["a", "b", "a", "c", "d", "e", "b"]
    folds = folds_of(groups, 4)
    assert sorted(place for fold in folds for place in fold) == list(range(7))
    for fold in folds:
        assert not {groups[place] for place in fold} & {groups[p] for p in range(7) if p not in fold}
    assert len(folds_of(["a", "b"], 4)) == 2
