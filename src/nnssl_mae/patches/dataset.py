"""The preprocessed dataset as nnU-Net's trainer wants it: identifiers and volumes, no labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

from nnssl_mae.scans.storage import ENDING, EXCLUDE_SUFFIX, exclusion_path, open_volume, write_volume


class VolumeDataset(nnUNetBaseDataset):
    """Volumes of float16, (C, Z, Y, X), opened lazily; there is no segmentation and there are no properties."""

    def load_case(self, identifier: str) -> tuple[Any, None, None, dict[str, Any]]:
        """The volume as a lazy array, in the place where nnU-Net expects image, label, earlier label, properties."""
        return open_volume(Path(self.source_folder, f"{identifier}{ENDING}")), None, None, {}

    def load_exclusion(self, identifier: str) -> Any | None:
        """The exclusion mask (1, Z, Y, X), uint8, 1 = excluded, as a lazy array; None if the case has none."""
        path = exclusion_path(Path(self.source_folder), identifier)
        return open_volume(path) if path.is_file() else None

    @staticmethod
    def save_case(data: np.ndarray, seg: None, properties: dict[str, Any], output_filename_truncated: str) -> None:
        """Stores a volume; chunks suit reading it whole."""
        write_volume(Path(f"{output_filename_truncated}{ENDING}"), data, data.shape[1:])

    @staticmethod
    def get_identifiers(folder: str) -> list[str]:
        """Case names of all volumes in a folder."""
        names = (path.name.removesuffix(ENDING) for path in Path(folder).glob(f"*{ENDING}"))
        return [name for name in names if not name.startswith(".") and not name.endswith(EXCLUDE_SUFFIX)]
