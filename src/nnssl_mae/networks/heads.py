"""The segmentation heads of nnU-Net's decoder when deep supervision is off."""

from __future__ import annotations

from torch import nn


def freeze_unused_heads(network: nn.Module) -> nn.Module:
    """Stops the gradients of all heads but the last, which is the only one used without deep supervision.

    Distributed training fails on weights that get no gradient. The heads are kept, not replaced: nnU-Net loads
    weights strictly when it predicts.
    """
    heads = network.get_submodule("decoder.seg_layers")
    for head in list(heads.children())[:-1]:
        head.requires_grad_(False)
    return network
