"""Another network under a recipe: what of it belongs to the network and how that is trained, and what to the method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.recipes.reading import assignments, changed_summary, load_recipe, override

_OF_THE_NETWORK = (
    "backbone",
    "base_features",
    "max_features",
    "blocks_per_stage",
    "convs_per_decoder_stage",
    "max_stages",
    "transformer",
)


def backbone_changes(method: Recipe, name_or_file: str) -> dict[str, Any]:
    """Dotted keys and values that give a recipe the network of another, with its optimiser and warm-up.

    The method stays: patch and batch, what is hidden, how the encoder treats it, loss, augmentation, length. A method
    that the network cannot do is refused when the recipe is checked.

    Args:
        method: the recipe; both are to be cited.
        name_or_file: of the network: a shipped recipe such as ``nnformer`` or ``primus_m``, or a YAML file.

    Raises:
        UserError: no such recipe, or one that is not valid.
    """
    recipe = load_recipe(name_or_file)
    network = recipe.network.model_dump(include=set(_OF_THE_NETWORK))
    changes = {f"network.{key}": network[key] for key in _OF_THE_NETWORK}
    changes |= {f"optimiser.{key}": value for key, value in recipe.optimiser.model_dump().items()}
    changes["schedule.warmup_epochs"] = recipe.schedule.warmup_epochs
    changes["citation"] = tuple(dict.fromkeys((*method.citation, *recipe.citation)))
    return changes


def load_with_backbone(name_or_file: str, backbone: str | None, changes: Sequence[str] = ()) -> Recipe:
    """As :func:`load_recipe`, with the network of another recipe where one is named; ``changes`` are made last.

    Raises:
        UserError: what loading either raises, or a method that the network cannot do.
    """
    if backbone is None:
        return load_recipe(name_or_file, changes)
    if backbone is None:
        return load_recipe(name_or_file, changes)
    return changed_recipe(load_recipe(name_or_file), backbone, assignments(changes, Recipe))


def changed_recipe(published: Recipe, backbone: str | None, changes: Mapping[str, Any]) -> Recipe:
    """A recipe with the network of another, if one is named, and then some values changed; its summary tells of it.

    Args:
        published: the recipe.
        backbone: name or file of the recipe whose network is taken.
        changes: values by dotted key.

    Raises:
        UserError: the other recipe cannot be read, or what is changed is not possible.
    """
    network = {} if backbone is None else backbone_changes(published, backbone)
    told = [*([] if backbone is None else [f"network of {backbone}"]), *changes]
    if not told:
        return published
    return override(published, {**network, "summary": changed_summary(published.summary, told), **changes})
