import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from nnssl_mae.masking import hidden_voxels, hide
from nnssl_mae.objectives import hidden_squared_error, reconstruction_metrics


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
    torch.testing.assert_close(hidden_squared_error(prediction, target, hidden), expected)


def test_visible_voxels_get_no_gradient(batch) -> None:
    prediction, target, hidden = batch
    prediction = prediction.clone().requires_grad_()
    hidden_squared_error(prediction, target, hidden).backward()
    mask = hidden_voxels(hidden, (16, 16, 16))
    assert (prediction.grad[~mask] == 0).all()
    assert (prediction.grad[mask] != 0).all()


def test_loss_of_half_precision_is_computed_in_single(batch) -> None:
    _, target, hidden = batch
    loss = hidden_squared_error(300 * torch.ones_like(target, dtype=torch.float16), target, hidden)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


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
