"""``inspect``, ``adapt``, ``export``: what a checkpoint is, fitting it to a labelled dataset, giving it away."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from nnssl_mae.cli.app import Dataset, app
from nnssl_mae.console import say
from nnssl_mae.errors import UserError

_CHECKPOINT = (
    "A checkpoint (.pth, .ckpt, .safetensors) of nnssl_mae, nnssl (OpenMind), nnU-Net or AMAES, a folder with one, or "
    "hf://owner/name of the Hugging Face hub."
)
_SCRATCH_RATE = 1e-2  # of nnU-Net
_FORMS = ("safetensors", "nnssl", "nnunet")

Checkpoint = Annotated[str, typer.Argument(help=_CHECKPOINT)]
Mode = Annotated[
    str,
    typer.Option(
        help="Voxel size and network: 'like-pretrained', 'dataset' (as nnU-Net plans this dataset) or 'native' "
        "(no resampling)."
    ),
]
Transfer = Annotated[str | None, typer.Option(help="'encoder' (default) or 'encoder+decoder'.")]
Normalisation = Annotated[
    str, typer.Option(help="'pretrained' or 'dataset': nnU-Net's own for each channel, such as that of CT.")
]
Orientation = Annotated[
    str, typer.Option(help="'pretrained', or 'asis' for files that cannot be turned as in pre-training.")
]
ChannelMap = Annotated[
    str | None,
    typer.Option(
        "--channel-map",
        help="For each channel of the dataset the checkpoint's channel that it starts from, or - for none: 0 0 1 -",
    ),
]
Patch = Annotated[str | None, typer.Option(help="Patch in voxels, z y x; default the checkpoint's or nnU-Net's.")]
Batch = Annotated[int | None, typer.Option(help="Patches a step; default 2, or what --gpu-memory allows.", min=1)]
GpuMemory = Annotated[
    float | None, typer.Option("--gpu-memory", help="GB: choose batch and patch to fit, by nnU-Net's estimate.", min=0)
]


@app.command()
def inspect(
    checkpoint: Checkpoint,
    dataset: Annotated[int | None, typer.Option("-d", "--dataset", help="A labelled dataset to fit it to.")] = None,
    mode: Mode = "like-pretrained",
    transfer: Transfer = None,
    normalisation: Normalisation = "pretrained",
    orientation: Orientation = "pretrained",
    channel_map: ChannelMap = None,
    patch: Patch = None,
    batch: Batch = None,
    gpu_memory: GpuMemory = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of the page.")] = False,
) -> None:
    """Show what a checkpoint is and, with -d, what of it a dataset would get. Writes nothing."""
    from nnssl_mae.checkpoints.read import read_checkpoint
    from nnssl_mae.downstream.inspection import inspect as run
    from nnssl_mae.downstream.inspection_page import print_json, print_page
    from nnssl_mae.downstream.labelled import labelled_dataset

    wish = _wish(False, mode, transfer, normalisation, orientation, channel_map, patch, batch, gpu_memory)
    labelled = None if dataset is None else labelled_dataset(dataset, plan_if_missing=False)
    found = run(read_checkpoint(checkpoint), labelled, wish)
    if as_json:
        print_json(found)
    else:
        print_page(found, Console())


@app.command()
def adapt(
    checkpoint: Checkpoint,
    dataset: Dataset,
    name: Annotated[str | None, typer.Option("-n", "--name", help="Name of the plans to write.")] = None,
    mode: Mode = "like-pretrained",
    transfer: Transfer = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Write the matched control: same plans, no weights.")
    ] = False,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="Fine-tuning recipe or YAML file; default 'warmup', with --from-scratch 'scratch'; of transformers "
            "'transformer' and 'transformer_scratch'."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Fine-tuning epochs; default the recipe's.", min=1)] = None,
    iterations: Annotated[int | None, typer.Option(help="Steps an epoch; default the recipe's.", min=1)] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change one value of the recipe: layer_decay=0.75. Repeatable.")
    ] = None,
    normalisation: Normalisation = "pretrained",
    orientation: Orientation = "pretrained",
    channel_map: ChannelMap = None,
    patch: Patch = None,
    batch: Batch = None,
    gpu_memory: GpuMemory = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace plans of this name.")] = False,
) -> None:
    """Fit a pre-trained network to a labelled nnU-Net dataset: writes plans and the weights to start from."""
    from nnssl_mae.backbones import backbone_of
    from nnssl_mae.checkpoints.read import read_checkpoint
    from nnssl_mae.downstream.adapt import adapt as run
    from nnssl_mae.recipes.finetuning import default_schedule, load_finetune_recipe

    wish = _wish(from_scratch, mode, transfer, normalisation, orientation, channel_map, patch, batch, gpu_memory)
    default_name = "nnsslMAEScratchPlans" if from_scratch else "nnsslMAEFinetunePlans"
    recipe = load_finetune_recipe(schedule or default_schedule(from_scratch), epochs, iterations, changes or ())
    if from_scratch and recipe.schedule in ("frozen", "sawtooth", "valley"):
        raise UserError(
            f"--from-scratch with the schedule '{recipe.schedule}' would train the decoder on random features; leave "
            "--schedule out"
        )
    plans_name = default_name if name is None else name
    source = read_checkpoint(checkpoint)
    if schedule is None and not backbone_of(source.architecture).is_convolutional:
        own = default_schedule(from_scratch, transformer=True)
        recipe = load_finetune_recipe(own, epochs, iterations, changes or ())
    result = run(source, dataset, plans_name, recipe, wish, overwrite)
    _print_next_steps(Console(), dataset, result)
    if not from_scratch:
        same = {
            "--mode": mode, "--normalisation": normalisation, "--orientation": orientation,
            "--channel-map": channel_map, "--patch": patch, "--batch": batch, "--gpu-memory": gpu_memory,
            "--epochs": epochs, "--iterations": iterations,
        }  # fmt: skip
        _print_control(Console(), checkpoint, dataset, name, same)
    elif recipe.optimiser == "sgd" and recipe.peak_learning_rate < _SCRATCH_RATE:
        say(
            Console(),
            f"Warning: this control trains with a peak learning rate of {recipe.peak_learning_rate:g}, which is meant "
            "for pre-trained weights; without --schedule it is nnU-Net's own for training from scratch",
            style="yellow",
        )


@app.command()
def export(
    checkpoint: Annotated[str, typer.Argument(help=f"{_CHECKPOINT} Or the folder of a fine-tuned model.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; a .zip for a fine-tuned model.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="'safetensors' (to share: nothing in it can run code), 'nnssl' (for nnssl's and nnU-Net's own "
            "loaders) or 'nnunet' (for stock -pretrained_weights; of a fine-tuned model the .zip that "
            "nnUNetv2_install_pretrained_model_from_zip takes).",
        ),
    ],
    name: Annotated[str | None, typer.Option("-n", "--name", help="Title of the model card.")] = None,
    data: Annotated[str | None, typer.Option(help="What the training data were, in words, for the card.")] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", "--license", help="Of the weights, such as cc-by-4.0, for the card.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--preview", help="A picture for the card; it must not identify anybody.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
) -> None:
    """Write a checkpoint, or a fine-tuned model, in a form for others, with a model card; no path, no subject in it."""
    from nnssl_mae.export.pretraining import CardWishes, export_checkpoint

    if form not in _FORMS:
        raise UserError(f"--format {form} is not possible; use {', '.join(_FORMS)}")
    chosen: Any = form
    card = CardWishes(name=name, data=data, licence=licence, preview=picture)
    export_checkpoint(checkpoint, out, chosen, Console(), card, overwrite)


def _wish(
    from_scratch: bool,
    mode: str,
    transfer: str | None,
    normalisation: str,
    orientation: str,
    channel_map: str | None,
    patch: str | None,
    batch: int | None,
    gpu_memory: float | None,
) -> Any:
    from nnssl_mae.downstream.wish import Wish

    if from_scratch and transfer is not None:
        raise UserError("--from-scratch and --transfer contradict each other; leave one out")
    words: Any = {  # Wish refuses what is not possible
        "part": None if from_scratch else (transfer or "encoder"),
        "mode": mode,
        "normalisation": normalisation,
        "orientation": orientation,
    }
    return Wish(
        **words,
        patch=None if patch is None else _patch(patch),
        batch=batch,
        gpu_memory=gpu_memory,
        channel_map=None if channel_map is None else _channel_map(channel_map),
    )


def _patch(text: str) -> tuple[int, int, int]:
    edges = [int(word) if word.isascii() and word.isdecimal() else 0 for word in text.replace(",", " ").split()]
    if len(edges) != 3 or min(edges) < 1:
        raise UserError(f"--patch {text} is not possible; use three whole numbers of voxels (z y x)")
    return edges[0], edges[1], edges[2]


def _channel_map(text: str) -> tuple[int | None, ...]:
    words = text.replace(",", " ").split()
    if not words or not all(word == "-" or (word.isascii() and word.isdecimal()) for word in words):
        raise UserError(
            f"--channel-map {text} is not possible; give for each channel of the dataset a channel of the checkpoint "
            "(0 is the first), or - for none: 0 0 1 -"
        )
    return tuple(None if word == "-" else int(word) for word in words)


def _print_control(console: Console, checkpoint: str, dataset: int, name: str | None, same: Mapping[str, Any]) -> None:
    """The command that writes the fair control: what decides about images as here, nnU-Net's schedule from scratch."""
    usual = {"--mode": "like-pretrained", "--normalisation": "pretrained", "--orientation": "pretrained"}
    words = ["nnssl-mae", "adapt", checkpoint, "-d", str(dataset), *([] if name is None else ["-n", f"{name}Scratch"])]
    for option, value in same.items():
        if value is not None and value != usual.get(option):
            words += [option, *str(value).split()]
    say(console, "The fair control:")
    say(console, f"  {shlex.join(words)} --from-scratch")


