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
from nnssl_mae.brains.anatomies import people_of
from nnssl_mae.brains.anatomy import Anatomy
from nnssl_mae.brains.dataset import (
    ANATOMY_REGEX,
    STUDY_LABELS,
    labelled_folder,
    list_subjects,
    read_study_data,
    tuning_folder,
    write_study_data,
)
from nnssl_mae.brains.labelled import fit, from_labels
from nnssl_mae.brains.plan import Part, StudyData
from nnssl_mae.brains.rendering import STYLES
from nnssl_mae.brains.writing import read_anatomy, save_anatomy
from nnssl_mae.errors import UserError

LOAD = dataset.load_anatomies
STUDIES = Path(__file__).parents[2] / "docs" / "study"
PLAN = StudyData(
    resolution=6,
    pretraining=Part(anatomies=("icbm", "donor1"), cases=2, styles=STYLES),
    training=Part(anatomies=("icbm",), cases=2, styles=("t1",)),
    tuning=Part(anatomies=("donor4",), cases=2, styles=("t1",)),
    test=Part(anatomies=("donor5",), cases=2, styles=("flair", "pd")),
    real_images=True,
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


@pytest.fixture
def load_for_real() -> Callable[..., dict[str, Anatomy]]:
    """What :func:`onions` stands in for."""
    return LOAD


@pytest.fixture(autouse=True)
def onions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anatomies that take no packages and no time."""

    def load(plan: StudyData, workers: int, on_line: Callable[[str], None], folder: Path) -> dict[str, Anatomy]:
        return {name: onion(1 - 0.04 * i) for i, name in enumerate(plan.anatomies)}

    monkeypatch.setattr(dataset, "load_anatomies", load)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "load_anatomies", lambda plan, *others: {n: onion(1) for n in plan.anatomies})
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
    assert names["labelsTs"] == ["donor5-test000.nii.gz", "donor5-test001.nii.gz"]
    assert names["imagesReal"] == ["donor5-real_0000.nii.gz"]
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
    monkeypatch.setattr(dataset, "load_anatomies", lambda plan, *others: {n: onion(1) for n in plan.anatomies})
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


def test_folder_that_cannot_be_written_to_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out, sentence in (
        (tmp_path / "file", "file is a file; give a new folder"),
        (tmp_path / "file" / "x", "Nothing can be written to .*x .*give another folder with -o"),
        (Path("/proc/x"), "Nothing can be written to /proc/x .*give another folder with -o"),
    ):
        with pytest.raises(UserError, match=sentence):
            write_study_data(out, PLAN, lambda line: None, workers=1)


def test_plan_without_a_single_case_writes_nothing(tmp_path: Path) -> None:
    content = PLAN.model_dump()
    for part in PLAN.parts:
        content[part]["cases"] = 0
    with pytest.raises(UserError, match="no cases in any part"):
        write_study_data(tmp_path / "data", StudyData.model_validate(content), lambda line: None, workers=1)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("text", [None, "[1]", "a: [", "colour: 1", "base: nowhere", "resolution: 9"])
def test_sentences_on_a_plan_speak_of_a_plan(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "b.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=r"plan of brains .*b\.yaml") as caught:
        read_study_data(file)
    assert not str(caught.value).startswith(("The recipe", "There is no recipe"))


def test_finished_data_is_only_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_study_data(tmp_path / "data", PLAN, lambda line: None, workers=1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    lines: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "load_anatomies", None)  # whoever calls it fails
        patch.setattr(dataset, "write_subjects", None)
        write_study_data(tmp_path / "data", PLAN, lines.append, workers=1)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == before
    assert len(lines) == 1 and "holds all of it already" in lines[0]
    (tmp_path / "data" / "subjects.json").write_text("{")  # damaged: written again
    write_study_data(tmp_path / "data", PLAN, lambda line: None, workers=1)
    assert len(json.loads((tmp_path / "data" / "subjects.json").read_text())) == len(list_subjects(PLAN)) + 1


def test_killed_writing_does_not_make_its_anatomies_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load_for_real: Callable[..., dict[str, Anatomy]]
) -> None:
    for name in PLAN.anatomies:
        save_anatomy(tmp_path / f"{name}.npz", onion(1))
    monkeypatch.setattr(dataset, "ProcessPoolExecutor", None)  # whoever makes one fails
    found = load_for_real(PLAN, 1, lambda line: None, tmp_path)
    assert tuple(found) == PLAN.anatomies
    assert len({anatomy.labels.shape for anatomy in found.values()}) == 1


def test_no_two_brains_are_the_same_person() -> None:
    subjects = list_subjects(StudyData())
    assert len({subject.seed for subject in subjects}) == len(subjects) == 3 * 50 + 3 * 10 + 12 + 4 * 8
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
    content["test"]["anatomies"] = ("donor4", "donor1")
    with pytest.raises(ValidationError, match="donor1 is in test and in pretraining"):
        StudyData.model_validate(content)
    assert StudyData.model_validate({**content, "allow_shared_anatomies": True}).anatomies[0] == "icbm"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": "mni152", "pretraining": "icbm", "training": "donor1"}, "mni152 is in test and icbm, an average of"),
        ({"tuning": "icbm", "pretraining": "donor1", "training": "mni152"}, "icbm is in tuning and mni152, an average"),
        ({"test": "icbm", "tuning": "mni152", "pretraining": "donor1", "training": "donor1"}, "of the same people"),
        ({"test": "icbm mni152", "pretraining": "donor1", "training": "donor1"}, "would count as two people"),
    ],
)
def test_the_same_people_are_never_on_both_sides(changes: dict[str, str], message: str) -> None:
    """Both averages are of the same 152 people, so a model that was trained on one has seen the other."""
    content = StudyData().model_dump()
    for part, anatomies in changes.items():
        content[part]["anatomies"] = tuple(anatomies.split())
    with pytest.raises(ValidationError, match=message):
        StudyData.model_validate(content)
    StudyData.model_validate({**content, "allow_shared_anatomies": True})


@pytest.mark.parametrize("file", ["small", "reference"])
def test_plans_of_the_published_studies_hold_four_independent_people_for_the_test(file: str) -> None:
    plan = read_study_data(STUDIES / f"{file}.brains.yaml")
    assert not plan.allow_shared_anatomies
    assert len({people_of(name) for name in plan.test.anatomies}) == len(plan.test.anatomies) == 4


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
