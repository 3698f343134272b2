"""A labelled dataset for fine-tuning, preprocessed by nnU-Net in this process, with plans as ``adapt`` writes them.

Written by hand, so that a test of the trainer can ask for any labels, network and initialisation.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import safetensors.torch
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnssl_mae.files import sha256
from nnssl_mae.networks.planned import planned_network
from nnssl_mae.plans import CONFIGURATION, make_block
from nnssl_mae.recipes.finetuning import load_finetune_recipe
from tests.networks.architectures import architecture

NAME = "Dataset005_Features"
CASES = tuple(f"case{index}" for index in range(5))
LABELS: dict[str, dict[str, Any]] = {
    "labels": {"background": 0, "rim": 1, "core": 2},
    "ignore": {"background": 0, "rim": 1, "core": 2, "ignore": 3},
    "regions": {"background": 0, "whole": [1, 2], "core": 2},
    "regions and ignore": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
}
ARCHITECTURE = architecture("resenc", (4, 4, 6, 6))
STEM = "encoder.stem.convs.0.conv.weight"
LEFT_RANDOM = "encoder.stages.3."
_SHAPE = (20, 24, 18)


def write_dataset(preprocessed: Path, labels: str) -> Path:
    """Writes ``Dataset005_Features``, five cases of two channels, with plans ``Treatment`` and ``Control``.

    Args:
        preprocessed: nnU-Net's folder.
        labels: one of ``LABELS``; with ``ignore`` a part of each case has that label.
    """
    folder = preprocessed / NAME
    (folder / "gt_segmentations").mkdir(parents=True)
    dataset_json: dict[str, Any] = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": LABELS[labels],
        "numTraining": len(CASES),
        "file_ending": ".nii.gz",
    }
    if "regions" in labels:
        dataset_json["regions_class_order"] = [1, 2]
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    fingerprint = {"spacings": [[1.0, 1.0, 1.0]] * len(CASES), "shapes_after_crop": [list(_SHAPE)] * len(CASES)}
    (folder / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    write_plans(folder, "Treatment", initialisation=write_weights(folder))
    write_plans(folder, "Control", recipe="scratch")
    plans = PlansManager(json.loads((folder / "Control.json").read_text()))
    configuration = plans.get_configuration(CONFIGURATION)
    (folder / configuration.data_identifier).mkdir()
    for seed, case in enumerate(CASES):
        files = _write_case(folder, case, seed, "ignore" in labels)
        DefaultPreprocessor(verbose=False).run_case_save(
            str(folder / configuration.data_identifier / case), *files, plans, configuration, dataset_json
        )
    return folder


def _write_case(folder: Path, case: str, seed: int, with_ignore: bool) -> tuple[list[str], str]:
    rng = np.random.default_rng(seed)
    distance = np.linalg.norm(np.indices(_SHAPE) - rng.uniform(8, 11, 3)[:, None, None, None], axis=0)
    labels = (distance < 7).astype(np.uint8) + (distance < 4)
    image = labels + rng.normal(0, 0.2, _SHAPE)
    if with_ignore:
        labels[:5] = 3
    segmentation = folder / "gt_segmentations" / f"{case}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), segmentation)
    images = [folder / f"{case}_{channel:04d}.nii.gz" for channel in range(2)]
    for channel, file in enumerate(images):
        nibabel.save(nibabel.Nifti1Image((image * (1 + channel)).astype(np.float32), np.eye(4)), file)
    return [str(file) for file in images], str(segmentation)


def write_weights(folder: Path) -> dict[str, Any]:
    """Writes ``Treatment_init.safetensors``, all of an encoder but its last stage; returns the block for plans."""
    torch.manual_seed(7)
    network = planned_network(ARCHITECTURE, 2, 3)
    encoder = {name: p.detach() + 0.01 for name, p in network.named_parameters() if name.startswith("encoder.")}
    file = folder / "Treatment_init.safetensors"
    tensors = {name: tensor for name, tensor in encoder.items() if not name.startswith(LEFT_RANDOM)}
    safetensors.torch.save_file(tensors, file)
    origin = {"format": "nnssl", "label": "hf://somebody/ResEncT", "sha256": "0" * 64, "method": "mae", "epochs": 7}
    return {
        "file": file.name,
        "sha256": sha256(file),
        "transfer": "encoder",
        "adapted": [{"name": STEM, "how": "1 channel repeated and divided by 2"}],
        "left_random": [name for name in encoder if name not in tensors],
        "origin": {**origin, "steps": None, "version": "1", "citations": ["Somebody 2025"], "licence": "CC-BY-4.0"},
    }


def write_plans(
    folder: Path, name: str, recipe: str = "warmup", initialisation: Any = None, changes: tuple[str, ...] = ()
) -> None:
    """Writes plans with one configuration: patches of 16^3 voxels, two a step, three epochs of two steps."""
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration: dict[str, Any] = {
        "data_identifier": "nnsslMAE_cases_test",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16, 16, 16],
        "median_image_size_in_voxels": list(_SHAPE),
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"] * 2,
        "use_mask_for_norm": [False, False],
        "batch_dice": False,
        "architecture": copy.deepcopy(ARCHITECTURE),
        "nnssl_mae": make_block(
            "finetune",
            recipe=load_finetune_recipe(recipe, 3, 2, changes).model_dump(mode="json"),
            initialisation=initialisation,
        ),
    }
    for what, options in (("data", {}), ("seg", {"is_seg": True, "order": 0}), ("probabilities", {})):
        configuration[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        configuration[f"resampling_fn_{what}_kwargs"] = {**resampling, **options}
    statistics = dict.fromkeys(("mean", "median", "std", "min", "max", "percentile_00_5", "percentile_99_5"), 1.0)
    plans = {
        "dataset_name": NAME,
        "plans_name": name,
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": list(_SHAPE),
        "image_reader_writer": "NibabelIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {CONFIGURATION: configuration},
        "experiment_planner_used": "nnUNetPlannerResEncL",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": statistics, "1": statistics},
    }
    (folder / f"{name}.json").write_text(json.dumps(plans))


def change_plans(folder: Path, name: str, **values: Any) -> None:
    """Replaces keys of the configuration in plans."""
    file = folder / f"{name}.json"
    plans = json.loads(file.read_text())
    plans["configurations"][CONFIGURATION] |= values
    file.write_text(json.dumps(plans))


def set_recipe(folder: Path, name: str, *changes: str, recipe: str = "warmup") -> None:
    """Replaces the recipe in plans."""
    file = folder / f"{name}.json"
    block = json.loads(file.read_text())["configurations"][CONFIGURATION]["nnssl_mae"]
    change_plans(
        folder,
        name,
        nnssl_mae={**block, "recipe": load_finetune_recipe(recipe, 3, 2, changes).model_dump(mode="json")},
    )
