"""The recipe reference says what the models and the shipped files say."""

from pathlib import Path

import pytest

from nnssl_mae.recipes.finetuning import FinetuneRecipe
from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.recipes.reading import all_keys, load_recipe, shipped_recipes
from nnssl_mae.recipes.reference import COMMAND, differences, reference


def test_the_reference_in_the_docs_is_up_to_date() -> None:
    written = Path(__file__).parents[1] / "docs" / "recipes.md"
    assert written.read_text(encoding="utf-8") == reference(), f"docs/recipes.md is out of date; run: {COMMAND}"


@pytest.mark.parametrize("model", [Recipe, FinetuneRecipe])
def test_every_key_has_a_row_with_its_meaning(model: type) -> None:
    rows = {}
    for line in reference().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4:
            rows[cells[0]] = cells
    for key in all_keys(model):
        _, may_be, default, meaning = rows[f"`{key}`"]
        assert may_be and default and meaning, key


def test_every_shipped_recipe_has_a_row_with_its_summary() -> None:
    page = reference()
    for name in shipped_recipes():
        assert f"| `{name}` | {load_recipe(name).summary} |" in page


def test_differences_are_the_keys_that_differ() -> None:
    assert differences(load_recipe("mae_paper"), load_recipe("mae")) == [
        ("network.batch_size", 6, 8),
        ("masking.block_size", 32, 16),
        ("masking.ratio", (0.6, 0.9), 0.75),
    ]
    assert differences(load_recipe("mae"), load_recipe("mae")) == []


@pytest.mark.parametrize(
    "row",
    [
        "| `masking.ratio` | a number from 0.05 to 0.95 or two numbers [low, high], each from 0.05 to 0.95 | `0.75` |",
        "| `network.patch_size` | three whole numbers or `planner` | `[160, 160, 160]` |",
        "| `schedule.patience` | a whole number of 1 or more, or none | `none` |",
        "| `name` | text | required |",
    ],
)
def test_types_and_ranges_are_in_words(row: str) -> None:
    assert row in reference()
