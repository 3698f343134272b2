"""Recipes: the shipped ones hold the published numbers, and whatever is wrong in one gets a clear sentence."""

import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from nnssl_mae import cli
from nnssl_mae.errors import UserError
from nnssl_mae.recipes.finetuning import FinetuneRecipe
from nnssl_mae.recipes.pretraining import NetworkRecipe, Recipe
from nnssl_mae.recipes.reading import (
    assignments,
    configs_folder,
    load_recipe,
    override,
    parse,
    parse_recipe,
    read_yaml,
    shipped_recipes,
)

PRESETS = [
    "amaes",
    "amaes_resenc",
    "amaes_strong",
    "amaes_xl",
    "demo",
    "demo_full",
    "mae",
    "mae_paper",
    "mae_small",
    "nnformer",
    "nnformer_acdc",
    "nnformer_synapse",
    "primus_b",
    "primus_l",
    "primus_m",
    "primus_s",
    "s3d",
    "s3d_l",
    "smoke",
]

RESENC_L = {
    "backbone": "resenc",
    "base_features": 32,
    "max_features": 320,
    "blocks_per_stage": (1, 3, 4, 6, 6, 6),
    "convs_per_decoder_stage": 1,
}
S3D_TRAINING: dict[str, Any] = {
    "data.spacing": (1, 1, 1),
    "data.normalisation": "ZScoreNormalization",
    "data.normalise_inside_mask": False,
    "data.clip_percentile": None,
    "network.patch_size": (160, 160, 160),
    "network.skips": True,
    "network.decoder": "stock",
    "loss.region": "hidden",
    "augmentation.rotation_degrees": 30,
    "augmentation.rotation_probability": 0.2,
    "augmentation.scale": (0.7, 1.4),
    "augmentation.scale_probability": 0.2,
    "augmentation.elastic_probability": 0,
    "augmentation.mirror": True,
    "augmentation.intensity.active": False,
    "optimiser.name": "sgd",
    "optimiser.learning_rate": 1e-2,
    "optimiser.momentum": 0.99,
    "optimiser.weight_decay": 3e-5,
    "optimiser.gradient_clip": 12,
    "schedule.epochs": 1000,
    "schedule.iterations": 250,
    "schedule.decay": "polynomial",
    **{f"network.{key}": value for key, value in RESENC_L.items()},
}
DENSE = {"network.sparse": False, "network.mask_tokens": False, "network.densify": False}
PAPER_MASK: dict[str, Any] = {
    "network.batch_size": 6,
    "masking.block_size": 32,
    "masking.ratio": (0.6, 0.9),
    "masking.ratio_drawn_per": "batch",
}
S3D = {**S3D_TRAINING, **PAPER_MASK, "network.sparse": True, "network.mask_tokens": True, "network.densify": True}
AMAES_METHOD: dict[str, Any] = {
    "data.spacing": (1, 1, 1),
    "data.orientation": "RAS",
    "data.normalisation": "RescaleTo01Normalization",
    "network.patch_size": (128, 128, 128),
    "network.batch_size": 8,
    "network.decoder": "light",
    "network.skips": False,
    "masking.block_size": 4,
    "masking.ratio": 0.6,
    "masking.hidden_value": "zero",
    "loss.region": "all",
    "augmentation.elastic_probability": 0.33,
    "augmentation.rotation_degrees": 30,
    "augmentation.rotation_probability": 0.2,
    "augmentation.rotation_probability_axis": 0.66,
    "augmentation.scale": (0.9, 1.1),
    "augmentation.scale_probability": 0.2,
    "augmentation.mirror": False,
    "augmentation.reversal": True,
    "augmentation.intensity.additive_noise.probability": 0.2,
    "augmentation.intensity.blur.probability": 0.2,
    "augmentation.intensity.blur.sigma": (0, 1),
    "augmentation.intensity.multiplicative_noise.probability": 0.2,
    "augmentation.intensity.ghosting.probability": 0.2,
    "augmentation.intensity.ghosting.alpha": (0.85, 0.95),
    "augmentation.intensity.ghosting.repeats": (2, 11),
    "augmentation.intensity.gibbs_ringing.probability": 0.2,
    "augmentation.intensity.gibbs_ringing.kept": (96 / 128, 1),
    "augmentation.intensity.low_resolution.probability": 0.2,
    "augmentation.intensity.low_resolution.zoom": (0.5, 1),
    "augmentation.intensity.bias_field.probability": 0.33,
    "augmentation.intensity.gamma.probability": 0.2,
    "augmentation.intensity.gamma.gamma": (0.5, 2),
    "augmentation.intensity.gamma.inverted_probability": 0.05,
    "augmentation.intensity.clip_to_range": True,
    "optimiser.name": "adamw",
    "optimiser.learning_rate": 1e-4,
    "optimiser.precision": "bf16",
    "schedule.epochs": 100,
    "schedule.iterations": "dataset",
    "schedule.warmup_epochs": 5,
    "schedule.decay": "cosine",
    **DENSE,
}
AMAES = {**AMAES_METHOD, "data.clip_percentile": 99, "network.backbone": "amaes_unet", "network.max_stages": 5}


