"""Primus in the checkpoints of nnssl: what a file describes and holds under our names, and the way back.

nnssl's MAE network is a Primus with a second transformer, ``decoder``, of the same width. It drops tokens before the
first, puts ``mask_token`` in their places and lets the second fill them in, as ours does with ``token_decoder``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nnssl_mae.backbones import backbone_of
from nnssl_mae.checkpoints.describe import ReconstructionInfo, nnunet_architecture
from nnssl_mae.checkpoints.locate import Source
from nnssl_mae.checkpoints.primus_names import from_stock, primus_arguments, stock_mask_token, to_stock
from nnssl_mae.checkpoints.state_dict import bare_weights
from nnssl_mae.errors import UserError
from nnssl_mae.recipes.pretraining import MaskingRecipe, NetworkRecipe, TransformerRecipe
from nnssl_mae.sizes import are_multiples, sizes_in_words

OUR_TRAINER = "nnUNetTrainerMAE"
"""In files of nnssl's form that we wrote."""
TOKEN_ORDER = "The order of its tokens is taken to be that of nnU-Net's Primus, as nnssl does for fine-tuning."
"""About files of nnssl, none of which says in which order its tokens were counted."""
TOKEN_ORDER_OF_MAE = (
    "nnssl's MAE network counted tokens along the second axis first; a file of such a network gives a picture that is "
    "worse than in its training."
)
_STOCK_NAMES = ("down_projection.", "eva.", "up_projection.")
_SECOND, _OUR_SECOND = "decoder.", "token_decoder.transformer."
_ROTATIONS = "decoder.rope."  # values, not weights
_MASK_TOKEN = "mask_tokens.0"
_RELEASED_TOKEN = [8, 8, 8]
_RELEASED_KEYS = {
    "key_to_encoder": "eva",
    "key_to_stem": "down_projection",
    "keys_to_in_proj": ["down_projection.proj"],
    "key_to_lpe": "eva.pos_embed",
}


def is_primus(description: Mapping[str, Any]) -> bool:
    """Whether ``architecture_plans`` of an adaptation plan are about one of nnssl's transformers."""
    return str(description["arch_class_name"]).startswith("Primus")


