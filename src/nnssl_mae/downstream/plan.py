"""Plans for fine-tuning a labelled dataset from a checkpoint, and the tensors to start from. Writes nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

from nnssl_mae.checkpoints.describe import CT_INTENSITIES, CT_NORMALISATION, Checkpoint
from nnssl_mae.checkpoints.transfer import Report, transfer
from nnssl_mae.downstream.axes import Geometry, geometry, reordered
from nnssl_mae.downstream.dangers import NO_RESAMPLING, beyond_stock, dangers
from nnssl_mae.downstream.labelled import Labelled
from nnssl_mae.downstream.memory import DEFAULT_BATCH, Fitting, Size, gpu_memory
from nnssl_mae.downstream.network import SizedNetwork, as_trained, continued
from nnssl_mae.downstream.normalisation import Normalisation, normalisation
from nnssl_mae.downstream.reading import Reading, reading
from nnssl_mae.downstream.wish import Wish
from nnssl_mae.errors import UserError
from nnssl_mae.networks.planned import network_shape
from nnssl_mae.plans import CONFIGURATION, data_identifier
from nnssl_mae.sizes import sizes_in_words

_ENOUGH = 0.5  # of the weights to transfer
_RESAMPLING_KEYS = tuple(
    f"resampling_fn_{what}{kwargs}" for what in ("data", "seg", "probabilities") for kwargs in ("", "_kwargs")
)


@dataclass(frozen=True)
class Planned:
    """What fine-tuning a dataset from a checkpoint would be like."""

    plans: dict[str, Any]
    """nnU-Net's plans, with one configuration that has no block of ours yet."""
    tensors: dict[str, torch.Tensor]
    """To start from, by the new network's names; empty for the control."""
    report: Report | None
    """Tensor by tensor; None for the control."""
    warnings: tuple[str, ...]
    """What may silently cost the benefit of the pre-training."""
    beyond_stock: tuple[str, ...]
    """Steps of the pre-training that stock nnU-Net cannot repeat."""
    notes: tuple[str, ...]
    """Choices that were made, without danger."""
    gpu_memory: float | None
    """GB that training needs with the planned batch; None is unknown."""
    gpu_memory_how: str
    """Where that number comes from, or why there is none."""

    @property
    def configuration(self) -> dict[str, Any]:
        """The one configuration of the plans."""
        configuration: dict[str, Any] = self.plans["configurations"][CONFIGURATION]
        return configuration


def plan_finetuning(checkpoint: Checkpoint, labelled: Labelled, wish: Wish, plans_name: str) -> Planned:
    """Plans a fine-tuning: labels from the dataset, everything about images as the wish says.

    Raises:
        UserError: a mode that needs what the checkpoint does not tell, weights or files that do not fit, a patch that
            the network does not take, or too little GPU memory.
    """
    check_mode(checkpoint, wish)
    read, normal = reading(checkpoint, labelled, wish), normalisation(checkpoint, labelled, wish)
    cases = geometry(labelled, read.reader, read.transpose_forward)
    voxels, axis_warnings = _voxels(checkpoint, labelled, cases, wish)
    size, size_notes = _size(checkpoint, labelled, cases, wish, voxels)
    tensors, report = _transferred(checkpoint, labelled, wish, size)
    plans = _plans(labelled, plans_name, read, normal, voxels, size)
    found = [*read.warnings, *axis_warnings, *normal.warnings, *_mostly_random(report, wish)]
    found += dangers(checkpoint, plans["configurations"][CONFIGURATION], cases, wish)
    network, channels = size.network, len(labelled.channel_names)
    needed = gpu_memory(network.architecture, channels, labelled.heads, network.patch, size.batch)
    return Planned(
        plans=plans,
        tensors=tensors,
        report=report,
        warnings=(*checkpoint.notes, *found),
        beyond_stock=(*read.beyond_stock, *beyond_stock(checkpoint)),
        notes=(*labelled.notes, *size_notes, *_unknown(checkpoint)),
        gpu_memory=needed,
        gpu_memory_how=_how_measured(needed, size),
    )


def check_mode(checkpoint: Checkpoint, wish: Wish) -> None:
    """Refuses a mode that needs what the checkpoint does not tell.

    Raises:
        UserError: see above.
    """
    if wish.mode == "dataset":
        return
    missing = [] if checkpoint.is_preprocessing_known else ["how its scans were preprocessed"]
    missing += [] if checkpoint.architecture["arch_kwargs"].get("strides") else ["the strides of its network"]
    if missing:
        raise UserError(
            f"{checkpoint.origin.label} does not tell {' and '.join(missing)}, so --mode {wish.mode} cannot follow it; "
            "use --mode dataset"
        )


