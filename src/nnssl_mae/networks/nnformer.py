"""nnFormer: a U-shaped network of attention within 3D windows, with convolutions between its resolutions.

Zhou et al., "nnFormer: Volumetric Medical Image Segmentation via a 3D Transformer", IEEE TIP 2023, arXiv 2109.03201.
It parts from the released code where that does what the paper does not ask for: no size of a patch is built in,
padding takes no part in attention, and windows are cut and shifted along each axis by itself. Weights of the released
networks need ``legacy_position_index``, and ``num_heads_decoder`` of twice the encoder's.

A map of features is (B, C, D, H, W) between the parts of the network and (B, D, H, W, C), called tokens, inside them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from nnssl_mae.errors import UserError
from nnssl_mae.networks.window_attention import (
    PositionBias,
    SkipAttention,
    SkipBlock,
    TransformerBlock,
    WindowAttention,
)
from nnssl_mae.networks.windows import Shape
from nnssl_mae.sizes import are_multiples, nearest_multiples, sizes_in_words

# Strides of the stem's two strided convolutions for its stride along an axis; a kernel of 3 must not leave gaps.
_STEM_STRIDES = {1: (1, 1), 2: (2, 1), 4: (2, 2)}


class StagePlan(NamedTuple):
    """What one resolution of the network is made of."""

    features: int
    stride: Shape
    """From the stage before; of the first stage, from voxels."""
    blocks: int
    """At least 1."""
    heads: int
    window: Shape
    drop_path: tuple[float, ...]
    """Of each block."""


class NnFormer(nn.Module):
    """Input (B, input_channels, D, H, W), output (B, num_classes, D, H, W), or a list with deep supervision."""

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        n_stages: int,
        features_per_stage: Sequence[int],
        strides: Sequence[Sequence[int]],
        n_blocks_per_stage: Sequence[int],
        num_heads: Sequence[int],
        windows: Sequence[Sequence[int]],
        n_blocks_per_stage_decoder: Sequence[int],
        drop_path: float = 0.0,
        legacy_position_index: bool = False,
        num_heads_decoder: Sequence[int] | None = None,
        deep_supervision: bool = False,
    ) -> None:
        """Lists have a value per stage, from high to low resolution; the decoder's from low to high, as nnU-Net's.

        Args:
            input_channels: of the volumes.
            num_classes: channels of the logits.
            n_stages: at least 2; lists of the decoder have one value less.
            features_per_stage: channels; the first number must be even.
            strides: per axis; the first is the stem's (1, 2 or 4), which makes tokens of voxels.
            n_blocks_per_stage: transformer blocks; every second one shifts its windows.
            num_heads: must divide the features.
            windows: tokens that attention spans along each axis; cut where a map is shorter.
            n_blocks_per_stage_decoder: the first block of a stage is skip attention.
            drop_path: stochastic depth of the last block, rising from 0 in the encoder, and again in the decoder.
            legacy_position_index: number position biases as the released code does, for its weights.
            num_heads_decoder: the encoder's of the same resolution if not given.
            deep_supervision: whether the decoder returns logits at every resolution.

        Raises:
            UserError: the arguments do not fit together.
        """
        super().__init__()
        _check(n_stages, drop_path)
        down = _plan_stages(
            n_stages,
            features_per_stage=features_per_stage,
            strides=strides,
            n_blocks_per_stage=n_blocks_per_stage,
            num_heads=num_heads,
            windows=windows,
            rates=_rising(drop_path, n_blocks_per_stage),
        )
        up = _plan_stages(
            n_stages - 1,
            features_per_stage=features_per_stage[-2::-1],
            strides=strides[-2::-1],
            n_blocks_per_stage_decoder=n_blocks_per_stage_decoder,
            num_heads_decoder=num_heads[-2::-1] if num_heads_decoder is None else num_heads_decoder,
            windows=windows[-2::-1],
            rates=_rising(drop_path, n_blocks_per_stage_decoder),
        )
        self.encoder = NnFormerEncoder(input_channels, down, legacy_position_index)
        self.decoder = NnFormerDecoder(down[-1], up, num_classes, legacy_position_index, deep_supervision)

    def forward(self, volumes: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """The logits of volumes (B, channels, D, H, W), or a list of them, largest first, with deep supervision.

        Raises:
            UserError: an edge of the volumes is not a multiple of ``encoder.divisor``.
        """
        logits: torch.Tensor | list[torch.Tensor] = self.decoder(self.encoder(volumes))
        return logits

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Draws the weights of one module: as PyTorch does by default, which is how nnFormer was trained."""
        if isinstance(module, nn.Linear | nn.Conv3d | nn.ConvTranspose3d | nn.LayerNorm | PositionBias):
            module.reset_parameters()


