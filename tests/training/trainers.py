"""Making our trainers in the test process, as nnU-Net's own start does."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnssl_mae.plans import CONFIGURATION


def make_trainer(
    kind: type[nnUNetTrainer],
    dataset: Path,
    plans_name: str,
    fold: int | str = "all",
    device: torch.device = torch.device("cpu"),
) -> nnUNetTrainer:
    """A trainer for plans in a preprocessed dataset folder."""
    plans = json.loads((dataset / f"{plans_name}.json").read_text()) | {"continue_training": False}
    dataset_json = json.loads((dataset / "dataset.json").read_text())
    return kind(plans, CONFIGURATION, fold, dataset_json, device)


def weights(trainer: nnUNetTrainer) -> dict[str, torch.Tensor]:
    """A copy of all weights."""
    return {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different
