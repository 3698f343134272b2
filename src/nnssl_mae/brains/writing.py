"""Writes rendered brains as files, in several processes; shared by the demonstration and the study."""

from __future__ import annotations

import functools
import gzip
import multiprocessing
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from nnssl_mae.brains.anatomy import Anatomy
from nnssl_mae.brains.rendering import STYLES, render_brain, sample_appearance
from nnssl_mae.files import whole_file, write_json
from nnssl_mae.parallel import possible_workers


@dataclass(frozen=True)
class Subject:
    """One brain to write; ``label`` is None for an unlabelled one. Paths are relative to the folder written to."""

    seed: tuple[int, ...]
    image: Path
    label: Path | None
    styles: tuple[str, ...] = STYLES
    lesions: tuple[int, int] = (0, 7)
    thick_slices: float = 0.25
    anatomy: str = "icbm"


@dataclass(frozen=True)
class Written:
    """What was drawn for a subject."""

    subject: Subject
    style: str
    lesions: int

    def __str__(self) -> str:
        return f"{self.subject.image.name} ({self.style}, {self.lesions} lesions)"


def write_subjects(
    out: Path,
    anatomies: Mapping[str, Anatomy],
    subjects: Sequence[Subject],
    workers: int,
    on_line: Callable[[str], None],
) -> list[Written]:
    """Render and write every subject below ``out``, in the order given; ``on_line`` is told about each finished one."""
    written = []
    # Spawned, not forked: the progress display runs a thread, and a fork may copy a lock that is held.
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        # Read by each process once; sent along with every subject, an anatomy would take longer than its rendering.
        for name, anatomy in anatomies.items():
            save_anatomy(Path(folder) / f"{name}.npz", anatomy)
        write = functools.partial(write_subject, out, Path(folder))
        with ProcessPoolExecutor(possible_workers(workers), mp_context=context) as pool:
            for done, one in enumerate(pool.map(write, subjects), 1):
                on_line(f"{done} of {len(subjects)}: {one}")
                written.append(one)
    return written


def write_subject(out: Path, anatomies: Path, subject: Subject) -> Written:
    """Render and write one brain from the anatomy in the folder ``anatomies``; the image comes last.

    A brain whose image is there already is not rendered again, so a killed run continues.
    """
    anatomy = _remembered_anatomy(anatomies / f"{subject.anatomy}.npz")
    rng = np.random.default_rng(subject.seed)
    limits = subject.styles, subject.lesions, subject.thick_slices
    appearance = sample_appearance(rng, *limits, tissues=anatomy.tissues)
    written = Written(subject, appearance.style, len(appearance.lesions))
    if (out / subject.image).is_file():
        return written
    image, labels = render_brain(anatomy, appearance)
    if subject.label is not None:
        write_volume(out / subject.label, labels, anatomy.affine)
    write_volume(out / subject.image, image, anatomy.affine)
    return written


def save_anatomy(path: Path, anatomy: Anatomy) -> None:
    """Store an anatomy for :func:`read_anatomy`; no lossy type. The file appears when whole."""
    with whole_file(path) as temporary, temporary.open("wb") as file:  # given a name, numpy would change its ending
        np.savez(
            file,
            t1=anatomy.t1,
            tissue=anatomy.tissue,
            labels=anatomy.labels,
            affine=anatomy.affine,
            spacing=np.asarray(anatomy.spacing),
            tissues=np.asarray(anatomy.tissues),
            has_image=np.asarray(anatomy.has_image),
        )


def read_anatomy(path: Path) -> Anatomy:
    """An anatomy stored by :func:`save_anatomy`."""
    with np.load(path, allow_pickle=False) as stored:
        x, y, z = (float(edge) for edge in stored["spacing"])
        return Anatomy(
            stored["t1"],
            stored["tissue"],
            stored["labels"],
            stored["affine"],
            (x, y, z),
            tuple(str(name) for name in stored["tissues"]),
            bool(stored["has_image"]),
        )


# Subjects come sorted by anatomy, so a process needs one at a time.
_remembered_anatomy = functools.lru_cache(maxsize=1)(read_anatomy)


def write_volume(path: Path, volume: NDArray[np.float32] | NDArray[np.uint8], affine: NDArray[np.float64]) -> None:
    """Write a NIfTI file (``.nii.gz``) that appears when whole; its bytes do not depend on when it was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = gzip.compress(nibabel.Nifti1Image(volume, affine).to_bytes(), compresslevel=3, mtime=0)
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def write_dataset_json(folder: Path, cases: int, names: Mapping[int, str]) -> None:
    """nnU-Net's description of a labelled dataset; ``names`` by label number."""
    content = {
        "channel_names": {"0": "MRI"},
        "labels": {name: label for label, name in names.items()},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    write_json(folder / "dataset.json", content)
