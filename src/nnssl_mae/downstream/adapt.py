"""Plans for fine-tuning a labelled nnU-Net dataset from a pre-trained network, or its matched control."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments
from nnunetv2.imageio.reader_writer_registry import (
    determine_reader_writer_from_file_ending,
    recursive_find_reader_writer_by_name,
)
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

from nnssl_mae.checkpoints.describe import ReconstructionInfo
from nnssl_mae.checkpoints.read import Checkpoint
from nnssl_mae.checkpoints.transfer import Part, check_fit, select, widen_stem
from nnssl_mae.errors import UserError
from nnssl_mae.files import read_json, sha256, whole_file, write_json
from nnssl_mae.folders import find_dataset, nnunet_folder, planner_environment
from nnssl_mae.networks.planned import network_shape
from nnssl_mae.plans import CONFIGURATION, PLANS_BLOCK, STOCK_PLANS, check_plans_name, data_identifier, make_block
from nnssl_mae.recipes.finetuning import FinetuneRecipe

_PLAN_AGAIN = "run nnUNetv2_extract_fingerprint and nnUNetv2_plan_experiment for this dataset again"
_MUCH_FINER = 0.6  # of the pre-training spacing; at half the voxel size, 1 mm pre-training cost Dice (S3D, ToF-MRA)


@dataclass(frozen=True)
class Adaptation:
    """What was written, for the messages to the user."""

    plans_name: str
    dataset: str
    folder: Path
    configuration: dict[str, Any]
    warnings: tuple[str, ...]


def adapt(
    checkpoint: Checkpoint,
    number: int,
    plans_name: str,
    recipe: FinetuneRecipe,
    part: Part | None,
    batch_size: int,
    overwrite: bool = False,
) -> Adaptation:
    """Writes ``<plans_name>.json`` and, unless it is the control, ``<plans_name>_init.safetensors``.

    Treatment and control of the same checkpoint get the same network, patch and preprocessed data.

    Args:
        checkpoint: decides network, spacing, normalisation, reader and axis order.
        number: of the labelled dataset in ``nnUNet_raw``.
        part: what to transfer; None writes the control from scratch.
        batch_size: patches a step.
        overwrite: replace plans of this name.

    Raises:
        UserError: no such dataset, a name that is taken, or weights that do not fit the network; then neither file is
            written.
    """
    check_plans_name(plans_name)
    dataset = find_dataset(number)
    folder = nnunet_folder("nnUNet_preprocessed") / dataset
    plans_file, tensors_file = folder / f"{plans_name}.json", folder / f"{plans_name}_init.safetensors"
    if plans_file.exists() and not overwrite:
        raise UserError(f"{plans_file} exists; choose another name with -n, or pass --overwrite")
    stock = _stock_plans(number, dataset, folder)
    dataset_json = read_json(folder / "dataset.json", _PLAN_AGAIN)
    channels = len(_channel_names(dataset_json))

    plans = _plans(checkpoint, stock, plans_name, dataset_json, folder, batch_size)
    configuration = plans["configurations"][CONFIGURATION]
    initialisation = None
    if part is not None:
        tensors = select(checkpoint.weights, part)
        adapted = widen_stem(tensors, channels)
        check_fit(network_shape(configuration["architecture"], channels), tensors)
        with whole_file(tensors_file) as temporary:
            safetensors.torch.save_file(tensors, temporary, metadata={"format": "pt"})
        initialisation = {
            "file": tensors_file.name,
            "sha256": sha256(tensors_file),
            "transfer": part,
            "adapted": adapted,
            "origin": checkpoint.origin.as_json(),
        }
    configuration[PLANS_BLOCK] = make_block(
        "finetune", recipe=recipe.model_dump(mode="json"), initialisation=initialisation
    )
    write_json(plans_file, plans)
    return Adaptation(plans_name, dataset, folder, configuration, _warnings(checkpoint, stock, plans, dataset_json))


def _stock_plans(number: int, dataset: str, folder: Path) -> dict[str, Any]:
    """Stock plans of the dataset; runs nnU-Net's fingerprint and ResEnc L planner first where they are missing."""
    existing = [folder / f"{name}.json" for name in STOCK_PLANS if (folder / f"{name}.json").is_file()]
    if not existing:
        if not (nnunet_folder("nnUNet_raw") / dataset / "dataset.json").is_file():
            raise UserError(f"{dataset} has no dataset.json in nnUNet_raw; it must be a labelled nnU-Net dataset")
        print(f"Running nnU-Net's fingerprint and planner for {dataset} first ...", flush=True)
        with planner_environment():
            extract_fingerprints([number], num_processes=int(os.environ.get("nnUNet_def_n_proc", "8")))
            plan_experiments([number], experiment_planner_class_name="nnUNetPlannerResEncL")
        existing = [folder / f"{STOCK_PLANS[0]}.json"]
    plans = read_json(existing[0], _PLAN_AGAIN)
    if "3d_fullres" not in plans["configurations"]:
        raise UserError(f"nnU-Net planned no 3D configuration for {dataset}; its images are single slices")
    return plans


def _channel_names(dataset_json: Mapping[str, Any]) -> list[str]:
    """Names of the input channels; older datasets call them modalities."""
    names = dataset_json.get("channel_names") or dataset_json["modality"]
    return [str(name) for name in names.values()]


