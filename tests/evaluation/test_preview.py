"""The preview picture: what a person sees in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from nnssl_mae.evaluation.preview import PreviewCase, draw_preview


def error_panels(path: Path) -> np.ndarray:
    """Right quarter of the picture, RGB in [0, 1]."""
    picture = imread(path)[..., :3]
    return picture[:, picture.shape[1] * 3 // 4 :]


@pytest.mark.parametrize("some", [True, False])
def test_what_never_counts_is_grey_among_the_errors(tmp_path: Path, some: bool) -> None:
    volume = np.random.default_rng(0).normal(size=(16, 16, 16))
    hidden = np.ones(volume.shape, bool)
    excluded = np.zeros(volume.shape, bool)
    excluded[:, :, 8:] = some
    case = PreviewCase("sub-01", volume, np.zeros_like(volume), hidden, excluded=excluded)
    draw_preview([case], tmp_path / "x.png", "title")
    grey = np.all(np.abs(error_panels(tmp_path / "x.png") - 0.6) < 0.02, axis=-1).mean()
    assert grey > 0.1 if some else grey < 0.01
