"""Catalogues with pictures for tests of the report: variations of the ICBM template, and things that are no brain."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas
import pyarrow
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet
from scipy import ndimage

from nnssl_mae.catalogue.table import Catalogue, ScanRow, write_catalogue
from tests.tiny_scans import template

Volume = NDArray[np.float64]
EDGE = 96


def row(case: str, **values) -> ScanRow:
    """An accepted T1w scan of 1 mm."""
    usual = {
        "path": f"/scans/{case}.nii.gz",
        "series": "",
        "frame": "",
        "dataset": "study",
        "subject": case.split("_")[0],
        "subject_from": "bids",
        "session": "",
        "modality": "T1w",
        "format": "nifti",
        **dict.fromkeys(("size_x", "size_y", "size_z"), 192),
        **dict.fromkeys(("spacing_x", "spacing_y", "spacing_z", "min_spacing", "max_spacing"), 1.0),
        **dict.fromkeys(("min_fov", "max_fov"), 192.0),
        "orientation": "RAS",
        "p01": 0.0,
        "p50": 20.0,
        "p99": 900.0,
        "nonzero": 0.3,
    }
    return ScanRow(case=case, **{**usual, **values})


def write(folder: Path, rows: Iterable[ScanRow], pictures: Mapping[str, bytes] | None = None, **settings) -> Path:
    """Writes a catalogue, and its thumbnails where given."""
    folder.mkdir(exist_ok=True)
    table = pandas.DataFrame([vars(one) for one in rows])
    write_catalogue(folder, Catalogue(table.sort_values("case", ignore_index=True), settings))
    if pictures is not None:
        write_pictures(folder, list(pictures), list(pictures.values()))
    return folder


def write_pictures(folder: Path, cases: Sequence[str], pngs: Sequence[bytes]) -> None:
    content = {"case": pyarrow.array(cases, pyarrow.string()), "png": pyarrow.array(pngs, pyarrow.binary())}
    parquet.write_table(pyarrow.table(content), folder / "thumbnails.parquet", compression="none")


def head(seed: int) -> Volume:
    """A brain of its own contrast, tilt, size and place, with noise; axes x, y, z of RAS."""
    rng = np.random.default_rng(seed)
    brain = template()[0].astype(np.float64)
    brain = np.where(brain > 0.05, brain ** rng.uniform(0.6, 1.6), 0)
    for axes, degrees in (((1, 2), 12), ((0, 2), 6)):
        brain = ndimage.rotate(brain, rng.uniform(-degrees, degrees), axes=axes, reshape=False, order=1)
    brain = ndimage.zoom(brain, rng.uniform(0.9, 1.1), order=1)
    brain = np.pad(brain, [tuple(pair) for pair in rng.integers(0, 6, (3, 2))])
    return brain + np.abs(rng.normal(0, 0.03, brain.shape))


def noise(seed: int) -> Volume:
    return np.random.default_rng(seed).random((48, 56, 48))


def sphere() -> Volume:
    distance = np.linalg.norm(np.indices((48, 48, 48)) - 24, axis=0)
    return (distance < 16).astype(np.float64)


def png_of(volume: Volume) -> bytes:
    """Axial, coronal and sagittal plane through the middle, 96 x 96 pixels each, side by side."""
    x, y, z = (length // 2 for length in volume.shape)
    scale = EDGE / max(volume.shape)
    whole = Image.new("L", (3 * EDGE, EDGE))
    for place, plane in enumerate((volume[:, :, z], volume[:, y, :], volume[x, :, :])):
        grey = np.clip(plane.T[::-1] / max(np.percentile(volume, 99.5), 1e-9) * 255, 0, 255).astype(np.uint8)
        size = tuple(max(1, round(length * scale)) for length in plane.shape)
        small = Image.fromarray(grey).resize(size)
        whole.paste(small, (place * EDGE + (EDGE - small.width) // 2, (EDGE - small.height) // 2))
    stream = io.BytesIO()
    whole.save(stream, format="PNG")
    return stream.getvalue()