class NnFormerEncoder(nn.Module):
    """Volumes to normalised features of each resolution, highest first."""

    def __init__(self, input_channels: int, plans: Sequence[StagePlan], legacy_position_index: bool = False) -> None:
        """A stage per plan.

        Raises:
            UserError: the stem's features are odd, or its stride is not 1, 2 or 4.
        """
        super().__init__()
        self.output_channels = [plan.features for plan in plans]
        self.strides = [plan.stride for plan in plans]
        self.stem = Stem(input_channels, plans[0].features, plans[0].stride)
        inputs = [None, *self.output_channels[:-1]]
        self.stages = nn.ModuleList(
            EncoderStage(plan, before, legacy_position_index) for plan, before in zip(plans, inputs, strict=True)
        )

    @property
    def divisor(self) -> Shape:
        """What each edge of the input must be a multiple of, in voxels."""
        depth, height, width = (math.prod(steps) for steps in zip(*self.strides, strict=True))
        return depth, height, width

    def forward(self, volumes: torch.Tensor) -> list[torch.Tensor]:
        """Features (B, C, D, H, W) of each resolution of volumes (B, channels, D, H, W).

        Raises:
            UserError: an edge of the volumes is not a multiple of ``divisor``.
        """
        # A range wants numbers: without it the compiler keeps the second size it meets as symbols, and reasons about
        # the windows of all sizes for minutes.
        _check_size([len(range(edge)) for edge in volumes.shape[2:]], self.divisor)
        tokens = self.stem(volumes)
        features = []
        for stage in self.stages:
            tokens, normed = stage(tokens)
            features.append(normed.movedim(-1, 1))
        return features


