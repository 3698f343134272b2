"""Reading pre-trained networks of every origin, without executing anything in their files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nnssl_mae.checkpoints.amaes import is_amaes, read_amaes
from nnssl_mae.checkpoints.describe import Checkpoint
from nnssl_mae.checkpoints.encoder_check import encoder_differences, some, stride_differences
from nnssl_mae.checkpoints.load import load_content, note_about_torch
from nnssl_mae.checkpoints.locate import PLAN_FILE, USUAL_NAMES, Source, locate
from nnssl_mae.checkpoints.nnssl import read_nnssl
from nnssl_mae.checkpoints.nnunet import is_nnunet, read_nnunet
from nnssl_mae.checkpoints.own import is_own, read_own
from nnssl_mae.checkpoints.state_dict import bare_weights, first_convolution, read_state_dict
from nnssl_mae.errors import UserError

__all__ = ["Checkpoint", "read_checkpoint"]

_DESCRIPTIONS = ("nnssl_adaptation_plan", "nnssl_mae", "citations", "licence", "trainer_name", "current_epoch")
_MOST_VALUES = 5_000_000  # far above the plans and the log of any run
_ARGUMENTS = ("plans", "configuration", "configuration_name")


def read_checkpoint(where: str | Path) -> Checkpoint:
    """Reads a network of ours, of nnssl (OpenMind), nnU-Net, AMAES, or bare weights; the content decides which it is.

    Args:
        where: a file, a folder, or ``hf://owner/name``, see :func:`nnssl_mae.checkpoints.locate.locate`.

    Raises:
        UserError: missing, not a checkpoint, holds code, or of a network not known here.
    """
    source = locate(where)
    content = load_content(source.file, source.shown)
    checkpoint = _read({**content, **_descriptions(content, source)}, source)
    checkpoint = replace(checkpoint, notes=(*checkpoint.notes, *note_about_torch(source.file, source.shown)))
    _check_channels(checkpoint, source)
    _check_encoder(checkpoint, source)
    return checkpoint


def _descriptions(content: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """Whatever describes the weights, as plain values; of what a trainer was started with, only what is looked at."""
    found = {key: content[key] for key in _DESCRIPTIONS if key in content}
    arguments = content.get("init_args")
    if isinstance(arguments, dict):
        found["init_args"] = {key: arguments[key] for key in _ARGUMENTS if key in arguments}
    left = [_MOST_VALUES]
    try:
        return {key: _plain(value, left) for key, value in found.items()}
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{source} has a damaged description of its weights ({error}); download or copy it again"
        ) from error


def _plain(value: Any, left: list[int]) -> Any:
    """Values as JSON has them: tuples as lists, and names that are text; ``left`` counts down how many there may be."""
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(f"more than {_MOST_VALUES} values")  # a list that holds itself twice, many times over
    if isinstance(value, dict):
        return {str(key): _plain(item, left) for key, item in dict.items(value)}
    if isinstance(value, list | tuple):
        return [_plain(item, left) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a {type(value).__name__} where plain values should be")


def _read(content: dict[str, Any], source: Source) -> Checkpoint:
    named = content.get("network_weights")
    if isinstance(named, dict) and named:
        check_tensors(named, source)
        if is_own(content):
            return read_own(content, source)
        if is_nnunet(content):
            return read_nnunet(content, source)
        plan = content.get("nnssl_adaptation_plan") or source.plan_beside()
        if isinstance(plan, dict):
            return read_nnssl(content, plan, source)
        if "trainer_name" in content or "spark_weights" in content:
            raise _without_plan(source)
    return _read_bare(content, source)


def _read_bare(content: Mapping[str, Any], source: Source) -> Checkpoint:
    weights = bare_weights(content, source)
    check_tensors(weights, source)
    if is_amaes(weights):
        return read_amaes(weights, content, source)
    plan = source.plan_beside()
    if plan is not None:
        return read_nnssl({"network_weights": weights}, plan, source)
    return read_state_dict(weights, content, source)


def check_tensors(weights: Mapping[Any, Any], source: Source) -> None:
    """Refuses anything but dense tensors by name.

    Raises:
        UserError: see above.
    """
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise UserError(
                f"{source} holds a {type(tensor).__name__} where weights should be ({str(name)[:60]}); it is damaged"
            )
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise UserError(f"{source} holds {name} in a compressed form; save its weights as plain tensors")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(
                f"{source} holds {name} with more values than are stored; save its weights as plain tensors"
            )


def _without_plan(source: Source) -> UserError:
    return UserError(
        f"{source} has no description of the pre-training, which nnssl writes into the file or as {PLAN_FILE} beside "
        f"the file; put that file beside it, or give the {USUAL_NAMES[0]} of a run with -tr nnUNetTrainerMAE"
    )


def _check_channels(checkpoint: Checkpoint, source: Source) -> None:
    found = first_convolution(checkpoint.weights)
    if found is not None and found.ndim == 5 and found.shape[1] != checkpoint.channels:
        raise UserError(
            f"{source} says that its network takes {checkpoint.channels} channels, but its first convolution takes "
            f"{found.shape[1]}; the plan is that of another checkpoint, or it is damaged"
        )


def _check_encoder(checkpoint: Checkpoint, source: Source) -> None:
    """Refuses weights with the description of others; networks read off their weights are checked there."""
    if checkpoint.origin.format in ("weights", "AMAES"):
        return
    try:
        wrong = encoder_differences(checkpoint.architecture, checkpoint.channels, checkpoint.weights)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    wrong = (*wrong, *stride_differences(checkpoint.architecture, checkpoint.weights))
    if wrong:
        raise UserError(
            f"{source} does not hold the encoder that it describes ({some(wrong)}); the plan is that of another "
            "checkpoint, or the file is damaged"
        )
