"""Which tensors of a pre-trained network go into a new one, how they are adapted, and putting them there.

nnU-Net's networks name most tensors several times: every convolution block as ``.conv``/``.norm`` and as
``.all_modules.N``, the whole encoder again below ``decoder.encoder``. Here each tensor has one name, the first.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from nnssl_mae.backbones import BACKBONES, backbone_of, short_name
from nnssl_mae.checkpoints.describe import Checkpoint
from nnssl_mae.checkpoints.fitting import ChannelMap, Kind, check_channel_map, fit
from nnssl_mae.checkpoints.names import has_skips, under_one_name
from nnssl_mae.errors import UserError
from nnssl_mae.networks.planned import network_shape
from nnssl_mae.sizes import per_axis, sizes_in_words

Part = Literal["encoder", "encoder+decoder"]
What = Literal["loaded", "adapted", "random"]

_DECODER_PREFIXES = ("decoder.stages.", "decoder.transpconvs.")
_HEADS = "decoder.seg_layers."
_POSITION = "encoder.position"
_PRETRAINING_ONLY = {
    "mask_tokens.": "a mask token, which only pre-training needs",
    "densifiers.": "a densification layer, which only pre-training needs",
    "token_decoder.": "a block that fills in dropped tokens, which only pre-training needs",
    "hidden_value": "the value put into hidden voxels, which only pre-training needs",
}
_DECODER_STAGE = re.compile(r"decoder\.(stages|transpconvs)\.(\d+)\.(.*)")
_POOLED_STAGE = re.compile(r"^(encoder\.stages\.\d+)\.\d+\.")
_POOLED_SKIP = re.compile(r"\.skip\.\d+\.")
_STAGE = re.compile(r"encoder\.stages\.\d+|decoder\.\w+\.resolution \d+")
_DOWNSAMPLING = re.compile(r"encoder\.stages\.(\d+)\.(?:blocks\.0\.conv1|convs\.0)\.conv\.weight")
_GROUP = re.compile(r"encoder\.stages\.\d+|decoder\.(?:stages|transpconvs)\.\d+|\w+\.\w+|\w+")
_FILTERS = re.compile(r"(.*\.)(?:conv|norm)\.\w+")
_UPSAMPLING = re.compile(r"decoder\.transpconvs\.\d+\.")


@dataclass(frozen=True)
class Fate:
    """What becomes of one tensor of the new network."""

    name: str
    """Its first name."""
    shape: tuple[int, ...]
    what: What
    """``loaded`` is bit-equal to the checkpoint's, ``random`` stays as initialised."""
    source: str | None
    """The checkpoint's tensor, by its first name; None where there is no counterpart."""
    how: str
    """In words: what was adapted, or why it stays random."""

    @property
    def weights(self) -> int:
        """How many numbers it holds."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Ignored:
    """A tensor of the checkpoint that goes nowhere."""

    name: str
    why: str


@dataclass(frozen=True)
class Group:
    """The fates of one part of the network, counted."""

    name: str
    """Such as ``encoder.stages.0``."""
    tensors: Mapping[What, int]
    """How many tensors were loaded, adapted, left random."""
    weights: Mapping[What, int]
    """How many numbers they hold."""
    hows: tuple[str, ...]
    """What was done, each once."""


@dataclass(frozen=True)
class Report:
    """Every tensor of the new network and every tensor of the checkpoint that is not in it."""

    fates: tuple[Fate, ...]
    ignored: tuple[Ignored, ...]

    @property
    def loaded(self) -> tuple[Fate, ...]:
        """Those with the checkpoint's values as they are."""
        return self._that_are("loaded")

    @property
    def adapted(self) -> tuple[Fate, ...]:
        """Those with values computed from the checkpoint's."""
        return self._that_are("adapted")

    @property
    def random(self) -> tuple[Fate, ...]:
        """Those that stay as initialised."""
        return self._that_are("random")

    def _that_are(self, what: What) -> tuple[Fate, ...]:
        return tuple(fate for fate in self.fates if fate.what == what)

    def share_taken(self, part: Part) -> float:
        """Share of the weights of a part that start from the checkpoint, as they are or adapted."""
        prefixes = ("encoder.",) if part == "encoder" else ("encoder.", *_DECODER_PREFIXES)
        wanted = [fate for fate in self.fates if fate.name.startswith(prefixes)]
        taken = sum(fate.weights for fate in wanted if fate.what != "random")
        return taken / max(1, sum(fate.weights for fate in wanted))

    def groups(self) -> tuple[Group, ...]:
        """The parts of the network in its own order, for a person to read."""
        members: dict[str, list[Fate]] = {}
        for fate in self.fates:
            members.setdefault(group_of(fate.name), []).append(fate)
        return tuple(_counted(name, fates) for name, fates in members.items())


