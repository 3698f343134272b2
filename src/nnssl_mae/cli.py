"""The command line: one function a verb, thin."""

from __future__ import annotations

import sys
from functools import partial
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
    from nnssl_mae.doctor.report import run_doctor

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


_PLANNED = (
    "batch_size", "base_features", "max_features", "blocks_per_stage", "convs_per_decoder_stage", "max_stages",
)  # fmt: skip


def _changes(published: Any, texts: list[str], spacing: str | None, patch: str | None, batch: int | None) -> Any:
    """The user's changes of a recipe, dotted key by value: ``--set``, and the three options that are short for it."""
    from nnssl_mae.recipes.pretraining import Recipe
    from nnssl_mae.recipes.reading import assignments, changed_summary

    changes = assignments(texts, Recipe)
    short = {
        "data.spacing": ("--spacing", None if spacing is None else _spacing(spacing.split())),
        "network.patch_size": ("--patch", None if patch is None else _patch(patch.split())),
        "network.batch_size": ("--batch", batch),
    }
    for key, (option, value) in short.items():
        if value is None:
            continue
        if key in changes:
            raise UserError(f"{option} and --set {key} decide the same value; leave one out")
        changes[key] = value
    is_planned = changes.get("network.patch_size", published.network.patch_size) == "planner"
    planned = [f"network.{key}" for key in _PLANNED if f"network.{key}" in changes]
    if is_planned and planned:
        option = "--batch" if batch is not None else f"--set {planned[0]}"
        raise UserError(f"{option} cannot be used with a planner patch: nnU-Net's plan decides both; leave one out")
    if changes and "summary" not in changes:
        changes["summary"] = changed_summary(published.summary, list(changes))
    return changes


