"""Checkpoints of every origin into networks of every shape: values and counts against an independent computation.

Names, shapes and values that are expected are worked out here from the description of a network alone: nothing of the
transfer's own code, and nothing of nnU-Net's network classes, takes part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from nnssl_mae.checkpoints.describe import Checkpoint, Origin, nnunet_architecture
from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.checkpoints.transfer import Part, Report, load_into, transfer
from nnssl_mae.errors import UserError
from nnssl_mae.networks.planned import planned_network
from nnssl_mae.recipes.pretraining import NetworkRecipe
from tests.checkpoints.files import KWARGS, adaptation_plan, tiny_recipe, write_nnssl, write_own, write_s3d

Family = Literal["ResidualEncoderUNet", "PlainConvUNet", "AmaesUNet"]
Role = tuple[Any, ...]
"""What a tensor is in its network; equal roles of two networks correspond."""
Named = dict[Role, tuple[str, tuple[int, ...]]]
HEADS = 5


# Networks, described.


@dataclass(frozen=True)
class Net:
    """A network; stages are counted from the highest resolution, in the decoder as well."""

    family: Family = "ResidualEncoderUNet"
    channels: int = 1
    widths: tuple[int, ...] = (4, 6, 8)
    kernels: tuple[tuple[int, int, int], ...] = ((3, 3, 3),) * 3
    strides: tuple[tuple[int, int, int], ...] = ((1, 1, 1), (2, 2, 2), (2, 2, 2))
    depths: tuple[int, ...] = (1, 1, 2)
    decoder_depths: tuple[int, ...] = (1, 1)

    def architecture(self) -> dict[str, Any]:
        depth = "n_blocks_per_stage" if self.family == "ResidualEncoderUNet" else "n_conv_per_stage"
        kwargs = {key: value for key, value in KWARGS.items() if key != "n_blocks_per_stage"} | {
            "n_stages": len(self.widths),
            "features_per_stage": list(self.widths),
            "kernel_sizes": [list(kernel) for kernel in self.kernels],
            "strides": [list(stride) for stride in self.strides],
            depth: list(self.depths),
            "n_conv_per_stage_decoder": list(reversed(self.decoder_depths)),
        }
        return nnunet_architecture(self.family, kwargs, None, Path("test"))

    def tensors(self) -> Named:
        return dict([*self._encoder(), *self._decoder()])

    def _encoder(self) -> Iterator[tuple[Role, tuple[str, tuple[int, ...]]]]:
        incoming = self.channels
        residual = self.family == "ResidualEncoderUNet"
        if residual:
            yield from block(("first",), "encoder.stem.convs.0", self.widths[0], incoming, self.kernels[0])
            incoming = self.widths[0]
        for stage, (width, kernel, stride) in enumerate(zip(self.widths, self.kernels, self.strides, strict=True)):
            strided = max(stride) > 1
            for number in range(self.depths[stage]):
                if residual:
                    name = f"encoder.stages.{stage}.blocks.{number}"
                    yield from block(("encoder", stage, number, 1), f"{name}.conv1", width, incoming, kernel)
                    yield from block(("encoder", stage, number, 2), f"{name}.conv2", width, width, kernel)
                    if incoming != width:
                        skip = f"{name}.skip.{int(strided)}"
                        yield from block(("encoder", stage, "skip"), skip, width, incoming, (1, 1, 1), bias=False)
                else:
                    pooled = int(strided and self.family == "AmaesUNet")
                    role: Role = ("encoder", stage, number) if stage or number else ("first",)
                    name = f"encoder.stages.{stage}.{pooled}.convs.{number}"
                    yield from block(role, name, width, incoming, kernel)
                incoming = width

    def _decoder(self) -> Iterator[tuple[Role, tuple[str, tuple[int, ...]]]]:
        levels = len(self.widths) - 1
        for level in range(levels):
            name, width = str(levels - 1 - level), self.widths[level]
            for number in range(self.decoder_depths[level]):
                incoming = width if number else 2 * width
                role = ("decoder", level, number)
                yield from block(role, f"decoder.stages.{name}.convs.{number}", width, incoming, self.kernels[level])
            up = f"decoder.transpconvs.{name}"
            shape = (self.widths[level + 1], width, *self.strides[level + 1])
            yield ("upwards", level, "conv.weight"), (f"{up}.weight", shape)
            yield ("upwards", level, "conv.bias"), (f"{up}.bias", (width,))
            yield ("head", level, "conv.weight"), (f"decoder.seg_layers.{name}.weight", (HEADS, width, 1, 1, 1))
            yield ("head", level, "conv.bias"), (f"decoder.seg_layers.{name}.bias", (HEADS,))


def block(
    role: Role, name: str, out: int, incoming: int, kernel: Sequence[int], bias: bool = True
) -> Iterator[tuple[Role, tuple[str, tuple[int, ...]]]]:
    """The tensors of a convolution with its normalisation."""
    yield (*role, "conv.weight"), (f"{name}.conv.weight", (out, incoming, *kernel))
    for part in ["conv.bias"] * bias + ["norm.weight", "norm.bias"]:
        yield (*role, part), (f"{name}.{part}", (out,))


# Checkpoints of every origin.


@dataclass(frozen=True)
class Given:
    """A checkpoint, what its network is, and its values by first names."""

    checkpoint: Checkpoint
    net: Net
    values: Mapping[str, np.ndarray]


def from_file(kind: str, folder: Path) -> Given:
    file = folder / "checkpoint_final.pth"
    folder.mkdir()
    if kind == "ours mae":
        network = write_own(file, tiny_recipe())
    elif kind == "ours s3d":
        tokens = NetworkRecipe(sparse=True, mask_tokens=True, densify=True, patch_size=(16, 16, 16))
        network = write_own(file, tiny_recipe(network=tokens.model_dump()))
    elif kind == "nnssl":
        network = write_nnssl(file, adaptation_plan())
    else:
        network = write_s3d(file, adaptation_plan(), released=kind == "nnssl s3d released")
    checkpoint = read_checkpoint(file)
    values = {name: tensor.detach().numpy() for name, tensor in network.named_parameters()}
    if kind == "nnssl s3d released":  # tokens stand in training files only
        values = {name: value for name, value in values.items() if name.startswith(("encoder.", "decoder."))}
    return Given(checkpoint, Net(), values)


ISOTROPIC = {"kernels": ((3, 3, 3),) * 3, "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2))}
THIN = {"kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3)), "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2))}
MADE: dict[str, Net] = {
    "nnU-Net": Net(channels=3, depths=(1, 2, 2), **THIN),
    "nnU-Net plain": Net("PlainConvUNet", channels=2, depths=(2, 2, 2), decoder_depths=(2, 2)),
    "AMAES": Net("AmaesUNet", depths=(2, 2, 2)),
    "weights": Net(channels=3, widths=(4, 8, 8), depths=(1, 2, 1)),
    "weights plain": Net("PlainConvUNet", channels=1, depths=(1, 2, 2)),
}
FILES = ("ours mae", "ours s3d", "nnssl", "nnssl s3d training", "nnssl s3d released")


def made(kind: str) -> Given:
    """As its reader gives it, without the file: random values under the names that files of this kind hold."""
    net, random = MADE[kind], np.random.default_rng(7)
    names = {name: shape for name, shape in net.tensors().values() if kind != "AMAES" or name.startswith("encoder.")}
    values = {name: random.standard_normal(shape).astype(np.float32) for name, shape in names.items()}
    architecture = net.architecture()
    stored = {name: torch.from_numpy(value) for name, value in values.items()}
    if kind == "weights":  # only the second names, those below all_modules
        del architecture["arch_kwargs"]["strides"]
        stored = {second_name(name): tensor for name, tensor in stored.items()}
    if kind == "weights plain":  # only those of the whole decoder
        del architecture["arch_kwargs"]["strides"]
        stored = {name.replace("encoder.", "decoder.encoder.", 1): tensor for name, tensor in stored.items()}
    checkpoint = Checkpoint(stored, architecture, net.channels, {}, {}, Origin("weights", f"{kind}.pth", "0" * 64))
    return Given(checkpoint, net, values)


def second_name(name: str) -> str:
    for first, second in ((".conv.", ".all_modules.0."), (".norm.", ".all_modules.1.")):
        name = name.replace(first, second)
    return name


@pytest.fixture(scope="module")
def origins(tmp_path_factory) -> dict[str, Given]:
    folder = tmp_path_factory.mktemp("origins")
    return {kind: from_file(kind, folder / kind) for kind in FILES} | {kind: made(kind) for kind in MADE}


# What must come out.

FOLDS: dict[tuple[int, int], list[list[float]]] = {
    (3, 1): [[1, 1, 1]],
    (1, 3): [[0], [1], [0]],
    (3, 5): [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]],
}
UPWARDS: dict[tuple[int, int], list[list[float]]] = {(2, 1): [[0.5, 0.5]], (1, 2): [[1], [1]]}


def axis_matrix(rules: Mapping[tuple[int, int], list[list[float]]], old: int, new: int) -> np.ndarray:
    return np.eye(old) if old == new else np.array(rules[old, new], float)


def channel_matrix(old: int, new: int, channel_map: Sequence[int | None] | None) -> np.ndarray:
    """(new, old): how much of each old channel's filter goes into a new one's."""
    if channel_map is None:
        return np.eye(old) if old == new else np.full((new, old), 1 / new)
    matrix = np.zeros((new, old))
    for channel, taken in enumerate(channel_map):
        if taken is not None:
            matrix[channel, taken] = 1
    return matrix / np.maximum(matrix.sum(axis=0), 1)


def expected_value(
    role: Role, old: np.ndarray, shape: tuple[int, ...], channel_map: Sequence[int | None] | None
) -> tuple[Literal["loaded", "adapted", "random"], np.ndarray | None]:
    if role[-1] != "conv.weight":
        return ("loaded", old) if old.shape == shape else ("random", None)
    rules = UPWARDS if role[0] == "upwards" else FOLDS
    axes = [axis_matrix(rules, before, after) for before, after in zip(old.shape[2:], shape[2:], strict=True)]
    channels = np.eye(old.shape[1])
    if role[0] == "first":
        channels = channel_matrix(old.shape[1], shape[1], channel_map)
    new = np.einsum("oixyz,ci,ax,by,dz->ocabd", old.astype(float), channels, *axes)
    if new.shape != shape:
        return "random", None
    unchanged = all(matrix.shape == (len(matrix),) * 2 and (matrix == np.eye(len(matrix))).all() for matrix in axes)
    if unchanged and channels.shape[0] == channels.shape[1] and (channels == np.eye(len(channels))).all():
        return "loaded", old
    return "adapted", new


def expected(
    given: Given, net: Net, part: Part, channel_map: Sequence[int | None] | None
) -> tuple[dict[str, tuple[str, np.ndarray | None]], set[str]]:
    """For each tensor of the new network what becomes of it and its values; and the checkpoint's tensors used."""
    sources = {role: name for role, (name, _) in given.net.tensors().items() if name in given.values}
    outcome: dict[str, tuple[str, np.ndarray | None]] = {}
    used = set()
    for role, (name, shape) in net.tensors().items():
        outcome[name] = ("random", None)
        if role[0] == "head" or role not in sources or (part == "encoder" and name.startswith("decoder.")):
            continue
        filters = net.tensors()[(*role[:-1], "conv.weight")][0]
        if filters != name and outcome[filters][0] == "random":
            continue
        outcome[name] = expected_value(role, given.values[sources[role]], shape, channel_map)
        if outcome[name][0] != "random":
            used.add(sources[role])
    return outcome, used


