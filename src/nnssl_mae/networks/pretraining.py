"""The network that is pre-trained: a planned encoder, a decoder, and between them what a recipe asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import nn
from torch.utils.checkpoint import checkpoint

from nnssl_mae.masking import as_blocks, hide
from nnssl_mae.networks.decoders import SkipFreeDecoder
from nnssl_mae.networks.heads import freeze_unused_heads
from nnssl_mae.networks.packed import encode_packed
from nnssl_mae.networks.planned import planned_network
from nnssl_mae.networks.sparse import run_masked, visible_at
from nnssl_mae.recipes.pretraining import NetworkRecipe

_TOKEN_STD = 0.02


def pretraining_network(
    architecture: Mapping[str, Any], channels: int, network: NetworkRecipe, hidden_value: Literal["zero", "token"]
) -> PretrainingNetwork:
    """Builds and initialises the network of a recipe.

    Args:
        architecture: as in nnU-Net's plans.
        channels: of the volumes, in and out.
        network: decoder, skips, sparse encoder, tokens, densification; sizes stand in ``architecture``.
        hidden_value: what stands in hidden voxels of the input.
    """
    stock: Any = planned_network(architecture, channels, channels)
    encoder = stock.encoder
    if network.skips:
        freeze_unused_heads(stock)
        kind = TransformerPretrainingNetwork if network.is_transformer else PretrainingNetwork
        return kind(encoder, stock.decoder, channels, network, hidden_value)
    convs = list(architecture["arch_kwargs"]["n_conv_per_stage_decoder"])
    decoder = SkipFreeDecoder(encoder, channels, [1] * len(convs) if network.decoder == "light" else convs)
    decoder.apply(InitWeights_He(1e-2))
    return PretrainingNetwork(encoder, decoder, channels, network, hidden_value)


def visible_blocks(network: NetworkRecipe, hidden: torch.Tensor) -> int | None:
    """A number that spares a network a question to the device, from a mask (B, 1, d, h, w) that lies on the CPU.

    A packed encoder asks for the visible blocks of the whole batch, one that drops tokens for those of each sample if
    all have as many. None for others.
    """
    if network.sparse == "packed":
        return int((~hidden).sum())
    if network.drops_tokens:
        counts = (~hidden).flatten(1).sum(dim=1).tolist()
        return int(counts[0]) if len(set(counts)) == 1 else None
    return None


class PretrainingNetwork(nn.Module):
    """Hides blocks of volumes and reconstructs them; it never sees what it hides.

    ``encoder.*`` and ``decoder.*`` have nnU-Net's names. ``mask_tokens``, ``densifiers`` and ``hidden_value`` exist
    where the recipe uses them, are named after the resolution (0 = highest), and are not transferred.
    """

    def __init__(
        self,
        encoder: Any,
        decoder: Any,
        channels: int,
        network: NetworkRecipe,
        hidden_value: Literal["zero", "token"],
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.sparse, self.skips = network.sparse, network.skips
        self.checkpoint_activations = network.checkpoint_activations
        widths: list[int] = list(encoder.output_channels)
        used = range(len(widths)) if network.skips else [len(widths) - 1]
        if network.mask_tokens:
            self.mask_tokens = nn.ParameterDict(
                {str(level): torch.randn(1, widths[level], 1, 1, 1) * _TOKEN_STD for level in used}
            )
        if network.densify:
            self.densifiers = nn.ModuleDict(
                {str(level): nn.Conv3d(widths[level], widths[level], 3, padding=1) for level in used if level > 0}
            )
            self.densifiers.apply(InitWeights_He(1e-2))
        if hidden_value == "token":
            self.hidden_value = nn.Parameter(torch.zeros(1, channels, 1, 1, 1))

    def forward(self, volumes: torch.Tensor, hidden: torch.Tensor, visible_blocks: int | None = None) -> torch.Tensor:
        """Reconstructs volumes.

        Args:
            volumes: (B, C, D, H, W).
            hidden: bool (B, 1, d, h, w), True = hidden.
            visible_blocks: what :func:`visible_blocks` says of ``hidden``; networks that use it wait for the device
                without it.

        Returns:
            (B, C, D, H, W).
        """
        features = self.encode(self.hide(volumes, hidden), hidden, visible_blocks)
        return self.decode(self.fill(features, hidden))

    def hide(self, volumes: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """The input of the first layer: zero, or the learned value, in hidden blocks."""
        shown = hide(volumes, hidden)
        if hasattr(self, "hidden_value"):
            shown = _add_where(shown, hidden, self.hidden_value)
        return shown

    def encode(
        self, shown: torch.Tensor, hidden: torch.Tensor, visible_blocks: int | None = None
    ) -> list[torch.Tensor]:
        """Features of each resolution, highest first; zero at hidden positions if the encoder is sparse."""
        stages = [*([self.encoder.stem] if _has_stem(self.encoder) else []), *self.encoder.stages]
        features, x = [], shown
        if self.sparse == "packed":
            features = encode_packed(stages, shown, hidden, visible_blocks, run=self._run)
        else:
            for stage in stages:
                x = self._run(run_masked, stage, x, hidden) if self.sparse else self._run(stage, x)
                features.append(x)
        return features[1:] if _has_stem(self.encoder) else features

    def fill(self, features: list[torch.Tensor], hidden: torch.Tensor) -> list[torch.Tensor]:
        """Puts mask tokens into hidden positions and densifies, where the recipe says so."""
        filled = list(features)
        if hasattr(self, "mask_tokens"):
            for level, token in self.mask_tokens.items():
                x = filled[int(level)]
                # Hidden positions of sparse features are zero, so adding is filling.
                filled[int(level)] = _add_where(x, ~visible_at(hidden, x.shape[2:]), token)
        if hasattr(self, "densifiers"):
            for level, convolution in self.densifiers.items():
                filled[int(level)] = convolution(filled[int(level)])
        return filled

    def decode(self, features: list[torch.Tensor]) -> torch.Tensor:
        """From features of each resolution, highest first, to a reconstruction."""
        x = features[-1]
        levels = zip(self.decoder.transpconvs, self.decoder.stages, reversed(features[:-1]), strict=True)
        for transposed, stage, skip in levels:
            x = self._run(_upwards, transposed, stage, x, skip if self.skips else None)
        reconstruction: torch.Tensor = self.decoder.seg_layers[-1](x)
        return reconstruction

    def _run(self, function: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
        """Calls, keeping the activations inside or recomputing them in the backward pass."""
        if self.checkpoint_activations and self.training:
            result: torch.Tensor = checkpoint(function, *arguments, use_reentrant=False)
            return result
        return function(*arguments)


class TransformerPretrainingNetwork(PretrainingNetwork):
    """The same with a transformer, whose encoder and decoder are called as a whole.

    Voxels are hidden before the stem. Where the recipe says so, the tokens of hidden blocks are dropped, and a learned
    one takes their place before the blocks of ``token_decoder`` (He et al. 2022, arXiv 2111.06377), or it replaces
    them before the first block of the encoder (SimMIM, arXiv 2111.09886).
    """

    def __init__(self, encoder: Any, decoder: Any, channels: int, network: NetworkRecipe, *arguments: Any) -> None:
        super().__init__(encoder, decoder, channels, network, *arguments)
        self.hidden_tokens = network.transformer.hidden_tokens
        if self.hidden_tokens is not None:
            token = torch.randn(1, encoder.output_channels[0], 1, 1, 1) * _TOKEN_STD
            self.mask_tokens = nn.ParameterDict({"0": token})
        if self.hidden_tokens == "drop":
            # Primus needs timm, which takes two seconds to import.
            from nnssl_mae.networks.token_decoder import TokenDecoder

            self.token_decoder = TokenDecoder(encoder, network.transformer.decoder_blocks)

    def encode(
        self, shown: torch.Tensor, hidden: torch.Tensor, visible_blocks: int | None = None
    ) -> list[torch.Tensor]:
        """Features of each resolution, highest first; zero at dropped tokens."""
        if self.hidden_tokens is None:
            features: list[torch.Tensor] = self.encoder(shown)
            return features
        from nnssl_mae.networks.primus_tokens import encode_replaced, encode_visible

        if self.hidden_tokens == "drop":
            return [encode_visible(self.encoder, shown, hidden, visible_blocks)]
        return [encode_replaced(self.encoder, shown, hidden, self.mask_tokens["0"])]

    def fill(self, features: list[torch.Tensor], hidden: torch.Tensor) -> list[torch.Tensor]:
        """Puts the learned token where tokens were dropped, and lets the blocks of the token decoder see all."""
        if self.hidden_tokens != "drop":
            return features
        (filled,) = super().fill(features, hidden)
        return [self.token_decoder(filled)]

    def decode(self, features: list[torch.Tensor]) -> torch.Tensor:
        """From features of each resolution, highest first, to a reconstruction."""
        reconstruction: torch.Tensor = self.decoder(features)
        return reconstruction


def _has_stem(encoder: Any) -> bool:
    return getattr(encoder, "stem", None) is not None


def _add_where(features: torch.Tensor, where: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """Adds a vector (1, C, 1, 1, 1) to features (B, C, D, H, W) in the blocks of ``where``, bool (B, 1, d, h, w)."""
    added = (token * where).to(features.dtype)[:, :, :, None, :, None, :, None]
    return (as_blocks(features, where) + added).reshape(features.shape)


def _upwards(transposed: nn.Module, stage: nn.Module, x: torch.Tensor, skip: torch.Tensor | None) -> torch.Tensor:
    x = transposed(x)
    result: torch.Tensor = stage(x if skip is None else torch.cat((x, skip), dim=1))
    return result