class NnFormerDecoder(nn.Module):
    """Features of each resolution to logits at the resolution of the input, and of lower ones for deep supervision."""

    def __init__(
        self,
        lowest: StagePlan,
        plans: Sequence[StagePlan],
        num_classes: int,
        legacy_position_index: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        """From the encoder's ``lowest`` stage through a stage per plan, from low to high resolution."""
        super().__init__()
        self.deep_supervision = deep_supervision
        self.transpconvs = nn.ModuleList(
            Upsampling(below.features, plan.features, below.stride)
            for below, plan in zip([lowest, *plans[:-1]], plans, strict=True)
        )
        self.stages = nn.ModuleList(DecoderStage(plan, legacy_position_index) for plan in plans)
        # Every head enlarges by the stem's stride, so the last has the resolution of the input.
        enlarge = plans[-1].stride
        self.seg_layers = nn.ModuleList(
            nn.ConvTranspose3d(plan.features, num_classes, enlarge, enlarge) for plan in plans
        )

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """Features (B, C, D, H, W), highest resolution first, to logits, or to a list of them, largest first."""
        tokens = features[-1].movedim(1, -1)
        logits: list[torch.Tensor] = []
        levels = zip(self.transpconvs, self.stages, self.seg_layers, reversed(features[:-1]), strict=True)
        for transposed, stage, head, skip in levels:
            tokens = stage(transposed(tokens), skip.movedim(1, -1))
            if self.deep_supervision or head is self.seg_layers[-1]:
                # A copy here is small, and spares everyone who reads the logits a strided walk over full resolution.
                logits.insert(0, head(tokens.movedim(-1, 1).contiguous()))
        return logits if self.deep_supervision else logits[0]


class Stem(nn.Sequential):
    """Overlapping convolutions that make tokens (B, D, H, W, C) of volumes (B, channels, D, H, W).

    Two pairs, the first with half of the features; the first of each pair strides. A GELU and a LayerNorm follow each
    but the last, which only a LayerNorm follows.
    """

    def __init__(self, input_channels: int, features: int, stride: Shape) -> None:
        """From ``input_channels`` to ``features``, ``stride`` voxels a token.

        Raises:
            UserError: ``features`` is odd, or a stride is not 1, 2 or 4.
        """
        if features % 2:
            raise UserError(f"nnFormer's first stage has {features} features and needs an even number")
        if not set(stride) <= set(_STEM_STRIDES):
            raise UserError(f"nnFormer's first stride is {list(stride)}; each of its numbers must be 1, 2 or 4")
        first, second = zip(*(_STEM_STRIDES[edge] for edge in stride), strict=True)
        half = features // 2
        super().__init__(
            StemConvolution(input_channels, half, _shape(first)),
            StemConvolution(half, half, (1, 1, 1)),
            StemConvolution(half, features, _shape(second)),
            StemConvolution(features, features, (1, 1, 1), activate=False),
        )

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        """(B, channels, D, H, W) to (B, D, H, W, C)."""
        return super().forward(volumes).movedim(1, -1)


class StemConvolution(nn.Module):
    """A convolution, GELU, and LayerNorm over channels."""

    def __init__(self, inputs: int, outputs: int, stride: Shape, activate: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, stride, padding=1)
        self.norm = nn.LayerNorm(outputs)
        self.activate = activate

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        """(B, channels, D, H, W) to (B, C, D / stride, H / stride, W / stride)."""
        features = self.conv(volumes)
        features = F.gelu(features) if self.activate else features
        normed: torch.Tensor = self.norm(features.movedim(1, -1))
        return normed.movedim(-1, 1)


class Downsampling(nn.Module):
    """GELU, LayerNorm and a convolution whose kernel overlaps its neighbours' along the axes it strides."""

    def __init__(self, inputs: int, outputs: int, stride: Shape) -> None:
        super().__init__()
        kernel = _shape([1 if step == 1 else 3 for step in stride])
        self.norm = nn.LayerNorm(inputs)
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, padding=(kernel[0] // 2, kernel[1] // 2, kernel[2] // 2))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, D, H, W, inputs) to (B, D / stride, H / stride, W / stride, outputs)."""
        features: torch.Tensor = self.conv(self.norm(F.gelu(tokens)).movedim(-1, 1))
        return features.movedim(1, -1)


class Upsampling(nn.ConvTranspose3d):
    """LayerNorm, then a transposed convolution whose kernel is its stride.

    It is the convolution rather than having one, so that its weight has the name that nnU-Net's decoders give it, off
    whose shape strides are read.
    """

    def __init__(self, inputs: int, outputs: int, stride: Shape) -> None:
        super().__init__(inputs, outputs, stride, stride)
        self.norm = nn.LayerNorm(inputs)

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        """(B, D, H, W, inputs) to (B, D * stride, H * stride, W * stride, outputs)."""
        return super().forward(self.norm(input).movedim(-1, 1), output_size).movedim(1, -1)


class EncoderStage(nn.Module):
    """Downsampling (not in the first stage), transformer blocks, and the norm of what leaves the encoder."""

    def __init__(self, plan: StagePlan, inputs: int | None, legacy_position_index: bool) -> None:
        """``inputs`` are the features of the stage before, None for the first stage."""
        super().__init__()
        self.downsampling = nn.Identity() if inputs is None else Downsampling(inputs, plan.features, plan.stride)
        self.blocks = nn.Sequential(*_blocks(plan, legacy_position_index))
        self.norm = nn.LayerNorm(plan.features)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (B, D, H, W, C) for the next stage, and the same normalised."""
        tokens = self.blocks(self.downsampling(tokens))
        return tokens, self.norm(tokens)


class DecoderStage(nn.Module):
    """A block of skip attention, then usual ones."""

    def __init__(self, plan: StagePlan, legacy_position_index: bool) -> None:
        super().__init__()
        attention = SkipAttention(plan.features, plan.heads, plan.window, legacy_position_index=legacy_position_index)
        self.skip_block = SkipBlock(attention, plan.features, plan.drop_path[0])
        self.blocks = nn.Sequential(*_blocks(plan, legacy_position_index, first=1))

    def forward(self, tokens: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """The decoder's tokens and the encoder's, both (B, D, H, W, C), to (B, D, H, W, C)."""
        result: torch.Tensor = self.blocks(self.skip_block(tokens, skip))
        return result


def _plan_stages(stages: int, **values: Sequence) -> list[StagePlan]:
    """A plan per stage; ``values`` are in the order of ``StagePlan``, by the names that the user gave them."""
    for name, per_stage in values.items():
        if len(per_stage) != stages:
            raise UserError(f"{name} has {len(per_stage)} values and needs {stages}: {list(per_stage)}")
        if name.startswith("n_blocks") and min(per_stage) < 1:
            raise UserError(f"{name} is {list(per_stage)}; give every stage at least one block")
    return [
        StagePlan(features, _shape(stride), blocks, heads, _shape(window), rates)
        for features, stride, blocks, heads, window, rates in zip(*values.values(), strict=True)
    ]


def _blocks(plan: StagePlan, legacy_position_index: bool, first: int = 0) -> list[TransformerBlock]:
    """The blocks of a stage from number ``first`` on; every second one shifts its windows."""
    return [
        TransformerBlock(
            WindowAttention(plan.features, plan.heads, plan.window, bool(number % 2), legacy_position_index),
            plan.features,
            plan.drop_path[number],
        )
        for number in range(first, plan.blocks)
    ]


def _rising(last: float, blocks_per_stage: Sequence[int]) -> list[tuple[float, ...]]:
    """Rates of all blocks in order, rising from 0 to ``last``, by stage."""
    total = sum(blocks_per_stage)
    rates = iter([last * number / max(total - 1, 1) for number in range(total)])
    return [tuple(next(rates) for _ in range(blocks)) for blocks in blocks_per_stage]


def _shape(edges: Sequence[int]) -> Shape:
    if len(edges) != 3 or min(edges) < 1:
        raise UserError(f"nnFormer's strides and windows are three positive numbers each, and {list(edges)} is not")
    depth, height, width = edges
    return depth, height, width


def _check(n_stages: int, drop_path: float) -> None:
    if n_stages < 2:
        raise UserError(f"n_stages is {n_stages}, and nnFormer needs at least 2; add one with a smaller resolution")
    if not 0 <= drop_path < 1:
        raise UserError(f"drop_path is {drop_path}; give a probability from 0 to below 1")


def _check_size(size: Sequence[int], divisor: Shape) -> None:
    if not are_multiples(size, divisor):
        raise UserError(
            f"A volume of {sizes_in_words(size)} voxels does not fit this network, which needs multiples of "
            f"{sizes_in_words(divisor)}; the nearest that fits is {sizes_in_words(nearest_multiples(size, divisor))}"
        )