# The matrix: every origin meets every shape; channels and part go round, so that each shape meets most of them.

MORE = {
    "widths": (4, 6, 8, 8),
    "kernels": ((3, 3, 3),) * 4,
    "strides": ((1, 1, 1), *((2, 2, 2),) * 3),
    "depths": (1, 1, 2, 2),
    "decoder_depths": (1, 1, 1),
}
FEWER = {
    "widths": (4, 6),
    "kernels": ((3, 3, 3),) * 2,
    "strides": ((1, 1, 1), (2, 2, 2)),
    "depths": (1, 1),
    "decoder_depths": (1,),
}
THIN_AND_MORE = {
    "kernels": (*THIN["kernels"], (3, 3, 3)),
    "strides": (*THIN["strides"], (1, 2, 2)),
}
SHAPES: dict[str, dict[str, Any]] = {
    "same": {},
    "isotropic": ISOTROPIC,
    "thin slices": THIN,
    "more stages": MORE,
    "fewer stages": FEWER,
    "thin slices, more stages": MORE | THIN_AND_MORE,
    "a stage without stride": {"strides": ((1, 1, 1), (1, 1, 1), (2, 2, 2))},
    "more blocks": {"depths": (2, 3, 3), "decoder_depths": (3, 2)},
    "fewer blocks": {"depths": (1, 1, 1), "decoder_depths": (1, 1)},
    "other width at the bottom": {"widths": (4, 6, 10)},
    "larger kernels": {"kernels": ((3, 5, 5), (3, 3, 3), (3, 3, 3))},
}
CHANNELS: dict[int, list[tuple[int, tuple[int | None, ...] | None]]] = {
    1: [(1, None), (2, None), (4, None), (2, (0, None)), (3, (0, 0, None))],
    2: [(3, None), (1, None), (2, None), (2, (1, 0)), (4, (0, 0, 1, None))],
    3: [(1, None), (3, None), (2, (2, 0)), (4, (0, None, 2, 1))],
}
PARTS: tuple[Part, Part] = ("encoder+decoder", "encoder")


