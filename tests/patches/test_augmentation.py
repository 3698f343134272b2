from dataclasses import replace

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

from nnssl_mae.patches.augmentation import NO_AUGMENTATION, PatchDraw, SpatialAugmentation, crop, sample_corner
from nnssl_mae.recipes.pretraining import AugmentationRecipe
from nnssl_mae.scans.foreground import decode_occupancy, encode_occupancy

PATCH = (16, 16, 16)
EVERYTHING = AugmentationRecipe(
    rotation_probability=0.5, scale_probability=0.5, elastic_probability=0.4, elastic_magnitude=(1.0, 4.0)
)
# Zooms that never reach outside the region that is read.
EVERYTHING_NEAR = EVERYTHING.model_copy(
    update={"scale": (0.7, 0.8), "scale_probability": 0.8, "rotation_probability": 0.4, "elastic_magnitude": (0.5, 1.5)}
)


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


def ellipsoid(shape: tuple[int, int, int]) -> np.ndarray:
    """A head in the middle of a volume, True = head."""
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    return sum(axis**2 for axis in axes) < 0.6


@pytest.mark.parametrize("shape", [(12, 15, 40), (18, 17, 16), (30, 34, 32)])
@pytest.mark.parametrize("seed", range(12))
def test_padding_is_excluded_exactly(seed: int, shape: tuple[int, int, int]) -> None:
    """As a volume of ones shows it: a voxel counts if all but a thousandth of it comes from inside."""
    augmentation = SpatialAugmentation(EVERYTHING, PATCH)
    draw = augmentation.sample(shape, np.random.default_rng(seed))
    expected = augmentation.apply(np.ones((1, *shape), np.float16), draw) < 0.999
    excluded = augmentation.excluded(shape, None, draw)
    if excluded is None:
        assert not expected.any()
    else:
        assert excluded.dtype == torch.bool
        assert torch.equal(excluded, expected)


def test_a_deformation_that_bulges_over_the_edge_is_excluded_too() -> None:
    recipe = AugmentationRecipe(
        rotation_probability=0, scale_probability=0, elastic_probability=1, elastic_magnitude=(0.4, 1.5)
    )
    augmentation, shape = SpatialAugmentation(recipe, PATCH), (18, 18, 18)
    bulges = []
    for seed in range(60):
        draw = replace(augmentation.sample(shape, np.random.default_rng(seed)), corner=(1, 1, 1))
        expected = augmentation.apply(np.ones((1, *shape), np.float16), draw) < 0.999
        bulges.append(bool(expected.any()))
        excluded = augmentation.excluded(shape, None, draw)
        assert torch.equal(torch.zeros_like(expected) if excluded is None else excluded, expected)
    assert 5 < sum(bulges) < 55


def test_nothing_is_excluded_and_no_mask_built_inside_a_volume() -> None:
    augmentation = SpatialAugmentation(EVERYTHING_NEAR, PATCH)
    shape = (60, 60, 60)
    nothing = np.zeros((1, *shape), np.uint8)
    draws = [augmentation.sample(shape, np.random.default_rng(seed)) for seed in range(40)]
    inside = [draw for draw in draws if min(draw.corner) > 14 and max(draw.corner) < 30]
    assert any(draw.spatial["grid"] is not None for draw in inside)
    assert all(augmentation.excluded(shape, mask, draw) is None for draw in inside for mask in (None, nothing))


@pytest.mark.parametrize("seed", range(16))
def test_an_exclusion_mask_follows_the_image(seed: int) -> None:
    augmentation = SpatialAugmentation(EVERYTHING, PATCH)
    shape = (40, 60, 60)
    mask = np.zeros((1, *shape), np.uint8)
    mask[0, 12:25, 27:, 24:35] = 1
    draw = replace(augmentation.sample(shape, np.random.default_rng(seed)), corner=(seed, 22, 24))
    excluded = augmentation.excluded(shape, mask, draw)
    # The same shapes as images: a voxel counts as far as it shows the volume and not the mask.
    inside = augmentation.apply(np.ones((1, *shape), np.float16), draw)
    counted = inside - augmentation.apply(mask.astype(np.float16), draw)
    assert excluded is not None
    assert excluded[counted < 0.9989].all()
    assert not excluded[counted > 0.9991].any()
    assert 0.05 < excluded.float().mean() < 0.95


