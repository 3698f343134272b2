"""Running an encoder that nnU-Net planned as if convolutions saw visible positions only.

No layer is replaced and nothing is remembered between calls: the stock modules are walked through, with the mask as an
argument, so that weights keep their names and the encoder transfers unchanged. After each block features of hidden
positions are zero and have had no part in any statistic (S3D, arXiv 2410.23132; SparK, arXiv 2301.03580).
"""

from __future__ import annotations

import torch
from dynamic_network_architectures.building_blocks.residual import BasicBlockD, BottleneckD, StackedResidualBlocks
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU, StackedConvBlocks
from torch import nn
from torch.nn import functional as F

from nnssl_mae.errors import UserError
from nnssl_mae.masking import as_blocks
from nnssl_mae.networks.masked_norm import masked_instance_norm

# Tuples: torch.compile of torch 2.6 cannot follow isinstance(module, A | B).
POOLS = (nn.AvgPool3d, nn.MaxPool3d)
RESIDUAL_BLOCKS = (BasicBlockD, BottleneckD)


def visible_at(hidden: torch.Tensor, size: torch.Size | tuple[int, ...]) -> torch.Tensor:
    """Which positions of a feature map are visible: those that cover any voxel of a visible block.

    Args:
        hidden: bool (B, 1, d, h, w), True = hidden.
        size: of the feature map, (D, H, W).

    Returns:
        bool (B, 1, ...), True = visible: on the grid of ``hidden`` where that divides the feature map, otherwise on
        the grid of the feature map, which may be coarser than the blocks or cut across them.
    """
    if all(edge % blocks == 0 for edge, blocks in zip(size, hidden.shape[2:], strict=True)):
        return ~hidden
    # The bins of adaptive pooling are exactly the blocks that a position overlaps, up or down.
    return F.adaptive_max_pool3d((~hidden).float(), tuple(size)) > 0


def run_masked(module: nn.Module, features: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """The output of a stage or block of a planned encoder, computed from visible positions only.

    Args:
        module: made of nnU-Net's blocks, pools and ``nn.Sequential``.
        features: (B, C, D, H, W), zero at hidden positions.
        hidden: bool (B, 1, d, h, w), True = hidden.

    Raises:
        UserError: the encoder holds a layer whose masked form is not known.
    """
    if isinstance(module, nn.Sequential):
        for part in module:
            features = run_masked(part, features, hidden)
        return features
    if isinstance(module, StackedConvBlocks):
        return run_masked(module.convs, features, hidden)
    if isinstance(module, StackedResidualBlocks):
        return run_masked(module.blocks, features, hidden)
    if isinstance(module, ConvDropoutNormReLU):
        return _conv_block(module, features, hidden)
    if isinstance(module, RESIDUAL_BLOCKS):
        return _residual_block(module, features, hidden)
    if isinstance(module, POOLS):
        return _keep_visible(module(features), hidden)
    raise UserError(
        f"A sparse encoder cannot be made of this network: its layer {type(module).__name__} has no masked form; "
        "set network.sparse to false"
    )


def _conv_block(block: ConvDropoutNormReLU, features: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Convolution, norm, activation. The norm zeroes hidden positions, so a mask before it would change nothing."""
    normed = False
    for layer in block.all_modules:
        if isinstance(layer, nn.InstanceNorm3d):
            visible = visible_at(hidden, features.shape[2:])
            features = masked_instance_norm(features, visible, layer.weight, layer.bias, layer.eps)
            normed = True
        else:
            features = layer(features)
    return features if normed else _keep_visible(features, hidden)


def _residual_block(block: BasicBlockD | BottleneckD, features: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    if block.apply_se:
        raise UserError("A sparse encoder cannot use squeeze and excitation; set network.sparse to false")
    shortcut = run_masked(block.skip, features, hidden) if isinstance(block.skip, nn.Module) else features
    convs = (block.conv1, block.conv2) if isinstance(block, BasicBlockD) else (block.conv1, block.conv2, block.conv3)
    for conv in convs:
        features = _conv_block(conv, features, hidden)
    if block.apply_stochastic_depth:
        features = block.drop_path(features)
    activation = block.nonlin2 if isinstance(block, BasicBlockD) else block.nonlin3
    result: torch.Tensor = activation(features + shortcut)
    return result


def _keep_visible(features: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    visible = visible_at(hidden, features.shape[2:])
    mask = visible[:, :, :, None, :, None, :, None].to(features.dtype)
    return (as_blocks(features, visible) * mask).reshape(features.shape)
