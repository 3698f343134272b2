import io
import json
import shutil
from dataclasses import replace
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
from nnssl_mae.catalogue.table import Catalogue
from nnssl_mae.errors import UserError
from nnssl_mae.patches.dataset import VolumeDataset
from nnssl_mae.plans import CONFIGURATION, network_configuration
from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.recipes.reading import override
from nnssl_mae.scans import prepare as prepare_module
from nnssl_mae.scans.cases import read_cases
from nnssl_mae.scans.foreground import decode_occupancy
from nnssl_mae.scans.left_out import LeftOut
from nnssl_mae.scans.planning import topology_note
from nnssl_mae.scans.prepare import prepare
from nnssl_mae.scans.preprocess import BeyondStock
from nnssl_mae.scans.request import Request, drawn
from nnssl_mae.scans.storage import open_volume
from tests.scans.catalogues import catalogue_of, one_by_one, store
from tests.tiny_scans import tiny_scan

ARCHITECTURE = {"network_class_name": "x", "arch_kwargs": {}, "_kw_requires_import": []}


def run(folder: Path, recipe: Recipe) -> Path:
    result = prepare(catalogue_of(folder), Request(900, "Brains", recipe, recipe), Console(quiet=True))
    assert result.folder is not None
    return result.folder


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take seconds to start."""
    monkeypatch.setattr(prepare_module, "in_processes", one_by_one)


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
        # Ours is within 1e-5 before the cast, which may then choose the other of two neighbouring 16-bit numbers.
        step = np.spacing(np.abs(expected).astype(np.float16)).astype(np.float32)
        assert (np.abs(stored.astype(np.float32) - expected) <= 1e-5 + step).all()
        assert (stored != expected.astype(np.float16)).mean() < 0.01


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


def plans_of(dataset: Path) -> dict:
    return json.loads((dataset / "nnsslMAEPlans.json").read_text())


@pytest.mark.parametrize("inside_mask", [False, True])
def test_an_exclusion_mask_goes_where_the_image_goes_and_changes_no_voxel_of_it(
    prepared, masked_scans, tmp_path, inside_mask
) -> None:
    plans = plans_of(prepared)
    plans["configurations"][CONFIGURATION]["use_mask_for_norm"] = [inside_mask]
    path, mask = masked_scans / "masked.nii.gz", masked_scans / "masked_exclude.nii.gz"
    volume = store(Scan(path, "s", "s", mask), plans, tmp_path / "with")
    np.testing.assert_array_equal(volume, store(Scan(path, "s", "s"), plans, tmp_path / "without"))
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
    ours = store(Scan(tmp_path / "raw.nii.gz", "raw", "s"), plans, tmp_path / "v", BeyondStock(clip_high=95.0))
    expected = store(Scan(tmp_path / "clipped.nii.gz", "clipped", "s"), plans, tmp_path / "v")
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.usefixtures("no_processes")
def test_preparing_with_masks_and_a_clip(nnunet_folders, masked_scans, tiny_recipe, tmp_path) -> None:
    wrong = nibabel.Nifti1Image(np.zeros((5, 5, 5), np.uint8), np.eye(4))
    nibabel.save(wrong, masked_scans / "plain_exclude.nii.gz")
    dataset = run(masked_scans, override(tiny_recipe, {"data.clip_percentile": 95.0}))
    folder = data_folder(dataset)
    assert "mask plain_exclude.nii.gz of shape (5, 5, 5)" in (dataset / "left_out.csv").read_text()
    assert {path.name for path in folder.iterdir()} == {"masked.b2nd", "masked_exclude.b2nd", "empty.b2nd"}
    assert sorted(VolumeDataset.get_identifiers(str(folder))) == ["empty", "masked"]
    scan = Scan(masked_scans / "empty.nii.gz", "empty", "empty")
    expected = store(scan, plans_of(dataset), tmp_path / "again", BeyondStock(clip_high=95.0))
    np.testing.assert_array_equal(open_volume(folder / "empty.b2nd")[:], expected)


def test_the_table_says_where_the_head_is(prepared) -> None:
    folder = data_folder(prepared)
    grids = read_cases(folder, ["foreground"])["foreground"]
    for case in ("sub-00_T1w", "sub-01_T1w"):
        volume = open_volume(folder / f"{case}.b2nd")[:].astype(np.float32)
        cells = decode_occupancy(grids[case], volume.shape[1:])
        assert cells.min() < 50
        assert cells.max() == 255


def test_case_table(prepared: Path) -> None:
    table = read_cases(data_folder(prepared))
    assert sorted(table["subject"]) == [f"sub-{i:02d}" for i in range(8)]
    assert isinstance(table, pandas.DataFrame)
    row = table.loc["sub-03_T1w"]
    volume = open_volume(data_folder(prepared) / "sub-03_T1w.b2nd")[:].astype(np.float32)
    assert tuple(row["shape"]) == volume.shape[1:]
    assert row["percentile_99_5"] == pytest.approx(np.percentile(volume, 99.5), abs=1e-6)


def test_a_number_in_use_is_refused(prepared: Path, scans_folder: Path, tiny_recipe: Recipe) -> None:
    others = Request(900, "Others", tiny_recipe, tiny_recipe)
    hint = "900 is in use by Dataset900_Brains; choose another with -d, or -n Brains to go on with it$"
    with pytest.raises(UserError, match=hint):
        prepare(catalogue_of(scans_folder), others, Console(quiet=True))
    (prepared / "request.json").unlink()  # somebody else's
    for name in ("Brains", "Others"):
        with pytest.raises(UserError, match=r"900 is in use by Dataset900_Brains; choose another with -d$"):
            prepare(catalogue_of(scans_folder), replace(others, name=name), Console(quiet=True))


@pytest.mark.usefixtures("no_processes")
def test_what_the_catalogue_rejects_is_listed_and_not_prepared(nnunet_folders, scans_folder, tiny_recipe) -> None:
    catalogue = catalogue_of(scans_folder)
    verdicts = {"sub-02_T1w": ("spacing", "has slices of 9 mm", ""), "sub-03_T1w": ("", "", "not modality == 'T1w'")}
    for case, values in verdicts.items():
        columns = ["check", "detail", "rule", "verdict"]
        catalogue.rows.loc[catalogue.rows["case"] == case, columns] = [*values, "rejected"]
    catalogue = Catalogue(catalogue.rows[:5], {})
    console = Console(file=io.StringIO(), width=300)
    leaked = LeftOut(str(scans_folder / "x"), "sub-04_T1w", "labelled_dataset", "is a test image")
    request = Request(900, "Brains", tiny_recipe, tiny_recipe)
    result = prepare(catalogue, request, console, more_left_out=lambda catalogue: [leaked])
    assert result.folder is not None
    assert (result.prepared, result.left_out, result.failed) == (2, 3, 0)
    assert sorted(read_cases(data_folder(result.folder)).index) == ["sub-00_T1w", "sub-01_T1w"]
    rows = pandas.read_csv(result.folder / "left_out.csv").set_index("case")
    assert rows["check"].to_dict() == {
        "sub-02_T1w": "spacing", "sub-03_T1w": "rule", "sub-04_T1w": "labelled_dataset",
    }  # fmt: skip
    assert rows.loc["sub-03_T1w", "detail"] == "not modality == 'T1w'"
    assert "Left out: 3 (1 spacing, 1 rule, 1 labelled_dataset)" in console.file.getvalue()  # type: ignore[attr-defined]


def test_plans_are_made_from_a_sample_that_is_the_same_everywhere() -> None:
    cases = [f"case{index}" for index in range(2000)]
    sample = drawn(cases, 500)
    assert len(sample) == 500
    assert drawn(reversed(cases), 500) == sample
    assert 200 < sum(case in sample for case in cases[:1000]) < 300
    assert drawn(cases[:20], 500) == set(cases[:20])


@pytest.mark.usefixtures("no_processes")
def test_native_spacing_keeps_the_grid(nnunet_folders, tmp_path, tiny_recipe) -> None:
    scans = tmp_path / "native"
    scans.mkdir()
    for index, spacing in enumerate((3.0, 4.0, 5.0)):
        image = np.asarray(tiny_scan(index)[0].dataobj)
        nibabel.save(nibabel.Nifti1Image(image, np.diag([spacing, 4.0, 4.0, 1.0])), scans / f"s{index}.nii.gz")
    dataset = run(scans, override(tiny_recipe, {"data.spacing": "native"}))
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


@pytest.mark.usefixtures("no_processes")
def test_planner_patch_uses_nnunets_own_network(nnunet_folders, scans_folder, tiny_recipe) -> None:
    dataset = run(scans_folder, override(tiny_recipe, {"network.patch_size": "planner"}))
    plans = json.loads((dataset / "nnsslMAEPlans.json").read_text())
    configuration = plans["configurations"][CONFIGURATION]
    assert configuration["architecture"]["arch_kwargs"]["features_per_stage"][0] == 32
    edges = configuration["nnssl_mae"]["block_edges"]
    assert all(size % edge == 0 for size, edge in zip(configuration["patch_size"], edges, strict=True))
