"""Scans that also belong to a labelled dataset: its test images must not be seen during pre-training."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from rich.console import Console

from nnssl_mae.catalogue.examine import voxel_hash
from nnssl_mae.catalogue.find import Scan, stem, subject_in
from nnssl_mae.catalogue.read import ScanProblem, read_header, read_voxels
from nnssl_mae.catalogue.table import ACCEPTED, Catalogue
from nnssl_mae.errors import UserError
from nnssl_mae.files import read_json
from nnssl_mae.folders import find_dataset, nnunet_folder
from nnssl_mae.parallel import in_processes
from nnssl_mae.progress import track
from nnssl_mae.scans.left_out import LeftOut, each

CHECK = "labelled_dataset"
"""Word of this check in the list of what was left out."""

_KNOWN = ("bids", "regex", "dicom")  # ways of knowing a subject that say who it is, not only which files lie together
_SHOWN = 5


def left_out_for(catalogue: Catalogue, numbers: Sequence[int], console: Console, **options: Any) -> list[LeftOut]:
    """The scans of :func:`leaks` as entries of the list of what a dataset does not hold."""
    found = leaks(catalogue, numbers, console, **options)
    paths = dict(zip(catalogue.rows["case"], catalogue.rows["path"], strict=True))
    return [LeftOut(paths[case], case, CHECK, detail) for case, detail in found.items()]


@dataclass(frozen=True)
class LabelledImage:
    """One image (a channel of a case) of a labelled dataset; ``subject`` is empty where the name does not tell."""

    path: Path
    subject: str
    voxel_hashes: tuple[str, ...]
    """Of each of its volumes; of 3D images there is one."""


def leaks(
    catalogue: Catalogue,
    numbers: Sequence[int],
    console: Console,
    workers: int,
    subject_regex: str | None = None,
    match_subjects: bool = True,
) -> dict[str, str]:
    """Accepted scans that must be left out because of labelled datasets, and why (as a part of a sentence).

    A scan is left out if its voxels equal those of an image of the dataset (training and test, every channel; in RAS
    order, so orientation and file format do not matter, but a resampled, cropped or rescaled copy is not found); if its
    subject has such a scan; or if its subject has the name of a subject of the dataset, where names are known (BIDS
    entity or ``subject_regex``).

    Args:
        catalogue: of the unlabelled scans, with voxels read.
        numbers: of the labelled datasets in ``nnUNet_raw``.
        console: for progress and counts.
        workers: processes.
        subject_regex: expression whose first group in a path is the subject, for the labelled images too.
        match_subjects: whether equal names of subjects mean the same person.

    Returns:
        detail by case name.

    Raises:
        UserError: a dataset or one of its images cannot be read, or the catalogue holds no voxel hashes.
    """
    accepted = catalogue.accepted
    if (accepted["voxel_hash"] == "").any():
        raise UserError(
            "The catalogue was made from headers only, so scans cannot be compared with a labelled dataset; run "
            "`nnssl-mae scan` on the same folders without --headers-only"
        )
    found: dict[str, str] = {}
    for number in numbers:
        name = find_dataset(number)
        images = list(_hashed(labelled_images(name), name, workers, console, subject_regex))
        reasons = _matches(catalogue.rows, images, name, match_subjects)
        _report(reasons, name, len(images), console)
        found |= {case: detail for case, (_, detail) in reasons.items()}
    return found


def labelled_images(name: str) -> list[Path]:
    """Every image file, training and test, of a dataset in ``nnUNet_raw``.

    Raises:
        UserError: there are none.
    """
    folder = nnunet_folder("nnUNet_raw") / name
    content = read_json(folder / "dataset.json", f"put the labelled dataset {name} into nnUNet_raw")
    listed = get_filenames_of_train_images_and_targets(str(folder), content)
    paths = {Path(image) for case in listed.values() for image in case["images"]}
    ending = str(content.get("file_ending", ".nii.gz"))
    paths |= {path for path in folder.glob("images*/*") if path.name.endswith(ending)}
    if not paths:
        raise UserError(f"{folder} holds no image (*{ending}) in imagesTr or imagesTs; check the dataset")
    return sorted(paths)


def _hashed(
    paths: Sequence[Path], name: str, workers: int, console: Console, subject_regex: str | None
) -> Iterator[LabelledImage]:
    outcomes = in_processes(_hash, paths, workers)
    for outcome in track(outcomes, f"Comparing with {name}", len(paths), console):
        if outcome.failure is not None or outcome.result is None:
            problem = outcome.failure.summary if outcome.failure else "no result"
            raise UserError(
                f"{outcome.item} of {name} cannot be compared with the scans ({problem}); repair it, or leave out "
                "--exclude-dataset and make sure by other means that no test image is among the scans"
            )
        yield LabelledImage(outcome.item, _subject(outcome.item, subject_regex), outcome.result)


def _hash(path: Path) -> tuple[str, ...]:
    scan = Scan(path, stem(path), "")
    try:
        volumes = read_header(scan).volumes
        frames = [str(n) for n in range(volumes)] if volumes > 1 else [""]
        return tuple(voxel_hash(*read_voxels(replace(scan, frame=frame), "RAS")) for frame in frames)
    except ScanProblem as problem:
        raise ValueError(problem.detail) from problem


def _subject(path: Path, subject_regex: str | None) -> str:
    """Whose an image is by its name alone: in nnU-Net's folders, others say nothing."""
    match = re.search(subject_regex or r"(?:^|[/_])(sub-[A-Za-z0-9]+)", path.name)
    return subject_in(match)


