import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnssl_mae import cli
from nnssl_mae.backbones import BACKBONES
from nnssl_mae.errors import UserError
from nnssl_mae.recipes.finetuning import (
    FinetuneRecipe,
    finetune_recipe,
    finetuning_folder,
    load_any_recipe,
    load_finetune_recipe,
)
from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.recipes.reading import parse, shipped_recipes

SHIPPED = ("amaes_finetuning", "default", "frozen", "sawtooth", "scratch", "transformer", "transformer_scratch",
           "valley", "warmup")  # fmt: skip


def lengths(recipe: FinetuneRecipe) -> tuple[int, int, int]:
    return recipe.decoder_rise_epochs, recipe.decoder_fall_epochs, recipe.warmup_epochs


def test_the_shipped_recipes_are_these_called_like_their_files_and_like_no_pretraining_recipe() -> None:
    assert tuple(shipped_recipes(finetuning_folder())) == SHIPPED
    for name in SHIPPED:
        recipe = load_finetune_recipe(name)
        assert recipe.name == name
        assert recipe.summary
        assert recipe.citation
    assert not set(SHIPPED) & set(shipped_recipes())


@pytest.mark.parametrize("name", ["default", "warmup", "sawtooth", "valley", "frozen"])
def test_pretrained_weights_learn_at_a_tenth_of_nnunets_rate_for_the_published_length(name: str) -> None:
    recipe = load_finetune_recipe(name)
    assert (recipe.schedule, recipe.peak_learning_rate, recipe.epochs, recipe.iterations) == (name, 1e-3, 1000, 250)
    assert (recipe.optimiser, recipe.momentum, recipe.weight_decay, recipe.decay) == ("sgd", 0.99, 3e-5, "polynomial")
    assert (recipe.layer_decay, recipe.augmentation, recipe.patience) == (1.0, "full", None)


def test_the_control_differs_from_default_in_its_rate_only() -> None:
    control, default = load_finetune_recipe("scratch").model_dump(), load_finetune_recipe("default").model_dump()
    different = {key for key in control if control[key] != default[key]}
    assert different == {"name", "summary", "citation", "peak_learning_rate"}
    assert control["peak_learning_rate"] == 1e-2


def test_amaes_finetuning_holds_the_published_numbers() -> None:
    recipe = load_finetune_recipe("amaes_finetuning")
    assert (recipe.optimiser, recipe.peak_learning_rate, recipe.weight_decay) == ("adamw", 1e-4, 3e-5)
    assert (recipe.decay, recipe.epochs, recipe.iterations, recipe.augmentation) == ("cosine", 500, 100, "spatial")


@pytest.mark.parametrize(
    ("name", "epochs", "expected"),
    [
        ("warmup", 1000, (0, 0, 50)),
        ("warmup", 150, (0, 0, 15)),
        ("warmup", 20, (0, 0, 2)),
        ("warmup", 2, (0, 0, 1)),
        ("sawtooth", 1000, (25, 25, 50)),
        ("sawtooth", 150, (7, 8, 15)),
        ("sawtooth", 20, (1, 1, 2)),
        ("sawtooth", 4, (1, 1, 1)),
        ("valley", 1000, (0, 50, 50)),
        ("valley", 150, (0, 15, 15)),
        ("valley", 3, (0, 1, 1)),
        ("default", 1, (0, 0, 0)),
        ("frozen", 1, (0, 0, 0)),
    ],
)
def test_open_lengths_take_the_published_share(name: str, epochs: int, expected: tuple[int, int, int]) -> None:
    assert lengths(load_finetune_recipe(name, epochs)) == expected


