"""Which labels or regions of a dataset are evaluated, as nnU-Net does, from its ``dataset.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl_mae.errors import UserError

_BACKGROUND = 0


@dataclass(frozen=True)
class DatasetLabels:
    """What is evaluated."""

    values: dict[str, tuple[int, ...]]
    """The values that make up each label, more than one for a region; without background and ``ignore``."""
    ignore: int | None

    def means_the_same_as(self, other: DatasetLabels) -> bool:
        """Whether label maps of both can be compared.

        Names may differ, what they stand for may not: a name that both have must have the same values in both.
        """
        mine, theirs = self._sets(), other._sets()
        if any(mine[name] != theirs[name] for name in mine.keys() & theirs.keys()):
            return False
        return (
            sorted(map(sorted, mine.values())) == sorted(map(sorted, theirs.values())) and self.ignore == other.ignore
        )

    def equals(self, other: DatasetLabels) -> bool:
        """Whether names, values and the ignore label are the same; the order does not matter."""
        return self._sets() == other._sets() and self.ignore == other.ignore

    def _sets(self) -> dict[str, set[int]]:
        return {name: set(values) for name, values in self.values.items()}


def labels_of(dataset_json: Mapping[str, Any], path: Path) -> DatasetLabels:
    """The labels in the order of ``dataset.json``; ``path`` is where that was read.

    Raises:
        UserError: there are no labels but the background, or they are no whole numbers.
    """
    try:
        named = {name: _numbers(value) for name, value in _by_name(dataset_json["labels"]).items()}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} has no usable 'labels' ({error!r}); write them as nnU-Net's docs say") from error
    ignore = named.pop("ignore", None)
    values = {name: numbers for name, numbers in named.items() if set(numbers) - {_BACKGROUND}}
    if not values:
        raise UserError(f"{path} names no label but the background; there is nothing to compare")
    return DatasetLabels(values, ignore[0] if ignore else None)


def _by_name(labels: Mapping[str, Any]) -> dict[str, Any]:
    """nnU-Net 1 and the Medical Segmentation Decathlon write ``{"1": "tumour"}``, nnU-Net 2 ``{"tumour": 1}``."""
    if labels and all(
        str(key).isdigit() and isinstance(value, str) and not value.isdigit() for key, value in labels.items()
    ):
        return {value: int(key) for key, value in labels.items()}
    return dict(labels)


def _numbers(value: Any) -> tuple[int, ...]:
    return tuple(int(number) for number in value) if isinstance(value, (list, tuple)) else (int(value),)
