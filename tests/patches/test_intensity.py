import pickle
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform

from nnssl_mae.patches.intensity import IntensityAugmentation
from nnssl_mae.recipes.intensity import IntensityRecipe

SHAPE = (1, 16, 18, 20)
AMAES = {
    "additive_noise": 0.2, "blur": 0.2, "multiplicative_noise": 0.2, "ghosting": 0.2, "gibbs_ringing": 0.2,
    "low_resolution": 0.2, "bias_field": 0.33, "gamma": 0.2,
}  # fmt: skip
PARTS = [*AMAES, "inverted_gamma"]


def only(part: str, **values: Any) -> IntensityRecipe:
    """A recipe in which one augmentation always happens; the others keep their published ranges and are off."""
    if part == "inverted_gamma":
        return IntensityRecipe.model_validate({"gamma": {"inverted_probability": 1, **values}})
    return IntensityRecipe.model_validate({part: {"probability": 1, **values}})


def every_part(probability: float = 1.0, **more: Any) -> IntensityRecipe:
    parts = {part: {"probability": probability} for part in AMAES}
    parts["gamma"]["inverted_probability"] = probability
    return IntensityRecipe.model_validate({**parts, **more})


def published() -> IntensityRecipe:
    parts = {part: {"probability": probability} for part, probability in AMAES.items()}
    parts["gamma"]["inverted_probability"] = 0.05
    return IntensityRecipe.model_validate(parts)


