from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nnssl_mae.patches.dataset import VolumeDataset
from nnssl_mae.patches.loader import (
    Batch,
    OnePass,
    PatchSettings,
    TrainingBatches,
    ValidationBatches,
    epoch_iterations,
    training_stream,
    validation_stream,
)
from nnssl_mae.recipes.intensity import AdditiveNoise, IntensityRecipe
from nnssl_mae.recipes.pretraining import AugmentationRecipe, MaskingRecipe
from nnssl_mae.scans.cases import read_foreground
from nnssl_mae.scans.foreground import encode_occupancy
from nnssl_mae.scans.storage import exclusion_path, write_exclusion, write_volume

MASKING = MaskingRecipe(block_size=8, ratio=0.75)
SETTINGS = PatchSettings(patch_size=(32, 32, 32), grid=(4, 4, 4), masking=MASKING, respect_exclusion=True, seed=7)
STILL = AugmentationRecipe(rotation_probability=0, scale_probability=0, mirror=False)
NOISE = IntensityRecipe(additive_noise=AdditiveNoise(probability=1, sigma=(0.1, 0.2)))


@pytest.fixture
def volumes(prepared: Path) -> VolumeDataset:
    return VolumeDataset(str(data_folder(prepared)))


@pytest.fixture
def foreground(prepared: Path, volumes: VolumeDataset) -> dict[str, bytes]:
    return read_foreground(data_folder(prepared), volumes.identifiers)


@pytest.fixture
def training(volumes: VolumeDataset) -> TrainingBatches:
    return TrainingBatches(volumes, SETTINGS, AugmentationRecipe(), batch_size=2)


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., VolumeDataset]:
    """Stores volumes (Z, Y, X), named 0, 1, ..., and exclusion masks of some of them."""

    def store(*images: np.ndarray, masks: dict[int, np.ndarray] | None = None) -> VolumeDataset:
        for index, image in enumerate(images):
            write_volume(tmp_path / f"{index}.b2nd", image[None].astype(np.float32), (32, 32, 32))
        for index, mask in (masks or {}).items():
            write_exclusion(exclusion_path(tmp_path, str(index)), mask[None], (32, 32, 32))
        return VolumeDataset(str(tmp_path))

    return store


def data_folder(prepared: Path) -> Path:
    return next(path for path in prepared.iterdir() if path.is_dir())


def settings(respect_exclusion: bool = True, **masking: object) -> PatchSettings:
    return replace(SETTINGS, masking=MASKING.model_copy(update=masking), respect_exclusion=respect_exclusion)


def assert_same(one: Batch, other: Batch) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key


def test_batches_have_the_promised_shapes(training: TrainingBatches) -> None:
    batch = training[(0, 0)]
    assert batch["data"].shape == (2, 1, 32, 32, 32)
    assert batch["data"].dtype == torch.float32
    assert batch["hidden"].shape == (2, 1, 4, 4, 4)
    assert (batch["hidden"].sum(dim=(1, 2, 3, 4)) == 48).all()
    assert not {"target", "air"} & batch.keys()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_workers_or_on_where_the_run_started(volumes, foreground, workers: int) -> None:
    everything = AugmentationRecipe(elastic_probability=0.5, intensity=NOISE, reversal=True)
    random = settings(ratio=(0.6, 0.9), ratio_drawn_per="sample", region="foreground")
    training = TrainingBatches(volumes, random, everything, 2, foreground=foreground)
    stream = training_stream(training, first_epoch=1, epochs=3, iterations=2, workers=workers)
    for step in [(1, 0), (1, 1), (2, 0), (2, 1)]:
        batch = next(stream)
        assert batch["step"] == step
        assert_same(batch, training[step])
    with pytest.raises(StopIteration):
        next(stream)
    stream.close()


def test_every_step_rank_and_sample_is_another_draw(training, volumes) -> None:
    other_rank = TrainingBatches(volumes, SETTINGS, AugmentationRecipe(), batch_size=2, rank=1)
    masks = [
        b["hidden"][i]
        for b in (training[(0, 0)], training[(0, 1)], training[(1, 0)], other_rank[(0, 0)])
        for i in (0, 1)
    ]
    assert len({mask.numpy().tobytes() for mask in masks}) == 8


def test_a_drawn_ratio_is_shared_by_a_step_over_all_processes_or_drawn_by_each_sample(volumes) -> None:
    def hidden(drawn_per: str, rank: int, iteration: int) -> list[int]:
        chosen = settings(ratio=(0.3, 0.9), ratio_drawn_per=drawn_per)
        batches = TrainingBatches(volumes, chosen, STILL, batch_size=3, rank=rank)
        return batches[(0, iteration)]["hidden"].sum(dim=(1, 2, 3, 4)).tolist()

    steps = [set(hidden("batch", 0, i) + hidden("batch", 1, i)) for i in range(8)]
    assert all(len(step) == 1 for step in steps)
    assert len(set().union(*steps)) > 4
    assert len(set(hidden("sample", 0, 0) + hidden("sample", 1, 0))) > 2


