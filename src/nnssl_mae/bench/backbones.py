"""The networks of recipes side by side: weights, arithmetic and memory of a pre-training step, counted, not timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console

from nnssl_mae.backbones import short_name
from nnssl_mae.bench.asked import check_report_file, distinct_recipes
from nnssl_mae.bench.measuring import print_table, versions
from nnssl_mae.bench.step_demand import META, StepDemand, step_demand
from nnssl_mae.bench.step_setting import StepSetting, setting_of
from nnssl_mae.console import say
from nnssl_mae.errors import UserError
from nnssl_mae.files import write_json
from nnssl_mae.progress import track
from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.recipes.reading import override

SCHEMA = 1
RECIPES = ("mae", "amaes", "nnformer", "nnformer_synapse", "primus_s", "primus_m", "primus_l")
PATCHES = (96, 128, 160)
SMALLEST_EDGE, LARGEST_EDGE = 8, 1024  # of a patch in a recipe
_FORMAT = "fp16"
_GIB = 2**30
# Short: a terminal has 80 columns.
_COLUMNS = (
    "recipe",
    "patch",
    "enc.\nM",
    "dec.\nM",
    "all\nM",
    "GFLOP\nforward",
    "GFLOP\nstep",
    "GiB\nkept",
    "GiB\nstate",
)


@dataclass(frozen=True)
class BackboneOptions:
    """What the user asks for."""

    recipes: Sequence[str] = RECIPES
    """Names or files."""
    patches: Sequence[int] = PATCHES
    """Edges in voxels."""
    batch: int = 1
    """Patches a step; what is counted is told for one of them."""
    json: Path | None = None
    """File for all numbers."""


@dataclass(frozen=True)
class BackboneRow:
    """One recipe with one patch."""

    asked: int
    """Edge of the patch that was asked for."""
    setting: StepSetting
    """With the patch that was taken."""
    demand: StepDemand

    @property
    def edge(self) -> int:
        """Of the patch that was taken."""
        return self.setting.patch[0]


def bench_backbones(console: Console, options: BackboneOptions) -> dict[str, Any]:
    """Counts, prints a table, and writes all numbers if a file is asked for.

    Returns:
        what the JSON file holds.

    Raises:
        UserError: a recipe that cannot be read or has the name of another, a patch that nothing near fits, or a file
            that cannot be written.
    """
    check_report_file(options.json)
    wanted = [(recipe, edge) for recipe in distinct_recipes(options.recipes) for edge in dict.fromkeys(options.patches)]
    rows = [
        backbone_row(recipe, edge, options.batch) for recipe, edge in track(wanted, "Networks", len(wanted), console)
    ]
    print_table(console, _title(options.batch), _COLUMNS, [_cells(row) for row in rows], _notes(rows))
    report = _report(rows, options.batch)
    if options.json is not None:
        write_json(options.json, report)
        say(console, f"All numbers are in {options.json}")
    return report


def backbone_row(recipe: Recipe, edge: int, batch: int) -> BackboneRow:
    """Counts one recipe with the patch ``edge``^3, or the nearest that fits.

    Raises:
        UserError: no patch fits.
    """
    setting = fitting_setting(recipe, edge, batch)
    return BackboneRow(edge, setting, step_demand(setting))


def fitting_setting(recipe: Recipe, edge: int, batch: int) -> StepSetting:
    """The recipe with the patch ``edge``^3, or with the nearest that its network and its blocks divide.

    Of two that are equally near it is the smaller one.

    Raises:
        UserError: no patch fits.
    """
    for near in sorted(range(SMALLEST_EDGE, LARGEST_EDGE + 1), key=lambda other: (abs(other - edge), other)):
        try:
            return setting_of(override(recipe, {"network.patch_size": (near,) * 3}), batch, _FORMAT, META)
        except UserError:
            continue
    raise UserError(f"No patch fits the recipe '{recipe.name}'; choose another recipe")


def _title(batch: int) -> str:
    return f"A pre-training step, for one patch of one channel; batch {batch}, 16 bit"


def _cells(row: BackboneRow) -> tuple[str, ...]:
    demand, counts, batch = row.demand, row.demand.counts, row.setting.batch
    parameters = (demand.parameters.encoder, demand.parameters.decoder, demand.parameters.whole)
    return (
        row.setting.recipe.name,
        f"{row.edge}" if row.edge == row.asked else f"{row.edge}*",
        *(f"{number / 1e6:.2f}" for number in parameters),
        *(f"{flops / batch / 1e9:,.0f}" for flops in (counts.forward_flops, counts.step_flops)),
        f"{counts.kept_bytes / batch / _GIB:.2f}",
        f"{demand.state_bytes / _GIB:.2f}",
    )


def _notes(rows: Sequence[BackboneRow]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in versions().items())
    lines = [
        "M: million weights of encoder, decoder, and all with what only pre-training needs.",
        "GFLOP: convolutions and matrix products of the forward pass, and of the step (forward and backward).",
        "GiB kept: by the forward pass for the backward pass. A GPU needs more at its peak.",
        "GiB state: weights, gradients and what the optimiser remembers, 32 bit, whatever the batch.",
        *(_replaced_in_words(row) for row in rows if row.edge != row.asked),
        f"{packages}; {_now().date().isoformat()}",
    ]
    return "\n".join(lines)


def _replaced_in_words(row: BackboneRow) -> str:
    return f"* {row.setting.recipe.name}: a patch of {row.asked}^3 does not fit; the nearest that does is {row.edge}^3."


def _report(rows: Sequence[BackboneRow], batch: int) -> dict[str, Any]:
    """Everything that was counted, for JSON; of the whole batch, sizes in bytes."""
    return {
        "schema": SCHEMA,
        "date": _now().isoformat(timespec="seconds"),
        "versions": versions(),
        "batch": batch,
        "number_format": _FORMAT,
        "networks": [_row_report(row) for row in rows],
    }


def _row_report(row: BackboneRow) -> dict[str, Any]:
    return {
        "recipe": row.setting.recipe.name,
        "network": short_name(row.setting.architecture["network_class_name"]),
        "asked_patch": [row.asked] * 3,
        "patch": list(row.setting.patch),
        "hidden_ratio": row.setting.ratio,
        "optimiser": row.setting.recipe.optimiser.name,
        "parameters": asdict(row.demand.parameters),
        **asdict(row.demand.counts),
        "state_bytes": row.demand.state_bytes,
    }


def _now() -> datetime:
    return datetime.now(timezone.utc)
