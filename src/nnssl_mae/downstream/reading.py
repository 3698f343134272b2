"""With which of nnU-Net's readers a dataset is read so that its volumes lie as those of the pre-training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnunetv2.imageio.reader_writer_registry import (
    determine_reader_writer_from_dataset_json,
    recursive_find_reader_writer_by_name,
)

from nnssl_mae.checkpoints.describe import Checkpoint
from nnssl_mae.downstream.axes import ORIENTING_READER, stored_orientations
from nnssl_mae.downstream.labelled import Labelled
from nnssl_mae.downstream.wish import Wish
from nnssl_mae.errors import UserError


@dataclass(frozen=True)
class Reading:
    """A reader of nnU-Net, the axis order that follows it, and what to warn about."""

    reader: str
    transpose_forward: list[int]
    transpose_backward: list[int]
    warnings: tuple[str, ...] = ()
    beyond_stock: tuple[str, ...] = ()


def reading(checkpoint: Checkpoint, labelled: Labelled, wish: Wish) -> Reading:
    """Reader and axis order of the checkpoint where they are known, otherwise nnU-Net's own for the dataset.

    Raises:
        UserError: the checkpoint's volumes were turned to one orientation and the dataset's files cannot be.
    """
    if not checkpoint.is_preprocessing_known:
        return Reading(_own_reader(labelled), *_transposition(labelled.stock))
    forward, backward = _transposition(checkpoint.plans)
    wanted = str(checkpoint.plans["image_reader_writer"])
    reader_class = _reader_class(wanted)
    if reader_class is None:
        own = _own_reader(labelled)
        sentence = (
            f"The checkpoint's scans were read with {wanted}, which this nnU-Net does not have, so it reads with {own}:"
            " axes and orientation may differ from pre-training"
        )
        return Reading(own, forward, backward, beyond_stock=(sentence,))
    if wanted == ORIENTING_READER and wish.orientation == "asis":
        own = _stored_reader(labelled)
        return Reading(own, forward, backward, (_as_is(own),))
    if labelled.file_ending.lower() in reader_class.supported_file_endings:
        return Reading(wanted, forward, backward, () if wanted == ORIENTING_READER else _mixed(labelled))
    if wanted == ORIENTING_READER:
        raise UserError(
            f"The checkpoint was trained on volumes turned to one orientation (RAS, {wanted}), which nnU-Net cannot do "
            f"for the {labelled.file_ending} files of {labelled.name}; convert them to .nii.gz, or take them as they "
            "lie with --orientation asis"
        )
    # Readers of volumes as they are stored give the same axes, whatever the files.
    return Reading(_own_reader(labelled), forward, backward, _mixed(labelled))


def _transposition(plans: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Of axes when a volume is preprocessed, and back."""
    forward = [int(axis) for axis in plans["transpose_forward"]]
    return forward, [forward.index(axis) for axis in range(len(forward))]


def _as_is(own: str) -> str:
    return (
        "The checkpoint was trained on volumes turned to one orientation (RAS), and the dataset's are taken as they "
        f"lie in their files ({own}): where they lie otherwise, the pre-trained filters see mirrored or turned "
        "anatomy; convert the files to .nii.gz and leave --orientation asis out, or turn them to RAS yourself"
    )


def _mixed(labelled: Labelled) -> tuple[str, ...]:
    """A warning where volumes that are taken as stored lie in different ways."""
    counts = stored_orientations(labelled)
    if len(counts) < 2:
        return ()
    shown = ", ".join(f"{count} {orientation}" for orientation, count in counts.items())
    return (
        f"The dataset's volumes are stored in different orientations ({shown}) and are taken as they are stored, as in "
        "pre-training: the network sees turned or mirrored anatomy; bring the files to one orientation first, that of "
        "the pre-training scans",
    )


def _reader_class(name: str) -> Any:
    try:
        return recursive_find_reader_writer_by_name(name)
    except RuntimeError:
        return None


def _own_reader(labelled: Labelled) -> str:
    """nnU-Net's choice for the dataset: the one it planned with where that reads such files."""
    planned = str(labelled.stock["image_reader_writer"])
    found = _reader_class(planned)
    return planned if found and labelled.file_ending.lower() in found.supported_file_endings else _by_ending(labelled)


def _stored_reader(labelled: Labelled) -> str:
    """nnU-Net's choice among the readers that take volumes as they are stored."""
    own = _own_reader(labelled)
    return _by_ending(labelled) if own == ORIENTING_READER else own


def _by_ending(labelled: Labelled) -> str:
    try:
        return str(determine_reader_writer_from_dataset_json(labelled.dataset_json, verbose=False).__name__)
    except RuntimeError as error:
        raise UserError(
            f"nnU-Net has no reader for the {labelled.file_ending} files of {labelled.name}; convert them to .nii.gz"
        ) from error
