"""The picture of docs/architecture.md: which room stands where on the way from scans to segmentations.

python scripts/architecture_picture.py docs/images/architecture.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

_OURS, _STOCK, _DATA, _LINE = "#cfe5e5", "#f6e3c3", "#ffffff", "#444444"
_WIDTH, _HEIGHT = 2.3, 0.9
_COLUMN, _ROW = 4.3, 1.75

# Column, row from the top, text.
DATA = {
    "scans": (0, 0, "unlabelled scans"),
    "table": (1, 0, "catalogue"),
    "volumes": (2, 0, "preprocessed\nvolumes"),
    "batches": (3, 0, "patches,\npartly hidden"),
    "checkpoint": (4, 0, "checkpoint"),
    "judged": (5, 0, "pictures, numbers,\nfiles for others"),
    "labelled": (2, 1.3, "labelled nnU-Net\ndataset"),
    "folds": (2, 2.3, "few-label folds"),
    "plans": (3, 1.3, "plans and weights\nto start from"),
    "model": (4, 1.3, "fine-tuned model"),
    "segmentations": (5, 1.3, "segmentations"),
    "page": (4, 2.3, "table, intervals,\nfigures"),
}
# From, to, the command and the rooms that do its work, whose command it is.
STEPS = (
    ("scans", "table", "scan\ncatalogue/", _OURS),
    ("table", "volumes", "prepare\nscans/", _OURS),
    ("volumes", "batches", "nnUNetv2_train\npatches/\nmasking.py", _STOCK),
    ("batches", "checkpoint", "nnUNetv2_train\ntraining/\nnetworks/\nobjectives.py", _STOCK),
    ("checkpoint", "judged", "preview, ...\nevaluation/\nprobe/\nexport/", _OURS),
    ("checkpoint", "plans", "", _OURS),
    ("labelled", "plans", "adapt\ncheckpoints/\ndownstream/", _OURS),
    ("labelled", "folds", "splits: few_labels/", _OURS),
    ("plans", "model", "nnUNetv2_train\ntraining/", _STOCK),
    ("model", "segmentations", "nnUNetv2_predict", _STOCK),
    ("model", "page", "compare: comparison/", _OURS),
)
BELOW = {
    "rooms that all others stand on": "recipes/   backbones.py   plans.py   files.py   parallel.py   stopping.py  ...",
    "rooms that join them": "cli/   study/   demo/   bench/   doctor/   brains/   nnunet_plugin/",
}


def main(file: Path) -> None:
    """Draws it."""
    figure = Figure(figsize=(16, 5.9))
    axis = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    for column, row, text in DATA.values():
        _box(axis, column * _COLUMN, -row * _ROW, text, _DATA)
    for start, end, text, colour in STEPS:
        _arrow(axis, start, end, text, colour)
    for number, (title, rooms) in enumerate(BELOW.items()):
        axis.text(-_WIDTH / 2, _legend(number), f"{title}:", fontsize=10, va="center")
        _filled(axis, 2.4, _legend(number), rooms, _OURS, "left")
    _filled(axis, 5 * _COLUMN + _WIDTH / 2, _legend(0), "this package", _OURS, "right")
    _filled(axis, 5 * _COLUMN + _WIDTH / 2, _legend(1), "nnU-Net's command, our trainer in training", _STOCK, "right")
    axis.set_xlim(-_WIDTH / 2 - 0.1, 5 * _COLUMN + _WIDTH / 2 + 0.1)
    axis.set_ylim(_legend(1) - 0.4, 1.45)
    axis.set_axis_off()
    figure.savefig(file, dpi=110, facecolor="white")


def _legend(line: int) -> float:
    return -2.85 * _ROW - 0.55 * line


def _box(axis: Axes, x: float, y: float, text: str, colour: str) -> None:
    corner = (x - _WIDTH / 2, y - _HEIGHT / 2)
    axis.add_patch(FancyBboxPatch(corner, _WIDTH, _HEIGHT, "round,pad=0,rounding_size=0.12", fc=colour, ec=_LINE))
    axis.text(x, y, text, ha="center", va="center", fontsize=10)


def _arrow(axis: Axes, start: str, end: str, text: str, colour: str) -> None:
    (x0, y0), (x1, y1) = ((DATA[one][0] * _COLUMN, -DATA[one][1] * _ROW) for one in (start, end))
    sideways = y0 == y1
    if sideways:
        x0, x1 = x0 + _WIDTH / 2, x1 - _WIDTH / 2
    else:
        y0, y1 = y0 - _HEIGHT / 2, y1 + _HEIGHT / 2
    axis.annotate("", (x1, y1), (x0, y0), arrowprops={"arrowstyle": "-|>", "color": _LINE, "lw": 1.4})
    if text and sideways:
        _filled(axis, (x0 + x1) / 2, y0 + 0.17, text, colour, "center", "bottom")
    elif text:
        _filled(axis, (x0 + x1) / 2, (y0 + y1) / 2, text, colour, "center")


def _filled(axis: Axes, x: float, y: float, text: str, colour: str, ha: str, va: str = "center") -> None:
    box = {"facecolor": colour, "edgecolor": "none", "pad": 3}
    axis.text(x, y, text, ha=ha, va=va, fontsize=9, bbox=box)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs/images/architecture.png"))
