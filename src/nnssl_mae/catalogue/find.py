"""Which files are scans, what each is called, and whose they are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nnssl_mae.errors import UserError
from nnssl_mae.files import short_hash

ENDINGS = (".nii.gz", ".nii")
EXCLUDE_SUFFIX = "_exclude"
"""What the name of an exclusion mask has between the name of its scan and the ending."""


@dataclass(frozen=True)
class Scan:
    """One 3D image. ``case`` names it inside the dataset, ``subject`` says which scans belong together.

    ``exclude`` is its exclusion mask, if there is one.
    """

    path: Path
    """The file, or the folder of a DICOM series."""
    case: str
    subject: str
    exclude: Path | None = None
    series: str = ""
    """UID of the DICOM series in the folder ``path``; empty for files of volumes."""
    frame: str = ""
    """Which volume of a 4D image: its number from 0, or ``mean`` of all; empty where there is one only."""
    dataset: str = ""
    """Which collection it comes from: the name of the folder that was searched."""
    session: str = ""
    """Visit of the subject; empty where it is not known."""


@dataclass(frozen=True)
class FoundScans:
    """The scans, sorted by case name, and exclusion masks whose scan does not lie beside them."""

    scans: list[Scan]
    lonely_masks: list[Path]


def find_scans(
    sources: Sequence[Path], subject_regex: str | None = None, exclude_suffix: str = EXCLUDE_SUFFIX
) -> FoundScans:
    """Lists the NIfTI files in folders (at any depth) and among the given files.

    The subject of a scan is, in this order: the first group of ``subject_regex`` in its path; the BIDS entity
    ``sub-XXX`` in its path; the first folder below the source, if at least two such folders hold scans; the file
    name without nnU-Net's channel suffix ``_0000``.

    A file whose name ends in ``exclude_suffix`` before its ending is no scan, but the exclusion mask of the scan beside
    it that has the rest of the name: ``sub-01_T1w_exclude.nii.gz`` belongs to ``sub-01_T1w.nii.gz``.

    Raises:
        UserError: a source does not exist, holds no scan, or the expression is wrong or does not match.
    """
    _check_suffix(exclude_suffix)
    scans: dict[Path, Scan] = {}
    masks: set[Path] = set()
    for source in sources:
        paths = _images_below(source)
        masks_here = [path for path in paths if _without_ending(path).endswith(exclude_suffix)]
        masks.update(masks_here)
        for scan in _scans_of(source, sorted(set(paths).difference(masks_here)), _compile(subject_regex)):
            scans.setdefault(scan.path.resolve(), replace(scan, exclude=_mask_beside(scan.path, exclude_suffix)))
    if not scans:
        raise UserError(
            f"{', '.join(map(str, sources))}: every file is an exclusion mask by its name (it ends in "
            f"{exclude_suffix}); give the scans too, or another --exclude-suffix"
        )
    lonely = [mask for mask in sorted(masks) if not _has_scan(mask, exclude_suffix)]
    return FoundScans(sorted(_with_unique_names(list(scans.values())), key=lambda scan: scan.case), lonely)


def _images_below(source: Path) -> list[Path]:
    if not source.exists():
        raise UserError(f"{source} does not exist; give a folder of NIfTI files or single files")
    if source.is_file() and not source.name.endswith(ENDINGS):
        raise UserError(f"{source} is not a NIfTI file; its name must end in .nii.gz or .nii")
    paths = [source] if source.is_file() else [path for path in source.rglob("*") if _is_image(path)]
    if not paths:
        raise UserError(f"{source} holds no NIfTI file (.nii.gz or .nii) at any depth; check the folder")
    return paths


def _scans_of(source: Path, paths: Sequence[Path], subject_regex: re.Pattern[str] | None) -> list[Scan]:
    root = source.parent if source.is_file() else source
    top_folders = {p.relative_to(root).parts[0] for p in paths if len(p.relative_to(root).parts) > 1}
    return [
        Scan(path, stem(path), _subject(path.relative_to(root), subject_regex, len(top_folders) > 1)) for path in paths
    ]


def _is_image(path: Path) -> bool:
    return path.name.endswith(ENDINGS) and not path.name.startswith(".") and path.is_file()


def _check_suffix(suffix: str) -> None:
    if not re.fullmatch(r"[^/\\]+", suffix) or suffix.endswith(ENDINGS):
        raise UserError(
            f"--exclude-suffix '{suffix}' is not possible; give what the name of a mask has between the name of its "
            "scan and the ending, such as _exclude"
        )


def _mask_beside(scan: Path, suffix: str) -> Path | None:
    """The exclusion mask of a scan, whichever ending it has."""
    names = [f"{_without_ending(scan)}{suffix}{ending}" for ending in ENDINGS]
    return next((path for name in names if (path := scan.with_name(name)).is_file()), None)


def _has_scan(mask: Path, suffix: str) -> bool:
    name = _without_ending(mask).removesuffix(suffix)
    return any(mask.with_name(f"{name}{ending}").is_file() for ending in ENDINGS)


def _without_ending(path: Path) -> str:
    name = path.name
    for ending in ENDINGS:
        name = name.removesuffix(ending)
    return name


def stem(path: Path) -> str:
    """File name without its ending, with characters that nnU-Net's file names cannot hold replaced."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", _without_ending(path))


def _subject(relative: Path, subject_regex: re.Pattern[str] | None, folders_are_subjects: bool) -> str:
    if subject_regex is not None:
        match = subject_regex.search(relative.as_posix())
        if match is None or not match.groups():
            raise UserError(
                f"--subject-regex '{subject_regex.pattern}' finds no group in '{relative.as_posix()}'; "
                "it needs one pair of brackets that matches in every path"
            )
        return match.group(1)
    if bids := re.search(r"(?:^|[/_])(sub-[A-Za-z0-9]+)", relative.as_posix()):
        return bids.group(1)
    if folders_are_subjects and len(relative.parts) > 1:
        return relative.parts[0]
    return re.sub(r"_\d{4}$", "", stem(relative))


def _compile(expression: str | None) -> re.Pattern[str] | None:
    try:
        return None if expression is None else re.compile(expression)
    except re.error as error:
        raise UserError(f"--subject-regex '{expression}' is not a regular expression: {error}") from error


def _with_unique_names(scans: list[Scan]) -> list[Scan]:
    """Equal file names in different folders get their folder's hash; the first keeps no special right.

    So do names that would make the stored volume look like an exclusion mask.
    """
    count = Counter(scan.case.lower() for scan in scans)
    return [
        scan
        if count[scan.case.lower()] == 1 and not scan.case.endswith(EXCLUDE_SUFFIX)
        else replace(scan, case=f"{scan.case}-{short_hash(str(scan.path.resolve()), 8)}")
        for scan in scans
    ]
