"""A sparse network in the manner of released S3D code, written from a description of it, as a baseline for timing.

Stock encoder modules are kept, and their convolutions, pools and norms are exchanged for ones that look the mask up.
What makes it slow is what it is for: every operation builds the mask at its own resolution, and every norm gathers
visible positions and scatters them back, which waits for the device twice.

Differences to the masked network of this package, all on purpose:

- Volumes enter unhidden unless the caller hides them: visible features beside hidden blocks depend on hidden voxels.
- Where a feature map is coarser than the mask, all of its positions count as visible.
- A norm over visible positions comes before mask tokens and densification at each resolution.
- All samples of a batch must hide the same number of blocks.

Released code also carries a second, unused copy of each converted layer, which costs memory but no time; not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

_TOKEN_STD = 0.02


def repeated(visible: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """A mask (B, 1, d, h, w) at full resolution, (B, 1, D, H, W), by repeating along each axis."""
    for axis, edge in enumerate(size, start=2):
        visible = visible.repeat_interleave(edge // visible.shape[axis], dim=axis)
    return visible


class CurrentMask:
    """The mask of the running forward pass, which all layers of one network share."""

    def __init__(self) -> None:
        self.visible = torch.empty(0)
        """Float (B, 1, d, h, w), 1 = visible, 0 = hidden."""

    def at(self, features: torch.Tensor) -> torch.Tensor:
        """Built anew for features (B, C, D, H, W): (B, 1, D, H, W) of their type; all 1 where the blocks are finer."""
        size, grid = features.shape[2:], self.visible.shape[2:]
        if any(edge % blocks for edge, blocks in zip(size, grid, strict=True)):
            return features.new_ones(features.shape[0], 1, *size)
        return repeated(self.visible, size).to(features.dtype)


class ReleasedStyleS3D(nn.Module):
    """Encoder, mask tokens, densification and decoder; see the module for what differs from ours.

    Args:
        stock: a planned network with ``encoder`` and ``decoder``; its encoder is converted in place.
        densify_norm: whether features are normed before they are densified, as released code does.
    """

    def __init__(self, stock: Any, densify_norm: bool = True) -> None:
        super().__init__()
        self.mask = CurrentMask()
        self.encoder, self.decoder = stock.encoder, stock.decoder
        convert(self.encoder, self.mask)
        widths: list[int] = list(self.encoder.output_channels)
        self.tokens = nn.ParameterList(torch.randn(1, width, 1, 1, 1) * _TOKEN_STD for width in widths)
        norms = [_GatheredNorm(nn.InstanceNorm3d(width, affine=True), self.mask) for width in widths]
        self.densify_norms = nn.ModuleList(norms if densify_norm else [nn.Identity() for _ in widths])
        convolutions = [nn.Conv3d(width, width, 3, padding=1) for width in widths[1:]]
        self.densifiers = nn.ModuleList([nn.Identity(), *convolutions])

    def forward(self, volumes: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Reconstructs volumes.

        Args:
            volumes: (B, 1, D, H, W).
            visible: float (B, 1, d, h, w), 1 = visible, 0 = hidden.

        Returns:
            (B, 1, D, H, W).
        """
        features = self.encode(volumes, visible)
        parts = zip(features, self.densify_norms, self.tokens, self.densifiers, strict=True)
        filled = [densify(self._filled(norm(x), token)) for x, norm, token, densify in parts]
        reconstruction: torch.Tensor = self.decoder(filled)
        return reconstruction

    def encode(self, volumes: torch.Tensor, visible: torch.Tensor) -> list[torch.Tensor]:
        """Features of each resolution, highest first, zero at hidden positions."""
        self.mask.visible = visible
        features: list[torch.Tensor] = self.encoder(volumes)
        return features

    def _filled(self, features: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        shown = self.mask.at(features).expand_as(features) == 1
        return torch.where(shown, features, token.to(features.dtype).expand_as(features))


def gathered_loss(prediction: torch.Tensor, target: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Mean squared error over hidden voxels, picked out by their places in a mask of full resolution.

    Args:
        prediction, target: (B, 1, D, H, W).
        visible: float (B, 1, d, h, w), 1 = visible, 0 = hidden.
    """
    hidden = 1 - repeated(visible, target.shape[2:])
    return ((target - prediction) ** 2)[hidden.nonzero(as_tuple=True)].mean()


def convert(encoder: nn.Module, mask: CurrentMask) -> None:
    """Exchanges convolutions, pools and norms of a stock encoder, in place; weights stay the same tensors."""
    exchanged: dict[nn.Module, nn.Module] = {}  # nnU-Net's blocks hold each layer under two names
    for parent in list(encoder.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child not in exchanged:
                exchanged[child] = _converted(child, mask)
            if child is not None and exchanged[child] is not child:
                parent._modules[name] = exchanged[child]


def _converted(layer: nn.Module, mask: CurrentMask) -> nn.Module:
    if isinstance(layer, nn.Conv3d | nn.AvgPool3d | nn.MaxPool3d):
        return _Masked(layer, mask)
    if isinstance(layer, nn.InstanceNorm3d):
        return _GatheredNorm(layer, mask)
    return layer


class _Masked(nn.Module):
    """A layer whose output is multiplied by the mask."""

    def __init__(self, layer: nn.Module, mask: CurrentMask) -> None:
        super().__init__()
        self.layer, self.mask = layer, mask

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(features)
        result *= self.mask.at(result)
        return result


class _GatheredNorm(nn.Module):
    """Instance norm of visible positions: they are gathered, normed as rows of one length, and scattered back."""

    def __init__(self, norm: nn.InstanceNorm3d, mask: CurrentMask) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(norm.num_features, eps=norm.eps, affine=norm.affine)
        if norm.affine:
            self.norm.weight, self.norm.bias = norm.weight, norm.bias
        self.mask = mask

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        samples, channels = features.shape[:2]
        visible = self.mask.at(features).squeeze(1)
        last = features.permute(0, 2, 3, 4, 1)
        # Summed in 32 bit: 16 bit ends at 65504, fewer than a map of full resolution has positions.
        count = int(visible.sum(dim=(1, 2, 3), dtype=torch.float32)[0])
        places = visible.nonzero(as_tuple=True)
        rows = self.norm(last[places].reshape(samples, count, channels).permute(0, 2, 1))
        result = torch.zeros_like(last)
        result[places] = rows.permute(0, 2, 1).reshape(-1, channels).to(result.dtype)
        return result.permute(0, 4, 1, 2, 3)
