from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from nnssl_mae.patches import on_device_batching
from nnssl_mae.patches.on_device_batching import DeviceAugmentation, Sample, pack
from nnssl_mae.patches.on_device_intensity import IntensityDraws
from nnssl_mae.patches.on_device_spatial import Reading, SpatialReading
from nnssl_mae.recipes.intensity import IntensityRecipe
from nnssl_mae.recipes.pretraining import AugmentationRecipe

PATCH = (16, 16, 16)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
PARTS = ("additive_noise", "blur", "multiplicative_noise", "ghosting", "gibbs_ringing", "low_resolution", "bias_field")
EVERYTHING = AugmentationRecipe(
    rotation_probability=0.5,
    scale_probability=0.3,
    elastic_probability=0.4,
    intensity=IntensityRecipe.model_validate(
        {
            **{part: {"probability": 0.4} for part in PARTS},
            "gamma": {"probability": 0.4, "inverted_probability": 0.4},
        }
    ),
    reversal=True,
)


def volume(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, 24, 26, 28)).astype(np.float16)


def sample(seed: int, recipe: AugmentationRecipe = EVERYTHING) -> Sample:
    """What a worker makes of one volume."""
    rng, reader = np.random.default_rng(seed), SpatialReading(recipe, PATCH)
    mask = np.zeros((1, 24, 26, 28), np.uint8)
    mask[0, :, :6] = seed % 2
    reading = reader.read(volume(seed), mask, reader.sample((24, 26, 28), rng))
    return Sample(reading, IntensityDraws(recipe.intensity, PATCH).sample(1, rng), int(rng.integers(2**63)))


def sent(batch: dict[str, Any], device: str) -> dict[str, Any]:
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


def augmented(samples: list[Sample], device: str = "cpu", recipe: AugmentationRecipe = EVERYTHING) -> dict[str, Any]:
    made = DeviceAugmentation(recipe, PATCH)(sent(pack(samples), device))
    return {key: value.cpu() if isinstance(value, torch.Tensor) else value for key, value in made.items()}


@pytest.mark.parametrize("device", DEVICES)
def test_a_patch_does_not_depend_on_its_neighbours_in_the_batch(device: str) -> None:
    samples = [sample(seed) for seed in range(6)]
    together = augmented(samples, device)
    for place, each in enumerate(samples):
        alone = augmented([each], device)
        for key in ("data", "target"):
            assert torch.allclose(alone[key][0], together[key][place], atol=1e-5)
        nothing = torch.zeros((1, *PATCH), dtype=torch.bool)
        assert torch.equal(alone["excluded"][0] if "excluded" in alone else nothing, together["excluded"][place])


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_batch_gives_the_same_tensors_whatever_was_drawn_before(device: str) -> None:
    samples = [sample(seed) for seed in range(4)]
    first = augmented(samples, device)
    torch.randn(5)
    state = torch.get_rng_state()
    second = augmented(samples, device)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], second[key]) for key in ("data", "target", "excluded"))
    other = augmented([replace(each, seed=each.seed ^ 1) for each in samples], device)
    assert not torch.equal(first["data"], other["data"])


def test_the_target_follows_the_geometry_and_not_the_intensities() -> None:
    samples = [sample(seed) for seed in range(8)]
    still = [replace(each, changes=()) for each in samples]
    made, plain = augmented(samples), augmented(still)
    assert torch.equal(made["target"], plain["data"])
    assert torch.equal(plain["target"], plain["data"])
    changed = torch.tensor([bool(each.changes) for each in samples])
    assert torch.equal((made["data"] != made["target"]).flatten(1).any(1), changed)
    assert made["data"].data_ptr() != made["target"].data_ptr()


def test_without_reversal_there_is_no_target() -> None:
    recipe = EVERYTHING.model_copy(update={"reversal": False})
    assert "target" not in augmented([sample(0, recipe)], recipe=recipe)


