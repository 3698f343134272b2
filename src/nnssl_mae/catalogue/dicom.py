"""DICOM series: their files sorted into volumes by where the slices lie; pixels are left to SimpleITK."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnssl_mae.catalogue.dicom_tags import (
    BIG_ENDIAN,
    IMPLICIT,
    Slice,
    frame_positions,
    patient_hash,
    slices_of_series,
    study_hash,
)
from nnssl_mae.catalogue.header import Header, ScanProblem, check_claim, size_of_regular_file
from nnssl_mae.catalogue.itk import floats, grid_header, ras_affine, read_pixels, read_volume_header, reason, turned
from nnssl_mae.catalogue.quiet import quiet_process

_SAME_PLACE = 0.01  # mm
_LARGEST_SHEAR = 0.01  # shift of slices against each other, as a share of the depth of their stack
_UNEVEN = 1.25  # a missing slice makes 2; a spacing that changes is no spacing


def series_header(folder: Path, series: str) -> Header:
    """The header of one series in a folder.

    Raises:
        ScanProblem: its files do not form volumes.
    """
    slices = slices_of_series(folder, series)
    if not slices:
        raise ScanProblem("unreadable", "is not there any more")
    for one in slices:
        if not one.whole or not one.is_image:
            raise ScanProblem("truncated", f"has a file {one.path.name} that ends inside its header")
        size_of_regular_file(one.path)
    slices = _each_once(slices)
    first = slices[0]
    if first.number("samples", 1) > 1:
        raise ScanProblem("colour", "is a colour picture, with several numbers a voxel")
    if "MOSAIC" in first.tags.get("image_type", "").upper():
        raise ScanProblem("not_3d", "is stored as mosaics, many slices in one picture; convert it with dcm2niix")
    if len(slices) > 1 and any(one.number("frames", 1) > 1 for one in slices):
        raise ScanProblem("not_3d", "is stored as several files of many frames each; convert it with dcm2niix")
    if _has_frames(slices):
        header = read_volume_header(first.path, "dicom")
        _check_frames(first, header)
    else:
        header = _stacked(slices)
    return _with_meaning(header, first)


def read_series(header: Header, volumes: list[int], ras: bool) -> NDArray[np.float32]:
    """The mean of some volumes as (Z, Y, X), in RAS or as stored.

    Raises:
        ScanProblem: a file is damaged.
    """
    if len(header.files) == 1:
        return read_pixels(header, header.files[0], volumes, ras)
    depth = len(header.files) // header.volumes
    total = np.zeros(header.stored_shape[::-1], dtype=np.float64 if len(volumes) > 1 else np.float32)
    for volume in volumes:
        total += _read_files(header.files[volume * depth : (volume + 1) * depth], header)
    return turned((total / len(volumes)).astype(np.float32, copy=False), header, ras)


def _read_files(files: Sequence[Path], header: Header) -> NDArray[np.float32]:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    reader.SetImageIO("GDCMImageIO")
    reader.SetOutputPixelType(sitk.sitkFloat32)  # else the scaling of the first slice decides about the type of all
    with quiet_process():
        try:
            volume = floats(reader.Execute())
        except Exception as error:  # SimpleITK raises RuntimeError with the C++ text
            raise ScanProblem("truncated", f"has slices that cannot be read to their end ({reason(error)})") from error
    return volume.reshape(header.stored_shape[::-1])


def _each_once(slices: Sequence[Slice]) -> tuple[Slice, ...]:
    """Without copies of a file under another name. Some programs give all slices the same UID: it does not suffice."""
    tags = ("uid", "instance", "position", "image_type")
    seen = {tuple(one.tags.get(tag, str(one.path)) for tag in tags): one for one in reversed(slices)}
    return tuple(sorted(seen.values(), key=lambda one: one.path))


def _check_frames(one: Slice, header: Header) -> None:
    """Frames are stacked in the order of the file, so they must lie one behind the other as the header has it.

    Raises:
        ScanProblem: they do not, or form several volumes.
    """
    positions = np.array(frame_positions(one.path))
    if len(positions) < 2 or len(positions) != one.number("frames", 1):
        return  # the file does not say it of each frame
    steps = np.diff(positions, axis=0) * (-1, -1, 1)  # to RAS
    if not np.allclose(steps, header.affine[:3, 2], atol=0.1 * header.stored_spacing[2]):
        raise ScanProblem("not_3d", "has frames that are no stack of slices in order; convert it with dcm2niix")


def _has_frames(slices: Sequence[Slice]) -> bool:
    return len(slices) == 1 and slices[0].number("frames", 1) > 1


def _with_meaning(header: Header, first: Slice) -> Header:
    return Header(
        **{
            **{name: getattr(header, name) for name in header.__dataclass_fields__},
            "modality": first.tags.get("modality", ""),
            "description": first.tags.get("description", ""),
            "image_type": tuple(part.strip().upper() for part in first.tags.get("image_type", "").split("\\")),
            "patient": patient_hash(first),
            "study": study_hash(first),
        }
    )


def _stacked(slices: Sequence[Slice]) -> Header:
    """Sorts slices along their normal; several at each place are several volumes."""
    rows, columns = slices[0].number("rows", 0), slices[0].number("columns", 0)
    if any((one.number("rows", 0), one.number("columns", 0)) != (rows, columns) for one in slices):
        raise ScanProblem("not_3d", "has slices of several sizes")
    across, down, normal = _directions(slices)
    places = _places(slices, normal)
    ordered = sorted(range(len(slices)), key=lambda n: (places[n], slices[n].number("instance", 0), slices[n].path))
    _check_stack(slices, places, normal)
    levels = _levels(places)
    volumes, rest = divmod(len(slices), len(levels))
    if rest:
        raise ScanProblem("truncated", f"has {len(slices)} files for {len(levels)} places, so that some are missing")
    gap = _gap(levels, slices[0])
    # files[volume][place]: within a place, the order of the instance numbers is that of the volumes
    files = tuple(slices[ordered[place * volumes + n]].path for n in range(volumes) for place in range(len(levels)))
    in_plane = slices[0].numbers("spacing")
    if len(in_plane) != 2:
        raise ScanProblem("spacing", "does not say its voxel size")
    spacing = (in_plane[1], in_plane[0], gap)
    first = slices[ordered[0]]
    origin = first.numbers("position")
    if len({one.numbers("spacing") for one in slices}) > 1:
        raise ScanProblem("spacing", "has slices of several voxel sizes")
    affine = ras_affine(np.stack([across, down, normal], axis=1), spacing, origin if len(origin) == 3 else (0, 0, 0))
    bits = 8 if first.number("bits", 16) <= 8 else 16 if first.number("bits", 16) <= 16 else 32
    dtype = f"{'int' if first.number('signed', 0) else 'uint'}{bits}"
    header = grid_header("dicom", (columns, rows, len(levels)), spacing, affine, dtype, volumes, files)
    there = sum(one.bytes for one in slices)
    check_claim(columns * rows * len(levels), header.stored_bytes, there, compressed=_is_compressed(first))
    return header


def _is_compressed(one: Slice) -> bool:
    return one.tags.get("syntax", "") not in ("", IMPLICIT, BIG_ENDIAN, "1.2.840.10008.1.2.1")


def _directions(slices: Sequence[Slice]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    directions = np.array([_direction(one) for one in slices])
    if not np.allclose(directions, directions[0], atol=1e-3):
        raise ScanProblem("not_3d", "has slices that lie in several directions, as those of a localiser do")
    across, down = directions[0][:3], directions[0][3:]
    normal = np.cross(across, down)
    if not np.isfinite(normal).all() or abs(np.linalg.norm(normal) - 1) > 1e-2:
        raise ScanProblem("spacing", "has slices whose rows and columns are not at right angles")
    return across, down, normal


def _direction(one: Slice) -> tuple[float, ...]:
    numbers = one.numbers("direction")
    if len(numbers) != 6:
        raise ScanProblem("unreadable", "does not say how its slices lie, so that left and right are not known")
    return numbers


def _check_stack(slices: Sequence[Slice], places: NDArray[np.float64], normal: NDArray[np.float64]) -> None:
    """Slices must lie straight behind each other; those of a tilted gantry (CT) are shifted against each other."""
    positions = [one.numbers("position") for one in slices]
    edges = slices[0].numbers("spacing")
    if any(len(position) != 3 for position in positions) or len(edges) != 2:
        return
    beside = np.array(positions) - np.outer(places, normal)
    shift, depth = float(np.ptp(beside, axis=0).max()), float(np.ptp(places))
    if shift > max(edges) and shift > _LARGEST_SHEAR * depth:
        raise ScanProblem(
            "spacing",
            f"has slices that are shifted by {shift:.3g} mm against each other, as with a tilted gantry; convert it "
            "with dcm2niix, which corrects that",
        )


def _levels(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """The different places, ascending; digits that were lost in writing make no difference."""
    ordered = np.sort(places)
    return ordered[np.diff(ordered, prepend=-np.inf) > _SAME_PLACE]


def _places(slices: Sequence[Slice], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where each slice lies along the normal, mm; by their number where they do not say."""
    positions = [one.numbers("position") for one in slices]
    if all(len(position) == 3 for position in positions):
        places = np.array(positions) @ normal
        if np.isfinite(places).all():
            return np.asarray(places)
    return np.array([float(one.number("instance", n)) * _said_gap(one) for n, one in enumerate(slices)])


def _said_gap(one: Slice) -> float:
    said = [numbers[0] for tag in ("gap", "thickness") if (numbers := one.numbers(tag)) and numbers[0] > 0]
    return said[0] if said else 1.0


def _gap(levels: NDArray[np.float64], first: Slice) -> float:
    if len(levels) < 2:
        return _said_gap(first)
    gaps = np.diff(levels)
    if gaps.max() > _UNEVEN * np.median(gaps) or gaps.min() * _UNEVEN < np.median(gaps):
        raise ScanProblem(
            "truncated", f"has gaps of {gaps.min():.3g} to {gaps.max():.3g} mm between slices, so that some are missing"
        )
    return float((levels[-1] - levels[0]) / (len(levels) - 1))
