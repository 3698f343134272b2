"""Bare weights: the architecture is read off the names and shapes of the tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nnssl_mae.backbones import layer_arguments
from nnssl_mae.checkpoints.describe import Checkpoint, Origin, nnunet_architecture
from nnssl_mae.checkpoints.encoder_check import encoder_differences, some
from nnssl_mae.checkpoints.locate import Source
from nnssl_mae.checkpoints.names import same, under_one_name, with_aliases
from nnssl_mae.errors import UserError
from nnssl_mae.files import sha256

_WRAPPED_IN = ("network_weights", "state_dict", "model_state_dict", "model", "network", "net", "weights")
_PREFIX = re.compile(r"(?:(?:module|_orig_mod|model|network|net)\.)+")
_STEMS = ("encoder.stem.convs.0.conv.weight", "encoder.stages.0.0.convs.0.conv.weight")
_RESIDUAL = re.compile(r"encoder\.stages\.(\d+)\.blocks\.(\d+)\.conv1\.conv\.weight")
_PLAIN = re.compile(r"encoder\.stages\.(\d+)\.(\d)\.convs\.(\d+)\.conv\.weight")
_UPWARDS = re.compile(r"decoder\.transpconvs\.(\d+)\.weight")
_DECODER = re.compile(r"decoder\.stages\.(\d+)\.convs\.(\d+)\.conv\.weight")
_NORMS = {
    False: "torch.nn.modules.instancenorm.InstanceNorm3d",
    True: "torch.nn.modules.batchnorm.BatchNorm3d",
}


def bare_weights(content: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """The tensors of a state dict, or of one inside a file of another form, without the prefixes of wrappers.

    Raises:
        UserError: there are none, or two become one.
    """
    weights: Mapping[str, Any] = content
    for _ in _WRAPPED_IN:  # some files nest them
        inner = [weights[key] for key in _WRAPPED_IN if isinstance(weights.get(key), Mapping)]
        if not inner:
            break
        weights = inner[0]
    if not any(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError(
            f"{source} holds no weights that are known here (it has {_some(content)}), and no description of the "
            "pre-training; give a checkpoint of nnssl_mae, nnssl, nnU-Net or AMAES, or a state dict"
        )
    if weights is content:  # beside the weights there may be plain values, such as a version
        weights = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    return _without_prefixes(weights, source)


def _some(names: Mapping[Any, Any]) -> str:
    shown = ", ".join(str(name)[:40] for name in list(names)[:5])
    return f"{shown}, ..." if len(names) > 5 else shown or "nothing"


def _without_prefixes(weights: Mapping[Any, Any], source: Source) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, tensor in weights.items():
        short = _PREFIX.sub("", str(name), count=1) if _PREFIX.match(str(name)) else str(name)
        if short in result and not (isinstance(tensor, torch.Tensor) and same(result[short], tensor)):
            raise UserError(
                f"{source} holds two tensors {short} under different prefixes, of two networks; save the weights of one"
            )
        result[short] = tensor
    return result


def first_convolution(weights: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """The weight (features, channels, ...) of the convolution that takes the volume, or None."""
    return next((weights[name] for name in _STEMS if name in weights), None)


def read_state_dict(weights: Mapping[str, torch.Tensor], content: Mapping[str, Any], source: Source) -> Checkpoint:
    """Describes bare weights; how their scans were preprocessed is not known.

    Args:
        weights: under nnU-Net's names.
        content: of the file, for what may stand beside them.

    Raises:
        UserError: not one of nnU-Net's 3D U-Nets, or not a whole encoder.
    """
    weights, untied = under_one_name(weights)
    stem = first_convolution(weights)
    if stem is None:
        raise UserError(
            f"{source} holds weights of a network that is not known here: no {' or '.join(_STEMS)} (it has "
            f"{_some(weights)}); only U-Nets under nnU-Net's names and AMAES's can be read"
        )
    if stem.ndim != 5:
        raise UserError(f"{source} holds a network for {stem.ndim - 2}D images; only 3D networks can be used")
    architecture, notes = infer_architecture(weights, source)
    if untied:
        notes.insert(
            0, f"{untied} tensors are stored twice with different values; the copies 'all_modules' were taken."
        )
    epochs, steps = trained_for(content)
    return Checkpoint(
        weights=with_aliases(weights, architecture),
        architecture=architecture,
        channels=stem.shape[1],
        plans={},
        data={},
        origin=Origin("weights", source.label, sha256(source.file), epochs=epochs, steps=steps),
        cannot_reconstruct="it holds bare weights, which do not say how they were pre-trained",
        notes=tuple(notes),
    )


def trained_for(content: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Epochs and steps, where a file says them as PyTorch Lightning does."""
    epochs, steps = content.get("epoch"), content.get("global_step")
    counted = epochs + 1 if type(epochs) is int and "pytorch-lightning_version" in content else None
    return counted, steps if type(steps) is int else None


