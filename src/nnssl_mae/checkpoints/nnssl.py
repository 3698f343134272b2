"""Checkpoints of nnssl, such as those of OpenMind (arXiv 2412.17041), with ``network_weights`` and an adaptation plan.

No released file was at hand when this was written: it follows the description of the format, and the tests write files
of that form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from nnssl_mae.backbones import layer_arguments
from nnssl_mae.checkpoints.adaptation_plan import PLANS_KEYS
from nnssl_mae.checkpoints.describe import (
    DAMAGED,
    RESAMPLERS,
    Checkpoint,
    Origin,
    ReconstructionInfo,
    check_preprocessing,
    nnunet_architecture,
)
from nnssl_mae.checkpoints.locate import Source
from nnssl_mae.checkpoints.names import has_skips, under_one_name, with_aliases
from nnssl_mae.checkpoints.nnssl_primus import (
    OUR_TRAINER,
    TOKEN_ORDER,
    TOKEN_ORDER_OF_MAE,
    is_primus,
    primus_reconstruction,
    read_primus,
)
from nnssl_mae.checkpoints.nnssl_s3d import s3d_parts
from nnssl_mae.errors import UserError
from nnssl_mae.files import sha256
from nnssl_mae.recipes.pretraining import MaskingRecipe, NetworkRecipe

_NETWORKS = ("ResEncL", "NoSkipResEncL", "ResidualEncoderUNet", "PlainConvUNet")
_NAMED = ("ResEncL", "NoSkipResEncL")  # whose arguments are known from the name alone
_DEFAULT_RESAMPLING = {
    "data": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
    "mask": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
}


def resenc_l() -> dict[str, Any]:
    """Arguments of the Residual Encoder U-Net that nnssl calls ResEncL: 102.35 M parameters with one channel."""
    return {
        "n_stages": 6,
        "features_per_stage": [32, 64, 128, 256, 320, 320],
        "kernel_sizes": [[3, 3, 3]] * 6,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * 5],
        "n_blocks_per_stage": [1, 3, 4, 6, 6, 6],
        "n_conv_per_stage_decoder": [1] * 5,
        **layer_arguments(),
    }


def read_nnssl(content: Mapping[str, Any], plan: Mapping[str, Any], source: Source) -> Checkpoint:
    """Describes a checkpoint of nnssl in our terms.

    Args:
        content: what was loaded; ``network_weights`` holds tensors.
        plan: its adaptation plan, from the file or from beside it, of plain values. Whole numbers may stand for
            floats, and ``key_to_lpe`` may be absent.

    Raises:
        UserError: a network or preprocessing that is not known here, or a plan with something missing.
    """
    try:
        return _described(content, plan, source)
    except DAMAGED as error:
        raise UserError(f"{source} has a damaged adaptation plan ({error!r}); download or copy it again") from error


class _Network(NamedTuple):
    """What a file says of its network; the names are those of :class:`Checkpoint`."""

    weights: dict[str, torch.Tensor]
    architecture: dict[str, Any]
    reconstruction: ReconstructionInfo | None
    cannot_reconstruct: str
    notes: list[str]
    reconstruction_notes: list[str]


def _described(content: Mapping[str, Any], plan: Mapping[str, Any], source: Source) -> Checkpoint:
    notes: list[str] = []
    pretraining = plan["pretrain_plan"]
    plans = {key: pretraining[key] for key in PLANS_KEYS if key in pretraining}
    if "transpose_forward" in plans and "transpose_backward" not in plans:
        plans["transpose_backward"] = [plans["transpose_forward"].index(axis) for axis in range(3)]
    data = _data(_configuration(content, pretraining, notes), plan, plans, notes)
    check_preprocessing(plans, data, source.shown)
    if is_primus(plan["architecture_plans"]):
        network = _primus(content, plan, data["patch_size"], source)
        data["patch_size"] = list(network.architecture["arch_kwargs"]["input_shape"])
    else:
        network = _u_net(content, plan["architecture_plans"], source)
    trainer = str(content.get("trainer_name", "nnssl"))
    return Checkpoint(
        weights=network.weights,
        architecture=network.architecture,
        channels=int(plan["pretrain_num_input_channels"]),
        plans=plans,
        data=data,
        origin=Origin(
            format="nnssl",
            label=source.label,
            sha256=sha256(source.file),
            method=trainer,
            epochs=_whole_number(content.get("current_epoch")),
            citations=tuple(map(str, content.get("citations") or ())),
        ),
        reconstruction=network.reconstruction,
        cannot_reconstruct=network.cannot_reconstruct,
        notes=(*notes, *network.notes),
        reconstruction_notes=(*network.reconstruction_notes, *_doubts(network, trainer)),
    )


def _u_net(content: Mapping[str, Any], description: Mapping[str, Any], source: Source) -> _Network:
    notes: list[str] = []
    reconstruction_notes: list[str] = []
    architecture = _architecture(description, source.shown)
    weights, untied = under_one_name(content["network_weights"])
    if untied:
        notes.append(
            f"{untied} tensors of the file are stored twice with different values, as S3D's are; the copies named "
            "'all_modules' are the trained ones and were taken."
        )
    reconstruction, reason, tokens = _reconstruction(content, architecture, untied > 0, reconstruction_notes)
    if not has_skips(weights) and "decoder.stages.0.convs.0.conv.weight" in weights:
        reconstruction, reason, tokens = None, "its decoder has no skip connections, in a form that is not known", {}
    every_name = {**with_aliases(weights, architecture), **tokens}
    return _Network(every_name, architecture, reconstruction, reason, notes, reconstruction_notes)


def _primus(
    content: Mapping[str, Any], plan: Mapping[str, Any], trained_with: Sequence[int], source: Source
) -> _Network:
    recommended = [int(edge) for edge in plan.get("recommended_downstream_patchsize") or trained_with]
    patches = [trained_with, recommended]
    architecture, weights = read_primus(plan["architecture_plans"], content["network_weights"], patches, source)
    reconstruction, reason = primus_reconstruction(weights, architecture)
    if content.get("trainer_name") == OUR_TRAINER:  # exported by us: the order of its tokens is known
        return _Network(weights, architecture, reconstruction, reason, [], [])
    reconstruction_notes = [] if reconstruction is None else [TOKEN_ORDER_OF_MAE]
    return _Network(weights, architecture, reconstruction, reason, [TOKEN_ORDER], reconstruction_notes)


def _doubts(network: _Network, trainer: str) -> list[str]:
    if network.reconstruction is None or network.reconstruction.released_s3d or "MAE" in trainer.upper():
        return []
    return [f"The trainer {trainer} may not be a masked autoencoder; then its reconstruction means nothing."]


def _whole_number(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _architecture(description: Mapping[str, Any], path: str) -> dict[str, Any]:
    name = str(description["arch_class_name"])
    if name not in _NETWORKS:
        known = f"{', '.join(_NETWORKS)} and Primus"
        raise UserError(f"{path} holds nnssl's network '{name}', which cannot be used; {known} can")
    kwargs = description.get("arch_kwargs")
    if name in _NAMED:
        return nnunet_architecture("ResidualEncoderUNet", kwargs or resenc_l(), None, path)
    return nnunet_architecture(name, kwargs or {}, description.get("arch_kwargs_requiring_import"), path)


def _configuration(content: Mapping[str, Any], pretraining: Mapping[str, Any], notes: list[str]) -> Mapping[str, Any]:
    """The configuration of the plan that was trained: the one the trainer was started with, else the first."""
    configurations: Mapping[str, Any] = pretraining["configurations"]
    if not configurations:
        raise ValueError("it has no configuration")
    started_with = content.get("init_args")
    name = str(started_with.get("configuration_name") if isinstance(started_with, dict) else None)
    if name not in configurations:
        name = next(iter(configurations))
        if len(configurations) > 1:
            notes.append(f"The plan has {len(configurations)} configurations; the first, '{name}', was taken.")
    chosen: Mapping[str, Any] = configurations[name]
    return chosen


def _data(
    configuration: Mapping[str, Any], plan: Mapping[str, Any], plans: Mapping[str, Any], notes: list[str]
) -> dict[str, Any]:
    """The configuration in the words of our own adaptation plan."""
    style = configuration.get("spacing_style")
    spacing = [1, 1, 1] if style == "onemmiso" else configuration.get("spacing")
    patch = plan.get("pretrain_patch_size") or configuration.get("patch_size")
    data = {
        "data_identifier": str(configuration.get("data_identifier", "nnssl")),
        "preprocessor_name": "DefaultPreprocessor",
        "spacing_style": style,
        "spacing": [float(edge) for edge in spacing or plans["original_median_spacing_after_transp"]],
        "patch_size": [int(edge) for edge in patch or plan["recommended_downstream_patchsize"]],
        "normalization_schemes": configuration["normalization_schemes"],
        "use_mask_for_norm": [bool(masked) for masked in configuration["use_mask_for_norm"]],
    }
    for kind in ("data", "mask"):
        data |= _resampling(configuration, kind, style, notes)
    if len(data["spacing"]) != 3 or len(data["patch_size"]) != 3:
        raise ValueError("spacing and patch size must be three numbers")
    return data


def _resampling(configuration: Mapping[str, Any], kind: str, style: Any, notes: list[str]) -> dict[str, Any]:
    """nnU-Net's resampling function for images or masks, with its arguments."""
    key = f"resampling_fn_{kind}"
    name, kwargs = configuration.get(key), configuration.get(f"{key}_kwargs")
    if style == "noresample":
        name, kwargs = "no_resampling_hack", {}
    elif name not in RESAMPLERS:
        notes.append(f"nnU-Net has no resampling function '{name}'; its default for {kind} was taken.")
        name, kwargs = RESAMPLERS[0], _DEFAULT_RESAMPLING[kind]
    return {key: name, f"{key}_kwargs": dict(kwargs or {})}


