"""The pictures of docs/concepts.md, made by the functions that training uses, on the ICBM template that nilearn ships.

python scripts/docs_pictures.py docs/images

Networks in them have random weights: the pictures are about what a network can see, not about what one has learnt.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch.nn import functional

from nnssl_mae.backbones import planned_architecture
from nnssl_mae.brains.anatomy import load_anatomy
from nnssl_mae.checkpoints.describe import Checkpoint, Origin
from nnssl_mae.checkpoints.transfer import Report, transfer
from nnssl_mae.masking import block_edges, eligible_blocks, hidden_voxels, hide, sample_hidden
from nnssl_mae.networks.planned import planned_network
from nnssl_mae.networks.pretraining import PretrainingNetwork, pretraining_network
from nnssl_mae.recipes.finetuning import load_any_recipe
from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.recipes.reading import load_recipe, override
from nnssl_mae.scans.foreground import foreground_mask
from nnssl_mae.training.schedule_plot import draw_schedule, timeline

_SEED = 1
_HIDDEN = "#1c7c7d"
_FATES = {"loaded": "#1c7c7d", "adapted": "#e9a23b", "random": "#d5d5d5"}
_SMALL = {"network.base_features": 8, "network.max_features": 64, "network.blocks_per_stage": [1] * 6}


def main(folder: Path) -> None:
    """Writes all pictures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in (("hidden", hidden_blocks), ("leak", leak), ("encoders", encoders), ("transfer", transfers)):
        draw().savefig(folder / f"{name}.png", dpi=110, facecolor="white")
    for recipe in ("warmup", "sawtooth"):
        draw_schedule(timeline(load_any_recipe(recipe)), folder / f"schedule_{recipe}.png")


