"""What of nnU-Net's descriptions leaves the machine: what prediction and fine-tuning need, nothing that names a scan.

Known keys are taken, not suspicious ones removed: people and programs write case lists, names and paths under keys that
nobody foresees.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PLANS = (
    "dataset_name",
    "plans_name",
    "original_median_spacing_after_transp",
    "original_median_shape_after_transp",
    "image_reader_writer",
    "transpose_forward",
    "transpose_backward",
    "configurations",
    "experiment_planner_used",
    "label_manager",
    "foreground_intensity_properties_per_channel",
    "foreground_intensity_properties_by_modality",
)
_CONFIGURATION = (
    "inherits_from",
    "data_identifier",
    "preprocessor_name",
    "batch_size",
    "patch_size",
    "median_image_size_in_voxels",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    *(f"resampling_fn_{kind}{end}" for kind in ("data", "seg", "probabilities") for end in ("", "_kwargs")),
    "architecture",
    "batch_dice",
    "next_stage",
    "previous_stage",
    # networks as older nnU-Nets described them
    "UNet_class_name",
    "UNet_base_num_features",
    "unet_max_num_features",
    "n_conv_per_stage_encoder",
    "n_conv_per_stage_decoder",
    "num_pool_per_axis",
    "pool_op_kernel_sizes",
    "conv_kernel_sizes",
)
_ARCHITECTURE = ("network_class_name", "arch_kwargs", "_kw_requires_import")
_OUR_BLOCK = ("schema", "kind", "recipe", "initialisation")
_INITIALISATION = ("file", "sha256", "transfer", "adapted", "left_random", "origin")
_DATASET = (
    "channel_names",
    "modality",
    "labels",
    "regions_class_order",
    "numTraining",
    "file_ending",
    "overwrite_image_reader_writer",
)
_FINGERPRINT = ("foreground_intensity_properties_per_channel", "median_relative_size_after_cropping")
_SUMMARY = ("foreground_mean", "mean")


def plans(content: Mapping[str, Any]) -> dict[str, Any]:
    """Plans with all their configurations."""
    configurations = {name: _configuration(each) for name, each in content["configurations"].items()}
    return _known(content, _PLANS) | {"configurations": configurations}


def _configuration(content: Mapping[str, Any]) -> dict[str, Any]:
    result = _known(content, _CONFIGURATION)
    if "architecture" in result:
        result["architecture"] = _known(result["architecture"], _ARCHITECTURE)
    block = content.get("nnssl_mae")
    return result | ({"nnssl_mae": our_block(block)} if isinstance(block, Mapping) else {})


def our_block(content: Mapping[str, Any]) -> dict[str, Any]:
    """The block ``nnssl_mae`` of plans, or of a fine-tuned checkpoint."""
    result = _known(content, _OUR_BLOCK)
    if isinstance(result.get("initialisation"), Mapping):
        result["initialisation"] = _known(result["initialisation"], _INITIALISATION)
    return result


def dataset(content: Mapping[str, Any]) -> dict[str, Any]:
    """``dataset.json``: channels, labels and file ending; no list of cases, no description."""
    return _known(content, _DATASET)


def fingerprint(content: Mapping[str, Any]) -> dict[str, Any]:
    """``dataset_fingerprint.json`` without the sizes of the single scans; nnU-Net's exporter wants the file."""
    return _known(content, _FINGERPRINT) | {"shapes_after_crop": [], "spacings": []}


def summary(content: Mapping[str, Any]) -> dict[str, Any]:
    """``validation/summary.json``: the means."""
    return _known(content, _SUMMARY) | {"metric_per_case": []}


def _known(content: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: content[key] for key in keys if key in content}
