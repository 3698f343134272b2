"""What is reconstructed where: the training loss, and what a person can judge on validation volumes."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from nnssl_mae.masking import as_blocks, hidden_voxels


def hidden_squared_error(prediction: torch.Tensor, target: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Mean squared error over hidden voxels, the loss of S3D's plain MAE (arXiv 2410.23132).

    Computed in 32 bit, reduced block by block, without a mask of full resolution and without a host sync.

    Args:
        prediction, target: (B, C, D, H, W).
        hidden: bool (B, 1, d, h, w), True = hidden.

    Returns:
        scalar tensor.
    """
    return (hidden_error_sums(prediction, target, hidden) / hidden_counts(target, hidden)).mean()


def hidden_error_sums(prediction: torch.Tensor, target: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Sum of squared errors over hidden voxels of each sample, (B,)."""
    error = (prediction.float() - target.float()).square()
    per_block = as_blocks(error, hidden).sum(dim=(3, 5, 7))
    return (per_block * hidden).sum(dim=(1, 2, 3, 4))


def hidden_counts(target: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Number of hidden values of each sample, (B,), all channels together."""
    values_per_block = target[0].numel() // hidden[0].numel()
    return hidden.sum(dim=(1, 2, 3, 4)) * values_per_block


def reconstruction_metrics(
    prediction: torch.Tensor, target: torch.Tensor, hidden: torch.Tensor, data_range: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Loss, PSNR, SSIM and R2 of each sample over hidden voxels only; visible voxels are never pasted in.

    Args:
        prediction, target: (B, 1, D, H, W).
        hidden: bool (B, 1, d, h, w), True = hidden.
        data_range: (B,), the 0.5 to 99.5 percentile range of each whole volume.

    Returns:
        tensors (B,): ``loss``; ``psnr`` in dB; ``ssim`` (nan where no window lies wholly in hidden voxels); ``r2``
        against filling with the mean of the visible voxels (0 = no better, 1 = perfect).
    """
    prediction, target = prediction.float(), target.float()
    mask = hidden_voxels(hidden, target.shape[2:])
    error = hidden_error_sums(prediction, target, hidden)
    loss = error / hidden_counts(target, hidden)
    visible_mean = _masked_mean(target, ~mask)
    baseline = hidden_error_sums(visible_mean[:, None, None, None, None].expand_as(target), target, hidden)
    return {
        "loss": loss,
        "psnr": 10 * torch.log10(data_range.square().clamp_min(1e-12) / loss.clamp_min(1e-12)),
        "ssim": _hidden_ssim(prediction, target, mask, data_range, window=_window(hidden, target)),
        "r2": 1 - error / baseline.clamp_min(1e-12),
    }


def _window(hidden: torch.Tensor, target: torch.Tensor) -> int:
    """Edge of the SSIM window: 7 as usual, smaller and odd where a block is smaller."""
    edge = min(size // n for size, n in zip(target.shape[2:], hidden.shape[2:], strict=True))
    return min(7, edge - (edge + 1) % 2) if edge > 1 else 1


def _masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    dims = tuple(range(1, values.ndim))
    return (values * mask).sum(dim=dims) / mask.sum(dim=dims).clamp_min(1)


def _hidden_ssim(
    prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, data_range: torch.Tensor, window: int
) -> torch.Tensor:
    """Structural similarity (Wang et al. 2004, uniform window) averaged where the whole window is hidden."""

    def smooth(volume: torch.Tensor) -> torch.Tensor:
        return F.avg_pool3d(volume, window, stride=1)

    mean_p, mean_t = smooth(prediction), smooth(target)
    var_p = smooth(prediction.square()) - mean_p.square()
    var_t = smooth(target.square()) - mean_t.square()
    covariance = smooth(prediction * target) - mean_p * mean_t
    c1 = (0.01 * data_range).square()[:, None, None, None, None]
    c2 = (0.03 * data_range).square()[:, None, None, None, None]
    ssim = (2 * mean_p * mean_t + c1) * (2 * covariance + c2)
    ssim = ssim / ((mean_p.square() + mean_t.square() + c1) * (var_p + var_t + c2)).clamp_min(1e-12)
    inside = smooth(mask.float()) > 1 - 0.5 / window**3
    dims = tuple(range(1, ssim.ndim))
    return (ssim * inside).sum(dim=dims) / inside.sum(dim=dims)
