"""``pretrain``, ``schedule``, ``preview``: from volumes to weights, and what these have learnt."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nnssl_mae.cli.app import Dataset, Device, app
from nnssl_mae.errors import UserError


@app.command()
def pretrain(
    dataset: Dataset,
    recipe: Annotated[
        str | None, typer.Option(help="Another recipe than the one prepared with: writes plans for it first.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="Train the network of this recipe (nnformer, primus_m, ...) by the method of --recipe."),
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Take a few steps, print what the whole run costs, keep nothing.")
    ] = False,
) -> None:
    """Pre-train: as nnUNetv2_train does, with any recipe, and also under torchrun (several machines, gloo on CPU)."""
    from nnssl_mae.folders import find_dataset, nnunet_folder
    from nnssl_mae.plans import CONFIGURATION, PRETRAINING_PLANS, check_prepared
    from nnssl_mae.recipes.backbone import load_with_backbone
    from nnssl_mae.scans.planning import write_plans_for
    from nnssl_mae.training.distributed import check_device
    from nnssl_mae.training.distributed import pretrain as run

    if fold != "all" and not (fold.isascii() and fold.isdecimal()):
        raise UserError(f"--fold {fold} is not possible; use 'all' or a number")
    if recipe is None and (changes or plan_only or backbone):
        raise UserError("--set, --backbone and --plan-only need --recipe: without one, the plans decide everything")
    name = find_dataset(dataset)
    folder = nnunet_folder("nnUNet_preprocessed") / name
    if not plan_only:  # before anything is written
        check_device(device)
        nnunet_folder("nnUNet_results")
    if recipe is not None:
        plans = write_plans_for(folder, load_with_backbone(recipe, backbone, changes or ()), plans)
        say = partial(Console().print, soft_wrap=True, highlight=False, markup=False)
        say(f"Plans {folder / plans}.json; with nnU-Net's own command:")
        say(f"  nnUNetv2_train {dataset} {CONFIGURATION} {fold} -tr nnUNetTrainerMAE -p {plans}")
    if plan_only:
        return
    plans = PRETRAINING_PLANS if plans is None else plans
    check_prepared(folder, plans)
    if dry_run:
        from nnssl_mae.training.cost import pretraining_cost
        from nnssl_mae.training.distributed import training_device

        pretraining_cost(name, plans, training_device(device), Console())
        return
    run(name, plans, fold if fold == "all" else int(fold), device, resume)


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
