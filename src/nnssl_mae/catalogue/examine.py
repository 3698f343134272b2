"""One scan read once: its header's facts, its voxels' statistics, hashes and a small picture."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnssl_mae.catalogue.find import Scan
from nnssl_mae.catalogue.header import why
from nnssl_mae.catalogue.read import Header, ScanProblem, read_header, read_voxels

_SAMPLE = 500_000  # voxels for percentiles: their error is far below what a person or a check sees
_WIDEST_COUNT = 1 << 16  # whole numbers in a wider range are counted in the sample
_FLAT_UP_TO = 512  # distinct values; label maps have fewer
_PIXELS = 96
_LEVELS = 64  # grey levels of pictures: a third smaller than with 256, and no eye sees it
_LARGEST_SHIFT = 0.1  # voxels; affines that were written by different programs differ in the last digits


@dataclass(frozen=True)
class Examined:
    """New values of columns of a row, and the picture as PNG."""

    columns: dict[str, Any]
    picture: bytes = b""


def examine_header(scan: Scan) -> Examined:
    """The columns that the header tells; ``check`` and ``detail`` if the scan is damaged."""
    try:
        return Examined(_header_columns(read_header(scan)))
    except ScanProblem as problem:
        return Examined({"check": problem.check, "detail": problem.detail})


def examine_voxels(scan: Scan) -> Examined:
    """The columns that the voxels tell, hashes and a picture; ``check`` and ``detail`` if the scan is damaged."""
    try:
        header = read_header(scan)
        voxels, spacing = read_voxels(scan, "RAS")
        columns = _statistics(voxels[0])
        columns["voxel_hash"] = voxel_hash(voxels, spacing)
        columns["source_hash"] = source_hash(header, scan.exclude)
        if scan.exclude is not None:
            _check_mask(scan, header, voxels)
        return Examined(columns, picture(voxels[0], spacing, columns["p01"], columns["p99"]))
    except ScanProblem as problem:
        return Examined({"check": problem.check, "detail": problem.detail})


def voxel_hash(voxels: NDArray[np.float32], spacing: Iterable[float]) -> str:
    """Equal for equal images, whatever the format and orientation of their files.

    Args:
        voxels: (1, Z, Y, X) in RAS order.
        spacing: (z, y, x) in mm; rounded to thousandths of float32, because formats keep different digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((voxels.shape, [round(float(np.float32(edge)), 3) for edge in spacing])).encode())
    for volume in voxels:
        for plane in volume:
            digest.update(np.ascontiguousarray(plane + np.float32(0), dtype="<f4").data)  # -0 becomes 0
    return digest.hexdigest()


