import errno
import json
import os
import shutil
import signal
from pathlib import Path

import nibabel
import numpy as np
import pandas
import pytest
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from rich.console import Console

from nnssl_mae.errors import ResumableError, UserError
from nnssl_mae.plans import CONFIGURATION, network_configuration
from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.recipes.reading import override
from nnssl_mae.scans import prepare as prepare_module
from nnssl_mae.scans.cases import read_cases
from nnssl_mae.scans.planning import topology_note
from nnssl_mae.scans.prepare import prepare
from nnssl_mae.scans.storage import open_volume
from tests.tiny_scans import tiny_scan

ARCHITECTURE = {"network_class_name": "x", "arch_kwargs": {}, "_kw_requires_import": []}


def run(sources: list[Path], recipe: Recipe, number: int = 900, **options) -> Path:
    return prepare(sources, number, "Brains", recipe, recipe, Console(quiet=True), **options)


def data_folder(dataset: Path) -> Path:
    plans = json.loads((dataset / "nnsslMAEPlans.json").read_text())
    return dataset / plans["configurations"][CONFIGURATION]["data_identifier"]


def test_result_equals_the_stock_preprocessor(prepared: Path, scans_folder: Path, nnunet_folders: Path) -> None:
    raw = nnunet_folders / "raw" / "Dataset901_Stock"
    for split in ("imagesTr", "labelsTr"):
        (raw / split).mkdir(parents=True)
    for path in scans_folder.rglob("*.nii.gz"):
        case = path.name.removesuffix(".nii.gz")
        image = nibabel.load(path)
        shutil.copy(path, raw / "imagesTr" / f"{case}_0000.nii.gz")
        labels = (np.asarray(image.dataobj) > 0).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(labels, image.affine), raw / "labelsTr" / f"{case}.nii.gz")
    dataset_json = {"channel_names": {"0": "zscore"}, "labels": {"background": 0, "x": 1}, "numTraining": 8}
    stock = prepared.with_name(raw.name)
    stock.mkdir()
    for folder in (raw, stock):
        (folder / "dataset.json").write_text(json.dumps({**dataset_json, "file_ending": ".nii.gz"}))
    plans = json.loads((prepared / "nnsslMAEPlans.json").read_text()) | {"dataset_name": raw.name}
    (stock / "nnsslMAEPlans.json").write_text(json.dumps(plans))
    DefaultPreprocessor(verbose=False).run(901, CONFIGURATION, "nnsslMAEPlans", num_processes=2)

    ours = data_folder(prepared)
    theirs = nnUNetDatasetBlosc2(str(stock / ours.name))
    assert len(theirs.identifiers) == 8
    for case in theirs.identifiers:
        expected = theirs.load_case(case)[0][:]
        stored = open_volume(ours / f"{case}.b2nd")[:]
        assert stored.dtype == np.float16
        np.testing.assert_array_equal(stored, expected.astype(np.float16))


def test_the_data_folder_holds_volumes_only_and_the_plans_no_path(prepared: Path, scans_folder: Path) -> None:
    folder = data_folder(prepared)
    assert {path.suffix for path in folder.iterdir()} == {".b2nd"}
    for name in ("nnsslMAEPlans.json", "dataset.json", "dataset_fingerprint.json"):
        text = (prepared / name).read_text()
        assert str(scans_folder.parent) not in text
        assert "sub-0" not in text


def test_case_table(prepared: Path) -> None:
    table = read_cases(data_folder(prepared))
    assert sorted(table["subject"]) == [f"sub-{i:02d}" for i in range(8)]
    assert isinstance(table, pandas.DataFrame)
    row = table.loc["sub-03_T1w"]
    volume = open_volume(data_folder(prepared) / "sub-03_T1w.b2nd")[:].astype(np.float32)
    assert tuple(row["shape"]) == volume.shape[1:]
    assert row["percentile_99_5"] == pytest.approx(np.percentile(volume, 99.5), abs=1e-6)


def test_a_number_in_use_is_refused(prepared: Path, scans_folder: Path, tiny_recipe: Recipe) -> None:
    with pytest.raises(UserError, match="900 is in use by Dataset900_Brains"):
        run([scans_folder], tiny_recipe)


@pytest.fixture
def two_scans_and_a_text(tmp_path: Path) -> Path:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for index in range(2):
        nibabel.save(tiny_scan(index)[0], folder / f"s{index}.nii.gz")
    (folder / "bad.nii.gz").write_text("text")
    return folder


