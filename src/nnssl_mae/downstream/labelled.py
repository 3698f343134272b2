"""A labelled nnU-Net dataset: what its raw data and nnU-Net's own plans say."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnssl_mae.errors import UserError
from nnssl_mae.files import read_json
from nnssl_mae.folders import find_dataset, nnunet_folder, planner_environment
from nnssl_mae.plans import STOCK_PLANS

_PLAN_AGAIN = "run nnUNetv2_extract_fingerprint and nnUNetv2_plan_experiment for this dataset again"
_NOT_PLANNED = (OSError, RuntimeError, AssertionError, ValueError, KeyError, IndexError, TypeError, AttributeError)
_PLANS_KEYS = (
    "dataset_name",
    "image_reader_writer",
    "transpose_forward",
    "transpose_backward",
    "foreground_intensity_properties_per_channel",
    "label_manager",
    "configurations",
)
_CONFIGURATION_KEYS = (
    "preprocessor_name",
    "patch_size",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
    "resampling_fn_probabilities",
    "resampling_fn_probabilities_kwargs",
    "architecture",
)


@dataclass(frozen=True)
class Labelled:
    """A labelled dataset that nnU-Net has planned."""

    number: int
    name: str
    """``Dataset004_Hippocampus``."""
    folder: Path
    """In ``nnUNet_preprocessed``."""
    stock: dict[str, Any]
    """nnU-Net's own plans."""
    stock_name: str
    """Name of those plans."""
    fingerprint: dict[str, Any]
    dataset_json: dict[str, Any]
    notes: tuple[str, ...] = ()
    """Sentences about choices made while reading."""

    @property
    def configuration(self) -> dict[str, Any]:
        """nnU-Net's own ``3d_fullres``."""
        configuration: dict[str, Any] = self.stock["configurations"]["3d_fullres"]
        return configuration

    @property
    def channel_names(self) -> list[str]:
        """Names of the input channels; older datasets call them modalities."""
        names = self.dataset_json.get("channel_names") or self.dataset_json["modality"]
        return [str(name) for name in names.values()]

    @property
    def file_ending(self) -> str:
        """Of images and labels, with its dot."""
        return str(self.dataset_json["file_ending"])

    @property
    def cases(self) -> int:
        """Number of training cases."""
        return len(self.fingerprint["spacings"])

    @property
    def heads(self) -> int:
        """Output channels of the network: of labels with background, or of regions; the ignore label has none."""
        regions = self.dataset_json.get("regions_class_order")
        return int(LabelManager(self.dataset_json["labels"], regions).num_segmentation_heads)


def labelled_dataset(number: int, plan_if_missing: bool) -> Labelled:
    """Reads a labelled dataset, and what nnU-Net planned for it.

    Args:
        number: of the dataset in nnU-Net's folders.
        plan_if_missing: run nnU-Net's fingerprint and ResEnc L planner where there are no plans of it yet.

    Raises:
        UserError: no such dataset, not labelled, not planned, single slices only, or damaged files.
    """
    name = find_dataset(number)
    folder = nnunet_folder("nnUNet_preprocessed") / name
    found = _stock_plans_of(folder)
    if not found:
        _refuse_unplanned(number, name, plan_if_missing)
        _plan(number, name)
        found = _stock_plans_of(folder)
    stock = _read_stock(found[0], name)
    labelled = Labelled(
        number=number,
        name=name,
        folder=folder,
        stock=stock,
        stock_name=found[0].stem,
        fingerprint=read_json(folder / "dataset_fingerprint.json", _PLAN_AGAIN),
        dataset_json=read_json(folder / "dataset.json", _PLAN_AGAIN),
        notes=_disagreements(stock, found),
    )
    _check(labelled)
    return labelled


def _stock_plans_of(folder: Path) -> list[Path]:
    files = [folder / f"{name}.json" for name in STOCK_PLANS]
    return [file for file in files if file.is_file()]


def _refuse_unplanned(number: int, name: str, plan_if_missing: bool) -> None:
    if not (nnunet_folder("nnUNet_raw") / name / "dataset.json").is_file():
        raise UserError(f"{name} has no dataset.json in nnUNet_raw; it must be a labelled nnU-Net dataset")
    if not plan_if_missing:
        raise UserError(
            f"{name} has no plans of nnU-Net yet; make them with nnUNetv2_extract_fingerprint -d {number} and "
            f"nnUNetv2_plan_experiment -d {number} -pl nnUNetPlannerResEncL"
        )


