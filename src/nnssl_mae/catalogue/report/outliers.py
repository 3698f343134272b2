"""Which accepted scans are unlike the others: in their numbers, or in their picture.

Scans are compared within a modality, and modalities of few scans with all. Numbers have a robust z-score: the distance
from the median, divided by a spread that is taken between the 10th and the 90th percentile, so that odd scans do not
hide themselves, and that is never smaller than a difference anyone would overlook.

Pictures are compared by correlation with the median picture, after removing what is smooth, so that anatomy counts and
not merely "bright in the middle". A head that lies the wrong way round is found by turning its picture over: if that
makes it much more alike, it was wrong.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas
from numpy.typing import NDArray

from nnssl_mae.catalogue.report.pictures import EDGE

LIMIT = 4.0
"""Robust z-score above which a scan is called an outlier."""
FEWEST = 8
"""Scans of a modality below which it is compared with all scans."""
TURNED_GAIN, SWAPPED_GAIN = 0.07, 0.14
"""By how much the correlation of a picture must rise when it is turned over, or its planes turned and swapped.

Measured on brains tilted by up to 15 degrees and scaled by up to 15 %: upright ones gain at most 0.06 and 0.11.
"""
_SMOOTH = 3.0  # points of 24: standard deviation of what is removed from a picture before it is compared
_MEDIAN_OF = 1000  # pictures; more would not move the median
_PORTION = 1000
_ALL = "all scans"

Pictures = NDArray[np.uint8]


@dataclass(frozen=True)
class Outlier:
    """An accepted scan that is unlike the others."""

    case: str
    reasons: tuple[str, ...]
    """Why, each a part of a sentence, the strongest first."""
    strength: float
    """The largest robust z-score; for pictures that are turned over, the gain on the same scale."""


@dataclass(frozen=True)
class Group:
    """Scans that are compared, as positions in the table: ``members`` with ``reference``."""

    label: str
    members: NDArray[np.intp]
    reference: NDArray[np.intp]


@dataclass(frozen=True)
class _Measure:
    name: str
    unit: str
    floor: float
    """Smallest spread, on the scale of comparison: the natural logarithm where ``ratio``."""
    ratio: bool
    values: Callable[[pandas.DataFrame], NDArray[np.float64]]


def _column(name: str) -> Callable[[pandas.DataFrame], NDArray[np.float64]]:
    return lambda rows: rows[name].to_numpy(np.float64)


def intensity_range(rows: pandas.DataFrame) -> NDArray[np.float64]:
    """(scans,) distance of the 1st and the 99th percentile, in the scan's own units."""
    return (rows["p99"] - rows["p01"]).to_numpy(np.float64)


def voxels(rows: pandas.DataFrame) -> NDArray[np.float64]:
    """(scans,) number of voxels; NaN where the size was not read."""
    count = rows[["size_x", "size_y", "size_z"]].to_numpy(np.float64).prod(axis=1)
    return np.where(count > 0, count, np.nan)


_MEASURES = (
    _Measure("intensity range (1st to 99th percentile)", "", 0.1, True, intensity_range),
    _Measure("share of voxels that are not zero", "", 0.05, False, _column("nonzero")),
    _Measure("smallest spacing", "mm", 0.1, True, _column("min_spacing")),
    _Measure("largest spacing", "mm", 0.1, True, _column("max_spacing")),
    _Measure("shortest edge of the field of view", "mm", 0.1, True, _column("min_fov")),
    _Measure("longest edge of the field of view", "mm", 0.1, True, _column("max_fov")),
    _Measure("number of voxels", "", 0.1, True, voxels),
)

_TURNS = {1: "upside down", 2: "mirrored", 3: "rotated by 180°"}
"""Places in :func:`_turned`."""


def find_outliers(rows: pandas.DataFrame, pictures: Pictures, known: NDArray[np.bool_], seed: int = 0) -> list[Outlier]:
    """Outliers among scans, the strongest first.

    Args:
        rows: the scans.
        pictures: (scans, 3, 24, 24) their pictures.
        known: (scans,) which of them have one.
        seed: chooses the pictures whose median is taken, where there are many.
    """
    reasons: dict[int, list[tuple[float, str]]] = defaultdict(list)
    for group in groups(rows):
        for measure in _MEASURES:
            for position, strength, reason in _unlike_numbers(rows, group, measure):
                reasons[position].append((strength, reason))
        for position, strength, reason in _unlike_pictures(group, pictures, known, seed):
            reasons[position].append((strength, reason))
    cases = rows["case"].to_numpy()
    found = []
    for position, entries in reasons.items():
        entries.sort(reverse=True)
        found.append(Outlier(str(cases[position]), tuple(reason for _, reason in entries), entries[0][0]))
    return sorted(found, key=lambda outlier: (-outlier.strength, outlier.case))


def groups(rows: pandas.DataFrame) -> list[Group]:
    """Which scans are compared with which; none if there are too few to compare."""
    everything = np.arange(len(rows))
    if len(rows) < FEWEST:
        return []
    modalities = rows["modality"].fillna("").astype(str).to_numpy()
    few: list[NDArray[np.intp]] = []
    found: list[Group] = []
    for modality in sorted(set(modalities)):
        members = np.flatnonzero(modalities == modality)
        if len(members) < FEWEST:
            few.append(members)
        else:
            found.append(Group(modality or "scans of unknown modality", members, members))
    return [*found, Group(_ALL, np.concatenate(few), everything)] if few else found


def median_picture(group: Group, pictures: Pictures, known: NDArray[np.bool_], seed: int = 0) -> Pictures | None:
    """(3, 24, 24) the median of the pictures a group is compared with; None where fewer than 8 have one."""
    there = group.reference[known[group.reference]]
    if len(there) < FEWEST:
        return None
    if len(there) > _MEDIAN_OF:
        there = np.sort(np.random.default_rng(seed).choice(there, _MEDIAN_OF, replace=False))
    return np.median(pictures[there], axis=0).astype(np.uint8)


