"""How each channel of a dataset is normalised: as in pre-training, or as nnU-Net does for the dataset."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnssl_mae.checkpoints.describe import CT_INTENSITIES, CT_NORMALISATION, Checkpoint
from nnssl_mae.checkpoints.fitting import check_channel_map
from nnssl_mae.downstream.labelled import Labelled
from nnssl_mae.downstream.wish import Wish
from nnssl_mae.errors import UserError

_RGB_NORMALISATION = "RGBTo01Normalization"
_NEEDED_FOR_CT = {"mean", "std", "percentile_00_5", "percentile_99_5"}


@dataclass(frozen=True)
class Way:
    """How one channel is normalised."""

    scheme: str
    """nnU-Net's name."""
    inside_mask: bool
    """Whether it looks at non-zero voxels only."""
    intensities: tuple[tuple[str, float], ...] = ()
    """Of the checkpoint's own training data where the scheme scales by them, as CT's does; empty: the dataset's."""

    def __str__(self) -> str:
        return f"{self.scheme} inside the non-zero mask" if self.inside_mask else self.scheme


@dataclass(frozen=True)
class Normalisation:
    """One way a channel, and what to warn about."""

    ways: tuple[Way, ...]
    warnings: tuple[str, ...] = ()

    @property
    def schemes(self) -> list[str]:
        """As nnU-Net's plans have them."""
        return [way.scheme for way in self.ways]

    @property
    def masks(self) -> list[bool]:
        """As nnU-Net's plans have them."""
        return [way.inside_mask for way in self.ways]

    @property
    def carried_intensities(self) -> dict[str, dict[str, float]]:
        """By channel, as nnU-Net's plans have them; those of the checkpoint only."""
        return {str(channel): dict(way.intensities) for channel, way in enumerate(self.ways) if way.intensities}


def normalisation(checkpoint: Checkpoint, labelled: Labelled, wish: Wish) -> Normalisation:
    """One way for each channel of the dataset.

    That of the checkpoint is the only one it has, or goes by the channel map, or channel by channel where the numbers
    agree; channels that start at zero get the dataset's own. CT's scheme clips and scales by the checkpoint's numbers.

    Raises:
        UserError: an impossible channel map, channels of the checkpoint that differ and cannot be told apart, or CT's
            scheme for what is not CT.
    """
    own = _own_ways(labelled)
    if wish.channel_map is not None:
        check_channel_map(wish.channel_map, checkpoint.channels, len(own))
    if not checkpoint.is_preprocessing_known:
        return Normalisation(own)
    if wish.normalisation == "dataset":
        return Normalisation(own, _other_than_trained(own, checkpoint, labelled))
    pretrained = _pretrained_ways(checkpoint)
    ways = _carried(pretrained, own, wish.channel_map)
    return Normalisation(ways, _unfitting(ways, own, labelled))


def _own_ways(labelled: Labelled) -> tuple[Way, ...]:
    configuration = labelled.configuration
    schemes, masks = configuration["normalization_schemes"], configuration["use_mask_for_norm"]
    return tuple(Way(str(scheme), bool(inside)) for scheme, inside in zip(schemes, masks, strict=True))


def _pretrained_ways(checkpoint: Checkpoint) -> list[Way]:
    schemes, masks = checkpoint.data["normalization_schemes"], checkpoint.data["use_mask_for_norm"]
    channels = 1 if len(schemes) == len(masks) == 1 else checkpoint.channels
    pairs = zip(_for_each(schemes, channels), _for_each(masks, channels), strict=True)
    return [
        Way(scheme, bool(inside), _intensities(checkpoint.plans, channel) if scheme == CT_NORMALISATION else ())
        for channel, (scheme, inside) in enumerate(pairs)
    ]


def _for_each(values: Sequence[Any], channels: int) -> list[Any]:
    """A value a channel, where one may stand for all."""
    if len(values) not in (1, channels):
        raise UserError(
            f"The checkpoint's plan has {len(values)} values of normalisation for {channels} channels; it is damaged, "
            "use --normalisation dataset"
        )
    return list(values) * channels if len(values) == 1 else list(values)


