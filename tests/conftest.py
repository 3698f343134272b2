"""Shared fixtures: nnU-Net's folders for one test, and one tiny prepared dataset for all."""

from __future__ import annotations

import locale
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is imported anywhere: two busy OpenMP pools slow a small machine many times over.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["nnUNet_def_n_proc"] = "2"
os.environ["nnUNet_n_proc_DA"] = "1"

from rich.console import Console

from nnssl_mae.catalogue.checks import Limits
from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.recipes.reading import parse_recipe
from nnssl_mae.scans.prepare import prepare_folders
from nnssl_mae.scans.request import Request
from tests.tiny_scans import write_unlabelled

TINY_RECIPE = {
    "name": "tiny",
    "summary": "for tests",
    "data": {"spacing": [4.0, 4.0, 4.0]},
    "network": {
        "patch_size": [32, 32, 32],
        "batch_size": 2,
        "base_features": 4,
        "max_features": 16,
        "blocks_per_stage": [1, 1, 1],
        "max_stages": 3,
    },
    "masking": {"block_size": 8, "ratio": 0.75},
    "schedule": {"epochs": 3, "iterations": 3, "validation_cases": 5, "preview_every": 3},
}

TINY_LIMITS = Limits(allow=("field_of_view", "thick_slices"))
"""Scans of 4 mm voxels pass."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a GPU where there is none, with the reason."""
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU; none here"))


_LANGUAGE = locale.setlocale(locale.LC_ALL)


@pytest.fixture(autouse=True)
def _language_settings() -> Iterator[None]:
    """ITK sets those of the process to C when a test, or a fixture of its module, writes DICOM."""
    locale.setlocale(locale.LC_ALL, _LANGUAGE)
    yield
    locale.setlocale(locale.LC_ALL, _LANGUAGE)


@pytest.fixture
def tiny_recipe() -> Recipe:
    """Two samples of 32^3 voxels at 4 mm, a network of three small stages."""
    return parse_recipe(TINY_RECIPE, "for tests")


@pytest.fixture
def nnunet_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sets nnU-Net's three folders below a temporary one, which is returned."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path


@pytest.fixture(scope="session")
def _prepared_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    scans = write_unlabelled(folder / "scans", count=8)
    recipe = parse_recipe(TINY_RECIPE, "for tests")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_preprocessed", str(folder / "preprocessed"))
        prepare_folders([scans], Request(900, "Brains", recipe, recipe, workers=1), Console(quiet=True), TINY_LIMITS)
    return folder


@pytest.fixture
def prepared(_prepared_once: Path, nnunet_folders: Path) -> Path:
    """A fresh copy of ``Dataset900_Brains``, 8 scans of 8 subjects, in nnUNet_preprocessed; returns that folder."""
    target = nnunet_folders / "preprocessed" / "Dataset900_Brains"
    shutil.copytree(_prepared_once / "preprocessed" / "Dataset900_Brains", target)
    return target


@pytest.fixture(scope="session")
def _pretrained_once(_prepared_once: Path) -> Path:
    from nnssl_mae.training.mae_trainer import nnUNetTrainerMAE
    from tests.training.trainers import make_trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_preprocessed", str(_prepared_once / "preprocessed"))
        patch.setenv("nnUNet_results", str(_prepared_once / "results"))
        dataset = _prepared_once / "preprocessed" / "Dataset900_Brains"
        trainer = make_trainer(nnUNetTrainerMAE, dataset, "nnsslMAEPlans")
        trainer.run_training()
    return Path(trainer.output_folder, "checkpoint_final.pth")


@pytest.fixture
def pretrained(_pretrained_once: Path) -> Path:
    """The final checkpoint of a tiny pre-training; read only."""
    return _pretrained_once


@pytest.fixture
def scans_folder(_prepared_once: Path) -> Path:
    """The 8 unlabelled scans from which the dataset was prepared."""
    return _prepared_once / "scans"
