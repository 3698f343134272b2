"""nnU-Net's own preprocessing of one unlabelled scan and its exclusion mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from numpy.typing import NDArray

from nnssl_mae.catalogue.find import Scan
from nnssl_mae.scans.exclusion import read_mask
from nnssl_mae.scans.measure import clip_above
from nnssl_mae.scans.planning import dataset_json


@dataclass(frozen=True)
class Preprocessed:
    """A whole scan as networks are trained on it; arrays (1, Z, Y, X)."""

    volume: NDArray[np.float32]
    excluded: NDArray[np.bool_] | None
    """True = never counts; None if the scan has no exclusion mask."""
    properties: dict[str, Any]
    """What nnU-Net says about reading, cropping and resampling."""


def preprocess(
    scan: Scan, manager: PlansManager, configuration: ConfigurationManager, clip_percentile: float | None
) -> Preprocessed:
    """Reads, clips if the recipe does, and runs nnU-Net's preprocessor; a mask changes nothing of the volume."""
    reader = manager.image_reader_writer_class()
    images, read_properties = reader.read_images([str(scan.path)])
    images = clip_above(images, clip_percentile)

    def stock(mask: NDArray[np.float32] | None) -> tuple[NDArray[np.float32], NDArray[np.int8], dict[str, Any]]:
        properties = dict(read_properties)
        volume, labels, _ = DefaultPreprocessor(verbose=False).run_case_npy(
            images, mask, properties, manager, configuration, dataset_json(1)
        )
        return volume, labels, properties

    if scan.exclude is None:
        volume, _, properties = stock(None)
        return Preprocessed(volume, None, properties)
    volume, labels, properties = stock(read_mask(scan.exclude, reader))
    if any(configuration.use_mask_for_norm):
        # nnU-Net takes the labels for the mask of the norm: where zero voxels are excluded, they would join it.
        volume, *_ = stock(None)
    return Preprocessed(volume, labels == 1, properties)
