import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.model_sharing.model_import import install_model_from_zip_file
from nnunetv2.utilities.file_path_utilities import get_output_folder

from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.errors import UserError
from nnssl_mae.plans import CONFIGURATION
from tests.export.models import DATASET, MODEL, PLANS, write_model
from tests.export.written import all_bytes, export


@pytest.fixture(scope="module")
def _model_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("finetuned"), folds=("0", "all"))


@pytest.fixture
def model(_model_once: Path, tmp_path: Path) -> Iterator[Path]:
    """A model with the folds 0 and all, in a results folder that no variable of nnU-Net names."""
    yield Path(shutil.copytree(_model_once, tmp_path / "elsewhere" / DATASET / MODEL))


def predict(folder: Path, folds: tuple[str, ...]) -> np.ndarray:
    """A segmentation by stock nnU-Net of a volume that is always the same."""
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), verbose=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), folds)
    volume = np.random.default_rng(0).normal(size=(1, 20, 20, 20)).astype(np.float32)
    return predictor.predict_single_npy_array(volume, {"spacing": [4.0, 4.0, 4.0]}, None, None, True)[1]


def installed(file: Path, results: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Installs as ``nnUNetv2_install_pretrained_model_from_zip`` does; the folder in which ``-tr -p -c`` look."""
    results.mkdir()
    monkeypatch.setenv("nnUNet_results", str(results))
    install_model_from_zip_file(str(file))
    return Path(get_output_folder(DATASET, "nnUNetTrainerMAEFinetune", PLANS, CONFIGURATION))


def test_an_installed_export_predicts_as_the_model(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(model, tmp_path / "out.zip", "nnunet")
    there = installed(tmp_path / "out.zip", tmp_path / "results", monkeypatch)
    for folds in (("0",), ("all",), ("0", "all")):
        assert np.array_equal(predict(there, folds), predict(model, folds))


def test_it_predicts_where_this_package_is_not(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(model, tmp_path / "out.zip", "nnunet")
    there = installed(tmp_path / "out.zip", tmp_path / "results", monkeypatch)
    code = (
        "import sys; sys.modules['nnssl_mae'] = None\n"
        "import numpy, torch\n"
        "from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor\n"
        "p = nnUNetPredictor(use_mirroring=False, device=torch.device('cpu'), allow_tqdm=False)\n"
        f"p.initialize_from_trained_model_folder({str(there)!r}, ('0',))\n"
        "v = numpy.random.default_rng(0).normal(size=(1, 20, 20, 20)).astype(numpy.float32)\n"
        "s = p.predict_single_npy_array(v, {'spacing': [4.0, 4.0, 4.0]}, None, None, True)[1]\n"
        f"numpy.save({str(tmp_path / 'seen.npy')!r}, s)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "nnUNet_extTrainer"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)
    assert np.array_equal(np.load(tmp_path / "seen.npy"), predict(model, ("0",)))


def test_the_zip_holds_the_finished_folds_and_nothing_else(model: Path, tmp_path: Path) -> None:
    (model / "fold_1").mkdir()
    (model / "fold_1" / "checkpoint_latest.pth").write_bytes(b"unfinished")
    printed = export(model, tmp_path / "out.zip", "nnunet")
    assert "folds 0, all" in printed
    with zipfile.ZipFile(tmp_path / "out.zip") as packed:
        names = {name.removeprefix(f"{DATASET}/{MODEL}/") for name in packed.namelist()}
        summary = json.loads(packed.read(f"{DATASET}/{MODEL}/fold_0/validation/summary.json"))
    folds = {
        f"fold_{fold}/{name}"
        for fold in ("0", "all")
        for name in ("checkpoint_final.pth", "progress.png", "validation/summary.json")
    }
    assert names == folds | {"plans.json", "dataset.json", "dataset_fingerprint.json"}
    assert summary["foreground_mean"] == {"Dice": 0.8125}


def test_its_checkpoints_hold_no_state_of_the_optimiser_and_can_be_read_safely(model: Path, tmp_path: Path) -> None:
    before = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=True)
    export(model, tmp_path / "out.zip", "nnunet")
    with zipfile.ZipFile(tmp_path / "out.zip") as packed:
        packed.extractall(tmp_path / "unpacked")
    file = tmp_path / "unpacked" / DATASET / MODEL / "fold_0" / "checkpoint_final.pth"
    after = torch.load(file, weights_only=True)
    assert not after.keys() & {"optimizer_state", "grad_scaler_state", "logging"}
    assert after["trainer_name"] == "nnUNetTrainer"
    assert all(
        torch.equal(tensor, after["network_weights"][name]) for name, tensor in before["network_weights"].items()
    )
    assert after["nnssl_mae"]["initialisation"]["origin"] == before["nnssl_mae"]["initialisation"]["origin"]
    described = read_checkpoint(file)
    assert (described.origin.format, described.data["patch_size"]) == ("nnU-Net", [16, 16, 16])


def rewrite(file: Path, **changes: Any) -> None:
    """Changes top keys of a JSON file; None removes one."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def rewrite_configuration(model: Path, **changes: Any) -> None:
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"][CONFIGURATION] |= changes
    (model / "plans.json").write_text(json.dumps(plans))


def rewrite_fold(model: Path, fold: str, **changes: Any) -> None:
    file = model / fold / "checkpoint_final.pth"
    torch.save(torch.load(file, weights_only=True) | changes, file)


@pytest.mark.parametrize("name", ["../../../escaped", "Dataset004_/../../../escaped", "Dataset004_..", "MyData", None])
def test_a_dataset_name_that_leads_elsewhere_is_refused(name: str | None, model: Path, tmp_path: Path) -> None:
    moved = model.rename(tmp_path / "my_best_model")
    rewrite(moved / "plans.json", dataset_name=name)
    with pytest.raises(UserError, match=r"my_best_model belongs to a dataset .* Dataset001_Name"):
        export(moved, tmp_path / "out.zip", "nnunet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "my_best_model"]


@pytest.mark.parametrize("name", ["../../../../escaped", "..", "a__b", "a\\b", ".hidden", ""])
def test_a_plans_name_that_leads_elsewhere_is_refused(name: str, model: Path, tmp_path: Path) -> None:
    moved = model.rename(model.with_name("renamed"))
    rewrite(moved / "plans.json", plans_name=name)
    with pytest.raises(UserError, match=r"has a plans .* TRAINER__PLANS__CONFIGURATION"):
        export(moved, tmp_path / "out.zip", "nnunet")
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


def test_trainer_and_configuration_that_lead_elsewhere_are_refused(model: Path, tmp_path: Path) -> None:
    moved = model.rename(model.with_name("renamed"))
    started_with = torch.load(moved / "fold_0" / "checkpoint_final.pth", weights_only=True)["init_args"]
    rewrite_fold(moved, "fold_0", init_args=started_with | {"configuration": "../../escaped"})
    with pytest.raises(UserError, match="has a configuration"):
        export(moved / "fold_0", tmp_path / "out.zip", "nnunet")
    rewrite_configuration(moved, nnssl_mae=None)
    rewrite_fold(moved, "fold_0", init_args=started_with, trainer_name="/srv/escaped")
    with pytest.raises(UserError, match="has a trainer"):
        export(moved / "fold_0", tmp_path / "out.zip", "nnunet")
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


@pytest.mark.parametrize("backup", ["fold_0_bak", "fold_0_1", "fold_00", "fold_\u0663", "fold_"])
def test_a_backup_of_a_fold_is_no_fold(backup: str, model: Path, tmp_path: Path) -> None:
    shutil.copytree(model / "fold_0", model / backup)
    assert f"Left out: {backup}, which" in export(model, tmp_path / "out.zip", "nnunet")
    assert "-f 0 all\n" in (tmp_path / "out.README.md").read_text()
    with zipfile.ZipFile(tmp_path / "out.zip") as packed:
        assert not [name for name in packed.namelist() if f"/{backup}/" in name]
    with pytest.raises(UserError, match=f"{backup} is no fold"):
        export(model / backup, tmp_path / "other.zip", "nnunet")


def test_a_model_with_nothing_but_a_backup_is_refused(model: Path, tmp_path: Path) -> None:
    shutil.rmtree(model / "fold_all")
    (model / "fold_0").rename(model / "fold_0_bak")
    with pytest.raises(UserError, match=r"no finished fold \(fold_0_bak is no name of a fold\)"):
        export(model, tmp_path / "out.zip", "nnunet")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architecture": None}, "architecture that is null"),
        ({"architecture": {"arch_kwargs": 3}}, "'3' as arch_kwargs"),
        ({"nnssl_mae": "x"}, "'x' as nnssl_mae"),
        ({"nnssl_mae": {"recipe": 3}}, "'3' as recipe"),
        ({"nnssl_mae": {"initialisation": "s"}}, "'s' as initialisation"),
        ({"nnssl_mae": {"initialisation": {"origin": ["s"]}}}, "as origin"),
        ({"nnssl_mae": {"recipe": {"citation": [3]}}}, "citation that are no list of texts"),
    ],
)
def test_damaged_plans_get_a_sentence(changes, sentence: str, model: Path, tmp_path: Path) -> None:
    whole = (model / "plans.json").read_text()
    rewrite_configuration(model, **changes)
    with pytest.raises(UserError, match=rf"plans\.json, configuration {CONFIGURATION}, has .*{sentence}.*copy the"):
        export(model, tmp_path / "out.zip", "nnunet")
    started_with = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=True)["init_args"]
    rewrite_fold(model, "fold_0", init_args=started_with | {"plans": json.loads((model / "plans.json").read_text())})
    (model / "plans.json").write_text(whole)
    with pytest.raises(UserError, match=rf"checkpoint_final\.pth, configuration .*{sentence}"):
        export(model, tmp_path / "out.zip", "nnunet")
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


