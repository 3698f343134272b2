"""Attention within windows of a 3D map, and the transformer blocks built on it.

Windows that alternate with shifted ones are of Swin (Liu et al. 2021, arXiv 2103.14030), attention from a decoder's
features to the encoder's of nnFormer (Zhou et al. 2023, arXiv 2109.03201). A map of tokens is (B, D, H, W, C).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from dynamic_network_architectures.building_blocks.regularization import DropPath
from torch import nn
from torch.nn import functional as F

from nnssl_mae.errors import UserError
from nnssl_mae.networks.windows import (
    Shape,
    Windows,
    attention_groups,
    bias_index,
    legacy_index_fits,
    table_entries,
    windows_of,
)

_MLP_RATIO = 4
_TABLE_SPREAD = 0.02


class PositionBias(nn.Module):
    """A learned number per head and offset between two tokens, added to what their attention is made of."""

    def __init__(self, window: Shape, heads: int, legacy: bool = False) -> None:
        """For windows up to ``window``; ``legacy`` as in ``bias_index``.

        Raises:
            UserError: the old numbering does not fit this window.
        """
        super().__init__()
        if legacy and not legacy_index_fits(window):
            raise UserError(
                f"legacy_position_index does not fit windows of {list(window)}, for which the released nnFormer has "
                "too few entries; leave it out, or take windows of equal edges"
            )
        self.window, self.legacy = window, legacy
        self.table = nn.Parameter(torch.empty(table_entries(window), heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws small numbers, as Swin does."""
        nn.init.trunc_normal_(self.table, std=_TABLE_SPREAD)

    def forward(self, window: Shape) -> torch.Tensor:
        """The bias (heads, tokens of the query, tokens of the key) in ``window``, which may be a cut one."""
        index = bias_index(self.window, window, self.legacy, self.table.device)
        return self.table[index].permute(2, 0, 1)


class _HeadsInWindows(nn.Module):
    """What both kinds of attention share: heads, bias, the last projection."""

    def __init__(self, features: int, heads: int, window: Shape, shifted: bool, legacy_position_index: bool) -> None:
        super().__init__()
        if heads < 1 or features % heads:
            raise UserError(f"{heads} heads do not divide {features} features; choose num_heads that does")
        self.heads, self.window, self.shifted = heads, window, shifted
        self.position_bias = PositionBias(window, heads, legacy_position_index)
        self.projection = nn.Linear(features, features)

    def windows(self, tokens: torch.Tensor) -> Windows:
        """The windows of a map (B, D, H, W, C)."""
        depth, height, width = tokens.shape[1:4]
        return windows_of((depth, height, width), self.window, self.shifted)

    def split(self, tokens: torch.Tensor, parts: int) -> Sequence[torch.Tensor]:
        """Tokens (N, tokens, parts * C) as ``parts`` tensors (N, heads, tokens, C / heads)."""
        return tokens.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def attend(self, windows: Windows, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Attention of tensors (B * windows, heads, tokens, C / heads), as a map (B, D, H, W, C)."""
        queries = queries.to(keys.dtype)  # under autocast they may come from a norm, not from a projection
        bias = self._bias(windows, queries)
        seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        return windows.merge(self.projection(seen.transpose(1, 2).flatten(2)))

    def _bias(self, windows: Windows, queries: torch.Tensor) -> torch.Tensor:
        """The position bias, minus infinity between tokens of different groups, for every query."""
        bias = self.position_bias(windows.window).to(queries.dtype)[None]
        if windows.has_strangers:
            groups = attention_groups(windows, queries.device)
            together = groups[:, None, :, None] == groups[:, None, None, :]
            bias = torch.where(together, bias, -torch.inf)
        batch = queries.shape[0] // bias.shape[0]
        return (
            bias.expand(batch, *bias.shape).flatten(0, 1) if windows.has_strangers else bias.expand(batch, -1, -1, -1)
        )


class WindowAttention(_HeadsInWindows):
    """Tokens of a map attend to the tokens of their window."""

    def __init__(
        self, features: int, heads: int, window: Shape, shifted: bool = False, legacy_position_index: bool = False
    ) -> None:
        """For maps of ``features`` channels.

        Args:
            features: channels C.
            heads: must divide ``features``.
            window: edges in tokens; cut to maps that are shorter.
            shifted: move the windows by half of their length.
            legacy_position_index: see ``bias_index``.

        Raises:
            UserError: ``heads`` does not divide ``features``.
        """
        super().__init__(features, heads, window, shifted, legacy_position_index)
        self.queries_keys_values = nn.Linear(features, 3 * features)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, D, H, W, C) to (B, D, H, W, C)."""
        windows = self.windows(tokens)
        return self.attend(windows, *self.split(self.queries_keys_values(windows.partition(tokens)), 3))


class SkipAttention(_HeadsInWindows):
    """Tokens of a decoder attend to the encoder's tokens of the same window.

    As in the released code, the decoder's features are the queries as they are, without a projection.
    """

    def __init__(
        self, features: int, heads: int, window: Shape, shifted: bool = False, legacy_position_index: bool = False
    ) -> None:
        """Arguments and errors as for ``WindowAttention``."""
        super().__init__(features, heads, window, shifted, legacy_position_index)
        self.keys_values = nn.Linear(features, 2 * features)

    def forward(self, tokens: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """The decoder's tokens and the encoder's, both (B, D, H, W, C), to (B, D, H, W, C)."""
        windows = self.windows(tokens)
        (queries,) = self.split(windows.partition(tokens), 1)
        return self.attend(windows, queries, *self.split(self.keys_values(windows.partition(skip)), 2))


class TransformerBlock(nn.Module):
    """Window attention, then two linear layers on each token, each after a LayerNorm and added to its input."""

    def __init__(self, attention: WindowAttention, features: int, drop_path: float = 0.0) -> None:
        """``drop_path`` is the probability with which a sample skips a part of the block in training."""
        super().__init__()
        self.attention_norm = nn.LayerNorm(features)
        self.attention = attention
        self.mlp_norm = nn.LayerNorm(features)
        self.mlp = _two_layers(features)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, D, H, W, C) to (B, D, H, W, C)."""
        tokens = tokens + self.drop_path(self.attention(self.attention_norm(tokens)))
        return tokens + self.drop_path(self.mlp(self.mlp_norm(tokens)))


class SkipBlock(nn.Module):
    """A transformer block that starts from a decoder's and an encoder's features: their sum, plus skip attention."""

    def __init__(self, attention: SkipAttention, features: int, drop_path: float = 0.0) -> None:
        """As ``TransformerBlock``."""
        super().__init__()
        self.attention_norm = nn.LayerNorm(features)  # of both, as in the released code
        self.attention = attention
        self.mlp_norm = nn.LayerNorm(features)
        self.mlp = _two_layers(features)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """The decoder's tokens and the encoder's, both (B, D, H, W, C), to (B, D, H, W, C)."""
        attended = self.attention(self.attention_norm(tokens), self.attention_norm(skip))
        tokens = tokens + skip + self.drop_path(attended)
        return tokens + self.drop_path(self.mlp(self.mlp_norm(tokens)))


def _two_layers(features: int) -> nn.Sequential:
    hidden = _MLP_RATIO * features
    return nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, features))
