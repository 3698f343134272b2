from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

from nnssl_mae.patches.augmentation import NO_AUGMENTATION, PatchDraw, SpatialAugmentation
from nnssl_mae.patches.on_device_batching import DeviceAugmentation, Sample, pack
from nnssl_mae.patches.on_device_spatial import (
    Reading,
    SpatialReading,
    apply_mirror,
    apply_spatial,
    apply_spatial_to_mask,
    deformation_field,
    sampling_grid,
)
from nnssl_mae.recipes.pretraining import AugmentationRecipe
from nnssl_mae.scans.foreground import decode_occupancy, encode_occupancy

PATCH = (16, 18, 20)
RIGID = AugmentationRecipe(rotation_probability=0.6, scale_probability=0.6)
DEFORMED = RIGID.model_copy(update={"elastic_probability": 0.7, "elastic_magnitude": (1.0, 3.0)})
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SHAPES = [(40, 44, 48), (12, 50, 19), (20, 18, 22)]


def volume(shape: Sequence[int] = (40, 44, 48)) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float16)


def on_device(reading: Reading, device: str, seed: int = 0, patch: tuple[int, ...] = PATCH) -> dict[str, torch.Tensor]:
    """The patch of one reading, and its mask if it has one."""
    batch = pack([Sample(reading, (), seed)])
    moved = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    made = DeviceAugmentation(AugmentationRecipe(), patch)(moved)
    return {key: value[0].cpu() for key, value in made.items()}


def affine_only(draw: PatchDraw, matrix: np.ndarray | None) -> PatchDraw:
    """A draw of :class:`SpatialReading` with the numbers of a test."""
    grid = None if matrix is None else torch.zeros(1)
    return replace(draw, spatial={"grid": grid, "affine": matrix, "deformation": None})


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(10))
def test_the_same_generator_gives_the_patch_of_the_cpu_path(seed: int, shape: tuple[int, ...], device: str) -> None:
    """Position, angles, zoom and mirroring alike; only rounding differs, also where a patch leaves its volume."""
    cpu, reader = SpatialAugmentation(RIGID, PATCH), SpatialReading(RIGID, PATCH)
    draw = cpu.sample(shape, np.random.default_rng(seed))
    expected = cpu.apply(volume(shape), draw)
    reading = reader.read(volume(shape), None, reader.sample(shape, np.random.default_rng(seed)))
    made = on_device(reading, device)
    assert made["data"].dtype == torch.float32
    assert torch.allclose(made["data"], expected, atol=1e-3)
    excluded = cpu.excluded(shape, None, draw)
    assert ("excluded" in made) == (excluded is not None)
    if excluded is not None:
        # On the border, where a thousandth decides, the last digit of a coordinate may decide.
        assert (made["excluded"] != excluded).float().mean() < 1e-3


@pytest.mark.parametrize("seed", range(6))
def test_an_exclusion_mask_follows_the_image(seed: int) -> None:
    shape = (30, 34, 38)
    mask = np.zeros((1, *shape), np.uint8)
    mask[0, 8:20, 15:, 10:25] = 1
    cpu, reader = SpatialAugmentation(RIGID, PATCH), SpatialReading(RIGID, PATCH)
    expected = cpu.excluded(shape, mask, cpu.sample(shape, np.random.default_rng(seed)))
    made = on_device(reader.read(volume(shape), mask, reader.sample(shape, np.random.default_rng(seed))), "cpu")
    if expected is None:
        assert "excluded" not in made or not made["excluded"].any()
    else:
        assert (made["excluded"] != expected).float().mean() < 1e-3


def test_a_mask_that_does_not_touch_the_patch_is_not_sent() -> None:
    mask = np.zeros((1, 60, 60, 60), np.uint8)
    mask[0, :2] = 1
    reader = SpatialReading(NO_AUGMENTATION, PATCH)
    draw = PatchDraw((10, 10, 10), {"grid": None, "affine": None, "deformation": None}, {"axes": []})
    reading = reader.read(volume((60, 60, 60)), mask, draw)
    assert reading.mask is None
    assert not reading.padded


def test_what_nothing_happens_to_is_read_as_it_is_and_no_more() -> None:
    reader = SpatialReading(NO_AUGMENTATION, PATCH)
    stored = volume()
    reading = reader.read(stored, None, reader.sample(stored.shape[1:], np.random.default_rng(3)))
    assert reading.voxels.shape == (1, *PATCH)
    assert reading.voxels.dtype == torch.float16
    assert reading.theta is None
    (z, y, x) = (int(n) for n in reader.sample(stored.shape[1:], np.random.default_rng(3)).corner)
    expected = stored[:, z : z + 16, y : y + 18, x : x + 20]
    assert torch.equal(on_device(reading, "cpu")["data"], torch.from_numpy(expected).float())