def _reconstruction(
    content: Mapping[str, Any], architecture: Mapping[str, Any], untied: bool, notes: list[str]
) -> tuple[ReconstructionInfo | None, str, dict[str, torch.Tensor]]:
    """How to reconstruct, or None and why not; and the tensors that stand beside encoder and decoder."""
    masking = MaskingRecipe(block_size=16, ratio=0.75)
    spark = content.get("spark_weights")
    named = any(word in str(content.get("trainer_name")).lower() for word in ("spark", "s3d"))
    if spark is None and (untied or named):
        return None, "it is an S3D file without 'spark_weights', so the mask tokens of its network are missing", {}
    if spark is None:
        return ReconstructionInfo(NetworkRecipe(), masking), "", {}
    if "n_blocks_per_stage" not in architecture["arch_kwargs"]:
        return None, "S3D is known with a Residual Encoder U-Net only", {}
    widths: Sequence[int] = architecture["arch_kwargs"]["features_per_stage"]
    parts = s3d_parts(spark, widths)
    if isinstance(parts, str):
        return None, parts, {}
    notes.append(
        "S3D: nnssl lets its first convolution see what is hidden; here it does not, so the picture is slightly worse "
        "than in its training."
    )
    tokens, densify = any("mask_tokens" in name for name in parts), any("densifiers" in name for name in parts)
    network = NetworkRecipe(sparse=True, mask_tokens=tokens, densify=densify)
    return ReconstructionInfo(network, masking, released_s3d=True), "", parts