def _plans(
    checkpoint: Checkpoint,
    stock: Mapping[str, Any],
    plans_name: str,
    dataset_json: Mapping[str, Any],
    folder: Path,
    batch_size: int,
) -> dict[str, Any]:
    """Stock plans with one configuration: labels from the dataset, everything about the image from the checkpoint."""
    data, channels = checkpoint.data, len(_channel_names(dataset_json))
    configuration = dict(stock["configurations"]["3d_fullres"])
    configuration |= {
        "preprocessor_name": data["preprocessor_name"],
        "batch_size": batch_size,
        "patch_size": list(data["patch_size"]),
        "spacing": list(data["spacing"]),
        "normalization_schemes": [data["normalization_schemes"][0]] * channels,
        "use_mask_for_norm": [data["use_mask_for_norm"][0]] * channels,
        "resampling_fn_data": data["resampling_fn_data"],
        "resampling_fn_data_kwargs": data["resampling_fn_data_kwargs"],
        "resampling_fn_seg": data["resampling_fn_mask"],
        "resampling_fn_seg_kwargs": data["resampling_fn_mask_kwargs"],
        "architecture": checkpoint.architecture,
    }
    if data["resampling_fn_data"] == "no_resampling_hack":
        configuration |= {
            "resampling_fn_probabilities": "no_resampling_hack",
            "resampling_fn_probabilities_kwargs": {},
        }
    fingerprint = read_json(folder / "dataset_fingerprint.json", _PLAN_AGAIN)
    shapes = zip(fingerprint["shapes_after_crop"], fingerprint["spacings"], strict=True)
    resampled = [compute_new_shape(shape, spacing, configuration["spacing"]) for shape, spacing in shapes]
    configuration["median_image_size_in_voxels"] = [float(n) for n in np.median(resampled, axis=0)]
    plans = {
        **stock,
        "plans_name": plans_name,
        "image_reader_writer": _reader(checkpoint, dataset_json["file_ending"]),
        "transpose_forward": list(checkpoint.plans["transpose_forward"]),
        "transpose_backward": list(checkpoint.plans["transpose_backward"]),
        "configurations": {CONFIGURATION: configuration},
    }
    configuration["data_identifier"] = data_identifier(plans, configuration, contents="cases")
    return plans


def _reader(checkpoint: Checkpoint, ending: str) -> str:
    """The checkpoint's reader where it can read such files, otherwise nnU-Net's choice."""
    name = str(checkpoint.plans["image_reader_writer"])
    if ending in recursive_find_reader_writer_by_name(name).supported_file_endings:
        return name
    return str(determine_reader_writer_from_file_ending(ending, verbose=False).__name__)


def _beyond_stock(info: ReconstructionInfo) -> list[tuple[str, str]]:
    """What was done to the checkpoint's scans that stock nnU-Net cannot, and what will be different without it."""
    found = []
    for percentile, voxels in ((info.clip_percentile, "brightest"), (info.clip_low_percentile, "darkest")):
        if percentile is not None:
            what = f"The checkpoint's scans were clipped at their {percentile:g}th percentile"
            found.append((what, f"the {voxels} voxels will look unfamiliar"))
    if info.crop != "nonzero":
        what = "The checkpoint's scans were cropped to the head or body"
        found.append((what, "there will be more air around it, which shifts what z-scoring calls zero"))
    return found


def _warnings(
    checkpoint: Checkpoint,
    stock: Mapping[str, Any],
    plans: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
) -> tuple[str, ...]:
    """What may silently cost the benefit of the pre-training."""
    found = list(checkpoint.notes)
    if checkpoint.reconstruction is not None:
        found += [
            f"{what}, which nnU-Net does not repeat when it fine-tunes and predicts: {effect}"
            for what, effect in _beyond_stock(checkpoint.reconstruction)
        ]
    network = str(checkpoint.architecture["network_class_name"])
    if network.startswith("nnssl_mae."):
        found.append(
            f"{network.rsplit('.', 1)[-1]} is not one of nnU-Net's networks: the fine-tuned model predicts only where "
            "nnssl_mae is installed"
        )
    if plans["image_reader_writer"] != checkpoint.plans["image_reader_writer"]:
        found.append(
            "The checkpoint was trained on volumes turned to one orientation "
            f"({checkpoint.plans['image_reader_writer']}), which nnU-Net cannot do for {dataset_json['file_ending']} "
            "files: convert them to .nii.gz"
        )
    if any("CT" in str(name).upper().split("_") for name in _channel_names(dataset_json)):
        found.append(
            "The dataset is CT; like the checkpoint it will be normalised with "
            f"{checkpoint.data['normalization_schemes'][0]}, not with nnU-Net's CT scheme"
        )
    own, target = stock["original_median_spacing_after_transp"], checkpoint.data["spacing"]
    if checkpoint.data["resampling_fn_data"] != "no_resampling_hack" and min(own) < _MUCH_FINER * min(target):
        found.append(
            f"The scans have voxels of {min(own):.2g} mm and will be resampled to {min(target):.2g} mm as in "
            "pre-training: small structures may be lost; compare with stock nnU-Net"
        )
    return tuple(found)
