"""``nnssl-mae splits`` as it is typed, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import nnssl_mae.cli.few_labels
from nnssl_mae.cli.app import app
from nnssl_mae.errors import UserError
from nnssl_mae.few_labels.splits_file import SPLITS
from tests.few_labels.tiny_dataset import write_dataset

assert nnssl_mae.cli.few_labels


def _run(*arguments: str) -> str:
    result = CliRunner(env={"COLUMNS": "120"}).invoke(app, ["splits", "-d", "4", "-np", "1", *arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.mark.parametrize("labelled", ["1 2 5", "1,2,5", "5, 1 2 2"])
def test_the_page_tells_the_folds_and_the_command(nnunet_folders: Path, labelled: str) -> None:
    dataset = write_dataset(nnunet_folders)
    page = _run("--labelled", labelled, "--repeats", "2", "--seed", "0")
    lines = [line.split()[:3] for line in page.splitlines() if line.strip()[:2] == "10"]
    assert lines == [[str(100 + n), str(count), str(n % 2)] for n, count in enumerate((1, 1, 2, 2, 5, 5))]
    assert "  nnUNetv2_train 4 3d_fullres 100\n" in page
    assert "those of fold 0" in page
    assert f"Wrote 6 folds to {dataset / SPLITS}" in page
    assert "nothing changed" in _run("--labelled", labelled, "--repeats", "2")


def test_the_commands_are_those_of_the_plans_that_are_there(nnunet_folders: Path) -> None:
    dataset = write_dataset(nnunet_folders)
    stock = json.loads((dataset / "nnUNetPlans.json").read_text())
    (dataset / "nnUNetPlans.json").unlink()
    for name, configuration, content in (
        ("Treatment", "3d_fullres_mae", {"nnssl_mae": {"kind": "finetune", "initialisation": {}}}),
        ("Control", "3d_fullres_mae", {"nnssl_mae": {"kind": "finetune", "initialisation": None}}),
        ("Pretraining", "3d_fullres_mae", {"nnssl_mae": {"kind": "pretrain"}}),
        ("Ready", "3d_fullres", stock["configurations"]["3d_fullres"]),
        ("PlannedOnly", "3d_fullres", {"data_identifier": "nowhere"}),
    ):
        (dataset / f"{name}.json").write_text(json.dumps({**stock, "configurations": {configuration: content}}))
    (dataset / "Broken.json").write_text(json.dumps({**stock, "configurations": [1]}))
    commands = [line.strip() for line in _run("--labelled", "1").splitlines() if "nnUNetv2_train" in line]
    assert commands == [
        "nnUNetv2_train 4 3d_fullres_mae 100 -tr nnUNetTrainerMAEFinetune -p Control",
        "nnUNetv2_train 4 3d_fullres_mae 100 -tr nnUNetTrainerMAEFinetune -p Treatment",
        "nnUNetv2_train 4 3d_fullres 100 -p Ready",
    ]


def test_a_dry_run_says_so(nnunet_folders: Path) -> None:
    dataset = write_dataset(nnunet_folders)
    assert "Nothing was written (--dry-run): 3 of these folds" in _run("--labelled", "1", "--dry-run")
    assert not (dataset / SPLITS).exists()


def test_missing_labels_are_warned_of(nnunet_folders: Path) -> None:
    write_dataset(nnunet_folders, voxels={"case04": {1: 3}, "case09": {2: 5}})
    page = _run("--labelled", "1", "--repeats", "1")
    assert "Warning: a network cannot learn labels" in page
    assert "labels in none of them" in page


def test_there_is_no_empty_column_of_missing_labels(nnunet_folders: Path) -> None:
    write_dataset(nnunet_folders)
    assert "labels in none of them" not in _run("--labelled", "1", "--repeats", "1")


@pytest.mark.parametrize("labelled", ["", "x", "0", "-1", "1.5", "1 two"])
def test_counts_that_are_none(nnunet_folders: Path, labelled: str) -> None:
    write_dataset(nnunet_folders)
    with pytest.raises(UserError, match=f"--labelled {labelled} is not possible"):
        _run(f"--labelled={labelled}")


def test_a_count_of_thousands_of_digits_is_not_repeated_in_full(nnunet_folders: Path) -> None:
    write_dataset(nnunet_folders)
    with pytest.raises(UserError, match=r"--labelled 9{40}\.\.\. is not possible") as caught:
        _run("--labelled", "9" * 5000)
    assert len(str(caught.value)) < 200
