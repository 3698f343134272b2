import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from nnssl_mae.errors import UserError
from nnssl_mae.patches.index import CaseIndex
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
from nnssl_mae.patches.on_device_batching import DeviceAugmentation
from nnssl_mae.recipes.intensity import AdditiveNoise, IntensityRecipe
from nnssl_mae.recipes.pretraining import AugmentationRecipe, MaskingRecipe, SamplingRecipe
from tests.patches.stored import data_folder, store

MASKING = MaskingRecipe(block_size=8, ratio=0.75)
SETTINGS = PatchSettings(patch_size=(32, 32, 32), grid=(4, 4, 4), masking=MASKING, respect_exclusion=True, seed=7)
STILL = AugmentationRecipe(rotation_probability=0, scale_probability=0, mirror=False)
NOISE = IntensityRecipe(additive_noise=AdditiveNoise(probability=1, sigma=(0.1, 0.2)))


@pytest.fixture
def cases(prepared: Path) -> CaseIndex:
    return CaseIndex(data_folder(prepared))


@pytest.fixture
def training(cases: CaseIndex) -> TrainingBatches:
    return TrainingBatches(cases, SETTINGS, AugmentationRecipe(), batch_size=2)


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., CaseIndex]:
    """Stores volumes (Z, Y, X), named 0, 1, ..., and exclusion masks of some of them."""

    def stored(*images: np.ndarray, **more: dict[int, np.ndarray]) -> CaseIndex:
        return store(tmp_path / "volumes", images, **more)

    return stored


FROZEN_CASES = [[10, 3, 4, 1, 7, 5], [6, 11, 10, 5, 2, 3]]
FROZEN_VISIBLE = [[2, 4, 10, 17], [3, 7, 8, 9], [4, 6, 10, 11], [0, 2, 9, 12], [3, 4, 6, 8], [1, 3, 5, 9]]


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
def test_batches_do_not_depend_on_workers_or_on_where_the_run_started(cases, workers: int) -> None:
    everything = AugmentationRecipe(elastic_probability=0.5, intensity=NOISE, reversal=True)
    random = settings(ratio=(0.6, 0.9), ratio_drawn_per="sample", region="foreground")
    training = TrainingBatches(cases, random, everything, 2)
    stream = training_stream(training, first_epoch=1, epochs=3, iterations=2, workers=workers)
    for step in [(1, 0), (1, 1), (2, 0), (2, 1)]:
        batch = next(stream)
        assert batch["step"] == step
        assert_same(batch, training[step])
    with pytest.raises(StopIteration):
        next(stream)
    stream.close()


def test_every_step_rank_and_sample_is_another_draw(training, cases) -> None:
    other_rank = TrainingBatches(cases, SETTINGS, AugmentationRecipe(), batch_size=2, rank=1)
    masks = [
        b["hidden"][i]
        for b in (training[(0, 0)], training[(0, 1)], training[(1, 0)], other_rank[(0, 0)])
        for i in (0, 1)
    ]
    assert len({mask.numpy().tobytes() for mask in masks}) == 8


def test_a_drawn_ratio_is_shared_by_a_step_over_all_processes_or_drawn_by_each_sample(cases) -> None:
    def hidden(drawn_per: str, rank: int, iteration: int) -> list[int]:
        chosen = settings(ratio=(0.3, 0.9), ratio_drawn_per=drawn_per)
        batches = TrainingBatches(cases, chosen, STILL, batch_size=3, rank=rank)
        return batches[(0, iteration)]["hidden"].sum(dim=(1, 2, 3, 4)).tolist()

    steps = [set(hidden("batch", 0, i) + hidden("batch", 1, i)) for i in range(8)]
    assert all(len(step) == 1 for step in steps)
    assert len(set().union(*steps)) > 4
    assert len(set(hidden("sample", 0, 0) + hidden("sample", 1, 0))) > 2


def test_a_process_without_validation_cases_gets_no_batches_and_does_not_hang(cases) -> None:
    nothing = ValidationBatches(cases.select([]), SETTINGS, batch_size=2)
    for workers in (0, 1):
        stream = validation_stream(nothing, workers=workers)
        with pytest.raises(StopIteration):
            next(stream)
        stream.close()


@pytest.mark.parametrize("region", ["uniform", "foreground"])
def test_validation_never_changes_and_a_case_does_not_depend_on_its_neighbours(cases, region) -> None:
    chosen = settings(ratio=(0.3, 0.9), region=region)
    batches = ValidationBatches(cases, chosen, 3)
    assert len(batches) == 3
    stream = validation_stream(batches, workers=1)
    first_round = [next(stream) for _ in range(3)]
    again = [next(stream) for _ in range(3)]
    stream.close()
    for one, two in zip(first_round, again, strict=True):
        assert_same(one, two)
        assert ("air" in one) == (region == "foreground")
    alone = ValidationBatches(cases.select([cases.name(4)]), chosen, 1)[0]
    assert torch.equal(alone["data"][0], first_round[1]["data"][1])
    assert torch.equal(alone["hidden"][0], first_round[1]["hidden"][1])
    assert len({b["hidden"][0].numpy().tobytes() for b in first_round}) == 3


