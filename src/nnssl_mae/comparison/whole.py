"""The whole of ``nnssl-mae compare``: find, measure, summarise, print, write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from nnssl_mae.comparison.convergence import curves
from nnssl_mae.comparison.measure import MetricOptions, measure
from nnssl_mae.comparison.measured import Measured, read_measured
from nnssl_mae.comparison.notes import on_measured_cases
from nnssl_mae.comparison.page import About
from nnssl_mae.comparison.pretraining import HOW_TO_CHECK, overlap_of_arms, weights_never_loaded
from nnssl_mae.comparison.runs import Found, Request, Unfinished, find_runs
from nnssl_mae.comparison.summary import compare
from nnssl_mae.comparison.tables import print_comparison
from nnssl_mae.comparison.write import check_folder, open_folder, write_comparison
from nnssl_mae.console import say
from nnssl_mae.errors import UserError

CACHE = "cache"
NEVER_BEGUN = ("there is no such result", "there is no such prediction")


@dataclass(frozen=True)
class Wish:
    """What a user asks of a comparison."""

    request: Request
    controls: tuple[str, ...] = ()
    """Arms that the others are compared with; without any there are means and ranks only."""
    metrics: MetricOptions = field(default_factory=MetricOptions)
    seed: int = 0
    """Of the bootstrap."""
    resamples: int = 10000
    """Of the bootstrap."""
    uneven_replicates: bool = False
    """Arms may have different numbers of replicates."""


def run_comparison(wish: Wish, out: Path, workers: int, console: Console) -> Path:
    """Compares, prints tables and writes everything into a folder; killed, it goes on with what is measured.

    Returns:
        the path of the page.

    Raises:
        UserError: nothing to compare, a control that is no arm, results that cannot be read, or a folder that has other
            content; in the last case, and if nothing is found, nothing is written.
    """
    check_folder(out)
    found = find_runs(wish.request)
    _check_controls(wish.controls, [*(run.arm for run in found.runs), *(hole.arm for hole in found.unfinished)])
    open_folder(out, _asked(wish))
    measured = Measured(
        cases=measure(found.runs, wish.metrics, out / CACHE, workers, console),
        curves=curves(found.runs),
        unfinished=found.unfinished,
        overlap=overlap_of_arms(found.runs),
        order=(*wish.request.arms, *(arm for held in wish.request.held_out for arm in held.predictions)),
        about=_about(wish, found),
    )
    return _conclude(measured, wish, out, console)


def compare_again(folder: Path, wish: Wish, out: Path, console: Console) -> Path:
    """Summarises what an earlier comparison measured, with other controls or another seed; needs no image and no model.

    Args:
        folder: of the earlier comparison.
        wish: of its content, controls, seed, resamples and whether replicates may be uneven.
        out: another folder, or the same.
        console: to print on.

    Raises:
        UserError: ``folder`` holds no whole comparison, a control is no arm, or ``out`` has other content.
    """
    check_folder(out)
    measured = read_measured(folder)
    _check_controls(wish.controls, [*measured.cases["arm"], *(hole.arm for hole in measured.unfinished)])
    open_folder(out, {"from": folder.name, "controls": list(wish.controls), "seed": wish.seed})
    return _conclude(measured, wish, out, console)


def _conclude(measured: Measured, wish: Wish, out: Path, console: Console) -> Path:
    comparison = compare(
        measured.cases,
        wish.controls,
        seed=wish.seed,
        resamples=wish.resamples,
        overlap=measured.overlap,
        uneven_replicates=wish.uneven_replicates,
        unfinished=_expected(measured, wish.uneven_replicates),
    )
    order = measured.order
    arms = tuple(sorted(comparison.arms, key=lambda arm: order.index(arm) if arm in order else len(order)))
    bootstrap = f"Bootstrap: {wish.resamples:,} resamples, seed {wish.seed}."
    comparison = replace(comparison, arms=arms, notes=(*measured.about.first, *comparison.notes, bootstrap))
    page = write_comparison(out, comparison, measured)
    print_comparison(comparison, console)
    for remark in measured.about.remarks:
        say(console, f"  {remark}")
    say(console, f"\nOpen {page}")
    return page


def _expected(found: Measured, uneven_replicates: bool) -> list[Unfinished]:
    """What is missing; where arms may have different numbers of replicates, not a replicate that never was.

    One that was begun stays: a seed that diverged must not vanish.
    """
    if not uneven_replicates:
        return list(found.unfinished)
    there = set(found.cases[["dataset", "arm", "replicate"]].itertuples(index=False, name=None))
    begun = {run[:2] for run in there}
    return [
        hole
        for hole in found.unfinished
        if hole.why not in NEVER_BEGUN
        or (hole.dataset, hole.arm) not in begun
        or (hole.dataset, hole.arm, hole.replicate) in there
    ]


def _check_controls(controls: Sequence[str], arms: Sequence[str]) -> None:
    for control in controls:
        if control not in arms:
            raise UserError(f"--control {control} is no arm; there are: {', '.join(dict.fromkeys(arms))}")


def _about(wish: Wish, found: Found) -> About:
    replicates: dict[str, list[str]] = {}
    for run in found.runs:
        replicates.setdefault(run.arm, []).append(run.replicate)
    named = {arm: ", ".join(dict.fromkeys(names)) for arm, names in replicates.items()}
    metrics = wish.metrics
    remarks = [f"NSD: surface Dice at a tolerance of {metrics.tolerance_mm:g} mm."]
    if metrics.lesions:
        remarks.append(f"Lesion F1 of {', '.join(metrics.lesions)}: connected components, found if they overlap.")
    return About(
        arms=named,
        cases=on_measured_cases(found.runs),
        warnings=weights_never_loaded(found.runs),
        remarks=(*remarks, *found.notes, HOW_TO_CHECK),
    )


def _asked(wish: Wish) -> dict[str, Any]:
    """For the folder's marker: what was asked for, without folders of this machine."""
    request = wish.request
    return {
        "datasets": [*request.datasets, *(held.dataset for held in request.held_out)],
        "arms": dict(request.arms) or sorted({arm for held in request.held_out for arm in held.predictions}),
        "controls": list(wish.controls),
        "folds": list(request.folds),
        "metrics": asdict(wish.metrics),
        "seed": wish.seed,
        "resamples": wish.resamples,
    }
