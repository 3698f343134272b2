"""Which part of the network learns when, and how fast: one rate an epoch (arXiv 2410.23132, 2412.17041).

A linear rise takes equal steps to the peak, which its last epoch uses; its first epoch trains too, so it does not start
at zero. A decay starts from the peak and ends near zero: nnU-Net's polynomial with exponent 0.9, or half a cosine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from nnssl_mae.errors import UserError
from nnssl_mae.recipes.finetuning import FinetuneRecipe
from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.training.state import bare_network

Part = Literal["all", "decoder"]
Shape = Literal["rise", "polynomial", "cosine"]
_EXPONENT = 0.9
_LAYER = re.compile(r"encoder\.(stem|stages\.\d+)\.")
_STAGE = re.compile(r"encoder\.stages\.(\d+)\.")
_BESIDE_THE_STEM = ("encoder.position", "encoder.register_")  # of Primus, added to what the stem makes
_AFTER_THE_STAGES = "encoder.norm."
_OUR_GROUP_KEYS = ("name", "factor")


@dataclass(frozen=True)
class Phase:
    """Consecutive epochs in which the same part of the network learns and the rate has one shape."""

    name: str
    first_epoch: int
    """Counted from 0."""
    epochs: int
    trains: Part
    shape: Shape

    @property
    def last_epoch(self) -> int:
        """The last epoch that belongs to the phase."""
        return self.first_epoch + self.epochs - 1

    def rate(self, epoch: int, peak: float) -> float:
        """The learning rate during an epoch of the phase."""
        since = epoch - self.first_epoch
        if self.shape == "rise":
            return peak * (since + 1) / self.epochs
        done = since / self.epochs
        if self.shape == "cosine":
            return peak * (1 + math.cos(math.pi * done)) / 2
        return float(peak * (1 - done) ** _EXPONENT)


def phases(recipe: FinetuneRecipe) -> tuple[Phase, ...]:
    """The phases of a fine-tuning, in order, without gaps; the last is the decay in which most of it happens."""
    before: list[tuple[str, int, Part, Shape]] = [
        ("decoder warm-up", recipe.decoder_rise_epochs, "decoder", "rise"),
        ("decoder decay", recipe.decoder_fall_epochs, "decoder", recipe.decay),
        ("warm-up", recipe.warmup_epochs, "all", "rise"),
    ]
    rest = recipe.epochs - sum(length for _, length, _, _ in before)
    return _in_order([*before, ("decay", rest, "decoder" if recipe.schedule == "frozen" else "all", recipe.decay)])


def pretraining_phases(recipe: Recipe) -> tuple[Phase, ...]:
    """The phases of a pre-training: a warm-up where the recipe has one, then the decay."""
    warmup, epochs = recipe.schedule.warmup_epochs, recipe.schedule.epochs
    return _in_order(
        [("warm-up", warmup, "all", "rise"), ("decay", epochs - warmup, "all", recipe.schedule.decay)],
    )


def _in_order(parts: Iterable[tuple[str, int, Part, Shape]]) -> tuple[Phase, ...]:
    made: list[Phase] = []
    first = 0
    for name, epochs, trains, shape in parts:
        if epochs > 0:
            made.append(Phase(name, first, epochs, trains, shape))
            first += epochs
    return tuple(made)


def phase_at(order: tuple[Phase, ...], epoch: int) -> Phase:
    """The phase to which an epoch belongs.

    Raises:
        ValueError: the run has no such epoch.
    """
    for phase in order:
        if phase.first_epoch <= epoch <= phase.last_epoch:
            return phase
    raise ValueError(f"epoch {epoch} lies outside of {order[-1].last_epoch + 1} epochs")


def learning_rate(recipe: FinetuneRecipe, epoch: int) -> float:
    """The rate of the decoder during ``epoch`` (from 0); the encoder's is this or lower, see :func:`group_rates`."""
    return phase_at(phases(recipe), epoch).rate(epoch, recipe.peak_learning_rate)


def pretraining_learning_rate(recipe: Recipe, epoch: int) -> float:
    """The rate of all weights during ``epoch`` (from 0)."""
    return phase_at(pretraining_phases(recipe), epoch).rate(epoch, pretraining_peak(recipe))


def pretraining_peak(recipe: Recipe) -> float:
    """The highest rate, for the batch of the recipe."""
    share = recipe.network.batch_size / recipe.optimiser.rule_batch
    factor = {"none": 1.0, "linear": share, "sqrt": share**0.5}[recipe.optimiser.batch_rule]
    return recipe.optimiser.learning_rate * factor


# ---------------------------------------------------------------------- parameter groups


def is_encoder(name: str) -> bool:
    """Whether a parameter belongs to the encoder.

    The network's ``decoder`` cannot be asked: nnU-Net's decoder holds the encoder as a child of its own.
    """
    return name.startswith("encoder.")