def test_air_is_neither_hidden_nor_counted_in_the_ratio(cases) -> None:
    training = TrainingBatches(cases, settings(region="foreground"), AugmentationRecipe(), 4)
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


def test_a_patch_with_little_foreground_is_drawn_again_ten_times_then_all_blocks_are_alike(stored) -> None:
    head = np.zeros((96, 96, 96), dtype=bool)
    head[:24, :24, :24] = True
    cases = stored(head.astype(float), heads={0: head})
    chosen = settings(region="foreground")

    def eligible(batches: TrainingBatches, step: int) -> list[int]:
        return (~batches[(0, step)]["air"]).sum(dim=(1, 2, 3, 4)).tolist()

    training = TrainingBatches(cases, chosen, STILL, 10)
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
    cases = stored(np.ones((40, 40, 20)), np.ones((40, 40, 40)))
    training = TrainingBatches(cases, settings(respect_exclusion=False), STILL, batch_size=4)
    seen = set()
    for iteration in range(8):
        batch = training[(0, iteration)]
        padding = batch["data"] == 0
        seen.add(padding.any().item())
        assert torch.equal(batch.get("excluded", torch.zeros_like(padding)), padding)
    inside = TrainingBatches(stored(*[np.ones((40, 40, 40))] * 2), SETTINGS, STILL, batch_size=4)
    assert seen == {True}
    assert "excluded" not in inside[(0, 0)]
    validation = ValidationBatches(stored(np.ones((40, 40, 20))), SETTINGS, 1)[0]
    assert torch.equal(validation["excluded"], validation["data"] == 0)


def test_exclusion_masks_are_respected_unless_the_recipe_says_otherwise(stored) -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((48, 48, 48)) < 0.3
    image = np.where(mask, -1.0, 1.0)
    cases = stored(image, np.ones((48, 48, 48)), masks={0: mask})
    assert cases.texts("case") == ["0", "1"]
    augmentation = AugmentationRecipe(rotation_probability=0, scale_probability=0)  # mirrored
    respecting = TrainingBatches(cases, SETTINGS, augmentation, batch_size=6)[(0, 0)]
    assert respecting["excluded"].shape == (6, 1, 32, 32, 32)
    assert torch.equal(respecting["excluded"], respecting["data"] == -1)
    ignoring = TrainingBatches(cases, settings(respect_exclusion=False), augmentation, batch_size=6)[(0, 0)]
    assert "excluded" not in ignoring
    assert torch.equal(ignoring["data"], respecting["data"])
    validation = ValidationBatches(cases, SETTINGS, 2)[0]
    assert torch.equal(validation["excluded"], validation["data"] == -1)


def test_reversal_keeps_the_clean_patch_as_target_and_intensities_move_nothing(cases) -> None:
    spatial = AugmentationRecipe(rotation_probability=0.5)
    changed = spatial.model_copy(update={"intensity": NOISE})
    reversed_ = changed.model_copy(update={"reversal": True})
    plain, noisy, with_target = (
        TrainingBatches(cases, SETTINGS, recipe, batch_size=4)[(0, 0)] for recipe in (spatial, changed, reversed_)
    )
    assert "target" not in plain
    assert "target" not in noisy
    assert torch.equal(with_target["target"], plain["data"])
    assert torch.equal(with_target["data"], noisy["data"])
    assert not torch.equal(noisy["data"], plain["data"])
    assert torch.equal(with_target["hidden"], plain["hidden"])
    assert "target" not in ValidationBatches(cases, SETTINGS, 2)[0]


def taken(batches: TrainingBatches, epoch: int, iteration: int) -> list[int]:
    """Which volume each patch of a step is from; the volumes hold their own number."""
    return batches[(epoch, iteration)]["data"].amax(dim=(1, 2, 3, 4)).int().tolist()


def test_an_epoch_of_one_pass_takes_every_volume_once_in_an_order_of_its_own(stored) -> None:
    cases = stored(*(np.full((32, 32, 32), index + 1) for index in range(8)))
    assert epoch_iterations(8, 3) == 3
    alone = TrainingBatches(cases, SETTINGS, STILL, 3, one_pass=OnePass(global_batch=3))
    epochs = [[number for i in range(3) for number in taken(alone, epoch, i)] for epoch in range(4)]
    for epoch in epochs:
        assert sorted(epoch[:8]) == list(range(1, 9))
        assert epoch[8] == epoch[0]  # the last batch starts over
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert taken(alone, 3, 1) == epochs[3][3:6]


def test_processes_share_a_pass(stored) -> None:
    cases = stored(*(np.full((32, 32, 32), index + 1) for index in range(8)))
    alone = TrainingBatches(cases, SETTINGS, STILL, 3, one_pass=OnePass(global_batch=3))
    first = TrainingBatches(cases, SETTINGS, STILL, 2, rank=0, one_pass=OnePass(3, offset=0))
    second = TrainingBatches(cases, SETTINGS, STILL, 1, rank=1, one_pass=OnePass(3, offset=2))
    for iteration in range(3):
        assert taken(first, 5, iteration) + taken(second, 5, iteration) == taken(alone, 5, iteration)