@pytest.mark.parametrize("key", ["labels", "channel_names"])
def test_a_damaged_dataset_gets_a_sentence(key: str, model: Path, tmp_path: Path) -> None:
    rewrite(model / "dataset.json", **{key: ["background", "tumour"]})
    with pytest.raises(UserError, match=rf"dataset\.json has .* as {key}"):
        export(model, tmp_path / "out.zip", "nnunet")


@pytest.mark.parametrize("given", ["fold_0", "fold_0/checkpoint_final.pth"])
def test_a_fold_can_be_chosen(given: str, model: Path, tmp_path: Path) -> None:
    export(model / given, tmp_path / "out", "nnunet")
    assert not [name for name in all_bytes(tmp_path / "out.zip") if "fold_all" in name]
    assert "-f 0\n" in (tmp_path / "out.README.md").read_text()


def test_another_checkpoint_of_a_fold_keeps_its_name(model: Path, tmp_path: Path) -> None:
    shutil.copy(model / "fold_0" / "checkpoint_final.pth", model / "fold_0" / "checkpoint_best.pth")
    export(model / "fold_0" / "checkpoint_best.pth", tmp_path / "out.zip", "nnunet")
    with zipfile.ZipFile(tmp_path / "out.zip") as packed:
        assert [name.rsplit("/", 1)[1] for name in packed.namelist() if name.endswith(".pth")] == [
            "checkpoint_best.pth"
        ]
    assert "-chk checkpoint_best.pth" in (tmp_path / "out.README.md").read_text()


