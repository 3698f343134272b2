"""The study's data: same files for the same plan, held-out anatomies held out, valid for nnU-Net."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import ndimage

from nnssl_mae.brains import dataset
from nnssl_mae.brains.anatomy import Anatomy
from nnssl_mae.brains.dataset import (
    ANATOMY_REGEX,
    STUDY_LABELS,
    labelled_folder,
    list_subjects,
    tuning_folder,
    write_study_data,
)
from nnssl_mae.brains.labelled import fit, from_labels
from nnssl_mae.brains.plan import Part, StudyData
from nnssl_mae.brains.rendering import STYLES
from nnssl_mae.brains.writing import read_anatomy, save_anatomy
from nnssl_mae.errors import UserError

PLAN = StudyData(
    resolution=6,
    pretraining=Part(anatomies=("icbm", "donor1"), cases=2, styles=STYLES),
    training=Part(anatomies=("icbm",), cases=2, styles=("t1",)),
    tuning=Part(anatomies=("donor4",), cases=2, styles=("t1",)),
    test=Part(anatomies=("mni152",), cases=2, styles=("flair", "pd")),
)


def onion(scale: float) -> Anatomy:
    """Nested balls of fluid, cortex and white matter, with two deep regions, at 6 mm."""
    place = np.indices((40, 40, 40)) - 19.5
    radius = np.linalg.norm(place, axis=0) / scale
    labels = np.select([radius < 12, radius < 15, radius < 17], [3, 2, 1], 0).astype(np.uint8)
    labels[np.linalg.norm(place - np.array([4, 0, 0]).reshape(3, 1, 1, 1), axis=0) < 4] = 4
    labels[np.linalg.norm(place + np.array([4, 0, 0]).reshape(3, 1, 1, 1), axis=0) < 4] = 5
    t1 = ndimage.gaussian_filter(np.array([0, 0.2, 0.5, 0.9, 0.7, 0.6])[labels], 0.7).astype(np.float32)
    return fit(from_labels(labels, np.diag([6.0, 6.0, 6.0, 1.0]), 6, t1), (44, 42, 40))


@pytest.fixture(autouse=True)
def onions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anatomies that take no packages and no time."""

    def load(plan: StudyData, workers: int, on_line: Callable[[str], None]) -> dict[str, Anatomy]:
        return {name: onion(1 - 0.04 * i) for i, name in enumerate(plan.anatomies)}

    monkeypatch.setattr(dataset, "load_anatomies", load)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "load_anatomies", lambda plan, workers, on_line: {n: onion(1) for n in plan.anatomies})
        write_study_data(out, PLAN, lambda line: None, workers=1)
    return out