@app.command()
def prepare(
    scans: Annotated[list[Path], typer.Argument(help="Folders of NIfTI scans (any depth) or single files.")],
    dataset: Dataset,
    name: Annotated[str, typer.Option("-n", "--name", help="Name of the new dataset.")],
    recipe: Annotated[str, typer.Option(help="Shipped recipe, or a YAML file.")] = "mae",
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change one value of the recipe: masking.ratio=0.6. Repeatable.")
    ] = None,
    spacing: Annotated[
        str | None, typer.Option(help="'1 1 1' (mm, z y x), 'native' (no resampling) or 'median'.")
    ] = None,
    patch: Annotated[str | None, typer.Option(help="'160 160 160' (voxels) or 'planner'.")] = None,
    batch: Annotated[int | None, typer.Option(help="Patches a step, over all GPUs.")] = None,
    subject_regex: Annotated[
        str | None, typer.Option(help="Expression whose first group in the path is the subject.")
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave unusable scans out.")] = False,
    exclude_suffix: Annotated[
        str, typer.Option(help="Ending of the names of exclusion masks beside the scans (defaced regions).")
    ] = "_exclude",
    workers: Annotated[int, typer.Option("-np", help="Processes.", min=1)] = 4,
) -> None:
    """Prepare unlabelled scans for pre-training: check, plan, preprocess."""
    from nnssl_mae.plans import CONFIGURATION, PRETRAINING_PLANS
    from nnssl_mae.recipes.reading import load_recipe, override
    from nnssl_mae.scans.prepare import prepare as run

    published = load_recipe(recipe)
    console = Console()
    folder = run(
        scans,
        dataset,
        name,
        override(published, _changes(published, changes or [], spacing, patch, batch)),
        published,
        console,
        subject_regex=subject_regex,
        skip_bad=skip_bad,
        workers=workers,
        exclude_suffix=exclude_suffix,
    )
    console.print(f"Prepared {folder}", soft_wrap=True, highlight=False, markup=False)
    console.print("Next, pre-train (add -device cpu without a GPU):")
    console.print(
        f"  nnUNetv2_train {dataset} {CONFIGURATION} all -tr nnUNetTrainerMAE -p {PRETRAINING_PLANS}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


@app.command()
def pretrain(
    dataset: Dataset,
    recipe: Annotated[
        str | None, typer.Option(help="Another recipe than the one prepared with: writes plans for it first.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change one value of --recipe: masking.ratio=0.6. Repeatable.")
    ] = None,
    plans: Annotated[
        str | None,
        typer.Option("-p", "--plans", help="Plans name; default nnsslMAEPlans, with --recipe nnsslMAEPlans_RECIPE."),
    ] = None,
    plan_only: Annotated[bool, typer.Option("--plan-only", help="Write the plans of --recipe and stop.")] = False,
    fold: Annotated[str, typer.Option("-f", "--fold", help="'all' or a number.")] = "all",
    device: Device = "cuda",
    resume: Annotated[bool, typer.Option("--c", help="Continue from the newest checkpoint.")] = False,
) -> None:
    """Pre-train: as nnUNetv2_train does, with any recipe, and also under torchrun (several machines, gloo on CPU)."""
    from nnssl_mae.folders import find_dataset, nnunet_folder
    from nnssl_mae.plans import CONFIGURATION, PRETRAINING_PLANS, check_prepared
    from nnssl_mae.recipes.reading import load_recipe
    from nnssl_mae.scans.planning import write_plans_for
    from nnssl_mae.training.distributed import check_device
    from nnssl_mae.training.distributed import pretrain as run

    if fold != "all" and not (fold.isascii() and fold.isdecimal()):
        raise UserError(f"--fold {fold} is not possible; use 'all' or a number")
    if recipe is None and (changes or plan_only):
        raise UserError("--set and --plan-only need --recipe: without one, the plans decide everything")
    name = find_dataset(dataset)
    folder = nnunet_folder("nnUNet_preprocessed") / name
    if not plan_only:  # before anything is written
        check_device(device)
        nnunet_folder("nnUNet_results")
    if recipe is not None:
        plans = write_plans_for(folder, load_recipe(recipe, changes or ()), plans)
        say = partial(Console().print, soft_wrap=True, highlight=False, markup=False)
        say(f"Plans {folder / plans}.json; with nnU-Net's own command:")
        say(f"  nnUNetv2_train {dataset} {CONFIGURATION} {fold} -tr nnUNetTrainerMAE -p {plans}")
    if plan_only:
        return
    plans = PRETRAINING_PLANS if plans is None else plans
    check_prepared(folder, plans)
    run(name, plans, fold if fold == "all" else int(fold), device, resume)


@app.command()
def adapt(
    checkpoint: Annotated[Path, typer.Argument(help="A pre-training checkpoint (checkpoint_final.pth).")],
    dataset: Dataset,
    name: Annotated[str | None, typer.Option("-n", "--name", help="Name of the plans to write.")] = None,
    transfer: Annotated[str | None, typer.Option(help="'encoder' (default) or 'encoder+decoder'.")] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Write the matched control: same plans, no weights.")
    ] = False,
    schedule: Annotated[
        str | None,
        typer.Option(help="Fine-tuning recipe or YAML file; default 'warmup', with --from-scratch 'scratch'."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Fine-tuning epochs; default the recipe's.", min=1)] = None,
    iterations: Annotated[int | None, typer.Option(help="Steps an epoch; default the recipe's.", min=1)] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change one value of the recipe: layer_decay=0.75. Repeatable.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Patches a step.", min=1)] = 2,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace plans of this name.")] = False,
) -> None:
    """Fit a pre-trained network to a labelled nnU-Net dataset: writes plans and the weights to start from."""
    from nnssl_mae.checkpoints.read import read_checkpoint
    from nnssl_mae.downstream.adapt import adapt as run
    from nnssl_mae.recipes.finetuning import load_finetune_recipe

    if transfer not in (None, "encoder", "encoder+decoder"):
        raise UserError(f"--transfer {transfer} is not possible; use 'encoder' or 'encoder+decoder'")
    if from_scratch and transfer is not None:
        raise UserError("--from-scratch and --transfer contradict each other; leave one out")
    default_name = "nnsslMAEScratchPlans" if from_scratch else "nnsslMAEFinetunePlans"
    if schedule is None:
        schedule = "scratch" if from_scratch else "warmup"
    recipe = load_finetune_recipe(schedule, epochs, iterations, changes or ())
    if from_scratch and recipe.schedule == "frozen":
        raise UserError("--from-scratch with a frozen encoder would train on random features; choose another schedule")
    part: Any = None if from_scratch else (transfer or "encoder")
    plans_name = default_name if name is None else name
    result = run(read_checkpoint(checkpoint), dataset, plans_name, recipe, part, batch, overwrite)
    _print_next_steps(Console(), dataset, result)


