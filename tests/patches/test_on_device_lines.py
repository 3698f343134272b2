from __future__ import annotations

import pytest
import torch

from nnssl_mae.patches.kspace import add_ghosts, cut_outer_lines
from nnssl_mae.patches.on_device_lines import (
    apply_along,
    blur_matrix,
    ghosting_matrix,
    low_resolution_matrix,
    ringing_matrix,
)

SIZES = [1, 7, 16, 21]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_image_gets_its_matrix_along_the_named_axis(axis: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 1, 3, 4, 5, generator=generator)
    size = images.shape[2 + axis]
    matrices = torch.randn(2, size, size, generator=generator)
    made = apply_along(images, matrices, axis)
    for image, matrix, result in zip(images[:, 0], matrices, made[:, 0], strict=True):
        expected = torch.tensordot(matrix, image.movedim(axis, 0), dims=1).movedim(0, axis)
        assert torch.allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_k_space_by_matrix_is_k_space_by_fourier_transform(size: int) -> None:
    volume = torch.randn(3, size, 2, generator=torch.Generator().manual_seed(0))
    for expected, matrix in (
        (add_ghosts(volume, 1, 0.8, 3), ghosting_matrix(size, 0.8, 3)),
        (cut_outer_lines(volume, 1, 0.7), ringing_matrix(size, 0.7)),
    ):
        made = apply_along(volume[None, None], matrix[None], 1)[0, 0]
        assert torch.allclose(made, expected, atol=1e-5)


@pytest.mark.parametrize("size", SIZES[1:])
def test_an_even_image_stays_as_it_is(size: int) -> None:
    for matrix in (
        blur_matrix(size, 1.0),
        ghosting_matrix(size, 0.5, 2),
        ringing_matrix(size, 0.5),
        low_resolution_matrix(size, 0.5),
    ):
        assert matrix.shape == (size, size)
        assert torch.allclose(matrix.sum(dim=1), torch.ones(size), atol=1e-5)


def test_numbers_without_effect_give_the_identity() -> None:
    for matrix in (
        blur_matrix(9, 1e-3),
        ghosting_matrix(9, 1.0, 2),
        ringing_matrix(9, 1.0),
        low_resolution_matrix(9, 1.0),
    ):
        assert torch.allclose(matrix, torch.eye(9), atol=1e-6)