def test_only_the_box_that_a_patch_shows_is_read() -> None:
    """A turned patch needs more than itself and less than the region that fits any turn; a magnified one needs less."""
    stored, reader = volume((80, 80, 80)), SpatialReading(RIGID, (16, 16, 16))
    draw = PatchDraw((30, 30, 30), {}, {"axes": []})
    turn = np.deg2rad(30)
    matrix = np.array([[1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]])
    turned = reader.read(stored, None, affine_only(draw, matrix)).voxels.shape[1:]
    # 15 * (cos + sin) = 20.5 between the outer centres, and a voxel on both sides to interpolate from.
    assert all(0 <= n - least < 2 for n, least in zip(turned, (16, 21.5, 21.5), strict=True))
    assert reader.read(stored, None, affine_only(draw, 0.5 * np.eye(3))).voxels.shape[1:] <= (10, 10, 10)
    whole = SpatialAugmentation(RIGID, (16, 16, 16)).read_size
    assert all(n < limit for n, limit in zip(turned, whole, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_a_deformed_patch_shows_nothing_beside_the_box(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all that the CPU path reads had been read: the field is not known yet when the box is chosen."""
    stored, reader = volume((60, 60, 60)), SpatialReading(DEFORMED.model_copy(update={"elastic_probability": 1}), PATCH)
    draw = reader.sample((60, 60, 60), np.random.default_rng(seed))
    boxed = reader.read(stored, None, draw)
    monkeypatch.setattr(reader._draws, "reach", lambda draw: (np.full(3, -99), np.full(3, 99)))
    whole = reader.read(stored, None, draw)
    assert boxed.voxels.numel() <= whole.voxels.numel()
    assert torch.allclose(on_device(boxed, "cpu", seed)["data"], on_device(whole, "cpu", seed)["data"], atol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(3))
def test_a_deformation_is_that_of_the_cpu_path_for_the_same_noise(seed: int, device: str) -> None:
    recipe = DEFORMED.model_copy(update={"elastic_probability": 1.0})
    cpu = SpatialAugmentation(recipe, PATCH)
    np.random.seed(seed)
    torch.manual_seed(seed)
    drawn = cpu._spatial.get_parameters(image=torch.empty((1, *cpu.read_size), device="meta"))

    reader = SpatialReading(recipe, PATCH)
    np.random.seed(seed)
    same = reader._draws
    same._spatial.get_parameters(image=torch.empty((1, *cpu.read_size), device="meta"))
    sigmas = torch.tensor(same._smoothing.values)[None] * torch.tensor(PATCH)
    magnitudes = torch.tensor(same._displacement.values)[None]
    torch.manual_seed(seed)
    noise = torch.normal(0, 1, (3, *PATCH))[None]
    field = deformation_field(noise.to(device), sigmas.to(device), magnitudes.to(device))
    assert torch.allclose(field[0].cpu().movedim(0, -1), drawn["elastic_offsets"], atol=1e-4)

    draw = PatchDraw((4, 5, 6), drawn, {"axes": []})
    known = {"grid": drawn["grid"], "affine": drawn["affine"], "deformation": torch.stack([sigmas[0], magnitudes[0]])}
    reading = reader.read(volume(), None, replace(draw, spatial=known))
    assert reading.theta is not None
    grid = sampling_grid(reading.theta[None].to(device), PATCH, field)
    shown = apply_spatial(reading.voxels[None].float().to(device), grid)[0].cpu()
    assert torch.allclose(shown, cpu.apply(volume(), draw), atol=1e-3)


def test_deformations_have_the_distribution_of_the_cpu_path() -> None:
    """Largest displacement, size on average, and smoothness, over draws of both."""
    recipe = AugmentationRecipe(
        rotation_probability=0, scale_probability=0, elastic_probability=1, elastic_magnitude=(1.0, 3.0)
    )
    cpu, reader = SpatialAugmentation(recipe, PATCH), SpatialReading(recipe, PATCH)
    fields: dict[str, list[torch.Tensor]] = {"cpu": [], "device": []}
    for seed in range(80):
        fields["cpu"].append(cpu.sample(PATCH, np.random.default_rng(seed)).spatial["elastic_offsets"].movedim(-1, 0))
        sigmas, magnitudes = reader.sample(PATCH, np.random.default_rng(seed)).spatial["deformation"][:, None]
        noise = torch.randn(1, 3, *PATCH, generator=torch.Generator().manual_seed(seed))
        fields["device"].append(deformation_field(noise, sigmas, magnitudes)[0])
    largest = {path: torch.stack([f.abs().amax((1, 2, 3)) for f in each]) for path, each in fields.items()}
    assert torch.allclose(largest["cpu"], largest["device"], atol=1e-4), "the same magnitudes were drawn"
    for statistic in (torch.Tensor.square, lambda field: field.diff(dim=1).square()):
        one, other = (torch.stack([statistic(f).mean() for f in each]).mean() for each in fields.values())
        assert one.item() == pytest.approx(other.item(), rel=0.1)


def test_draws_are_those_of_the_cpu_path_and_of_what_follows_too() -> None:
    for seed in range(60):
        rngs = [np.random.default_rng(seed) for _ in range(2)]
        stock = SpatialAugmentation(DEFORMED, PATCH).sample((40, 44, 48), rngs[0])
        ours = SpatialReading(DEFORMED, PATCH).sample((40, 44, 48), rngs[1])
        assert ours.corner == stock.corner
        assert (ours.spatial["grid"] is None) == (stock.spatial["grid"] is None)
        assert np.array_equal(ours.spatial["affine"], stock.spatial["affine"])
        assert rngs[0].integers(2**62) == rngs[1].integers(2**62)
        if stock.spatial["elastic_offsets"] is None:
            assert ours.mirror == stock.mirror
            assert ours.spatial["deformation"] is None
        else:
            largest = stock.spatial["elastic_offsets"].abs().amax((0, 1, 2))
            assert torch.allclose(ours.spatial["deformation"][1], largest, atol=1e-4)


def test_each_axis_is_mirrored_in_half_of_the_deformed_patches() -> None:
    reader = SpatialReading(DEFORMED.model_copy(update={"elastic_probability": 1.0}), (4, 4, 4))
    axes = [reader.sample((9, 9, 9), np.random.default_rng(seed)).mirror["axes"] for seed in range(400)]
    for axis in range(3):
        assert np.mean([axis in each for each in axes]) == pytest.approx(0.5, abs=0.1)


def test_patches_of_few_thick_slices_are_deformed_within_slices() -> None:
    flat = AugmentationRecipe(
        rotation_probability=1, scale_probability=0, elastic_probability=1, elastic_magnitude=(1.0, 2.0), mirror=False
    )
    reader, patch = SpatialReading(flat, (4, 32, 32)), (4, 32, 32)
    slices = np.ones((1, 40, 80, 80), np.float16) * np.arange(40, dtype=np.float16)[None, :, None, None]
    draw = replace(reader.sample((40, 80, 80), np.random.default_rng(1)), corner=(10, 24, 24))
    shown = on_device(reader.read(slices, None, draw), "cpu", patch=patch)["data"][0, :, 12:20, 12:20]
    assert torch.allclose(shown, shown[:, :1, :1], atol=1e-2)


@pytest.mark.parametrize("seed", range(6))
def test_the_foreground_of_blocks_is_that_of_the_cpu_path(seed: int) -> None:
    shape = (50, 61, 44)
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    cells = decode_occupancy(encode_occupancy(sum(axis**2 for axis in axes) < 0.6), shape)
    patch = (32, 32, 32)
    cpu, reader = SpatialAugmentation(RIGID, patch), SpatialReading(RIGID, patch)
    shares = [
        each.block_foreground(cells, shape, (4, 4, 2), each.sample(shape, np.random.default_rng(seed)))
        for each in (cpu, reader)
    ]
    # A point on the border of two cells may fall into either.
    assert np.abs(shares[0] - shares[1]).mean() < 5e-3


def test_mirroring_turns_around_the_named_axes_only() -> None:
    patches = torch.arange(24.0).view(1, 1, 2, 3, 4)
    assert torch.equal(apply_mirror(patches, (0, 2)), patches.flip(2, 4))
    assert apply_mirror(patches, ()) is patches


def test_a_voxel_is_excluded_with_any_that_it_was_interpolated_from() -> None:
    mask = torch.zeros((1, 1, 4, 4, 4), dtype=torch.bool)
    mask[..., 1] = True
    identity = torch.eye(3, 4)[None]
    assert torch.equal(apply_spatial_to_mask(mask, sampling_grid(identity, (4, 4, 4))), mask)
    moved = identity.clone()
    moved[0, 2, 3] = 0.25  # half a voxel along x; the last one now lies half outside
    excluded = apply_spatial_to_mask(mask, sampling_grid(moved, (4, 4, 4)))[0, 0, 0, 0]
    assert excluded.tolist() == [True, True, False, True]


def test_a_stand_in_shows_nothing_and_counts_nowhere() -> None:
    made = on_device(SpatialReading(RIGID, PATCH).nothing(), "cpu")
    assert made["data"].shape == (1, *PATCH)
    assert not made["data"].any()
    assert made["excluded"].all()


def test_readings_are_small_when_sent() -> None:
    """But for voxels they hold numbers only: no grid, no field."""
    reader = SpatialReading(DEFORMED.model_copy(update={"elastic_probability": 1.0}), PATCH)
    reading = reader.read(volume(), None, reader.sample((40, 44, 48), np.random.default_rng(0)))
    assert len(pickle.dumps(replace(reading, voxels=torch.empty(0)))) < 3000


def test_stock_interpolates_linearly_as_the_device_does() -> None:
    """The interpolation that the device has to equal is the library's default; a change of it must not pass unseen."""
    stock: SpatialTransform = SpatialAugmentation(RIGID, PATCH)._spatial
    assert (stock.mode_image, stock.padding_mode_image, stock.align_corners) == ("bilinear", "zeros", False)