@pytest.mark.parametrize(
    ("name", "epochs", "changes", "words"),
    [
        ("warmup", 1, [], "needs more than 1 epochs; the nearest possible: epochs 2"),
        ("sawtooth", 3, [], "needs more than 3 epochs; the nearest possible: epochs 4"),
        ("valley", 2, [], "the nearest possible: epochs 3"),
        ("warmup", 50, ["warmup_epochs=60"], "the nearest possible: epochs 61, or warmup_epochs 49"),
        ("sawtooth", 20, ["decoder_rise_epochs=0"], "decoder_rise_epochs is 0, .* the nearest is 1"),
        ("default", 20, ["warmup_epochs=5"], "the schedule 'default' has none; set it to 0"),
        ("warmup", 20, ["schedule=sawtoth"], "did you mean 'sawtooth'"),
        ("warmup", 20, ["layer_decay=1.5"], "layer_decay.* 1"),
        ("warmup", 20, ["warmup_epoch=3"], "did you mean 'warmup_epochs'"),
        ("warmup", 20, ["epochs=many"], "epochs"),
    ],
)
def test_impossible_recipes_are_refused_with_what_would_be_possible(
    name: str, epochs: int, changes: list[str], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        load_finetune_recipe(name, epochs, changes=changes)


def test_changes_and_lengths_replace_what_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nsummary: ''\nschedule: warmup\nepochs: 100\nwarmup_epochs: 5\n")
    assert lengths(load_finetune_recipe(str(file))) == (0, 0, 5)
    recipe = load_finetune_recipe(
        str(file), 40, 7, ["layer_decay=0.75", "warmup_epochs=null", "peak_learning_rate=1e-4"]
    )
    assert (recipe.epochs, recipe.iterations, recipe.layer_decay, recipe.warmup_epochs) == (40, 7, 0.75, 4)
    assert recipe.peak_learning_rate == 1e-4


def test_a_recipe_survives_the_plans_unchanged() -> None:
    for name in SHIPPED:
        recipe = load_finetune_recipe(name, 60)
        assert parse(FinetuneRecipe, recipe.model_dump(mode="json"), "plans") == recipe


@pytest.mark.parametrize(("schedule", "rate", "warmup"), [("warmup", 1e-3, 15), ("default", 1e-2, 0)])
def test_plans_of_the_first_schema_mean_what_they_meant(schedule: str, rate: float, warmup: int) -> None:
    first = {"schedule": schedule, "peak_learning_rate": rate, "epochs": 150, "warmup_epochs": warmup, "iterations": 9}
    recipe = parse(FinetuneRecipe, first, "plans")
    assert lengths(recipe) == (0, 0, warmup)
    new = finetune_recipe(schedule == "default", 150, 9)
    ignored = {"name", "summary", "citation"}
    assert recipe.model_dump(exclude=ignored) == new.model_dump(exclude=ignored)


def test_a_name_or_a_file_of_either_kind_is_recognised(tmp_path: Path) -> None:
    assert isinstance(load_any_recipe("sawtooth", epochs=20), FinetuneRecipe)
    recipe = load_any_recipe("mae", epochs=20, changes=["optimiser.learning_rate=0.5"])
    assert isinstance(recipe, Recipe)
    assert (recipe.schedule.epochs, recipe.optimiser.learning_rate) == (20, 0.5)
    for text, kind in {
        "schedule: frozen": FinetuneRecipe,
        "schedule: {epochs: 3}": Recipe,
        "peak_learning_rate: 0.1": FinetuneRecipe,
        "masking: {ratio: 0.5}": Recipe,
    }.items():
        file = tmp_path / "mine.yaml"
        file.write_text(f"name: mine\nsummary: x\n{text}\n")
        assert isinstance(load_any_recipe(str(file)), kind), text


@pytest.mark.parametrize(("wrong", "nearest"), [("sawtoot", "sawtooth"), ("mea", "mae")])
def test_a_name_of_neither_kind_names_the_nearest(wrong: str, nearest: str) -> None:
    with pytest.raises(UserError, match=f"no recipe '{wrong}', did you mean '{nearest}'"):
        load_any_recipe(wrong)


# ---------------------------------------------------------------------- command line


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["nnssl-mae", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    return int(exit_info.value.code or 0)


def test_the_schedule_command_shows_phases_and_rates_of_either_kind(monkeypatch, capsys, tmp_path: Path) -> None:
    picture = tmp_path / "sawtooth.png"
    assert run_command(monkeypatch, "schedule", "sawtooth", "--epochs", "150", "--plot", str(picture)) == 0
    out = capsys.readouterr().out
    for words in ("decoder warm-up", "0-6 (7)", "7-14 (8)", "15-29 (15)", "30-149 (120)", "0.000143 to 0.001"):
        assert words in out
    assert picture.read_bytes().startswith(b"\x89PNG")

    assert run_command(monkeypatch, "schedule", "mae", "--set", "schedule.warmup_epochs=20") == 0
    out = capsys.readouterr().out
    assert "0-19 (20)" in out
    assert "0.0005 to 0.01" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["sawtoot"], "did you mean 'sawtooth'"),
        (["sawtooth", "--epochs", "3"], "the nearest possible: epochs 4"),
        (["sawtooth", "--set", "layer_deca=1"], "did you mean 'layer_decay'"),
        (["sawtooth", "--plot", "picture.jpg"], "ends in .png"),
        (["missing.yaml"], "missing.yaml"),
    ],
)
def test_the_schedule_command_refuses(monkeypatch, capsys, arguments: list[str], sentence: str) -> None:
    assert run_command(monkeypatch, "schedule", *arguments) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "name", "expected"),
    [
        (["primus"], "transformer", {"optimiser": "adamw", "peak_learning_rate": 3e-5}),
        (["nnformer", "--from-scratch"], "transformer_scratch", {"optimiser": "adamw", "peak_learning_rate": 3e-4}),
        (["primus", "--schedule", "frozen"], "frozen", {"optimiser": "sgd"}),
        ([], "warmup", {"epochs": 1000, "iterations": 250}),
        (["--from-scratch"], "scratch", {"epochs": 1000, "peak_learning_rate": 1e-2}),
        (["--schedule", "sawtooth", "--epochs", "150"], "sawtooth", {"warmup_epochs": 15, "decoder_fall_epochs": 8}),
        (["--schedule", "amaes_finetuning"], "amaes_finetuning", {"epochs": 500, "iterations": 100}),
        (["--from-scratch", "--schedule", "amaes_finetuning"], "amaes_finetuning", {"optimiser": "adamw"}),
        (["--set", "layer_decay=0.75", "--set", "patience=30"], "warmup", {"layer_decay": 0.75, "patience": 30}),
    ],
)
def test_adapt_takes_a_recipe_its_lengths_and_changes(monkeypatch, options, name, expected) -> None:
    backbone = "resenc"
    if options and options[0] in BACKBONES:
        backbone, *options = options

    class Reached(Exception):
        pass

    taken: list[FinetuneRecipe] = []

    def adapt(*arguments: object, **keywords: object) -> None:
        taken.extend(each for each in (*arguments, *keywords.values()) if isinstance(each, FinetuneRecipe))
        raise Reached

    monkeypatch.setattr("nnssl_mae.downstream.adapt.adapt", adapt)
    checkpoint = SimpleNamespace(architecture={"network_class_name": BACKBONES[backbone].network_class})
    monkeypatch.setattr("nnssl_mae.checkpoints.read.read_checkpoint", lambda *_, **__: checkpoint)
    monkeypatch.setattr(sys, "argv", ["nnssl-mae", "adapt", "checkpoint.pth", "-d", "4", *options])
    with pytest.raises(Reached):
        cli.main()
    (recipe,) = taken
    assert recipe.name == name
    assert recipe.model_dump(include=set(expected)) == expected
