"""Where the parts of an nnU-Net dataset lie that a comparison needs, some of which may be gone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from nnssl_mae.comparison.dataset_labels import DatasetLabels, labels_of
from nnssl_mae.errors import UserError
from nnssl_mae.files import read_json
from nnssl_mae.folders import datasets_with_number


@dataclass(frozen=True)
class DatasetPlaces:
    """A dataset in ``nnUNet_raw`` and ``nnUNet_preprocessed``."""

    name: str
    """``Dataset004_Hippocampus``; empty for a test set that is no nnU-Net dataset."""

    @cached_property
    def preprocessed(self) -> Path | None:
        """Its preprocessed folder, if it is there."""
        return self._folder("nnUNet_preprocessed")

    @cached_property
    def raw(self) -> Path | None:
        """Its raw folder, if it is there."""
        return self._folder("nnUNet_raw")

    def references(self) -> Path:
        """The reference labels of the training cases: nnU-Net's own copy, else the raw ones.

        Raises:
            UserError: both are gone.
        """
        places = (self.preprocessed, "gt_segmentations"), (self.raw, "labelsTr")
        for folder, name in places:
            if folder is not None and (folder / name).is_dir():
                return folder / name
        raise UserError(
            f"{self.name} has neither gt_segmentations in nnUNet_preprocessed nor labelsTr in nnUNet_raw; put back "
            "one of them, or the results cannot be measured"
        )

    def current_labels(self) -> DatasetLabels | None:
        """What the dataset's own ``dataset.json`` says today; none if that is gone."""
        return self._current_labels

    @cached_property
    def _current_labels(self) -> DatasetLabels | None:
        path = self._dataset_json
        return None if path is None else labels_of(read_json(path, "put back the dataset's own"), path)

    def dataset_json(self, folder: Path) -> dict[str, Any]:
        """The ``dataset.json`` archived in a folder of a model or of predictions, else the dataset's own.

        Raises:
            UserError: there is neither.
        """
        archived = folder / "dataset.json"
        path = archived if archived.is_file() else self._dataset_json
        if path is None:
            raise UserError(f"{archived} is missing; put back the one that nnU-Net wrote there")
        return read_json(path, "put back the one that nnU-Net wrote there")

    @cached_property
    def _dataset_json(self) -> Path | None:
        paths = [folder / "dataset.json" for folder in (self.preprocessed, self.raw) if folder is not None]
        return next((path for path in paths if path.is_file()), None)

    def _folder(self, variable: str) -> Path | None:
        root = os.environ.get(variable)
        folder = Path(root) / self.name if root and self.name else None
        return folder if folder is not None and folder.is_dir() else None


def dataset_places(number: int, roots: Iterable[Path]) -> DatasetPlaces:
    """The one dataset with this number, in nnU-Net's folders or in these folders of results.

    Raises:
        UserError: there is none, or more than one.
    """
    names = set(datasets_with_number(number))
    for root in roots:
        names |= {path.name for path in root.glob(f"Dataset{number:03d}_*") if path.is_dir()}
    if not names:
        raise UserError(f"There is no dataset {number} in nnU-Net's folders or the results given; check the number")
    if len(names) > 1:
        raise UserError(f"Number {number} belongs to several datasets ({', '.join(sorted(names))}); keep only one")
    return DatasetPlaces(names.pop())


def own_results() -> dict[str, Path]:
    """nnU-Net's own folder of results, by the label ``results``; nothing if it is not set or not there."""
    root = os.environ.get("nnUNet_results")
    return {"results": Path(root)} if root and Path(root).is_dir() else {}


def is_dataset_name(name: object) -> TypeGuard[str]:
    """Whether it is a name as nnU-Net gives it, and no way out of a folder."""
    return isinstance(name, str) and re.fullmatch(r"Dataset\d{3}_[\w.-]+", name) is not None
