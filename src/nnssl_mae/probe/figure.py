"""The picture of a probe: reconstruction, use of features, and the linear probe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nnssl_mae.files import whole_file
from nnssl_mae.probe.baselines import BASELINES
from nnssl_mae.probe.reconstruction import NETWORK
from nnssl_mae.probe.result import Probed

# Okabe and Ito 2008: told apart with every kind of colour vision.
_TRAINED = ("#0072B2", "#56B4E9", "#009E73", "#CC79A7")
_UNTRAINED, _RAW = "#999999", "#E69F00"
_OF_BASELINES = dict(zip(BASELINES, ((":", "#000000"), ("--", "#D55E00"), ("-.", "#E69F00")), strict=True))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LOWEST_R2 = -0.5
_LONGEST = 24


def draw_probe(found: Sequence[Probed], path: Path) -> None:
    """Writes a PNG with one panel for each part that was done."""
    panels = [_draw_features]
    if any(each.reconstructions is not None for each in found):
        panels.insert(0, _draw_reconstruction)
    if any(each.linear is not None for each in found):
        panels.append(_draw_linear)
    figure = Figure(figsize=(5.2 * len(panels), 4.8 + 0.2 * len(found)), layout="constrained", facecolor="white")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, draw in zip(axes, panels, strict=True):
        draw(axis, found)
        axis.spines[["top", "right"]].set_visible(False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})


def _style(number: int) -> dict[str, Any]:
    return {"color": _TRAINED[number % len(_TRAINED)], "marker": _MARKERS[number % len(_MARKERS)]}


def _name(found: Probed) -> str:
    label = found.label if len(found.label) <= _LONGEST else "…" + found.label[-_LONGEST:]
    label = label.replace("$", r"\$")  # no formula
    return label if found.epochs is None else f"{label}, epoch {found.epochs}"


def _explain(axis: Any) -> None:
    """The legend below the panel, where it hides nothing."""
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)


def _draw_reconstruction(axis: Any, found: Sequence[Probed]) -> None:
    some = next(each.reconstructions for each in found if each.reconstructions is not None)
    ratios = [at.ratio for at in some.at]
    for name, (line, colour) in _OF_BASELINES.items():
        values = [at.mean_r2(name) for at in some.at]
        axis.plot(ratios, np.maximum(values, _LOWEST_R2), line, color=colour, label=name)
    for number, each in enumerate(found):
        if each.reconstructions is not None:
            values = [at.mean_r2(NETWORK) for at in each.reconstructions.at]
            axis.plot([at.ratio for at in each.reconstructions.at], np.maximum(values, _LOWEST_R2), label=_name(each),
                      **_style(number))  # fmt: skip
    axis.axvline(some.trained_ratio, color="#cccccc", zorder=0)
    axis.annotate("as trained", (some.trained_ratio, 0.01), xycoords=("data", "axes fraction"), fontsize=8,
                  rotation=90, ha="right", color="#666666")  # fmt: skip
    reference = "true block means" if some.blocks_are_given else "mean of visible voxels"
    scans = len(some.at[0].r2[NETWORK])
    axis.set(xlabel="share of blocks hidden", ylabel=f"R2 of hidden voxels against {reference}")
    axis.set_title(f"Reconstruction, mean of {scans} scans\n(values under {_LOWEST_R2} are drawn there)", fontsize=10)
    _explain(axis)


def _draw_features(axis: Any, found: Sequence[Probed]) -> None:
    random = found[0].collapse.random
    for number, uses in enumerate(random):
        shares = [use.effective_rank / use.channels for use in uses]
        label = f"untrained ({len(random)} networks)" if number == 0 else None
        axis.plot(range(len(uses)), shares, color=_UNTRAINED, linewidth=1.2, label=label)
    for number, each in enumerate(found):
        shares = [use.effective_rank / use.channels for use in each.collapse.trained]
        axis.plot(range(len(shares)), shares, label=_name(each), **_style(number))
    stages = found[0].collapse.trained
    axis.set_xticks(range(len(stages)), [f"{stage}\n({use.channels})" for stage, use in enumerate(stages)])
    axis.set_ylim(0, None)
    axis.set(xlabel="stage of the encoder (channels)", ylabel="effective rank / channels")
    axis.set_title(f"Directions that features use\n{stages[-1].positions} places in the last stage", fontsize=10)
    _explain(axis)


def _draw_linear(axis: Any, found: Sequence[Probed]) -> None:
    probed = [each for each in found if each.linear is not None]
    some = probed[0].linear
    assert some is not None
    labels = [*(label.replace("$", r"\$") for label in some.trained.dice), "mean"]
    bars: list[tuple[str, str, list[float], list[float] | None]] = [
        (_name(each), _TRAINED[n % len(_TRAINED)], [*each.linear.trained.dice.values(), each.linear.trained.mean_dice],
         None)
        for n, each in enumerate(probed) if each.linear is not None
    ]  # fmt: skip
    random = np.array([[*marks.dice.values(), marks.mean_dice] for marks in some.random])
    spread = random.std(axis=0, ddof=1).tolist()
    bars.append((f"untrained ({len(random)} networks, ± sd)", _UNTRAINED, random.mean(axis=0).tolist(), spread))
    bars.append(("raw intensities", _RAW, [*some.raw.dice.values(), some.raw.mean_dice], None))
    width = 0.8 / len(bars)
    for number, (name, colour, values, error) in enumerate(bars):
        places = np.arange(len(labels)) + (number - (len(bars) - 1) / 2) * width
        axis.bar(places, values, width, color=colour, label=name, yerr=error, capsize=3)
    axis.set_xticks(range(len(labels)), labels, rotation=30 if len(labels) > 4 else 0)
    axis.set(ylabel="Dice on scans not trained on")
    axis.set_ylim(0, 1)
    axis.set_title(f"Linear probe, {some.scans} scans", fontsize=10)
    _explain(axis)
