"""The weights that ``nnssl-mae adapt`` laid beside the plans, and what the log says of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from nnssl_mae.checkpoints.transfer import group_of
from nnssl_mae.errors import UserError
from nnssl_mae.files import sha256


def read_tensors(file: Path, digest: str) -> dict[str, torch.Tensor]:
    """The tensors to start from, on the CPU.

    Args:
        file: beside the plans.
        digest: its SHA-256 as the plans hold it.

    Raises:
        UserError: the file is missing, was changed, or cannot be read.
    """
    if not file.is_file():
        raise UserError(f"{file} is missing; it belongs to these plans: copy it along, or run `nnssl-mae adapt` again")
    if sha256(file) != digest:
        raise UserError(f"{file} is not the file these plans were written with; run `nnssl-mae adapt` again")
    try:
        return dict(safetensors.torch.load_file(file, device="cpu"))
    except safetensors.SafetensorError as error:
        raise UserError(f"{file} cannot be read: {error}; run `nnssl-mae adapt` again") from error


def describe_initialisation(
    initialisation: Mapping[str, Any], loaded: Collection[str], network: Collection[str]
) -> list[str]:
    """Where the weights come from, and by parts of the network what was loaded, adapted, and left random.

    Args:
        initialisation: the block of the plans.
        loaded: names of the tensors that were put into the network.
        network: names of all its tensors, each once, in its order.

    Returns:
        lines for people.
    """
    how = {tensor["name"]: tensor["how"] for tensor in initialisation["adapted"]}
    as_they_are = [name for name in network if name in loaded and name not in how]
    left_random = [name for name in network if name not in loaded]
    every = f"{len(network)} tensors"
    return [
        f"Pre-trained weights: {initialisation['transfer']} of {_origin(initialisation['origin'])}",
        f"  loaded as they are, {len(as_they_are)} of {every}: {_groups(as_they_are)}",
        f"  loaded and adapted, {len(how)} of {every}: {_groups_by_how(how)}",
        f"  left random, {len(left_random)} of {every}: {_groups(left_random)}",
    ]


def _origin(origin: Mapping[str, Any]) -> str:
    length = "1 epoch" if origin["epochs"] == 1 else f"{origin['epochs'] or 'unknown'} epochs"
    known = [origin["format"], origin["method"] or "unknown method", length, f"SHA-256 {origin['sha256'][:12]}"]
    return f"{origin['label']} ({', '.join(known)})"


def _groups(names: Iterable[str]) -> str:
    """``encoder.stages.0 (8), ...``: tensors counted by the part of the network they belong to."""
    counts: dict[str, int] = {}
    for name in names:
        group = group_of(name)
        counts[group] = counts.get(group, 0) + 1
    return ", ".join(f"{group} ({count})" for group, count in counts.items()) or "none"


def _groups_by_how(how: Mapping[str, str]) -> str:
    """``encoder.stem (1): what was done; ...``: those adapted in the same way together."""
    names: dict[str, list[str]] = {}
    for name, done in how.items():
        names.setdefault(done, []).append(name)
    return "; ".join(f"{_groups(together)}: {done}" for done, together in names.items()) or "none"