def combinations() -> Iterator[Any]:
    for row, origin in enumerate((*FILES, *MADE)):
        old = MADE[origin] if origin in MADE else Net()
        for column, (label, changes) in enumerate(SHAPES.items()):
            choices = CHANNELS[old.channels]
            channels, channel_map = choices[(row + column) % len(choices)]
            part = "encoder" if origin == "AMAES" else PARTS[(row + column // 2) % 2]
            if origin == "weights" and "widths" in changes:
                changes = {**changes, "widths": tuple(8 if width == 6 else width for width in changes["widths"])}
            net = replace(old, channels=channels, **changes)
            told = " ".join("-" if each is None else str(each) for each in channel_map) if channel_map else "no map"
            name = f"{origin}, {label}, {old.channels} to {channels} ({told}), {part}"
            yield pytest.param(origin, net, part, channel_map, id=name)


@pytest.mark.parametrize(("origin", "net", "part", "channel_map"), list(combinations()))
def test_values_and_counts(origins, origin: str, net: Net, part: Part, channel_map) -> None:
    given = origins[origin]
    tensors, report = transfer(given.checkpoint, net.architecture(), net.channels, part, channel_map)
    outcome, used = expected(given, net, part, channel_map)
    assert {fate.name: fate.shape for fate in report.fates if not is_head(fate.name)} == {
        name: shape for name, shape in net.tensors().values() if not is_head(name)
    }
    assert {fate.name: fate.what for fate in report.fates} == {name: what for name, (what, _) in outcome.items()}
    assert set(tensors) == {name for name, (what, _) in outcome.items() if what != "random"}
    for name, tensor in tensors.items():
        what, value = outcome[name]
        assert value is not None
        tolerance = 0 if what == "loaded" else 1e-6
        np.testing.assert_allclose(tensor.numpy(), value, rtol=tolerance, atol=tolerance, err_msg=name)
    assert {each.name for each in report.ignored} == set(given.values) - used
    check_sums(report, outcome, net)
    check_network(net, tensors, report)


def is_head(name: str) -> bool:
    return name.startswith("decoder.seg_layers.")


def check_sums(report: Report, outcome: Mapping[str, tuple[str, Any]], net: Net) -> None:
    """The counts that a person reads."""
    sizes = {name: int(np.prod(shape)) for name, shape in net.tensors().values() if not is_head(name)}
    for what, fates in (("loaded", report.loaded), ("adapted", report.adapted), ("random", report.random)):
        names = [name for name, (fate, _) in outcome.items() if fate == what]
        assert len(fates) == len(names) == sum(group.tensors[what] for group in report.groups())
        weights = sum(group.weights[what] for group in report.groups() if "seg_layers" not in group.name)
        assert weights == sum(sizes[name] for name in names if name in sizes)


def check_network(net: Net, tensors: Mapping[str, torch.Tensor], report: Report) -> None:
    """The network that nnU-Net builds takes the tensors, and keeps what it had elsewhere."""
    network = planned_network(net.architecture(), net.channels, HEADS)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    load_into(network, tensors, [fate.name for fate in report.random])
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, tensors.get(name, before[name])), name


def test_the_matrix_is_as_large_as_promised() -> None:
    assert len(list(combinations())) >= 40


PLAIN, AMAES = Net("PlainConvUNet"), Net("AmaesUNet")


@pytest.mark.parametrize(
    ("origin", "net", "part", "channel_map", "sentence"),
    [
        ("ours mae", PLAIN, "encoder", None, "is a ResidualEncoderUNet and the new one a PlainConvUNet: residual"),
        ("nnssl", AMAES, "encoder", None, "is a ResidualEncoderUNet and the new one a AmaesUNet: residual"),
        ("AMAES", Net(), "encoder", None, "is a AmaesUNet and the new one a ResidualEncoderUNet: residual"),
        ("AMAES", PLAIN, "encoder", None, "is a AmaesUNet and the new one a PlainConvUNet: one goes down by max pool"),
        ("nnU-Net plain", AMAES, "encoder", None, "PlainConvUNet and the new one a AmaesUNet: one goes down by max"),
        ("weights", PLAIN, "encoder", None, "residual blocks and plain convolutions have no weights in common"),
        ("AMAES", AMAES, "encoder+decoder", None, r"AMAES.pth has no decoder; use --transfer encoder"),
        ("ours s3d", Net(channels=2), "encoder", (0,), r"map '0' has 1 entries and the dataset 2 channels"),
        ("nnU-Net", Net(channels=2), "encoder", (3, 0), r"takes channel 3, and the checkpoint has 3 channels"),
        ("weights", Net(channels=2), "encoder", (None, None), r"map '- -' takes no channel"),
        ("nnssl s3d released", Net(channels=2), "encoder+decoder", (0, 1), r"takes channel 1, and .* has 1 channel;"),
        (
            "ours mae",
            Net(widths=(5, 7, 9)),
            "encoder",
            None,
            "Nothing of the checkpoint's encoder fits: it is a ResidualEncoderUNet with 4, 6, 8 features, and the new "
            "network a ResidualEncoderUNet with 5, 7, 9 features",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_a_sentence(origins, origin, net, part, channel_map, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        transfer(origins[origin].checkpoint, net.architecture(), net.channels, part, channel_map)


@pytest.mark.parametrize("decoder", ["light", "stock"])
def test_a_decoder_trained_without_skips_is_refused_and_its_encoder_is_not(tmp_path: Path, decoder: str) -> None:
    file = tmp_path / "amaes.pth"
    network = write_own(file, tiny_recipe(network={"skips": False, "decoder": decoder, "patch_size": [16, 16, 16]}))
    checkpoint = read_checkpoint(file)
    with pytest.raises(UserError, match=r"decoder of amaes.pth was trained without skip connections .* --transfer enc"):
        transfer(checkpoint, Net().architecture(), 1, "encoder+decoder")
    tensors, report = transfer(checkpoint, Net().architecture(), 1, "encoder")
    wanted = {name: value for name, value in network.named_parameters() if name.startswith("encoder.")}
    assert {fate.name for fate in report.loaded} == set(wanted)
    assert all(torch.equal(tensors[name], value) for name, value in wanted.items())