@pytest.mark.parametrize(("cases", "batch", "steps"), [(8, 8, 1), (9, 8, 2), (1, 8, 1), (39168, 8, 4896)])
def test_steps_of_a_pass(cases: int, batch: int, steps: int) -> None:
    assert epoch_iterations(cases, batch) == steps


def test_the_draws_of_runs_of_earlier_versions_stay_as_they_were(stored) -> None:
    cases = stored(*(np.full((40, 40, 40), index + 1) for index in range(11)))
    training = TrainingBatches(cases, SETTINGS, STILL, 6)
    # Written down with version 0.1.0; a run must go on after an update as it would have without.
    assert [taken(training, 0, 0), taken(training, 3, 17)] == FROZEN_CASES
    hidden = training[(3, 17)]["hidden"].flatten(1)
    assert [row.nonzero().ravel().tolist()[:4] for row in ~hidden] == FROZEN_VISIBLE


def test_workers_that_are_spawned_give_the_same_batches_from_little_that_is_sent(stored) -> None:
    cases = stored(*(np.full((32, 32, 32), index + 1) for index in range(8)))
    training = TrainingBatches(cases, SETTINGS, STILL, 2, sampling=SamplingRecipe(by="subject"))
    assert len(pickle.dumps(training)) < 16_384  # more would not fit into a pipe
    earlier = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        stream = training_stream(training, first_epoch=0, epochs=1, iterations=2, workers=1)
        spawned = [next(stream) for _ in range(2)]
        stream.close()
    finally:
        multiprocessing.set_start_method(earlier, force=True)
    for iteration, batch in enumerate(spawned):
        assert_same(batch, training[(0, iteration)])


def test_a_worker_that_is_killed_ends_the_run_with_a_sentence(stored) -> None:
    class Deadly(TrainingBatches):
        def __getitem__(self, step: tuple[int, int]) -> Batch:
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

    deadly = Deadly(stored(np.ones((32, 32, 32))), SETTINGS, STILL, 1)
    stream = training_stream(deadly, first_epoch=0, epochs=1, iterations=1, workers=1)
    with pytest.raises(UserError, match=r"process that loads batches died .*nnUNet_n_proc_DA"):
        next(stream)


def made_on_device(batch: Batch, augmentation: AugmentationRecipe) -> Batch:
    return DeviceAugmentation(augmentation, SETTINGS.patch_size)(batch)


@pytest.mark.parametrize("region", ["uniform", "foreground"])
def test_batches_made_on_the_device_are_those_of_the_cpu(cases, region: str) -> None:
    shading = IntensityRecipe.model_validate({"bias_field": {"probability": 0.5}, "blur": {"probability": 0.5}})
    augmentation = AugmentationRecipe(rotation_probability=0.5, scale_probability=0.5, intensity=shading, reversal=True)
    random = settings(ratio=(0.6, 0.9), ratio_drawn_per="sample", region=region)
    cpu = TrainingBatches(cases, random, augmentation, 3)
    packed = TrainingBatches(cases, random, augmentation, 3, on_device=True)
    for step in product(range(2), range(3)):
        expected, made = cpu[step], made_on_device(packed[step], augmentation)
        assert made.keys() - {"excluded"} == expected.keys() - {"excluded"}
        assert made["step"] == expected["step"]
        for key in ("data", "target"):
            assert torch.allclose(made[key], expected[key], atol=1e-3)
        assert all(torch.equal(made[key], expected[key]) for key in ("hidden", "air") if key in expected)
        nothing = torch.zeros_like(made["data"], dtype=torch.bool)
        pair = [each.get("excluded", nothing) for each in (made, expected)]
        assert (pair[0] != pair[1]).float().mean() < 1e-3


@pytest.mark.parametrize("workers", [0, 2])
def test_packed_batches_do_not_depend_on_workers_or_on_where_the_run_started(cases, workers: int) -> None:
    everything = AugmentationRecipe(elastic_probability=0.5, intensity=NOISE, reversal=True)
    packed = TrainingBatches(cases, SETTINGS, everything, 2, on_device=True)
    stream = training_stream(packed, first_epoch=1, epochs=2, iterations=2, workers=workers)
    for step in [(1, 0), (1, 1)]:
        assert_same(made_on_device(next(stream), everything), made_on_device(packed[step], everything))
    stream.close()


def test_a_case_that_cannot_be_read_is_replaced_in_a_packed_batch_too(stored) -> None:
    index = stored(np.ones((40, 40, 40)))
    (index.folder / "0.b2nd").write_bytes(b"")
    batch = TrainingBatches(index, SETTINGS, AugmentationRecipe(), 2, on_device=True)[(0, 0)]
    assert {name for name, _ in batch["replaced"]} == {"0"}
    made = made_on_device(batch, AugmentationRecipe())
    assert made["excluded"].all()
    assert not made["data"].any()
