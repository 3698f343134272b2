"""Writes the data of a study: unlabelled scans, a labelled nnU-Net dataset with test cases, and one to tune on.

    OUT/scans/sub-icbmpre003/anat/sub-icbmpre003_T1w.nii.gz     unlabelled, for pre-training
    OUT/nnUNet_raw/Dataset911_StudyBrains/imagesTr, labelsTr    labelled, for training
                                          imagesTs, labelsTs    other anatomies, for the test
                                          imagesReal, labelsReal  real average images of test anatomies
    OUT/nnUNet_raw/Dataset912_StudyTuning/imagesTr, labelsTr    other anatomies again, to choose settings on
    OUT/subjects.json                                           part, anatomy, contrast, lesions and seed of each case

A case is named after its anatomy, ``icbm-train003``: ``ANATOMY_REGEX`` finds it, and it is the unit of resampling, as
brains of one anatomy share its folding and are not independent. All volumes of a study share one grid.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from nnssl_mae.brains.anatomies import ANATOMIES, load_study_anatomy
from nnssl_mae.brains.anatomy import Anatomy, label_names
from nnssl_mae.brains.labelled import STUDY_TISSUES, bounding_box, fit
from nnssl_mae.brains.plan import Part, StudyData
from nnssl_mae.brains.writing import (
    Subject,
    Written,
    read_anatomy,
    save_anatomy,
    write_dataset_json,
    write_subjects,
    write_volume,
)
from nnssl_mae.errors import UserError
from nnssl_mae.files import read_json, write_json
from nnssl_mae.parallel import possible_workers
from nnssl_mae.recipes.reading import parse, read_yaml

ANATOMY_REGEX = r"^([a-z0-9]+)-"
"""The base anatomy in a case's name."""
STUDY_LABELS = label_names(STUDY_TISSUES)
SCANS, RAW = Path("scans"), Path("nnUNet_raw")

_PLAN, _SUBJECTS, _ANATOMIES = "study_data.json", "subjects.json", ".anatomies"
_SHORT = {"pretraining": "pre", "training": "train", "tuning": "tune", "test": "test"}
_SUFFIX = {"t1": "T1w", "t2": "T2w", "flair": "FLAIR", "pd": "PDw", "random": "random"}
_ROOM = 1.12  # a rendered brain is up to that much larger than its anatomy
_REAL_UNITS = 1000  # image units of the brightest voxel of a real average image


def read_study_data(file: Path) -> StudyData:
    """The plan of a YAML file.

    Raises:
        UserError: no such file, or it is not valid.
    """
    if file.suffix not in (".yaml", ".yml"):
        raise UserError(f"{file} is no plan of brains; its name must end in .yaml")
    try:
        return parse(StudyData, read_yaml(str(file)), str(file))
    except UserError as error:
        raise UserError(_of_a_plan(str(error))) from error


def _of_a_plan(sentence: str) -> str:
    """The reader of recipes calls what it reads a recipe."""
    for theirs, ours in (
        ("There is no recipe file ", "There is no plan of brains "),
        ("The recipe file ", "The plan of brains "),
        ("The recipe ", "The plan of brains "),
    ):
        if sentence.startswith(theirs):
            return ours + sentence.removeprefix(theirs)
    return sentence


def labelled_folder(plan: StudyData) -> Path:
    """The dataset with training and test cases, relative to the folder written to."""
    return RAW / f"Dataset{plan.dataset:03d}_StudyBrains"


def tuning_folder(plan: StudyData) -> Path:
    """The dataset to tune on, relative to the folder written to."""
    return RAW / f"Dataset{plan.tuning_dataset:03d}_StudyTuning"