def test_a_process_without_validation_cases_gets_no_batches_and_does_not_hang(volumes) -> None:
    nothing = ValidationBatches(volumes, SETTINGS, {}, [], batch_size=2)
    for workers in (0, 1):
        stream = validation_stream(nothing, workers=workers)
        with pytest.raises(StopIteration):
            next(stream)
        stream.close()


@pytest.mark.parametrize("region", ["uniform", "foreground"])
def test_validation_never_changes_and_a_case_does_not_depend_on_its_neighbours(volumes, foreground, region) -> None:
    cases = volumes.identifiers
    ranges = dict.fromkeys(cases, 4.0)
    chosen = settings(ratio=(0.3, 0.9), region=region)
    batches = ValidationBatches(volumes, chosen, ranges, cases, 3, foreground)
    assert len(batches) == 3
    stream = validation_stream(batches, workers=1)
    first_round = [next(stream) for _ in range(3)]
    again = [next(stream) for _ in range(3)]
    stream.close()
    for one, two in zip(first_round, again, strict=True):
        assert_same(one, two)
        assert ("air" in one) == (region == "foreground")
    alone = ValidationBatches(volumes, chosen, ranges, [cases[4]], 1, foreground)[0]
    assert torch.equal(alone["data"][0], first_round[1]["data"][1])
    assert torch.equal(alone["hidden"][0], first_round[1]["hidden"][1])
    assert len({b["hidden"][0].numpy().tobytes() for b in first_round}) == 3


def test_air_is_neither_hidden_nor_counted_in_the_ratio(volumes, foreground) -> None:
    training = TrainingBatches(volumes, settings(region="foreground"), AugmentationRecipe(), 4, foreground=foreground)
    shares = []
    for iteration in range(12):
        batch = training[(0, iteration)]
        assert not (batch["hidden"] & batch["air"]).any()
        eligible = (~batch["air"]).sum(dim=(1, 2, 3, 4))
        assert torch.equal(batch["hidden"].sum(dim=(1, 2, 3, 4)), (0.75 * eligible + 1e-6).long())
        air = batch["air"].repeat_interleave(8, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)
        shares.append((batch["data"] > 0)[air].float().mean().item())
    # The scans are stripped: tissue is above the mean, and there is next to none of it in air.
    assert np.nanmean(shares) < 0.05
    with pytest.raises(ValueError, match="pass foreground"):
        TrainingBatches(volumes, settings(region="foreground"), AugmentationRecipe(), 4)


