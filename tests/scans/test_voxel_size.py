"""What ``prepare`` says of the size of voxels: in the axes of ``--spacing``, with a hint where it is far too fine."""

from __future__ import annotations

import math

import pandas
import pytest

from nnssl_mae.plans import CONFIGURATION
from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.recipes.reading import override
from nnssl_mae.scans.voxel_size import voxel_line


def said(recipe: Recipe, planned: tuple[float, ...], scans: list[tuple[float, ...]], backward=(0, 1, 2)) -> str:
    """The line; ``scans`` along x, y, z."""
    plans = {"configurations": {CONFIGURATION: {"spacing": list(planned)}}, "transpose_backward": list(backward)}
    rows = pandas.DataFrame(scans, columns=["spacing_x", "spacing_y", "spacing_z"])
    return voxel_line(plans, recipe, rows)


def test_the_median_of_the_scans_stands_beside_what_they_become(tiny_recipe) -> None:
    scans = [(0.5, 1.0, 3.0), (0.8, 1.2, 3.3), (9.0, 1.3, 4.0)]
    assert said(tiny_recipe, (1, 1, 1), scans) == "Voxel size: 1x1x1 mm (of the scans: 3.3x1.2x0.8 mm, median)."


def test_the_axes_of_plans_are_put_back(tiny_recipe) -> None:
    line = said(tiny_recipe, (5.0, 1.0, 0.9), [(5.0, 0.9, 1.0)], backward=(1, 2, 0))
    assert line == "Voxel size: 1x0.9x5 mm (of the scans: 1x0.9x5 mm, median)."


@pytest.mark.parametrize(
    ("scan", "is_hinted"),
    [
        ((3.0, 3.0, 3.0), True),
        ((2.1, 2.1, 2.1), True),
        ((2.0, 2.0, 2.0), False),
        ((1.0, 1.0, 6.5), False),
        ((1.5, 6.5, 1.5), False),
    ],
)
def test_voxels_more_than_twice_finer_along_all_axes_are_hinted_at(tiny_recipe, scan, is_hinted) -> None:
    assert ("a larger --spacing" in said(tiny_recipe, (1, 1, 1), [scan])) == is_hinted


def test_the_hint_tells_how_many_and_a_value_that_can_be_given(tiny_recipe) -> None:
    assert said(tiny_recipe, (1, 1, 1), [(3.0, 3.0, 3.0)]) == (
        "Voxel size: 1x1x1 mm (of the scans: 3x3x3 mm, median): 27 times as many voxels as the scans hold; "
        "a larger --spacing, such as '3 3 3', makes fewer."
    )


def test_without_resampling_nothing_is_compared(tiny_recipe) -> None:
    native = override(tiny_recipe, {"data.spacing": "native"})
    assert said(native, (1, 1, 1), [(3.0, 3.0, 3.0)]) == "Voxel size: as in each scan (3x3x3 mm, median)."


def test_headers_that_tell_no_spacing_do_not_count(tiny_recipe) -> None:
    unknown = [(math.nan, 1.0, 1.0), (0.0, 1.0, 1.0)]
    assert said(tiny_recipe, (4, 4, 4), unknown) == "Voxel size: 4x4x4 mm."
    assert "(of the scans: 2x2x2 mm" in said(tiny_recipe, (4, 4, 4), [*unknown, (2.0, 2.0, 2.0)])