def group_of(name: str) -> str:
    """The part of the network that a tensor belongs to, such as ``encoder.stages.0`` or ``decoder.seg_layers``."""
    match = _GROUP.match(name)
    return match[0] if match else name


def _counted(name: str, fates: Sequence[Fate]) -> Group:
    tensors: dict[What, int] = {"loaded": 0, "adapted": 0, "random": 0}
    weights = dict(tensors)
    for fate in fates:
        tensors[fate.what] += 1
        weights[fate.what] += fate.weights
    return Group(name, tensors, weights, tuple(dict.fromkeys(fate.how for fate in fates)))


def transfer(
    checkpoint: Checkpoint,
    architecture: Mapping[str, Any],
    channels: int,
    part: Part,
    channel_map: ChannelMap | None = None,
) -> tuple[dict[str, torch.Tensor], Report]:
    """Finds and adapts what a checkpoint has for a new network.

    Stages are matched from the highest resolution, decoder stages by the resolution that they give. Where a convolution
    stays random, so do its bias and its normalisation, which mean nothing without its filters.

    Args:
        checkpoint: only its weights (each tensor under any of its names), architecture and channels are looked at.
        architecture: of the new network, as in nnU-Net's plans.
        channels: of the new network's input.
        part: the heads never go along.
        channel_map: for each new channel the checkpoint's channel that it takes, None for zeros; see
            :func:`nnssl_mae.checkpoints.fitting.fit_channels` for what happens without it.

    Returns:
        copies of the tensors for :func:`load_into`, contiguous, by the new network's first names; and the report.

    Raises:
        UserError: another kind of network, nothing of the encoder fits, values that are not finite, an impossible
            channel map, or a decoder that is wanted and missing, or was trained without skip connections.
    """
    _check_family(checkpoint.architecture, architecture)
    weights, _ = under_one_name(checkpoint.weights)
    sources = _by_place(_places(name for name in weights if not _pretraining_only(name)))
    _check_parts(checkpoint, weights, part)
    if channel_map is not None:
        check_channel_map(channel_map, _input_channels(checkpoint, weights, sources), channels)
    wanted = _named_tensors(network_shape(architecture, channels))
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    matching = _Matching(checkpoint, architecture, weights, sources, shapes, _places(shapes), part, channel_map)
    tensors, fates = matching.of_network()
    if not any(name.startswith("encoder.") for name in tensors):
        raise UserError(
            f"Nothing of the checkpoint's encoder fits: it is a {_in_words(checkpoint.architecture)}, and the new "
            f"network a {_in_words(architecture)}; plan the dataset with the checkpoint's number of features"
        )
    return tensors, Report(tuple(fates), matching.ignored(fates))


@dataclass(frozen=True)
class _Matching:
    """A checkpoint on its way into a network."""

    checkpoint: Checkpoint
    architecture: Mapping[str, Any]
    weights: Mapping[str, torch.Tensor]
    """Of the checkpoint, by first names."""
    sources: Mapping[str, str]
    """First names of the checkpoint's tensors by place, see :func:`_places`."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of the new network's tensors, by first names."""
    places: Mapping[str, str]
    """Of the new network's tensors, by first names."""
    part: Part
    channel_map: ChannelMap | None

    def of_network(self) -> tuple[dict[str, torch.Tensor], list[Fate]]:
        """What is transferred, and the fate of each tensor of the new network."""
        tensors: dict[str, torch.Tensor] = {}
        fates: dict[str, Fate] = {}
        for name in self.shapes:
            tensor, fates[name] = self._of_tensor(name, fates.get(_filters_of(name)))
            if tensor is not None:
                tensors[name] = tensor
        return tensors, list(fates.values())

    def _of_tensor(self, name: str, filters: Fate | None) -> tuple[torch.Tensor | None, Fate]:
        """What becomes of one tensor; ``filters`` is the fate of the convolution that it belongs to."""
        place, shape = self.places[name], self.shapes[name]
        if name.startswith(_HEADS):
            return None, Fate(name, shape, "random", None, "a new head")
        if self.part == "encoder" and name.startswith("decoder."):
            return None, Fate(name, shape, "random", None, "only the encoder is transferred")
        source = self.sources.get(place)
        if source is None:
            return None, Fate(name, shape, "random", None, self._why_missing(place))
        if filters is not None and filters.what == "random":
            return None, Fate(name, shape, "random", source, "belongs to a convolution that stays random")
        tensor = self.weights[source]
        _check_values(source, tensor)
        fitted = fit(tensor, shape, _kind(place, shape), self.channel_map)
        if fitted is None:
            how = f"{_shape_in_words(tensor.shape)} in the checkpoint, {_shape_in_words(shape)} in the new network"
            return None, Fate(name, shape, "random", source, how)
        how = "; ".join(filter(None, [fitted.how or "as it is", self._other_stride(place)]))
        return fitted.tensor, Fate(name, shape, "adapted" if fitted.how else "loaded", source, how)

    def _why_missing(self, place: str) -> str:
        if (stage := _stage(place)) is not None and stage not in map(_stage, self.sources):
            return "the checkpoint has no such stage"
        return "the checkpoint has no such tensor"

    def _other_stride(self, place: str) -> str:
        """A remark where a stage goes down by another factor than in the checkpoint; empty if unknown."""
        match = _DOWNSAMPLING.fullmatch(place)
        if match is None:
            return ""
        old, new = (_stride(each, int(match[1])) for each in (self.checkpoint.architecture, self.architecture))
        if old is None or new is None or old == new:
            return ""
        return f"downsampling {sizes_in_words(old)} in the checkpoint, {sizes_in_words(new)} in the new network"

    def ignored(self, fates: Iterable[Fate]) -> tuple[Ignored, ...]:
        """The checkpoint's tensors that go nowhere."""
        used = {fate.source for fate in fates if fate.what != "random"}
        unused = _places(name for name in self.weights if not _pretraining_only(name))
        wanted = set(self.places.values())
        return tuple(
            Ignored(name, self._why_ignored(name, unused.get(name, ""), wanted))
            for name in self.weights
            if name not in used
        )

    def _why_ignored(self, name: str, place: str, wanted: Collection[str]) -> str:
        if reason := _pretraining_only(name):
            return reason
        if name.startswith(_HEADS):
            return "a head, which belongs to the checkpoint's own task"
        if not name.startswith(("encoder.", *_DECODER_PREFIXES)):
            return "no part of encoder or decoder"
        if self.part == "encoder" and name.startswith("decoder."):
            return "only the encoder is transferred"
        if place in wanted:
            return "does not fit the new network's tensor"
        if (stage := _stage(place)) is not None and stage not in map(_stage, wanted):
            return "the new network has no such stage"
        return "the new network has no such tensor"


