"""Decoders for pre-training: nnU-Net's own, or one without skip connections that is thrown away afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynamic_network_architectures.building_blocks.helper import get_matching_convtransp
from dynamic_network_architectures.building_blocks.simple_conv_blocks import StackedConvBlocks
from torch import nn


class SkipFreeDecoder(nn.Module):
    """Per level a transposed convolution and some convolutions, from the bottleneck alone (AMAES, arXiv 2408.00640).

    Its parts are called as those of nnU-Net's decoder; ``encoder`` gives sizes and layer options and is not kept.
    """

    def __init__(self, encoder: Any, channels: int, convs_per_stage: Sequence[int]) -> None:
        super().__init__()
        self.deep_supervision = False  # stock training sets it
        transposed = get_matching_convtransp(conv_op=encoder.conv_op)
        widths = list(reversed(encoder.output_channels))
        strides, kernels = list(reversed(encoder.strides)), list(reversed(encoder.kernel_sizes))
        self.transpconvs = nn.ModuleList(
            transposed(below, width, stride, stride, bias=encoder.conv_bias)
            for below, width, stride in zip(widths[:-1], widths[1:], strides[:-1], strict=True)
        )
        options = [encoder.norm_op, encoder.norm_op_kwargs, encoder.dropout_op, encoder.dropout_op_kwargs]
        options += [encoder.nonlin, encoder.nonlin_kwargs]
        self.stages = nn.ModuleList(
            StackedConvBlocks(convs, encoder.conv_op, width, width, kernel, 1, encoder.conv_bias, *options)
            for convs, width, kernel in zip(convs_per_stage, widths[1:], kernels[1:], strict=True)
        )
        self.seg_layers = nn.ModuleList([encoder.conv_op(widths[-1], channels, 1, 1, 0, bias=True)])
