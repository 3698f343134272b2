"""``nnssl_adaptation_plan``: the description of a checkpoint that nnssl's fork and nnU-Net's master read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnssl_mae.backbones import backbone_of, short_name

_DATA_KEYS = (
    "data_identifier",
    "preprocessor_name",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "spacing",
    "patch_size",
)
PLANS_KEYS = (
    "dataset_name",
    "plans_name",
    "original_median_spacing_after_transp",
    "image_reader_writer",
    "transpose_forward",
    "transpose_backward",
    "experiment_planner_used",
)


def make_adaptation_plan(plans: Mapping[str, Any], configuration_name: str, channels: int) -> dict[str, Any]:
    """The plan of a pre-trained network from the plans it was trained with.

    Args:
        plans: nnU-Net plans.
        configuration_name: the configuration in them.
        channels: input channels of the network.
    """
    configuration = plans["configurations"][configuration_name]
    architecture = configuration["architecture"]
    style = "onemmiso" if list(configuration["spacing"]) == [1.0, 1.0, 1.0] else "median"
    if configuration["resampling_fn_data"] == "no_resampling_hack":
        style = "noresample"
    backbone = backbone_of(architecture)
    first = backbone.first_layer
    # nnU-Net's convolution blocks have two names for every layer.
    names = [first, first.removesuffix("conv") + "all_modules.0"] if backbone.is_convolutional else [first]
    data = {key: configuration[key] for key in _DATA_KEYS}
    data |= {
        "spacing_style": style,
        "resampling_fn_mask": configuration["resampling_fn_seg"],
        "resampling_fn_mask_kwargs": configuration["resampling_fn_seg_kwargs"],
    }
    return {
        "architecture_plans": {
            "arch_class_name": short_name(architecture["network_class_name"]),
            "arch_kwargs": dict(architecture["arch_kwargs"]),
            "arch_kwargs_requiring_import": list(architecture["_kw_requires_import"]),
        },
        "pretrain_plan": {
            **{key: plans[key] for key in PLANS_KEYS},
            "configurations": {configuration_name: data},
        },
        "pretrain_num_input_channels": channels,
        "recommended_downstream_patchsize": list(configuration["patch_size"]),
        "key_to_encoder": "encoder.stages",
        # U-Nets without residual blocks have no stem: their first stage takes the volume.
        "key_to_stem": "encoder.stem" if first.startswith("encoder.stem.") else "encoder.stages.0",
        "keys_to_in_proj": names,
        "key_to_lpe": "encoder.position" if backbone.patch_is_argument else None,
    }