def write_study_data(out: Path, plan: StudyData, on_line: Callable[[str], None], workers: int = 2) -> None:
    """Write all data of ``plan`` below ``out``; the same call continues after a kill.

    What is finished is only looked at: the same call again takes seconds.

    Args:
        out: a new folder, or one that this function wrote to with the same plan.
        plan: what to write; the files depend on it alone.
        on_line: is told about each finished scan.
        workers: processes.

    Raises:
        UserError: no part has cases, ``out`` holds data of another plan or cannot be written to, an anatomy's package
            is not installed, or a volume is too small.
    """
    if not plan.anatomies:
        raise UserError("The plan of brains has no cases in any part; give at least one part cases")
    _claim(out, plan)
    if _is_finished(out, plan):
        shutil.rmtree(out / _ANATOMIES, ignore_errors=True)
        on_line(f"{out} holds all of it already.")
        return
    anatomies = load_anatomies(plan, workers, on_line, _folder(out / _ANATOMIES))
    subjects = list_subjects(plan)
    write_dataset_json(_folder(out / labelled_folder(plan)), len(_cases(plan.training)), STUDY_LABELS)
    write_dataset_json(_folder(out / tuning_folder(plan)), len(_cases(plan.tuning)), STUDY_LABELS)
    written = write_subjects(out, anatomies, sorted(subjects, key=_anatomy_first), workers, on_line)
    entries = [_entry(one) for one in written]
    if plan.real_images:
        real = {name: anatomies[name] for name in plan.test.anatomies if name in anatomies}
        entries += _write_real_images(out, labelled_folder(plan), real, on_line)
    write_json(out / _SUBJECTS, sorted(entries, key=lambda entry: str(entry["image"])))
    shutil.rmtree(out / _ANATOMIES)


def _is_finished(out: Path, plan: StudyData) -> bool:
    """Whether every file is there. The list of subjects is written last and names the real images too."""
    try:
        entries = json.loads((out / _SUBJECTS).read_text(encoding="utf-8"))
        listed = {entry[kind] for entry in entries for kind in ("image", "label") if entry[kind]}
    except (OSError, ValueError, TypeError, KeyError):
        return False  # not there, or damaged: it is written again
    planned = {path.as_posix() for subject in list_subjects(plan) for path in (subject.image, subject.label) if path}
    described = {(folder(plan) / "dataset.json").as_posix() for folder in (labelled_folder, tuning_folder)}
    return planned <= listed and all((out / path).is_file() for path in listed | described)


def list_subjects(plan: StudyData) -> list[Subject]:
    """Every brain of the plan, with where it goes; the seeds of no two are equal."""
    return [subject for name in plan.parts for subject in _part_subjects(plan, name)]


def _part_subjects(plan: StudyData, name: str) -> Iterator[Subject]:
    part, number = plan.parts[name], list(plan.parts).index(name)
    for anatomy, i in _cases(part):
        style = part.styles[i % len(part.styles)]
        image, label = _places(plan, name, f"{anatomy}-{_SHORT[name]}{i:03d}", style)
        # Which part a brain belongs to is part of its seed, so no subject can be in two parts.
        seed = (plan.seed, number, ANATOMIES.index(anatomy), i)
        yield Subject(seed, image, label, (style,), part.lesions, part.thick_slices, anatomy)


def _cases(part: Part) -> list[tuple[str, int]]:
    return [(anatomy, i) for anatomy in part.anatomies for i in range(part.cases)]


def _places(plan: StudyData, part: str, case: str, style: str) -> tuple[Path, Path | None]:
    """Image and label of a case, relative to the folder written to."""
    if part == "pretraining":
        # A subject's name in BIDS holds no hyphen.
        name = f"sub-{case.replace('-', '')}"
        return SCANS / name / "anat" / f"{name}_{_SUFFIX[style]}.nii.gz", None
    folder = tuning_folder(plan) if part == "tuning" else labelled_folder(plan)
    suffix = "Ts" if part == "test" else "Tr"
    return folder / f"images{suffix}" / f"{case}_0000.nii.gz", folder / f"labels{suffix}" / f"{case}.nii.gz"


def _anatomy_first(subject: Subject) -> int:
    return ANATOMIES.index(subject.anatomy)