def test_a_patch_with_little_foreground_is_drawn_again_ten_times_then_all_blocks_are_alike(stored) -> None:
    head = np.zeros((96, 96, 96), dtype=bool)
    head[:24, :24, :24] = True
    volumes, content = stored(head.astype(float)), {"0": encode_occupancy(head)}
    chosen = settings(region="foreground")

    def eligible(batches: TrainingBatches, step: int) -> list[int]:
        return (~batches[(0, step)]["air"]).sum(dim=(1, 2, 3, 4)).tolist()

    training = TrainingBatches(volumes, chosen, STILL, 10, foreground=content)
    counts = np.array([eligible(training, step) for step in range(40)]).ravel()
    fallen_back = counts == 64
    assert counts[~fallen_back].min() >= 8
    # One draw holds enough of the head if its corner lies low enough on each axis; eleven may be made.
    corners = np.stack(np.meshgrid(*[np.arange(65)] * 3, indexing="ij"), axis=-1)
    blocks = np.clip(-(-(24 - corners) // 8), 0, 3)  # reached by the head along each axis, at most
    once = (blocks.prod(axis=-1) >= 8).mean()
    assert 1 - fallen_back.mean() == pytest.approx(1 - (1 - once) ** 11, abs=0.1)
    batch = training[(0, 0)]
    assert (batch["hidden"].sum(dim=(1, 2, 3, 4))[torch.tensor(fallen_back[:10])] == 48).all()


def test_padding_is_always_excluded_and_the_key_is_absent_without_any(stored) -> None:
    volumes = stored(np.ones((40, 40, 20)), np.ones((40, 40, 40)))
    training = TrainingBatches(volumes, settings(respect_exclusion=False), STILL, batch_size=4)
    seen = set()
    for iteration in range(8):
        batch = training[(0, iteration)]
        padding = batch["data"] == 0
        seen.add(padding.any().item())
        assert torch.equal(batch.get("excluded", torch.zeros_like(padding)), padding)
    inside = TrainingBatches(stored(*[np.ones((40, 40, 40))] * 2), SETTINGS, STILL, batch_size=4)
    assert seen == {True}
    assert "excluded" not in inside[(0, 0)]
    validation = ValidationBatches(stored(np.ones((40, 40, 20))), SETTINGS, {"0": 1.0}, ["0"], 1)[0]
    assert torch.equal(validation["excluded"], validation["data"] == 0)


def test_exclusion_masks_are_respected_unless_the_recipe_says_otherwise(stored) -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((48, 48, 48)) < 0.3
    image = np.where(mask, -1.0, 1.0)
    volumes = stored(image, np.ones((48, 48, 48)), masks={0: mask})
    assert volumes.identifiers == ["0", "1"]
    augmentation = AugmentationRecipe(rotation_probability=0, scale_probability=0)  # mirrored
    respecting = TrainingBatches(volumes, SETTINGS, augmentation, batch_size=6)[(0, 0)]
    assert respecting["excluded"].shape == (6, 1, 32, 32, 32)
    assert torch.equal(respecting["excluded"], respecting["data"] == -1)
    ignoring = TrainingBatches(volumes, settings(respect_exclusion=False), augmentation, batch_size=6)[(0, 0)]
    assert "excluded" not in ignoring
    assert torch.equal(ignoring["data"], respecting["data"])
    validation = ValidationBatches(volumes, SETTINGS, {"0": 1.0, "1": 1.0}, ["0", "1"], 2)[0]
    assert torch.equal(validation["excluded"], validation["data"] == -1)


def test_reversal_keeps_the_clean_patch_as_target_and_intensities_move_nothing(volumes) -> None:
    spatial = AugmentationRecipe(rotation_probability=0.5)
    changed = spatial.model_copy(update={"intensity": NOISE})
    reversed_ = changed.model_copy(update={"reversal": True})
    plain, noisy, with_target = (
        TrainingBatches(volumes, SETTINGS, recipe, batch_size=4)[(0, 0)] for recipe in (spatial, changed, reversed_)
    )
    assert "target" not in plain
    assert "target" not in noisy
    assert torch.equal(with_target["target"], plain["data"])
    assert torch.equal(with_target["data"], noisy["data"])
    assert not torch.equal(noisy["data"], plain["data"])
    assert torch.equal(with_target["hidden"], plain["hidden"])
    validation = ValidationBatches(volumes, SETTINGS, dict.fromkeys(volumes.identifiers, 1.0), volumes.identifiers, 2)
    assert "target" not in validation[0]


def taken(batches: TrainingBatches, epoch: int, iteration: int) -> list[int]:
    """Which volume each patch of a step is from; the volumes hold their own number."""
    return batches[(epoch, iteration)]["data"].amax(dim=(1, 2, 3, 4)).int().tolist()


def test_an_epoch_of_one_pass_takes_every_volume_once_in_an_order_of_its_own(stored) -> None:
    volumes = stored(*(np.full((32, 32, 32), index + 1) for index in range(8)))
    assert epoch_iterations(8, 3) == 3
    alone = TrainingBatches(volumes, SETTINGS, STILL, 3, one_pass=OnePass(global_batch=3))
    epochs = [[number for i in range(3) for number in taken(alone, epoch, i)] for epoch in range(4)]
    for epoch in epochs:
        assert sorted(epoch[:8]) == list(range(1, 9))
        assert epoch[8] == epoch[0]  # the last batch starts over
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert taken(alone, 3, 1) == epochs[3][3:6]


def test_processes_share_a_pass(stored) -> None:
    volumes = stored(*(np.full((32, 32, 32), index + 1) for index in range(8)))
    alone = TrainingBatches(volumes, SETTINGS, STILL, 3, one_pass=OnePass(global_batch=3))
    first = TrainingBatches(volumes, SETTINGS, STILL, 2, rank=0, one_pass=OnePass(3, offset=0))
    second = TrainingBatches(volumes, SETTINGS, STILL, 1, rank=1, one_pass=OnePass(3, offset=2))
    for iteration in range(3):
        assert taken(first, 5, iteration) + taken(second, 5, iteration) == taken(alone, 5, iteration)


@pytest.mark.parametrize(("volumes", "batch", "steps"), [(8, 8, 1), (9, 8, 2), (1, 8, 1), (39168, 8, 4896)])
def test_steps_of_a_pass(volumes: int, batch: int, steps: int) -> None:
    assert epoch_iterations(volumes, batch) == steps
