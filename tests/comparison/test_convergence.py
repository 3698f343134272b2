"""Dice against steps, from nnU-Net's text logs."""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas
import pytest

from nnssl_mae.comparison.convergence import STOCK_ITERATIONS, curves, iterations_of_an_epoch, read_epochs


@dataclass(frozen=True)
class Run:
    model: Path | None
    dataset: str = "Dataset004_Tiny"
    arm: str = "mae"
    replicate: str = "seed0"
    fold: str = "0"
    labelled: int | None = None
    repeat: int | None = None


def write_log(path: Path, dice: dict[int, str], killed: int | None = None) -> None:
    """A log as nnU-Net writes it; ``killed`` is the number of an epoch that did not end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["", "#######", "2026-11-21 10:00:00.000001: Using torch.compile..."]
    for epoch, values in dice.items():
        at = "2026-11-21 10:00:00.000001"
        lines += ["", f"{at}: Epoch {epoch} ", f"{at}: Current learning rate: 0.01", f"{at}: train_loss -0.5"]
        lines += [f"{at}: val_loss -0.25", f"{at}: Pseudo dice {values} ", f"{at}: Epoch time: 3.21 s"]
    if killed is not None:
        lines += ["", f"2026-11-21 10:00:00.000001: Epoch {killed} ", "2026-11-21 10:00:00.000001: train_loss -0.7"]
    path.write_text("\n".join(lines), encoding="utf-8")


def test_pseudo_dice_is_the_mean_over_labels_without_nan(tmp_path: Path) -> None:
    write_log(
        tmp_path / "training_log_2026_1_1_00_00_00.txt", {0: "[np.float32(0.5), nan, np.float32(0.7)]", 1: "[0.8]"}
    )
    epochs = read_epochs(tmp_path)
    assert epochs[0] == pytest.approx({"train_loss": -0.5, "val_loss": -0.25, "Pseudo dice": 0.6})
    assert epochs[1]["Pseudo dice"] == 0.8


def test_a_resumed_training_counts_its_later_epochs(tmp_path: Path) -> None:
    # nnU-Net writes months without a leading zero: October must come after September all the same.
    write_log(tmp_path / "training_log_2026_9_30_00_00_00.txt", {0: "[0.1]", 1: "[0.2]", 2: "[0.3]"}, killed=3)
    write_log(tmp_path / "training_log_2026_10_1_00_00_00.txt", {2: "[0.9]"})
    assert {epoch: row["Pseudo dice"] for epoch, row in read_epochs(tmp_path).items()} == {0: 0.1, 1: 0.2, 2: 0.9}


def test_a_training_started_anew_has_no_epochs_of_the_one_before(tmp_path: Path) -> None:
    write_log(tmp_path / "training_log_2026_1_1_00_00_00.txt", {0: "[0.1]", 1: "[0.2]", 2: "[0.3]"})
    write_log(tmp_path / "training_log_2026_1_2_00_00_00.txt", {0: "[0.5]"})
    write_log(tmp_path / "training_log_2026_1_3_00_00_00.txt", {})  # nnUNetv2_train --val: no epoch
    assert {epoch: row["Pseudo dice"] for epoch, row in read_epochs(tmp_path).items()} == {0: 0.5}


@pytest.mark.parametrize(
    ("debug", "recipe", "expected"), [(None, None, STOCK_ITERATIONS), (None, 20, 20), ("7", 20, 7), ("None", None, 250)]
)
def test_steps_of_an_epoch_are_those_of_the_trainer(tmp_path: Path, debug, recipe, expected: int) -> None:
    fold = tmp_path / "Trainer__Plans__3d_fullres_mae" / "fold_0"
    fold.mkdir(parents=True)
    if debug is not None:
        (fold / "debug.json").write_text(json.dumps({"num_iterations_per_epoch": debug}))
    block = {} if recipe is None else {"nnssl_mae": {"recipe": {"iterations": recipe}}}
    (fold.parent / "plans.json").write_text(json.dumps({"configurations": {"3d_fullres_mae": block}}))
    assert iterations_of_an_epoch(fold) == expected


def test_curves_count_steps_and_leave_out_runs_without_logs(tmp_path: Path) -> None:
    fold = tmp_path / "Trainer__Plans__3d_fullres" / "fold_100"
    write_log(fold / "training_log_2026_1_1_00_00_00.txt", {0: "[0.1]", 1: "[nan]", 2: "[0.3]"})
    table = curves([Run(fold, fold="100", labelled=3, repeat=0), Run(None), Run(tmp_path)])
    assert table["step"].tolist() == [250, 750]
    assert table["dice"].tolist() == [0.1, 0.3]
    assert table["labelled"].tolist() == [3, 3] and str(table["labelled"].dtype) == "Int64"


def test_no_curves_is_a_table_with_columns() -> None:
    table = curves([])
    assert isinstance(table, pandas.DataFrame) and table.empty and "step" in table