def load_anatomies(plan: StudyData, workers: int, on_line: Callable[[str], None], folder: Path) -> dict[str, Anatomy]:
    """The plan's anatomies on one grid, the same for all. A donor takes about 20 s of a core, whatever the resolution.

    Args:
        plan: names them, and their resolution.
        workers: processes.
        on_line: is told about each one that was made.
        folder: of this plan alone; keeps them, so that they are made once however often the writing is killed.

    Raises:
        UserError: a package is not installed, or ``plan.size`` does not hold an anatomy.
    """
    missing = [name for name in plan.anatomies if not _kept(folder, name).is_file()]
    if missing:
        keep = functools.partial(_keep_anatomy, folder, plan.resolution)
        with ProcessPoolExecutor(possible_workers(workers), mp_context=multiprocessing.get_context("spawn")) as pool:
            for number, name in enumerate(pool.map(keep, missing), 1):
                on_line(f"anatomy {number} of {len(missing)}: {name}")
    loaded = {name: read_anatomy(_kept(folder, name)) for name in plan.anatomies}
    shape = plan.size or _common_shape(loaded)
    return {name: fit(anatomy, shape) for name, anatomy in loaded.items()}


def _kept(folder: Path, name: str) -> Path:
    return folder / f"{name}.npz"


def _keep_anatomy(folder: Path, resolution: int, name: str) -> str:
    save_anatomy(_kept(folder, name), load_study_anatomy(name, resolution))
    return name


def _common_shape(anatomies: Mapping[str, Anatomy]) -> tuple[int, int, int]:
    extents = [np.subtract(*reversed(bounding_box(anatomy))) for anatomy in anatomies.values()]
    x, y, z = (int(n) for n in np.ceil(np.max(extents, axis=0) * _ROOM / 2) * 2)
    return x, y, z


def _write_real_images(
    out: Path, folder: Path, anatomies: Mapping[str, Anatomy], on_line: Callable[[str], None]
) -> list[dict[str, object]]:
    """The image an anatomy was made from, neither bent nor painted, with its labels."""
    entries = []
    for name, anatomy in anatomies.items():
        if anatomy.has_image:
            case = f"{name}-real"
            image, label = folder / "imagesReal" / f"{case}_0000.nii.gz", folder / "labelsReal" / f"{case}.nii.gz"
            write_volume(out / label, anatomy.labels, anatomy.affine)
            write_volume(out / image, anatomy.t1 * np.float32(_REAL_UNITS), anatomy.affine)
            entries.append(_describe(case, "real", name, "t1", 0, image, label))
            on_line(f"real average image: {image.name}")
    return entries


def _entry(written: Written) -> dict[str, object]:
    subject = written.subject
    case = _case_name(subject)
    part = list(_SHORT)[subject.seed[1]]
    entry = _describe(case, part, subject.anatomy, written.style, written.lesions, subject.image, subject.label)
    return {**entry, "seed": list(subject.seed)}


def _case_name(subject: Subject) -> str:
    _, part, _, i = subject.seed
    return f"{subject.anatomy}-{list(_SHORT.values())[part]}{i:03d}"


def _describe(
    case: str, part: str, anatomy: str, style: str, lesions: int, image: Path, label: Path | None
) -> dict[str, object]:
    return {
        "case": case,
        "part": part,
        "anatomy": anatomy,
        "style": style,
        "lesions": lesions,
        "image": image.as_posix(),
        "label": None if label is None else label.as_posix(),
    }


def _claim(out: Path, plan: StudyData) -> None:
    """Note the plan in ``out``; data of another one would be taken for ours."""
    content = json.loads(plan.model_dump_json())
    path = out / _PLAN
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a new folder for the study's data with -o")
    try:
        if not path.is_file():
            if out.is_dir() and any(out.iterdir()):
                raise UserError(f"{out} holds other files; give a new folder for the study's data")
            write_json(_folder(out) / _PLAN, content)
    except OSError as error:
        raise UserError(f"Nothing can be written to {out} ({error.strerror}); give another folder with -o") from error
    if read_json(path, f"delete {out} and write the data again") != content:
        raise UserError(f"{out} holds data of another plan (see {path.name}); give a new folder")


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path
