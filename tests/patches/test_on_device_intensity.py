from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nnssl_mae.patches.intensity import IntensityAugmentation
from nnssl_mae.patches.on_device_batching import DeviceAugmentation, Sample, pack
from nnssl_mae.patches.on_device_intensity import (
    CHANGES,
    NOISES,
    Change,
    IntensityDraws,
    add_noise,
    apply_bias_field,
    apply_gamma,
    changes_of,
    multiply_noise,
)
from nnssl_mae.patches.on_device_spatial import Reading
from nnssl_mae.patches.randomness import global_generators
from nnssl_mae.recipes.intensity import IntensityRecipe
from nnssl_mae.recipes.pretraining import AugmentationRecipe

SHAPE = (16, 18, 20)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
WITHOUT_NOISE = ["blur", "ghosting", "gibbs_ringing", "low_resolution", "bias_field", "gamma", "inverted_gamma"]
WITH_NOISE = ["additive_noise", "multiplicative_noise"]
STRONG = {"additive_noise": {"sigma": (0.1, 0.3)}, "multiplicative_noise": {"sigma": (0.1, 0.3)}}


def only(*parts: str, probability: float = 1.0, **more: Any) -> IntensityRecipe:
    """A recipe of these augmentations alone, with noise that can be seen."""
    content: dict[str, dict[str, Any]] = {}
    for part in parts:
        name, key = ("gamma", "inverted_probability") if part == "inverted_gamma" else (part, "probability")
        content.setdefault(name, dict(STRONG.get(name, {})))[key] = probability
    return IntensityRecipe.model_validate({**content, **more})


def smooth_patch(channels: int = 1, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    """(C, Z, Y, X), float32: values of float16, some negative."""
    return torch.randn((channels, *shape), generator=torch.Generator().manual_seed(0)).half().float()


def on_device(
    patches: list[torch.Tensor],
    changes: list[tuple[Change, ...]],
    recipe: IntensityRecipe,
    device: str = "cpu",
    reversal: bool = False,
    first_seed: int = 0,
) -> dict[str, torch.Tensor]:
    """A batch of patches that are not moved, with these changes."""
    pairs = zip(patches, changes, strict=True)
    batch = pack([Sample(Reading(patch), drawn, first_seed + n) for n, (patch, drawn) in enumerate(pairs)])
    moved = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    augmentation = AugmentationRecipe(intensity=recipe, reversal=reversal)
    made = DeviceAugmentation(augmentation, patches[0].shape[1:])(moved)
    return {key: value.cpu() for key, value in made.items()}


def draw(recipe: IntensityRecipe, seed: int, channels: int = 1, shape: tuple[int, ...] = SHAPE) -> tuple[Change, ...]:
    return IntensityDraws(recipe, shape).sample(channels, np.random.default_rng(seed))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("part", WITHOUT_NOISE)
def test_the_same_generator_gives_the_image_of_the_cpu_path(part: str, channels: int, device: str) -> None:
    recipe, patch = only(part), smooth_patch(channels)
    for seed in range(5):
        expected = IntensityAugmentation(recipe).augment(patch, np.random.default_rng(seed))[0]
        made = on_device([patch], [draw(recipe, seed, channels)], recipe, device)["data"][0]
        assert torch.allclose(made, expected, atol=1e-3)
        assert not torch.equal(made, patch) or torch.equal(expected, patch)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("clip", [True, False])
def test_all_without_noise_together_equal_the_cpu_path(clip: bool, device: str) -> None:
    recipe, patch = only(*WITHOUT_NOISE, probability=0.6, clip_to_range=clip), smooth_patch()
    for seed in range(12):
        expected = IntensityAugmentation(recipe).augment(patch, np.random.default_rng(seed))[0]
        made = on_device([patch], [draw(recipe, seed)], recipe, device)["data"][0]
        assert torch.allclose(made, expected, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 9), (2, 40, 5), (3, 16, 7)])
def test_thin_patches_equal_the_cpu_path_too(shape: tuple[int, ...]) -> None:
    narrow = {"blur": {"probability": 1, "sigma": (3, 5)}, "low_resolution": {"probability": 1, "zoom": (0.01, 1)}}
    recipe, patch = IntensityRecipe.model_validate(narrow), smooth_patch(shape=shape)
    for seed in range(4):
        expected = IntensityAugmentation(recipe).augment(patch, np.random.default_rng(seed))[0]
        made = on_device([patch], [draw(recipe, seed, shape=shape)], recipe)["data"][0]
        assert torch.allclose(made, expected, atol=1e-3)


