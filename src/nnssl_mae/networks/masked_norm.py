"""Instance normalisation over visible voxels only, for encoders that must not see what is hidden.

S3D (arXiv 2410.23132) takes the statistics over visible voxels, after SparK (arXiv 2301.03580). Released code gathers
them, normalises and scatters back; here the tensor stays dense and the mask stays at block resolution, in one autograd
function, without a wait for the device.
"""

from __future__ import annotations

from typing import Any

import torch

from nnssl_mae.masking import as_blocks

_GRID, _INSIDE = (2, 4, 6), (3, 5, 7)  # axes of (B, C, d, b0, h, b1, w, b2)


def masked_instance_norm(
    features: torch.Tensor,
    visible: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Instance norm of each sample and channel over its visible positions; hidden positions become zero.

    Samples may have different numbers of visible positions; one without any becomes zero. Statistics and gradients
    are summed in 32 bit (64 for 64-bit features).

    Args:
        features: (B, C, D, H, W), any floating type.
        visible: bool (B, 1, d, h, w), True = visible; its grid divides that of the features.
        weight, bias: (C,) or None.

    Returns:
        the shape and type of ``features``.
    """
    result: torch.Tensor = _MaskedInstanceNorm.apply(features, visible, weight, bias, eps)
    return result


class _MaskedInstanceNorm(torch.autograd.Function):
    """Masks multiply sums and factors of blocks, never the features themselves: few passes over the large tensors."""

    @staticmethod
    def forward(
        ctx: Any,
        features: torch.Tensor,
        visible: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
    ) -> torch.Tensor:
        mask, blocks = _on_grid(features, visible)
        count = _positions(visible, features)
        mean = _over_visible(blocks.sum(dim=_INSIDE, keepdim=True), mask) / count
        centred = blocks - mean
        squares = torch.linalg.vector_norm(centred, dim=_INSIDE, keepdim=True).square()
        rstd = (_over_visible(squares, mask) / count + eps).rsqrt()
        factor = rstd * mask if weight is None else rstd * _channel(weight, blocks) * mask
        shift = torch.zeros_like(factor) if bias is None else _channel(bias, blocks) * mask
        ctx.save_for_backward(features, visible, weight, mean, rstd)
        ctx.has_bias = bias is not None
        # Into a tensor of its own, not a view: nnU-Net's activations work in place.
        result = torch.empty(features.shape, dtype=features.dtype, device=features.device)
        as_blocks(result, visible).copy_(torch.addcmul(shift, centred, factor))
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        features, visible, weight, mean, rstd = ctx.saved_tensors
        mask, blocks = _on_grid(features, visible)
        count = _positions(visible, features)
        centred = blocks - mean
        # In 32 bit: the product of a large gradient and a feature overflows 16.
        given = _on_grid(grad, visible)[1]
        total = _over_visible(given.sum(dim=_INSIDE, keepdim=True), mask)
        product = _over_visible((given * centred).sum(dim=_INSIDE, keepdim=True), mask) * rstd
        factor = rstd * mask if weight is None else rstd * _channel(weight, blocks) * mask
        result = torch.addcmul(-factor * total / count, given, factor)
        result = torch.addcmul(result, centred, -factor * product * rstd / count)
        return (
            result.to(features.dtype).reshape(features.shape),
            None,
            None if weight is None else product.sum(dim=0).flatten().to(weight.dtype),
            total.sum(dim=0).flatten().to(torch.float32 if weight is None else weight.dtype) if ctx.has_bias else None,
            None,
        )


def _on_grid(features: torch.Tensor, visible: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mask and, in at least 32 bit, the features as (B, C, d, b0, h, b1, w, b2) on the grid of the mask."""
    wide = torch.promote_types(features.dtype, torch.float32)
    mask = visible[:, :, :, None, :, None, :, None].to(wide)
    return mask, as_blocks(features.to(wide), visible)


def _positions(visible: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Visible positions of each sample, at least 1, (B, 1, ... 1)."""
    a_block = features[0, 0].numel() // visible[0, 0].numel()
    count = visible.flatten(1).sum(dim=1).clamp_min(1) * a_block
    return count.reshape(-1, *[1] * 7)


def _over_visible(per_block: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The sum of numbers of blocks (B, C, d, 1, h, 1, w, 1) over visible blocks, (B, C, 1, ... 1)."""
    return (per_block * mask).sum(dim=_GRID, keepdim=True)


def _channel(values: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    return values.to(blocks.dtype).reshape(1, -1, *[1] * 6)