def brain(millimetres: int, edges: tuple[int, int, int]) -> torch.Tensor:
    """The centre of the template's T1, z-scored, (1, 1, D, H, W) with ``edges`` voxels; axes z, y, x."""
    volume = load_anatomy(millimetres).t1.transpose(2, 1, 0)
    padded = np.pad(volume, [(max(0, edge - size), 0) for edge, size in zip(edges, volume.shape, strict=True)])
    middle = tuple(
        slice((size - edge) // 2, (size - edge) // 2 + edge) for edge, size in zip(edges, padded.shape, strict=True)
    )
    patch = torch.from_numpy(np.ascontiguousarray(padded[middle]))
    return ((patch - patch.mean()) / patch.std())[None, None]


def hidden_blocks() -> Figure:
    """What a network of four recipes is shown of the same patch."""
    patch = brain(1, (160, 160, 160))
    grid_16, grid_32 = ([160 // edge for edge in block_edges((160,) * 3, size)] for size in (16, 32))
    body = torch.from_numpy(foreground_mask(patch[0, 0].numpy())).float()[None, None]
    share = functional.avg_pool3d(body, 16)[0, 0].numpy()
    ways = {
        "16 voxels, 75 % hidden\n(mae)": (grid_16, 0.75, None),
        "32 voxels, 60 %\n(mae_paper draws 60 to 90 %)": (grid_32, 0.6, None),
        "32 voxels, 90 %": (grid_32, 0.9, None),
        "16 voxels, 75 % of the head\n(masking.region=foreground)": (grid_16, 0.75, eligible_blocks(share)),
    }
    figure, axes = _row(5, "A patch of 160x160x160 voxels, its middle slice; hidden blocks in colour")
    _show(axes[0], _slice(patch), "the patch")
    for axis, (title, (grid, ratio, eligible)) in zip(axes[1:], ways.items(), strict=True):
        hidden = sample_hidden(grid, ratio, np.random.default_rng(_SEED), eligible)[None]
        _show(axis, _slice(hide(patch, hidden)), title, limits=(float(patch.min()), float(patch.max())))
        _colour(axis, _slice(hidden_voxels(hidden, patch.shape[2:])))
    return figure


def leak() -> Figure:
    """Replaces what is hidden, and looks whether the reconstruction notices; then the same with a broken network."""
    patch = brain(2, (80, 96, 80))
    recipe = _small_recipe((80, 96, 80), {})
    hidden = sample_hidden([5, 6, 5], 0.75, np.random.default_rng(_SEED))[None]
    where = hidden_voxels(hidden, patch.shape[2:])
    noise = torch.randn(patch.shape, generator=torch.Generator().manual_seed(_SEED))
    other = torch.where(where, noise, patch)
    network = _network(recipe)
    with torch.no_grad():
        kept = (network(patch, hidden) - network(other, hidden)).abs()
        bare = [network.decode(network.encode(volume, hidden)) for volume in (patch, other)]  # hide() left out
    leaked = (bare[0] - bare[1]).abs()
    figure, axes = _row(4, "Does a hidden voxel reach the network?")
    _show(axes[0], _slice(patch), "a patch\n(hidden blocks in colour)")
    _colour(axes[0], _slice(where))
    _show(axes[1], _slice(other), "the same, with noise\nin the hidden blocks")
    top = float(leaked.max())
    shown = (0.0, 0.5 * top)  # so that small differences are seen
    largest = f"{float(kept.max()):.2g}"
    _show(axes[2], _slice(kept), f"difference of the two\nreconstructions: largest {largest}", shown, "magma")
    _show(axes[3], _slice(leaked), f"with hiding left out, a leak:\nlargest {top:.2g}", shown, "magma")
    return figure


def encoders() -> Figure:
    """Features of the same input in a dense, a masked and a packed encoder of the same weights."""
    patch, level = brain(2, (80, 96, 80)), 2
    hidden = sample_hidden([5, 6, 5], 0.75, np.random.default_rng(_SEED))[None]
    forms: dict[str, Any] = {"dense": False, "masked": True, "packed": "packed"}
    features: dict[str, torch.Tensor] = {}
    for name, sparse in forms.items():
        network = _network(_small_recipe((80, 96, 80), {"network.sparse": sparse}))
        with torch.no_grad():
            features[name] = network.encode(network.hide(patch, hidden), hidden)[level].abs().mean(1, keepdim=True)
    difference = float((features["masked"] - features["packed"]).abs().max())
    top = 0.7 * float(features["dense"].max())
    titles = {
        "dense": "dense (mae): visible blocks\nspread into hidden ones",
        "masked": "masked (network.sparse=true):\nhidden places stay zero",
        "packed": f"packed: only visible blocks are\ncomputed; differs by {difference:.0e} (rounding)",
    }
    figure, axes = _row(4, "Features after the third stage (a quarter of the resolution), mean size over channels")
    _show(axes[0], _slice(hide(patch, hidden)), "what the network is shown\n(hidden blocks in colour)")
    _colour(axes[0], _slice(hidden_voxels(hidden, patch.shape[2:])))
    for axis, (name, title) in zip(axes[1:], titles.items(), strict=True):
        _show(axis, _slice(features[name]), title, (0, top), "magma")
    return figure


def transfers() -> Figure:
    """What each part of a new network gets of a checkpoint, in five situations."""
    plans = _plan((160, 160, 160), (1.0, 1.0, 1.0))
    thick = _plan((48, 192, 192), (5.0, 1.0, 1.0))
    source = _checkpoint(plans)
    cases = {
        "same voxels,\n1 channel": transfer(source, plans, 1, "encoder"),
        "4 channels": transfer(source, plans, 4, "encoder"),
        "thick slices,\nas nnU-Net plans": transfer(source, thick, 1, "encoder"),
        "smaller patch\n(a stage less)": transfer(source, _plan((96, 96, 96), (1.0, 1.0, 1.0)), 1, "encoder"),
        "encoder+decoder": transfer(source, plans, 1, "encoder+decoder"),
    }
    return _matrix({name: _shares(report) for name, (_, report) in cases.items()})


def _shares(report: Report) -> dict[str, dict[str, float]]:
    """Of each part the share of its weights that is loaded, adapted and random, finest resolution first."""
    return {
        group.name: {what: count / max(1, sum(group.weights.values())) for what, count in group.weights.items()}
        for group in report.groups()
        if not group.name.startswith("decoder.transpconvs")
    }


def _matrix(cases: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """A row for each part of the network, a column for each situation, and in a cell a bar of shares."""
    names = list(dict.fromkeys(name for case in cases.values() for name in case))
    parts = sorted(names, key=lambda name: ("encoder" not in name, "seg" in name, "stem" not in name, name))
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.add_subplot()
    for column, case in enumerate(cases.values()):
        for row, part in enumerate(parts):
            _bar(axes, column, row, case.get(part))
    axes.set(xlim=(0, len(cases)), ylim=(len(parts), 0))
    axes.set_xticks(np.arange(len(cases)) + 0.5, list(cases), fontsize=10)
    axes.set_yticks(np.arange(len(parts)) + 0.5, list(map(_in_words, parts)), fontsize=10)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    words = ("loaded as it is", "adapted in shape", "random")
    legend = [Patch(color=colour, label=word) for colour, word in zip(_FATES.values(), words, strict=True)]
    figure.legend(handles=legend, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _bar(axes: Axes, column: int, row: int, shares: Mapping[str, float] | None) -> None:
    if shares is None:
        axes.text(column + 0.5, row + 0.5, "not there", ha="center", va="center", fontsize=9, color="#888888")
        return
    left = column + 0.04
    for what, colour in _FATES.items():
        axes.barh(row + 0.5, shares[what] * 0.92, height=0.8, left=left, color=colour)
        left += shares[what] * 0.92


def _in_words(part: str) -> str:
    kind, _, rest = part.partition(".")
    return {"seg_layers": "heads"}.get(rest, f"{kind}, {rest.replace('stages.', 'stage ')}")


def _plan(patch: tuple[int, int, int], spacing: tuple[float, float, float]) -> dict[str, Any]:
    return planned_architecture(_small_recipe(patch, {}).network, spacing, {"arch_kwargs": {}})


def _checkpoint(architecture: dict[str, Any]) -> Checkpoint:
    """As after a pre-training, but with random weights."""
    weights = planned_network(architecture, 1, 1).state_dict()
    return Checkpoint(weights, architecture, 1, {}, {}, Origin(format="nnssl_mae", label="picture", sha256=""))


def _small_recipe(patch: tuple[int, int, int], changes: dict[str, Any]) -> Recipe:
    """The recipe ``mae`` with few channels."""
    return override(load_recipe("mae"), {"network.patch_size": list(patch), **_SMALL, **changes})


def _network(recipe: Recipe) -> PretrainingNetwork:
    torch.manual_seed(_SEED)
    architecture = planned_architecture(recipe.network, (2.0, 2.0, 2.0), {"arch_kwargs": {}})
    return pretraining_network(architecture, 1, recipe.network, recipe.masking.hidden_value).eval()


def _row(count: int, title: str) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(3.1 * count, 4), layout="constrained")
    figure.suptitle(title, fontsize=13)
    return figure, list(figure.subplots(1, count))


def _slice(volume: torch.Tensor) -> NDArray[Any]:
    """The middle axial slice of (1, 1, D, H, W), front up."""
    return volume[0, 0, volume.shape[2] // 2].flip(0).numpy()


def _show(
    axis: Axes, image: NDArray[Any], title: str, limits: tuple[float, float] | None = None, colours: str = "gray"
) -> None:
    low, high = limits or (float(image.min()), float(image.max()))
    axis.imshow(image, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    axis.set_title(title, fontsize=11)
    axis.set_axis_off()


def _colour(axis: Axes, where: NDArray[Any]) -> None:
    axis.imshow(np.ma.masked_equal(where.astype(float), 0), cmap=ListedColormap([_HIDDEN]), alpha=0.8)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs/images"))