def noise(sigma: tuple[float, float]) -> dict[str, Any]:
    names = ("additive_noise", "multiplicative_noise")
    return {f"augmentation.intensity.{name}.sigma": sigma for name in names}


PUBLISHED: dict[str, dict[str, Any]] = {
    "mae": {
        **S3D_TRAINING,
        **DENSE,
        "network.batch_size": 8,
        "masking.block_size": 16,
        "masking.ratio": 0.75,
        "loss.respect_exclusion": True,
    },
    "mae_paper": {**S3D_TRAINING, **DENSE, **PAPER_MASK},
    "s3d": S3D,
    "s3d_l": {**S3D, "network.batch_size": 48, "optimiser.learning_rate": 3e-2, "schedule.epochs": 1_000_000 // 250},
    "amaes": {**AMAES, **noise((1e-4, 1e-3)), "network.base_features": 32, "network.max_features": 512},
    "amaes_xl": {**AMAES, **noise((1e-4, 1e-3)), "network.base_features": 64, "network.max_features": 1024},
    "amaes_strong": {**AMAES, **noise((1e-2, 1e-1)), "network.base_features": 32},
    "amaes_resenc": {
        **AMAES_METHOD,
        **noise((1e-2, 1e-1)),
        "data.clip_percentile": None,
        **{f"network.{key}": value for key, value in RESENC_L.items()},
    },
}


def value_at(recipe: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        recipe = getattr(recipe, name)
    return recipe


def stages(recipe: Recipe) -> tuple[Any, Any]:
    """Strides and kernels of nnU-Net for this recipe, after checking that they and the blocks divide the patch."""
    patch, most = recipe.network.patch_size, recipe.network.max_stages
    _, strides, kernels, fitting, _ = get_pool_and_conv_props(
        recipe.data.spacing, patch, 4, 99 if most is None else most - 1
    )
    assert tuple(fitting) == patch
    assert all(size % recipe.masking.block_size == 0 for size in patch)
    return strides, kernels


def amaes_parameters(network: NetworkRecipe, stages: int) -> tuple[float, float]:
    """Millions of weights of the encoder, and of the network with the decoder for fine-tuning, counted by hand."""
    widths = [min(network.base_features * 2**i, network.max_features) for i in range(stages)]
    encoder = sum(27 * (before * width + width**2) for before, width in zip([1, *widths], widths, strict=False))
    decoder = sum(
        8 * below * width + 27 * (2 * width * width + (network.convs_per_decoder_stage - 1) * width**2)
        for width, below in pairwise(widths)
    )
    return encoder / 1e6, (encoder + decoder) / 1e6


# The shipped recipes


def test_all_recipes_are_shipped() -> None:
    assert shipped_recipes() == PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_every_shipped_recipe_is_valid_fits_its_patch_and_is_called_like_its_file(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.summary
    stages(recipe)


@pytest.mark.parametrize("name", PUBLISHED)
def test_shipped_recipes_hold_the_published_numbers(name: str) -> None:
    recipe = load_recipe(name)
    assert {key: value_at(recipe, key) for key in PUBLISHED[name]} == PUBLISHED[name]
    assert recipe.citation


@pytest.mark.parametrize("name", PRESETS)
def test_every_value_of_a_shipped_recipe_is_explained_beside_it(name: str) -> None:
    lines = (configs_folder() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    values = [line for line in lines if re.match(r" *\w+: +\S", line)]
    unexplained = [line for line in values if not re.match(r"(base|name|summary):", line) and "  # " not in line]
    assert [line for line in unexplained if not re.match(r" *\w+: *#", line)] == []
    assert max(map(len, lines)) <= 120


def test_small_recipe_trains_the_network_of_the_default_one() -> None:
    small, default = load_recipe("mae_small"), load_recipe("mae")
    assert stages(small) == stages(default)
    sizes = {"patch_size": default.network.patch_size, "batch_size": default.network.batch_size}
    assert small.network.model_copy(update=sizes) == default.network


def test_amaes_on_nnunets_network_has_the_stages_of_the_default_recipe() -> None:
    assert stages(load_recipe("amaes_resenc")) == stages(load_recipe("mae"))


@pytest.mark.parametrize(("name", "published"), [("amaes", (14.1, 22.6)), ("amaes_xl", (56.5, 90.3))])
def test_amaes_networks_have_the_published_sizes(name: str, published: tuple[float, float]) -> None:
    recipe = load_recipe(name)
    strides, _ = stages(recipe)
    assert len(strides) == 5
    assert amaes_parameters(recipe.network, 5) == pytest.approx(published, abs=0.1)


def test_the_released_mask_of_s3d_is_one_change_away() -> None:
    recipe = load_recipe("s3d", ["masking.block_size=16"])
    assert (recipe.masking.block_size, recipe.masking.ratio) == (16, (0.6, 0.9))


# Reading


def test_a_recipe_survives_the_plans_unchanged() -> None:
    for name in PRESETS:
        recipe = load_recipe(name)
        assert parse_recipe(recipe.model_dump(mode="json"), "plans") == recipe


@pytest.mark.parametrize("name", ["smok", "Smoke"])
def test_unknown_recipe_names_the_nearest_valid_one(name: str) -> None:
    with pytest.raises(UserError, match=f"no recipe '{name}', did you mean 'smoke'"):
        load_recipe(name)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.yaml", None, "There is no recipe file"),
        ("list.yaml", b"- 1", "must hold keys and values"),
        ("empty.yaml", b"", "must hold keys and values"),
        ("broken.yaml", b"name: x\na: [", "line 2, is not valid YAML"),
        ("tabs.yaml", b"name: x\n\tseed: 1", "line 2, is not valid YAML"),
        ("binary.yaml", b"\x00\xff", "not a text file"),
        ("twice.yaml", b"name: x\nseed: 1\nseed: 2", "line 3, is not valid YAML: the key 'seed' stands twice"),
        ("laughs.yaml", b"name: &a x\nsummary: *a", "references .* not supported"),
        ("object.yaml", b"name: !!python/object:os.system x", "line 1, is not valid YAML"),
        ("nested.yaml", b"name: " + b"[" * 5000, "cannot be read"),
        ("date.yaml", b"name: 2026-99-99", "cannot be read"),
        ("folder.yaml", "folder", "cannot be read: Is a directory"),
    ],
)
def test_recipe_files_that_are_no_recipes_are_refused(tmp_path: Path, name: str, content: Any, words: str) -> None:
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words) as refused:
        load_recipe(str(path))
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_with_another_ending_is_told_about_it(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("name: mine")
    with pytest.raises(UserError, match=r"recipe files end in \.yaml"):
        load_recipe(str(tmp_path / "mine.txt"))


def test_files_take_numbers_and_none_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nsummary: x\noptimiser: {learning_rate: 1e-3, gradient_clip: None}\n"
        "schedule: {patience: none}\nloss: {target_normalisation: none}"
    )
    recipe = load_recipe(str(path))
    assert (recipe.optimiser.learning_rate, recipe.optimiser.gradient_clip) == (1e-3, None)
    assert (recipe.schedule.patience, recipe.loss.target_normalisation) == (None, "none")


# Starting from another recipe


def write(folder: Path, **files: str) -> str:
    """Writes files; returns the path of the first."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return str(folder / f"{next(iter(files))}.yaml")


def test_a_recipe_with_a_base_differs_in_its_own_keys_only(tmp_path: Path) -> None:
    text = "base: mae\nname: mine\nsummary: x\nmasking: {ratio: 0.5}\nnetwork: {blocks_per_stage: [2]}"
    mine = load_recipe(write(tmp_path, mine=text))
    changes = {"name": "mine", "summary": "x", "masking.ratio": 0.5, "network.blocks_per_stage": (2,)}
    assert mine == override(load_recipe("mae"), changes)


def test_name_and_summary_are_not_those_of_the_base(tmp_path: Path) -> None:
    mine = load_recipe(write(tmp_path, mine="base: mae"))
    assert (mine.name, mine.summary) == ("mine", "mae, changed in mine.yaml")
    assert override(mine, {"name": "mae", "summary": load_recipe("mae").summary}) == load_recipe("mae")


def test_a_base_may_be_a_file_beside_the_recipe_and_have_a_base_itself(tmp_path: Path) -> None:
    files = {"mine": "base: theirs.yaml\nseed: 1", "theirs": "base: s3d\nseed: 2\nmasking: {ratio: 0.5}"}
    mine = load_recipe(write(tmp_path, **files))
    assert (mine.seed, mine.masking.ratio, mine.network.sparse) == (1, 0.5, True)


def test_none_takes_away_what_the_base_has(tmp_path: Path) -> None:
    assert (
        load_recipe(write(tmp_path, mine="base: mae\noptimiser: {gradient_clip: none}")).optimiser.gradient_clip is None
    )


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"mine": "base: mea"}, "mine.yaml, key base: There is no recipe 'mea', did you mean 'mae'"),
        ({"mine": "base: gone.yaml"}, "There is no recipe file .*gone.yaml"),
        ({"mine": "base: 3"}, "base must be the name of a recipe or a file, not 3"),
        ({"mine": "base: mine.yaml"}, "mine.yaml starts, by its key 'base', from itself"),
        ({"mine": "base: b.yaml", "b": "base: mine.yaml"}, "mine.yaml starts, by its key 'base', from itself"),
        ({"mine": "base: mae\nmasking: {ration: 1}"}, "unknown key 'masking.ration', did you mean 'masking.ratio'"),
        ({"mine": "base: mae\nmasking: 0.5"}, r"masking must be a section of keys \(got 0.5\)"),
    ],
)
def test_impossible_bases_are_refused(tmp_path: Path, files: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_recipe(write(tmp_path, **files))


def test_the_plans_never_see_a_base() -> None:
    for name in PRESETS:
        assert "base" not in read_yaml(name, configs_folder())


# Sentences


RATIO = "masking.ratio must be a number from 0.05 to 0.95 or two numbers [low, high], each from 0.05 to 0.95"
PATCH = "network.patch_size must be three whole numbers or 'planner'"
SPACING = "data.spacing must be three numbers, 'native' or 'median'"


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("masking.ratio", 1.2, f"{RATIO} (got 1.2); the nearest valid value is 0.95"),
        ("masking.ratio", [0.5, 1.2], f"{RATIO} (got [0.5, 1.2]); the nearest valid value is [0.5, 0.95]"),
        ("masking.ratio", [0.9, 0.6], "masking.ratio [0.9, 0.6] must be [low, high]; did you mean [0.6, 0.9]?"),
        ("masking.ratio", "high", f"{RATIO} (got 'high')"),
        ("masking.ratio", None, f"{RATIO} (got nothing)"),
        ("masking.ratio", True, f"{RATIO} (got true)"),
        ("network.patch_size", [160, 160], f"{PATCH} (got [160, 160]); the nearest valid value is [160, 160, 160]"),
        ("network.patch_size", 128, f"{PATCH} (got 128); the nearest valid value is [128, 128, 128]"),
        ("network.patch_size", "planer", f"{PATCH} (got 'planer'); did you mean 'planner'?"),
        ("data.spacing", "1 1 1", f"{SPACING} (got '1 1 1'); the nearest valid value is [1, 1, 1]"),
        ("data.spacing", [1, float("nan"), 1], f"{SPACING} (got [1, nan, 1])"),
        ("data.spacing", [1.0, -1.0, 1.0], "data.spacing [1.0, -1.0, 1.0] must be positive (mm)"),
        (
            "network.batch_size",
            0,
            "network.batch_size must be a whole number of 1 or more (got 0); the nearest valid value is 1",
        ),
        (
            "network.batch_size",
            2.4,
            "network.batch_size must be a whole number of 1 or more (got 2.4); the nearest valid value is 2",
        ),
        ("network.batch_size", True, "network.batch_size must be a whole number of 1 or more (got true)"),
        (
            "network.max_stages",
            1,
            "network.max_stages must be a whole number of 2 or more, or none (got 1); the nearest valid value is 2",
        ),
        (
            "network.backbone",
            "resnc",
            "network.backbone must be 'resenc', 'plain', 'amaes_unet', 'nnformer' or 'primus' (got 'resnc'); did you "
            "mean 'resenc'?",
        ),
        (
            "network.blocks_per_stage",
            [1, 0],
            "network.blocks_per_stage must be a list of one or more whole numbers, each of 1 or more (got [1, 0]); "
            "the nearest valid value is [1, 1]",
        ),
        ("optimiser.learning_rate", 0, "optimiser.learning_rate must be a number greater than 0 (got 0)"),
        ("optimiser.learning_rate", float("inf"), "optimiser.learning_rate must be a number greater than 0 (got inf)"),
        ("optimiser.momentum", 1, "optimiser.momentum must be a number of 0 or more and less than 1 (got 1)"),
        ("loss.target_normalisation", None, "loss.target_normalisation must be 'none' or 'block' (got nothing)"),
        ("augmentation.mirror", "maybe", "augmentation.mirror must be true or false (got 'maybe')"),
        (
            "augmentation.scale",
            [1.4, 0.7],
            "augmentation.scale: the range must be [low, high] with low <= high; did you mean [0.7, 1.4]?",
        ),
        (
            "augmentation.intensity.gamma.probability",
            3,
            "augmentation.intensity.gamma.probability must be a number from 0 to 1 (got 3); "
            "the nearest valid value is 1",
        ),
        ("name", 5, "name must be text (got 5)"),
        ("network", None, "network must be a section of keys (got nothing)"),
        ("network", True, "network must be a section of keys (got true)"),
    ],
)
def test_impossible_values_get_one_clear_sentence(key: str, value: object, sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        override(load_recipe("mae"), {key: value})
    assert str(refused.value) == f"The recipe mae is not valid: {sentence}"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"masking": {"ration": 0.5}}, "unknown key 'masking.ration', did you mean 'masking.ratio'?"),
        ({"batch_size": 2}, "unknown key 'batch_size', did you mean 'network.batch_size'?"),
        ({"loss": {"xyz": 2}}, "unknown key 'loss.xyz'; valid: loss.region, loss.visible_weight, "),
        ({1: 2}, "unknown key '1'; valid: name, summary, "),
        ({"summary": None}, "summary must be text (got nothing)"),
    ],
)
def test_unknown_keys_name_the_nearest_valid_one(content: dict[Any, Any], sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_recipe({"name": "x", "summary": "", **content}, "x.yaml")
    assert str(refused.value).startswith(f"The recipe x.yaml is not valid: {sentence}")


def test_all_problems_are_told_at_once_each_on_a_line() -> None:
    content = {"summary": "", "masking": {"ratio": 1.2, "ration": 1}, "network": {"batch_size": True}}
    with pytest.raises(UserError) as refused:
        parse_recipe(content, "x.yaml")
    keys = sorted(line.split()[0] for line in str(refused.value).splitlines()[1:])
    assert keys == ["masking.ratio", "name", "network.batch_size", "unknown"]


def test_a_recipe_in_the_plans_that_is_no_mapping_is_refused() -> None:
    hand_made: Any = 5
    with pytest.raises(UserError, match="must hold keys and values"):
        parse_recipe(hand_made, "in the plans")


def test_every_key_can_be_none_or_wrong_without_a_crash() -> None:
    recipe = load_recipe("amaes")
    for model, content in ((Recipe, recipe.model_dump()), (FinetuneRecipe, FinetuneRecipe().model_dump())):
        for key in content:
            for value in (object(), {"a": 1}, [[1]], "none", -1e400, True, b"x"):
                try:
                    parse(model, {**content, key: value}, "x")
                except UserError as refused:
                    assert "Input should" not in str(refused)


# --set


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("optimiser.learning_rate=1e-3", "optimiser.learning_rate", 1e-3),
        ("schedule.epochs=1e2", "schedule.epochs", 100),
        ("masking.ratio=[0.6, 0.9]", "masking.ratio", (0.6, 0.9)),
        (" masking.ratio = 0.6 ", "masking.ratio", 0.6),
        ("masking.ratio='0.6'", "masking.ratio", 0.6),
        ("name='1e3'", "name", "1e3"),
        ("network.patch_size=[96,96,96]", "network.patch_size", (96, 96, 96)),
        ("data.spacing=native", "data.spacing", "native"),
        ("optimiser.gradient_clip=none", "optimiser.gradient_clip", None),
        ("optimiser.gradient_clip=null", "optimiser.gradient_clip", None),
        ("loss.target_normalisation=none", "loss.target_normalisation", "none"),
        ("augmentation.mirror=false", "augmentation.mirror", False),
        ("augmentation.mirror=Off", "augmentation.mirror", False),
        ("summary=a = b", "summary", "a = b"),
    ],
)
def test_set_takes_values_as_people_write_them(text: str, key: str, value: object) -> None:
    assert value_at(load_recipe("mae", [text]), key) == value


def test_of_two_settings_of_a_key_the_last_counts() -> None:
    assert load_recipe("mae", ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("masking.ratio", "write it as key=value"),
        ("masking.ratio=", "write it as key=value"),
        ("=3", "write it as key=value"),
        ("masking.ratio=[0.6", r"\[0.6 cannot be read as a value"),
        ("masking.ration=1", "unknown key 'masking.ration', did you mean 'masking.ratio'"),
        ("masking..ratio=1", "unknown key 'masking..ratio'"),
        ("ratio=1", "unknown key 'ratio', did you mean 'masking.ratio'"),
        ("network.patch_size.z=3", "unknown key .*: network.patch_size has no parts"),
        ("masking=0.5", "masking is a section: set its keys one by one, such as masking.block_size="),
        ("base=mae", "unknown key 'base'"),
    ],
)
def test_impossible_settings_are_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=f"--set '{re.escape(text)}' is not possible.*{words}"):
        assignments([text], Recipe)


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs ``nnssl-mae prepare`` without preparing anything; returns the recipe as changed and as published."""
    import nnssl_mae.scans.prepare
    from nnssl_mae.scans.prepare import Prepared
    from nnssl_mae.scans.request import Request

    seen: list[tuple[Recipe, Recipe]] = []

    def remember(sources: Any, request: Request, *_: Any, **__: Any) -> Prepared:
        seen.append((request.recipe, request.published))
        return Prepared(folder=None, prepared=0, left_out=0)

    def run(*options: str) -> tuple[Recipe, Recipe]:
        monkeypatch.setattr(nnssl_mae.scans.prepare, "prepare_folders", remember)
        monkeypatch.setattr(sys, "argv", ["nnssl-mae", "prepare", "scans", "-d", "900", "-n", "Brains", *options])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        assert exit_info.value.code in (0, None)
        return seen[-1]

    return run


def test_prepare_combines_settings_with_its_shortcuts_and_keeps_the_recipe_as_published(prepare) -> None:
    options = (
        "--set",
        "masking.ratio=[0.6, 0.9]",
        "--spacing",
        "2",
        "2",
        "2",
        "--set",
        "network.patch_size=[64,64,64]",
    )
    recipe, published = prepare("--recipe", "mae", *options, "--batch", "3")
    changes = {"masking.ratio": (0.6, 0.9), "data.spacing": (2, 2, 2)}
    changes |= {"network.patch_size": (64, 64, 64), "network.batch_size": 3}
    plain = override(load_recipe("mae"), changes)
    assert recipe.summary.startswith(f"{plain.summary}; changed: masking.ratio, network.patch_size, data.spacing")
    assert recipe == override(plain, {"summary": recipe.summary})
    assert published == load_recipe("mae")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "network.batch_size=4", "--batch", "2"], "--batch and --set network.batch_size decide the same"),
        (["--patch", "planner", "--set", "network.batch_size=4"], "--set network.batch_size cannot be used with a"),
        (["--set", "network.patch_size=planner", "--batch", "4"], "--batch cannot be used with a planner patch"),
        (["--set", "masking.ratio=1.2"], "the nearest valid value is 0.95"),
        (["--set", "masking.ration=1"], "did you mean 'masking.ratio'"),
    ],
)
def test_prepare_refuses_settings_that_contradict_or_are_impossible(
    options: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["nnssl-mae", "prepare", "scans", "-d", "900", "-n", "Brains", *options])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert exit_info.value.code == 2
    assert words in capsys.readouterr().err
