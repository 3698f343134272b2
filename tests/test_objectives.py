import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from nnssl_mae.masking import hidden_voxels, hide
from nnssl_mae.objectives import denormalise_blocks, normalise_blocks, reconstruction_loss, reconstruction_metrics
from nnssl_mae.recipes.pretraining import LossRecipe

HIDDEN, ALL = LossRecipe(), LossRecipe(region="all")


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(2, 1, 16, 16, 16, generator=generator)
    prediction = target + 0.3 * torch.randn(2, 1, 16, 16, 16, generator=generator)
    hidden = torch.rand(2, 1, 2, 2, 2, generator=generator) < 0.5
    hidden[:, :, 0, 0, 0], hidden[:, :, 1, 1, 1] = True, False
    return prediction, target, hidden


def test_loss_equals_the_mean_over_hidden_voxels(batch) -> None:
    prediction, target, hidden = batch
    mask = hidden_voxels(hidden, (16, 16, 16))
    expected = torch.stack([((prediction - target)[i][mask[i]] ** 2).mean() for i in range(2)]).mean()
    torch.testing.assert_close(reconstruction_loss(prediction, target, hidden, HIDDEN), expected)


def test_visible_voxels_get_no_gradient(batch) -> None:
    prediction, target, hidden = batch
    prediction = prediction.clone().requires_grad_()
    reconstruction_loss(prediction, target, hidden, HIDDEN).backward()
    mask = hidden_voxels(hidden, (16, 16, 16))
    assert (prediction.grad[~mask] == 0).all()
    assert (prediction.grad[mask] != 0).all()


def test_loss_of_half_precision_is_computed_in_single(batch) -> None:
    _, target, hidden = batch
    loss = reconstruction_loss(300 * torch.ones_like(target, dtype=torch.float16), target, hidden, HIDDEN)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


@pytest.fixture
def by_hand() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """4x4x4 voxels in blocks of 2^3: the error of block n is n + 1 everywhere; blocks 1 and 6 are hidden."""
    error = (torch.arange(8.0) + 1).view(1, 1, 2, 2, 2)
    error = error.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    hidden = torch.zeros(1, 1, 2, 2, 2, dtype=torch.bool)
    hidden.view(-1)[[1, 6]] = True
    target = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return target + error, target, hidden


def test_each_region_by_hand(by_hand) -> None:
    hidden_sum, visible_sum = 2.0**2 + 7**2, sum(n**2 for n in (1, 3, 4, 5, 6, 8))
    expected = {"hidden": hidden_sum / 2, "all": (hidden_sum + visible_sum) / 8}
    expected["weighted"] = (hidden_sum + 0.25 * visible_sum) / (2 + 0.25 * 6)
    for region, value in expected.items():
        recipe = LossRecipe(region=region, visible_weight=0.25)
        assert reconstruction_loss(*by_hand, recipe).item() == pytest.approx(value, rel=1e-6)


def test_air_and_excluded_voxels_by_hand(by_hand) -> None:
    prediction, target, hidden = by_hand
    air = torch.zeros_like(hidden)
    air.view(-1)[[0, 7]] = True
    excluded = torch.zeros(1, 1, 4, 4, 4, dtype=torch.bool)
    excluded[0, 0, 2:, 2:, :1] = True  # 4 of the 8 voxels of block 6, error 7
    prediction = prediction.clone().requires_grad_()
    loss = reconstruction_loss(prediction, target, hidden, ALL, air, excluded)
    numbers = {1: 8, 2: 8, 3: 8, 4: 8, 5: 8, 6: 4}
    expected = sum((n + 1) ** 2 * count for n, count in numbers.items()) / sum(numbers.values())
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    never = excluded | hidden_voxels(air, (4, 4, 4))
    assert (prediction.grad[never] == 0).all()
    assert (prediction.grad[~never] != 0).all()


