"""The command line: one function a verb, thin."""

from __future__ import annotations

import sys
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from nnssl_mae import __version__
from nnssl_mae.errors import UserError

app = typer.Typer(
    name="nnssl-mae",
    help="Masked-autoencoder pre-training for stock nnU-Net v2.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Dataset = Annotated[int, typer.Option("-d", "--dataset", help="nnU-Net dataset number, 1 to 999.")]
Device = Annotated[str, typer.Option("--device", help="cuda or cpu.")]


def main() -> None:
    """Entry point: a :class:`UserError` becomes one sentence on stderr and exit code 2."""
    try:
        app(args=join_numbers(sys.argv[1:]))
    except UserError as error:
        print(f"nnssl-mae: {error}", file=sys.stderr)
        sys.exit(2)


def join_numbers(arguments: list[str]) -> list[str]:
    """Makes one argument of the numbers after ``--spacing`` and ``--patch``, which take three numbers or one word."""
    joined: list[str] = []
    remaining = list(arguments)
    while remaining:
        joined.append(remaining.pop(0))
        if joined[-1] in ("--spacing", "--patch"):
            numbers = list(takewhile(_is_number, remaining[:3]))
            joined += [" ".join(numbers)] if numbers else []
            del remaining[: len(numbers)]
    return joined


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _show_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def doctor() -> None:
    """Check this machine: versions, known-bad pairs, nnU-Net's folders, trainer discovery, disk."""
    from nnssl_mae.doctor import run_doctor

    raise typer.Exit(run_doctor(Console()))


def _spacing(values: list[str]) -> Any:
    if len(values) == 1 and values[0] in ("native", "median"):
        return values[0]
    return _three(values, float, "--spacing", "three numbers in mm (z y x), 'native' or 'median'")


def _patch(values: list[str]) -> Any:
    if values == ["planner"]:
        return "planner"
    return _three(values, int, "--patch", "three whole numbers of voxels (z y x) or 'planner'")


def _three(values: list[str], kind: Any, option: str, expected: str) -> Any:
    try:
        numbers = tuple(kind(value) for value in values)
    except ValueError:
        numbers = ()
    if len(numbers) != 3:
        raise UserError(f"{option} {' '.join(values)} is not possible; give {expected}")
    return numbers


@app.command()
def prepare(
    scans: Annotated[list[Path], typer.Argument(help="Folders of NIfTI scans (any depth) or single files.")],
    dataset: Dataset,
    name: Annotated[str, typer.Option("-n", "--name", help="Name of the new dataset.")],
    recipe: Annotated[str, typer.Option(help="Shipped recipe, or a YAML file.")] = "mae",
    spacing: Annotated[
        str | None, typer.Option(help="'1 1 1' (mm, z y x), 'native' (no resampling) or 'median'.")
    ] = None,
    patch: Annotated[str | None, typer.Option(help="'160 160 160' (voxels) or 'planner'.")] = None,
    batch: Annotated[int | None, typer.Option(help="Patches a step, over all GPUs.")] = None,
    subject_regex: Annotated[
        str | None, typer.Option(help="Expression whose first group in the path is the subject.")
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave unusable scans out.")] = False,
    workers: Annotated[int, typer.Option("-np", help="Processes.", min=1)] = 4,
) -> None:
    """Prepare unlabelled scans for pre-training: check, plan, preprocess."""
    from nnssl_mae.plans import CONFIGURATION, PRETRAINING_PLANS
    from nnssl_mae.recipes import load_recipe, override
    from nnssl_mae.scans.prepare import prepare as run

    published = load_recipe(recipe)
    changes: dict[str, Any] = {}
    if spacing is not None:
        changes["data.spacing"] = _spacing(spacing.split())
    if patch is not None:
        changes["network.patch_size"] = _patch(patch.split())
    if batch is not None:
        changes["network.batch_size"] = batch
    console = Console()
    folder = run(
        scans,
        dataset,
        name,
        override(published, changes),
        published,
        console,
        subject_regex=subject_regex,
        skip_bad=skip_bad,
        workers=workers,
    )
    console.print(f"Prepared {folder}", soft_wrap=True, highlight=False)
    console.print("Next, pre-train (add -device cpu without a GPU):")
    console.print(
        f"  nnUNetv2_train {dataset} {CONFIGURATION} all -tr nnUNetTrainerMAE -p {PRETRAINING_PLANS}",
        soft_wrap=True,
        highlight=False,
    )
