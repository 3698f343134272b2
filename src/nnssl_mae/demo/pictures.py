"""The report's figures, one function each; every function returns a matplotlib figure and keeps no state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from nnssl_mae.brains.anatomy import CSF, GREY_MATTER, LABEL_NAMES, LESION, WHITE_MATTER
from nnssl_mae.demo.results import PRETRAINED, SCRATCH, Curves, HeldOutCase
from nnssl_mae.demo.scores import VOTE, label_means

# Distinct for colour-blind readers too (Okabe and Ito's palette).
LABEL_COLOURS = {
    0: "#000000",
    CSF: "#56B4E9",
    GREY_MATTER: "#009E73",
    WHITE_MATTER: "#F0E442",
    LESION: "#D55E00",
}
METHOD_COLOURS = {PRETRAINED.title: "#0072B2", SCRATCH.title: "#E69F00", VOTE: "#999999"}


def brains_figure(volumes: Mapping[str, NDArray[np.float32]]) -> Figure:
    """A slice through the middle of each volume (X, Y, Z)."""
    columns = min(6, len(volumes))
    rows = -(-len(volumes) // columns)
    figure = Figure(figsize=(1.7 * columns, 2.15 * rows), layout="constrained", facecolor="black")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (name, volume) in zip(axes, volumes.items(), strict=False):
        middle = volume.shape[2] * 52 // 100
        _show_image(axis, volume[:, :, middle], volume)
        axis.set_title(name, fontsize=8, color="white")
    return figure


def curves_figure(pretraining: Curves, finetuning: Mapping[str, Curves]) -> Figure:
    """Pre-training loss, and loss and pseudo-Dice of both fine-tunings."""
    figure = Figure(figsize=(11, 3.4), layout="constrained", facecolor="white")
    first, second, third = figure.subplots(1, 3)
    epochs = range(1, len(pretraining.train_loss) + 1)
    first.plot(epochs, pretraining.train_loss, color="#0072B2", label="training")
    first.plot(epochs, pretraining.val_loss, color="#D55E00", label="validation")
    first.set_title("Pre-training: loss of hidden voxels")
    for title, curves in finetuning.items():
        epochs = range(1, len(curves.train_loss) + 1)
        colour = METHOD_COLOURS[title]
        second.plot(epochs, curves.train_loss, color=colour, label=f"{title}, training")
        second.plot(epochs, curves.val_loss, color=colour, linestyle=":", label=f"{title}, validation")
        third.plot(epochs, curves.pseudo_dice, color=colour, label=title)
    second.set_title("Fine-tuning: loss")
    third.set_title("Fine-tuning: pseudo-Dice, validation case")
    third.set_ylim(0, 1)
    for axis in (first, second, third):
        axis.set_xlabel("epoch")
        axis.legend(fontsize=8, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(10)
    return figure


def segmentation_figure(cases: Sequence[HeldOutCase]) -> Figure:
    """A row for each held-out brain: image, truth, from scratch, pre-trained."""
    titles = ("image", "truth", SCRATCH.title, PRETRAINED.title)
    figure = Figure(figsize=(9.2, 2.75 * len(cases) + 0.6), layout="constrained", facecolor="white")
    axes = figure.subplots(len(cases), 4, squeeze=False)
    for row, case in zip(axes, cases, strict=True):
        z = telling_slice(case.truth)
        window = _brain_window(case.truth[:, :, z])
        _show_image(row[0], case.image[:, :, z][window], case.image)
        maps = (case.truth, case.predictions[SCRATCH.title], case.predictions[PRETRAINED.title])
        for axis, labels in zip(row[1:], maps, strict=True):
            _show_labels(axis, labels[:, :, z][window])
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(f"{case.name}, slice {z}", fontsize=9)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    patches = [Patch(color=LABEL_COLOURS[label], label=LABEL_NAMES[label]) for label in list(LABEL_NAMES)[1:]]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)
    return figure


def dice_figure(scores: Mapping[str, NDArray[np.float64]], labels: Sequence[str]) -> Figure:
    """A dot for each held-out brain, a bar for the mean; (cases, labels) of each method side by side."""
    figure = Figure(figsize=(9.2, 3.4), layout="constrained", facecolor="white")
    axis = figure.subplots()
    width = 0.8 / len(scores)
    for place, (method, values) in enumerate(scores.items()):
        x = np.arange(len(labels)) + (place - (len(scores) - 1) / 2) * width
        colour = METHOD_COLOURS[method]
        axis.bar(x, label_means(values), width * 0.9, color=colour, alpha=0.45, label=f"{method} (mean)")
        for case in values:
            axis.plot(x, case, "o", color=colour, markersize=4, markeredgecolor="black", markeredgewidth=0.4)
    axis.set_xticks(range(len(labels)), labels)
    axis.set_ylim(0, 1)
    axis.set_ylabel("Dice")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(scores), frameon=False, fontsize=9)
    return figure


def telling_slice(truth: NDArray[np.uint8]) -> int:
    """The axial slice with most lesion among those with plenty of brain; without a lesion, the largest slice."""
    brain = (truth > 0).sum((0, 1))
    lesion = (truth == LESION).sum((0, 1)) * (brain > 0.7 * brain.max())
    return int(lesion.argmax() if lesion.any() else brain.argmax())


def _brain_window(labels: NDArray[np.uint8], margin: int = 4) -> tuple[slice, slice]:
    x, y = (np.flatnonzero((labels > 0).any(1 - axis)) for axis in range(2))
    return (
        slice(max(0, x[0] - margin), x[-1] + margin + 1),
        slice(max(0, y[0] - margin), y[-1] + margin + 1),
    )


def _show_image(axis: Any, picture: NDArray[np.float32], volume: NDArray[np.float32]) -> None:
    inside = volume[volume > 0]
    low, high = (0.0, float(np.percentile(inside, 99.5))) if inside.size else (0.0, 1.0)
    # Transposed: the first array axis runs left to right, and the front of the head is at the top.
    axis.imshow(picture.T, cmap="gray", origin="lower", vmin=low, vmax=high)


def _show_labels(axis: Any, labels: NDArray[np.uint8]) -> None:
    colours = ListedColormap([LABEL_COLOURS[label] for label in sorted(LABEL_COLOURS)])
    top = len(LABEL_COLOURS) - 1
    axis.imshow(labels.T, cmap=colours, origin="lower", vmin=-0.5, vmax=top + 0.5, interpolation="nearest")
