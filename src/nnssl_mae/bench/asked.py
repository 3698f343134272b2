"""What several benches are asked for in the same way: recipes, and a file for all numbers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from nnssl_mae.errors import UserError
from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.recipes.reading import load_recipe


def distinct_recipes(names: Sequence[str]) -> list[Recipe]:
    """Each name or file once.

    Raises:
        UserError: a recipe that cannot be read, or two of one name, which a table could not tell apart.
    """
    recipes = [load_recipe(name) for name in dict.fromkeys(names)]
    found = [recipe.name for recipe in recipes]
    if repeated := {name for name in found if found.count(name) > 1}:
        raise UserError(f"Two recipes are named '{min(repeated)}'; give each its own name")
    return recipes


def check_report_file(file: Path | None) -> None:
    """Refuses, before anything is measured, a file that could not be written afterwards.

    Raises:
        UserError: a folder, or a file in a folder that does not exist or cannot be written.
    """
    if file is None:
        return
    if file.is_dir():
        raise UserError(f"--json {file} is a folder; give the name of a file in it")
    if not file.absolute().parent.is_dir():
        raise UserError(f"--json {file} is in a folder that does not exist; make the folder first")
    try:
        with tempfile.TemporaryFile(dir=file.absolute().parent):
            pass
    except OSError as error:
        problem = error.strerror or str(error)
        raise UserError(f"--json {file} cannot be written ({problem}); choose a folder that can") from error