def infer_architecture(weights: Mapping[str, torch.Tensor], source: Source) -> tuple[dict[str, Any], list[str]]:
    """nnU-Net's form of the architecture, without ``strides`` where nothing tells them, and what had to be assumed.

    Args:
        weights: each under its first name; the first convolution is among them.

    Raises:
        UserError: the encoder's tensors are not those of one of nnU-Net's networks.
    """
    residual = _STEMS[0] in weights
    first = _first_blocks(weights, residual, source)
    depths = _depths(weights, _RESIDUAL if residual else _PLAIN)
    stages = len(first)
    kwargs: dict[str, Any] = {
        "n_stages": stages,
        "features_per_stage": [tensor.shape[0] for tensor in first],
        "kernel_sizes": [list(tensor.shape[2:]) for tensor in first],
        "n_blocks_per_stage" if residual else "n_conv_per_stage": depths,
        "n_conv_per_stage_decoder": _decoder_depths(weights, stages, residual),
        **layer_arguments(),
        "conv_bias": _STEMS[0 if residual else 1].replace("weight", "bias") in weights,
        "norm_op": _NORMS[any(name.endswith(".norm.running_mean") for name in weights)],
    }
    notes = [
        "Bare weights do not tell nonlinearity, dropout, kind and epsilon of the normalisation, or kind of the pooling "
        "if any: nnU-Net's, or AMAES's maximum, were taken."
    ]
    strides = _strides(weights, stages)
    if strides is None:
        notes.append("Without a decoder nothing tells the strides of the encoder.")
    else:
        kwargs["strides"] = strides
    name = "ResidualEncoderUNet" if residual else "AmaesUNet" if _pools(weights) else "PlainConvUNet"
    architecture = nnunet_architecture(name, kwargs, None, source.shown)
    _check_encoder(architecture, weights, source)
    return architecture, notes


def _first_blocks(weights: Mapping[str, torch.Tensor], residual: bool, source: Source) -> list[torch.Tensor]:
    """The weight of the first convolution of each stage."""
    pattern = _RESIDUAL if residual else _PLAIN
    found = {
        int(match[1]): tensor
        for name, tensor in weights.items()
        if (match := pattern.fullmatch(name)) and match.groups()[-1] == "0"
    }
    if not found or sorted(found) != list(range(len(found))) or any(tensor.ndim != 5 for tensor in found.values()):
        raise UserError(
            f"{source} does not hold a whole encoder (stages {sorted(found)} were found); save the whole network"
        )
    return [found[stage] for stage in sorted(found)]


def _depths(weights: Mapping[str, torch.Tensor], pattern: re.Pattern[str]) -> list[int]:
    """Blocks, or convolutions, of each stage; the stage is the first group of the pattern, the block the last."""
    counts: dict[int, int] = {}
    for name in weights:
        if match := pattern.fullmatch(name):
            counts[int(match[1])] = counts.get(int(match[1]), 0) + 1
    return [counts[stage] for stage in sorted(counts)]


def _decoder_depths(weights: Mapping[str, torch.Tensor], stages: int, residual: bool) -> list[int]:
    found = _depths(weights, _DECODER)
    # As nnU-Net plans its residual and its plain U-Nets.
    return found if len(found) == stages - 1 else [1 if residual else 2] * (stages - 1)


def _pools(weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether something without weights, a pooling, stands before the convolutions of a stage."""
    return any((match := _PLAIN.fullmatch(name)) and match[2] == "1" for name in weights)


def _strides(weights: Mapping[str, torch.Tensor], stages: int) -> list[list[int]] | None:
    """The kernels of the decoder's transposed convolutions, lowest resolution first, are the strides of the encoder."""
    kernels = {int(m[1]): list(tensor.shape[2:]) for name, tensor in weights.items() if (m := _UPWARDS.fullmatch(name))}
    if sorted(kernels) != list(range(stages - 1)) or any(len(kernel) != 3 for kernel in kernels.values()):
        return None
    return [[1, 1, 1], *(kernels[level] for level in reversed(range(stages - 1)))]


def _check_encoder(architecture: Mapping[str, Any], weights: Mapping[str, torch.Tensor], source: Source) -> None:
    """Refuses an encoder that is not exactly what its names seemed to say."""
    stem = first_convolution(weights)
    assert stem is not None
    shaped = architecture
    if "strides" not in architecture["arch_kwargs"]:
        strides = _likely_strides(weights, architecture["arch_kwargs"]["n_stages"])
        shaped = {**architecture, "arch_kwargs": {**architecture["arch_kwargs"], "strides": strides}}
    wrong = encoder_differences(shaped, stem.shape[1], weights)
    if wrong:
        raise UserError(
            f"{source} does not hold the encoder of one of nnU-Net's networks ({some(wrong)}); give a checkpoint with "
            "its description"
        )


def _likely_strides(weights: Mapping[str, torch.Tensor], stages: int) -> Sequence[int]:
    """Of a network of which only names matter: a residual block that changes widths without striding has no pooling."""
    return [1 if stage == 0 or f"encoder.stages.{stage}.blocks.0.skip.0.conv.weight" in weights else 2
            for stage in range(stages)]  # fmt: skip
