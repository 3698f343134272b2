"""``study``: datasets x arms x label counts x seeds as a list of stock commands that goes on where it stopped."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nnssl_mae.cli.app import app
from nnssl_mae.console import say
from nnssl_mae.errors import UserError


@app.command()
def study(
    file: Annotated[Path, typer.Argument(help="Study file (.yaml).", metavar="STUDY")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show steps, commands, what is done and the cost; run nothing.")
    ] = False,
    run: Annotated[bool, typer.Option("--run", help="Run all that is not done.")] = False,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Write scripts for Slurm into OUT/slurm; calls no scheduler.")
    ] = False,
    step: Annotated[str | None, typer.Option(help="Run this step only; what it needs must be done.")] = None,
    work: Annotated[str | None, typer.Option(help="Part of a step, as the steps' own commands name it.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder; default beside the file, by its name.")] = None,
    jobs: Annotated[
        int | None, typer.Option("-j", "--jobs", help="Steps at a time; default 1, or one a device.", min=1)
    ] = None,
    devices: Annotated[
        str | None, typer.Option(help="GPUs to spread the steps over, as in CUDA_VISIBLE_DEVICES: 0,1")
    ] = None,
) -> None:
    """Run a whole study of arms, label counts and seeds with nnU-Net's own commands; the same command goes on.

    Exit codes: 0 done, 1 a step failed (the others have gone on), 2 bad input.
    """
    from nnssl_mae.study.plan import plan_study
    from nnssl_mae.study.reading import read_study
    from nnssl_mae.study.state import State
    from nnssl_mae.study.work import dry_run_study, run_study, write_slurm

    ways = {"--dry-run": dry_run, "--run": run, "--slurm": slurm, "--step": step is not None, "--work": bool(work)}
    if sum(ways.values()) != 1:
        raise UserError(f"Say what to do with {file} by one of {', '.join(list(ways)[:4])}")
    folder = (file.parent / file.stem if out is None else out).resolve()
    wanted = read_study(file)
    if run or slurm or step is not None:
        State(folder).prepare()  # to remember digests of the data in
    plan = plan_study(wanted, file, folder)
    if work is not None:
        if work not in plan.works:
            raise UserError(f"--work {work} is no part of this study; there are: {', '.join(plan.works)}")
        say(Console(), plan.works[work](folder))
    elif dry_run:
        dry_run_study(plan, folder)
    elif slurm:
        write_slurm(plan, file.resolve(), folder)
    else:
        names = tuple(name.strip() for name in (devices or "").split(",") if name.strip())
        ended_well = run_study(plan, folder, jobs or max(1, len(names)), names, step)
        sys.exit(0 if ended_well else 1)
