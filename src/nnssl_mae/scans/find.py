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


@dataclass(frozen=True)
class Scan:
    """One image file. ``case`` names it inside the dataset, ``subject`` says which scans belong together."""

    path: Path
    case: str
    subject: str


def find_scans(sources: Sequence[Path], subject_regex: str | None = None) -> list[Scan]:
    """Lists the NIfTI files in folders (at any depth) and among the given files, sorted by case name.

    The subject of a scan is, in this order: the first group of ``subject_regex`` in its path; the BIDS entity
    ``sub-XXX`` in its path; the first folder below the source, if at least two such folders hold scans; the file
    name without nnU-Net's channel suffix ``_0000``.

    Raises:
        UserError: a source does not exist, holds no scan, or the expression is wrong or does not match.
    """
    scans: dict[Path, Scan] = {}
    for source in sources:
        for scan in _scans_below(source, _compile(subject_regex)):
            scans.setdefault(scan.path.resolve(), scan)
    return sorted(_with_unique_names(list(scans.values())), key=lambda scan: scan.case)


def _scans_below(source: Path, subject_regex: re.Pattern[str] | None) -> list[Scan]:
    if not source.exists():
        raise UserError(f"{source} does not exist; give a folder of NIfTI files or single files")
    paths = [source] if source.is_file() else sorted(p for p in source.rglob("*") if _is_scan(p))
    root = source.parent if source.is_file() else source
    if source.is_file() and not source.name.endswith(ENDINGS):
        raise UserError(f"{source} is not a NIfTI file; its name must end in .nii.gz or .nii")
    if not paths:
        raise UserError(f"{source} holds no NIfTI file (.nii.gz or .nii) at any depth; check the folder")
    top_folders = {p.relative_to(root).parts[0] for p in paths if len(p.relative_to(root).parts) > 1}
    return [
        Scan(path, stem(path), _subject(path.relative_to(root), subject_regex, len(top_folders) > 1)) for path in paths
    ]


def _is_scan(path: Path) -> bool:
    return path.name.endswith(ENDINGS) and not path.name.startswith(".") and path.is_file()


def stem(path: Path) -> str:
    """File name without its ending, with characters that nnU-Net's file names cannot hold replaced."""
    name = path.name
    for ending in ENDINGS:
        name = name.removesuffix(ending)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


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
    """Equal file names in different folders get their folder's hash; the first keeps no special right."""
    count = Counter(scan.case.lower() for scan in scans)
    return [
        scan
        if count[scan.case.lower()] == 1
        else replace(scan, case=f"{scan.case}-{short_hash(str(scan.path.resolve()), 8)}")
        for scan in scans
    ]
