"""What a pre-training step asks of a GPU, counted on the meta device: sizes of tensors without their values.

Operators are seen as they are dispatched, so whatever a recipe does is in the numbers, dropped tokens too. Number
formats are those of automatic mixed precision on a GPU, attention is a fused kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from nnssl_mae.bench.step_setting import StepSetting
from nnssl_mae.errors import UserError
from nnssl_mae.networks.pretraining import pretraining_network, visible_blocks
from nnssl_mae.objectives import reconstruction_loss
from nnssl_mae.training.optimisers import make_optimizer

META = torch.device("meta")
# What torch lists for CUDA (torch.amp, "CUDA Op-Specific Behavior"), as far as the networks here use it. All else works
# in the format that it gets.
_IN_16_BIT = ("conv3d", "conv_transpose3d", "linear", "matmul", "bmm", "scaled_dot_product_attention")
_IN_32_BIT = ("layer_norm", "group_norm", "softmax", "pow", "sum", "exp", "log", "rsqrt")


@dataclass(frozen=True)
class Parameters:
    """Numbers of weights."""

    encoder: int
    decoder: int
    """Of pre-training; a light decoder is not that of fine-tuning."""
    whole: int
    """With what only pre-training needs, such as mask tokens and the token decoder."""


@dataclass(frozen=True)
class Counts:
    """Of a forward and a backward pass."""

    forward_flops: int
    """Of convolutions and matrix products; a multiplication and an addition are two."""
    step_flops: int
    """Of forward and backward pass together."""
    kept_bytes: int
    """Of everything but weights and their 16-bit copies that the forward pass keeps for the backward pass, each storage
    once. A GPU needs more at its peak: gradients of activations, and what convolutions work in."""


@dataclass(frozen=True)
class StepDemand:
    """Of one network, one patch, one batch."""

    parameters: Parameters
    counts: Counts
    state_bytes: int
    """Of weights, gradients and what the optimiser remembers of them, 32 bit, whatever the batch."""


def step_demand(setting: StepSetting) -> StepDemand:
    """Takes one step without numbers.

    Args:
        setting: its device must be :data:`META`.

    Raises:
        UserError: the recipe recomputes activations.
    """
    recipe = setting.recipe
    if recipe.network.checkpoint_activations:
        # They are recomputed inside of the backward pass, where torch switches MixedPrecision off.
        raise UserError(
            f"The recipe '{recipe.name}' recomputes activations, which cannot be counted; set "
            "network.checkpoint_activations to false for the numbers without that"
        )
    with META:
        network = pretraining_network(setting.architecture, 1, recipe.network, recipe.masking.hidden_value).train()
    volumes = torch.empty(setting.batch, 1, *setting.patch, device=META)
    drawn = setting.hidden(np.random.default_rng(recipe.seed))
    hidden, visible = drawn.to(META), visible_blocks(recipe.network, drawn)

    def loss() -> torch.Tensor:
        return reconstruction_loss(network(volumes, hidden, visible), volumes, hidden, recipe.loss)

    counts = count(loss, network.parameters())
    optimizer = make_optimizer(network.parameters(), recipe.optimiser, fused=False)
    optimizer.step()
    return StepDemand(parameters_of(network), counts, _state_size(network, optimizer))


def count(loss: Callable[[], torch.Tensor], parameters: Iterable[torch.Tensor]) -> Counts:
    """Counts a forward and a backward pass on the meta device; leaves gradients in the parameters.

    Args:
        loss: the forward pass; gives a scalar.
        parameters: of the network.
    """
    kept = _Storages()
    with FlopCounterMode(display=False) as counter:
        with MixedPrecision(parameters) as precision, saved_tensors_hooks(kept.note, lambda tensor: tensor):
            result = loss()
        forward_flops = counter.get_total_flops()
        result.backward()
    return Counts(forward_flops, counter.get_total_flops(), kept.size(without=precision.weights))


def parameters_of(network: nn.Module) -> Parameters:
    """Counts those of ``encoder``, of ``decoder`` without what it shares with the encoder, and all of them."""
    encoder = _weights(network.get_submodule("encoder").parameters())
    both = [network.get_submodule("encoder"), network.get_submodule("decoder")]
    decoder = _weights(nn.ModuleList(both).parameters()) - encoder
    return Parameters(encoder, decoder, _weights(network.parameters()))


def _weights(parameters: Iterable[torch.Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


class MixedPrecision(TorchFunctionMode):
    """What autocast to 16 bit does on a GPU; autocast itself does not know the meta device.

    Attention becomes the kernel that keeps no matrix of all pairs of tokens: without it, what the meta device falls
    back to would keep gigabytes that no GPU keeps.
    """

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.weights = _Storages()
        """Storages of ``parameters`` and of their 16-bit copies."""
        for parameter in parameters:
            self.weights.note(parameter)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Calls a function of torch with arguments in its number format."""
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in _IN_16_BIT or name in _IN_32_BIT:
            dtype = torch.float16 if name in _IN_16_BIT else torch.float32
            args = tuple(self._cast(value, dtype) for value in args)
            kwargs = {key: self._cast(value, dtype) for key, value in kwargs.items()}
        if name == "scaled_dot_product_attention":
            return _fused_attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        cast = value.to(dtype)
        if isinstance(value, nn.Parameter):
            self.weights.note(cast)
        return cast


def _fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """As torch's ``scaled_dot_product_attention``, whose names the arguments have."""
    bias = None
    if attn_mask is not None:
        bias = attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    result: torch.Tensor = attend(query, key, value, bias, True, dropout_p, is_causal, scale=scale)[0]
    return result


class _Storages:
    """Storages of tensors, each once."""

    def __init__(self) -> None:
        # Meta tensors have no address, and the identity of a storage is only its own while something holds it.
        self._storages: dict[int, torch.UntypedStorage] = {}

    def note(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = storage
        return tensor

    def size(self, without: _Storages) -> int:
        """Bytes of all storages but those that ``without`` has too."""
        return sum(
            storage.nbytes() for identity, storage in self._storages.items() if identity not in without._storages
        )


def _state_size(network: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    remembered = [value for state in optimizer.state.values() for value in state.values()]
    gradients = [parameter.grad for parameter in network.parameters()]
    tensors = [*network.parameters(), *gradients, *remembered]
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))