@pytest.mark.parametrize(("block", "tolerance"), [(8, 0.1), (16, 0.07)])
@pytest.mark.parametrize("seed", range(12))
def test_the_foreground_of_blocks_follows_the_image(seed: int, block: int, tolerance: float) -> None:
    shape, grid = (50, 61, 44), (32 // block, 32 // block, 2)
    head = ellipsoid(shape)
    augmentation = SpatialAugmentation(EVERYTHING, (32, 32, 32))
    mirror = {"axes": [axis for axis in range(3) if seed >> axis & 1]}
    draw = replace(augmentation.sample(shape, np.random.default_rng(seed)), corner=(2 + seed, 3, -5), mirror=mirror)
    cells = decode_occupancy(encode_occupancy(head), shape)
    found = augmentation.block_foreground(cells, shape, grid, draw)
    shown = augmentation.apply(head[None].astype(np.float16), draw)
    expected = shown.reshape(grid[0], block, grid[1], block, 2, 16).mean(dim=(1, 3, 5)).numpy()
    # Cells of 8 voxels blur the border of the head.
    assert np.abs(found - expected).mean() < tolerance
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.95


def test_blocks_beyond_what_is_read_are_air() -> None:
    recipe = AugmentationRecipe(rotation_probability=1, rotation_degrees=45, scale_probability=1, scale=(1.4, 1.4))
    shape, augmentation = (80, 80, 80), SpatialAugmentation(recipe, (32, 32, 32))
    cells = decode_occupancy(encode_occupancy(np.ones(shape, dtype=bool)), shape)
    lowest = []
    for seed in range(10):
        draw = replace(augmentation.sample(shape, np.random.default_rng(seed)), corner=(24, 24, 24))
        found = augmentation.block_foreground(cells, shape, (4, 4, 4), draw)
        shown = augmentation.apply(np.ones((1, *shape), np.float16), draw)
        expected = shown.reshape(4, 8, 4, 8, 4, 8).mean(dim=(1, 3, 5)).numpy()
        lowest.append(expected.min())
        assert np.abs(found - expected).max() < 0.3  # eight points a block
    assert min(lowest) < 0.5


def test_aligned_blocks_and_cells_agree_exactly_and_outside_is_air() -> None:
    shape = (32, 32, 24)
    head = np.random.default_rng(0).random((4, 4, 3)) < 0.5
    cells = decode_occupancy(encode_occupancy(head.repeat(8, 0).repeat(8, 1).repeat(8, 2)), shape)
    augmentation = SpatialAugmentation(NO_AUGMENTATION, (32, 32, 32))
    draw = PatchDraw((0, 0, -8), {"grid": None}, {"axes": [0, 2]})
    found = augmentation.block_foreground(cells, shape, (4, 4, 4), draw)
    assert np.array_equal(found[::-1, :, ::-1][:, :, 1:], head)
    assert not found[:, :, 3].any()
    halves = augmentation.block_foreground(cells, shape, (32, 16, 2), draw)
    assert halves.shape == (32, 16, 2)
    assert halves[0, 0, 0] == pytest.approx(head[3, 0, 1:].mean())


def test_a_share_of_the_axes_is_turned() -> None:
    still = AugmentationRecipe(rotation_probability=1, rotation_probability_axis=0, scale_probability=0, mirror=False)
    draw = SpatialAugmentation(still, PATCH).sample((40, 44, 48), np.random.default_rng(0))
    assert np.array_equal(draw.spatial["affine"], np.eye(3))
    augmentation = SpatialAugmentation(still.model_copy(update={"rotation_probability_axis": 0.66}), PATCH)
    affines = [augmentation.sample(PATCH, np.random.default_rng(seed)).spatial["affine"] for seed in range(300)]
    # Turned about exactly one axis leaves that axis alone: 3 * .66 * .34^2 of the draws.
    about_one = np.mean([np.isclose(np.diag(affine), 1).sum() == 1 for affine in affines])
    assert about_one == pytest.approx(3 * 0.66 * 0.34**2, abs=0.08)


def test_deformation_is_as_large_as_the_recipe_says_and_stays_in_thick_slices() -> None:
    recipe = AugmentationRecipe(
        rotation_probability=0, scale_probability=0, elastic_probability=1, elastic_magnitude=(1.0, 2.0), mirror=False
    )
    offsets = SpatialAugmentation(recipe, PATCH).sample((40,) * 3, np.random.default_rng(0)).spatial["elastic_offsets"]
    largest = offsets.abs().amax(dim=(0, 1, 2))
    assert ((largest > 0.99) & (largest < 2.01)).all()
    steps = offsets.diff(dim=0).abs().max()
    assert steps < 1  # smooth

    flat = SpatialAugmentation(recipe, (4, 32, 32))
    slices = np.ones((1, 40, 80, 80), np.float16) * np.arange(40, dtype=np.float16)[None, :, None, None]
    draw = flat.sample((40, 80, 80), np.random.default_rng(1))
    assert draw.spatial["elastic_offsets"][..., 1:].abs().max() > 0.9
    centre = flat.apply(slices, draw)[0, :, 12:20, 12:20]
    assert torch.allclose(centre, centre[:, :1, :1], atol=1e-2)