def _print_next_steps(console: Console, dataset: int, result: Any) -> None:
    from nnssl_mae.plans import CONFIGURATION

    for warning in result.warnings:
        say(console, f"Warning: {warning}", style="yellow")
    write = partial(say, console)
    for note in result.notes:
        write(f"Note: {note}")
    if result.report is not None:
        loaded, adapted, left = (
            len(fates) for fates in (result.report.loaded, result.report.adapted, result.report.random)
        )
        write(f"{loaded + adapted} tensors start from the checkpoint, {adapted} of them adapted; {left} stay random.")
    batch, patch = result.configuration["batch_size"], "x".join(map(str, result.configuration["patch_size"]))
    memory = "not known" if result.gpu_memory is None else f"{result.gpu_memory:.1f} GB by nnU-Net's estimate"
    write(f"Patch {patch}, batch {batch}; GPU memory {memory}.")
    write(f"Wrote {result.folder / result.plans_name}.json")
    write("Next (add -device cpu without a GPU):")
    if 0 < result.missing < result.cases:
        write(f"  ({result.missing} of {result.cases} cases are not preprocessed for these plans; all are done anew)")
    if result.missing:
        write("  (plans with the same data share it: once for a treatment and its control)")
        write(f"  nnUNetv2_preprocess -d {dataset} -plans_name {result.plans_name} -c {CONFIGURATION} -np 4")
    trainer = f"-tr nnUNetTrainerMAEFinetune -p {result.plans_name}"
    write(f"  nnUNetv2_train {dataset} {CONFIGURATION} 0 {trainer}")
    if result.report is not None:
        write("  (without -tr nnU-Net's own trainer would start from random weights, and say nothing)")
    write(f"  nnUNetv2_predict -d {dataset} -i INPUT -o OUTPUT -c {CONFIGURATION} {trainer} -f 0")
