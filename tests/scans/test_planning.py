"""Plans for another recipe on volumes that are preprocessed already."""

import json
from pathlib import Path

import pytest

from nnssl_mae.errors import UserError
from nnssl_mae.plans import CONFIGURATION
from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.recipes.reading import override
from nnssl_mae.scans.planning import write_plans_for


def test_another_recipe_gets_plans_beside_the_first_on_the_same_volumes(prepared: Path, tiny_recipe: Recipe) -> None:
    before = (prepared / "nnsslMAEPlans.json").read_bytes()
    other = override(tiny_recipe, {"name": "sparse", "network.sparse": True, "masking.block_size": 4})
    assert write_plans_for(prepared, other, None) == "nnsslMAEPlans_sparse"
    plans = json.loads((prepared / "nnsslMAEPlans_sparse.json").read_text())
    assert plans["plans_name"] == "nnsslMAEPlans_sparse"
    configuration = plans["configurations"][CONFIGURATION]
    assert configuration["nnssl_mae"]["block_edges"] == [4, 4, 4]
    assert configuration["nnssl_mae"]["recipe"]["network"]["sparse"] is True
    first = json.loads(before)["configurations"][CONFIGURATION]
    assert configuration["data_identifier"] == first["data_identifier"]
    assert (prepared / "nnsslMAEPlans.json").read_bytes() == before


def test_the_same_again_changes_nothing_and_another_under_the_same_name_is_refused(prepared, tiny_recipe) -> None:
    write_plans_for(prepared, tiny_recipe, "mine")
    written = (prepared / "mine.json").stat().st_mtime_ns
    assert write_plans_for(prepared, tiny_recipe, "mine") == "mine"
    assert (prepared / "mine.json").stat().st_mtime_ns == written
    with pytest.raises(UserError, match="holds another recipe; choose another name with -p"):
        write_plans_for(prepared, override(tiny_recipe, {"seed": 1}), "mine")


def test_a_recipe_that_needs_other_volumes_is_refused(prepared: Path, tiny_recipe: Recipe) -> None:
    other = override(tiny_recipe, {"data.spacing": (2.0, 2.0, 2.0)})
    with pytest.raises(UserError, match=r"needs other volumes.*data.spacing \[2, 2, 2\] instead of \[4"):
        write_plans_for(prepared, other, None)
    assert not list(prepared.glob("nnsslMAEPlans_*.json"))


def test_names_that_nnunet_would_misread_are_refused(prepared: Path, tiny_recipe: Recipe) -> None:
    with pytest.raises(UserError, match="Plans cannot be called 'a__b'"):
        write_plans_for(prepared, tiny_recipe, "a__b")


def test_a_planner_patch_records_the_planned_sizes_also_for_a_second_recipe(prepared: Path, tiny_recipe) -> None:
    file = prepared / "nnsslMAEPlans.json"
    planner = override(tiny_recipe, {"network.patch_size": "planner", "network.base_features": 99})
    plans = json.loads(file.read_text())
    plans["configurations"][CONFIGURATION]["nnssl_mae"]["recipe"] = planner.model_dump(mode="json")
    file.write_text(json.dumps(plans))
    write_plans_for(prepared, planner, "second")
    content = json.loads((prepared / "second.json").read_text())["configurations"][CONFIGURATION]
    planned = content["architecture"]["arch_kwargs"]["features_per_stage"][0]
    assert content["nnssl_mae"]["recipe"]["network"]["base_features"] == planned == 4
