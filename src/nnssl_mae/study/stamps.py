"""Proof of what files in ``nnUNet_preprocessed`` were made from: a small file beside them, written by the study.

The names of plans and folders say too little: another study, or an earlier version of this one, may have used them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnssl_mae.downstream.preprocessed import FINGERPRINT, missing_cases
from nnssl_mae.errors import UserError
from nnssl_mae.files import read_json, short_hash, write_json
from nnssl_mae.plans import PLANS_BLOCK, STOCK_PLANS
from nnssl_mae.study.place import LabelledSet

_NOT_OF_DATA = (
    "inherits_from",
    "architecture",
    "batch_size",
    "patch_size",
    "batch_dice",
    "median_image_size_in_voxels",
    PLANS_BLOCK,  # how it is trained, and from which weights
)
_OF_ALL_DATA = ("image_reader_writer", "transpose_forward", "foreground_intensity_properties_per_channel")
_REPLACE = "remove it, and the study makes it again"


def _stamp(place: Path) -> Path:
    return place.with_name(f"{place.name}.made")  # not .json: plans end so


def _stamped(place: Path) -> str:
    """What a file or folder was made from; empty where no study has written it."""
    try:
        return str(json.loads(_stamp(place).read_text(encoding="utf-8"))["from"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _write(place: Path, origin: str) -> None:
    write_json(_stamp(place), {"from": origin})


# ---------------------------------------------------------------------- fingerprint and nnU-Net's own plans


def is_planned(labelled: LabelledSet, digest: Any) -> str:
    """Why nnU-Net need not plan the dataset; empty if it must.

    Args:
        labelled: the dataset.
        digest: of the dataset, see :func:`nnssl_mae.study.place.dataset_digest`.
    """
    has_plans = any((labelled.preprocessed / f"{name}.json").is_file() for name in STOCK_PLANS)
    fingerprint, description = labelled.preprocessed / FINGERPRINT, labelled.preprocessed / "dataset.json"
    if not has_plans or not fingerprint.is_file() or not description.is_file():
        return ""
    if read_json(description, _REPLACE) != read_json(labelled.raw / "dataset.json", "repair it"):
        return ""
    stamped = _stamped(fingerprint)
    if stamped:
        return "nnU-Net's plans are there" if stamped == short_hash(digest, 64) else ""
    # A user's own: it stands if it knows as many cases and is younger than all of them.
    cases = len(list((labelled.raw / "labelsTr").glob("*")))
    is_whole = len(read_json(fingerprint, _REPLACE).get("spacings", [])) == cases
    is_younger = fingerprint.stat().st_mtime_ns >= _newest(labelled)
    return "nnU-Net's plans are there" if is_whole and is_younger else ""


def _newest(labelled: LabelledSet) -> int:
    folders = (labelled.raw / name for name in ("imagesTr", "labelsTr"))
    return max((path.stat().st_mtime_ns for folder in folders for path in folder.glob("*")), default=0)


def unstamp_fingerprint(labelled: LabelledSet) -> None:
    """Before a fingerprint is taken: a kill must not leave an older proof beside it."""
    _stamp(labelled.preprocessed / FINGERPRINT).unlink(missing_ok=True)


def stamp_fingerprint(labelled: LabelledSet, digest: Any) -> None:
    """Notes from which data the fingerprint was taken."""
    _write(labelled.preprocessed / FINGERPRINT, short_hash(digest, 64))


# ---------------------------------------------------------------------- preprocessed cases


def is_preprocessed(labelled: LabelledSet, plans: str, configuration: str, digest: Any) -> str:
    """Why nnU-Net need not preprocess; empty if it must: cases are missing, or nobody knows what they were made from.

    Args:
        labelled: the dataset.
        plans: name of the plans.
        configuration: of the plans.
        digest: of the dataset.

    Raises:
        UserError: the plans have no such configuration.
    """
    folder = labelled.preprocessed
    if not (folder / f"{plans}.json").is_file() or not (folder / FINGERPRINT).is_file():
        return ""
    data, origin = _data(labelled, plans, configuration, digest)
    missing, cases = missing_cases(data, read_json(folder / FINGERPRINT, "plan the dataset again"))
    return f"the {cases} cases are there" if cases and not missing and _stamped(data) == origin else ""


def unstamp_preprocessed(labelled: LabelledSet, plans: str, configuration: str) -> None:
    """Before cases are preprocessed, see :func:`unstamp_fingerprint`."""
    _stamp(_data(labelled, plans, configuration, None)[0]).unlink(missing_ok=True)


def stamp_preprocessed(labelled: LabelledSet, plans: str, configuration: str, digest: Any) -> None:
    """Notes from which data and with which settings the cases were made."""
    _write(*_data(labelled, plans, configuration, digest))


def _data(labelled: LabelledSet, plans: str, configuration: str, digest: Any) -> tuple[Path, str]:
    """Folder of the preprocessed cases, and what they are to be made from."""
    file = labelled.preprocessed / f"{plans}.json"
    content = read_json(file, _REPLACE)
    settings = _configuration(content.get("configurations"), configuration)
    if settings is None:
        raise UserError(f"{file} has no configuration {configuration}; name another in stock.configuration")
    identifier = str(settings.get("data_identifier", f"{plans}_{configuration}"))
    decisive = {key: value for key, value in settings.items() if key not in _NOT_OF_DATA}
    origin = short_hash([decisive, {key: content.get(key) for key in _OF_ALL_DATA}, digest], 64)
    return labelled.preprocessed / identifier, origin


def _configuration(configurations: Any, name: str, chain: tuple[str, ...] = ()) -> Mapping[str, Any] | None:
    """With what it inherits."""
    part = configurations.get(name) if isinstance(configurations, Mapping) else None
    if not isinstance(part, Mapping) or name in chain:
        return None
    above = part.get("inherits_from")
    inherited = _configuration(configurations, str(above), (*chain, name)) if above else {}
    return None if inherited is None else {**inherited, **part}