def _mostly_random(report: Report | None, wish: Wish) -> list[str]:
    if report is None or wish.part is None or (share := report.share_taken(wish.part)) >= _ENOUGH:
        return []
    return [
        f"Only {share:.0%} of the weights of the {wish.part.replace('+', ' and ')} start from the checkpoint, the "
        "others are random: nnssl-mae inspect lists them; another --mode or --patch may fit the checkpoint better"
    ]


def _unknown(checkpoint: Checkpoint) -> list[str]:
    if checkpoint.is_preprocessing_known:
        return []
    return [
        "The checkpoint does not tell how its scans were preprocessed: reader, axis order, spacing and normalisation "
        "are nnU-Net's own for the dataset"
    ]


def _transferred(
    checkpoint: Checkpoint, labelled: Labelled, wish: Wish, size: Size
) -> tuple[dict[str, torch.Tensor], Report | None]:
    architecture, channels = size.network.architecture, len(labelled.channel_names)
    if wish.part is not None:
        return transfer(checkpoint, architecture, channels, wish.part, wish.channel_map)
    network_shape(architecture, channels, labelled.heads)  # what cannot be built shall not fail in training
    return {}, None


def _voxels(
    checkpoint: Checkpoint, labelled: Labelled, cases: Geometry, wish: Wish
) -> tuple[dict[str, Any], list[str]]:
    """Spacing, resampling and median size for the configuration, and warnings."""
    voxels, warnings = _spacing(checkpoint, labelled, cases, wish)
    return {**voxels, "median_image_size_in_voxels": _median_shape(cases, voxels)}, warnings


def _spacing(
    checkpoint: Checkpoint, labelled: Labelled, cases: Geometry, wish: Wish
) -> tuple[dict[str, Any], list[str]]:
    stock, data = labelled.configuration, checkpoint.data
    if wish.mode == "dataset":
        order, warnings = _stock_order(labelled, cases)
        spacing = [float(edge) for edge in reordered(stock["spacing"], order)]
        return {"spacing": spacing, **{key: stock[key] for key in _RESAMPLING_KEYS}}, warnings
    if wish.mode == "native" or data["resampling_fn_data"] == NO_RESAMPLING:
        none = {key: {} if key.endswith("_kwargs") else NO_RESAMPLING for key in _RESAMPLING_KEYS}
        return {"spacing": cases.median_spacing, **none}, []
    return {
        "spacing": [float(edge) for edge in data["spacing"]],
        "resampling_fn_data": data["resampling_fn_data"],
        "resampling_fn_data_kwargs": data["resampling_fn_data_kwargs"],
        # Labels are the dataset's: a checkpoint may tell of masks that were resampled like images.
        "resampling_fn_seg": stock["resampling_fn_seg"],
        "resampling_fn_seg_kwargs": stock["resampling_fn_seg_kwargs"],
        "resampling_fn_probabilities": stock["resampling_fn_probabilities"],
        "resampling_fn_probabilities_kwargs": stock["resampling_fn_probabilities_kwargs"],
    }, []


def _stock_order(labelled: Labelled, cases: Geometry) -> tuple[tuple[int, ...], list[str]]:
    """For each of our axes the axis of nnU-Net's own plans; and a warning where that is not certain.

    Raises:
        UserError: it differs from case to case, and matters.
    """
    stock = labelled.configuration
    order = min(cases.orders)
    if len(set(map(float, stock["spacing"]))) == 1 and len(set(stock["patch_size"])) == 1:
        return order, []
    if len(cases.orders) > 1:
        raise UserError(
            f"The files of {labelled.name} are stored in different orientations and the checkpoint's volumes were "
            'turned to one, so nnU-Net\'s spacing for them cannot be taken over; set "overwrite_image_reader_writer": '
            '"NibabelIOWithReorient" in its dataset.json, then extract the fingerprint and plan again, or use '
            "--orientation asis"
        )
    if cases.is_certain:
        return order, []
    return order, [
        f"The training images of {labelled.name} are not in nnUNet_raw, so it is not known along which axis their "
        "slices are thick once they are turned to one orientation as in pre-training"
    ]


