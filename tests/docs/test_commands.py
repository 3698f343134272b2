"""Every command that the pages show would be accepted by the program it names."""

from __future__ import annotations

import re

import pytest

from nnssl_mae.errors import UserError
from nnssl_mae.plans import CONFIGURATION
from nnssl_mae.recipes.finetuning import FinetuneRecipe, load_any_recipe, load_finetune_recipe
from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.recipes.reading import assignments, load_recipe
from tests.docs.commands import (
    ROOT,
    Command,
    NotAccepted,
    commands_in,
    commands_of,
    our_verb,
    pages,
    stock_arguments,
)

COMMANDS = [command for page in pages() for command in commands_of(page)]
OURS = [command for command in COMMANDS if command.words[0] == "nnssl-mae"]
STOCK = [command for command in COMMANDS if command.words[0].startswith("nnUNetv2_")]
OUR_PLANS = ("nnsslMAEPlans", "nnsslMAEFinetunePlans", "nnsslMAEScratchPlans")
TRAINERS = ("nnUNetTrainerMAE", "nnUNetTrainerMAEFinetune", "nnUNetTrainer")
OF_FINETUNING = ("adapt", "schedule")


def is_placeholder(word: str) -> bool:
    """Something that a reader replaces: CHECKPOINT, PLANS_WRITTEN_BY_ADAPT, ..."""
    return bool(re.fullmatch(r"[A-Z][A-Z_0-9]*|\.\.\.", word))


def test_there_are_commands_of_every_kind_and_page() -> None:
    assert len(OURS) > 60
    assert len(STOCK) > 15
    assert {"README.md", "docs/first_hour.md", "docs/scans.md", "docs/howto/one_gpu.md"} <= {c.page for c in OURS}


@pytest.mark.parametrize("command", OURS, ids=str)
def test_a_command_of_ours_has_options_and_arguments_that_exist(command: Command) -> None:
    our_verb(_without_ellipses(command))


@pytest.mark.parametrize("command", STOCK, ids=str)
def test_a_command_of_nnunet_has_options_and_arguments_that_exist(command: Command) -> None:
    stock_arguments(_without_ellipses(command))


def _without_ellipses(command: Command) -> tuple[str, ...]:
    """``prepare ... --dry-run`` leaves out what was said before; there is nothing to check it against."""
    if "..." in command.words:
        pytest.skip("the page leaves a part of this command out")
    return command.words[1:] if command.words[0] == "nnssl-mae" else command.words


@pytest.mark.parametrize("command", OURS, ids=str)
def test_recipes_and_their_values_exist(command: Command) -> None:
    verb, recipe = command.words[1], command.value_of("--recipe")
    changes = [command.words[i + 1] for i, word in enumerate(command.words) if word == "--set"]
    finetuning = verb in OF_FINETUNING
    assignments(changes, FinetuneRecipe if finetuning else Recipe)
    for name in (recipe, command.value_of("--backbone")):
        if name is not None and not name.endswith(".yaml") and not is_placeholder(name):
            load_recipe(name)
    schedule = command.value_of("--schedule")
    if schedule is not None and not schedule.endswith(".yaml"):
        load_finetune_recipe(schedule)
    if verb == "schedule" and not is_placeholder(command.words[2]):
        load_any_recipe(command.words[2])


@pytest.mark.parametrize("command", STOCK, ids=str)
def test_trainers_configurations_and_plans_are_those_that_our_commands_write(command: Command) -> None:
    trainer = command.value_of("-tr")
    assert trainer in (None, *TRAINERS)
    if trainer in TRAINERS[:2]:
        assert CONFIGURATION in command.words
    plans = command.value_of("-p", "-plans_name")
    assert plans is None or is_placeholder(plans) or plans in _plans_of_page(command.page), command


def _plans_of_page(page: str) -> set[str]:
    """The usual names, and those that commands of the page give with ``-n`` and ``-p``."""
    names = {f"{OUR_PLANS[0]}_{recipe}" for c in OURS if c.page == page and (recipe := c.value_of("--recipe"))}
    named = {c.value_of("-n", "--name", "-p", "--plans") for c in OURS if c.page == page}
    return {*OUR_PLANS, *names, *(name for name in named if name)}


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.words[0].startswith("scripts/")], ids=str)
def test_scripts_exist(command: Command) -> None:
    assert (ROOT / command.words[0]).is_file()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.words[0] == "torchrun"], ids=str)
def test_what_torchrun_starts_is_a_command_of_ours(command: Command) -> None:
    start = command.words.index("nnssl_mae") + 1
    our_verb(command.words[start:])


def test_the_reader_of_pages_takes_commands_from_code_only() -> None:
    indented = "nnssl-mae text\n\n    nnssl-mae one \\\n        two  # why\n\n"
    fenced = "```bash\n$x\nnnssl-mae three\n```\n```yaml\nnnssl-mae: no\n```\n"
    found = [(3, ("nnssl-mae", "one", "two")), (8, ("nnssl-mae", "three"))]
    assert list(commands_in(indented + fenced)) == found


@pytest.mark.parametrize(
    "line",
    [
        "scan",
        "scan /data --min-fov 30 --no-such-option -o out",
        "adapt CHECKPOINT -d four",
        "adapt CHECKPOINT EXTRA -d 4",
        "adept CHECKPOINT -d 4",
        "bench stepp",
    ],
)
def test_a_wrong_command_of_ours_would_be_found(line: str) -> None:
    with pytest.raises(NotAccepted):
        our_verb(tuple(line.split()))


@pytest.mark.parametrize("line", ["nnUNetv2_train 4", "nnUNetv2_train 4 3d_fullres 0 -plans x", "nnUNetv2_trane 4"])
def test_a_wrong_command_of_nnunet_would_be_found(line: str) -> None:
    with pytest.raises(NotAccepted):
        stock_arguments(tuple(line.split()))


def test_a_wrong_recipe_value_would_be_found() -> None:
    with pytest.raises(UserError):
        assignments(["masking.rato=0.6"], Recipe)
