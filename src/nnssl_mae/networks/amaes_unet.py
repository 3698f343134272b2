"""The U-Net of AMAES (Munk et al. 2024, arXiv 2408.00640): max pooling where nnU-Net's own U-Net strides.

Two convolutions a level, transposed convolutions upwards. nnU-Net finds it by the name in the plans, so a model with
it predicts only where this package is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import nn


class AmaesUNet(nn.Module):
    """Input (B, input_channels, D, H, W), output (B, num_classes, D, H, W). Arguments are those of PlainConvUNet."""

    def __init__(
        self,
        input_channels: int,
        n_stages: int,
        features_per_stage: Sequence[int],
        conv_op: type[nn.Module],
        kernel_sizes: Any,
        strides: Any,
        n_conv_per_stage: Any,
        num_classes: int,
        n_conv_per_stage_decoder: Any,
        deep_supervision: bool = False,
        **layer_options: Any,
    ) -> None:
        super().__init__()
        self.encoder = PlainConvEncoder(
            input_channels, n_stages, features_per_stage, conv_op, kernel_sizes, strides, n_conv_per_stage,
            return_skips=True, pool="max", **layer_options,
        )  # fmt: skip
        self.decoder = UNetDecoder(self.encoder, num_classes, n_conv_per_stage_decoder, deep_supervision)

    def forward(self, volumes: torch.Tensor) -> Any:
        """The segmentation logits, or a list of them, largest first, with deep supervision."""
        return self.decoder(self.encoder(volumes))

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """nnU-Net's measure of memory: values of all feature maps for one patch."""
        size: np.int64 = self.encoder.compute_conv_feature_map_size(input_size)
        return size + self.decoder.compute_conv_feature_map_size(input_size)

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """As nnU-Net initialises its U-Nets."""
        InitWeights_He(1e-2)(module)