def _print_next_steps(console: Console, dataset: int, result: Any) -> None:
    from nnssl_mae.plans import CONFIGURATION

    for warning in result.warnings:
        console.print(f"Warning: {warning}", style="yellow", markup=False)
    say = partial(console.print, soft_wrap=True, highlight=False, markup=False)
    say(f"Wrote {result.folder / result.plans_name}.json")
    say("Next (add -device cpu without a GPU):")
    if not (result.folder / result.configuration["data_identifier"]).is_dir():
        say(f"  nnUNetv2_preprocess -d {dataset} -plans_name {result.plans_name} -c {CONFIGURATION} -np 4")
    trainer = f"-tr nnUNetTrainerMAEFinetune -p {result.plans_name}"
    say(f"  nnUNetv2_train {dataset} {CONFIGURATION} 0 {trainer}")
    say(f"  nnUNetv2_predict -d {dataset} -i INPUT -o OUTPUT -c {CONFIGURATION} {trainer} -f 0")


@app.command()
def schedule(
    recipe: Annotated[str, typer.Argument(help="Fine-tuning or pre-training recipe: a shipped one, or a YAML file.")],
    epochs: Annotated[int | None, typer.Option(help="In place of the recipe's epochs.", min=1)] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change one value of the recipe: layer_decay=0.75. Repeatable.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture to write (.png).")] = None,
) -> None:
    """Show what a recipe trains when, and at which learning rate."""
    from nnssl_mae.recipes.finetuning import load_any_recipe
    from nnssl_mae.training.schedule_plot import draw_schedule, print_schedule, timeline

    console = Console()
    plan = timeline(load_any_recipe(recipe, epochs, changes or ()))
    print_schedule(plan, console)
    if plot is not None:
        draw_schedule(plan, plot)
        console.print(f"Wrote {plot}", soft_wrap=True, highlight=False, markup=False)


@app.command()
def preview(
    checkpoint: Annotated[
        Path, typer.Argument(help="A pre-training checkpoint of nnssl_mae or of nnssl (OpenMind), or its folder.")
    ],
    scans: Annotated[list[Path], typer.Argument(help="NIfTI scans, or folders of them.")],
    ratio: Annotated[
        float | None, typer.Option(help="Share of the blocks to hide; default as trained, or the middle of its range.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides which blocks are hidden, the same in every scan.")] = 0,
    block_size: Annotated[int | None, typer.Option(help="Edge of the blocks in voxels; default as trained.")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the files.")] = Path("preview"),
    device: Annotated[str | None, typer.Option(help="cuda or cpu; default a GPU where there is one.")] = None,
) -> None:
    """See what a pre-trained network makes of hidden blocks: a picture and NIfTI files of the centre of each scan.

    CASE_preview.png: three planes, with the metrics over hidden voxels.

    CASE_input: the patch as the network was trained on, with normalised values.

    CASE_hidden_input: what the network sees.

    CASE_reconstruction: what it gives, everywhere, though only hidden blocks were asked of it.

    CASE_combined: the same in hidden blocks, the input in visible ones.

    Viewers lay all NIfTI files over the scan.
    """
    from nnssl_mae.evaluation.preview_scans import preview as run

    run(checkpoint, scans, out, Console(), ratio, seed, block_size, device)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demonstration writes.")] = Path("demo_output"),
    device: Device = "cpu",
    full: Annotated[bool, typer.Option("--full", help="Larger network and volumes, for a GPU.")] = False,
) -> None:
    """Show the whole path on real brain anatomy; ends with report.html and pictures."""
    from nnssl_mae.demo.stages import run_demo

    console = Console()
    report = run_demo(out, device, full, console)
    console.print(f"Open {report}", soft_wrap=True, highlight=False, markup=False)