def noise_patch(shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    """Uniform in [0, 1]."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def head(size: int = 32) -> torch.Tensor:
    """A grey ball with a brighter core in air, in [0, 1]."""
    axis = torch.linspace(-1, 1, size)
    radius = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
    return (0.4 * (radius < 0.8) + 0.6 * (radius < 0.4))[None].float()


def augment(recipe: IntensityRecipe, patch: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return IntensityAugmentation(recipe).augment(patch, np.random.default_rng(seed))[0]


def transform_of(part: str) -> BasicTransform:
    (step,) = IntensityAugmentation(only(part)).transforms.transforms
    return step.transform


def parameters(part: str, samples: int = 200, shape: tuple[int, ...] = (1, 64, 64, 64)) -> list[dict[str, Any]]:
    """What ``samples`` patches would draw."""
    np.random.seed(0)
    torch.manual_seed(0)
    transform, image = transform_of(part), torch.zeros(shape)
    return [transform.get_parameters(image=image) for _ in range(samples)]


def covers(drawn: list[float], low: float, high: float) -> bool:
    """Inside the range, and close to both ends."""
    near = 0.05 * (high - low)
    return low <= min(drawn) < low + near and high - near < max(drawn) <= high


def rms(difference: torch.Tensor) -> float:
    return difference.square().mean().sqrt().item()


def test_probability_zero_changes_nothing_whatever_is_drawn() -> None:
    for seed in range(10):
        assert torch.equal(augment(every_part(probability=0), noise_patch(), seed), noise_patch())


@pytest.mark.parametrize("part", PARTS)
def test_probability_one_changes_the_input_and_nothing_else(part: str) -> None:
    for shape in (SHAPE, (3, 8, 24, 20)):
        patch = noise_patch(shape)
        image, target = IntensityAugmentation(only(part)).augment(patch, np.random.default_rng(1))
        assert torch.equal(target, noise_patch(shape))
        assert torch.equal(patch, noise_patch(shape))
        assert len({tensor.data_ptr() for tensor in (image, target, patch)}) == 3
        assert image.shape == shape
        assert image.dtype == torch.float32
        for channel, before in zip(image, patch, strict=True):
            assert not torch.equal(channel, before)


@pytest.mark.parametrize("part", PARTS)
def test_each_transform_ignores_the_target(part: str) -> None:
    target = noise_patch()
    result = transform_of(part)(image=noise_patch(), regression_target=target)
    assert result["regression_target"] is target
    assert torch.equal(target, noise_patch())


def test_all_together_leave_the_target_bit_for_bit() -> None:
    patch = noise_patch((2, 8, 24, 20))
    image, target = IntensityAugmentation(every_part()).augment(patch, np.random.default_rng(0))
    assert torch.equal(target, noise_patch((2, 8, 24, 20)))
    assert torch.equal(patch, target)
    assert not torch.allclose(image, target, atol=1e-2)


def test_parts_run_in_the_order_of_the_recipe() -> None:
    names = [type(step.transform).__name__ for step in IntensityAugmentation(every_part()).transforms.transforms]
    assert names == [
        "GaussianNoiseTransform", "GaussianBlurTransform", "MultiplicativeNoiseTransform", "GhostingTransform",
        "GibbsRingingTransform", "SimulateLowResolutionTransform", "BiasFieldTransform", "GammaTransform",
        "GammaTransform",
    ]  # fmt: skip
    assert list(AMAES) == [name for name in IntensityRecipe.model_fields if name != "clip_to_range"]


def test_the_same_generator_gives_the_same_result_and_others_do_not() -> None:
    augmentation = IntensityAugmentation(every_part(probability=0.7))
    np.random.seed(1)
    torch.manual_seed(1)
    one = augmentation.augment(noise_patch(), np.random.default_rng(5))[0]
    np.random.seed(2)
    torch.manual_seed(2)
    assert torch.equal(one, augmentation.augment(noise_patch(), np.random.default_rng(5))[0])
    assert not torch.equal(one, augmentation.augment(noise_patch(), np.random.default_rng(6))[0])


def test_the_global_generators_are_as_before() -> None:
    before = (np.random.get_state()[1].copy(), torch.get_rng_state())
    augment(every_part(), noise_patch())
    assert np.array_equal(before[0], np.random.get_state()[1])
    assert torch.equal(before[1], torch.get_rng_state())


def test_later_draws_of_a_patch_do_not_depend_on_the_intensity_recipe() -> None:
    after = []
    for recipe in (every_part(0), every_part(1), only("blur")):
        rng = np.random.default_rng(3)
        IntensityAugmentation(recipe).augment(noise_patch(), rng)
        after.append(rng.integers(2**62))
    assert len(set(after)) == 1


def test_it_can_be_sent_to_worker_processes() -> None:
    augmentation = IntensityAugmentation(every_part())
    copy = pickle.loads(pickle.dumps(augmentation))
    one, two = (each.augment(noise_patch(), np.random.default_rng(0))[0] for each in (augmentation, copy))
    assert torch.equal(one, two)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.3])
def test_a_patch_of_air_only_stays_as_it_is(value: float) -> None:
    patch = torch.full((2, 8, 9, 10), value)
    for seed in range(5):
        assert torch.equal(augment(every_part(), patch, seed), patch)
        assert augment(every_part(clip_to_range=False), patch, seed).isfinite().all()


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 3, 9), (1, 2, 40, 5), (1, 3, 16, 7)])
def test_thin_patches_are_possible(shape: tuple[int, ...]) -> None:
    recipe = every_part(blur={"probability": 1, "sigma": (3, 5)}, low_resolution={"probability": 1, "zoom": (0.01, 1)})
    for seed in range(5):
        image = augment(recipe, noise_patch(shape), seed)
        assert image.shape == shape
        assert image.isfinite().all()


def test_the_range_of_each_channel_holds_after_clipping_only() -> None:
    patch = torch.cat([noise_patch(), 10 * noise_patch() - 20])
    strong = {"additive_noise": {"probability": 1, "sigma": (3, 3)}}
    clipped = augment(IntensityRecipe.model_validate(strong), patch)
    free = augment(IntensityRecipe.model_validate({**strong, "clip_to_range": False}), patch)
    for channel, (before, after) in enumerate(zip(patch, clipped, strict=True)):
        assert after.min() == before.min()
        assert after.max() == before.max()
        assert free[channel].min() < before.min() - 1
        assert free[channel].max() > before.max() + 1


@pytest.mark.parametrize("sigma", [0.01, 0.3])
def test_additive_noise_has_the_standard_deviation_of_the_recipe(sigma: float) -> None:
    recipe = only("additive_noise", sigma=(sigma, sigma)).model_copy(update={"clip_to_range": False})
    added = augment(recipe, head()) - head()
    assert added.std().item() == pytest.approx(sigma, rel=0.03)
    assert abs(added.mean().item()) < 0.03 * sigma


def test_blur_has_the_standard_deviation_of_the_recipe_along_each_axis() -> None:
    point = torch.zeros(1, 21, 21, 21)
    point[0, 10, 10, 10] = 1
    blurred = augment(only("blur", sigma=(1, 1)), point)[0]
    assert blurred.sum().item() == pytest.approx(1, abs=1e-4)
    offsets = torch.arange(21.0) - 10
    for axis in range(3):
        profile = blurred.movedim(axis, 0).sum((1, 2))
        assert (profile @ offsets**2).sqrt().item() == pytest.approx(1, abs=0.05)


def test_no_blur_is_no_division_by_zero() -> None:
    assert torch.allclose(augment(only("blur", sigma=(0, 0)), noise_patch()), noise_patch())


def test_low_resolution_halves_the_detail_and_keeps_the_shape() -> None:
    patch = noise_patch((1, 16, 32, 24))
    coarse = augment(only("low_resolution", zoom=(0.5, 0.5)), patch)
    assert coarse.shape == patch.shape
    for axis in (1, 2, 3):
        detail, before = (torch.fft.rfft(volume, dim=axis).abs() for volume in (coarse, patch))
        outer = 3 * detail.shape[axis] // 4
        ratio = detail.narrow(axis, outer, 2).mean() / before.narrow(axis, outer, 2).mean()
        assert ratio < 0.5


@pytest.mark.parametrize("part", ["gamma", "inverted_gamma"])
def test_gamma_keeps_the_range_and_the_order_of_voxels(part: str) -> None:
    patch = (4 * noise_patch() - 3).contiguous()
    changed = augment(only(part, gamma=(2, 2)), patch)
    assert changed.min().item() == pytest.approx(patch.min().item(), abs=1e-5)
    assert changed.max().item() == pytest.approx(patch.max().item(), abs=1e-5)
    assert changed.flatten()[patch.flatten().argsort()].diff().min() > -1e-5
    unit, before = ((volume - patch.min()) / (patch.max() - patch.min()) for volume in (changed, patch))
    expected = before**2 if part == "gamma" else 1 - (1 - before) ** 2
    assert torch.allclose(unit, expected, atol=1e-5)


def test_inverted_gamma_happens_independently_of_gamma() -> None:
    recipe = IntensityRecipe.model_validate(
        {"gamma": {"probability": 0.5, "inverted_probability": 0.5, "gamma": (2, 2)}}
    )
    patch = torch.linspace(0, 1, 27).reshape(1, 3, 3, 3)
    plain, inverted = patch**2, 1 - (1 - patch) ** 2
    possible = {"none": patch, "plain": plain, "inverted": inverted, "both": 1 - (1 - plain) ** 2}
    seen = dict.fromkeys(possible, 0)
    for seed in range(200):
        changed = augment(recipe, patch, seed)
        (name,) = [name for name, expected in possible.items() if torch.allclose(changed, expected, atol=1e-5)]
        seen[name] += 1
    assert min(seen.values()) > 30, "each of the four cases has probability one quarter"


def test_noise_and_blur_draw_from_the_published_ranges() -> None:
    for part in ("additive_noise", "multiplicative_noise"):
        assert covers([draw["sigmas"][0] for draw in parameters(part, shape=(1, 4, 4, 4))], 1e-4, 1e-3)
    sigmas = [draw["sigmas"][0] for draw in parameters("blur")]
    assert all(len(set(axes)) == 1 for axes in sigmas), "isotropic"
    assert covers([axes[0] for axes in sigmas], 0, 1)


def test_ghosting_and_ringing_draw_from_the_published_ranges() -> None:
    ghosting, ringing = parameters("ghosting"), parameters("gibbs_ringing")
    assert covers([draw["alphas"][0] for draw in ghosting], 0.85, 0.95)
    assert {draw["repeats"][0] for draw in ghosting} == set(range(2, 12))
    assert covers([draw["kept"][0] for draw in ringing], 0.75, 1)
    for draws in (ghosting, ringing):
        assert {draw["axes"][0] for draw in draws} == {0, 1, 2}


def test_resolution_shading_and_gamma_draw_from_the_published_ranges() -> None:
    zooms = [draw["scales"][0] for draw in parameters("low_resolution")]
    assert all(len(set(axes.tolist())) == 1 for axes in zooms), "isotropic"
    assert covers([axes[0].item() for axes in zooms], 0.5, 1)
    coefficients = torch.stack([draw["coefficients"] for draw in parameters("bias_field", shape=(1, 4, 4, 4))])
    assert covers(coefficients.flatten().tolist(), -0.5, 0.5)
    for part in ("gamma", "inverted_gamma"):
        draws = parameters(part)
        assert covers([draw["gamma"].item() for draw in draws], 0.5, 2)
        assert {draw["invert_image"].item() for draw in draws} == {part == "inverted_gamma"}


@pytest.mark.parametrize(
    ("part", "least", "most"),
    [
        ("additive_noise", 5e-5, 1e-3),  # at least 60 dB below the image: invisible, as published
        ("multiplicative_noise", 1e-5, 1e-3),
        ("blur", 0.02, 0.15),
        ("ghosting", 5e-3, 0.05),
        ("gibbs_ringing", 2e-3, 0.05),
        ("low_resolution", 0.02, 0.2),
        ("bias_field", 0.02, 0.4),
        ("gamma", 0.03, 0.3),
        ("inverted_gamma", 0.03, 0.3),
    ],
)
def test_the_published_ranges_change_an_image_visibly_but_for_the_noise(part: str, least: float, most: float) -> None:
    changes = [rms(augment(only(part), head(), seed) - head()) for seed in range(20)]
    assert least < np.median(changes)
    assert max(changes) < most


def test_published_probabilities_leave_one_patch_in_seven_alone_and_the_range_as_it_was() -> None:
    augmentation, patch = IntensityAugmentation(published()), noise_patch((1, 8, 8, 8))
    inputs = [augmentation.augment(patch, np.random.default_rng(seed))[0] for seed in range(400)]
    unchanged = np.mean([torch.equal(image, patch) for image in inputs])
    # A quarter of the blurs is too narrow to reach the next voxel, and one in four cuts keeps all of 8 lines.
    expected = 0.8**5 * (1 - 0.2 * 0.75) * (1 - 0.2 * 0.75) * (1 - 0.33) * (1 - 0.05)
    assert unchanged == pytest.approx(expected, abs=0.05)
    assert all(image.min() >= patch.min() and image.max() <= patch.max() for image in inputs)
