"""Scans, and labels if there are any, as the network of a checkpoint would be given them."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnssl_mae.backbones import divisors
from nnssl_mae.catalogue.find import Scan
from nnssl_mae.catalogue.read import Orientation, ScanProblem
from nnssl_mae.checkpoints.describe import Checkpoint
from nnssl_mae.errors import UserError
from nnssl_mae.evaluation.reconstruct import preprocessing_plans
from nnssl_mae.probe.labels import LabelMap, read_labels
from nnssl_mae.scans.foreground import foreground_mask
from nnssl_mae.scans.measure import measure_scan
from nnssl_mae.scans.preprocess import BeyondStock, Preprocessed, orientation_of, preprocess
from nnssl_mae.sizes import are_multiples

_ASSUMED_EDGE = 96  # voxels of a patch
_RESAMPLING = {"order": 3, "order_z": 0, "force_separate_z": None}
_ASSUMED_PLANS = {
    "image_reader_writer": "NibabelIOWithReorient",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
}
_ASSUMED_DATA = {
    "preprocessor_name": "DefaultPreprocessor",
    "spacing": [1.0, 1.0, 1.0],
    "normalization_schemes": ["ZScoreNormalization"],
    "use_mask_for_norm": [False],
    "resampling_fn_data": "resample_data_or_seg_to_shape",
    "resampling_fn_data_kwargs": {**_RESAMPLING, "is_seg": False},
    "resampling_fn_mask": "resample_data_or_seg_to_shape",
    "resampling_fn_mask_kwargs": {**_RESAMPLING, "is_seg": True, "order": 1},
}


Reading = tuple[Orientation, BeyondStock]
"""Turning of the axes, and what is done that stock nnU-Net would not do."""


@dataclass(frozen=True)
class ProbeScan:
    """One scan, preprocessed; arrays (Z, Y, X)."""

    name: str
    group: str
    """Scans of one group, a subject or a labelled case, are never on both sides of the linear probe."""
    scan: Preprocessed
    body: NDArray[np.bool_]
    """True = head or body that is not excluded: where features are sampled."""
    labels: LabelMap | None

    @property
    def volume(self) -> NDArray[np.float32]:
        """The volume alone."""
        return self.scan.volume[0]

    @property
    def counted(self) -> NDArray[np.bool_]:
        """True = not excluded."""
        return np.ones(self.volume.shape, bool) if self.scan.excluded is None else ~self.scan.excluded[0]


def usable(checkpoint: Checkpoint, path: object) -> tuple[Checkpoint, list[str]]:
    """The checkpoint with everything that a probe needs, and sentences about what had to be assumed.

    Raises:
        UserError: it takes several channels.
    """
    if checkpoint.channels != 1:
        raise UserError(
            f"{path} takes {checkpoint.channels} channels, and a probe looks at single scans; compare fine-tuned "
            "models instead"
        )
    notes: list[str] = []
    kwargs = checkpoint.architecture["arch_kwargs"]
    if "strides" not in kwargs:
        strides = [[1, 1, 1], *[[2, 2, 2]] * (int(kwargs["n_stages"]) - 1)]
        architecture = {**checkpoint.architecture, "arch_kwargs": {**kwargs, "strides": strides}}
        checkpoint = replace(checkpoint, architecture=architecture)
        notes.append("The file does not tell the strides of its network: 2 after the first stage are assumed.")
    if not checkpoint.is_preprocessing_known:
        edges = [_multiple(_ASSUMED_EDGE, divisor) for divisor in divisors(checkpoint.architecture)]
        checkpoint = replace(checkpoint, plans=dict(_ASSUMED_PLANS), data={**_ASSUMED_DATA, "patch_size": edges})
        notes.append(
            "The file does not tell how its scans were preprocessed: 1 mm, z-score and RAS are assumed, and if that is "
            "wrong, all numbers here are too low."
        )
    return checkpoint, notes


def _multiple(edge: int, divisor: int) -> int:
    return max(2, math.ceil(edge / divisor)) * divisor


def patch_of(checkpoint: Checkpoint, path: object) -> tuple[int, ...]:
    """The patch of the pre-training, voxels.

    Raises:
        UserError: the network cannot divide it.
    """
    patch = tuple(int(edge) for edge in checkpoint.data["patch_size"])
    units = divisors(checkpoint.architecture)
    if not are_multiples(patch, units):
        raise UserError(
            f"{path} describes a patch of {list(patch)} voxels, which its network cannot divide by "
            f"{list(units)}; the description is damaged"
        )
    return patch


def preprocessing_key(checkpoint: Checkpoint) -> dict[str, Any]:
    """What decides about the volumes: checkpoints with equal keys see the same."""
    kept = ("image_reader_writer", "transpose_forward", "foreground_intensity_properties_per_channel")
    decisive = [key for key in _ASSUMED_DATA if key != "preprocessor_name"]
    return {
        "plans": {key: checkpoint.plans.get(key) for key in kept},
        "data": {key: checkpoint.data[key] for key in decisive},
        "beyond_stock": checkpoint.beyond_stock.words,
    }


def reading_of(checkpoint: Checkpoint) -> Reading:
    """How a checkpoint's scans are read, before they are resampled."""
    return orientation_of(str(checkpoint.plans["image_reader_writer"])), checkpoint.beyond_stock


def scan_problem(scan: Scan, readings: Collection[Reading]) -> str | None:
    """Why a scan cannot be used, as a part of a sentence: damaged, constant, or NaN; None if it can.

    Args:
        scan: is read once for each of them.
        readings: all that it will be read by.
    """
    measured = (measure_scan(scan, orientation, 1, beyond_stock) for orientation, beyond_stock in readings)
    return next((one.problem for one in measured if one.problem), None)


def prepared_scan(scan: Scan, checkpoint: Checkpoint, labels: Path | None, group: str) -> ProbeScan:
    """Preprocesses a scan and its labels as for the checkpoint's training.

    Raises:
        UserError: the scan or its labels are damaged, or do not fit together.
    """
    manager, configuration = preprocessing_plans(checkpoint)
    try:
        prepared = preprocess(scan, manager, configuration, checkpoint.beyond_stock)
    except ScanProblem as problem:
        raise UserError(f"{scan.path} {problem.detail}; leave it out or repair it") from problem
    body = foreground_mask(prepared.volume[0])
    if prepared.excluded is not None:
        body &= ~prepared.excluded[0]
    found = None
    if labels is not None:
        shape = prepared.volume.shape[1:]
        found = read_labels(labels, scan, manager, configuration, prepared.properties, shape)
    return ProbeScan(scan.case, group, prepared, body, found)
