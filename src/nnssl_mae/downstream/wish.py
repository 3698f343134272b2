"""What a user asks for when a checkpoint is fitted to a dataset."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nnssl_mae.checkpoints.transfer import Part
from nnssl_mae.errors import UserError

Mode = Literal["like-pretrained", "dataset", "native"]
Source = Literal["pretrained", "dataset"]
Orientation = Literal["pretrained", "asis"]


@dataclass(frozen=True)
class Wish:
    """Treatment and control of a comparison differ in ``part`` only.

    Raises:
        UserError: a value that is not possible.
    """

    part: Part | None
    """What to transfer; None is the control from scratch."""
    mode: Mode = "like-pretrained"
    """``like-pretrained``: network, voxel spacing, patch and resampling of the checkpoint. ``dataset``: nnU-Net's own
    spacing, resampling and patch for the dataset, with strides and kernels that follow from them. ``native``: no
    resampling, with the network and patch of the checkpoint."""
    normalisation: Source = "pretrained"
    """``dataset``: nnU-Net's own choice for each channel, such as its CT scheme."""
    orientation: Orientation = "pretrained"
    """``asis``: the volumes as they lie in their files, even where the checkpoint's were turned to one orientation."""
    patch: tuple[int, int, int] | None = None
    """Voxels, in the axis order of the preprocessed data; None is the checkpoint's, or the dataset's own."""
    batch: int | None = None
    """Patches a step, over all GPUs; None is 2, or what fits ``gpu_memory``."""
    gpu_memory: float | None = None
    """GB into which patch and batch shall fit; None leaves them as they are."""
    channel_map: tuple[int | None, ...] | None = None
    """For each channel of the dataset the channel of the checkpoint that it continues; None starts at zero."""

    def __post_init__(self) -> None:
        _one_of("--transfer", self.part, (None, *get_args(Part)))
        _one_of("--mode", self.mode, get_args(Mode))
        _one_of("--normalisation", self.normalisation, get_args(Source))
        _one_of("--orientation", self.orientation, get_args(Orientation))
        if self.patch is not None and not (len(self.patch) == 3 and all(map(_is_positive_whole, self.patch))):
            raise UserError(f"--patch {_words(self.patch)} is not possible; give three whole numbers above 0")
        if self.batch is not None and not _is_positive_whole(self.batch):
            raise UserError(f"--batch {self.batch} is not possible; give a whole number above 0")
        if self.gpu_memory is not None and not (math.isfinite(self.gpu_memory) and self.gpu_memory > 0):
            raise UserError(f"--gpu-memory {self.gpu_memory} is not possible; give the GB of your GPU, such as 24")


def _one_of(option: str, value: Any, possible: tuple[Any, ...]) -> None:
    if value not in possible:
        known = ", ".join(f"'{word}'" for word in possible if word is not None)
        raise UserError(f"{option} {value} is not possible; use one of {known}")


def _is_positive_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _words(values: Any) -> str:
    return " ".join(map(str, values))
