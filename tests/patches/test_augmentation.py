import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

from nnssl_mae.patches.augmentation import SpatialAugmentation, crop, sample_corner
from nnssl_mae.recipes.pretraining import AugmentationRecipe

PATCH = (16, 16, 16)


def volume(shape=(1, 40, 44, 48)) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float16)


def test_corners_cover_the_volume_and_centre_small_ones() -> None:
    rng = np.random.default_rng(0)
    corners = np.array([sample_corner((20, 16, 9), PATCH, rng) for _ in range(300)])
    assert set(corners[:, 0]) == {0, 1, 2, 3, 4}
    assert set(corners[:, 1]) == {0}
    assert set(corners[:, 2]) == {-4}


def test_crop_pads_with_zero_outside_the_volume() -> None:
    patch = crop(np.ones((1, 4, 4, 4), np.float16), (-1, 0, 2), (4, 4, 4))
    assert patch.dtype == torch.float32
    assert patch.sum() == 3 * 4 * 2


@pytest.mark.parametrize("seed", range(8))
def test_reading_only_what_a_draw_needs_equals_stock_on_the_whole_region(seed: int) -> None:
    recipe = AugmentationRecipe(rotation_probability=0.5, scale_probability=0.5, mirror=False)
    ours = SpatialAugmentation(recipe, PATCH)
    draw = ours.sample((40, 44, 48), np.random.default_rng(seed))
    angle = np.deg2rad(30.0)
    stock = SpatialTransform(
        PATCH, 0, False, p_rotation=0.5, rotation=(-angle, angle), p_scaling=0.5, scaling=(0.7, 1.4),
        p_synchronize_scaling_across_axes=1,
    )  # fmt: skip
    start = [low - (wide // 2 - 8) for low, wide in zip(draw.corner, ours.read_size, strict=True)]
    region = crop(volume(), start, ours.read_size)
    expected = stock.apply({"image": region}, **draw.spatial)["image"]
    assert torch.equal(ours.apply(volume(), draw), expected)


def test_draws_depend_on_the_generator_only_and_leave_the_global_ones_alone() -> None:
    augmentation = SpatialAugmentation(AugmentationRecipe(rotation_probability=1), PATCH)
    np.random.seed(1)
    torch.manual_seed(1)
    before = (np.random.get_state()[1].copy(), torch.get_rng_state())
    one = augmentation.apply(volume(), augmentation.sample((40, 44, 48), np.random.default_rng(5)))
    assert np.array_equal(before[0], np.random.get_state()[1])
    assert torch.equal(before[1], torch.get_rng_state())
    np.random.seed(2)
    torch.manual_seed(2)
    two = augmentation.apply(volume(), augmentation.sample((40, 44, 48), np.random.default_rng(5)))
    assert torch.equal(one, two)


def test_probability_zero_changes_nothing() -> None:
    recipe = AugmentationRecipe(rotation_probability=0, scale_probability=0, mirror=False)
    augmentation = SpatialAugmentation(recipe, PATCH)
    draw = augmentation.sample((40, 44, 48), np.random.default_rng(0))
    assert torch.equal(augmentation.apply(volume(), draw), crop(volume(), draw.corner, PATCH))


def test_patches_of_few_thick_slices_turn_in_plane_only() -> None:
    patch = (4, 32, 32)
    recipe = AugmentationRecipe(rotation_probability=1, scale_probability=0, mirror=False)
    augmentation = SpatialAugmentation(recipe, patch)
    slices = np.ones((1, 40, 80, 80), np.float16) * np.arange(40, dtype=np.float16)[None, :, None, None]
    draw = augmentation.sample((40, 80, 80), np.random.default_rng(1))
    centre = augmentation.apply(slices, draw)[0, :, 12:20, 12:20]
    assert torch.allclose(centre, centre[:, :1, :1], atol=1e-3)