def _matches(
    scans: pandas.DataFrame, images: Sequence[LabelledImage], name: str, match_subjects: bool
) -> dict[str, tuple[str, str]]:
    """Kind of match and detail by case of accepted scans: ``voxels``, ``person`` or ``name``.

    A rejected scan tells of a person too: often it is the copy of the one that is kept, under the person's name in
    another collection.
    """
    by_hash = {one: image.path.name for image in images for one in image.voxel_hashes}
    subjects = {image.subject.lower(): image.path.name for image in images if image.subject}
    seen = [row for row in each(scans) if row.voxel_hash in by_hash]
    rows = list(each(scans[scans["verdict"] == ACCEPTED]))
    reasons: dict[str, tuple[str, str]] = {}
    for row in rows:
        if row.voxel_hash in by_hash:
            reasons[row.case] = ("voxels", f"has the voxels of {by_hash[row.voxel_hash]} of {name}")
    people = {(row.dataset, row.subject): row.case for row in seen if row.subject_from in _KNOWN}
    for row in rows:
        if row.case in reasons:
            continue
        if twin := people.get((row.dataset, row.subject)):
            reasons[row.case] = ("person", f"is of the subject {row.subject}, whose scan {twin} is also in {name}")
        elif match_subjects and row.subject_from in _KNOWN and row.subject.lower() in subjects:
            image = subjects[row.subject.lower()]
            reasons[row.case] = ("name", f"has the subject name {row.subject} of {image} of {name}")
    return reasons


def _report(reasons: dict[str, tuple[str, str]], name: str, n_images: int, console: Console) -> None:
    counts = {kind: sum(1 for found, _ in reasons.values() if found == kind) for kind in ("voxels", "person", "name")}
    lines = [
        f"{name}: {n_images} images compared, {len(reasons)} scans left out: {counts['voxels']} with equal voxels, "
        f"{counts['person']} more of the same persons, {counts['name']} by the name of the subject."
    ]
    if counts["name"]:
        lines.append("Names such as sub-01 occur in many collections; --no-match-subjects compares voxels only.")
    lines += [f"  {case} {detail}" for case, (_, detail) in list(reasons.items())[:_SHOWN]]
    if len(reasons) > _SHOWN:
        lines.append(f"  ... and {len(reasons) - _SHOWN} more")
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True, emoji=False)
