"""What is reconstructed where: the training loss, and what a person can judge on validation volumes."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from nnssl_mae.masking import as_blocks, hidden_voxels
from nnssl_mae.recipes.pretraining import LossRecipe

_LEAST_COUNTED = 0.05
_EPS = 1e-6  # of the block variance, as in He et al. 2022


def reconstruction_loss(
    prediction: torch.Tensor,
    target: torch.Tensor,
    hidden: torch.Tensor,
    recipe: LossRecipe,
    air: torch.Tensor | None = None,
    excluded: torch.Tensor | None = None,
) -> torch.Tensor:
    """Squared error, averaged over the voxels of a sample and then over samples.

    Each sample counts the same, whatever the others hide; one of which less than a twentieth is left after exclusion
    counts less. Computed in 32 bit and reduced block by block, without a
    host sync, and without a mask of full resolution unless ``excluded`` brings one.

    Args:
        prediction, target: (B, C, D, H, W).
        hidden: bool (B, 1, d, h, w), True = hidden.
        recipe: where it counts, and whether blocks of the target are normalised.
        air: bool (B, 1, d, h, w), True = the block never counts.
        excluded: bool (B, 1, D, H, W), True = the voxel never counts; its gradient is exactly zero.

    Returns:
        scalar tensor.
    """
    if recipe.target_normalisation == "block":
        target = normalise_blocks(target, hidden, excluded)
    weights = block_weights(hidden, recipe)
    if air is not None:
        weights = weights * ~air
    errors, counts = block_errors(prediction, target, hidden, excluded)
    dims = (1, 2, 3, 4)
    # A sample of which next to nothing counts must not outweigh the others, nor divide by zero.
    whole = weights.sum(dim=dims) * (target[0].numel() // hidden[0].numel())
    counted = torch.maximum((counts * weights).sum(dim=dims), _LEAST_COUNTED * whole).clamp_min(1e-6)
    return ((errors * weights).sum(dim=dims) / counted).mean()


def block_weights(hidden: torch.Tensor, recipe: LossRecipe) -> torch.Tensor:
    """How much a voxel of each block counts, (B, 1, d, h, w)."""
    visible = {"hidden": 0.0, "all": 1.0, "weighted": recipe.visible_weight}[recipe.region]
    return torch.where(hidden, 1.0, visible)


def block_errors(
    prediction: torch.Tensor, target: torch.Tensor, hidden: torch.Tensor, excluded: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of squared errors and number of counted values in each block, all channels together: (B, 1, d, h, w) twice.

    ``excluded`` is bool (B, 1, D, H, W).
    """
    error = (prediction.float() - target.float()).square()
    if excluded is None:
        values_per_block = target[0].numel() // hidden[0].numel()
        counts = torch.full(hidden.shape, float(values_per_block), device=target.device)
    else:
        error = error.masked_fill(excluded, 0.0)
        counts = as_blocks((~excluded).float(), hidden).sum(dim=(3, 5, 7)) * target.shape[1]
    return as_blocks(error, hidden).sum(dim=(1, 3, 5, 7)).unsqueeze(1), counts


def normalise_blocks(volumes: torch.Tensor, hidden: torch.Tensor, excluded: torch.Tensor | None = None) -> torch.Tensor:
    """Each block and channel with zero mean and unit variance (He et al. 2022, arXiv 2111.06377), 32 bit.

    ``excluded``, bool (B, 1, D, H, W), has no part in mean and variance.
    """
    mean, std = _block_statistics(volumes, hidden, excluded)
    return ((as_blocks(volumes.float(), hidden) - mean) / std).reshape(volumes.shape)


def denormalise_blocks(
    prediction: torch.Tensor, target: torch.Tensor, hidden: torch.Tensor, excluded: torch.Tensor | None = None
) -> torch.Tensor:
    """A prediction of normalised blocks in the units of ``target``, by the true mean and spread of each block.

    For metrics and pictures: a network that learnt normalised blocks does not predict their brightness.
    """
    mean, std = _block_statistics(target, hidden, excluded)
    return (as_blocks(prediction.float(), hidden) * std + mean).reshape(prediction.shape)


def _block_statistics(
    volumes: torch.Tensor, hidden: torch.Tensor, excluded: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation over the counted voxels of each block, (B, C, d, 1, h, 1, w, 1) twice."""
    blocks, inside = as_blocks(volumes.float(), hidden), (3, 5, 7)
    if excluded is None:
        variance, mean = torch.var_mean(blocks, dim=inside, correction=0, keepdim=True)
        return mean, (variance + _EPS).sqrt()
    counted = as_blocks((~excluded).float(), hidden)
    number = counted.sum(dim=inside, keepdim=True).clamp_min(1)
    mean = (blocks * counted).sum(dim=inside, keepdim=True) / number
    variance = ((blocks - mean).square() * counted).sum(dim=inside, keepdim=True) / number
    return mean, (variance + _EPS).sqrt()


def reconstruction_metrics(
    prediction: torch.Tensor,
    target: torch.Tensor,
    hidden: torch.Tensor,
    data_range: torch.Tensor,
    excluded: torch.Tensor | None = None,
    block_baseline: bool = False,
) -> dict[str, torch.Tensor]:
    """Loss, PSNR, SSIM and R2 of each sample over hidden voxels only; visible voxels are never pasted in.

    Args:
        prediction, target: (B, 1, D, H, W), in the units of the volume.
        hidden: bool (B, 1, d, h, w), True = hidden.
        data_range: (B,), the 0.5 to 99.5 percentile range of each whole volume.
        excluded: bool (B, 1, D, H, W), True = not looked at.
        block_baseline: for predictions that were given the true mean of each block (:func:`denormalise_blocks`): R2
            is then against these means, which cost the network nothing.

    Returns:
        tensors (B,): ``loss``, the mean squared error; ``psnr`` in dB; ``ssim`` (nan where no window lies wholly in
        hidden voxels); ``r2`` against filling with the mean of the visible voxels (0 = no better, 1 = perfect). All
        are nan for a sample of which no hidden voxel counts: ``counted`` is the number of these voxels.
    """
    prediction, target = prediction.float(), target.float()
    counted = torch.ones_like(target, dtype=torch.bool) if excluded is None else ~excluded
    mask = hidden_voxels(hidden, target.shape[2:])
    fill = _masked_mean(target, ~mask & counted)[:, None, None, None, None].expand_as(target)
    if block_baseline:
        fill = denormalise_blocks(torch.zeros_like(target), target, hidden, excluded)
    loss = _hidden_mean_error(prediction, target, hidden, excluded)
    baseline = _hidden_mean_error(fill, target, hidden, excluded)
    return {
        "loss": loss,
        "psnr": 10 * torch.log10(data_range.square().clamp_min(1e-12) / loss.clamp_min(1e-12)),
        "ssim": _hidden_ssim(prediction, target, mask & counted, data_range, window=_window(hidden, target)),
        "r2": 1 - loss / baseline.clamp_min(1e-12),
        "counted": (mask & counted).sum(dim=(1, 2, 3, 4)).float(),
    }


def _hidden_mean_error(
    prediction: torch.Tensor, target: torch.Tensor, hidden: torch.Tensor, excluded: torch.Tensor | None
) -> torch.Tensor:
    """Mean squared error of each sample over counted hidden voxels, (B,)."""
    errors, counts = block_errors(prediction, target, hidden, excluded)
    dims = (1, 2, 3, 4)
    return (errors * hidden).sum(dim=dims) / (counts * hidden).sum(dim=dims)


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
