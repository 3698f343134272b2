"""Checkpoints of nnU-Net's own training, fine-tuned by us or not: the plans stand in ``init_args``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnssl_mae.backbones import short_name
from nnssl_mae.checkpoints.describe import (
    CT_INTENSITIES,
    DAMAGED,
    Checkpoint,
    Origin,
    check_preprocessing,
    nnunet_architecture,
)
from nnssl_mae.checkpoints.locate import Source
from nnssl_mae.checkpoints.names import under_one_name, with_aliases
from nnssl_mae.checkpoints.state_dict import bare_weights, first_convolution
from nnssl_mae.errors import UserError
from nnssl_mae.files import sha256

_PLANS_KEYS = (
    "dataset_name", "plans_name", "original_median_spacing_after_transp", "image_reader_writer", "transpose_forward",
    "transpose_backward", "experiment_planner_used", CT_INTENSITIES,
)  # fmt: skip
_DATA_KEYS = (
    "data_identifier", "preprocessor_name", "spacing", "patch_size", "normalization_schemes", "use_mask_for_norm",
    "resampling_fn_data", "resampling_fn_data_kwargs",
)  # fmt: skip


def is_nnunet(content: Mapping[str, Any]) -> bool:
    """Whether a trainer of nnU-Net wrote this; nnssl's write ``init_args`` too, but without nnU-Net's plans."""
    arguments = content.get("init_args")
    return (
        isinstance(arguments, dict)
        and isinstance(arguments.get("plans"), dict)
        and isinstance(arguments["plans"].get("configurations"), dict)
        and isinstance(arguments.get("configuration"), str)
        and not isinstance(content.get("nnssl_adaptation_plan"), dict)
    )


def read_nnunet(content: Mapping[str, Any], source: Source) -> Checkpoint:
    """Describes a segmentation model of nnU-Net; its network and preprocessing are those of its plans.

    Args:
        content: what was loaded; ``network_weights`` holds tensors.

    Raises:
        UserError: a 2D or cascaded configuration, a network or preprocessing not known here, or damaged plans.
    """
    arguments = content["init_args"]
    try:
        return _described(content, arguments["plans"], str(arguments["configuration"]), source)
    except DAMAGED as error:
        raise UserError(f"{source} has damaged plans of nnU-Net ({error!r}); download or copy it again") from error


def _described(content: Mapping[str, Any], plans: Mapping[str, Any], name: str, source: Source) -> Checkpoint:
    configuration = _configuration(plans, name)
    if len(configuration["patch_size"]) != 3:
        raise UserError(f"{source} holds a 2D network ('{name}'); only nnU-Net's 3D configurations can be used")
    if configuration.get("previous_stage"):
        raise UserError(
            f"{source} holds the second network of a cascade ('{name}'), which takes segmentations beside the image; "
            "use the one of 3d_fullres or 3d_lowres"
        )
    data = {key: configuration[key] for key in _DATA_KEYS if key in configuration}
    for key in ("resampling_fn_seg", "resampling_fn_seg_kwargs"):
        if key in configuration:
            data[key.replace("seg", "mask")] = configuration[key]
    kept = {key: plans[key] for key in _PLANS_KEYS if key in plans}
    check_preprocessing(kept, data, source.shown)
    described = configuration["architecture"]
    architecture = nnunet_architecture(
        short_name(str(described["network_class_name"])),
        described["arch_kwargs"],
        described["_kw_requires_import"],
        source.shown,
    )
    weights, _ = under_one_name(bare_weights({"network_weights": content["network_weights"]}, source))
    stem = first_convolution(weights)
    if stem is None:
        raise UserError(f"{source} holds no weights of the network that its plans describe; it is damaged")
    return Checkpoint(
        weights=with_aliases(weights, architecture),
        architecture=architecture,
        channels=stem.shape[1],
        plans=kept,
        data=data,
        origin=_origin(content, source),
        cannot_reconstruct="it is a segmentation model",
        notes=_notes(content),
    )


def _configuration(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The configuration with what it inherits, by nnU-Net itself, which also understands plans of earlier versions.

    It looks classes up only when asked for them, and here it is not.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the plans are old
        manager = PlansManager(deepcopy(dict(plans)))
        configuration: dict[str, Any] = manager.get_configuration(name).configuration
    return configuration


def _origin(content: Mapping[str, Any], source: Source) -> Origin:
    epochs = content.get("current_epoch")
    return Origin(
        format="nnU-Net",
        label=source.label,
        sha256=sha256(source.file),
        method=str(content.get("trainer_name", "nnU-Net")),
        epochs=epochs if type(epochs) is int else None,
    )


def _notes(content: Mapping[str, Any]) -> tuple[str, ...]:
    """That it is a fine-tuned model of ours, and of what."""
    block = content.get("nnssl_mae")
    initialisation = block.get("initialisation") if isinstance(block, dict) else None
    if not isinstance(initialisation, dict):
        return ()
    origin = initialisation.get("origin")
    label = origin.get("label") if isinstance(origin, dict) else "another checkpoint"
    return (f"The model was itself fine-tuned from {label} with nnssl_mae.",)