def _intensities(plans: Mapping[str, Any], channel: int) -> tuple[tuple[str, float], ...]:
    known = plans.get(CT_INTENSITIES)
    values = known.get(str(channel)) if isinstance(known, Mapping) else None
    values = values if isinstance(values, Mapping) else {}
    numbers = {str(name): float(value) for name, value in values.items() if isinstance(value, int | float)}
    if not numbers.keys() >= _NEEDED_FOR_CT or not _can_scale(numbers):
        raise UserError(
            "The checkpoint was trained on CT and does not hold all intensities that its normalisation scales by, or "
            "impossible ones; use --normalisation dataset"
        )
    return tuple(sorted(numbers.items()))


def _can_scale(numbers: Mapping[str, float]) -> bool:
    """Whether CT's scheme gives numbers with these."""
    in_order = numbers["percentile_00_5"] < numbers["percentile_99_5"]
    return all(map(math.isfinite, numbers.values())) and numbers["std"] > 0 and in_order


def _carried(
    pretrained: Sequence[Way], own: Sequence[Way], channel_map: Sequence[int | None] | None
) -> tuple[Way, ...]:
    only = pretrained[0] if len(set(pretrained)) == 1 else None
    if channel_map is not None:
        return tuple(
            own[channel] if source is None else only or pretrained[source] for channel, source in enumerate(channel_map)
        )
    if only is not None:
        return (only,) * len(own)
    if len(pretrained) == len(own):
        return tuple(pretrained)
    raise UserError(
        f"The checkpoint's {len(pretrained)} channels were normalised in different ways "
        f"({', '.join(map(str, pretrained))}) and the dataset has {len(own)} channels; say with --channel-map which "
        "continues which, or take --normalisation dataset"
    )


def _unfitting(ways: Sequence[Way], own: Sequence[Way], labelled: Labelled) -> tuple[str, ...]:
    """Warns of channels whose carried scheme is made for other images.

    Raises:
        UserError: CT's scheme, which would clip intensities that are no Hounsfield units.
    """
    found, others = [], []
    for name, way, usual in zip(labelled.channel_names, ways, own, strict=True):
        if _is_ct(name, usual) and way.scheme != CT_NORMALISATION:
            rename = "" if usual.scheme == CT_NORMALISATION else ", once the channel is called CT in dataset.json"
            found.append(
                f"The dataset is CT (channel {name}); like the checkpoint it will be normalised with {way.scheme}, not "
                f"with nnU-Net's CT scheme, which --normalisation dataset takes{rename}"
            )
        elif way.scheme == CT_NORMALISATION and not _is_ct(name, usual):
            raise UserError(
                f"The checkpoint was trained on CT and clips at Hounsfield units, which makes no sense for channel "
                f"{name} of {labelled.name}; use --normalisation dataset, or call the channel CT in dataset.json and "
                "plan again if it is CT"
            )
        elif way.scheme == _RGB_NORMALISATION != usual.scheme:
            found.append(
                f"Channel {name} will be normalised as colours from 0 to 255 are, like the checkpoint's; if its values "
                f"go further, use --normalisation dataset, which takes {usual.scheme}"
            )
        elif way.scheme != usual.scheme:
            others.append(f"{name} with {way.scheme} and not with {usual.scheme}")
    if others:
        found.append(
            f"Normalised like the checkpoint's scans, not as nnU-Net plans for this dataset: {', '.join(others)}; "
            "--normalisation dataset takes nnU-Net's own"
        )
    return tuple(found)


def _other_than_trained(own: Sequence[Way], checkpoint: Checkpoint, labelled: Labelled) -> tuple[str, ...]:
    schemes, masks = checkpoint.data["normalization_schemes"], checkpoint.data["use_mask_for_norm"]
    known = [(str(scheme), bool(inside)) for scheme in schemes for inside in masks]
    others = [
        f"{name} with {way}"
        for name, way in zip(labelled.channel_names, own, strict=True)
        if (way.scheme, way.inside_mask) not in known
    ]
    if not others:
        return ()
    trained = ", ".join(dict.fromkeys(str(Way(*way)) for way in known))
    return (
        f"The dataset's own normalisation ({', '.join(others)}) differs from that of pre-training ({trained}): what "
        "the first layers learnt about intensities holds less",
    )


def _is_ct(name: str, usual: Way) -> bool:
    """Whether a channel is CT by nnU-Net's choice of scheme, or by a word of its name."""
    return usual.scheme == CT_NORMALISATION or "ct" in re.split(r"[^a-z]+", name.casefold())
