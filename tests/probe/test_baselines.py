"""Fillings that learnt nothing, on arrays that a person can work out."""

from __future__ import annotations

import numpy as np
import pytest

from nnssl_mae.probe.baselines import (
    fillings,
    mean_of_visible,
    nearest_visible_block,
    trilinear_from_visible,
    with_given_blocks,
)


def line(*values: float) -> np.ndarray:
    """A volume of one row."""
    return np.array(values, np.float32).reshape(1, 1, -1)


def mask(*hidden: int) -> np.ndarray:
    return np.array(hidden, bool).reshape(1, 1, -1)


def everywhere(volume: np.ndarray) -> np.ndarray:
    return np.ones(volume.shape, bool)


def test_the_mean_is_that_of_visible_voxels_that_count() -> None:
    volume = line(1, 3, 90, 90, 5, 70)
    counted = line(1, 1, 1, 1, 1, 0) > 0
    filled = mean_of_visible(volume, mask(0, 1, 0), counted)
    np.testing.assert_allclose(filled.ravel(), [1, 3, 3, 3, 5, 70])


def test_the_nearest_block_gives_its_mean() -> None:
    volume = line(1, 3, 0, 0, 0, 0, 10, 20)
    filled = nearest_visible_block(volume, mask(0, 1, 1, 0), everywhere(volume))
    np.testing.assert_allclose(filled.ravel(), [1, 3, 2, 2, 15, 15, 10, 20])


def test_a_block_of_padding_is_no_source() -> None:
    volume = line(8, 8, 0, 0, 0, 0)
    counted = line(1, 1, 1, 1, 0, 0) > 0
    filled = nearest_visible_block(volume, mask(0, 1, 0), counted)
    np.testing.assert_allclose(filled.ravel()[2:4], 8)


def test_along_a_line_trilinear_is_linear_interpolation() -> None:
    volume = line(0, 0, 77, 77, 3, 3)
    filled = trilinear_from_visible(volume, mask(0, 1, 0), everywhere(volume))
    np.testing.assert_allclose(filled.ravel(), [0, 0, 1, 2, 3, 3])


def test_beyond_the_last_visible_voxel_its_value_goes_on() -> None:
    volume = line(1, 4, 77, 77)
    np.testing.assert_allclose(trilinear_from_visible(volume, mask(0, 1), everywhere(volume)).ravel(), [1, 4, 4, 4])


def test_directions_count_by_one_over_their_distance() -> None:
    volume = np.zeros((3, 3, 3), np.float32)
    volume[1, 1, 0], volume[0, 1, 1] = 6, 12
    hidden = np.ones((3, 3, 3), bool)
    hidden[1, 1, 0] = hidden[0, 1, 1] = False
    filled = trilinear_from_visible(volume, hidden, everywhere(volume))
    assert filled[1, 1, 1] == pytest.approx(9)  # both one away
    assert filled[1, 1, 2] == pytest.approx(6)  # only the row holds one
    assert filled[2, 1, 1] == pytest.approx(12)


def test_without_any_visible_voxel_along_the_axes_the_nearest_in_space_is_taken() -> None:
    volume = np.zeros((4, 4, 4), np.float32)
    volume[0, 0, 0] = 5
    hidden = np.ones((4, 4, 4), bool)
    hidden[0, 0, 0] = False
    np.testing.assert_allclose(trilinear_from_visible(volume, hidden, everywhere(volume)), 5)


def test_a_plane_is_filled_exactly_by_trilinear_between_visible_blocks() -> None:
    volume = np.add.outer(np.add.outer(np.arange(9.0), 2 * np.arange(9.0)), -np.arange(9.0)).astype(np.float32)
    hidden = np.zeros((3, 3, 3), bool)
    hidden[1, 1, 1] = True
    np.testing.assert_allclose(trilinear_from_visible(volume, hidden, everywhere(volume)), volume, atol=1e-5)


def test_hidden_voxels_have_no_influence() -> None:
    rng = np.random.default_rng(0)
    volume = rng.normal(size=(8, 8, 8)).astype(np.float32)
    hidden = rng.random((4, 4, 4)) < 0.6
    covered = hidden.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    other = np.where(covered, 99, volume).astype(np.float32)
    for name, filled in fillings(volume, hidden, everywhere(volume)).items():
        again = fillings(other, hidden, everywhere(volume))[name]
        np.testing.assert_array_equal(filled, again, err_msg=name)
        np.testing.assert_array_equal(filled[~covered], volume[~covered], err_msg=name)


def test_nothing_visible_is_refused() -> None:
    volume = line(1, 2)
    with pytest.raises(ValueError, match="nothing of the scan is visible"):
        fillings(volume, mask(0, 1), line(0, 1) > 0)


def test_given_blocks_get_the_true_mean_and_at_most_the_true_spread() -> None:
    volume = line(0, 0, 10, 12, 20, 26)
    filled = line(0, 0, 1, 5, 0, 2)
    told = with_given_blocks(filled, volume, mask(0, 1, 1), everywhere(volume))
    # Spread 2 is reduced to 1; spread 1 stays, though 3 would be true.
    np.testing.assert_allclose(told.ravel(), [0, 0, 10, 12, 22, 24], atol=1e-5)


def test_a_flat_filling_that_is_told_is_the_true_mean_of_each_block() -> None:
    volume = line(5, 5, 1, 3)
    told = with_given_blocks(line(5, 5, 5, 5), volume, mask(0, 1), everywhere(volume))
    np.testing.assert_allclose(told.ravel(), [5, 5, 2, 2], atol=1e-5)
