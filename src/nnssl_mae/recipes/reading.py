"""Recipes from YAML files, with changes of single values, and sentences for what is wrong in them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from nnssl_mae.errors import UserError
from nnssl_mae.recipes.base import FrozenRecipe
from nnssl_mae.recipes.pretraining import Recipe

AnyRecipe = TypeVar("AnyRecipe", bound=FrozenRecipe)


def configs_folder() -> Path:
    """The folder of shipped recipes: inside the package when installed, beside ``src`` in a checkout."""
    inside = Path(__file__).parents[1] / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[3] / "configs"


def shipped_recipes(folder: Path | None = None) -> list[str]:
    """Names of the shipped pre-training recipes (or of those in another folder), sorted."""
    return sorted(path.stem for path in (folder or configs_folder()).glob("*.yaml"))


def load_recipe(name_or_file: str, changes: Sequence[str] = ()) -> Recipe:
    """A shipped pre-training recipe by name, or a user's own YAML file by path.

    Args:
        name_or_file: ``mae``, or a path that ends in ``.yaml``.
        changes: assignments such as ``masking.ratio=0.6``.

    Raises:
        UserError: unknown name, unreadable file, unknown key or impossible value.
    """
    content = read_yaml(name_or_file, configs_folder())
    return parse(Recipe, changed(content, changes, Recipe), source=name_or_file)


def parse_recipe(content: Mapping[str, Any], source: str) -> Recipe:
    """Validates a mapping; ``source`` names it in the error sentence."""
    return parse(Recipe, content, source)


def override(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """A copy with dotted keys replaced, e.g. ``{"network.batch_size": 2}``; validated again."""
    content = recipe.model_dump()
    for dotted, value in changes.items():
        _put(content, dotted, value, Recipe)
    return parse(Recipe, content, source=recipe.name)


def read_yaml(name_or_file: str, folder: Path) -> dict[str, Any]:
    """The content of a shipped recipe in ``folder`` by name, or of any YAML file by path."""
    path = Path(name_or_file)
    if path.suffix not in (".yaml", ".yml"):
        path = folder / f"{name_or_file}.yaml"
        if not path.is_file():
            raise UserError(f"There is no recipe '{name_or_file}'{_nearest(name_or_file, shipped_recipes(folder))}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"The recipe file {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"The recipe file {path} must hold keys and values, such as 'name: mine'.")
    return content


def parse(model: type[AnyRecipe], content: Mapping[str, Any], source: str) -> AnyRecipe:
    """Validates a mapping as a recipe of this kind.

    Raises:
        UserError: with the key, what is wrong and the nearest valid name or value.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(dict.fromkeys(_explain(problem, model) for problem in error.errors()))
        raise UserError(f"The recipe {source} is not valid: {problems}") from error


def changed(content: Mapping[str, Any], assignments: Sequence[str], model: type[BaseModel]) -> dict[str, Any]:
    """A copy of a recipe's content with assignments such as ``masking.ratio=[0.6, 0.9]`` (YAML values) made."""
    result = _copied(content)
    for assignment in assignments:
        dotted, equals, text = assignment.partition("=")
        if not equals or not dotted.strip():
            raise UserError(f"--set {assignment} is not possible; write it as key=value, such as masking.ratio=0.6")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"--set {assignment}: the value cannot be read ({error})") from error
        _put(result, dotted.strip(), _number(value), model)
    return result


def _number(value: Any) -> Any:
    """YAML takes 1e-3 (no dot) for text; people do not."""
    if isinstance(value, list):
        return [_number(item) for item in value]
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _copied(value: Any) -> Any:
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _put(content: dict[str, Any], dotted: str, value: Any, model: type[BaseModel]) -> None:
    """Sets one dotted key, after looking up that the model has it."""
    *sections, key = dotted.split(".")
    part: Any = model
    for position, name in enumerate((*sections, key)):
        if not (isinstance(part, type) and issubclass(part, BaseModel)):
            raise UserError(f"unknown key '{dotted}': {'.'.join((*sections, key)[:position])} has no parts")
        if name not in part.model_fields:
            raise UserError(f"unknown key '{dotted}'{_nearest(name, list(part.model_fields))}")
        part = part.model_fields[name].annotation
    for section in sections:
        content = content.setdefault(section, {})
    content[key] = value


def _explain(problem: Any, model: type[BaseModel]) -> str:
    """One pydantic problem as a sentence, with the nearest valid name or value."""
    location = [str(part) for part in problem["loc"]]
    where = _dotted(location, model)
    context, given = problem.get("ctx", {}), problem["input"]
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{'.'.join(location)}'{_nearest(location[-1], _keys(location[:-1], model))}"
    message = problem["msg"].removeprefix("Value error, ")
    if not location:
        return str(message)
    if problem["type"] == "literal_error":
        message += _nearest(str(given), _choices(str(context.get("expected", ""))))
    for bound in ("ge", "le"):
        if bound in context:
            message += f"; the nearest valid value is {context[bound]}"
    return f"{where}: {message} (got {given!r})"


def _choices(expected: str) -> list[str]:
    """The names in pydantic's "'a', 'b' or 'c'"."""
    return [word.strip().strip("'") for word in expected.replace(" or ", ",").split(",") if word.strip()]


def _dotted(location: Sequence[str], model: type[BaseModel]) -> str:
    """The key that a person wrote: pydantic adds the names of the alternatives of a union."""
    names: list[str] = []
    part: Any = model
    for name in location:
        if not (isinstance(part, type) and issubclass(part, BaseModel)) or name not in part.model_fields:
            break
        names.append(name)
        part = part.model_fields[name].annotation
    return ".".join(names) or "recipe"


def _keys(location: Sequence[str], model: type[BaseModel]) -> list[str]:
    part: Any = model
    for name in location:
        part = part.model_fields[name].annotation
        part = next((a for a in get_args(part) if isinstance(a, type) and issubclass(a, BaseModel)), part)
    return list(part.model_fields)


def _nearest(word: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(word, valid, n=1)
    return f", did you mean '{close[0]}'?" if close else f"; valid: {', '.join(valid)}"