def test_a_renamed_folder_gets_the_name_it_was_trained_under(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = model.rename(tmp_path / "my_best_model")
    export(moved, tmp_path / "out.zip", "nnunet")
    there = installed(tmp_path / "out.zip", tmp_path / "results", monkeypatch)
    assert np.array_equal(predict(there, ("0",)), predict(moved, ("0",)))


def test_the_card_says_what_a_user_needs(model: Path, tmp_path: Path) -> None:
    export(model, tmp_path / "brains.zip", "nnunet", licence="cc-by-4.0", data="Two brains.")
    card = (tmp_path / "brains.README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-4.0\n")
    assert "pipeline_tag: image-segmentation" in card
    for words in (
        "# brains",
        "Two brains.",
        "| label bright | 2 |",
        "| fold 0 | 0.8125 |",
        "hf://AnonRes/ResEncL-OpenMind-MAE@abc",
        "nnUNetv2_install_pretrained_model_from_zip brains.zip",
        f"nnUNetv2_predict -d {DATASET} -i INPUT -o OUTPUT -c {CONFIGURATION} ",
        f" -tr nnUNetTrainerMAEFinetune -p {PLANS} -f 0 all\n",
        "eprint = {2412.17041}",
    ):
        assert words in card


@pytest.mark.parametrize("lost", ["checkpoint_final.pth", "validation/summary.json", "progress.png"])
def test_a_model_without_a_finished_fold_is_refused(lost: str, model: Path, tmp_path: Path) -> None:
    for fold in ("fold_0", "fold_all"):
        (model / fold / lost).unlink()
    with pytest.raises(UserError, match=f"no finished fold .*lacks {lost}.*--val"):
        export(model, tmp_path / "out.zip", "nnunet")
    assert not list(tmp_path.glob("*out*"))


def test_a_fold_that_is_not_finished_is_refused(model: Path, tmp_path: Path) -> None:
    (model / "fold_0" / "validation" / "summary.json").unlink()
    with pytest.raises(UserError, match="is not finished"):
        export(model / "fold_0", tmp_path / "out.zip", "nnunet")


@pytest.mark.parametrize("form", ["nnssl", "safetensors"])
def test_other_forms_are_for_pre_trained_networks(form, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="use --format nnunet"):
        export(model, tmp_path / "out", form)
    lone = shutil.copy(model / "fold_0" / "checkpoint_final.pth", tmp_path / "lone.pth")
    with pytest.raises(UserError, match=r"give its folder .* --format nnunet"):
        export(Path(lone), tmp_path / "out", form)


def test_out_inside_the_model_is_refused(model: Path) -> None:
    with pytest.raises(UserError, match="inside the model's folder"):
        export(model, model / "fold_0" / "out.zip", "nnunet")


def test_an_existing_zip_stays_unless_told_otherwise(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out.zip").write_text("mine")
    with pytest.raises(UserError, match="--overwrite"):
        export(model, tmp_path / "out.zip", "nnunet")
    assert (tmp_path / "out.zip").read_text() == "mine"
    export(model, tmp_path / "out.zip", "nnunet", overwrite=True)
    assert zipfile.is_zipfile(tmp_path / "out.zip")


def test_a_damaged_fold_leaves_nothing(model: Path, tmp_path: Path) -> None:
    (model / "fold_all" / "checkpoint_final.pth").write_bytes(b"PK\x03\x04 half of a file")
    with pytest.raises(UserError, match="fold_all"):
        export(model, tmp_path / "out.zip", "nnunet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere"]


def test_postprocessing_is_left_out_and_that_is_said(model: Path, tmp_path: Path) -> None:
    (model / "crossval_results_folds_0").mkdir()
    (model / "crossval_results_folds_0" / "postprocessing.pkl").write_bytes(b"pickle")
    assert "Left out: postprocessing.pkl" in export(model, tmp_path / "out.zip", "nnunet")


def test_a_model_of_stock_nnunet_with_its_numpy_numbers(model: Path, tmp_path: Path) -> None:
    plans = json.loads((model / "plans.json").read_text())
    del plans["configurations"][CONFIGURATION]["nnssl_mae"]
    (model / "plans.json").write_text(json.dumps(plans))
    file = model / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=True)
    del content["nnssl_mae"]
    torch.save(content | {"_best_ema": np.float64(0.5), "logging": {"mean_fg_dice": [np.float32(0.25)]}}, file)
    stock = model.rename(model.with_name(f"nnUNetTrainer__{PLANS}__{CONFIGURATION}"))
    export(stock / "fold_0", tmp_path / "out.zip", "nnunet")
    card = (tmp_path / "out.README.md").read_text()
    assert "the plans are nnU-Net's own" in card
    assert f"-tr nnUNetTrainer -p {PLANS}" in card


def test_a_network_that_is_not_nnunets_own_is_said(tmp_path: Path) -> None:
    folder = write_model(tmp_path, backbone="amaes_unet")
    export(folder, tmp_path / "out.zip", "nnunet")
    assert "predicts only where nnssl_mae is installed" in (tmp_path / "out.README.md").read_text()