def test_a_sample_counts_the_same_whatever_the_others_hide_and_however_many_channels_there_are(batch) -> None:
    prediction, target, hidden = batch
    hidden = hidden.clone()
    hidden[1].view(-1)[1:7] = True
    assert hidden[0].sum() != hidden[1].sum()
    for recipe in (HIDDEN, ALL, LossRecipe(region="weighted"), LossRecipe(target_normalisation="block")):
        alone = [
            reconstruction_loss(prediction[i : i + 1], target[i : i + 1], hidden[i : i + 1], recipe) for i in (0, 1)
        ]
        together = reconstruction_loss(prediction, target, hidden, recipe)
        torch.testing.assert_close(together, torch.stack(alone).mean())
        twice = [tensor.repeat(1, 3, 1, 1, 1) for tensor in (prediction, target)]
        torch.testing.assert_close(reconstruction_loss(*twice, hidden, recipe), together)


def test_a_sample_of_which_nothing_counts_adds_zero(batch) -> None:
    prediction, target, hidden = batch
    excluded = torch.zeros(2, 1, 16, 16, 16, dtype=torch.bool)
    excluded[0] = True
    prediction = prediction.clone().requires_grad_()
    loss = reconstruction_loss(prediction, target, hidden, HIDDEN, excluded=excluded)
    loss.backward()
    torch.testing.assert_close(2 * loss, reconstruction_loss(prediction[1:], target[1:], hidden[1:], HIDDEN))
    assert torch.isfinite(prediction.grad).all()


def test_normalised_blocks_have_no_mean_and_unit_variance_and_come_back(batch) -> None:
    _, target, hidden = batch
    normal = normalise_blocks(5 * target + 3, hidden)
    block = normal[1, 0, 8:, :8, 8:]
    assert block.mean().abs() < 1e-5
    assert block.var(correction=0).item() == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(denormalise_blocks(normal, 5 * target + 3, hidden), 5 * target + 3)
    recipe = LossRecipe(target_normalisation="block")
    assert reconstruction_loss(normal, 5 * target + 3, hidden, recipe).item() == pytest.approx(0, abs=1e-9)


def test_metrics_ignore_visible_voxels(batch) -> None:
    prediction, target, hidden = batch
    data_range = torch.tensor([4.0, 5.0])
    nonsense = torch.where(hidden_voxels(hidden, (16, 16, 16)), prediction, 1e3)
    one = reconstruction_metrics(prediction, target, hidden, data_range)
    other = reconstruction_metrics(nonsense, target, hidden, data_range)
    for name in one:
        torch.testing.assert_close(one[name], other[name], msg=name)


def test_metrics_by_hand(batch) -> None:
    prediction, target, hidden = batch
    data_range = torch.tensor([4.0, 5.0])
    metrics = reconstruction_metrics(prediction, target, hidden, data_range)
    mask = hidden_voxels(hidden, (16, 16, 16))
    for i in range(2):
        p, t, visible = prediction[i][mask[i]], target[i][mask[i]], target[i][~mask[i]]
        mse = ((p - t) ** 2).mean()
        torch.testing.assert_close(metrics["loss"][i], mse)
        torch.testing.assert_close(metrics["psnr"][i], 10 * torch.log10(data_range[i] ** 2 / mse))
        r2 = 1 - ((p - t) ** 2).sum() / ((t - visible.mean()) ** 2).sum()
        torch.testing.assert_close(metrics["r2"][i], r2)


