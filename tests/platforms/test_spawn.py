"""macOS and Windows have no fork (or no safe one): what goes to other processes must be picklable, all of it.

Forced here by the start method ``spawn`` on Linux.
"""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnssl_mae import parallel
from nnssl_mae.parallel import in_processes, possible_workers
from nnssl_mae.patches.index import CaseIndex
from nnssl_mae.patches.loader import (
    Batch,
    OnePass,
    PatchSettings,
    TrainingBatches,
    ValidationBatches,
    validation_stream,
)
from nnssl_mae.recipes.intensity import AdditiveNoise, IntensityRecipe
from nnssl_mae.recipes.pretraining import AugmentationRecipe, MaskingRecipe, SamplingRecipe
from nnssl_mae.training.finetune_trainer import without_intensity
from tests.patches.stored import PATCH, store
from tests.platforms.windows_rules import die_at_one, without

SETTINGS = PatchSettings(PATCH, (4, 4, 4), MaskingRecipe(block_size=8), respect_exclusion=True, seed=1)
FOREGROUND = replace(SETTINGS, masking=MaskingRecipe(block_size=8, region="foreground"))
NOISE = IntensityRecipe(additive_noise=AdditiveNoise(probability=1, sigma=(0.1, 0.2)))


@pytest.fixture
def cases(tmp_path: Path) -> CaseIndex:
    """Three volumes of noise, one with an exclusion mask."""
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(40, 36, 34)) for _ in range(3)]
    inside = np.ones((40, 36, 34), dtype=bool)
    return store(tmp_path / "data", images, {1: inside & (images[1] > 2)}, dict.fromkeys(range(3), inside))


@pytest.fixture
def spawning() -> Iterator[None]:
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def assert_same(one: Batch, other: Batch) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        (SETTINGS, {}),
        (FOREGROUND, {"sampling": SamplingRecipe(by="subject")}),
        (SETTINGS, {"one_pass": OnePass(4, 2), "rank": 1}),
        (FOREGROUND, {"on_device": True}),
    ],
)
def test_training_batches_are_the_same_on_the_other_side_of_a_pipe(cases: CaseIndex, settings, more) -> None:
    batches = TrainingBatches(cases, settings, AugmentationRecipe(intensity=NOISE), 2, **more)
    sent = pickle.loads(pickle.dumps(batches))
    one, other = batches[(1, 0)], sent[(1, 0)]
    if "plan" in one:
        one, other = ({key: batch[key] for key in ("voxels", "hidden", "step")} for batch in (one, other))
    assert_same(one, other)


@pytest.mark.parametrize("settings", [SETTINGS, FOREGROUND])
def test_validation_batches_are_the_same_on_the_other_side_of_a_pipe(cases: CaseIndex, settings) -> None:
    batches = ValidationBatches(cases, settings, 2)
    assert_same(batches[1], pickle.loads(pickle.dumps(batches))[1])


def test_the_validation_loader_starts_its_process_without_a_fork(cases: CaseIndex, spawning: None) -> None:
    """That of training is looked at in ``tests/patches/test_loader.py``."""
    batches = ValidationBatches(cases, SETTINGS, 2)
    stream = validation_stream(batches, workers=1)
    assert_same(next(stream), batches[0])
    stream.close()


def test_the_augmentation_of_a_fine_tuning_can_be_sent_to_processes() -> None:
    """nnU-Net sends the transforms of our trainer to its own processes."""
    stock = nnUNetTrainer.get_training_transforms((32, 32, 32), (-0.5, 0.5), None, (0, 1, 2), False)
    ours = without_intensity(stock)
    sent = pickle.loads(pickle.dumps(ours))
    assert isinstance(sent, ComposeTransforms)
    assert [type(one) for one in sent.transforms] == [type(one) for one in ours.transforms]


# ---------------------------------------------------------------------- workers of preparation and scanning


@pytest.fixture
def on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes signals away that Windows does not have, where processes are started and judged."""
    missing = ("SIGKILL", "SIGUSR1", "SIGHUP", "pthread_sigmask", "SIG_BLOCK", "SIG_SETMASK")
    monkeypatch.setattr(parallel, "signal", without(parallel.signal, *missing))
    monkeypatch.setattr(parallel, "sys", SimpleNamespace(platform="win32"))


def test_a_process_that_dies_costs_its_item_only_where_there_are_no_signals(on_windows: None) -> None:
    outcomes = {outcome.item: outcome for outcome in in_processes(die_at_one, range(3), workers=1)}
    assert [outcomes[number].result for number in (0, 2)] == [0, 2]
    assert outcomes[1].failure is not None
    assert "exit code 7" in outcomes[1].failure.summary


def test_no_pool_has_more_processes_than_windows_can_wait_for(on_windows: None) -> None:
    """Python refuses to wait for more than 63 there, and pools of more than 61."""
    assert possible_workers(200) <= 61
    assert possible_workers(4) == 4


def test_elsewhere_the_number_of_processes_is_the_users() -> None:
    assert possible_workers(200) == 200
