"""A run says at its start, in its log, that nobody has tried this version of nnU-Net with our trainers."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from nnssl_mae.doctor.findings import TESTED_NNUNET, judge_nnunet
from nnssl_mae.plans import CONFIGURATION, PLANS_BLOCK, make_block
from nnssl_mae.recipes.reading import parse_recipe
from nnssl_mae.training.finetune_trainer import nnUNetTrainerMAEFinetune
from nnssl_mae.training.mae_trainer import nnUNetTrainerMAE
from tests.conftest import TINY_RECIPE
from tests.training.finetuning_data import LABELS, NAME, write_plans
from tests.training.trainers import make_trainer

UNTRIED = "2.99.0"
MakeLog = Callable[[], list[str]]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """Pretends that this version of nnU-Net is installed, or with None that nnU-Net is only on the path."""
    really = metadata.version

    def pretend(version: str | None) -> None:
        def asked(package: str) -> str:
            if package != "nnunetv2":
                return really(package)
            if version is None:
                raise metadata.PackageNotFoundError(package)
            return version

        monkeypatch.setattr(metadata, "version", asked)

    return pretend


@pytest.fixture
def dataset(nnunet_folders: Path) -> Path:
    """A folder with what a trainer reads when it is made: plans of each kind and ``dataset.json``; no cases."""
    folder = nnunet_folders / "preprocessed" / NAME
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1"}, "labels": LABELS["labels"]}))
    write_plans(folder, "Finetune", recipe="scratch")
    plans = json.loads((folder / "Finetune.json").read_text()) | {"plans_name": "Pretrain"}
    recipe = parse_recipe(TINY_RECIPE, "for tests").model_dump(mode="json")
    plans["configurations"][CONFIGURATION][PLANS_BLOCK] = make_block("pretrain", recipe=recipe, block_edges=[8, 8, 8])
    (folder / "Pretrain.json").write_text(json.dumps(plans))
    return folder


@pytest.fixture(params=[(nnUNetTrainerMAE, "Pretrain"), (nnUNetTrainerMAEFinetune, "Finetune")])
def log(request: pytest.FixtureRequest, dataset: Path) -> MakeLog:
    """Makes a trainer as nnU-Net's start does; returns the lines of its log that speak of nnunetv2."""

    def make() -> list[str]:
        trainer = make_trainer(request.param[0], dataset, request.param[1])
        trainer.print_to_log_file("made")
        lines = Path(trainer.log_file).read_text(encoding="utf-8").splitlines()
        return [line.rstrip() for line in lines if "nnunetv2" in line]

    return make


def test_both_trainers_say_once_what_doctor_says(log: MakeLog, installed: Callable[[str | None], None]) -> None:
    installed(UNTRIED)
    (line,) = log()
    assert f"WARNING: nnunetv2 {UNTRIED}: " in line
    assert line.endswith(" ".join(judge_nnunet(UNTRIED).advice.split()))
    assert f"Untested version (tested: {', '.join(TESTED_NNUNET)})" in line


def test_nothing_is_said_of_a_version_that_was_tested(log: MakeLog, installed: Callable[[str | None], None]) -> None:
    installed(TESTED_NNUNET[-1])
    assert log() == []


def test_sources_on_the_path_train_and_are_told_of(
    dataset: Path, installed: Callable[[str | None], None], capsys: pytest.CaptureFixture[str]
) -> None:
    installed(None)
    make_trainer(nnUNetTrainerMAE, dataset, "Pretrain")
    assert "WARNING: nnunetv2 does not say its version" in capsys.readouterr().out


def test_only_the_first_of_several_processes_speaks(
    dataset: Path,
    installed: Callable[[str | None], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    installed(UNTRIED)
    monkeypatch.setenv("RANK", "1")  # as torchrun sets it
    make_trainer(nnUNetTrainerMAE, dataset, "Pretrain")
    assert UNTRIED not in capsys.readouterr().out