def _unlike_numbers(rows: pandas.DataFrame, group: Group, measure: _Measure) -> Iterator[tuple[int, float, str]]:
    values = measure.values(rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.log(values) if measure.ratio else values
    scale = np.where(np.isfinite(scale), scale, np.nan)
    reference = scale[group.reference][np.isfinite(scale[group.reference])]
    if len(reference) < FEWEST:
        return
    low, middle, high = np.percentile(reference, (10, 50, 90))
    spread = max(measure.floor, (high - low) / 2.563)  # of a normal distribution, this is the standard deviation
    typical = np.exp(middle) if measure.ratio else middle
    for position in group.members:
        strength = abs(scale[position] - middle) / spread
        if strength > LIMIT:  # false for NaN
            shown = f"{measure.name} {_number(values[position], measure.unit)}"
            yield int(position), float(strength), f"{shown} (median of {group.label}: {_number(typical, measure.unit)})"


def _number(value: float, unit: str) -> str:
    shown = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{shown} {unit}".strip()


def _unlike_pictures(
    group: Group, pictures: Pictures, known: NDArray[np.bool_], seed: int
) -> Iterator[tuple[int, float, str]]:
    median = median_picture(group, pictures, known, seed)
    if median is None:
        return
    reference = group.reference[known[group.reference]]
    alike, turned, swapped = _likeness(pictures, reference, median)
    usual = _usual(alike)
    for index in np.flatnonzero(np.isin(reference, group.members)):
        as_is, best = float(alike[index]), int(turned[index].argmax())
        ways = (
            (float(turned[index, best]), TURNED_GAIN, _TURNS.get(best, "")),
            (float(swapped[index]), SWAPPED_GAIN, "with its planes turned or swapped"),
        )
        turn = next(((value, least, way) for value, least, way in ways if value - as_is > least), None)
        if turn is not None:
            value, least, way = turn
            text = f"picture resembles the median of {group.label} better {way}"
            numbers = f"(correlation {_hundredths(value)}, as it is {_hundredths(as_is)})"
            yield int(reference[index]), LIMIT * (value - as_is) / least, f"{text} {numbers}"
        if usual.strength(as_is) > LIMIT:
            numbers = f"(correlation {_hundredths(as_is)}, usually {_hundredths(usual.middle)})"
            yield int(reference[index]), usual.strength(as_is), f"picture unlike the median of {group.label} {numbers}"


def _hundredths(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # plus 0: never "-0.00"


@dataclass(frozen=True)
class _Usual:
    middle: float
    spread: float

    def strength(self, value: float) -> float:
        """How far below the usual a value is, in spreads."""
        return (self.middle - value) / self.spread


def _usual(alike: NDArray[np.float32]) -> _Usual:
    """The spread is that of the better half, or the median distance: odd scans have little influence on both."""
    middle, high = np.percentile(alike, (50, 90))
    distance = float(np.median(np.abs(alike - middle)))
    return _Usual(float(middle), max(0.04, float(high - middle) / 1.282, 1.483 * distance))


def _likeness(
    pictures: Pictures, places: NDArray[np.intp], median: Pictures
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Correlation of the pictures at some places with the median, mean of the planes.

    Returns:
        (n,) as it is; (n, 4) the better one, plane by plane, of as it is and turned over in one of the ways of
        ``_TURNS``; (n,) the best of each plane with any plane of the median, turned and mirrored in any way.
    """
    ways = np.stack([_comparable(way) for way in _turned(median)])  # (8, 3, points)
    as_is, turned, swapped = [], [], []
    for start in range(0, len(places), _PORTION):
        portion = _comparable(pictures[places[start : start + _PORTION]])
        every = np.einsum("npk,wqk->npqw", portion, ways, optimize=True)
        same = np.stack([every[:, plane, plane] for plane in range(every.shape[1])], axis=1)  # (n, 3, 8)
        as_is.append(same[..., 0].mean(axis=1))
        turned.append(np.maximum(same[..., :4], same[..., :1]).mean(axis=1))
        swapped.append(every.max(axis=(2, 3)).mean(axis=1))
    return np.concatenate(as_is), np.concatenate(turned), np.concatenate(swapped)


def _turned(median: Pictures) -> list[Pictures]:
    """The eight ways to lay down a square: as it is, upside down, mirrored, both; and these of the transposed one."""
    ways: list[Pictures] = []
    for way in (median, median.swapaxes(-1, -2)):
        ways += [way, way[..., ::-1, :], way[..., ::-1], way[..., ::-1, ::-1]]
    return ways


def _comparable(pictures: Pictures) -> NDArray[np.float32]:
    """(..., 3, 24, 24) to (..., 3, 576) without what is smooth, of mean 0 and length 1; zero where nothing is left."""
    grey = pictures.astype(np.float32)
    blur = _blur()
    flat = (grey - blur @ grey @ blur.T).reshape(*grey.shape[:-2], EDGE * EDGE)
    flat -= flat.mean(axis=-1, keepdims=True)
    length = np.linalg.norm(flat, axis=-1, keepdims=True)
    return np.where(length > EDGE, flat / np.maximum(length, 1), 0)  # less than 1 of 255 levels is nothing


def _blur() -> NDArray[np.float32]:
    """(24, 24) matrix that smooths a column of points; each row sums to 1, also at the border."""
    distance = np.subtract.outer(np.arange(EDGE), np.arange(EDGE))
    weight = np.exp(-0.5 * (distance / _SMOOTH) ** 2)
    return (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)