def _plan(number: int, name: str) -> None:
    print(f"Running nnU-Net's fingerprint and planner for {name} first ...", flush=True)
    try:
        with planner_environment():
            extract_fingerprints([number], num_processes=int(os.environ.get("nnUNet_def_n_proc", "8")))
            plan_experiments([number], experiment_planner_class_name="nnUNetPlannerResEncL")
    except _NOT_PLANNED as error:
        raise UserError(
            f"nnU-Net cannot plan {name} ({_one_line(error)}); find out why with nnUNetv2_plan_and_preprocess -d "
            f"{number} --verify_dataset_integrity --no_pp"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _read_stock(file: Path, name: str) -> dict[str, Any]:
    plans = read_json(file, _PLAN_AGAIN)
    _require(plans, _PLANS_KEYS, file)
    if plans["dataset_name"] != name:
        raise UserError(f"{file} holds the plans of {plans['dataset_name']}, not of {name}; {_PLAN_AGAIN}")
    if not isinstance(plans["configurations"], dict):
        raise UserError(f"{file} has damaged configurations; {_PLAN_AGAIN}")
    if "3d_fullres" not in plans["configurations"]:
        raise UserError(f"nnU-Net planned no 3D configuration for {name}; its images are single slices")
    configuration = plans["configurations"]["3d_fullres"]
    _require(configuration, _CONFIGURATION_KEYS, file)
    wrong = [f"{key} {plans[key]!r}" for key in ("transpose_forward",) if not _is_axis_order(plans[key])]
    wrong += [f"{key} {configuration[key]!r}" for key in ("spacing", "patch_size") if not _is_size(configuration[key])]
    if wrong:
        raise UserError(f"{file} has {' and '.join(wrong)}, so it is damaged; {_PLAN_AGAIN}")
    return plans


def _is_axis_order(value: Any) -> bool:
    return isinstance(value, list) and all(type(axis) is int for axis in value) and sorted(value) == [0, 1, 2]


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_positive(edge) for edge in value)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < math.inf


def _require(content: Any, keys: tuple[str, ...], file: Path) -> None:
    missing = [key for key in keys if not isinstance(content, Mapping) or key not in content]
    if missing:
        raise UserError(
            f"{file} has no {', '.join(missing[:3])}, so another version of nnU-Net wrote it or it is damaged; "
            f"{_PLAN_AGAIN}"
        )


def _disagreements(stock: Mapping[str, Any], found: list[Path]) -> tuple[str, ...]:
    """Says which of several stock plans was used, where they differ in what is taken from them."""
    others = [file for file in found[1:] if _of_images(_lenient(file)) != _of_images(stock)]
    if not others:
        return ()
    names = ", ".join(file.stem for file in others)
    return (
        f"nnU-Net's plans {found[0].stem} were used; {names} differ from them in spacing, normalisation, reader or "
        "axis order",
    )


def _lenient(file: Path) -> dict[str, Any]:
    """Plans that are only looked at to compare them: damaged ones differ, and are not used."""
    try:
        return read_json(file, _PLAN_AGAIN)
    except UserError:
        return {}


def _of_images(plans: Mapping[str, Any]) -> list[Any]:
    """What plans say about how images are read and preprocessed."""
    configurations = plans.get("configurations")
    configuration = configurations.get("3d_fullres") if isinstance(configurations, Mapping) else None
    found = [plans.get(key) for key in ("transpose_forward", "image_reader_writer")]
    keys = ("spacing", "normalization_schemes", "use_mask_for_norm")
    return found + [configuration.get(key) if isinstance(configuration, Mapping) else None for key in keys]


def _check(labelled: Labelled) -> None:
    """Refuses a dataset whose files do not belong together or miss what is used later."""
    file = labelled.folder / "dataset.json"
    names = labelled.dataset_json.get("channel_names") or labelled.dataset_json.get("modality")
    if not isinstance(names, Mapping) or not names:
        raise UserError(f"{file} names no channels; add channel_names to it and to the one in nnUNet_raw")
    if not str(labelled.dataset_json.get("file_ending", "")).startswith("."):
        raise UserError(f"{file} has no file_ending such as .nii.gz; add it here and to the one in nnUNet_raw")
    _check_labels(labelled, file)
    _check_fingerprint(labelled)
    configuration = labelled.configuration
    planned = len(configuration["normalization_schemes"])
    if planned != len(names) or len(configuration["use_mask_for_norm"]) != len(names):
        raise UserError(
            f"{labelled.folder / labelled.stock_name}.json was planned for {planned} channels and {file} names "
            f"{len(names)}; {_PLAN_AGAIN}"
        )


def _check_labels(labelled: Labelled, file: Path) -> None:
    try:
        heads = labelled.heads
    except _NOT_PLANNED as error:
        raise UserError(
            f"{file} has labels that nnU-Net does not understand ({_one_line(error)}); it needs labels with a "
            "background, and regions_class_order where labels are regions"
        ) from error
    if heads < 1 or len(labelled.dataset_json["labels"]) < 2:
        raise UserError(f"{file} has no labels besides the background; fine-tuning needs a labelled dataset")


def _check_fingerprint(labelled: Labelled) -> None:
    file = labelled.folder / "dataset_fingerprint.json"
    measured = [labelled.fingerprint.get(key) for key in ("spacings", "shapes_after_crop")]
    cases = {len(values) if isinstance(values, list) else 0 for values in measured}
    if len(cases) > 1 or 0 in cases or not all(_is_size(case) for values in measured for case in values or ()):
        raise UserError(f"{file} does not hold the spacing and shape of every case; {_PLAN_AGAIN}")