def test_bad_scans_stop_and_leave_nothing(nnunet_folders, two_scans_and_a_text, tiny_recipe) -> None:
    with pytest.raises(UserError, match=r"1 of 3 scans cannot be used:\n.*bad.nii.gz is not a readable"):
        run([two_scans_and_a_text], tiny_recipe)
    assert list((nnunet_folders / "preprocessed").iterdir()) == []


def test_bad_scans_can_be_left_out(nnunet_folders, two_scans_and_a_text, tiny_recipe) -> None:
    dataset = run([two_scans_and_a_text], tiny_recipe, skip_bad=True)
    assert sorted(read_cases(data_folder(dataset)).index) == ["s0", "s1"]


def test_a_killed_run_is_continued(nnunet_folders, two_scans_and_a_text, tiny_recipe, monkeypatch) -> None:
    (two_scans_and_a_text / "bad.nii.gz").unlink()

    def die(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "write_cases", die)
        with pytest.raises(KeyboardInterrupt):
            run([two_scans_and_a_text], tiny_recipe)
    (staging,) = (nnunet_folders / "preprocessed").iterdir()
    assert staging.name.startswith(".Dataset900")
    before = {path.name: path.stat().st_mtime_ns for path in staging.rglob("*.b2nd")}
    assert len(before) == 2
    dataset = run([two_scans_and_a_text], tiny_recipe)
    assert {path.name: path.stat().st_mtime_ns for path in dataset.rglob("*.b2nd")} == before
    assert list((nnunet_folders / "preprocessed").iterdir()) == [dataset]


def test_a_full_disk_and_a_killed_worker_keep_what_is_done(
    nnunet_folders, two_scans_and_a_text, tiny_recipe, monkeypatch
) -> None:
    (two_scans_and_a_text / "bad.nii.gz").unlink()
    one_by_one = prepare_module._pool_results

    def fail(work, items, workers):
        for index, result in enumerate(one_by_one(work, items, workers)):
            if index == 1 and work.func is prepare_module.preprocess_scan:
                raise OSError(errno.ENOSPC, "No space left on device")
            yield result

    monkeypatch.setattr(prepare_module, "_pool_results", fail)
    with pytest.raises(ResumableError, match="after 1 of 2 scans; free some and run the same command again"):
        run([two_scans_and_a_text], tiny_recipe)
    (staging,) = (nnunet_folders / "preprocessed").iterdir()
    assert list(staging.rglob("*.b2nd"))

    with pytest.raises(ResumableError, match="A worker process was killed"):
        list(one_by_one(_die, [1], 1))


def _die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_native_spacing_keeps_the_grid(nnunet_folders, tmp_path, tiny_recipe) -> None:
    scans = tmp_path / "native"
    scans.mkdir()
    for index, spacing in enumerate((3.0, 4.0, 5.0)):
        image = np.asarray(tiny_scan(index)[0].dataobj)
        nibabel.save(nibabel.Nifti1Image(image, np.diag([spacing, 4.0, 4.0, 1.0])), scans / f"s{index}.nii.gz")
    dataset = run([scans], override(tiny_recipe, {"data.spacing": "native"}))
    for index in range(3):
        data = np.asarray(tiny_scan(index)[0].dataobj)
        box = [np.ptp(axis) + 1 for axis in np.nonzero(data)]
        volume = open_volume(data_folder(dataset) / f"s{index}.b2nd")
        assert sorted(volume.shape[1:]) == sorted(box)


def test_leaving_the_published_network_is_said(tiny_recipe) -> None:
    published = override(tiny_recipe, {"network.max_stages": 2})
    one = {"configurations": {CONFIGURATION: network_configuration(ARCHITECTURE, tiny_recipe.network, (4, 4, 4), 8)}}
    assert topology_note(one, tiny_recipe) is None
    assert "will not fit it" in (topology_note(one, published) or "")
    thick = override(tiny_recipe, {"data.spacing": (9.0, 1.0, 1.0)})
    assert "another network" in (topology_note(one, thick) or "")


def test_planner_patch_uses_nnunets_own_network(nnunet_folders, scans_folder, tiny_recipe) -> None:
    dataset = run([scans_folder], override(tiny_recipe, {"network.patch_size": "planner"}))
    plans = json.loads((dataset / "nnsslMAEPlans.json").read_text())
    configuration = plans["configurations"][CONFIGURATION]
    assert configuration["architecture"]["arch_kwargs"]["features_per_stage"][0] == 32
    edges = configuration["nnssl_mae"]["block_edges"]
    assert all(size % edge == 0 for size, edge in zip(configuration["patch_size"], edges, strict=True))
