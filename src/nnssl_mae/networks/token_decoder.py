"""Transformer blocks that fill in dropped tokens; they serve pre-training and are thrown away after it.

Primus turns each token into its own voxels, so what was hidden can only come from other tokens through attention (He et
al. 2022, arXiv 2111.06377, section 3).
"""

from __future__ import annotations

import torch
from dynamic_network_architectures.building_blocks.eva import Eva
from torch import nn

from nnssl_mae.networks.primus import PrimusEncoder


class TokenDecoder(nn.Module):
    """From features (B, C, d, h, w) on the grid of an encoder to features of the same shape, all tokens seeing all."""

    def __init__(self, encoder: PrimusEncoder, blocks: int) -> None:
        """Blocks such as the encoder's, with positions of their own.

        Args:
            encoder: whose width, heads and grid are taken.
            blocks: how many.
        """
        super().__init__()
        attention = encoder.stages[0].attn
        self.transformer = Eva(
            embed_dim=encoder.output_channels[0],
            depth=blocks,
            num_heads=attention.num_heads,
            ref_feat_shape=encoder.grid,
            init_values=encoder.init_values,
            scale_attn_inner=not isinstance(attention.norm, nn.Identity),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """See the class."""
        tokens, _ = self.transformer(features.flatten(2).transpose(1, 2))
        result: torch.Tensor = tokens.transpose(1, 2).reshape(features.shape)
        return result
