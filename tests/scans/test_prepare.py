import errno
import io
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
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from rich.console import Console

from nnssl_mae.catalogue.find import Scan
from nnssl_mae.errors import ResumableError, UserError
from nnssl_mae.patches.dataset import VolumeDataset
from nnssl_mae.plans import CONFIGURATION, network_configuration
from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.recipes.reading import override
from nnssl_mae.scans import prepare as prepare_module
from nnssl_mae.scans.cases import read_cases, read_foreground, table_path
from nnssl_mae.scans.foreground import decode_occupancy
from nnssl_mae.scans.planning import topology_note
from nnssl_mae.scans.prepare import prepare, preprocess_scan
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


@pytest.fixture
def masked_scans(tmp_path: Path) -> Path:
    """A scan (turned, coarse slices) with a mask over a corner of the head and air, one with an empty mask, one with
    none, and a mask without scan."""
    folder = tmp_path / "masked"
    folder.mkdir()
    affine = np.array([[0.0, -3, 0, 90], [4, 0, 0, -100], [0, 0, 5, -70], [0, 0, 0, 1]])
    for index, name in enumerate(("masked", "empty", "plain")):
        image = np.asarray(tiny_scan(index)[0].dataobj)
        nibabel.save(nibabel.Nifti1Image(image, affine), folder / f"{name}.nii.gz")
    mask = np.zeros(image.shape, np.float32)
    nibabel.save(nibabel.Nifti1Image(mask, affine), folder / "empty_exclude.nii.gz")
    mask[:, 30:, :25] = 7
    mask[:, 50:, :25] = 0.5
    nibabel.save(nibabel.Nifti1Image(mask, affine), folder / "masked_exclude.nii.gz")
    nibabel.save(nibabel.Nifti1Image(mask, affine), folder / "gone_exclude.nii.gz")
    return folder


def preprocessed(scan: Scan, plans: dict, folder: Path, **options) -> np.ndarray:
    folder.mkdir(exist_ok=True)
    assert not isinstance(preprocess_scan(scan, plans, folder, **options), str)
    return open_volume(folder / f"{scan.case}.b2nd")[:]


def plans_of(dataset: Path) -> dict:
    return json.loads((dataset / "nnsslMAEPlans.json").read_text())


@pytest.mark.parametrize("inside_mask", [False, True])
def test_an_exclusion_mask_goes_where_the_image_goes_and_changes_no_voxel_of_it(
    prepared, masked_scans, tmp_path, inside_mask
) -> None:
    plans = plans_of(prepared)
    plans["configurations"][CONFIGURATION]["use_mask_for_norm"] = [inside_mask]
    path, mask = masked_scans / "masked.nii.gz", masked_scans / "masked_exclude.nii.gz"
    volume = preprocessed(Scan(path, "s", "s", mask), plans, tmp_path / "with")
    np.testing.assert_array_equal(volume, preprocessed(Scan(path, "s", "s"), plans, tmp_path / "without"))
    assert [file.name for file in (tmp_path / "without").iterdir()] == ["s.b2nd"]

    # As nnU-Net's preprocessor treats a segmentation.
    labels = tmp_path / "labels.nii.gz"
    image = nibabel.load(mask)
    nibabel.save(nibabel.Nifti1Image((image.get_fdata() != 0).astype(np.uint8), image.affine), labels)
    manager = PlansManager(plans)
    _, expected, _ = DefaultPreprocessor(verbose=False).run_case(
        [str(path)], str(labels), manager, manager.get_configuration(CONFIGURATION),
        {"channel_names": {"0": "x"}, "labels": {"background": 0, "excluded": 1}, "file_ending": ".nii.gz"},
    )  # fmt: skip
    stored = open_volume(tmp_path / "with" / "s_exclude.b2nd")[:]
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(stored, expected == 1)
    assert 0.01 < stored.mean() < 0.5


def test_clipping_comes_before_everything_else(prepared, tmp_path) -> None:
    image = tiny_scan(0)[0]
    data = np.asarray(image.dataobj)
    clipped = np.minimum(data, np.percentile(data, 95).astype(np.float32))
    for name, voxels in (("raw", data), ("clipped", clipped)):
        nibabel.save(nibabel.Nifti1Image(voxels, image.affine), tmp_path / f"{name}.nii.gz")
    plans = plans_of(prepared)
    ours = preprocessed(Scan(tmp_path / "raw.nii.gz", "raw", "s"), plans, tmp_path / "v", clip_percentile=95.0)
    expected = preprocessed(Scan(tmp_path / "clipped.nii.gz", "clipped", "s"), plans, tmp_path / "v")
    np.testing.assert_array_equal(ours, expected)