def test_patches_that_draw_nothing_are_not_worked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """No interpolation, no noise, no change: bit for bit what was stored."""
    voxels = torch.from_numpy(volume()[:, :16, :16, :16].copy())
    still = Sample(Reading(voxels), (), 0)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("this work is for patches that drew it")

    for name in ("apply_spatial", "apply_spatial_to_mask", "deformation_field", "sampling_grid", "pad"):
        monkeypatch.setattr(on_device_batching, name, never)
    monkeypatch.setattr(torch, "randn", never)
    made = augmented([still, still])
    assert torch.equal(made["data"][1], voxels.float())
    assert "excluded" not in made


def test_images_that_draw_no_change_keep_their_bits_beside_others_that_do() -> None:
    strong = IntensityRecipe.model_validate({"additive_noise": {"probability": 1, "sigma": (1, 1)}})
    recipe = AugmentationRecipe(rotation_probability=0, scale_probability=0, mirror=False, intensity=strong)
    samples = [sample(0, recipe), replace(sample(1, recipe), changes=()), sample(2, recipe)]
    made = augmented(samples, recipe=recipe)["data"]
    assert torch.equal(made[1], samples[1].reading.voxels.float())
    assert (made[0] - samples[0].reading.voxels.float()).std() > 0.5


def test_clipping_keeps_the_range_of_the_patch() -> None:
    strong = IntensityRecipe.model_validate({"additive_noise": {"probability": 1, "sigma": (3, 3)}})
    recipe = EVERYTHING.model_copy(update={"intensity": strong})
    made = augmented([sample(seed, recipe) for seed in range(3)], recipe=recipe)
    for shown, clean in zip(made["data"], made["target"], strict=True):
        assert (shown.min(), shown.max()) == (clean.min(), clean.max())


def test_other_keys_stay_and_packed_ones_go() -> None:
    hidden = torch.ones((2, 1, 2, 2, 2), dtype=torch.bool)
    batch = {"step": (0, 1), "hidden": hidden, **pack([sample(0), sample(1)])}
    made = DeviceAugmentation(EVERYTHING, PATCH)(batch)
    assert set(made) == {"step", "hidden", "data", "target", "excluded"}
    assert made["hidden"] is hidden
    assert made["data"].dtype == torch.float32
    assert made["data"].shape == made["target"].shape == (2, 1, *PATCH)


def test_a_batch_is_at_most_three_tensors_and_half_precision_stays() -> None:
    batch = pack([sample(seed) for seed in range(4)])
    assert set(batch) == {"voxels", "numbers", "masks", "plan"}
    assert {key: value.dtype for key, value in batch.items() if key != "plan"} == {
        "voxels": torch.float16, "numbers": torch.float32, "masks": torch.bool,
    }  # fmt: skip
    assert all(value.ndim == 1 for key, value in batch.items() if key != "plan")
    assert b"torch" not in pickle.dumps(batch["plan"]), "the plan passes through a pipe"


@pytest.mark.gpu
def test_the_host_never_waits_for_the_device() -> None:
    batches = [pack([sample(seed) for seed in range(first, first + 4)]) for first in range(0, 40, 4)]
    augmentation = DeviceAugmentation(EVERYTHING, PATCH)
    for batch in batches:  # plans of Fourier transforms are made once
        augmentation(sent(batch, "cuda"))
    pinned = [{k: v.pin_memory() if isinstance(v, torch.Tensor) else v for k, v in b.items()} for b in batches]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in pinned:
            moved = {k: v.to("cuda", non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            augmentation(moved)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_the_gpu_makes_what_the_cpu_makes_but_for_noise() -> None:
    quiet = {part: {"probability": 0.5} for part in PARTS if not part.endswith("noise")}
    recipe = EVERYTHING.model_copy(
        update={"elastic_probability": 0.0, "intensity": IntensityRecipe.model_validate(quiet)}
    )
    samples = [sample(seed, recipe) for seed in range(12)]
    cpu, gpu = augmented(samples, "cpu", recipe), augmented(samples, "cuda", recipe)
    for key in ("data", "target"):
        assert torch.allclose(cpu[key], gpu[key], atol=1e-3)
    assert (cpu["excluded"] != gpu["excluded"]).float().mean() < 1e-3
