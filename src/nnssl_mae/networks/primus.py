"""Primus (Wald et al. 2025, arXiv 2503.01835): a plain 3D vision transformer between two small projections.

The layers are those of ``dynamic_network_architectures``' own Primus, under the names that the rest of this project
knows from U-Nets. With the same weights both compute the same (``checkpoints/primus_names.py`` renames them).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from dynamic_network_architectures.building_blocks.patch_encode_decode import LayerNormNd
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import nn

from nnssl_mae.errors import UserError
from nnssl_mae.sizes import are_multiples, nearest_multiples, sizes_in_words

_STD = 0.02  # of linear layers and positions, as the stock transformer draws them
_REGISTER_STD = 1e-6
_FEATURES_PER_ROTATION = 6  # a sine and a cosine for each of three axes

Run = Callable[..., torch.Tensor]


class PrimusSize(NamedTuple):
    """One of the published sizes."""

    depth: int
    heads: int
    width: int


PRESETS: Mapping[str, PrimusSize] = MappingProxyType(
    {
        "S": PrimusSize(depth=12, heads=6, width=396),
        "B": PrimusSize(depth=12, heads=12, width=792),
        "M": PrimusSize(depth=16, heads=12, width=864),
        "L": PrimusSize(depth=24, heads=16, width=1056),
    }
)


class PrimusNet(nn.Module):
    """Input (B, input_channels, D, H, W) of one size, output (B, num_classes, D, H, W).

    With deep supervision the output is a list of that one tensor, as there is only one resolution. nnU-Net finds the
    class by the name in the plans, so a model with it predicts only where this package is installed. Elsewhere nnU-Net
    looks for the class's own name among its networks: it is none of those there.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        n_stages: int,
        features_per_stage: Sequence[int],
        strides: Sequence[Sequence[int]],
        n_blocks_per_stage: Sequence[int],
        num_heads: Sequence[int],
        input_shape: Sequence[int],
        drop_path: float = 0.0,
        init_values: float | None = None,
        scale_attn_inner: bool = False,
        num_register_tokens: int = 0,
        deep_supervision: bool = False,
    ) -> None:
        """Builds the network with initial weights drawn as the stock network draws them.

        Args:
            input_channels: of the volumes.
            num_classes: channels of the output; the widths of the decoder depend on it.
            n_stages: 1. The lists that follow have one entry.
            features_per_stage: width of a token.
            strides: edges of a token in voxels, powers of two.
            n_blocks_per_stage: number of transformer blocks.
            num_heads: of the attention; each gets a multiple of 6 features.
            input_shape: (D, H, W) of the volumes in voxels, a multiple of the token: positions are learned.
            drop_path: chance that a sample skips the last block's branches; it grows linearly from 0 at the first.
            init_values: initial layer scale, None for a network without it. nnU-Net's trainers take 0.1.
            scale_attn_inner: normalise the output of the attention heads; nnU-Net's trainers do.
            num_register_tokens: learned tokens beside those of the volume.
            deep_supervision: return a list of one tensor.

        Raises:
            UserError: sizes that do not fit each other.
        """
        super().__init__()
        sizes = (features_per_stage, strides, n_blocks_per_stage, num_heads)
        if n_stages != 1 or any(len(size) != 1 for size in sizes):
            raise UserError(
                f"Primus has one stage and its plans describe {max(n_stages, *map(len, sizes))}; set n_stages to 1 and "
                "give one entry for features, strides, blocks and heads"
            )
        token = _checked_token(strides[0], input_shape)
        _check_width(features_per_stage[0], num_heads[0])
        stock: Any = _stock_class()(
            input_channels,
            features_per_stage[0],
            token,
            num_classes,
            n_blocks_per_stage[0],
            num_heads[0],
            tuple(input_shape),
            num_register_tokens=num_register_tokens,
            drop_path_rate=drop_path,
            init_values=init_values,
            scale_attn_inner=scale_attn_inner,
        )
        self.encoder = PrimusEncoder(stock, token, input_shape, init_values)
        self.decoder = PrimusDecoder(stock.up_projection.decode, deep_supervision)

    def forward(self, volumes: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """The logits (B, num_classes, D, H, W), in a list if deep supervision is on."""
        logits: torch.Tensor | list[torch.Tensor] = self.decoder(self.encoder(volumes))
        return logits

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Draws the weights of one module as the stock network does; of a whole network with ``network.apply``."""
        InitWeights_He(1e-2)(module)
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm | LayerNormNd):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, PrimusEncoder):
            module.initialize_own()


class PrimusEncoder(nn.Module):
    """From volumes to one feature map: tokens, positions, transformer blocks and a norm.

    ``register_tokens`` and ``register_position``, of which the sum enters the blocks, exist only if there are any;
    they are two because the stock network has two. Positions of the tokens also enter every attention as rotations.
    """

    register_tokens: nn.Parameter | None
    register_position: nn.Parameter | None

    def __init__(
        self, stock: Any, token: tuple[int, int, int], input_shape: Sequence[int], init_values: float | None
    ) -> None:
        """Takes the layers of a stock Primus.

        Args:
            stock: a network of ``dynamic_network_architectures``.
            token: edges in voxels.
            input_shape: (D, H, W) in voxels.
            init_values: initial layer scale.
        """
        super().__init__()
        self.token = token
        self.input_shape = tuple(int(size) for size in input_shape)
        self.init_values = init_values
        d, h, w = (size // edge for size, edge in zip(self.input_shape, token, strict=True))
        self.grid = (d, h, w)
        self.output_channels = [int(stock.embed_dim)]
        self.strides = [token]
        self.stem = stock.down_projection
        registers = int(stock.eva.num_prefix_tokens)
        position = stock.eva.pos_embed.detach()
        self.position = nn.Parameter(self.as_map(position[:, registers:]).contiguous())
        self.register_tokens = stock.register_tokens
        self.register_position = nn.Parameter(position[:, :registers].clone()) if registers else None
        self.rotary = stock.eva.rope
        self.stages = stock.eva.blocks
        self.norm = stock.eva.norm

    def forward(self, volumes: torch.Tensor) -> list[torch.Tensor]:
        """A list of the one feature map (B, C, d, h, w), where (d, h, w) is the grid of tokens.

        Args:
            volumes: (B, input_channels, D, H, W).

        Raises:
            UserError: volumes of another size than the network was built for.
        """
        return [self.as_map(self.transform(self.as_tokens(self.embed(volumes)), self.rotations()))]

    def embed(self, volumes: torch.Tensor) -> torch.Tensor:
        """The embedding of each token (B, C, d, h, w), from its own voxels only and without its position."""
        if tuple(volumes.shape[2:]) != self.input_shape:
            raise UserError(
                f"This Primus takes volumes of {sizes_in_words(self.input_shape)} voxels and got "
                f"{sizes_in_words(volumes.shape[2:])}; give it that size, or build it with another input_shape"
            )
        embedded: torch.Tensor = self.stem(volumes)
        return embedded

    def as_tokens(self, embedded: torch.Tensor) -> torch.Tensor:
        """Adds the learned positions: a map (B, C, d, h, w) becomes tokens (B, d*h*w, C)."""
        return (embedded + self.position).flatten(2).transpose(1, 2)

    def as_map(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, d*h*w, C) as a map (B, C, d, h, w)."""
        return tokens.transpose(1, 2).unflatten(2, self.grid)

    def rotations(self) -> torch.Tensor:
        """Sines and cosines of the rotary position embedding, (d*h*w, two numbers for each feature of a head)."""
        rotations: torch.Tensor = self.rotary.get_embed()
        return rotations

    def transform(
        self,
        tokens: torch.Tensor,
        rotations: torch.Tensor,
        attention_bias: torch.Tensor | None = None,
        run: Run | None = None,
    ) -> torch.Tensor:
        """Runs tokens with their positions through all blocks and the norm.

        Args:
            tokens: (B, n, C), any of those of :meth:`as_tokens`.
            rotations: of the same tokens, (n, R), or (B, 1, n, R) if they differ between samples.
            attention_bias: (B, 1, 1, n), added to the logits of the attention to each token: 0, or minus infinity.
            run: called with a function and its arguments for each block; it may recompute it in the backward pass.

        Returns:
            (B, n, C)
        """
        registers = 0
        if self.register_tokens is not None and self.register_position is not None:
            registers = self.register_tokens.shape[1]
            own = (self.register_tokens + self.register_position).expand(len(tokens), -1, -1)
            tokens = torch.cat((own, tokens), dim=1)
            attention_bias = None if attention_bias is None else nn.functional.pad(attention_bias, (registers, 0))
        run = run or _call
        for block in self.stages:
            tokens = run(block, tokens, rotations, attention_bias)
        tokens = self.norm(tokens)
        return tokens[:, registers:]

    def initialize_own(self) -> None:
        """Draws positions, registers and layer scales, and damps the branches of later blocks.

        The linear layers must have been drawn before: ``network.apply`` comes to a module after its parts.
        """
        nn.init.trunc_normal_(self.position, std=_STD)
        if self.register_tokens is not None and self.register_position is not None:
            nn.init.normal_(self.register_tokens, std=_REGISTER_STD)
            nn.init.trunc_normal_(self.register_position, std=_STD)
        with torch.no_grad():
            for index, block in enumerate(self.stages, start=1):
                block.attn.proj.weight.div_(math.sqrt(2 * index))
                block.mlp.fc2.weight.div_(math.sqrt(2 * index))
                if self.init_values is not None:
                    block.gamma_1.fill_(self.init_values)
                    block.gamma_2.fill_(self.init_values)


class PrimusDecoder(nn.Module):
    """Transposed convolutions from tokens back to voxels; the last one is the segmentation head."""

    def __init__(self, steps: nn.Sequential, deep_supervision: bool = False) -> None:
        """Takes the steps of the stock decoder, lowest resolution first."""
        super().__init__()
        *stages, head = steps
        self.deep_supervision = deep_supervision
        self.transpconvs = nn.ModuleList()  # each stage holds its own
        self.stages = nn.ModuleList(stages)
        self.seg_layers = nn.ModuleList([head])

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """Logits (B, num_classes, D, H, W) from a list whose last map is (B, C, d, h, w); in a list if supervised."""
        x = features[-1]
        for stage in self.stages:
            x = stage(x)
        logits: torch.Tensor = self.seg_layers[-1](x)
        return [logits] if self.deep_supervision else logits


def _call(function: Run, *arguments: Any) -> torch.Tensor:
    return function(*arguments)


def _stock_class() -> Any:
    """Imported when it is needed: it takes two seconds, and its own imports warn of what torch will drop."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        from dynamic_network_architectures.architectures.primus import Primus as Stock
    return Stock


def _checked_token(stride: Sequence[int], input_shape: Sequence[int]) -> tuple[int, int, int]:
    """The token's edges, refused if the decoder cannot undo them or the volume is no multiple of them."""
    if len(stride) != 3 or len(input_shape) != 3:
        raise UserError(
            f"Primus is for three axes and got tokens of {list(stride)} in volumes of {list(input_shape)} voxels; "
            "give three numbers each"
        )
    a, b, c = (int(edge) for edge in stride)
    if max(a, b, c) < 2 or any(edge < 1 or edge & (edge - 1) for edge in (a, b, c)):
        raise UserError(f"A token of Primus cannot be {sizes_in_words(stride)} voxels; use powers of two such as 8x8x8")
    if min(input_shape) < 1 or not are_multiples(input_shape, (a, b, c)):
        nearest = nearest_multiples(input_shape, (a, b, c))
        raise UserError(
            f"A patch of {sizes_in_words(input_shape)} voxels is not a whole number of tokens of "
            f"{sizes_in_words(stride)}; the nearest size that is one is {sizes_in_words(nearest)}"
        )
    return a, b, c


def _check_width(width: int, heads: int) -> None:
    step = heads * _FEATURES_PER_ROTATION
    if width < step or width % step:
        raise UserError(
            f"Primus cannot share {width} features among {heads} heads, as each needs a multiple of "
            f"{_FEATURES_PER_ROTATION}; the nearest width is {nearest_multiples([width], [step])[0]}"
        )