def volume(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    scan = nibabel.load(path)
    return np.asarray(scan.get_fdata()), scan.affine


def test_nnunet_accepts_both_datasets(written: Path) -> None:
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    for folder in (labelled_folder(PLAN), tuning_folder(PLAN)):
        verify_dataset_integrity(str(written / folder), num_processes=1)


def test_every_part_has_its_files(written: Path) -> None:
    folder = written / labelled_folder(PLAN)
    names = {part: sorted(p.name for p in (folder / part).iterdir()) for part in ("imagesTr", "labelsTs", "imagesReal")}
    assert names["imagesTr"] == ["icbm-train000_0000.nii.gz", "icbm-train001_0000.nii.gz"]
    assert names["labelsTs"] == ["mni152-test000.nii.gz", "mni152-test001.nii.gz"]
    assert names["imagesReal"] == ["mni152-real_0000.nii.gz"]
    assert len(list((written / "scans").glob("sub-*/anat/*.nii.gz"))) == 4
    content = json.loads((folder / "dataset.json").read_text())
    assert content["numTraining"] == 2 and list(content["labels"]) == list(STUDY_LABELS.values())


def test_images_and_labels_share_one_grid(written: Path) -> None:
    entries = json.loads((written / "subjects.json").read_text())
    grids = [volume(written / entry[kind]) for entry in entries for kind in ("image", "label") if entry[kind]]
    assert len(grids) == 4 + 2 * 7
    assert all(values.shape == (44, 42, 40) and np.allclose(affine, grids[0][1]) for values, affine in grids)


def test_images_hold_light_where_labels_hold_brain(written: Path) -> None:
    for entry in json.loads((written / "subjects.json").read_text()):
        image, _ = volume(written / entry["image"])
        assert np.isfinite(image).all() and image.min() == 0 and 100 < image.max() < 10_000
        if entry["label"] and entry["part"] != "real":
            labels, _ = volume(written / entry["label"])
            assert np.array_equal(image > 0, labels > 0)
            assert set(np.unique(labels)) - {6} == set(range(6))


def test_subjects_file_says_what_each_case_is(written: Path) -> None:
    entries = json.loads((written / "subjects.json").read_text())
    assert {entry["part"] for entry in entries} == {"pretraining", "training", "tuning", "test", "real"}
    for entry in entries:
        match = re.match(ANATOMY_REGEX, entry["case"])
        assert match is not None and match[1] == entry["anatomy"]
        assert (written / entry["image"]).is_file()
    assert [entry["style"] for entry in entries if entry["part"] == "test"] == ["flair", "pd"]


def test_same_plan_gives_the_same_bytes(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "load_anatomies", lambda plan, workers, on_line: {n: onion(1) for n in plan.anatomies})
    write_study_data(tmp_path / "again", PLAN, lambda line: None, workers=2)
    first, second = (
        {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}
        for out in (written, tmp_path / "again")
    )
    assert first == second


def test_killed_writing_continues(tmp_path: Path) -> None:
    write_study_data(tmp_path / "data", PLAN, lambda line: None, workers=1)
    kept = next((tmp_path / "data" / "scans").rglob("*.nii.gz"))
    lost = next((tmp_path / "data").rglob("imagesTs/*.nii.gz"))
    kept.write_bytes(b"not rendered again")
    before = lost.read_bytes()
    lost.unlink()
    write_study_data(tmp_path / "data", PLAN, lambda line: None, workers=1)
    assert kept.read_bytes() == b"not rendered again" and lost.read_bytes() == before


def test_data_of_another_plan_is_left_alone(written: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds data of another plan"):
        write_study_data(written, PLAN.model_copy(update={"seed": 7}), lambda line: None)
    (tmp_path / "precious").touch()
    with pytest.raises(UserError, match="holds other files"):
        write_study_data(tmp_path, PLAN, lambda line: None)


def test_no_two_brains_are_the_same_person() -> None:
    subjects = list_subjects(StudyData())
    assert len({subject.seed for subject in subjects}) == len(subjects) == 4 * 50 + 4 * 10 + 12 + 3 * 12
    assert len({subject.image for subject in subjects}) == len(subjects)


def test_default_plan_keeps_anatomies_and_contrasts_apart() -> None:
    parts = StudyData().parts
    seen = set(parts["pretraining"].anatomies) | set(parts["training"].anatomies)
    assert not seen & set(parts["test"].anatomies) and not seen & set(parts["tuning"].anatomies)
    assert not set(parts["test"].anatomies) & set(parts["tuning"].anatomies)
    labelled = set(parts["training"].styles) | set(parts["pretraining"].styles)
    assert {"flair", "pd"} <= set(parts["test"].styles) - labelled


def test_shared_anatomy_is_refused_unless_allowed() -> None:
    content = StudyData().model_dump()
    content["test"]["anatomies"] = ("donor4", "icbm")
    with pytest.raises(ValidationError, match="icbm is in test and in pretraining"):
        StudyData.model_validate(content)
    assert StudyData.model_validate({**content, "allow_shared_anatomies": True}).anatomies[0] == "icbm"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anatomies": ("mni",)}, "there is no mni; choose from icbm"),
        ({"styles": ("t3",)}, "there is no t3; choose from t1"),
        ({"styles": ("t1", "t1")}, "stands twice"),
        ({"lesions": (5, 2)}, "low <= high"),
    ],
)
def test_impossible_part_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Part.model_validate({"anatomies": ("icbm",), "cases": 1, "styles": ("t1",), **change})


def test_plan_survives_yaml() -> None:
    import yaml

    text = yaml.safe_dump(json.loads(PLAN.model_dump_json()))
    assert StudyData.model_validate(yaml.safe_load(text)) == PLAN


def test_stored_anatomy_comes_back_the_same(tmp_path: Path) -> None:
    anatomy = onion(1)
    save_anatomy(tmp_path / "a.npz", anatomy)
    back = read_anatomy(tmp_path / "a.npz")
    assert (back.spacing, back.tissues, back.has_image) == (anatomy.spacing, anatomy.tissues, anatomy.has_image)
    for name in ("t1", "tissue", "labels", "affine"):
        assert np.array_equal(getattr(back, name), getattr(anatomy, name))
