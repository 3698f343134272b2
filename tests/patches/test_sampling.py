from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from nnssl_mae.errors import UserError
from nnssl_mae.patches.index import CaseIndex
from nnssl_mae.patches.sampling import make_sampling
from nnssl_mae.recipes.pretraining import SamplingRecipe
from tests.patches.stored import table_of

SUBJECTS = ["a", "a", "a", "b", "a", "c", "c", "d"]
DATASETS = ["X", "X", "X", "X", "Y", "Y", "Y", "Z"]  # subject a of Y is another one


@pytest.fixture
def cases(tmp_path: Path) -> CaseIndex:
    return table_of(tmp_path / "data", SUBJECTS, DATASETS)


@pytest.fixture
def counts(cases: CaseIndex) -> Callable[..., np.ndarray]:
    """How often each case is drawn in 20,000 draws."""

    def counts(**recipe: object) -> np.ndarray:
        sampling, rng = make_sampling(SamplingRecipe.model_validate(recipe), cases), np.random.default_rng(1)
        return np.bincount([sampling.draw(rng) for _ in range(20_000)], minlength=len(SUBJECTS))

    return counts


EIGHTH, FIFTH, THIRD = 1 / 8, 1 / 5, 1 / 3
BY_SUBJECT = [FIFTH / 3] * 3 + [FIFTH] + [FIFTH] + [FIFTH / 2] * 2 + [FIFTH]


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({}, [EIGHTH] * 8),
        ({"by": "subject"}, BY_SUBJECT),
        ({"by": "dataset"}, [THIRD / 4] * 4 + [THIRD / 3] * 3 + [THIRD]),
        ({"by": "dataset", "dataset_weights": {"X": 2, "Z": 0.5, "Y": 1.5}}, [0.5 / 4] * 4 + [0.125] * 3 + [0.125]),
        ({"by": "dataset", "dataset_weights": {"X": 2}}, [0.5 / 4] * 4 + [0.25 / 3] * 3 + [0.25]),
        ({"by": "scan", "dataset_weights": {"Z": 3}}, [0.1] * 7 + [0.3]),
        ({"by": "subject", "dataset_weights": {"X": 0.5}}, [1 / 24] * 3 + [1 / 8] + [2 / 8] + [1 / 8] * 2 + [2 / 8]),
    ],
)
def test_cases_are_drawn_as_often_as_the_recipe_says(counts, recipe, expected) -> None:
    assert stats.chisquare(counts(**recipe), 20_000 * np.array(expected)).pvalue > 0.01


@pytest.mark.parametrize("by", ["scan", "subject", "dataset"])
def test_weight_zero_leaves_a_dataset_out(counts, by: str) -> None:
    drawn = counts(by=by, dataset_weights={"X": 0})
    assert (drawn[:4] == 0).all()
    assert (drawn[4:] > 0).all()


def test_the_usual_draw_is_one_whole_number(cases) -> None:
    sampling = make_sampling(SamplingRecipe(), cases)
    ours, plain = np.random.default_rng(3), np.random.default_rng(3)
    assert [sampling.draw(ours) for _ in range(50)] == [int(plain.integers(8)) for _ in range(50)]
    assert ours.random() == plain.random()  # nothing else was drawn


@pytest.mark.parametrize("by", ["scan", "subject", "dataset"])
def test_draws_follow_from_the_generator_alone(cases, by: str) -> None:
    recipe = SamplingRecipe.model_validate({"by": by, "dataset_weights": {"Y": 2}})
    one, two = (make_sampling(recipe, cases) for _ in range(2))
    first = [one.draw(np.random.default_rng(seed)) for seed in range(100)]
    assert first == [two.draw(np.random.default_rng(seed)) for seed in range(100)]
    assert len(set(first)) > 4


def test_a_dataset_of_another_name_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    cases = table_of(tmp_path / "data", ["a", "b"], ["OpenMind", "ADNI"])
    recipe = SamplingRecipe.model_validate({"dataset_weights": {"Openmind": 2}})
    with pytest.raises(UserError, match=r"'Openmind'.*did you mean 'OpenMind'\?.*from 'ADNI', 'OpenMind'"):
        make_sampling(recipe, cases)


def test_weights_that_leave_nothing_are_refused(cases) -> None:
    recipe = SamplingRecipe.model_validate({"dataset_weights": {"X": 0, "Y": 0, "Z": 0}})
    with pytest.raises(UserError, match="leaves out all datasets"):
        make_sampling(recipe, cases)
