"""Pictures: made where there are data, and telling what they show."""

import math
from collections.abc import Iterator

import numpy as np
import pandas
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from nnssl_mae.comparison.figures import convergence, few_label_curves, paired_differences, pictures
from nnssl_mae.comparison.looks import looks, number, p_value, wrapped
from tests.comparison.made_up import CURVES, made_up_cases, made_up_comparison, made_up_curves

ARMS = ("scratch", "mae", "s3d")
NO_CURVES = pandas.DataFrame(columns=CURVES)


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def panels(figure: Figure) -> Iterator[Axes]:
    return (axes for axes in figure.axes if axes.get_visible())


def test_only_pictures_that_have_data_are_made() -> None:
    cases = made_up_cases(["mae"], labels=["lesion"])
    assert pictures(made_up_comparison(cases), cases, NO_CURVES) == []
    cases = made_up_cases(ARMS, (1, 10), ("Dataset001_A", "Dataset002_B"), repeats=2)
    names = [p.name for p in pictures(made_up_comparison(cases, ["scratch"]), cases, made_up_curves(ARMS))]
    assert names == ["few_labels", "differences_to_scratch", "ranks", "labels", "convergence"]


def test_average_rank_of_one_dataset_is_no_picture() -> None:
    cases = made_up_cases(ARMS)
    names = [p.name for p in pictures(made_up_comparison(cases), cases, NO_CURVES)]
    assert names == ["labels"]


def test_pictures_name_arms_units_and_numbers_of_subjects() -> None:
    cases = made_up_cases(ARMS, (1, 10), repeats=3, subjects=12)
    for picture in pictures(made_up_comparison(cases, ["scratch"]), cases, made_up_curves(ARMS)):
        shown = texts(picture.figure)
        assert "mae" in shown and "Dataset004_Hippocampus" in shown, picture.name
        assert picture.name == "convergence" or "n = 12 subjects" in shown, picture.name
        assert all(axes.get_xlabel() for axes in panels(picture.figure)), picture.name
    few = few_label_curves(made_up_comparison(cases), cases)
    assert few is not None and "labelled training cases" in texts(few.figure)


def test_a_mean_that_is_not_given_leaves_a_gap() -> None:
    cases = made_up_cases(("mae",), (1, 3, 10))
    comparison = made_up_comparison(cases)
    comparison.cells.loc[comparison.cells["labelled"] == 3, ["mean", "low", "high"]] = math.nan
    picture = few_label_curves(comparison, cases)
    assert picture is not None
    line = picture.figure.axes[0].get_lines()[0]
    assert np.isnan(np.asarray(line.get_ydata(), dtype=float)).tolist() == [False, True, False]


def test_each_subject_has_a_dot_at_its_difference() -> None:
    cases = made_up_cases(("scratch", "mae"), subjects=9)
    picture = paired_differences(made_up_comparison(cases, ["scratch"]), cases, "scratch")
    assert picture is not None
    means = cases.pivot_table(index="subject", columns="arm", values="dice")
    dots = [line.get_xdata() for line in picture.figure.axes[0].get_lines() if line.get_marker() == "."]
    assert len(dots) == 1
    assert sorted(np.asarray(dots[0], dtype=float)) == pytest.approx(sorted(means["mae"] - means["scratch"]))


def test_learning_lines_end_with_the_shortest_run_and_say_what_pseudo_dice_is() -> None:
    curves = made_up_curves(("mae",), runs=2, epochs=20)
    curves = curves[(curves["replicate"] == "seed0") | (curves["epoch"] < 8)]
    picture = convergence(made_up_comparison(made_up_cases(("mae",))), curves)
    assert picture is not None
    steps = np.asarray(picture.figure.axes[0].get_lines()[0].get_xdata(), dtype=float)
    assert steps.max() == 8 * 250
    assert "patches" in picture.caption and "not the Dice" in picture.caption and "2 trainings" in texts(picture.figure)


def test_looks_differ_by_more_than_colour() -> None:
    arms = [f"arm{n}" for n in range(9)]
    style = looks(arms, ["arm0", "arm5"])
    assert len({(look.marker, look.colour) for look in style.values()}) == 9
    assert len({look.marker for look in style.values()}) == 9


def test_long_names_are_parted_where_nnunet_joins_them() -> None:
    assert wrapped("nnUNetTrainerMAEFinetune__mae_seed0__3d_fullres_mae", 40) == (
        "nnUNetTrainerMAEFinetune__mae_seed0__\n3d_fullres_mae"
    )
    assert wrapped("short", 40) == "short"


def test_numbers() -> None:
    assert number(-0.0001, 3) == "0.000" and number(0.01234, 3, sign=True) == "+0.012" and number(math.nan, 3) == "–"
    assert p_value(0.0004) == "<0.001" and p_value(0.03126) == "0.031" and p_value(math.nan) == "–"
