"""Writes the demonstration's report from the files of a finished run."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nnssl_mae import __version__
from nnssl_mae.brains.anatomy import LABEL_NAMES
from nnssl_mae.demo import page
from nnssl_mae.demo.data import SCANS
from nnssl_mae.demo.pictures import brains_figure, curves_figure, dice_figure, segmentation_figure
from nnssl_mae.demo.results import (
    ARMS,
    PRETRAINED,
    SCRATCH,
    newest_preview,
    read_finetuning_curves,
    read_image,
    read_pretraining_curves,
    read_reconstruction,
    read_schedule,
    read_test_cases,
    read_training_labels,
)
from nnssl_mae.demo.scores import VOTE, label_means, overall_mean, score_cases
from nnssl_mae.demo.size import DemoSize
from nnssl_mae.errors import UserError
from nnssl_mae.files import whole_file

_SHOWN_BRAINS = 12
_SHOWN_CASES = 4
_LABELS = [label for label in LABEL_NAMES if label > 0]
_METHODS = {
    PRETRAINED.title: "fine-tuned from the pre-trained checkpoint",
    SCRATCH.title: "the control: same network, data and number of steps, random start, nnU-Net's own schedule",
    VOTE: "the floor: the majority vote of the training label maps, which never sees an image",
}


@dataclass(frozen=True)
class Outcome:
    """The numbers of one demonstration.

    Attributes:
        training: labelled cases both arms learnt from.
        cases: names of the held-out cases.
        scores: Dice by method, (cases, labels), nan where a label is neither in the truth nor predicted.
        reconstruction: pre-training's own validation (r2, psnr, ssim, val_loss, cases).
        schedules: how each arm was fine-tuned, in words.
    """

    training: int
    cases: list[str]
    scores: dict[str, NDArray[np.float64]]
    reconstruction: dict[str, Any]
    schedules: dict[str, str]


def write_report(out: Path, size: DemoSize, device: str, seconds: Mapping[str, float]) -> Path:
    """Write ``OUT/report.html`` (self-contained) and ``OUT/pictures``.

    Args:
        out: folder of a finished demonstration.
        size: of that demonstration.
        device: ``cpu`` or ``cuda``.
        seconds: duration of each stage by its title.

    Returns:
        the path of the report.

    Raises:
        UserError: a result is missing or cannot be read.
    """
    cases = read_test_cases(out)
    training = read_training_labels(out)
    scores = score_cases(cases, training, _LABELS)
    schedules = {arm.title: read_schedule(out, arm) for arm in ARMS}
    names = [case.name for case in cases]
    outcome = Outcome(len(training), names, scores, read_reconstruction(out), schedules)
    pictures = out / "pictures"
    pictures.mkdir(exist_ok=True)
    finetuning = {arm.title: read_finetuning_curves(out / arm.results) for arm in ARMS}
    _save(brains_figure(_some_scans(out)), pictures / "brains.png")
    _copy_preview(out, pictures / "reconstructions.png")
    _save(curves_figure(read_pretraining_curves(out), finetuning), pictures / "training.png")
    _save(segmentation_figure(cases[:_SHOWN_CASES]), pictures / "segmentations.png")
    _save(dice_figure(scores, [LABEL_NAMES[label] for label in _LABELS]), pictures / "dice.png")
    report = out / "report.html"
    with whole_file(report) as temporary:
        temporary.write_text(_page(outcome, size, device, seconds, pictures), encoding="utf-8")
    return report


def _save(figure: Figure, path: Path) -> None:
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _copy_preview(out: Path, path: Path) -> None:
    preview = newest_preview(out)
    with whole_file(path) as temporary:
        shutil.copyfile(preview, temporary)


def _some_scans(out: Path) -> dict[str, NDArray[np.float32]]:
    """The first unlabelled scans, and the real ones, by subject."""
    paths = sorted((out / SCANS).rglob("*.nii.gz"))
    if not paths:
        raise UserError(f"{out / SCANS} holds no scans; delete {out / 'stages'} and run the demo again")
    # Semi-synthetic subjects have numbers; the others are real scans, which deserve to be seen.
    real = [path for path in paths if not path.name[4:6].isdigit()]
    shown = [path for path in paths if path not in real][: _SHOWN_BRAINS - len(real)] + real
    return {path.name.split("_")[0]: read_image(path) for path in shown}


def _page(outcome: Outcome, size: DemoSize, device: str, seconds: Mapping[str, float], pictures: Path) -> str:
    figure = {path.stem: path for path in pictures.glob("*.png")}
    sections = [
        page.section("What this run shows", page.paragraphs(summary(outcome, size))),
        page.section(
            "The unlabelled scans",
            page.paragraphs([_about_scans(size)])
            + page.picture(figure["brains"], "Axial slices of scans used for pre-training."),
        ),
        page.section(
            "What pre-training learnt to fill in",
            page.paragraphs([_about_reconstruction(outcome.reconstruction)])
            + page.picture(figure["reconstructions"], "Original, what the network saw, its answer, its error."),
        ),
        page.section("Training", page.picture(figure["training"], _ABOUT_CURVES)),
        page.section(
            "Held-out brains",
            page.picture(figure["segmentations"], "The slice with most lesion of each held-out brain."),
        ),
        page.section("Dice", _dice_tables(outcome) + page.picture(figure["dice"], "A dot is a held-out brain.")),
        page.section("How it was made", _about_run(outcome, size, device, seconds)),
    ]
    return page.document("nnssl_mae demonstration", sections)


_ABOUT_CURVES = (
    "Loss of pre-training; loss and pseudo-Dice of both fine-tunings. Their validation "
    "patches come from one labelled brain that is neither trained on nor among the held-out ones below."
)


def summary(outcome: Outcome, size: DemoSize) -> list[str]:
    """The findings in sentences, whichever model is ahead."""
    means = {method: overall_mean(values) for method, values in outcome.scores.items()}
    ahead = _cases_ahead(outcome.scores)
    lines = [
        f"n = {outcome.training} training cases and {len(outcome.cases)} test cases. "
        f"R² of the reconstruction of hidden voxels: {_number(outcome.reconstruction.get('r2'))}.",
        f"Mean Dice of the held-out cases: {PRETRAINED.title} {_number(means[PRETRAINED.title])}, "
        f"{SCRATCH.title} {_number(means[SCRATCH.title])}, {VOTE} (no image) {_number(means[VOTE])}. "
        f"The difference, {PRETRAINED.title} minus {SCRATCH.title}, is "
        f"{means[PRETRAINED.title] - means[SCRATCH.title]:+.3f}; "
        f"{PRETRAINED.title} is ahead in {ahead} of {len(outcome.cases)} cases.",
        "All volumes are semi-synthetic and made from one anatomy: every subject has the same folding pattern, "
        "bent and repainted, and so have the held-out ones.",
    ]
    if size.name == "small":
        lines.append(
            "This run is too small to judge the benefit of pre-training: minutes of training, a small network and "
            "a handful of cases, one run of each arm. It shows that every step works."
        )
    else:
        lines.append("One run of each arm: differences between two such runs by chance alone were not measured.")
    return lines


def _cases_ahead(scores: Mapping[str, NDArray[np.float64]]) -> int:
    """In how many cases the mean over labels is higher with pre-training."""
    pretrained, scratch = (scores[arm.title] for arm in (PRETRAINED, SCRATCH))
    return sum(_case_mean(a) > _case_mean(b) for a, b in zip(pretrained, scratch, strict=True))


def _case_mean(values: NDArray[np.float64]) -> float:
    counted = values[np.isfinite(values)]
    return float(counted.mean()) if counted.size else math.nan


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) and math.isfinite(value) else "not available"


def _about_scans(size: DemoSize) -> str:
    return (
        f"{size.unlabelled} brains at {size.resolution} mm: the ICBM 2009a template (average of 152 people), bent "
        "and repainted at random (contrast, uneven field, noise, thick slices, lesions), after SynthSeg's idea. "
        "A scan whose name is not a number is a real person's, from an installed package."
    )


def _about_reconstruction(found: Mapping[str, Any]) -> str:
    return (
        f"On {found.get('cases', 'the')} scans kept out of pre-training, hidden voxels only: "
        f"R² {_number(found.get('r2'))} (1 is perfect, 0 is as good as a constant), "
        f"PSNR {_number(found.get('psnr'))} dB, SSIM {_number(found.get('ssim'))}."
    )


def _dice_tables(outcome: Outcome) -> str:
    names = [LABEL_NAMES[label] for label in _LABELS]
    means = [
        [method, *map(_cell, label_means(values)), _cell(overall_mean(values))]
        for method, values in outcome.scores.items()
    ]
    rows = [
        [case, method, *map(_cell, values[index]), _cell(_case_mean(values[index]))]
        for index, case in enumerate(outcome.cases)
        for method, values in outcome.scores.items()
    ]
    about = [f"{method}: {meaning}." for method, meaning in _METHODS.items()]
    return (
        page.bullets(about)
        + page.table(["mean over cases", *names, "mean of labels"], means)
        + page.table(["case", "method", *names, "mean"], rows)
        + page.paragraphs(
            [
                "A dash: the label is neither in the truth nor in the prediction, so it is not counted. "
                "A label that is predicted but not there scores 0."
            ]
        )
    )


def _cell(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def _about_run(outcome: Outcome, size: DemoSize, device: str, seconds: Mapping[str, float]) -> str:
    facts = [
        f"nnssl_mae {__version__}, device {device}, recipe {size.recipe}.",
        *(f"Fine-tuning, {title}: {schedule}." for title, schedule in outcome.schedules.items()),
        "Seeds, schedules and sizes were fixed before the first run. Each arm keeps the schedule meant for it "
        "(warm-up for transferred weights, nnU-Net's own from scratch), so the arms differ in start and schedule.",
        "Every step ran a public command; what each printed lies in the folder logs.",
    ]
    rows: Sequence[Sequence[str]] = [[title, f"{value:.0f} s"] for title, value in seconds.items()]
    return page.bullets(facts) + page.table(["stage", "time of its last run"], rows)
