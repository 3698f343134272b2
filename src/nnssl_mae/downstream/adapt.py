"""Writes plans for fine-tuning a labelled nnU-Net dataset from a pre-trained network, or for its matched control."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from nnssl_mae.backbones import backbone_of, short_name
from nnssl_mae.checkpoints.describe import Checkpoint
from nnssl_mae.checkpoints.transfer import Report
from nnssl_mae.downstream.labelled import labelled_dataset
from nnssl_mae.downstream.plan import Planned, check_mode, plan_finetuning
from nnssl_mae.downstream.preprocessed import missing_cases
from nnssl_mae.downstream.wish import Wish
from nnssl_mae.errors import ResumableError, UserError
from nnssl_mae.files import as_json, read_json, sha256, whole_file, write_json
from nnssl_mae.folders import find_dataset, nnunet_folder
from nnssl_mae.parallel import FULL_DISK
from nnssl_mae.plans import CONFIGURATION, PLANS_BLOCK, check_plans_name, make_block
from nnssl_mae.recipes.finetuning import FinetuneRecipe

_TRAINER = "nnUNetTrainerMAEFinetune"


@dataclass(frozen=True)
class Adaptation:
    """What was written, for the messages to the user."""

    plans_name: str
    dataset: str
    folder: Path
    configuration: dict[str, Any]
    warnings: tuple[str, ...]
    """What may silently cost the benefit, steps that stock nnU-Net cannot repeat, and results of older plans."""
    notes: tuple[str, ...]
    report: Report | None
    gpu_memory: float | None
    gpu_memory_how: str
    missing: int
    """Training cases that nnU-Net has not preprocessed for these plans."""
    cases: int
    """Training cases."""


def adapt(
    checkpoint: Checkpoint,
    number: int,
    plans_name: str,
    recipe: FinetuneRecipe,
    wish: Wish,
    overwrite: bool = False,
) -> Adaptation:
    """Writes ``<plans_name>.json`` and, unless it is the control, the tensors to start from.

    Treatment and control of the same checkpoint and wish get the same network, patch and preprocessed data.

    Args:
        checkpoint: the pre-trained network.
        number: of the labelled dataset.
        plans_name: of the new plans.
        recipe: of the fine-tuning.
        wish: what to transfer, and how images are treated.
        overwrite: replace plans of this name that were written here.

    Raises:
        UserError: no such dataset, a name that is taken, or what :func:`plan_finetuning` raises; then neither file is
            written, and plans that were there stay as they were.
    """
    check_plans_name(plans_name)
    check_mode(checkpoint, wish)
    folder = nnunet_folder("nnUNet_preprocessed") / find_dataset(number)
    before = _plans_before(folder / f"{plans_name}.json", overwrite)
    _refuse_swap(before, wish, plans_name)
    labelled = labelled_dataset(number, plan_if_missing=True)
    planned = plan_finetuning(checkpoint, labelled, wish, plans_name)
    _write(folder, plans_name, planned, checkpoint, recipe, wish, before)
    missing, cases = missing_cases(folder / planned.configuration["data_identifier"], labelled.fingerprint)
    return Adaptation(
        plans_name=plans_name,
        dataset=labelled.name,
        folder=folder,
        configuration=planned.configuration,
        warnings=(
            *_other_optimiser(checkpoint, recipe),
            *planned.warnings,
            *planned.beyond_stock,
            *_older_results(planned.plans, before),
        ),
        notes=planned.notes,
        report=planned.report,
        gpu_memory=planned.gpu_memory,
        gpu_memory_how=planned.gpu_memory_how,
        missing=missing,
        cases=cases,
    )


def _other_optimiser(checkpoint: Checkpoint, recipe: FinetuneRecipe) -> list[str]:
    backbone = backbone_of(checkpoint.architecture)
    if backbone.is_convolutional or recipe.optimiser == "adamw":
        return []
    return [
        f"The schedule '{recipe.name}' trains with SGD, and a {short_name(backbone.network_class)} learns little by "
        "it; --schedule transformer (or transformer_scratch) is meant for it"
    ]


def _plans_before(file: Path, overwrite: bool) -> dict[str, Any] | None:
    """The plans of this name that shall be replaced, or None.

    Raises:
        UserError: they are there and shall not be replaced, or are not of a fine-tuning.
    """
    if not file.exists():
        return None
    if not overwrite:
        raise UserError(f"{file} exists; choose another name with -n, or pass --overwrite")
    plans = read_json(file, "remove it, or choose another name with -n")
    if _block(plans).get("kind") != "finetune":
        raise UserError(f"{file} was not written by nnssl-mae adapt and is not replaced; choose another name with -n")
    return plans


def _refuse_swap(before: Mapping[str, Any] | None, wish: Wish, plans_name: str) -> None:
    """A treatment is not replaced by its control under the same name, nor the other way round: both are needed."""
    if before is None or (_block(before).get("initialisation") is None) == (wish.part is None):
        return
    there, asked = "start from pre-trained weights", "start from scratch"
    if wish.part is not None:
        there, asked = asked, there
    raise UserError(
        f"The plans '{plans_name}' that are there {there} and these would {asked}; --overwrite does not replace a "
        "treatment by its control or a control by its treatment, choose another name with -n"
    )


def _block(plans: Mapping[str, Any]) -> Mapping[str, Any]:
    """Our block in plans of any content, which people may have edited; empty if there is none."""
    found: Any = plans
    for key in ("configurations", CONFIGURATION, PLANS_BLOCK):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _write(
    folder: Path,
    plans_name: str,
    planned: Planned,
    checkpoint: Checkpoint,
    recipe: FinetuneRecipe,
    wish: Wish,
    before: Mapping[str, Any] | None,
) -> None:
    """Tensors first, then the plans that name them: at no moment do plans name tensors that are not there."""
    old = None if before is None else _tensors_of(before, folder, plans_name)
    new: Path | None = None
    try:
        initialisation = None
        if wish.part is not None:
            new, digest = _write_tensors(folder, plans_name, planned.tensors, old)
            initialisation = _initialisation(new, digest, planned, checkpoint, wish)
        planned.configuration[PLANS_BLOCK] = make_block(
            "finetune", recipe=recipe.model_dump(mode="json"), initialisation=initialisation
        )
        write_json(folder / f"{plans_name}.json", planned.plans)
    except OSError as error:
        if new is not None and new != old:
            new.unlink(missing_ok=True)
        raise _cannot_write(folder, error) from error
    if old is not None and old != new:
        old.unlink(missing_ok=True)


def _tensors_of(plans: Mapping[str, Any], folder: Path, plans_name: str) -> Path | None:
    """The file of tensors that plans name; None for a control, and for names that are not ours."""
    initialisation = _block(plans).get("initialisation")
    name = str(initialisation.get("file")) if isinstance(initialisation, Mapping) else ""
    if not re.fullmatch(re.escape(plans_name) + r"(__[0-9a-f]{8})?_init\.safetensors", name):
        return None
    return folder / name


def _write_tensors(
    folder: Path, plans_name: str, tensors: Mapping[str, torch.Tensor], old: Path | None
) -> tuple[Path, str]:
    """As ``<plans_name>_init.safetensors``; under another name where the plans that are there need that file as it is.

    Args:
        folder: of the plans.
        plans_name: of the plans.
        tensors: by name.
        old: the file that plans of this name need until they are replaced.

    Returns:
        the file and its SHA-256.
    """
    content = safetensors.torch.save(dict(tensors), metadata={"format": "pt"})
    digest = hashlib.sha256(content).hexdigest()
    file = folder / f"{plans_name}_init.safetensors"
    if old is not None and old.is_file():
        if sha256(old) == digest:
            return old, digest
        if old == file:
            # No other plans can need a file of this name: theirs hold no double underscore.
            file = folder / f"{plans_name}__{digest[:8]}_init.safetensors"
    with whole_file(file) as temporary:
        temporary.write_bytes(content)
    return file, digest


def _initialisation(file: Path, digest: str, planned: Planned, checkpoint: Checkpoint, wish: Wish) -> dict[str, Any]:
    """What the trainer needs to know about the tensors; without any path."""
    assert planned.report is not None
    parts = ("encoder.",) if wish.part == "encoder" else ("encoder.", "decoder.")
    return {
        "file": file.name,
        "sha256": digest,
        "transfer": wish.part,
        "adapted": [{"name": fate.name, "how": fate.how} for fate in planned.report.adapted],
        "left_random": [fate.name for fate in planned.report.random if fate.name.startswith(parts)],
        "origin": checkpoint.origin.as_json(),
    }


def _cannot_write(folder: Path, error: OSError) -> UserError:
    if error.errno in FULL_DISK:
        return ResumableError(f"The disk of {folder} is full; free some space and run the same command again")
    reason = error.strerror or str(error)
    return UserError(f"Plans cannot be written to {folder} ({reason}); change its permissions")


def _older_results(plans: Mapping[str, Any], before: Mapping[str, Any] | None) -> tuple[str, ...]:
    """A warning where there are results of other plans of this name."""
    results = os.environ.get("nnUNet_results")
    name = f"{_TRAINER}__{plans['plans_name']}__{CONFIGURATION}"
    if not results or not (folder := Path(results, str(plans["dataset_name"]), name)).is_dir():
        return ()
    if before == json.loads(as_json(plans)):
        return ()
    return (
        f"{folder} holds results of other plans of this name: they do not belong to these, and cannot be continued "
        "with them; move them away or choose another name with -n",
    )
