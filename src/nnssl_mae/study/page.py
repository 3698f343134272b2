"""What ``nnssl-mae study`` prints: the plan with its cost, and how a run ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nnssl_mae.checkpoints.hub import is_hub
from nnssl_mae.console import say
from nnssl_mae.progress import duration
from nnssl_mae.study.cost import Cost
from nnssl_mae.study.model import Study
from nnssl_mae.study.runner import Outcome
from nnssl_mae.study.state import State, Status
from nnssl_mae.study.steps import Command, Step, shown_command

_NOT_TIMED = "unknown until the first of its kind has been timed"


def print_plan(study: Study, steps: Sequence[Step], statuses: Mapping[str, Status], cost: Cost, out: Path) -> None:
    """Every step with its command and state, then the cost."""
    console = Console()
    say(console, f"Study {study.name}: {len(steps)} steps in {out}")
    for step in steps:
        status = statuses[step.name]
        why = f" ({status.why})" if status.why else ""
        say(console, f"{'done' if status.is_done else 'to do'}  {step.name}{why}")
        extra: Command = step.resume if status.continues else ()
        say(console, f"       {shown_command(step, extra)}")
    say(console, "")
    _print_cost(cost, console)
    for note in notes(study):
        say(console, f"Note: {note}")


def notes(study: Study) -> list[str]:
    """What a reader of the plan must know."""
    found = [
        f"Every arm trains {study.steps} optimiser steps; patch and batch, and so time and voxels a step, are those of "
        "its plans.",
        "Fine-tuning is not seeded, in stock nnU-Net and here: each of the seeds is an independent repetition, with "
        "results of its own (results/seed_N).",
    ]
    if study.pretraining is not None and any(arm.recipe is not None for arm in study.arms.values()):
        pairs = [
            f"{seed} with {study.pretraining.seeds[place % len(study.pretraining.seeds)]}"
            for place, seed in enumerate(study.seeds)
        ]
        found.append(f"Repetitions start from these pre-training seeds: {', '.join(pairs)}.")
    return [*found, *unpinned(study)]


def unpinned(study: Study) -> list[str]:
    """A note for each checkpoint of the hub that names no revision: no key of a step can tell which one it was."""
    given = {name: arm.checkpoint for name, arm in study.arms.items() if arm.checkpoint is not None}
    found = []
    for name, where in given.items():
        if is_hub(where) and "@" not in where:
            commit = _cached_commit(where)
            known = f"; the hub's cache has {commit}" if commit else ""
            found.append(
                f"{name} names no revision of {where}, whose owner may change it: write {where}@COMMIT{known}."
            )
    return found


def _cached_commit(where: str) -> str:
    """The commit that the cache holds as ``main``; empty if it holds none."""
    from huggingface_hub.constants import HF_HUB_CACHE

    repository = where.partition("://")[2].split("/")[:2]
    file = Path(HF_HUB_CACHE) / "--".join(("models", *repository)) / "refs" / "main"
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def _print_cost(cost: Cost, console: Console) -> None:
    table = Table("kind", "steps", "done", "optimiser steps to do", "time to do")
    for kind in cost.kinds:
        seconds = "not timed yet" if kind.seconds is None else duration(kind.seconds) if kind.steps > kind.done else "-"
        optimiser = f"{kind.training_steps:,}" if kind.training_steps else "-"
        table.add_row(kind.kind, str(kind.steps), str(kind.done), optimiser, seconds)
    console.print(table)
    known = [kind.seconds for kind in cost.kinds if kind.seconds is not None]
    if cost.seconds is not None:
        say(console, f"Time of all that is to do, one after the other: {duration(cost.seconds)}.")
    else:
        say(console, f"Time of what can be told: {duration(sum(known))}; the rest is {_NOT_TIMED}.")
    disk = _NOT_TIMED if cost.disk is None else f"{cost.disk / 1e9:.2f} GB"
    say(console, f"Disk for results of trainings to do: {disk}.")


def print_outcome(outcome: Outcome, state: State, console: Console) -> None:
    """How a run ended."""
    for name, note in outcome.failed.items():
        say(console, f"Failed: {name} ({note}); all that it printed is in {state.log(name)}", style="red")
    if outcome.left:
        say(console, f"Not run, because something before them failed or is missing: {', '.join(outcome.left)}")
    if outcome.failed or outcome.left:
        say(console, "The same command goes on where this one stopped.")