def group_factors(layer_decay: float, stages: int, stem: bool = True) -> dict[str, float]:
    """Names of the parameter groups and their rates relative to the decoder's, from the decoder to the input.

    Args:
        layer_decay: 1 makes two groups, decoder and encoder, of the same rate.
        stages: resolution stages of the encoder.
        stem: whether a stem lies before them (nnU-Net's residual encoder has one, its plain encoder none).
    """
    if layer_decay == 1:
        return {"decoder": 1.0, "encoder": 1.0}
    layers = [f"encoder.stages.{stage}" for stage in reversed(range(stages))] + (["encoder.stem"] if stem else [])
    return {"decoder": 1.0} | {name: layer_decay**depth for depth, name in enumerate(layers, start=1)}


def group_rates(recipe: FinetuneRecipe, epoch: int, factors: Mapping[str, float]) -> dict[str, float]:
    """The rate of each group during ``epoch``; 0 for an encoder that stands still."""
    phase = phase_at(phases(recipe), epoch)
    rate = phase.rate(epoch, recipe.peak_learning_rate)
    return {
        name: 0.0 if phase.trains == "decoder" and name != "decoder" else rate * factor
        for name, factor in factors.items()
    }


def parameter_groups(network: nn.Module, recipe: FinetuneRecipe) -> list[dict[str, Any]]:
    """Groups for a torch optimiser, the same through all phases: ``name``, ``factor``, ``lr`` and ``params``.

    The decoder comes first, because nnU-Net logs the rate of the first group. Every tensor is in exactly one group,
    though nnU-Net's networks register many of them several times.

    Raises:
        UserError: layer decay is wanted and the encoder is not made of a stem and stages.
    """
    named = dict(bare_network(network).named_parameters())  # one name a tensor
    stages = 1 + max((int(match[1]) for match in map(_STAGE.match, named) if match), default=-1)
    layers = {name: _group_of(name, recipe.layer_decay, stages) for name in named}
    factors = group_factors(recipe.layer_decay, stages, "encoder.stem" in layers.values())
    return [
        {
            "name": group,
            "factor": factor,
            "lr": recipe.peak_learning_rate * factor,
            "params": [tensor for name, tensor in named.items() if layers[name] == group],
        }
        for group, factor in factors.items()
    ]


def _group_of(name: str, layer_decay: float, stages: int) -> str:
    if not is_encoder(name):
        return "decoder"
    if layer_decay == 1:
        return "encoder"
    if name.startswith(_BESIDE_THE_STEM):
        return "encoder.stem"
    if name.startswith(_AFTER_THE_STAGES):
        return f"encoder.stages.{stages - 1}"
    match = _LAYER.match(name)
    if match is None:
        raise UserError(f"layer_decay needs an encoder of a stem and stages; this one has {name}: set it to 1")
    return f"encoder.{match[1]}"


class FinetuneSchedule:
    """Sets the rate of every parameter group; nnU-Net calls ``step`` at the start of each epoch."""

    def __init__(self, optimizer: Optimizer, recipe: FinetuneRecipe) -> None:
        self.optimizer, self.recipe = optimizer, recipe

    def step(self, current_epoch: int) -> None:
        """Sets the rates of ``current_epoch``."""
        groups = {group["name"]: group for group in self.optimizer.param_groups}
        factors = {name: group["factor"] for name, group in groups.items()}
        for name, rate in group_rates(self.recipe, current_epoch, factors).items():
            groups[name]["lr"] = rate

    def get_last_lr(self) -> list[float]:
        """The current rates."""
        return [group["lr"] for group in self.optimizer.param_groups]


def keep_stock_layout(optimizer: Optimizer, network: nn.Module) -> None:
    """Makes the optimiser write and read its state as nnU-Net's own does: one group, parameters in network order.

    So stock nnU-Net reads the checkpoints, and checkpoints with one group continue here. The rates of the groups are
    not lost: they follow from the recipe and the epoch.
    """
    position = {id(tensor): index for index, tensor in enumerate(bare_network(network).parameters())}
    stock_index = [position[id(tensor)] for group in optimizer.param_groups for tensor in group["params"]]
    own_index = {stock: own for own, stock in enumerate(stock_index)}

    def one_group(_: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        first = {key: value for key, value in state["param_groups"][0].items() if key not in _OUR_GROUP_KEYS}
        tensors = {stock_index[own]: content for own, content in state["state"].items()}
        group = {**first, "params": list(range(len(stock_index)))}
        return {**state, "state": dict(sorted(tensors.items())), "param_groups": [group]}

    def our_groups(_: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        (saved,) = state["param_groups"]
        groups, start = [], 0
        for group in optimizer.param_groups:
            end = start + len(group["params"])
            groups.append({**saved, **{key: group[key] for key in _OUR_GROUP_KEYS}, "params": list(range(start, end))})
            start = end
        tensors = {own_index[stock]: content for stock, content in state["state"].items()}
        return {**state, "state": tensors, "param_groups": groups}

    optimizer.register_state_dict_post_hook(one_group)
    optimizer.register_load_state_dict_pre_hook(our_groups)
