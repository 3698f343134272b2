"""A fine-tuned model as nnU-Net leaves it, without training: written by the real trainer after its first weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nnssl_mae.plans import CONFIGURATION, make_block
from nnssl_mae.recipes.finetuning import finetune_recipe
from nnssl_mae.training.finetune_trainer import nnUNetTrainerMAEFinetune
from tests.networks.architectures import architecture

CASES = ("patient_Mueller_0007", "patient_Okafor_0008")
PLACE = "/srv/scans/neurology_ward_3"
"""A folder of a machine."""
DATASET, PLANS = "Dataset004_Tiny", "Treatment"
MODEL = f"nnUNetTrainerMAEFinetune__{PLANS}__{CONFIGURATION}"
_RESAMPLING: dict[str, Any] = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
_INTENSITIES = {
    "max": 9.0,
    "mean": 1.0,
    "median": 1.0,
    "min": 0.0,
    "percentile_00_5": 0,
    "percentile_99_5": 8,
    "std": 1,
}
ORIGIN = {
    "format": "nnssl", "label": "hf://AnonRes/ResEncL-OpenMind-MAE@abc", "sha256": "0123", "method": "MAE",
    "epochs": 1000, "steps": None, "version": None, "licence": "cc-by-4.0",
    "citations": ["Wald et al. 2025, An OpenMind, arXiv:2412.17041"],
}  # fmt: skip


def plans(backbone: str = "resenc") -> dict[str, Any]:
    """Plans of two stages and 16^3 patches, with names and paths that people and programs put there."""
    names = {"fn": "resample_data_or_seg_to_shape", "kwargs": _RESAMPLING}
    configuration = {
        "data_identifier": "nnsslMAE_cases_1",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16, 16, 16],
        "median_image_size_in_voxels": [16.0, 16.0, 16.0],
        "spacing": [4.0, 4.0, 4.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        **{
            key: value
            for kind in ("data", "seg", "probabilities")
            for key, value in (
                (f"resampling_fn_{kind}", names["fn"]),
                (f"resampling_fn_{kind}_kwargs", names["kwargs"]),
            )
        },
        "architecture": architecture(backbone, features=(4, 8)),
        "batch_dice": False,
        "note": f"without {CASES[0]}",
        "nnssl_mae": make_block(
            "finetune",
            recipe=finetune_recipe(False, 2, 1).model_dump(mode="json"),
            initialisation={"file": "x", "sha256": "0", "transfer": "encoder", "adapted": [], "origin": ORIGIN}
            | {"read_from": PLACE},
        ),
    }
    return {
        "dataset_name": DATASET,
        "plans_name": PLANS,
        "original_median_spacing_after_transp": [4.0, 4.0, 4.0],
        "original_median_shape_after_transp": [16, 16, 16],
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {CONFIGURATION: configuration},
        "experiment_planner_used": "nnUNetPlannerResEncL",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": _INTENSITIES},
        "cases_left_out": list(CASES),
    }


def dataset_json() -> dict[str, Any]:
    """With the list of cases of older datasets."""
    return {
        "name": "Tiny",
        "description": f"Scans of {PLACE}, by Dr. Mueller",
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, "dark": 1, "bright": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
        "training": [{"image": f"./imagesTr/{case}.nii.gz", "label": f"{PLACE}/{case}.nii.gz"} for case in CASES],
    }


def write_model(folders: Path, folds: tuple[str, ...] = ("0",), backbone: str = "resenc") -> Path:
    """The model's folder below ``results``, every fold finished; nnU-Net's folders are below ``folders``."""
    folder = folders / "results" / DATASET / MODEL
    for fold in folds:
        trained = _trainer(folders, fold, backbone)
        trained.save_checkpoint(str(Path(trained.output_folder, "checkpoint_final.pth")))
        _finish(Path(trained.output_folder))
    (folder / "plans.json").write_text(json.dumps(plans(backbone)))
    (folder / "dataset.json").write_text(json.dumps(dataset_json()))
    fingerprint = {"shapes_after_crop": [[17, 18, 19]], "spacings": [[1, 1, 1]], "cases": list(CASES)}
    (folder / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    return folder


def _trainer(folders: Path, fold: str, backbone: str) -> nnUNetTrainerMAEFinetune:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            patch.setenv(f"nnUNet_{name}", str(folders / name))
        data = folders / "preprocessed" / DATASET / "nnsslMAE_cases_1"
        data.mkdir(parents=True, exist_ok=True)
        (data / "case.b2nd").touch()  # nnU-Net looks at the ending
        given = plans(backbone) | {"continue_training": False}
        number: int | str = fold if fold == "all" else int(fold)
        torch.manual_seed(0)
        trainer = nnUNetTrainerMAEFinetune(given, CONFIGURATION, number, dataset_json(), torch.device("cpu"))
        trainer.initialize()
        return trainer


def _finish(fold: Path) -> None:
    """What training and validation leave beside the checkpoint, with names where nnU-Net writes them."""
    information = PngInfo()
    information.add_text("Source", f"{PLACE}/{CASES[0]}")
    Image.new("RGB", (8, 8)).save(fold / "progress.png", pnginfo=information)
    (fold / "debug.json").write_text(json.dumps({"output_folder": PLACE, "tr_keys": list(CASES)}))
    (fold / "validation").mkdir()
    summary = {
        "foreground_mean": {"Dice": 0.8125},
        "mean": {"1": {"Dice": 0.75}, "2": {"Dice": 0.875}},
        "metric_per_case": [{"reference_file": f"{PLACE}/{case}.nii.gz", "metrics": {}} for case in CASES],
    }
    (fold / "validation" / "summary.json").write_text(json.dumps(summary))
