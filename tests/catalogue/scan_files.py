"""Writes small scans in every format and every kind of damage, for the tests of the catalogue."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnssl_mae.catalogue.find import Scan

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def scan(path: Path, **more: str) -> Scan:
    return Scan(path, "case", "subject", **more)  # type: ignore[arg-type]


def brain(shape: tuple[int, int, int] = (20, 24, 18), seed: int = 0, largest: int = 1000) -> NDArray[np.int16]:
    """A ball of noisy tissue, brighter to the front, in air."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.8
    tissue = largest * (0.6 + 0.2 * axes[1]) + rng.normal(0, 0.05 * largest, shape)
    return np.where(inside, tissue, 0).clip(0, largest).astype(np.int16)


def oblique(spacing: tuple[float, float, float] = (3.0, 3.0, 4.0), turned: str = "LPI", angle: float = 0.2):
    """An affine whose axes point roughly to ``turned``, off the main axes by ``angle`` (radians)."""
    c, s = np.cos(angle), np.sin(angle)
    rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    columns = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    axes = np.zeros((3, 3))
    for column, letter in enumerate(turned):
        row, sign = columns[letter]
        axes[row, column] = sign
    affine = np.eye(4)
    affine[:3, :3] = rotation @ axes * spacing
    affine[:3, 3] = (10, -20, 30)
    return affine


def write_itk(path: Path, data: NDArray, affine: NDArray, compress: bool = True) -> Path:
    """Any format of SimpleITK from (X, Y, Z) voxels and an affine to RAS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose(2, 1, 0)))
    lps = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing([float(s) for s in spacing])
    image.SetDirection([float(v) for v in (lps[:3, :3] / spacing).ravel()])
    image.SetOrigin([float(v) for v in lps[:3, 3]])
    sitk.WriteImage(image, str(path), compress)
    return path


def write_nifti(path: Path, data: NDArray, affine: NDArray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, affine), path)
    return path


def write_dicom(
    folder: Path,
    data: NDArray,
    spacing: tuple[float, float, float] = (3.0, 3.0, 4.0),
    series: str = "1.2.826.0.1.3680043.2.1125.1",
    patient: str = "P1",
    description: str = "t1_mprage",
    image_type: str = "ORIGINAL\\PRIMARY\\M\\NORM",
    prefix: str = "IM",
    ending: str = ".dcm",
    first: int = 0,
    position: Callable[[int], tuple[float, float, float]] | None = None,
) -> Path:
    """A classic MR series, a file a slice, from (X, Y, Z) voxels whose axes point to L, P and S."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for z in range(data.shape[2]):
        image = sitk.GetImageFromArray(np.ascontiguousarray(data[:, :, z].T)[None].astype(np.int16))
        image.SetSpacing(spacing)
        tags = {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.4",
            "0008|0018": f"{series}.{first + z + 1}",
            "0008|0008": image_type,
            "0008|0060": "MR",
            "0008|103e": description,
            "0010|0010": "Secret^Name",
            "0010|0020": patient,
            "0018|0050": str(spacing[2]),
            "0020|000d": f"{series}.0.1",
            "0020|000e": series,
            "0020|0013": str(first + z + 1),
            "0020|0032": "\\".join(map(str, position(z) if position else (0, 0, z * spacing[2]))),
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        path = folder / f"{prefix}{first + z:04d}.dcm"
        writer.SetFileName(str(path))
        writer.Execute(image)
        if ending != ".dcm":
            path.rename(path.with_name(path.name.removesuffix(".dcm") + ending))
    return folder