def _median_shape(cases: Geometry, voxels: Mapping[str, Any]) -> list[float]:
    """Of the preprocessed cases."""
    shapes = cases.shapes
    if voxels["resampling_fn_data"] != NO_RESAMPLING:
        pairs = zip(cases.shapes, cases.spacings, strict=True)
        shapes = np.array([compute_new_shape(shape, spacing, voxels["spacing"]) for shape, spacing in pairs])
    return [float(edge) for edge in np.median(shapes, axis=0)]


def _size(
    checkpoint: Checkpoint,
    labelled: Labelled,
    cases: Geometry,
    wish: Wish,
    voxels: Mapping[str, Any],
) -> tuple[Size, list[str]]:
    """Network, patch and batch, and what to say about them."""
    if wish.mode == "dataset":
        network_for = partial(continued, checkpoint.architecture, voxels["spacing"])
        usual = reordered(labelled.configuration["patch_size"], min(cases.orders))
    else:
        network_for = partial(as_trained, checkpoint.architecture)
        usual = checkpoint.data["patch_size"]
    start = network_for(wish.patch or usual)
    if wish.patch is not None and start.patch != tuple(wish.patch):
        nearest = " ".join(map(str, start.patch))
        raise UserError(
            f"A patch of {sizes_in_words(wish.patch)} does not fit the strides that nnU-Net plans for it, "
            f'{sizes_in_words(start.divisors)}; the nearest that fits is --patch "{nearest}"'
        )
    if wish.gpu_memory is None:
        size = Size(start, DEFAULT_BATCH if wish.batch is None else wish.batch)
        return size, _mostly_padding(size.network, voxels["median_image_size_in_voxels"])
    fitting = Fitting(
        network_for=network_for,
        channels=len(labelled.channel_names),
        heads=labelled.heads,
        median_shape=voxels["median_image_size_in_voxels"],
        cases=labelled.cases,
        gigabytes=wish.gpu_memory,
    )
    size = fitting.size(start, wish.patch is not None, wish.batch)
    notes = _mostly_padding(size.network, voxels["median_image_size_in_voxels"])
    if size.network.patch == start.patch:
        return size, notes
    return size, [
        *notes,
        f"The patch was made smaller to fit {wish.gpu_memory:g} GB: {sizes_in_words(size.network.patch)} instead of "
        f"{sizes_in_words(start.patch)}",
    ]


def _mostly_padding(network: SizedNetwork, median_shape: Sequence[float]) -> list[str]:
    """Says so where patches are far larger than the scans."""
    sizes = zip(network.patch, median_shape, network.divisors, strict=True)
    enough = [min(edge, max(2, math.ceil(median / unit)) * unit) for edge, median, unit in sizes]
    if math.prod(network.patch) < 2 * math.prod(enough):
        return []
    scans = sizes_in_words([round(edge) for edge in median_shape])
    return [
        f"Patches of {sizes_in_words(network.patch)} voxels are mostly padding around this dataset's scans ({scans} in "
        f'the median once preprocessed): --patch "{" ".join(map(str, enough))}" holds them too and is faster'
    ]


def _plans(
    labelled: Labelled,
    plans_name: str,
    read: Reading,
    normal: Normalisation,
    voxels: Mapping[str, Any],
    size: Size,
) -> dict[str, Any]:
    """nnU-Net's own plans with one configuration: what is not about images stays as it is."""
    configuration = {
        **labelled.configuration,
        **voxels,
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": size.batch,
        "patch_size": list(size.network.patch),
        "normalization_schemes": normal.schemes,
        "use_mask_for_norm": normal.masks,
        "architecture": size.network.architecture,
    }
    plans = {
        **labelled.stock,
        "plans_name": plans_name,
        "image_reader_writer": read.reader,
        "transpose_forward": read.transpose_forward,
        "transpose_backward": read.transpose_backward,
        CT_INTENSITIES: {**labelled.stock[CT_INTENSITIES], **normal.carried_intensities},
        "configurations": {CONFIGURATION: configuration},
    }
    # CT's scheme scales by the intensities in the plans, whether the checkpoint's or the dataset's.
    clipped = [channel for channel, scheme in enumerate(normal.schemes) if scheme == CT_NORMALISATION]
    intensities = [json.dumps(plans[CT_INTENSITIES].get(str(channel)), sort_keys=True) for channel in clipped]
    configuration["data_identifier"] = data_identifier(plans, configuration, "cases", intensities)
    return plans


def _how_measured(gigabytes: float | None, size: Size) -> str:
    if gigabytes is None:
        return "unknown: nnU-Net's estimate does not know this network"
    return f"nnU-Net's own estimate for a patch of {sizes_in_words(size.network.patch)} and a batch of {size.batch}"
