"""Small scans with real anatomy for tests: the ICBM template that nilearn ships, coarse, with varied contrast."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import nibabel
import numpy as np


@functools.cache
def template() -> tuple[np.ndarray, np.ndarray]:
    """T1 in [0, 1] and its affine, 4 mm voxels, about 50 x 59 x 48."""
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=4)
    data = np.asarray(image.dataobj, dtype=np.float32)
    return data / data.max(), image.affine


def tiny_scan(seed: int) -> tuple[nibabel.Nifti1Image, nibabel.Nifti1Image]:
    """An image and a label map (1 = dark tissue, 2 = bright tissue) with a contrast and shift of its own."""
    brain, affine = template()
    rng = np.random.default_rng(seed)
    inside = brain > 0.05
    labels = np.where(inside, 1 + (brain > 0.62), 0)
    shift = tuple(rng.integers(-2, 3, size=3))
    image = np.roll(
        np.where(inside, brain ** rng.uniform(0.6, 1.6) * 1000 + rng.normal(0, 20, brain.shape), 0),
        shift,
        (0, 1, 2),
    )
    labels = np.roll(labels, shift, (0, 1, 2))
    return (
        nibabel.Nifti1Image(image.astype(np.float32), affine),
        nibabel.Nifti1Image(labels.astype(np.uint8), affine),
    )


def write_unlabelled(folder: Path, count: int, first_seed: int = 0) -> Path:
    """Writes ``count`` scans in BIDS style below ``folder``."""
    for index in range(count):
        path = folder / f"sub-{index:02d}" / "anat" / f"sub-{index:02d}_T1w.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(tiny_scan(first_seed + index)[0], path)
    return folder


def write_labelled(raw: Path, number: int, name: str, count: int, channels: int = 1, tests: int = 1) -> Path:
    """Writes a labelled nnU-Net raw dataset with ``channels`` copies of different contrast."""
    folder = raw / f"Dataset{number:03d}_{name}"
    for split, seeds in (("Tr", range(100, 100 + count)), ("Ts", range(200, 200 + tests))):
        (folder / f"images{split}").mkdir(parents=True, exist_ok=True)
        (folder / f"labels{split}").mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            image, labels = tiny_scan(seed)
            for channel in range(channels):
                data = np.asarray(image.dataobj) ** (1 / (1 + channel))
                target = folder / f"images{split}" / f"case{seed}_{channel:04d}.nii.gz"
                nibabel.save(nibabel.Nifti1Image(data.astype(np.float32), image.affine), target)
            nibabel.save(labels, folder / f"labels{split}" / f"case{seed}.nii.gz")
    content = {
        "channel_names": {str(c): f"MRI{c}" for c in range(channels)},
        "labels": {"background": 0, "dark": 1, "bright": 2},
        "numTraining": count,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder
