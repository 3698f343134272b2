"""Reading pre-trained networks of every origin, without executing anything in their files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nnssl_mae.checkpoints.amaes import is_amaes, read_amaes
from nnssl_mae.checkpoints.describe import Checkpoint
from nnssl_mae.checkpoints.load import load_content
from nnssl_mae.checkpoints.locate import PLAN_FILE, USUAL_NAMES, Source, locate
from nnssl_mae.checkpoints.nnssl import read_nnssl
from nnssl_mae.checkpoints.nnunet import is_nnunet, read_nnunet
from nnssl_mae.checkpoints.own import is_own, read_own
from nnssl_mae.checkpoints.state_dict import bare_weights, first_convolution, read_state_dict
from nnssl_mae.errors import UserError

__all__ = ["Checkpoint", "read_checkpoint"]


def read_checkpoint(where: str | Path) -> Checkpoint:
    """Reads a network of ours, of nnssl (OpenMind), nnU-Net, AMAES, or bare weights; the content decides which it is.

    Args:
        where: a file, a folder, or ``hf://owner/name``, see :func:`nnssl_mae.checkpoints.locate.locate`.

    Raises:
        UserError: missing, not a checkpoint, holds code, or of a network not known here.
    """
    source = locate(where)
    checkpoint = _read(load_content(source.file, source.shown), source)
    _check_channels(checkpoint, source)
    return checkpoint


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
