"""Running the high resolutions of a sparse encoder on visible blocks alone.

Features of hidden positions are zero and nobody asks for them, so a stage needs to be computed in visible blocks only,
and each block needs of its neighbours no more than half a kernel, which is zero where they are hidden. The result is
that of sparse.py, output and gradients, for the share of the work that is visible. As there, stock modules are walked
through and nothing is remembered between calls. Where blocks become so small that windows around them are mostly
neighbours, or a stride no longer divides them, features are laid out in full and sparse.py takes over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.residual import BasicBlockD, BottleneckD, StackedResidualBlocks
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU, StackedConvBlocks
from torch import nn

from nnssl_mae.networks.packed_blocks import Edges, Packing, triple
from nnssl_mae.networks.packed_layers import packed_convolution, packed_instance_norm
from nnssl_mae.networks.sparse import POOLS, RESIDUAL_BLOCKS, run_masked

MOST_HALO = 8.0
"""How many times larger than its block a window may be: blocks of 2^3 voxels (8) are packed, single voxels (27) not.
Gathering costs memory traffic, which many channels make cheap beside the convolution that hidden blocks save."""
_STACKS = (StackedConvBlocks, StackedResidualBlocks)
_ACTIVATIONS = nn.LeakyReLU.__module__  # one value at a time, zero for zero; dropout is not among them


def encode_packed(
    stages: Sequence[nn.Module],
    shown: torch.Tensor,
    hidden: torch.Tensor,
    visible_blocks: int | None = None,
    most_halo: float = MOST_HALO,
    run: Callable[..., torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """Features of each stage, as ``run_masked`` gives them one after the other.

    Args:
        stages: of a planned encoder, the stem first if it has one.
        shown: (B, C, D, H, W), zero in hidden blocks, which are looked at only if no stage can be packed.
        hidden: bool (B, 1, d, h, w), True = hidden.
        visible_blocks: of the whole batch, or more; None counts them, which on a GPU waits for the device once.
        most_halo: stages whose windows would be more than so many times larger than their blocks are not packed.
        run: called with a function and its arguments for each stage, to compute it in some other way; it may
            recompute it in the backward pass.

    Returns:
        a tensor (B, C, D, H, W) of each stage, zero at hidden positions.
    """
    run = run or _call
    count = packed_stages(stages, shown.shape[2:], hidden.shape[2:], most_halo)
    features: list[torch.Tensor] = []
    if count:
        packing = Packing(hidden, visible_blocks)
        packed = packing.pack(shown)
        for stage in stages[:count]:
            packed = run(run_packed, stage, packed, packing)
            features.append(packing.unpack(packed))
    x = features[-1] if count else shown
    for stage in stages[count:]:
        x = run(run_masked, stage, x, hidden)
        features.append(x)
    return features


def packed_stages(
    stages: Sequence[nn.Module], patch_size: Sequence[int], grid: Sequence[int], most_halo: float = MOST_HALO
) -> int:
    """How many of the stages, from the first, can be computed on packed blocks and gain by it.

    Args:
        stages: of a planned encoder, the stem first if it has one.
        patch_size: voxels, (D, H, W).
        grid: blocks of the mask along each axis.
        most_halo: see ``encode_packed``.
    """
    if any(size % blocks for size, blocks in zip(patch_size, grid, strict=True)):
        return 0
    a, b, c = (size // blocks for size, blocks in zip(patch_size, grid, strict=True))
    edges: Edges | None = (a, b, c)
    for count, stage in enumerate(stages):
        edges = _edges_after(stage, edges, most_halo) if edges else None
        if edges is None:
            return count
    return len(stages)


def run_packed(module: nn.Module, features: torch.Tensor, packing: Packing) -> torch.Tensor:
    """The output of a stage or block of a planned encoder that ``packed_stages`` counts in.

    Args:
        module: made of nnU-Net's blocks, pools and ``nn.Sequential``.
        features: packed, (M, C, e0, e1, e2).
        packing: of the batch.
    """
    if isinstance(module, nn.AvgPool3d):
        return _average(features, triple(module.kernel_size))
    if isinstance(module, nn.MaxPool3d):
        pooled: torch.Tensor = module(features)
        return pooled
    if isinstance(module, ConvDropoutNormReLU):
        return _conv_block(module, features, packing)
    if isinstance(module, RESIDUAL_BLOCKS):
        return _residual_block(module, features, packing)
    parts = _parts(module)
    if parts is None:
        raise TypeError(f"{type(module).__name__} has no packed form")
    for part in parts:
        features = run_packed(part, features, packing)
    return features


def _conv_block(block: ConvDropoutNormReLU, features: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Convolution, norm, activation. The norm zeroes the first slot, so a mask before it would change nothing."""
    normed = False
    for layer in block.all_modules:
        if isinstance(layer, nn.Conv3d):
            features = packed_convolution(layer, features, packing)
        elif isinstance(layer, nn.InstanceNorm3d):
            features = packed_instance_norm(features, packing, layer.weight, layer.bias, layer.eps)
            normed = True
        else:
            features = layer(features)
    return features if normed else features * packing.taken[:, None, None, None, None]


