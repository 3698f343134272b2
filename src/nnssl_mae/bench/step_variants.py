"""The ways to take a training step that are timed against each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol

import torch

from nnssl_mae.bench.own_step import OwnStep
from nnssl_mae.bench.peer_step import ReleasedStyleS3DStep, StockStyleDenseStep
from nnssl_mae.bench.step_setting import StepSetting
from nnssl_mae.plans import same_topology
from nnssl_mae.recipes.reading import override

STOCK = "stock-style dense"
RELEASED = "released-style S3D"
Kind = Literal["stock", "released", "dense", "masked", "packed"]


class Step(Protocol):
    """One training step, forward to optimiser, of a network that it holds."""

    def __call__(self) -> object:
        """Takes the step."""

    def compile(self) -> None:
        """Lets the next step compile the network."""

    def parameters(self) -> list[torch.Tensor]:
        """Weights of the network."""


@dataclass(frozen=True)
class Variant:
    """One way to take a step."""

    name: str
    """For people; no two variants of a run share it."""
    kind: Kind
    """``stock`` and ``released`` are baselines; ``dense``, ``masked`` and ``packed`` are encoders of ours."""
    setting: StepSetting
    """Recipe, sizes and device."""
    build: Callable[[], Step]
    """Makes the network and everything else that lasts from step to step."""
    compiled: bool = False
    """Whether torch.compile gets the network."""
    baseline: str | None = None
    """Name of the variant with which this one is compared."""
    difference: str = ""
    """What keeps this comparison from being one of the same work."""


def variants_of(settings: Sequence[StepSetting], compiled: bool) -> list[Variant]:
    """All variants for the recipes, baselines first.

    Args:
        settings: one for each recipe.
        compiled: each of ours once more, compiled; and the dense baseline too, because stock nnU-Net compiles.
    """
    baselines: list[Variant] = []
    own: list[Variant] = []
    for setting in settings:
        stock = _stock(setting, baselines)
        if stock not in baselines:
            baselines.append(stock)
        if setting.recipe.network.sparse:
            name = f"{RELEASED} ({setting.recipe.name})"
            baselines.append(Variant(name, "released", setting, partial(ReleasedStyleS3DStep, setting)))
        own += _own(setting, baseline=baselines[-1] if setting.recipe.network.sparse else stock)
    eager = [*baselines, *own]
    if not compiled:
        return eager
    return [*eager, *(_compiled(variant) for variant in eager if variant.kind != "released")]


def _stock(setting: StepSetting, before: Sequence[Variant]) -> Variant:
    """The dense baseline: that of an earlier recipe if its network is the same."""
    for variant in before:
        if variant.kind == "stock" and same_topology(variant.setting.configuration, setting.configuration):
            return variant
    return Variant(f"{STOCK} ({setting.recipe.name})", "stock", setting, partial(StockStyleDenseStep, setting))


def _own(setting: StepSetting, baseline: Variant) -> list[Variant]:
    name, difference = setting.recipe.name, _difference(setting)
    if not setting.recipe.network.sparse:
        step = partial(OwnStep, setting)
        return [Variant(f"ours ({name})", "dense", setting, step, baseline=baseline.name, difference=difference)]
    found: list[Variant] = []
    kinds: tuple[tuple[Kind, bool | str], ...] = (("masked", True), ("packed", "packed"))
    for kind, sparse in kinds:
        own = replace(setting, recipe=override(setting.recipe, {"network.sparse": sparse}))
        label = f"ours, {kind} ({name})"
        found.append(Variant(label, kind, own, partial(OwnStep, own), baseline=baseline.name, difference=difference))
    return found


def _difference(setting: StepSetting) -> str:
    network = setting.recipe.network
    if not network.skips:
        return "ours has a decoder without skip connections"
    if network.sparse and not (network.densify and network.mask_tokens):
        return "ours has no mask tokens or no densification"
    return "ours recomputes activations" if network.checkpoint_activations else ""


def _compiled(variant: Variant) -> Variant:
    """The same, compiled. Released S3D code cannot be compiled whole, because it waits for numbers inside."""
    dense = variant.kind == "dense" and variant.baseline is not None
    baseline = f"{variant.baseline}, compiled" if dense else variant.baseline
    return replace(variant, name=f"{variant.name}, compiled", compiled=True, baseline=baseline)
