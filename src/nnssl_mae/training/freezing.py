"""Which part of a network learns: alone, compiled or distributed."""

from __future__ import annotations

import torch
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnssl_mae.training.schedules import Part, is_encoder
from nnssl_mae.training.state import bare_network


def train_part(network: nn.Module, part: Part) -> nn.Module:
    """Makes the whole network learn, or all of it but the encoder.

    Frozen weights lose their gradient, so that neither weight decay nor momentum moves them. Heads that are never used
    stay as they are.

    Args:
        network: bare, compiled, distributed, or compiled inside distributed.
        part: what is to learn from now on.

    Returns:
        the network to use from now on: the same, or in a new distributed wrapper around the same inner module, because
        a wrapper waits for the gradients of exactly the weights that could learn when it was made. All processes must
        call this together.
    """
    encoder = [tensor for name, tensor in bare_network(network).named_parameters() if is_encoder(name)]
    learns = part == "all"
    if all(tensor.requires_grad == learns for tensor in encoder):
        return network
    for tensor in encoder:
        tensor.requires_grad_(learns)
        tensor.grad = None
    inner = network.module if isinstance(network, DistributedDataParallel) else network
    if isinstance(inner, OptimizedModule):
        # torch 2.3 goes on with code compiled for a frozen encoder (seen), which would then never learn.
        torch.compiler.reset()
    if isinstance(network, DistributedDataParallel):
        return DistributedDataParallel(inner, device_ids=network.device_ids)
    return network
