"""Masked pre-training of Primus: hidden tokens are dropped, or replaced by a learned one.

Dropping is the masked autoencoder of He et al. 2022 (arXiv 2111.06377), replacing is SimMIM (arXiv 2111.09886).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from nnssl_mae.errors import UserError
from nnssl_mae.networks.primus import PrimusEncoder, Run
from nnssl_mae.sizes import sizes_in_words


def encode_visible(
    encoder: PrimusEncoder,
    volumes: torch.Tensor,
    hidden: torch.Tensor,
    visible_blocks: int | None = None,
    run: Run | None = None,
) -> torch.Tensor:
    """Encodes visible tokens only: the others enter no transformer block.

    Args:
        encoder: of a Primus.
        volumes: (B, input_channels, D, H, W), finite also where hidden.
        hidden: bool (B, 1, d', h', w'), True = hidden. A block is a whole number of tokens.
        visible_blocks: how many blocks of every single sample are visible, where all have as many: then nothing is
            padded and the fastest attention can be used. Without it they are counted, which on a GPU waits for the
            device once, and samples with fewer than the most are padded.
        run: called with a function and its arguments for each block; it may recompute it in the backward pass.

    Returns:
        (B, C, d, h, w) on the grid of tokens, zero at hidden ones.

    Raises:
        UserError: the blocks cut through tokens.
    """
    visible = ~hidden_tokens(encoder, hidden).flatten(1)
    count = None if visible_blocks is None else visible_blocks * (visible.shape[1] // hidden[0].numel())
    kept = _kept(visible, count)
    tokens = kept.take(encoder.as_tokens(encoder.embed(volumes)))
    # A matter of position only, so the same table serves every sample.
    rotations = encoder.rotations()[kept.places].unsqueeze(1)
    features = encoder.transform(tokens, rotations, kept.attention_bias(tokens.dtype), run)
    return encoder.as_map(kept.put_back(features, visible.shape[1]))


def encode_replaced(
    encoder: PrimusEncoder, volumes: torch.Tensor, hidden: torch.Tensor, token: torch.Tensor, run: Run | None = None
) -> torch.Tensor:
    """Encodes all tokens, with one learned embedding in place of every hidden one.

    Args:
        encoder: of a Primus.
        volumes: (B, input_channels, D, H, W), finite also where hidden.
        hidden: bool (B, 1, d', h', w'), True = hidden. A block is a whole number of tokens.
        token: (1, C, 1, 1, 1), put in before the position is added.
        run: as in :func:`encode_visible`.

    Returns:
        (B, C, d, h, w) on the grid of tokens; what stands at hidden ones was inferred from the visible ones.

    Raises:
        UserError: the blocks cut through tokens.
    """
    embedded = encoder.embed(volumes)
    shown = torch.where(hidden_tokens(encoder, hidden), token.to(embedded.dtype), embedded)
    return encoder.as_map(encoder.transform(encoder.as_tokens(shown), encoder.rotations(), run=run))


def hidden_tokens(encoder: PrimusEncoder, hidden: torch.Tensor) -> torch.Tensor:
    """Which tokens are hidden, bool (B, 1, d, h, w), from which blocks are, bool (B, 1, d', h', w').

    Raises:
        UserError: the blocks cut through tokens.
    """
    _check_blocks(encoder, hidden.shape[2:])
    for axis, tokens in enumerate(encoder.grid, start=2):
        hidden = hidden.repeat_interleave(tokens // hidden.shape[axis], dim=axis)
    return hidden


class _Kept(NamedTuple):
    """Which tokens enter the blocks: ``places`` (B, n) in the full sequence, ``real`` (B, n) False for padding."""

    places: torch.Tensor
    real: torch.Tensor
    padded: bool

    def take(self, tokens: torch.Tensor) -> torch.Tensor:
        """From (B, N, C) to (B, n, C). Padding was hidden, and becomes zero: it must never be seen."""
        taken = tokens.gather(1, self._index(tokens))
        return torch.where(self.real.unsqueeze(2), taken, 0.0)

    def put_back(self, tokens: torch.Tensor, length: int) -> torch.Tensor:
        """From (B, n, C) to (B, length, C), zero elsewhere."""
        real = torch.where(self.real.unsqueeze(2), tokens, 0.0)
        full = tokens.new_zeros(tokens.shape[0], length, tokens.shape[2])
        return full.scatter(1, self._index(tokens), real)

    def attention_bias(self, dtype: torch.dtype) -> torch.Tensor | None:
        """(B, 1, 1, n), minus infinity for padding; None where there is none."""
        if not self.padded:
            return None
        # A sample with nothing visible attends to its padding: no attention at all would make NaN of its gradients.
        seen = self.real | ~self.real.any(dim=1, keepdim=True)
        bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, -torch.inf)
        return bias[:, None, None]

    def _index(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.places.unsqueeze(2).expand(-1, -1, tokens.shape[2])


def _kept(visible: torch.Tensor, count: int | None) -> _Kept:
    """The visible tokens of each sample in their order, padded to as many as the fullest sample has.

    Args:
        visible: bool (B, N).
        count: visible tokens of every sample, if that is known.
    """
    padded = False
    if count is None:
        counts = visible.sum(dim=1)
        fewest, most = torch.stack((counts.min(), counts.max())).tolist()
        count, padded = max(most, 1), fewest < max(most, 1)
    places = visible.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
    return _Kept(places, visible.gather(1, places), padded)


def _check_blocks(encoder: PrimusEncoder, blocks: Sequence[int]) -> None:
    if not any(tokens % n for tokens, n in zip(encoder.grid, blocks, strict=True)):
        return
    edges = [size / n for size, n in zip(encoder.input_shape, blocks, strict=True)]
    nearest = [_nearest_block(*axis) for axis in zip(encoder.grid, encoder.token, edges, strict=True)]
    raise UserError(
        f"Blocks of {'x'.join(f'{edge:g}' for edge in edges)} voxels are not a whole number of tokens of "
        f"{sizes_in_words(encoder.token)} voxels; use blocks of {sizes_in_words(nearest)}, the nearest size"
    )


def _nearest_block(tokens: int, edge: int, wish: float) -> int:
    """The multiple of a token's edge that divides an axis of so many tokens and is nearest to the wish, in voxels."""
    sizes = [n * edge for n in range(1, tokens + 1) if tokens % n == 0]
    return sizes[min(range(len(sizes)), key=lambda i: abs(sizes[i] - wish))]
