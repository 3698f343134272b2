"""A recipe's learning rates as a table and as a picture, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.table import Table

from nnssl_mae.errors import UserError
from nnssl_mae.files import whole_file
from nnssl_mae.recipes.finetuning import FinetuneRecipe
from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.training.schedules import (
    Phase,
    group_factors,
    group_rates,
    phases,
    pretraining_learning_rate,
    pretraining_phases,
)

ENCODER_STAGES = 6
"""Depth of the encoder of ResEnc L at a patch of 160^3 voxels: a recipe names no network, layer decay needs one."""
_BAND_COLOURS = ("#dce6f2", "#f7e3cf", "#dff0dc", "#f3f3f3")


@dataclass(frozen=True)
class Timeline:
    """What happens in which epoch."""

    title: str
    steps: str
    """Epochs times iterations, in words."""
    phases: tuple[Phase, ...]
    rates: Callable[[int], dict[str, float]]
    """Epoch to rate of each parameter group, the fastest group first."""

    @property
    def epochs(self) -> int:
        """All epochs."""
        return self.phases[-1].last_epoch + 1


def timeline(recipe: Recipe | FinetuneRecipe, stages: int = ENCODER_STAGES) -> Timeline:
    """The timeline of a pre-training or a fine-tuning.

    Args:
        recipe: of either kind.
        stages: resolution stages of the encoder, where fine-tuning gives each its own rate; a stem comes on top.
    """
    if isinstance(recipe, Recipe):
        epochs, each = recipe.schedule.epochs, recipe.schedule.iterations
        return Timeline(
            recipe.name,
            f"{epochs} epochs of " + ("one crop of every scan" if each == "dataset" else f"{each} steps"),
            pretraining_phases(recipe),
            lambda epoch: {"all weights": pretraining_learning_rate(recipe, epoch)},
        )
    factors = group_factors(recipe.layer_decay, stages)
    return Timeline(
        recipe.name or recipe.schedule,
        f"{recipe.epochs} epochs of {recipe.iterations} steps",
        phases(recipe),
        lambda epoch: group_rates(recipe, epoch, factors),
    )


def print_schedule(plan: Timeline, console: Console) -> None:
    """Prints the phases with the rates of their first and last epochs, and each group's where they differ."""
    table = Table(title=f"{plan.title}: {plan.steps}", title_justify="left")
    for heading in ("phase", "epochs", "trains", "shape", "learning rate"):
        table.add_column(heading)
    for phase in plan.phases:
        first, last = (max(plan.rates(epoch).values()) for epoch in (phase.first_epoch, phase.last_epoch))
        table.add_row(
            phase.name,
            f"{phase.first_epoch}-{phase.last_epoch} ({phase.epochs})",
            phase.trains,
            "linear" if phase.shape == "rise" else phase.shape,
            f"{first:.3g} to {last:.3g}",
        )
    console.print(table)
    peak = plan.phases[-1].first_epoch
    rates = plan.rates(peak)
    if len(set(rates.values())) > 1:
        listed = ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items())
        console.print(f"Rates at epoch {peak}: {listed}", highlight=False)


def draw_schedule(plan: Timeline, path: Path) -> None:
    """Writes a PNG: the rate of each parameter group over the epochs, phases as coloured bands.

    Raises:
        UserError: the name does not end in .png, or the file cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"--plot {path} is not possible; give a name that ends in .png")
    figure = Figure(figsize=(9, 4.5), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    _draw_bands(axes, plan.phases)
    _draw_rates(axes, plan)
    axes.set(xlabel="epoch", ylabel="learning rate", title=f"{plan.title}: {plan.steps}", xlim=(0, plan.epochs))
    axes.set_ylim(bottom=-0.03 * axes.get_ylim()[1])  # a group that stands still is seen above the frame
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:.3g}")
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    try:
        with whole_file(path) as temporary:
            figure.savefig(temporary, dpi=100, format="png")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}; give another name with --plot") from error


def _draw_bands(axes: Axes, order: tuple[Phase, ...]) -> None:
    for phase, colour in zip(order, _BAND_COLOURS[-len(order) :], strict=True):
        part = ", decoder only" if phase.trains == "decoder" else ""
        label = f"{phase.name}, {phase.epochs} epochs{part if 'decoder' not in phase.name else ''}"
        axes.axvspan(phase.first_epoch, phase.last_epoch + 1, color=colour, label=label, linewidth=0)


def _draw_rates(axes: Axes, plan: Timeline) -> None:
    """A rate holds for a whole epoch, so the lines are steps. Later groups are thinner: equal rates stay visible."""
    table = [plan.rates(epoch) for epoch in range(plan.epochs)]
    edges = range(plan.epochs + 1)
    names = list(table[0])
    for index, name in enumerate(names):
        values = [rates[name] for rates in table]
        width = 3.5 - 2.5 * index / max(1, len(names) - 1)
        axes.step(edges, [*values, values[-1]], where="post", linewidth=width, color=f"C{index}", label=name)
