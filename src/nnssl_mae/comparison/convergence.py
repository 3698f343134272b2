"""How fast models learnt: nnU-Net's own validation Dice against the number of optimiser steps."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import pandas

from nnssl_mae.plans import PLANS_BLOCK

STOCK_ITERATIONS = 250
"""Optimiser steps of an epoch in nnU-Net, unless its trainer says otherwise."""
COLUMNS = ("dataset", "arm", "replicate", "fold", "labelled", "repeat", "epoch", "step", "dice")
Epoch = dict[str, float]
_LOGGED = ("train_loss", "val_loss", "Pseudo dice")


class Trained(Protocol):
    """What is needed of a run; ``model`` is its fold folder, or None for bare predictions."""

    @property
    def dataset(self) -> str: ...
    @property
    def arm(self) -> str: ...
    @property
    def replicate(self) -> str: ...
    @property
    def fold(self) -> str: ...
    @property
    def labelled(self) -> int | None: ...
    @property
    def repeat(self) -> int | None: ...
    @property
    def model(self) -> Path | None: ...


def curves(runs: Iterable[Trained]) -> pandas.DataFrame:
    """Pseudo Dice of every epoch that a run's logs hold.

    Pseudo Dice is nnU-Net's estimate during training: of patches of the validation cases, not of whole images.

    Args:
        runs: those without a fold folder or without a finished epoch give no rows.

    Returns:
        dataset, arm, replicate, fold, labelled, repeat (the last two may be NA), epoch (from 0), step (optimiser steps
        done by the end of that epoch), dice (mean over labels, 0 to 1).
    """
    rows: list[dict[str, object]] = []
    for run in runs:
        if run.model is None:
            continue
        each = iterations_of_an_epoch(run.model)
        of_run = {name: getattr(run, name) for name in COLUMNS[:6]}
        for epoch, logged in read_epochs(run.model).items():
            if not math.isnan(dice := logged.get("Pseudo dice", math.nan)):
                rows.append({**of_run, "epoch": epoch, "step": (epoch + 1) * each, "dice": dice})
    table = pandas.DataFrame(rows, columns=list(COLUMNS))
    return table.astype({"labelled": "Int64", "repeat": "Int64", "epoch": "int64", "step": "int64", "dice": "float64"})


def read_epochs(folder: Path) -> dict[int, Epoch]:
    """What nnU-Net's text logs in a fold folder say of each epoch, in the order of the epochs.

    A training that was resumed, or started anew, writes a further log. Its epochs replace those of the same number and
    all after them: they were trained again or are not part of the model. (Checkpoints hold the same values, but only
    unpickling could read them.)

    Returns:
        by number of the epoch: ``train_loss``, ``val_loss`` and ``Pseudo dice``, each where it is there; a value is the
        mean of the numbers in its line that are not nan.
    """
    epochs: dict[int, Epoch] = {}
    for log in sorted(folder.glob("training_log_*.txt"), key=_when):
        found = _epochs_in(log.read_text(encoding="utf-8", errors="replace"))
        if found:
            epochs = {epoch: logged for epoch, logged in epochs.items() if epoch < min(found)} | found
    return dict(sorted(epochs.items()))


def iterations_of_an_epoch(fold_folder: Path) -> int:
    """Optimiser steps of an epoch: what the trainer noted in debug.json, else our recipe in the plans, else stock's."""
    noted = _json_object(fold_folder / "debug.json").get("num_iterations_per_epoch")
    name = fold_folder.parent.name.split("__")[-1]
    planned: Any = _json_object(fold_folder.parent / "plans.json")
    for key in ("configurations", name, PLANS_BLOCK, "recipe", "iterations"):
        planned = planned.get(key) if isinstance(planned, Mapping) else None
    for value in (noted, planned):
        if str(value).isdigit() and int(str(value)) > 0:
            return int(str(value))
    return STOCK_ITERATIONS


def _when(log: Path) -> tuple[int, ...]:
    """The numbers in a log's name: nnU-Net writes months and days without a leading zero, so names do not sort."""
    return tuple(int(number) for number in re.findall(r"\d+", log.name))


def _epochs_in(text: str) -> dict[int, Epoch]:
    """The finished epochs of one log; the last one of a training that was killed lacks lines and is left out."""
    epochs: dict[int, Epoch] = {}
    epoch = -1
    for line in text.splitlines():
        if match := re.search(r"\bEpoch (\d+)\s*$", line):
            epoch = int(match.group(1))
        elif match := re.search(r": (train_loss|val_loss|Pseudo dice) (.+)$", line):
            epochs.setdefault(epoch, {})[match.group(1)] = _mean_of_numbers(match.group(2))
    return {number: logged for number, logged in epochs.items() if number >= 0 and len(logged) == len(_LOGGED)}


def _mean_of_numbers(text: str) -> float:
    """Mean of the numbers in '0.5' or '[np.float32(0.5), nan]', leaving nan out."""
    numbers = [float(n) for n in re.findall(r"(?:^|[\[(, ])(-?\d+(?:\.\d*)?(?:e-?\d+)?|nan)(?=$|[\]), ])", text)]
    numbers = [n for n in numbers if not math.isnan(n)]
    return sum(numbers) / len(numbers) if numbers else math.nan


def _json_object(path: Path) -> dict[str, Any]:
    """What a JSON file holds; empty where it is missing or damaged, for the number of steps has further sources."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