def _residual_block(block: BasicBlockD | BottleneckD, features: torch.Tensor, packing: Packing) -> torch.Tensor:
    shortcut = run_packed(block.skip, features, packing) if isinstance(block.skip, nn.Module) else features
    for convolution in _convolutions(block):
        features = _conv_block(convolution, features, packing)
    if block.apply_stochastic_depth:
        # A draw for each sample, the same as without packing, then for each of its slots.
        kept = block.drop_path(features.new_ones(packing.samples, 1, 1, 1, 1))
        of_slots = (packing.members * kept[:, :, 0, 0, 0]).sum(dim=0)
        features = features * of_slots.to(features.dtype)[:, None, None, None, None]
    activation = block.nonlin2 if isinstance(block, BasicBlockD) else block.nonlin3
    result: torch.Tensor = activation(features + shortcut)
    return result


def _average(features: torch.Tensor, size: Edges) -> torch.Tensor:
    """Average pooling; torch's own leaves the channels-last layout."""
    x = features.permute(0, 2, 3, 4, 1)
    split = [part for edge, step in zip(x.shape[1:4], size, strict=True) for part in (edge // step, step)]
    return x.reshape(x.shape[0], *split, x.shape[-1]).mean(dim=(2, 4, 6)).permute(0, 4, 1, 2, 3)


def _edges_after(module: nn.Module, edges: Edges, most_halo: float) -> Edges | None:
    """Edges of the blocks behind a module, or None if it cannot be packed or would not pay."""
    if isinstance(module, nn.Conv3d):
        return _after_convolution(module, edges, most_halo)
    if isinstance(module, POOLS):
        return _after_pool(module, edges)
    if isinstance(module, RESIDUAL_BLOCKS):
        after = None if module.apply_se else _edges_after_all(_convolutions(module), edges, most_halo)
        beside = _edges_after(module.skip, edges, most_halo) if isinstance(module.skip, nn.Module) else edges
        return after if after == beside else None
    if isinstance(module, nn.InstanceNorm3d) or type(module).__module__ == _ACTIVATIONS:
        return edges
    parts = module.all_modules if isinstance(module, ConvDropoutNormReLU) else _parts(module)
    return None if parts is None else _edges_after_all(parts, edges, most_halo)


def _edges_after_all(modules: Iterable[nn.Module], edges: Edges, most_halo: float) -> Edges | None:
    after: Edges | None = edges
    for module in modules:
        after = _edges_after(module, after, most_halo) if after else None
    return after


def _after_convolution(convolution: nn.Conv3d, edges: Edges, most_halo: float) -> Edges | None:
    kernel, after = triple(convolution.kernel_size), _divided(edges, convolution.stride)
    halves = [size // 2 for size in kernel]
    plain = all(size % 2 for size in kernel) and list(triple(convolution.padding)) == halves
    plain &= triple(convolution.dilation) == (1, 1, 1) and convolution.groups == 1
    plain &= convolution.padding_mode == "zeros"
    if not plain or after is None or any(edge < half for edge, half in zip(after, halves, strict=True)):
        return None
    halo = math.prod(
        [(edge + size - 1) / edge for edge, size in zip(after, kernel, strict=True)]
    )  # a list: torch.compile
    return after if halo <= most_halo else None


def _after_pool(pool: nn.AvgPool3d | nn.MaxPool3d, edges: Edges) -> Edges | None:
    within = triple(pool.kernel_size) == triple(pool.stride) and triple(pool.padding) == (0, 0, 0)
    return _divided(edges, pool.stride) if within else None


def _divided(edges: Edges, stride: Any) -> Edges | None:
    steps = triple(stride)
    if any(edge % step for edge, step in zip(edges, steps, strict=True)):
        return None
    a, b, c = (edge // step for edge, step in zip(edges, steps, strict=True))
    return a, b, c


def _parts(module: nn.Module) -> Iterable[nn.Module] | None:
    """What a module runs one after the other, or None if that is not all it does."""
    if isinstance(module, nn.Sequential):
        return module
    if isinstance(module, _STACKS):
        inside: nn.Sequential = module.convs if isinstance(module, StackedConvBlocks) else module.blocks
        return inside
    return None


def _convolutions(block: BasicBlockD | BottleneckD) -> list[ConvDropoutNormReLU]:
    return [block.conv1, block.conv2] if isinstance(block, BasicBlockD) else [block.conv1, block.conv2, block.conv3]


def _call(function: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
    return function(*arguments)