def read_primus(
    description: Mapping[str, Any], weights: Mapping[str, Any], patches: Sequence[Sequence[int]], source: Source
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The network of a file, and its weights under our names.

    Args:
        description: ``architecture_plans``: PrimusS, PrimusB, PrimusM or PrimusL, with ``arch_kwargs`` of the stock
            network or None; or what :func:`nnssl_mae.checkpoints.adaptation_plan.make_adaptation_plan` says of ours.
        weights: under the names of nnssl or ours, perhaps behind the prefix of a wrapper.
        patches: sizes (D, H, W) in voxels that the plan names; the first with as many tokens as there are positions is
            what the network was trained with.
        source: the file, for errors.

    Returns:
        the architecture in nnU-Net's form; and encoder, decoder, mask token and the blocks of the token decoder, as
        far as they are there.

    Raises:
        UserError: a network that ours is not, absurd sizes, or positions of another patch.
    """
    weights = bare_weights({"network_weights": weights}, source)
    kwargs = description.get("arch_kwargs") or {}
    if "n_stages" in kwargs and not any(name.startswith(_STOCK_NAMES) for name in weights):
        return nnunet_architecture("PrimusNet", kwargs, [], source.shown), weights
    try:
        architecture = _fitting(str(description["arch_class_name"]), kwargs, weights, patches, source.shown)
        return architecture, _under_our_names(weights, _grid(architecture))
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def _fitting(
    name: str,
    kwargs: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
    patches: Sequence[Sequence[int]],
    path: str,
) -> dict[str, Any]:
    """The architecture for the first of the patches that there are positions for; for the first without any."""
    position, registers = weights.get("eva.pos_embed"), weights.get("register_tokens")
    described = [
        nnunet_architecture("PrimusNet", primus_arguments(name, kwargs, patch, weights), [], path) for patch in patches
    ]
    if position is None:
        return described[0]  # the check of the encoder names what is missing
    positions = position.shape[1] - (0 if registers is None else registers.shape[1])
    for architecture in described:
        if _tokens(architecture) == positions:
            return architecture
    arguments, tokens = described[0]["arch_kwargs"], _tokens(described[0])
    has = "is no whole number of" if tokens is None else f"has {tokens}"
    raise UserError(
        f"its weights have positions of {positions} tokens, and its plan describes a patch of "
        f"{sizes_in_words(arguments['input_shape'])} voxels, which {has} tokens of "
        f"{sizes_in_words(arguments['strides'][0])} voxels; the plan is that of another checkpoint"
    )


def _grid(architecture: Mapping[str, Any]) -> list[int]:
    """Tokens along each axis."""
    arguments = architecture["arch_kwargs"]
    return [size // edge for size, edge in zip(arguments["input_shape"], arguments["strides"][0], strict=True)]


def _tokens(architecture: Mapping[str, Any]) -> int | None:
    """Tokens of a patch, None where they do not fill it."""
    arguments = architecture["arch_kwargs"]
    if not are_multiples(arguments["input_shape"], arguments["strides"][0]):
        return None
    d, h, w = _grid(architecture)
    return d * h * w


def _under_our_names(weights: Mapping[str, torch.Tensor], grid: Sequence[int]) -> dict[str, torch.Tensor]:
    """The mask token goes along with the transformer that follows it: a network without has one that means nothing."""
    ours = from_stock(weights, grid)
    second = {
        _OUR_SECOND + name.removeprefix(_SECOND): tensor
        for name, tensor in weights.items()
        if name.startswith(_SECOND) and not name.startswith(_ROTATIONS)
    }
    token = stock_mask_token(weights)
    return ours if token is None or not second else ours | second | {_MASK_TOKEN: token}


def primus_reconstruction(
    weights: Mapping[str, torch.Tensor], architecture: Mapping[str, Any]
) -> tuple[ReconstructionInfo | None, str]:
    """How to reconstruct, or None and why not.

    Args:
        weights: under our names.
        architecture: of :func:`read_primus`.
    """
    blocks = {name.split(".")[3] for name in weights if name.startswith(f"{_OUR_SECOND}blocks.")}
    if not blocks or _MASK_TOKEN not in weights:
        return None, "it lacks the mask token or the second transformer, which fill in what was hidden"
    arguments = architecture["arch_kwargs"]
    width, token = arguments["features_per_stage"][0], arguments["strides"][0]
    network = NetworkRecipe(
        backbone="primus",
        patch_size=arguments["input_shape"],
        base_features=width,
        max_features=width,
        blocks_per_stage=arguments["n_blocks_per_stage"],
        transformer=TransformerRecipe(
            heads=arguments["num_heads"][0],
            stem_stride=token,
            hidden_tokens="drop",
            decoder_blocks=len(blocks),
            drop_path=arguments.get("drop_path", 0.0),
        ),
    )
    return ReconstructionInfo(network, MaskingRecipe(block_size=max(token), ratio=0.75)), ""


def released_name(architecture: Mapping[str, Any]) -> str | None:
    """PrimusS, PrimusB, PrimusM or PrimusL where nnssl has a name for a network, else None.

    Args:
        architecture: in nnU-Net's form, of any network.
    """
    from nnssl_mae.networks.primus import PRESETS  # not above: readers of other checkpoints need no transformer

    if backbone_of(architecture).name != "primus":
        return None
    arguments = architecture["arch_kwargs"]
    (depth,), (heads,), (width,) = (arguments[key] for key in ("n_blocks_per_stage", "num_heads", "features_per_stage"))
    if list(arguments["strides"][0]) != _RELEASED_TOKEN or arguments.get("num_register_tokens"):
        return None
    return next((f"Primus{name}" for name, size in PRESETS.items() if size == (depth, heads, width)), None)


def released_plan(plan: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An adaptation plan of ours as nnssl writes it for its transformers.

    Args:
        plan: of :func:`nnssl_mae.checkpoints.adaptation_plan.make_adaptation_plan`.
        name: of :func:`released_name`.
    """
    described = {"arch_class_name": name, "arch_kwargs": None, "arch_kwargs_requiring_import": None}
    return {**plan, "architecture_plans": described, **_RELEASED_KEYS}


def released_weights(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our weights under nnssl's names, with the second transformer of its MAE network if ours drops tokens."""
    second = {
        _SECOND + name.removeprefix(_OUR_SECOND): tensor
        for name, tensor in weights.items()
        if name.startswith(_OUR_SECOND)
    }
    return to_stock(weights) | second
