import json
import pickle
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import distributed as dist

from nnssl_mae.errors import ResumableError, UserError
from nnssl_mae.masking import hidden_voxels
from nnssl_mae.patches import faults
from nnssl_mae.patches.splits import read_split
from nnssl_mae.plans import CONFIGURATION
from nnssl_mae.scans.cases import CaseRow, read_cases, write_cases
from nnssl_mae.training.mae_trainer import nnUNetTrainerMAE
from tests.patches.stored import data_folder
from tests.training.trainers import assert_same_weights, make_trainer, weights


@pytest.fixture(scope="module")
def trained(_prepared_once: Path, tmp_path_factory: pytest.TempPathFactory) -> nnUNetTrainerMAE:
    """After its training and validation; its results lie in a folder that holds nothing else."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_preprocessed", str(_prepared_once / "preprocessed"))
        patch.setenv("nnUNet_results", str(folder / "results"))
        dataset = _prepared_once / "preprocessed" / "Dataset900_Brains"
        trainer = make_trainer(nnUNetTrainerMAE, dataset, "nnsslMAEPlans")
        trainer.run_training()
        trainer.perform_actual_validation()
    return trainer


class Interrupted(Exception):
    pass


def interrupt_at(trainer: nnUNetTrainerMAE, epoch: int, iteration: int) -> None:
    """Makes the run die before this step."""
    step = trainer.train_step

    def train_step(batch):
        if batch["step"] == (epoch, iteration):
            raise Interrupted
        return step(batch)

    trainer.train_step = train_step


def augment_on(prepared: Path, device: str) -> None:
    """Augments, undone by the network, where the recipe in the plans says."""
    file = prepared / "nnsslMAEPlans.json"
    plans = json.loads(file.read_text())
    augmentation = plans["configurations"][CONFIGURATION]["nnssl_mae"]["recipe"]["augmentation"]
    augmentation |= {"device": device, "reversal": True, "elastic_probability": 0.5}
    augmentation["intensity"] = {part: {"probability": 0.5} for part in ("additive_noise", "blur", "bias_field")}
    file.write_text(json.dumps(plans))


@pytest.mark.parametrize(("workers", "device"), [("0", "cpu"), ("2", "cpu"), ("2", "gpu")])
def test_interrupted_in_the_middle_of_an_epoch_and_resumed_gives_the_same_weights(
    prepared, monkeypatch, workers, device
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", workers)
    augment_on(prepared, device)
    whole = make_trainer(nnUNetTrainerMAE, prepared, "nnsslMAEPlans")
    whole.run_training()

    broken = make_trainer(nnUNetTrainerMAE, prepared, "nnsslMAEPlans")
    interrupt_at(broken, epoch=2, iteration=1)
    with pytest.raises(Interrupted):
        broken.run_training()
    resumed = make_trainer(nnUNetTrainerMAE, prepared, "nnsslMAEPlans")
    resumed.load_checkpoint(str(Path(resumed.output_folder, "checkpoint_latest.pth")))
    assert resumed.current_epoch == 2
    resumed.run_training()

    assert_same_weights(weights(whole), weights(resumed))
    for key in ("train_losses", "val_losses", "psnr", "r2", "lrs"):
        assert whole.logger.get_value(key, step=None) == resumed.logger.get_value(key, step=None)


def test_resume_takes_the_newest_checkpoint(prepared: Path) -> None:
    trainer = make_trainer(nnUNetTrainerMAE, prepared, "nnsslMAEPlans")
    trainer.on_train_start()
    folder = Path(trainer.output_folder)
    for epoch, name in ((0, "checkpoint_latest.pth"), (4, "checkpoint_best.pth")):
        trainer.logger.log("val_losses", 1.0, 0)
        trainer.current_epoch = epoch
        trainer.save_checkpoint(str(folder / name))
    again = make_trainer(nnUNetTrainerMAE, prepared, "nnsslMAEPlans")
    again.load_checkpoint(str(folder / "checkpoint_latest.pth"))
    assert again.current_epoch == 5


def test_two_fresh_runs_are_equal(prepared: Path) -> None:
    runs = []
    for _ in range(2):
        trainer = make_trainer(nnUNetTrainerMAE, prepared, "nnsslMAEPlans")
        trainer.num_epochs = 1
        trainer.run_training()
        runs.append(weights(trainer))
    assert_same_weights(*runs)


def test_a_run_leaves_what_a_person_can_judge(trained: nnUNetTrainerMAE) -> None:
    folder = Path(trained.output_folder)
    names = {path.name for path in folder.iterdir()}
    assert {"checkpoint_final.pth", "checkpoint_best.pth", "progress.png", "preview_epoch_0003.png"} <= names
    assert "checkpoint_latest.pth" not in names
    assert not [name for name in names if name.endswith(".tmp")]
    summary = json.loads((folder / "validation" / "summary.json").read_text())
    assert summary["cases"] == 5
    # Weights did not change since: the same cases, crops and masks give the same number.
    assert summary["val_loss"] == pytest.approx(trained.logger.get_value("val_losses", step=-1), rel=1e-6)
    log = next(folder.glob("training_log*.txt")).read_text()
    assert "Pre-training on 3 scans, validating on 5 scans." in log
    assert "Dice" not in log
    assert "hidden voxels: PSNR" in log


def test_the_checkpoint_is_safe_to_read_and_names_no_path_and_no_subject(trained) -> None:
    path = Path(trained.output_folder, "checkpoint_final.pth")
    content = torch.load(path, weights_only=True)
    everything_but_weights = repr(
        {key: value for key, value in content.items() if "weights" not in key and "state" not in key}
    )
    folders = {str(Path(trained.output_folder).parents[3]), trained.preprocessed_dataset_folder_base}
    assert not [folder for folder in folders if folder in everything_but_weights]
    assert "sub-0" not in everything_but_weights
    for key in ("network_weights", "nnssl_adaptation_plan", "citations", "nnssl_mae", "init_args", "trainer_name"):
        assert key in content
    assert content["nnssl_mae"]["epochs_done"] == 3
    assert content["nnssl_mae"]["excluded_datasets"] == []
    assert content["nnssl_adaptation_plan"]["architecture_plans"]["arch_class_name"] == "ResidualEncoderUNet"


def test_stock_trainer_accepts_the_checkpoint_as_pretrained_weights(trained, prepared) -> None:
    plans = json.loads((prepared / "nnsslMAEPlans.json").read_text()) | {"continue_training": False}
    labelled = {"channel_names": {"0": "x"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}
    stock = nnUNetTrainer(plans, trained.configuration_name, "all", labelled, torch.device("cpu"))
    stock.initialize()
    load_pretrained_weights(stock.network, str(Path(trained.output_folder, "checkpoint_final.pth")))
    ours, theirs = trained.network.state_dict(), stock.network.state_dict()
    for name in theirs:
        assert torch.equal(theirs[name], ours[name]) != (".seg_layers." in name), name


def test_a_failed_write_leaves_the_earlier_checkpoint_whole(trained, monkeypatch) -> None:
    path = Path(trained.output_folder, "checkpoint_final.pth")
    before = path.read_bytes()

    def torn(state, target):
        target.write(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="disk full"):
        trained.save_checkpoint(str(path))
    assert path.read_bytes() == before
    assert not list(path.parent.glob(".*.tmp"))


def test_what_a_killed_write_left_goes_with_the_next_one(trained) -> None:
    path = Path(trained.output_folder, "checkpoint_final.pth")
    left, other = (path.with_name(f".{name}.4711.tmp") for name in (path.name, "somebody_elses.pth"))
    for file in (left, other):
        file.write_bytes(b"half a file")
    trained.save_checkpoint(str(path))
    assert not left.exists()
    assert other.exists()
    other.unlink()


def test_only_the_last_head_is_trained(prepared: Path) -> None:
    trainer = make_trainer(nnUNetTrainerMAE, prepared, "nnsslMAEPlans")
    trainer.initialize()
    frozen = {name for name, p in trainer.network.named_parameters() if not p.requires_grad}
    assert frozen == {"decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias"}


def test_the_reconstruction_does_not_depend_on_hidden_voxels(prepared: Path) -> None:
    trainer = make_trainer(nnUNetTrainerMAE, prepared, "nnsslMAEPlans")
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    mask = hidden_voxels(batch["hidden"], batch["data"].shape[2:])
    changed = {**batch, "data": torch.where(mask, torch.full_like(batch["data"], 9.0), batch["data"])}
    with torch.no_grad():
        assert torch.equal(trainer._reconstruct(batch)[0], trainer._reconstruct(changed)[0])


def test_numbered_folds_are_in_nnunets_file_and_by_subject(prepared: Path) -> None:
    trainer = make_trainer(nnUNetTrainerMAE, prepared, "nnsslMAEPlans", fold=0)
    training, validation = trainer.do_split()
    assert (len(training), len(validation)) == (6, 2)
    folds = json.loads((prepared / "splits_final.json").read_text())
    assert len(folds) == 5
    assert folds[0] == {"train": training, "val": validation}
    folds[0]["train"].append(folds[0]["val"][0])
    (prepared / "splits_final.json").write_text(json.dumps(folds))
    with pytest.raises(UserError, match="puts scans of 1 subjects, such as sub-0"):
        trainer.do_split()


def test_a_run_goes_on_without_volumes_that_were_lost_and_says_so(prepared: Path) -> None:
    trainer = make_trainer(nnUNetTrainerMAE, prepared, "nnsslMAEPlans", fold=0)
    training, validation = trainer.do_split()
    folder = data_folder(prepared)
    for case in (training[0], validation[1]):
        (folder / f"{case}.b2nd").unlink()
    trainer.run_training()
    trainer.perform_actual_validation()
    log = next(Path(trainer.output_folder).glob("training_log*.txt")).read_text()
    for case in (training[0], validation[1]):
        assert log.count(f"case {case} is passed over:") == 1
    assert np.isfinite(trainer.logger.get_value("val_losses", step=None)).all()
    summary = json.loads(Path(trainer.output_folder, "validation", "summary.json").read_text(encoding="utf-8"))
    assert summary["cases"] == len(validation) - 1
    assert np.isfinite(summary["val_loss"])


def test_a_run_stops_where_too_many_volumes_are_lost(prepared: Path, monkeypatch) -> None:
    monkeypatch.setattr(faults, "_AT_LEAST", 2)
    trainer = make_trainer(nnUNetTrainerMAE, prepared, "nnsslMAEPlans", fold=0)
    trainer.on_train_start()
    folder = data_folder(prepared)
    for path in folder.glob("*.b2nd"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"[3-6] cases could not be read in this run, more than the 2"):
        for _ in range(9):
            trainer.train_step(next(trainer.dataloader_train))


def test_a_run_stops_where_no_held_out_scan_can_be_read(prepared: Path) -> None:
    trainer = make_trainer(nnUNetTrainerMAE, prepared, "nnsslMAEPlans", fold=0)
    _, validation = trainer.do_split()
    for case in validation:
        (data_folder(prepared) / f"{case}.b2nd").unlink()
    with pytest.raises(UserError, match="None of the held-out scans can be read"):
        trainer.run_training()


@pytest.mark.parametrize("fold", ["all", 0])
def test_a_run_keeps_its_split_when_its_dataset_has_gained_scans(prepared: Path, fold, monkeypatch) -> None:
    first = make_trainer(nnUNetTrainerMAE, prepared, "nnsslMAEPlans", fold=fold)
    monkeypatch.setattr(first, "num_epochs", 1)
    first.run_training()
    began = {side: set(cases) for side, cases in read_split(Path(first.output_folder, "split.json")).items()}

    folder = data_folder(prepared)
    columns = [field.name for field in fields(CaseRow)]
    rows = [CaseRow(**row) for row in read_cases(folder, columns).reset_index().to_dict("records")]
    new = [replace(rows[0], case=f"new{n}", subject=f"new{n}") for n in range(20)]
    for row in new:
        shutil.copy(folder / f"{rows[0].case}.b2nd", folder / f"{row.case}.b2nd")
    write_cases(folder, [*rows, *new])
    (prepared / "splits_final.json").unlink(missing_ok=True)

    resumed = make_trainer(nnUNetTrainerMAE, prepared, "nnsslMAEPlans", fold=fold)
    resumed.load_checkpoint(str(Path(first.output_folder, "checkpoint_final.pth")))
    training, validation = resumed.do_split()
    assert set(validation) == began["val"]
    assert set(training) == began["train"] | {row.case for row in new}
    log = "".join(path.read_text() for path in Path(first.output_folder).glob("training_log*.txt"))
    assert "the dataset has changed since this run began: 20 scans are new and 0 are gone" in log

    anew = make_trainer(nnUNetTrainerMAE, prepared, "nnsslMAEPlans", fold=fold)
    assert set(anew.do_split()[1]) != began["val"]


def test_processes_that_see_different_scans_do_not_start(prepared: Path, monkeypatch) -> None:
    """One would learn what the other holds out."""
    trainer = make_trainer(nnUNetTrainerMAE, prepared, "nnsslMAEPlans")
    monkeypatch.setattr(trainer, "is_ddp", True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    for other in ("equal", "different"):

        def gather(into: list[str], mine: str, other: str = other) -> None:
            into[:] = [mine, mine if other == "equal" else "0123456789"]

        monkeypatch.setattr(dist, "all_gather_object", gather)
        if other == "equal":
            trainer._agree(["a"], ["b"])
        else:
            with pytest.raises(ResumableError, match="see different scans in the dataset"):
                trainer._agree(["a"], ["b"])


def test_a_loss_that_is_not_a_number_stops_the_run(prepared: Path) -> None:
    trainer = make_trainer(nnUNetTrainerMAE, prepared, "nnsslMAEPlans")
    trainer.initialize()
    with pytest.raises(UserError, match="training loss of epoch 0 is nan"):
        trainer._losses = [torch.tensor(float("nan"))]
        trainer.on_train_epoch_end([])


def test_plans_of_another_kind_are_refused(prepared: Path) -> None:
    plans = json.loads((prepared / "nnsslMAEPlans.json").read_text())
    del plans["configurations"]["3d_fullres_mae"]["nnssl_mae"]
    (prepared / "plainPlans.json").write_text(json.dumps(plans))
    with pytest.raises(UserError, match="not made for this trainer"):
        make_trainer(nnUNetTrainerMAE, prepared, "plainPlans")


def test_the_trainer_class_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(nnUNetTrainerMAE)) is nnUNetTrainerMAE
