"""The state of an nnU-Net trainer as a checkpoint: written whole, readable without unpickling code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnssl_mae.errors import UserError
from nnssl_mae.files import remove_leftovers, whole_file

_MAY_CHANGE = {
    "recipe.name", "recipe.summary", "recipe.citation", "recipe.epochs", "recipe.patience",
    "recipe.schedule.epochs", "recipe.schedule.patience", "recipe.schedule.checkpoint_every",
    "recipe.schedule.preview_every", "recipe.network.checkpoint_activations",
}  # fmt: skip


def bare_network(network: nn.Module) -> nn.Module:
    """The network without the wrappers of distributed training and compilation."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    if isinstance(network, OptimizedModule):
        network = network._orig_mod
    return network


def training_state(trainer: Any, trainer_name: str) -> dict[str, Any]:
    """What nnU-Net's ``load_checkpoint`` and its predictor read.

    Args:
        trainer: an nnU-Net trainer.
        trainer_name: the class that prediction looks up; ``nnUNetTrainer`` needs no installation of ours.
    """
    scaler = trainer.grad_scaler
    return {
        "network_weights": bare_network(trainer.network).state_dict(),
        "optimizer_state": trainer.optimizer.state_dict(),
        "grad_scaler_state": None if scaler is None else scaler.state_dict(),
        "logging": plain(trainer.logger.get_checkpoint()),
        "_best_ema": plain(trainer._best_ema),
        "current_epoch": trainer.current_epoch + 1,
        "init_args": plain(trainer.my_init_kwargs),
        "trainer_name": trainer_name,
        "inference_allowed_mirroring_axes": plain(trainer.inference_allowed_mirroring_axes),
    }


def in_the_middle_of_an_epoch(state: dict[str, Any], epoch: int, losses: Sequence[float]) -> dict[str, Any]:
    """The state of a run that ends before its epoch does: the epoch is the next one to train, from where it stopped.

    Args:
        state: with our block, as it would be saved at the epoch's end.
        epoch: counted from 0.
        losses: of the epoch's steps so far.
    """
    history = {key: values[:epoch] for key, values in state["logging"].items()}
    block = {**state["nnssl_mae"], "epochs_done": epoch, "unfinished_epoch": list(losses)}
    return {**state, "logging": history, "current_epoch": epoch, "nnssl_mae": block}


def unfinished_epoch(checkpoint: Path) -> list[float]:
    """The losses of the steps that a run had done of its epoch when it was stopped; none if an epoch had ended."""
    return list(_our_block(checkpoint).get("unfinished_epoch", ()))


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes by rename: a crash leaves the earlier checkpoint whole, and nothing else once the next one is written."""
    remove_leftovers(path.parent, path.name)
    # Not the name: torch writes it into the file, and that of a temporary one tells the machine.
    with whole_file(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)


def set_aside(folder: Path, names: Sequence[str]) -> list[Path]:
    """Renames checkpoints of an earlier run, so that nobody continues them for those of a run that begins.

    Returns:
        the new files, ``earlier_...``; what had such a name is gone.
    """
    moved = []
    for name in names:
        if (folder / name).is_file():
            moved.append((folder / name).replace(folder / f"earlier_{name}"))
    return moved


def refuse_changed_plans(checkpoint: Path, now: Mapping[str, Any]) -> None:
    """Refuses to continue a run whose plans have since become those of another.

    How long a run is, and how often it writes, may change. Checkpoints without our block are left to nnU-Net.

    Args:
        checkpoint: about to be loaded.
        now: ``recipe`` and, of a fine-tuning, ``initialisation``, as the plans hold them now.

    Raises:
        UserError: with the keys that differ.
    """
    block = _our_block(checkpoint)
    changed = sorted(
        key
        for part, value in now.items()
        if part in block
        for key in _differences(block[part], value, part)
        if key not in _MAY_CHANGE
    )
    if changed:
        raise UserError(
            f"{checkpoint} belongs to a run with other plans: {', '.join(changed[:5])} changed since. Start this one "
            "without --c, under another plans name, or put the plans back"
        )


def _our_block(checkpoint: Path) -> dict[str, Any]:
    """What this package adds to a checkpoint; empty in one that it did not write."""
    try:
        block = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True).get("nnssl_mae")
    except pickle.UnpicklingError:
        return {}  # stock checkpoints hold numpy numbers
    return block if isinstance(block, dict) else {}


def _differences(before: Any, now: Any, key: str) -> list[str]:
    """Dotted keys at which two values differ; a key that only the newer knows is no difference."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return [
            different for name in before for different in _differences(before[name], now.get(name), f"{key}.{name}")
        ]
    return [] if plain(before) == plain(now) else [key]


def plain(value: Any) -> Any:
    """numpy numbers as Python numbers at any depth; ``torch.load(weights_only=True)`` refuses numpy's."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    return value.item() if hasattr(value, "item") and not isinstance(value, torch.Tensor) else value
