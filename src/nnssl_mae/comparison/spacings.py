"""How large the voxels of TIFF files are, which say nothing of it themselves.

Arms must not be measured in different units: the spacing of a case is found once, for all of them.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from nnssl_mae.comparison.dataset_places import DatasetPlaces, is_dataset_name
from nnssl_mae.comparison.entries import Run
from nnssl_mae.comparison.label_maps import TIFF_READER, sidecar

Spacing = tuple[float, ...]
Place = tuple[str, str]
"""Dataset and case."""


def tiff_spacings(runs: Sequence[Run]) -> dict[Place, Spacing | None]:
    """mm (z, y, x) of each case that is read as TIFF; none where no file tells it, or predictions contradict.

    A file beside the reference counts first, then those of the raw dataset, then those of all arms' predictions.
    """
    references: dict[Place, list[Path]] = {}
    predictions: dict[Place, list[Path]] = defaultdict(list)
    for run in (run for run in runs if run.reader == TIFF_READER):
        for case in run.cases:
            place, name = (run.dataset, case), f"{case}{run.file_ending}"
            if place not in references:
                references[place] = [run.references / name, *_raw_files(run.dataset, name)]
            predictions[place].append(run.predictions / name)
    return {place: _first(references[place]) or _agreed(predictions[place]) for place in references}


def _raw_files(dataset: str, name: str) -> list[Path]:
    raw = DatasetPlaces(dataset).raw if is_dataset_name(dataset) else None
    return [] if raw is None else [raw / folder / name for folder in ("labelsTr", "imagesTr")]


def _first(files: Iterable[Path]) -> Spacing | None:
    return next((found for file in files if (found := _beside(file)) is not None), None)


def _agreed(files: Iterable[Path]) -> Spacing | None:
    found = {spacing for file in files if (spacing := _beside(file)) is not None}
    return found.pop() if len(found) == 1 else None


def _beside(file: Path) -> Spacing | None:
    """What the JSON file beside a TIFF says; a damaged one says nothing here, and is a failure where it is read."""
    path = sidecar(file, TIFF_READER)
    if path is None or not path.is_file():
        return None
    try:
        spacing = tuple(float(mm) for mm in json.loads(path.read_text(encoding="utf-8"))["spacing"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return spacing if len(spacing) == 3 and all(math.isfinite(mm) and mm > 0 for mm in spacing) else None
