"""The demonstration from scans to report, as a list of stages that run the public commands."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from nnssl_mae import __version__
from nnssl_mae.brains.anatomy import find_real_scans
from nnssl_mae.demo.data import LABELLED, LABELLED_FOLDER, SCANS, UNLABELLED, UNLABELLED_NAME, write_data
from nnssl_mae.demo.report import write_report
from nnssl_mae.demo.results import ARMS, FOLD, PRETRAINED_FOLDER, TEST_IMAGES, Arm
from nnssl_mae.demo.running import Command, OnLine, Stage, read_record, run_stages, stage_environment
from nnssl_mae.demo.size import FULL, SMALL, DemoSize
from nnssl_mae.errors import UserError
from nnssl_mae.files import sha256, write_json
from nnssl_mae.plans import CONFIGURATION
from nnssl_mae.recipes.reading import configs_folder

_LABELLED_PREPROCESSED = Path("nnUNet_preprocessed") / LABELLED_FOLDER.name
_UNLABELLED_DATASET = f"Dataset{UNLABELLED}_{UNLABELLED_NAME}"


def run_demo(out: Path, device: str, full: bool, console: Console) -> Path:
    """Run the whole demonstration in ``out``; a second run continues where the first stopped.

    Args:
        out: a new folder, or one of an earlier demonstration.
        device: ``cpu`` or ``cuda``.
        full: the larger run that needs a GPU.

    Returns:
        the path of ``report.html``.

    Raises:
        UserError: bad arguments, or a stage failed.
    """
    if device not in ("cpu", "cuda"):
        raise UserError(f"--device {device} is not possible; choose cpu or cuda")
    size = FULL if full else SMALL
    out = out.resolve()
    _claim(out)
    stages = plan_stages(out, device, size)
    run_stages(stages, out, stage_environment(out, size.workers), console)
    records = {stage.title: read_record(out, stage) for stage in stages}
    seconds = {title: record.seconds for title, record in records.items() if record and record.seconds is not None}
    return write_report(out, size, device, seconds)


def _claim(out: Path) -> None:
    """Mark ``out`` as a demonstration's folder: stages replace what lies in it."""
    marker = out / "demo.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not marker.is_file() and any(out.iterdir()):
            raise UserError(f"{out} holds other files; give a new folder with --out, or an earlier demonstration's")
        if not marker.is_file() or json.loads(marker.read_text(encoding="utf-8")).get("version") != __version__:
            write_json(marker, {"what": "a demonstration of nnssl-mae", "version": __version__})
    except (OSError, ValueError) as error:
        raise UserError(f"{out} cannot be used: {error}; give another folder with --out") from error


def plan_stages(out: Path, device: str, size: DemoSize) -> list[Stage]:
    """All stages in order; the report follows them. Paths in commands are relative to ``out``."""
    return [
        _write_stage(out, size),
        _prepare_stage(size),
        _pretrain_stage(device),
        _adapt_stage(size),
        *(_finetune_stage(arm, device) for arm in ARMS),
        _predict_stage(device),
    ]


def _write_stage(out: Path, size: DemoSize) -> Stage:
    def work(on_line: OnLine) -> None:
        write_data(out, size, on_line)

    inputs = {"size": _brain_numbers(size), "version": __version__, "real": sorted(find_real_scans())}
    return Stage("1_write", "Write brains", work=work, inputs=inputs, makes=(SCANS, LABELLED_FOLDER))


def _brain_numbers(size: DemoSize) -> dict[str, object]:
    """The part of the size that the scans depend on."""
    elsewhere = ("recipe", "epochs", "iterations", "workers")
    return {key: value for key, value in asdict(size).items() if key not in elsewhere}


def _prepare_stage(size: DemoSize) -> Stage:
    recipe = configs_folder() / f"{size.recipe}.yaml"
    if not recipe.is_file():
        raise UserError(f"The recipe file {recipe} is missing; install nnssl_mae again")
    command = ("nnssl-mae", "prepare", SCANS.as_posix(), "-d", str(UNLABELLED), "-n", UNLABELLED_NAME)
    return Stage(
        "2_prepare",
        "Prepare unlabelled scans",
        ((*command, "--recipe", size.recipe, "-np", str(size.workers)),),
        inputs=sha256(recipe),
        makes=(Path("nnUNet_preprocessed") / _UNLABELLED_DATASET,),
    )


def _pretrain_stage(device: str) -> Stage:
    command = ("nnUNetv2_train", str(UNLABELLED), CONFIGURATION, "all", "-tr", "nnUNetTrainerMAE")
    return Stage(
        "3_pretrain",
        "Pre-train",
        ((*command, "-p", "nnsslMAEPlans", "-device", device),),
        makes=(Path("nnUNet_results") / _UNLABELLED_DATASET,),
        resume=("--c",),
    )


def _adapt_stage(size: DemoSize) -> Stage:
    checkpoint = (PRETRAINED_FOLDER / "checkpoint_final.pth").as_posix()
    length = ("--epochs", str(size.epochs), "--iterations", str(size.iterations))
    commands: list[Command] = [
        ("nnssl-mae", "adapt", checkpoint, "-d", str(LABELLED), "-n", arm.plans, *arm.adapt_options, *length)
        for arm in ARMS
    ]
    # Both plans name the same preprocessed folder, so one preprocessing serves both arms.
    preprocess = (
        "nnUNetv2_preprocess",
        "-d",
        str(LABELLED),
        "-plans_name",
        ARMS[0].plans,
        "-c",
        CONFIGURATION,
    )
    commands.append((*preprocess, "-np", str(size.workers)))
    title = "Adapt to the labelled dataset"
    return Stage("4_adapt", title, tuple(commands), makes=(_LABELLED_PREPROCESSED,))


def _finetune_stage(arm: Arm, device: str) -> Stage:
    command = ("nnUNetv2_train", str(LABELLED), CONFIGURATION, FOLD, "-tr", "nnUNetTrainerMAEFinetune")
    return Stage(
        f"5_finetune_{arm.folder}",
        f"Fine-tune ({arm.title})",
        ((*command, "-p", arm.plans, "-device", device),),
        makes=(arm.results.parent,),
        resume=("--c",),
    )


def _predict_stage(device: str) -> Stage:
    fixed = (
        "-c",
        CONFIGURATION,
        "-tr",
        "nnUNetTrainerMAEFinetune",
        "-f",
        FOLD,
        "-device",
        device,
        "--disable_tta",
    )
    commands = tuple(
        (
            *(
                "nnUNetv2_predict",
                "-d",
                str(LABELLED),
                "-i",
                TEST_IMAGES.as_posix(),
                "-o",
                arm.predictions.as_posix(),
            ),
            *("-p", arm.plans, *fixed, "-npp", "1", "-nps", "1"),
        )
        for arm in ARMS
    )
    return Stage("6_predict", "Predict held-out brains", commands, makes=tuple(arm.predictions for arm in ARMS))
