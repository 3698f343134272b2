"""Primus under the names of ``dynamic_network_architectures``, which nnssl and nnU-Net use, and under ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nnssl_mae.errors import UserError
from nnssl_mae.sizes import sizes_in_words

# What nnssl's own MAE network holds beside a Primus: a second transformer that is thrown away; and values, not weights.
_LEFT_OUT = ("mask_token", "decoder.", "eva.rope.")
_PREFIXES = (
    ("down_projection.proj.", "encoder.stem.proj."),
    ("eva.blocks.", "encoder.stages."),
    ("eva.norm.", "encoder.norm."),
)
_REGISTERS = ("register_tokens", "encoder.register_tokens")
_STOCK_POSITION = "eva.pos_embed"
_POSITION, _REGISTER_POSITION = "encoder.position", "encoder.register_position"
_STOCK_STEP = re.compile(r"up_projection\.decode\.(\d+)\.(\d+\.)?(weight|bias)")
_STAGE = re.compile(r"decoder\.stages\.(\d+)\.(.*)")
_HEAD = "decoder.seg_layers.0."
_TOKEN = (8, 8, 8)
# As nnssl and nnU-Net's own trainers build it.
_DEFAULTS: dict[str, Any] = {"drop_path_rate": 0.2, "init_values": 0.1, "scale_attn_inner": True}
# Arguments of the stock network that ours has only one value for.
_FIXED: dict[str, Any] = {
    "use_rot_pos_emb": True,
    "use_abs_pos_embed": True,
    "mlp_ratio": 8 / 3,
    "rope_kwargs": None,
}
# The same of arguments that are classes: what their name, however it is written, has in it.
_FIXED_CLASSES = {
    "decoder_norm": "LayerNormNd",
    "decoder_act": "GELU",
    "decoder_at": "GELU",
    "rope_impl": "RotaryEmbeddingCat",
}
# Given elsewhere, or of a training that is over.
_PASSED_OVER = (
    "input_channels", "output_channels", "num_classes", "config_name", "input_shape", "patch_drop_rate",
    "patch_drop_module", "proj_drop_rate", "attn_drop_rate", "drop_path_scale",
)  # fmt: skip


def from_stock(weights: Mapping[str, torch.Tensor], grid: Sequence[int]) -> dict[str, torch.Tensor]:
    """Renames the weights of a stock Primus, or gradients and the like, to our names.

    Left out are the mask token (see :func:`stock_mask_token`), and the second transformer of nnssl's MAE network.

    Args:
        weights: under the names of ``dynamic_network_architectures``.
        grid: tokens along each axis, (d, h, w), which the position embedding does not tell.

    Returns:
        views of the same memory where possible.

    Raises:
        UserError: a tensor that Primus does not have, or positions that are not of this grid.
    """
    ours: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        if name == _STOCK_POSITION:
            ours |= _positions(tensor, grid, weights.get(_REGISTERS[0]))
        elif not name.startswith(_LEFT_OUT):
            ours[_our_name(name)] = tensor
    return ours


def to_stock(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames our weights, all or those of the encoder, to the stock network's names; undoes :func:`from_stock`.

    The result has the mask token that the stock network stores and does not use: zero, unless ``mask_tokens.0`` is
    there. Tensors of other parts are left out.
    """
    stages = [int(match[1]) for name in weights if (match := _STAGE.fullmatch(name))]
    stock: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        if name == _POSITION:
            stock[_STOCK_POSITION] = _stock_positions(tensor, weights.get(_REGISTER_POSITION))
            stock["mask_token"] = tensor.new_zeros(1, 1, tensor.shape[1])
        elif (renamed := _stock_name(name, max(stages, default=-1) + 1)) is not None:
            stock[renamed] = tensor
    if "mask_tokens.0" in weights:
        stock["mask_token"] = weights["mask_tokens.0"].reshape(1, 1, -1)
    return stock


