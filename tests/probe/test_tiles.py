"""Patches cover a volume, and each voxel has one that answers for it."""

from __future__ import annotations

import pytest

from nnssl_mae.probe.tiles import corners, inside, owners


@pytest.mark.parametrize("shape", [(20, 31, 16), (16, 16, 16), (9, 40, 16)])
def test_every_voxel_is_answered_for_by_a_patch_that_holds_it(shape: tuple[int, int, int]) -> None:
    patch = (16, 16, 16)
    places = corners(shape, patch, 99)
    owner = owners(shape, patch, places)
    assert owner.min() >= 0
    for number, corner in enumerate(places):
        of_volume, of_patch = inside(shape, patch, corner)
        assert owner[of_volume].shape == tuple(part.stop - part.start for part in of_patch)
        outside = owner == number
        outside[of_volume] = False
        assert not outside.any()


def test_the_first_patches_are_those_at_the_centre() -> None:
    places = corners((48, 16, 16), (16, 16, 16), 2)
    assert places[0] == (16, 0, 0)
    assert owners((48, 16, 16), (16, 16, 16), places)[-1].max() in (-1, 1)
    assert len(places) == 2


def test_a_small_volume_is_centred() -> None:
    assert corners((10, 16, 20), (16, 16, 20), 5) == [(-3, 0, 0)]
