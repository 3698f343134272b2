"""Learning rate and schedule of each arm, chosen on a labelled set of their own."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from nnssl_mae.errors import UserError
from nnssl_mae.files import whole_file, write_json
from nnssl_mae.recipes.finetuning import load_finetune_recipe
from nnssl_mae.study.lineage import DECODER_FIRST, Candidate, Lineages
from nnssl_mae.study.model import Study, Tuning

CHOSEN = Path("chosen")
_BACKGROUND = "0"


def candidates(study: Study, tuning: Tuning, name: str, lineages: Lineages) -> list[Candidate]:
    """What to try for an arm: every schedule with every rate, on top of the arm's other values."""
    own, arm = lineages.own_candidate(name), study.arms[name]
    kept = tuple(change for change in own.changes if not change.startswith("peak_learning_rate="))
    schedules = [lineages.finetuning_word(word) for word in tuning.schedules] or [own.schedule]
    if arm.scratch is not None:  # its encoder is random: no schedule that lets the decoder learn first
        fitting = [word for word in schedules if load_finetune_recipe(word).schedule not in DECODER_FIRST]
        schedules = fitting or [own.schedule]
    rates = [f"peak_learning_rate={rate!r}" for rate in tuning.learning_rates]
    return [Candidate(schedule, (*kept, rate)) for schedule in schedules for rate in rates]


def chosen_file(name: str) -> Path:
    """The fine-tuning recipe that is chosen for an arm, relative to the study's folder."""
    return CHOSEN / f"{name}.yaml"


def choose(out: Path, name: str, tried: Sequence[Candidate], summaries: Sequence[Sequence[Path]]) -> str:
    """Writes the recipe of the candidate with the highest mean Dice, and all means beside it; returns a line.

    Args:
        out: the study's folder.
        name: of the arm.
        tried: candidates; the first of several equal ones is taken.
        summaries: for each candidate nnU-Net's ``summary.json`` files, one a training.

    Raises:
        UserError: a summary is missing or holds no Dice, or no label has one for all candidates.
    """
    means = _means(name, tried, [[_dice(file) for file in files] for files in summaries])
    best = max(range(len(means)), key=lambda index: means[index])
    rows = [
        {"schedule": Path(one.schedule).stem, "changes": list(one.changes), "dice": mean, "trainings": len(files)}
        for one, mean, files in zip(tried, means, summaries, strict=True)
    ]
    (out / CHOSEN).mkdir(parents=True, exist_ok=True)
    write_json(out / CHOSEN / f"{name}.json", {"arm": name, "chosen": best, "tried": rows})
    with whole_file(out / chosen_file(name)) as temporary:
        temporary.write_text(_recipe(tried[best]), encoding="utf-8")
    return f"{name}: {tried[best].words} (mean Dice {means[best]:.4f})"


def _recipe(candidate: Candidate) -> str:
    content: dict[str, object] = {"base": candidate.schedule}
    for change in candidate.changes:
        key, _, value = change.partition("=")
        content[key] = yaml.safe_load(value)
    # PyYAML reads 1e-05 as text; our reader of recipes reads it as a number, unless it is quoted.
    lines = [f"{key}: {_scalar(value)}" for key, value in content.items()]
    return "\n".join(lines) + "\n"


def _scalar(value: object) -> str:
    return json.dumps(value)


def _means(name: str, tried: Sequence[Candidate], dice: Sequence[Sequence[Mapping[str, float]]]) -> list[float]:
    """Mean over labels and trainings of each candidate, over the same labels for all: of those that no reference of a
    training has, nnU-Net's Dice is NaN where nothing is predicted and 0 where something is."""
    totals = [0.0] * len(dice)
    for training in zip(*dice, strict=True):
        shared = [label for label in training[0] if all(math.isfinite(one.get(label, math.nan)) for one in training)]
        if not shared:
            bad = next((n for n, one in enumerate(training) if not any(map(math.isfinite, one.values()))), 0)
            raise UserError(
                f"Candidate {tried[bad].words} of arm {name} has no finite Dice of a label that all others have, too; "
                "leave it out of tuning, or take another tuning.dataset"
            )
        for number, one in enumerate(training):
            totals[number] += sum(one[label] for label in shared) / len(shared) / len(dice[number])
    return totals


def _dice(file: Path) -> dict[str, float]:
    """Mean Dice of each label."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))["mean"]
        return {str(label): float(values["Dice"]) for label, values in content.items() if label != _BACKGROUND}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} cannot be read ({error}); remove its folder, and the study trains it again") from error