def _places(names: Iterable[str]) -> dict[str, str]:
    """What each tensor is in its network, whatever pooling and depth do to the numbers in its (first) name.

    A stage's blocks are numbered 0 or, after a pooling layer, 1; so is the convolution in a residual block's skip. The
    decoder's stages count from the coarsest, so their number is replaced by the resolution they give, 0 the highest.
    """
    names = list(names)
    coarsest = max((int(match[2]) for name in names if (match := _DECODER_STAGE.fullmatch(name))), default=0)
    return {name: _place(name, coarsest) for name in names}


def _place(name: str, coarsest: int) -> str:
    if match := _DECODER_STAGE.fullmatch(name):
        return f"decoder.{match[1]}.resolution {coarsest - int(match[2])}.{match[3]}"
    return _POOLED_SKIP.sub(".skip.", _POOLED_STAGE.sub(r"\1.", name))


_FIRST_CONVOLUTIONS = tuple(_places(f"{backbone.first_layer}.weight" for backbone in BACKBONES.values()).values())


def _by_place(places: Mapping[str, str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for name, place in places.items():
        names.setdefault(place, name)
    return names


def _stage(place: str) -> str | None:
    """The stage or decoder level of a place."""
    match = _STAGE.match(place)
    return match[0] if match else None


def _kind(place: str, shape: Sequence[int]) -> Kind:
    if place in _FIRST_CONVOLUTIONS:
        return "first convolution"
    if place == _POSITION:
        return "position"
    if len(shape) <= 2:
        return "vector"
    return "transposed convolution" if place.startswith("decoder.transpconvs.") else "convolution"


def _filters_of(name: str) -> str:
    """Name of the convolution weight that a bias or a part of a normalisation belongs to, or of the weight itself."""
    if match := _FILTERS.fullmatch(name):
        return f"{match[1]}conv.weight"
    match = _UPSAMPLING.match(name)
    return f"{match[0]}weight" if match else name


def _pretraining_only(name: str) -> str | None:
    return next((why for prefix, why in _PRETRAINING_ONLY.items() if name.startswith(prefix)), None)


def _stride(architecture: Mapping[str, Any], stage: int) -> tuple[int, ...] | None:
    """A stage's stride along three axes, or None where the architecture does not tell."""
    strides = architecture["arch_kwargs"].get("strides")
    if strides is None or isinstance(strides, int) or stage >= len(strides):
        return None
    return per_axis(strides[stage])


def _check_family(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuses a new network of another kind than the checkpoint's.

    Raises:
        UserError: they differ, or the new one is unknown.
    """
    before, after = backbone_of(old), backbone_of(new)
    if before == after:
        return
    why = "their layers have no weights in common"
    if before.is_convolutional and after.is_convolutional:
        why = "residual blocks and plain convolutions have no weights in common"
    if {before.name, after.name} == {"plain", "amaes_unet"}:
        why = "one goes down by max pooling and the other by strided convolutions, so its filters see other features"
    names = [short_name(each.network_class) for each in (before, after)]
    raise UserError(
        f"The checkpoint's network is a {names[0]} and the new one a {names[1]}: {why}; plan the dataset with a "
        f"{names[0]}"
    )


def _in_words(architecture: Mapping[str, Any]) -> str:
    features = architecture["arch_kwargs"].get("features_per_stage")
    widths = [features] if isinstance(features, int) else list(features or ["an unknown number of"])
    return f"{short_name(architecture['network_class_name'])} with {', '.join(map(str, widths))} features"


def _check_parts(checkpoint: Checkpoint, weights: Mapping[str, torch.Tensor], part: Part) -> None:
    """Refuses a checkpoint without the wanted part under nnU-Net's names.

    Raises:
        UserError: no encoder, or a decoder that is missing or was trained without skip connections.
    """
    label = checkpoint.origin.label
    if not any(name.startswith("encoder.") for name in weights):
        first = next(iter(weights), None)
        found = "it holds no tensors" if first is None else f"its tensors have names such as {first}"
        raise UserError(
            f"{label} has no tensors below 'encoder.' ({found}); save the weights of the network itself, without the "
            "prefix of a wrapper such as 'module.' or '_orig_mod.'"
        )
    if part == "encoder":
        return
    if not any(name.startswith(_DECODER_PREFIXES) for name in weights):
        raise UserError(f"{label} has no decoder; use --transfer encoder")
    if backbone_of(checkpoint.architecture).is_convolutional and not has_skips(weights):
        raise UserError(
            f"The decoder of {label} was trained without skip connections and fits no nnU-Net; use --transfer encoder"
        )


def _input_channels(checkpoint: Checkpoint, weights: Mapping[str, torch.Tensor], sources: Mapping[str, str]) -> int:
    first = next((sources[place] for place in _FIRST_CONVOLUTIONS if place in sources), None)
    return checkpoint.channels if first is None else weights[first].shape[1]


def _check_values(name: str, tensor: torch.Tensor) -> None:
    if not _is_finite(tensor):
        raise UserError(
            f"The checkpoint's {name} holds nan or infinite values; use one from before its training failed"
        )
    if not tensor.is_floating_point() and not name.endswith(".num_batches_tracked"):
        raise UserError(
            f"The checkpoint's {name} holds {str(tensor.dtype).removeprefix('torch.')} values; save its weights as "
            "floating-point numbers"
        )


def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _shape_in_words(shape: Iterable[int]) -> str:
    return f"({', '.join(map(str, shape))})"


def _named_tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers that are saved, each under its first name."""
    saved = network.state_dict().keys()
    buffers = {name: buffer for name, buffer in network.named_buffers() if name in saved}
    return {**dict(network.named_parameters()), **buffers}


def load_into(network: nn.Module, tensors: Mapping[str, torch.Tensor], left_random: Collection[str] = ()) -> None:
    """Copies tensors into a network (not wrapped).

    Args:
        network: see :func:`check_fit`.
        tensors: see :func:`check_fit`.
        left_random: see :func:`check_fit`.

    Raises:
        UserError: see :func:`check_fit`; the network is then as it was.
    """
    check_fit(network, tensors, left_random)
    places = _named_tensors(network)
    with torch.no_grad():
        for name, tensor in tensors.items():
            # In place: the other names of this tensor are the same memory.
            places[name].copy_(tensor)


def check_fit(network: nn.Module, tensors: Mapping[str, torch.Tensor], left_random: Collection[str] = ()) -> None:
    """Refuses tensors that cannot be put into a network.

    Args:
        network: not wrapped; only names and shapes are looked at, so it may be on the meta device.
        tensors: with values, by the network's first names.
        left_random: names that may be missing. All others of the encoder must be there, and, where ``tensors`` holds
            any of the decoder, all others of its stages and transposed convolutions.

    Raises:
        UserError: a tensor has no place, another shape or values that are not finite, or one is missing.
    """
    places = _named_tensors(network)
    with_decoder = any(name.startswith("decoder.") for name in tensors)
    needed = ("encoder.", *_DECODER_PREFIXES) if with_decoder else ("encoder.",)
    problems = [f"{name} has no place in the network" for name in tensors if name not in places]
    problems += [
        f"{name} is {tuple(tensor.shape)} in the file and {tuple(places[name].shape)} in the network"
        for name, tensor in tensors.items()
        if name in places and tensor.shape != places[name].shape
    ]
    problems += [
        f"{name} is missing"
        for name in places
        if name.startswith(needed) and name not in tensors and name not in left_random
    ]
    problems += [f"{name} holds nan or infinite values" for name, tensor in tensors.items() if not _is_finite(tensor)]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UserError(f"The pre-trained weights do not fit the network: {'; '.join(problems[:3])}{more}")
