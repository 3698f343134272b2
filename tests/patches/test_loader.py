from pathlib import Path

import pytest
import torch

from nnssl_mae.patches.augmentation import SpatialAugmentation
from nnssl_mae.patches.dataset import VolumeDataset
from nnssl_mae.patches.loader import (
    PatchSettings,
    TrainingBatches,
    ValidationBatches,
    training_stream,
    validation_stream,
)
from nnssl_mae.recipes.pretraining import AugmentationRecipe

SETTINGS = PatchSettings(patch_size=(32, 32, 32), grid=(4, 4, 4), ratio=0.75, seed=7)


@pytest.fixture
def volumes(prepared: Path) -> VolumeDataset:
    return VolumeDataset(str(next(path for path in prepared.iterdir() if path.is_dir())))


@pytest.fixture
def training(volumes: VolumeDataset) -> TrainingBatches:
    return TrainingBatches(volumes, SETTINGS, SpatialAugmentation(AugmentationRecipe(), (32, 32, 32)), batch_size=2)


def test_batches_have_the_promised_shapes(training: TrainingBatches) -> None:
    batch = training[(0, 0)]
    assert batch["data"].shape == (2, 1, 32, 32, 32)
    assert batch["data"].dtype == torch.float32
    assert batch["hidden"].shape == (2, 1, 4, 4, 4)
    assert (batch["hidden"].sum(dim=(1, 2, 3, 4)) == 48).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_workers_or_on_where_the_run_started(training, workers: int) -> None:
    stream = training_stream(training, first_epoch=1, epochs=3, iterations=2, workers=workers)
    for step in [(1, 0), (1, 1), (2, 0), (2, 1)]:
        batch, expected = next(stream), training[step]
        assert batch["step"] == step
        assert torch.equal(batch["data"], expected["data"])
        assert torch.equal(batch["hidden"], expected["hidden"])
    with pytest.raises(StopIteration):
        next(stream)
    stream.close()


def test_every_step_rank_and_sample_is_another_draw(training, volumes) -> None:
    other_rank = TrainingBatches(volumes, SETTINGS, training.augmentation, batch_size=2, rank=1)
    masks = [
        b["hidden"][i]
        for b in (training[(0, 0)], training[(0, 1)], training[(1, 0)], other_rank[(0, 0)])
        for i in (0, 1)
    ]
    assert len({mask.numpy().tobytes() for mask in masks}) == 8


def test_a_process_without_validation_cases_gets_no_batches_and_does_not_hang(volumes) -> None:
    nothing = ValidationBatches(volumes, SETTINGS, {}, [], batch_size=2)
    for workers in (0, 1):
        stream = validation_stream(nothing, workers=workers)
        with pytest.raises(StopIteration):
            next(stream)
        stream.close()


def test_validation_never_changes_and_a_case_does_not_depend_on_its_neighbours(volumes) -> None:
    cases = volumes.identifiers
    ranges = dict.fromkeys(cases, 4.0)
    batches = ValidationBatches(volumes, SETTINGS, ranges, cases, batch_size=3)
    assert len(batches) == 3
    stream = validation_stream(batches, workers=1)
    first_round = [next(stream) for _ in range(3)]
    again = [next(stream) for _ in range(3)]
    stream.close()
    for one, two in zip(first_round, again, strict=True):
        assert one["cases"] == two["cases"]
        assert torch.equal(one["data"], two["data"])
        assert torch.equal(one["hidden"], two["hidden"])
    alone = ValidationBatches(volumes, SETTINGS, ranges, [cases[4]], batch_size=1)[0]
    assert torch.equal(alone["data"][0], first_round[1]["data"][1])
    assert torch.equal(alone["hidden"][0], first_round[1]["hidden"][1])
    assert len({b["hidden"][0].numpy().tobytes() for b in first_round}) == 3