@pytest.mark.parametrize("part", WITH_NOISE)
def test_noise_is_that_of_the_cpu_path_for_the_same_numbers(part: str) -> None:
    (step,) = IntensityAugmentation(only(part)).transforms.transforms
    patch = smooth_patch(2)
    np.random.seed(0)
    torch.manual_seed(0)
    drawn = step.transform.get_parameters(image=patch)
    state = torch.get_rng_state()
    expected = step.transform._apply_to_image(patch.clone(), **drawn)
    torch.set_rng_state(state)
    noise = drawn["noise"] if "noise" in drawn else torch.randn(patch.shape)
    sigmas = torch.stack([change.values for change in changes_of(0, step.transform, drawn, patch.shape)])
    made = NOISES[part](patch[:, None], sigmas, noise[:, None])[:, 0]
    assert torch.allclose(made, expected, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("part", WITH_NOISE)
def test_noise_has_the_distribution_of_the_cpu_path(part: str, device: str) -> None:
    recipe = only(part, clip_to_range=False)
    patch = torch.full((1, 24, 24, 24), 2.0)
    spreads: dict[str, list[float]] = {"cpu": [], "device": []}
    for seed in range(40):
        for path, image in (
            ("cpu", IntensityAugmentation(recipe).augment(patch, np.random.default_rng(seed))[0]),
            ("device", on_device([patch], [draw(recipe, seed)], recipe, device, first_seed=seed)["data"][0]),
        ):
            change = image - patch
            spread = change.std().item()
            assert abs(change.mean().item()) < 5 * spread / 24**1.5
            assert (change.abs() > 2 * spread).float().mean().item() == pytest.approx(0.0455, abs=0.01)
            # White: neighbours along each axis know nothing of each other.
            for axis in (1, 2, 3):
                a, b = change.narrow(axis, 0, 23), change.narrow(axis, 1, 23)
                assert abs((a * b).mean().item()) < 0.05 * spread**2
            spreads[path].append(spread)
    assert spreads["device"] == pytest.approx(spreads["cpu"], rel=0.05), "the same sigmas were drawn"


def test_parts_happen_as_often_as_on_the_cpu() -> None:
    """All of them at once, where noise makes the two paths draw different numbers from the same generator."""
    recipe = only(*WITH_NOISE, *WITHOUT_NOISE, probability=0.3)
    draws, n = IntensityDraws(recipe, (8, 8, 8)), 600
    rngs = [np.random.default_rng(seed) for seed in range(n)]
    seen = [{change.step for change in draws.sample(1, rng)} for rng in rngs]
    for step in range(9):
        assert np.mean([step in steps for steps in seen]) == pytest.approx(0.3, abs=0.07)
    pairs = np.mean([[a in steps and b in steps for a in range(9) for b in range(a)] for steps in seen], axis=0)
    assert np.abs(pairs - 0.09).max() < 0.06, "independently of each other"


def test_what_is_drawn_after_the_intensities_does_not_depend_on_the_path() -> None:
    recipe, patch = only(*WITH_NOISE, *WITHOUT_NOISE, probability=0.5), smooth_patch()
    for seed in range(5):
        one, other = np.random.default_rng(seed), np.random.default_rng(seed)
        IntensityAugmentation(recipe).augment(patch, one)
        IntensityDraws(recipe, SHAPE).sample(1, other)
        assert one.integers(2**62) == other.integers(2**62)


def test_drawing_leaves_the_global_generators_alone() -> None:
    before = (np.random.get_state()[1].copy(), torch.get_rng_state())
    first = draw(only(*WITH_NOISE, *WITHOUT_NOISE), 3)
    assert np.array_equal(before[0], np.random.get_state()[1])
    assert torch.equal(before[1], torch.get_rng_state())
    with global_generators(np.random.default_rng(9)):
        second = draw(only(*WITH_NOISE, *WITHOUT_NOISE), 3)
    assert all(torch.equal(a.values, b.values) for a, b in zip(first, second, strict=True))


def test_no_numbers_of_the_size_of_a_patch_are_drawn_or_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    randn, drawn = torch.randn, []

    def counted(*size: Any, **more: Any) -> torch.Tensor:
        numbers = randn(*size, **more)
        drawn.append(numbers.numel())
        return numbers

    monkeypatch.setattr(torch, "randn", counted)
    changes = draw(only(*WITH_NOISE, *WITHOUT_NOISE), 0, shape=(64, 64, 64))
    assert max(drawn, default=0) <= 1
    assert sum(change.values.numel() for change in changes) < 0.2 * 64**3
    assert {change.kind for change in changes} == {*CHANGES, *NOISES}


@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_of_each_image_keeps_its_range(inverted: bool) -> None:
    images = torch.stack([smooth_patch(), 10 * smooth_patch() - 3])
    changed = apply_gamma(images, torch.tensor([0.5, 2.0]), inverted)
    for before, after in zip(images, changed, strict=True):
        assert after.min().item() == pytest.approx(before.min().item(), abs=1e-4)
        assert after.max().item() == pytest.approx(before.max().item(), abs=1e-4)
    assert apply_gamma(torch.ones(1, 1, 2, 2, 2), torch.tensor([2.0])).isfinite().all()


def test_functions_leave_their_images_alone() -> None:
    images, values = smooth_patch()[None], torch.tensor([0.5])
    before = images.clone()
    coefficients = torch.zeros(1, 4, 4, 4)
    coefficients[0, 1, 0, 0] = 1
    for changed in (
        add_noise(images, values, torch.ones_like(images)),
        multiply_noise(images, values, torch.ones_like(images)),
        apply_gamma(images, values),
        apply_bias_field(images, coefficients),
        CHANGES["lines"](images, torch.eye(18)[None] * 2, 1),
    ):
        assert torch.equal(images, before)
        assert not torch.equal(changed, before)