def source_hash(header: Header, exclude: Path | None) -> str:
    """SHA-256 of the bytes of all files of a scan in fixed order, and of its exclusion mask.

    Raises:
        ScanProblem: a file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for path in (*sorted(header.files), *([exclude] if exclude else [])):
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
            digest.update(b"\0end of file\0")
    except OSError as error:
        raise ScanProblem("unreadable", f"cannot be read ({why(error)})") from error
    return digest.hexdigest()


def picture(
    volume: NDArray[np.float32], spacing: tuple[float, float, float], darkest: float, brightest: float
) -> bytes:
    """A PNG of three planes through the middle side by side (axial, coronal, sagittal), each in a square of 96 pixels.

    Up is up, in the axial plane the front; right is right, in the sagittal plane the front. All three have the same
    scale.

    Args:
        volume: (Z, Y, X) in RAS order.
        spacing: (z, y, x) in mm.
        darkest, brightest: values shown as black and white.
    """
    z, y, x = (size // 2 for size in volume.shape)
    edges = [size * edge for size, edge in zip(volume.shape, spacing, strict=True)]
    scale = _PIXELS / max(edges)
    planes = ((volume[z], 1, 2), (volume[:, y], 0, 2), (volume[:, :, x], 0, 1))
    canvas = Image.new("L", (3 * _PIXELS, _PIXELS))
    for place, (plane, up, right) in enumerate(planes):
        grey = (plane[::-1] - darkest) / max(brightest - darkest, 1e-30)
        levels = (np.clip(np.nan_to_num(grey), 0, 1) * (_LEVELS - 1)).astype(np.uint8) * (256 // _LEVELS)
        size = (max(1, round(edges[right] * scale)), max(1, round(edges[up] * scale)))
        shown = Image.fromarray(levels).resize(
            size, Image.Resampling.BOX if min(size) < 96 else Image.Resampling.BILINEAR
        )
        canvas.paste(shown, (place * _PIXELS + (_PIXELS - size[0]) // 2, (_PIXELS - size[1]) // 2))
    stream = io.BytesIO()
    canvas.save(stream, format="PNG")
    return stream.getvalue()


def _header_columns(header: Header) -> dict[str, Any]:
    shape, spacing = header.shape, header.spacing
    fov = [size * edge for size, edge in zip(shape, spacing, strict=True)]
    columns: dict[str, Any] = {
        "format": header.format,
        "orientation": header.orientation,
        "dtype": header.dtype,
        "volumes": header.volumes,
        "image_type": "\\".join(header.image_type),
        "min_spacing": min(spacing),
        "max_spacing": max(spacing),
        "min_fov": min(fov),
        "max_fov": max(fov),
    }
    for axis, size, edge in zip("xyz", shape, spacing, strict=True):
        columns |= {f"size_{axis}": size, f"spacing_{axis}": edge}
    return columns


def _statistics(volume: NDArray[np.float32]) -> dict[str, Any]:
    """Of (Z, Y, X).

    Raises:
        ScanProblem: NaN or infinity.
    """
    mean = volume.mean(dtype=np.float64)
    if not np.isfinite(mean):
        count = int(volume.size - np.isfinite(volume).sum())
        raise ScanProblem("not_finite", f"has {count} of {volume.size} voxels that are NaN or infinite")
    step = max(1, volume.size // _SAMPLE)
    sample = np.sort(volume.reshape(-1)[::step])
    p01, p50, p99 = (float(sample[min(len(sample) - 1, int(share * len(sample)))]) for share in (0.01, 0.5, 0.99))
    low, high = float(volume.min()), float(volume.max())
    whole = all(bool((plane == np.floor(plane)).all()) for plane in volume)
    counts = _counts(volume, low, high) if whole else None
    distinct = int((counts > 0).sum()) if counts is not None else int((np.diff(sample) > 0).sum()) + 1
    columns: dict[str, Any] = {"minimum": low, "maximum": high, "mean": float(mean), "p01": p01, "p50": p50, "p99": p99}
    columns["std"] = float(np.sqrt(np.mean([((p - mean) ** 2).mean(dtype=np.float64) for p in volume])))
    columns["nonzero"] = float(np.count_nonzero(volume) / volume.size)
    columns |= {"distinct": distinct, "whole_numbers": whole}
    if counts is not None and distinct <= _FLAT_UP_TO:
        columns["flat"] = flatness(volume, background=low + float(counts.argmax()))
    return columns


def _counts(volume: NDArray[np.float32], low: float, high: float) -> NDArray[np.int64] | None:
    """How often each whole number occurs, from the lowest; None if the range is too wide."""
    if high - low >= _WIDEST_COUNT:
        return None
    counts = np.zeros(int(high - low) + 1, dtype=np.int64)
    for plane in volume:
        counts += np.bincount((plane - low).astype(np.int64).ravel(), minlength=len(counts))
    return counts


def flatness(volume: NDArray[np.float32], background: float) -> float:
    """Share of equal values among neighbours along the three axes; pairs within the background do not count."""
    equal = pairs = 0
    inside = volume != background
    for axis in range(3):
        first = tuple(slice(None, -1) if n == axis else slice(None) for n in range(3))
        second = tuple(slice(1, None) if n == axis else slice(None) for n in range(3))
        seen = inside[first] | inside[second]
        pairs += int(np.count_nonzero(seen))
        equal += int(np.count_nonzero((volume[first] == volume[second]) & seen))
    return equal / pairs if pairs else 1.0


def _check_mask(scan: Scan, header: Header, voxels: NDArray[np.float32]) -> None:
    assert scan.exclude is not None
    name, mask = scan.exclude.name, Scan(scan.exclude, scan.case, scan.subject)
    try:
        there = read_header(mask)
        excluded, _ = read_voxels(mask, "RAS")
    except ScanProblem as problem:
        raise ScanProblem("exclusion_mask", f"has an exclusion mask {name} that {problem.detail}") from problem
    if there.stored_shape != header.stored_shape:
        raise ScanProblem(
            "exclusion_mask",
            f"has an exclusion mask {name} of shape {there.stored_shape}; the scan's is {header.stored_shape}",
        )
    shift = _shift_in_voxels(header, there)
    if not shift <= _LARGEST_SHIFT:
        raise ScanProblem(
            "exclusion_mask",
            f"has an exclusion mask {name} whose affine moves it by {shift:.3g} voxels; write it on the scan's grid",
        )
    if excluded[voxels != 0].all():
        raise ScanProblem("exclusion_mask", f"is excluded as a whole: its mask {name} is not zero anywhere in tissue")


def _shift_in_voxels(scan: Header, mask: Header) -> float:
    """The largest distance between where the two affines put a corner, in voxels of the scan."""
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=np.float64)
    corners[:, :3] *= np.array(scan.stored_shape) - 1
    distances = np.linalg.norm((corners @ (scan.affine - mask.affine).T)[:, :3], axis=1)
    return float(distances.max() / min(scan.spacing))