def test_preparing_with_masks_and_a_clip(nnunet_folders, masked_scans, tiny_recipe, tmp_path) -> None:
    wrong = nibabel.Nifti1Image(np.zeros((5, 5, 5), np.uint8), np.eye(4))
    nibabel.save(wrong, masked_scans / "plain_exclude.nii.gz")
    console = Console(record=True, file=io.StringIO(), width=400)
    recipe = override(tiny_recipe, {"data.clip_percentile": 95.0})
    folder = data_folder(prepare([masked_scans], 900, "Brains", recipe, recipe, console, skip_bad=True))
    text = console.export_text()
    assert "Found 3 scans of 3 subjects, 3 with an exclusion mask." in text
    assert "1 files are exclusion masks by their names" in text
    assert "gone_exclude.nii.gz" in text
    assert "plain.nii.gz has an exclusion mask plain_exclude.nii.gz of shape (5, 5, 5)" in text
    assert {path.name for path in folder.iterdir()} == {"masked.b2nd", "masked_exclude.b2nd", "empty.b2nd"}
    assert sorted(VolumeDataset.get_identifiers(str(folder))) == ["empty", "masked"]
    scan = Scan(masked_scans / "empty.nii.gz", "empty", "empty")
    expected = preprocessed(scan, plans_of(folder.parent), tmp_path / "again", clip_percentile=95.0)
    np.testing.assert_array_equal(open_volume(folder / "empty.b2nd")[:], expected)


def test_another_mask_starts_anew_where_a_killed_run_left_volumes(masked_scans) -> None:
    path, mask = masked_scans / "plain.nii.gz", masked_scans / "plain_exclude.nii.gz"
    shutil.copy(masked_scans / "empty_exclude.nii.gz", mask)
    identities = [prepare_module._identity(Scan(path, "plain", "plain", exclude)) for exclude in (None, mask)]
    mask.write_bytes((masked_scans / "masked_exclude.nii.gz").read_bytes())
    identities.append(prepare_module._identity(Scan(path, "plain", "plain", mask)))
    assert len({json.dumps(identity) for identity in identities}) == 3


def test_the_table_says_where_the_head_is_and_says_it_again_for_a_volume_on_disk(prepared, scans_folder) -> None:
    folder = data_folder(prepared)
    cases = ["sub-00_T1w", "sub-01_T1w"]
    for case, content in read_foreground(folder, cases).items():
        volume = open_volume(folder / f"{case}.b2nd")[:].astype(np.float32)
        cells = decode_occupancy(content, volume.shape[1:])
        assert cells.min() < 50
        assert cells.max() == 255
        path = next(scans_folder.rglob(f"{case}.nii.gz"))
        row = preprocess_scan(Scan(path, case, "s"), plans_of(prepared), folder)
        assert row.foreground == content
        assert row.percentile_99_5 == read_cases(folder).loc[case, "percentile_99_5"]


def test_an_older_table_is_read_and_refused_only_where_the_head_is_asked_for(prepared: Path) -> None:
    folder = data_folder(prepared)
    table = read_cases(folder)
    with pytest.raises(UserError, match="lacks 1 of 2 cases, such as nobody"):
        read_foreground(folder, ["sub-00_T1w", "nobody"])
    table.reset_index().to_parquet(table_path(folder), index=False)
    assert len(read_cases(folder)) == 8
    with pytest.raises(UserError, match=r"earlier version.*under another number, or set masking.region to 'uniform'"):
        read_foreground(folder, ["sub-00_T1w"])


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
    # A worker that was killed while it wrote could not clean up.
    (volumes,) = [path for path in staging.iterdir() if path.is_dir()]
    (volumes / ".left.b2nd.4711.tmp").write_bytes(b"half a volume")
    dataset = run([two_scans_and_a_text], tiny_recipe)
    assert {path.name: path.stat().st_mtime_ns for path in dataset.rglob("*.b2nd")} == before
    assert list((nnunet_folders / "preprocessed").iterdir()) == [dataset]
    assert not list(dataset.rglob("*.tmp"))


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
