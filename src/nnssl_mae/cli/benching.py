"""``bench``: how fast the parts are on this machine, beside stock nnU-Net in the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nnssl_mae.cli.app import app

bench_app = typer.Typer(no_args_is_help=True, context_settings=app.info.context_settings, rich_markup_mode=None)
app.add_typer(
    bench_app, name="bench", help="Measure parts on this machine, as ratios to stock nnU-Net in the same run."
)

Repeats = Annotated[int, typer.Option(help="How often each side is timed, in turn.", min=1)]


@bench_app.command()
def prepare(
    scan: Annotated[Path | None, typer.Argument(help="A scan of yours; default brains made of a template.")] = None,
    repeats: Repeats = 3,
) -> None:
    """Preprocessing on one core: volumes an hour, size on disk, largest difference."""
    from nnssl_mae.bench.prepare import bench_prepare

    bench_prepare(Console(), scan, repeats)


@bench_app.command()
def loader(
    patch: Annotated[int, typer.Option(help="Edge of the patch in voxels.", min=16)] = 160,
    repeats: Repeats = 3,
) -> None:
    """Loading on one core: patches a second from disk to tensor."""
    from nnssl_mae.bench.loader import bench_loader

    bench_loader(Console(), patch=(patch,) * 3, repeats=repeats)


@bench_app.command()
def startup(
    cases: Annotated[int, typer.Option(help="How many cases the dataset has.", min=10)] = 40_000,
) -> None:
    """From the start of training to the first batch, and memory, with many cases."""
    from nnssl_mae.bench.startup import bench_startup

    bench_startup(Console(), cases)


@bench_app.command()
def step(
    recipe: Annotated[
        list[str] | None, typer.Option(help="A recipe; may be given several times. Default mae and s3d.")
    ] = None,
    patch: Annotated[
        int | None, typer.Option(help="Edge of the patch in voxels; default that of the recipe, 48 if small.", min=16)
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Patches a step; may be given several times. Default 2.", min=1)
    ] = None,
    amp: Annotated[
        list[str] | None,
        typer.Option(help="fp32, fp16 or bf16; may be given several times. Default fp16 on a GPU, fp32 on a CPU."),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Time networks compiled by torch.compile, too.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cuda or cpu; default the GPU if there is one.")] = None,
    repeats: Annotated[int, typer.Option(help="Timed steps of each variant, in turn.", min=1)] = 10,
    features: Annotated[
        int | None, typer.Option(help="Channels of the first stage; default that of the recipe, 8 if small.", min=1)
    ] = None,
    small: Annotated[
        bool | None,
        typer.Option(
            "--small/--whole", help="Four stages of one block, or the recipe's network; default small on a CPU."
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="File for all numbers.")] = None,
) -> None:
    """The training step: milliseconds, memory, and how near it comes to what the device can do."""
    from nnssl_mae.bench.step import StepOptions, bench_step

    options = StepOptions(
        recipe or ("mae", "s3d"), patch, batch or (2,), amp or (), compiled, device, repeats, features, small, json
    )
    bench_step(Console(), options)


@bench_app.command()
def augment(
    recipe: Annotated[
        list[str] | None, typer.Option(help="A recipe; may be given several times. Default mae and amaes.")
    ] = None,
    patch: Annotated[int, typer.Option(help="Edge of the patch in voxels.", min=16)] = 96,
    device: Annotated[str | None, typer.Option(help="cuda or cpu; default the GPU if there is one.")] = None,
    repeats: Repeats = 3,
) -> None:
    """Augmentation: what a loader process does for a patch, on the CPU and where the device augments."""
    from nnssl_mae.bench.augment import bench_augment

    bench_augment(Console(), tuple(recipe or ("mae", "amaes")), (patch,) * 3, device, repeats)


@bench_app.command("end-to-end")
def end_to_end(
    recipe: Annotated[str, typer.Option(help="A recipe.")] = "mae",
    patch: Annotated[
        int | None, typer.Option(help="Edge of the patch in voxels; default the recipe's, 48 on a CPU.", min=16)
    ] = None,
    batch: Annotated[int, typer.Option(help="Patches a step.", min=1)] = 2,
    workers: Annotated[int, typer.Option(help="Loader processes.", min=0)] = 4,
    device: Annotated[str | None, typer.Option(help="cuda or cpu; default the GPU if there is one.")] = None,
    repeats: Repeats = 5,
) -> None:
    """Loader and step together against the step alone: whether the device waits for patches."""
    from nnssl_mae.bench.end_to_end import bench_end_to_end

    bench_end_to_end(Console(), recipe, patch, batch, workers, device, repeats)


@bench_app.command()
def backbones(
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            help="A recipe; may be given several times. Default mae, amaes, nnformer, nnformer_synapse, primus_s, "
            "primus_m and primus_l."
        ),
    ] = None,
    patch: Annotated[
        list[int] | None,
        typer.Option(
            help="Edge of the patch in voxels; may be given several times. Default 96, 128 and 160.", min=8, max=1024
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Patches a step; numbers are for one of them.", min=1)] = 1,
    json: Annotated[Path | None, typer.Option(help="File for all numbers.")] = None,
) -> None:
    """Networks of recipes: weights, arithmetic and memory of a pre-training step; computed, nothing is timed."""
    from nnssl_mae.bench.backbones import PATCHES, RECIPES, BackboneOptions, bench_backbones

    bench_backbones(Console(), BackboneOptions(recipe or RECIPES, patch or PATCHES, batch, json))
