import pytest

from nnssl_mae.errors import UserError
from nnssl_mae.recipes.finetuning import finetune_recipe
from nnssl_mae.recipes.reading import load_recipe, override, parse_recipe, shipped_recipes


@pytest.mark.parametrize("name", ["mae", "smoke", "demo", "demo_full"])
def test_every_shipped_recipe_is_valid_and_called_like_its_file(name: str) -> None:
    assert name in shipped_recipes()
    assert load_recipe(name).name == name


def test_default_recipe_holds_the_published_numbers() -> None:
    recipe = load_recipe("mae")
    assert recipe.network.patch_size == (160, 160, 160)
    assert (recipe.network.batch_size, recipe.masking.block_size, recipe.masking.ratio) == (8, 16, 0.75)
    assert (recipe.optimiser.learning_rate, recipe.optimiser.momentum, recipe.optimiser.gradient_clip) == (
        1e-2,
        0.99,
        12,
    )
    assert recipe.schedule.epochs * recipe.schedule.iterations == 250_000


def test_a_recipe_survives_the_plans_unchanged() -> None:
    recipe = load_recipe("mae")
    assert parse_recipe(recipe.model_dump(mode="json"), "plans") == recipe


def test_unknown_key_names_the_nearest_valid_one() -> None:
    with pytest.raises(UserError, match=r"unknown key 'masking.ration', did you mean 'ratio'"):
        parse_recipe({"name": "x", "summary": "", "masking": {"ration": 0.5}}, "x.yaml")


def test_unknown_recipe_names_the_nearest_valid_one() -> None:
    with pytest.raises(UserError, match="no recipe 'smok', did you mean 'smoke'"):
        load_recipe("smok")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("masking.ratio", 1.2, "masking.ratio"),
        ("network.batch_size", 0, "network.batch_size"),
        ("data.spacing", (1.0, -1.0, 1.0), "must be positive"),
        ("augmentation.scale", (1.4, 0.7), "low <= high"),
    ],
)
def test_impossible_values_are_refused(key: str, value: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        override(load_recipe("mae"), {key: value})


def test_recipe_files_that_are_no_recipes_are_refused(tmp_path) -> None:
    for name, text in {"list.yaml": "- 1", "broken.yaml": "a: [", "missing.yaml": None}.items():
        path = tmp_path / name
        if text is not None:
            path.write_text(text)
        with pytest.raises(UserError, match=name):
            load_recipe(str(path))


def test_finetuning_warms_up_50_of_1000_and_15_of_150_epochs() -> None:
    assert finetune_recipe(False, 1000, 250).warmup_epochs == 50
    assert finetune_recipe(False, 150, 250).warmup_epochs == 15
    assert finetune_recipe(True, 150, 250).schedule == "default"
    with pytest.raises(UserError, match="warm-up"):
        finetune_recipe(False, 1, 250)