def stock_mask_token(weights: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """What stands for hidden tokens, (1, C, 1, 1, 1), or None where the stock weights do not say."""
    token = weights.get("mask_token")
    return None if token is None else token.reshape(1, -1, 1, 1, 1)


def with_first_axes_swapped(weights: Mapping[str, torch.Tensor], heads: int) -> dict[str, torch.Tensor]:
    """Our weights of a network that counted its tokens along the second axis first, as some of nnssl's versions do.

    Such a network gives each token the position, learned and rotary, of its mirror image with the first two axes
    exchanged. The result computes the same in our order: positions are transposed, and queries and keys exchange the
    features that are rotated by the two axes.

    Args:
        weights: under our names.
        heads: of the attention.

    Raises:
        UserError: a grid with different first two edges, for which such a network mixes its axes up.
    """
    position = weights[_POSITION]
    if position.shape[2] != position.shape[3]:
        raise UserError(
            f"A network of {sizes_in_words(position.shape[2:])} tokens that are counted along the second axis "
            "first has no equal in another order; take one that was trained with cubes"
        )
    swapped = dict(weights) | {_POSITION: position.transpose(2, 3).contiguous()}
    for name, tensor in weights.items():
        if name.endswith((".attn.q_proj.weight", ".attn.q_proj.bias", ".attn.k_proj.weight")):
            first, second, third = tensor.unflatten(0, (heads, 3, -1)).unbind(1)
            swapped[name] = torch.stack((second, first, third), dim=1).flatten(0, 2)
    return swapped


def primus_arguments(
    arch_class_name: str,
    arch_kwargs: Mapping[str, Any] | None,
    patch_size: Sequence[int],
    weights: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, Any]:
    """The arguments of our Primus in plans, from the description in nnssl's adaptation plan.

    Args:
        arch_class_name: PrimusS, PrimusB, PrimusM, PrimusL; or Primus, whose sizes stand in ``arch_kwargs``.
        arch_kwargs: of the stock network, None for nnssl's own. What is missing is what nnU-Net's trainers take.
        patch_size: (D, H, W) in voxels that it was trained with.
        weights: under stock names. Whether there is a layer scale and a norm of the heads is then seen from them, as
            versions of the stock network differ in what they take if nothing is said.

    Raises:
        UserError: another network, or an option that ours does not have.
    """
    from nnssl_mae.networks.primus import PRESETS  # not above: readers of other checkpoints need no transformer

    given = dict(arch_kwargs or {})
    preset = PRESETS.get(arch_class_name.removeprefix("Primus"))
    if preset is None and arch_class_name != "Primus":
        raise UserError(
            f"'{arch_class_name}' is no Primus that is known; Primus{', Primus'.join(PRESETS)} and Primus with its "
            "sizes are"
        )
    if preset is not None:
        given = {"embed_dim": preset.width, "eva_depth": preset.depth, "eva_numheads": preset.heads} | given
    _refuse_unknown(given)
    options = _DEFAULTS | {"patch_embed_size": _TOKEN, "num_register_tokens": 0} | given
    if weights is not None:
        options |= _seen_in(weights, options)
    try:
        return _plans_words(options, patch_size)
    except KeyError as error:
        raise UserError(
            f"The description of Primus lacks {error}; give embed_dim, eva_depth and eva_numheads"
        ) from None


def _plans_words(options: Mapping[str, Any], patch_size: Sequence[int]) -> dict[str, Any]:
    scale = options["init_values"]
    return {
        "n_stages": 1,
        "features_per_stage": [int(options["embed_dim"])],
        "strides": [[int(edge) for edge in options["patch_embed_size"]]],
        "n_blocks_per_stage": [int(options["eva_depth"])],
        "num_heads": [int(options["eva_numheads"])],
        "input_shape": [int(size) for size in patch_size],
        "drop_path": float(options["drop_path_rate"]),
        "init_values": None if scale is None else float(scale),
        "scale_attn_inner": bool(options["scale_attn_inner"]),
        "num_register_tokens": int(options["num_register_tokens"]),
    }


def _seen_in(weights: Mapping[str, torch.Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    scaled = "eva.blocks.0.gamma_1" in weights
    value = options["init_values"] if options["init_values"] is not None else _DEFAULTS["init_values"]
    return {
        "init_values": value if scaled else None,
        "scale_attn_inner": "eva.blocks.0.attn.norm.weight" in weights,
    }


def _refuse_unknown(given: Mapping[str, Any]) -> None:
    free = ("embed_dim", "eva_depth", "eva_numheads", "patch_embed_size", "num_register_tokens", *_DEFAULTS)
    for name, value in given.items():
        same = (name in _FIXED and value == _FIXED[name]) or _FIXED_CLASSES.get(name, "nothing") in str(value)
        if not same and name not in (*free, *_PASSED_OVER):
            raise UserError(f"Primus with {name} = {value!r} cannot be built here; take a network without that option")


def _our_name(name: str) -> str:
    for theirs, ours in (*_PREFIXES, _REGISTERS):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    match = _STOCK_STEP.fullmatch(name)
    if match is None:
        raise UserError(
            f"The weights hold {name}, which is no part of Primus; its later versions with convolutions are not known"
        )
    # All steps but the last are a convolution, a norm and an activation, so their names have one number more.
    return f"decoder.stages.{match[1]}.{match[2]}{match[3]}" if match[2] else f"{_HEAD}{match[3]}"


def _stock_name(name: str, last_step: int) -> str | None:
    """None for a tensor that the stock network has no place for."""
    for theirs, ours in (*_PREFIXES, _REGISTERS):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    if name.startswith(_HEAD):
        return f"up_projection.decode.{last_step}.{name.removeprefix(_HEAD)}"
    match = _STAGE.fullmatch(name)
    return None if match is None else f"up_projection.decode.{match[1]}.{match[2]}"


def _positions(stock: torch.Tensor, grid: Sequence[int], registers: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The positions of registers, which come first, and of tokens, which are counted along the last axis first."""
    count = 0 if registers is None else registers.shape[1]
    tokens = stock[:, count:]
    d, h, w = (int(edge) for edge in grid)
    if tokens.shape[1] != d * h * w:
        raise UserError(
            f"The weights have positions of {tokens.shape[1]} tokens and a patch of {d}x{h}x{w} tokens was described; "
            "give the patch size that they were trained with"
        )
    positions = {_POSITION: tokens.transpose(1, 2).unflatten(2, (d, h, w)).contiguous()}
    return positions | ({_REGISTER_POSITION: stock[:, :count]} if count else {})


def _stock_positions(position: torch.Tensor, registers: torch.Tensor | None) -> torch.Tensor:
    tokens = position.flatten(2).transpose(1, 2)
    return tokens.contiguous() if registers is None else torch.cat((registers, tokens), dim=1)