def test_excluded_voxels_have_no_part_in_the_normalisation_of_a_block(batch) -> None:
    _, target, hidden = batch
    excluded = torch.zeros(2, 1, 16, 16, 16, dtype=torch.bool)
    excluded[:, :, :4] = True
    nonsense = torch.where(excluded, -20.0, target)
    half = normalise_blocks(nonsense, hidden, excluded)[0, 0, 4:8, :8, :8]
    assert half.mean().abs() < 1e-5
    assert half.var(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_a_sample_with_one_counted_voxel_does_not_outweigh_the_others(batch) -> None:
    prediction, target, hidden = batch
    excluded = torch.zeros(2, 1, 16, 16, 16, dtype=torch.bool)
    excluded[0] = ~(torch.arange(16**3) == 0).view(1, 16, 16, 16)
    prediction = prediction.clone().requires_grad_()
    reconstruction_loss(prediction, target, hidden, HIDDEN, excluded=excluded).backward()
    assert prediction.grad[0].norm() < prediction.grad[1].norm()


def test_block_means_that_were_given_away_earn_no_r2(batch) -> None:
    _, target, hidden = batch
    empty = denormalise_blocks(torch.zeros_like(target), target + 4 * hidden_voxels(hidden, (16, 16, 16)), hidden)
    shifted = target + 4 * hidden_voxels(hidden, (16, 16, 16))
    assert (reconstruction_metrics(empty, shifted, hidden, torch.ones(2))["r2"] > 0.5).all()
    honest = reconstruction_metrics(empty, shifted, hidden, torch.ones(2), block_baseline=True)["r2"]
    torch.testing.assert_close(honest, torch.zeros(2), atol=1e-5, rtol=0)


def test_metrics_do_not_look_at_excluded_voxels(batch) -> None:
    prediction, target, hidden = batch
    excluded = torch.zeros(2, 1, 16, 16, 16, dtype=torch.bool)
    excluded[:, :, :, :3] = True
    data_range = torch.tensor([4.0, 5.0])
    one = reconstruction_metrics(prediction, target, hidden, data_range, excluded)
    nonsense = [torch.where(excluded, 1e3, tensor) for tensor in (prediction, target)]
    other = reconstruction_metrics(*nonsense, hidden, data_range, excluded)
    for name in one:
        torch.testing.assert_close(one[name], other[name], equal_nan=True, msg=name)


def test_filling_with_the_visible_mean_has_r2_of_zero(batch) -> None:
    _, target, hidden = batch
    mask = hidden_voxels(hidden, (16, 16, 16))
    fill = torch.stack([torch.full_like(t, t[~m].mean()) for t, m in zip(target, mask, strict=True)])
    metrics = reconstruction_metrics(fill, target, hidden, torch.ones(2))
    torch.testing.assert_close(metrics["r2"], torch.zeros(2), atol=1e-5, rtol=0)


def test_ssim_equals_scikit_image_where_everything_is_hidden() -> None:
    rng = np.random.default_rng(0)
    target = rng.normal(size=(12, 12, 12)).astype(np.float32)
    prediction = target + rng.normal(size=target.shape).astype(np.float32)
    hidden = torch.ones(1, 1, 1, 1, 1, dtype=torch.bool)
    tensors = (torch.from_numpy(a)[None, None] for a in (prediction, target))
    ours = reconstruction_metrics(*tensors, hidden, torch.tensor([5.0]))["ssim"].item()
    theirs = structural_similarity(prediction, target, data_range=5.0, win_size=7, use_sample_covariance=False)
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_perfect_reconstruction() -> None:
    target = torch.randn(1, 1, 16, 16, 16)
    hidden = torch.zeros(1, 1, 2, 2, 2, dtype=torch.bool)
    hidden[..., 0] = True
    metrics = reconstruction_metrics(target, target, hidden, torch.tensor([5.0]))
    assert metrics["loss"].item() == 0
    assert metrics["r2"].item() == 1
    assert metrics["ssim"].item() == pytest.approx(1, abs=1e-5)


def test_hiding_leaves_no_trace_of_hidden_voxels() -> None:
    """What the network sees does not depend on hidden voxels."""
    volumes = torch.randn(1, 1, 16, 16, 16)
    hidden = torch.rand(1, 1, 2, 2, 2) < 0.5
    changed = torch.where(hidden_voxels(hidden, (16, 16, 16)), torch.full_like(volumes, 7.0), volumes)
    assert torch.equal(hide(volumes, hidden), hide(changed, hidden))
