"""The commands that train a few-label fold, as far as a dataset's plans tell them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnssl_mae.few_labels.dataset import PreprocessedDataset, plans_in
from nnssl_mae.plans import PLANS_BLOCK

_TRAINER = "nnUNetTrainerMAEFinetune"
_STOCK_PLANS, _STOCK_CONFIGURATION = "nnUNetPlans", "3d_fullres"


def training_commands(dataset: PreprocessedDataset, fold: int) -> list[str]:
    """``nnUNetv2_train`` of a fold: with each plans for fine-tuning, and with others whose 3d_fullres is preprocessed.

    Plans for fine-tuning stand first; our trainer refuses them, with the command to run, until they are preprocessed.
    """
    start = f"nnUNetv2_train {dataset.number}"
    plans = list(plans_in(dataset.folder))
    ours = [
        f"{start} {configuration} {fold} -tr {_TRAINER} -p {name}"
        for name, content in plans
        for configuration, of_it in _configurations(content)
        if _kind(of_it) == "finetune"
    ]
    others = [
        f"{start} {configuration} {fold}" + ("" if name == _STOCK_PLANS else f" -p {name}")
        for name, content in plans
        for configuration, of_it in _configurations(content)
        if configuration == _STOCK_CONFIGURATION and _is_preprocessed(dataset.folder, of_it)
    ]
    return ours + others


def _configurations(plans: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    found = plans.get("configurations")
    if isinstance(found, Mapping):
        yield from ((str(name), content) for name, content in found.items() if isinstance(content, Mapping))


def _kind(configuration: Mapping[str, Any]) -> object:
    """Of our block; None where it is missing."""
    block = configuration.get(PLANS_BLOCK)
    return block.get("kind") if isinstance(block, Mapping) else None


def _is_preprocessed(folder: Path, configuration: Mapping[str, Any]) -> bool:
    data = configuration.get("data_identifier")
    return isinstance(data, str) and (folder / data).is_dir()
