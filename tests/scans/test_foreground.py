import numpy as np
import pytest
from scipy import ndimage

from nnssl_mae.scans.foreground import CELL, decode_occupancy, encode_occupancy, foreground_mask, occupancy_at
from tests.tiny_scans import template

RNG = np.random.default_rng(0)


def head() -> tuple[np.ndarray, np.ndarray]:
    """The template brain in dark fluid, dark bone and bright fat (2 mm), and where it is."""
    brain = ndimage.zoom(template()[0], 2, order=1)
    distance = ndimage.distance_transform_edt(~ndimage.binary_fill_holes(brain > 0.05))
    image = np.select([distance == 0, distance <= 2, distance <= 4, distance <= 7], [brain, 0.25, 0.05, 0.9], 0.0)
    return image, distance <= 7


def assert_found(found: np.ndarray, expected: np.ndarray) -> None:
    """Nearly all of it, and little more: pairs of voxels are averaged, so a border may be a voxel too wide."""
    assert (found & expected).sum() > 0.98 * expected.sum()
    assert (found & ~expected).sum() < 0.06 * expected.sum()


def test_a_stripped_brain_is_found_with_its_ventricles() -> None:
    brain, _ = template()
    brain = np.where(brain > 0.05, brain, 0)
    expected = ndimage.binary_fill_holes(brain > 0)
    assert_found(foreground_mask((brain - brain.mean()) / brain.std()), expected)


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.1])
def test_a_whole_head_is_found_in_noisy_air(noise: float) -> None:
    image, expected = head()
    real, imaginary = RNG.normal(0, noise, (2, *image.shape))
    assert_found(foreground_mask(np.hypot(image + real, imaginary)), expected)


def test_a_ct_is_found_without_the_air_around_it_and_with_that_inside() -> None:
    image, expected = head()
    tissue = np.where(image > 0.8, 1200.0, 40.0)
    tissue[40:60, 40:60, 40:60] = -1000  # a sinus, or a lung
    hounsfield = np.where(expected, tissue, -1000) + RNG.normal(0, 20, image.shape)
    assert_found(foreground_mask(hounsfield), expected)


def test_a_volume_full_of_tissue_is_nearly_all_foreground() -> None:
    inside = head()[0][36:60, 40:80, 36:60]
    assert foreground_mask(inside).mean() > 0.98
    assert foreground_mask(RNG.normal(size=(70, 70, 70))).mean() > 0.98
    assert foreground_mask(np.zeros((5, 6, 7))).all()


def test_specks_and_a_table_are_dropped_and_two_legs_stay() -> None:
    volume = np.zeros((60, 60, 60))
    volume[:, 10:25, 10:25] = volume[:, 35:48, 35:48] = 1
    legs = volume > 0
    volume[2:4, 55:57, 5:7] = volume[50:58, 58:60, 20:30] = 1
    assert np.array_equal(foreground_mask(volume), legs)


def test_the_grid_holds_the_share_of_each_cell_and_of_cut_cells_what_is_there() -> None:
    mask = np.zeros((16, 20, 9), dtype=bool)
    mask[:8, :4, :8] = True
    mask[8:, 16:, 8] = True
    cells = decode_occupancy(encode_occupancy(mask), mask.shape)
    assert cells.shape == (2, 3, 2)
    assert cells[0, 0, 0] == round(255 / 2)
    assert cells[1, 2, 1] == 255
    assert cells.sum() == 128 + 255


def test_points_are_looked_up_in_their_cell_and_outside_is_air() -> None:
    mask = np.zeros((16, 16, 16), dtype=bool)
    mask[CELL:] = True
    cells = decode_occupancy(encode_occupancy(mask), mask.shape)
    points = np.array([[7.4, 0, 0], [7.6, 0, 0], [15.4, 15.4, -0.4], [15.6, 0, 0], [8, 8, -0.6]])
    assert occupancy_at(cells, mask.shape, points).tolist() == [0, 1, 1, 0, 0]


def test_a_grid_of_another_volume_or_a_damaged_one_is_refused() -> None:
    content = encode_occupancy(np.ones((16, 16, 16), dtype=bool))
    with pytest.raises(ValueError, match="holds 8 cells"):
        decode_occupancy(content, (24, 16, 16))
    with pytest.raises(ValueError, match="cannot be read"):
        decode_occupancy(content[:-3], (16, 16, 16))
