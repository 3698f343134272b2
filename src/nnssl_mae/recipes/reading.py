"""Recipes from YAML files, with changes of single values, and sentences for what is wrong in them."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from nnssl_mae.errors import UserError
from nnssl_mae.recipes.base import FrozenRecipe
from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.recipes.words import Kind, did_you_mean, field_kind, in_words, nearest_value, shown

AnyRecipe = TypeVar("AnyRecipe", bound=FrozenRecipe)
_YAML_ENDINGS = (".yaml", ".yml")


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
    content = changed(read_yaml(name_or_file, configs_folder()), changes, Recipe)
    keys = assignments(changes, Recipe)
    if keys and "summary" not in keys:
        content["summary"] = changed_summary(content.get("summary"), keys)
    return parse(Recipe, content, source=name_or_file)


def changed_summary(summary: Any, changes: Iterable[str]) -> str:
    """The summary of a recipe of which some keys were changed, so that results do not pass for the published one."""
    return f"{summary}; changed: {', '.join(changes)}"


def parse_recipe(content: Mapping[str, Any], source: str) -> Recipe:
    """Validates a mapping; ``source`` names it in the error sentence."""
    return parse(Recipe, content, source)


def override(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """A copy with dotted keys replaced, e.g. ``{"network.batch_size": 2}``; validated again."""
    content = recipe.model_dump()
    for dotted, value in changes.items():
        _put(content, dotted, value, Recipe)
    return parse(Recipe, content, source=recipe.name)


def read_yaml(name_or_file: str, *folders: Path) -> dict[str, Any]:
    """The content of a shipped recipe in one of ``folders`` by name, or of any YAML file by path.

    A file may start from another recipe: with ``base: mae`` (or a path, relative to the file) it takes over
    everything but ``name`` and ``summary``, and only its own keys differ. The result has no key ``base``.

    Raises:
        UserError: unknown name, unreadable file, or a chain of bases that comes back to its start.
    """
    return _inherited(_recipe_file(name_or_file, folders), folders, chain=())


def base_of(file: Path) -> str | None:
    """The recipe that a file starts from, as its key ``base`` says."""
    base = _read_file(file).get("base")
    return None if base is None else str(base)


def parse(model: type[AnyRecipe], content: Mapping[str, Any], source: str) -> AnyRecipe:
    """Validates a mapping as a recipe of this kind.

    Raises:
        UserError: with each key that is wrong, what it may hold, and the nearest valid name or value.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"The recipe {source} is not valid: it must hold keys and values (got {shown(content)})")
    content = _with_none(content, model)
    problems = {key: _must_be(key, kind, value) for key, kind, value in _leaves(content, model) if _unfit(kind, value)}
    try:
        recipe = model.model_validate(content)
    except ValidationError as error:
        for problem in error.errors():
            key, sentence = _explain(problem, content, model)
            problems.setdefault(key, sentence)
        raise UserError(_not_valid(source, problems.values())) from error
    if problems:
        raise UserError(_not_valid(source, problems.values()))
    return recipe


def assignments(texts: Sequence[str], model: type[BaseModel]) -> dict[str, Any]:
    """Dotted keys and values of ``--set`` arguments such as ``masking.ratio=[0.6, 0.9]``; the last of a key counts.

    Raises:
        UserError: not of the form key=value, or an unknown key.
    """
    result = {}
    for text in texts:
        dotted, equals, written = (part.strip() for part in text.partition("="))
        if not equals or not dotted or not written:
            raise UserError(f"--set '{text}' is not possible; write it as key=value")
        try:
            value = yaml.load(written, _Loader)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise UserError(f"--set '{text}' is not possible: {written} cannot be read as a value") from error
        if refusal := _not_settable(dotted, model):
            raise UserError(f"--set '{text}' is not possible: {refusal}")
        result[dotted] = value
    return result


def changed(content: Mapping[str, Any], texts: Sequence[str], model: type[BaseModel]) -> dict[str, Any]:
    """A copy of a recipe's content with :func:`assignments` made."""
    result = _merged(content, {})
    for dotted, value in assignments(texts, model).items():
        _put(result, dotted, value, model)
    return result


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number, as people expect, no key stands twice, and nothing refers to itself."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                problem="references (*) are not supported; repeat the value", problem_mark=self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key '{key}' stands twice", problem_mark=node.value[position][0].start_mark
                )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _recipe_file(name_or_file: str, folders: Sequence[Path]) -> Path:
    if Path(name_or_file).suffix in _YAML_ENDINGS:
        return Path(name_or_file)
    shipped = {name: folder / f"{name}.yaml" for folder in folders for name in shipped_recipes(folder)}
    if name_or_file not in shipped:
        hint = did_you_mean(name_or_file, list(shipped))
        if Path(name_or_file).is_file():
            hint = "; recipe files end in .yaml"
        raise UserError(f"There is no recipe '{name_or_file}'{hint}")
    return shipped[name_or_file]


def _inherited(path: Path, folders: Sequence[Path], chain: tuple[Path, ...]) -> dict[str, Any]:
    """The content of a file on top of its base; ``chain`` are the files that led here."""
    if path.resolve() in chain:
        raise UserError(f"The recipe file {chain[0]} starts, by its key 'base', from itself; take 'base' out")
    content = _read_file(path)
    if "base" not in content:
        return content
    base = content.pop("base")
    if not isinstance(base, str):
        raise UserError(f"The recipe file {path}: base must be the name of a recipe or a file, not {shown(base)}")
    start = path.parent / base if Path(base).suffix in _YAML_ENDINGS else _base_by_name(base, path, folders)
    below = _inherited(start, folders, (*chain, path.resolve()))
    below |= {"name": path.stem, "summary": f"{base}, changed in {path.name}"}
    return _merged(below, content)


def _base_by_name(base: str, path: Path, folders: Sequence[Path]) -> Path:
    try:
        return _recipe_file(base, folders)
    except UserError as error:
        raise UserError(f"The recipe file {path}, key base: {error}") from error


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as error:
        raise UserError(f"There is no recipe file {path}") from error
    except OSError as error:
        raise UserError(f"The recipe file {path} cannot be read: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"The recipe file {path}{line}, is not valid YAML: {error.problem}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"The recipe file {path} is not a text file in UTF-8") from error
    except (ValueError, RecursionError) as error:  # of YAML's dates, and of endless nesting
        raise UserError(f"The recipe file {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"The recipe file {path} must hold keys and values, such as 'name: mine'")
    return content


def _merged(below: Any, above: Any) -> Any:
    """``above`` over ``below``: sections key by key, all else replaced. Copies all mappings."""
    if not isinstance(above, Mapping) or not isinstance(below, Mapping):
        return above
    copies = {key: _merged({}, value) for key, value in below.items()}
    return copies | {key: _merged(below.get(key, {}), value) for key, value in above.items()}


def _not_settable(dotted: str, model: type[BaseModel]) -> str | None:
    """Why ``--set`` cannot set this key, if it cannot."""
    found = _field(dotted.split("."), model)
    if found is None:
        return _unknown_key(dotted.split("."), model)
    if found.section is None:
        return None
    example = f"{dotted}.{next(iter(found.section.model_fields))}"
    return f"{dotted} is a section: set its keys one by one, such as {example}=..."


def _put(content: dict[str, Any], dotted: str, value: Any, model: type[BaseModel]) -> None:
    """Sets one dotted key, after looking up that the model has it."""
    *sections, key = dotted.split(".")
    if _field([*sections, key], model) is None:
        raise UserError(_unknown_key([*sections, key], model))
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise UserError(f"'{section}' in the recipe must be a section of keys (got {shown(content)})")
    content[key] = value


def _field(names: Sequence[Any], model: type[BaseModel]) -> Kind | None:
    """The kind of a key, or None if there is no such key."""
    part: type[BaseModel] | None = model
    kind = None
    for name in names:
        if part is None or name not in part.model_fields:
            return None
        kind = field_kind(part.model_fields[name])
        part = kind.section
    return kind


def all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key of a recipe model that holds a value, dotted, in the order of the model."""
    keys = []
    for name, field in model.model_fields.items():
        section = field_kind(field).section
        keys += all_keys(section, f"{prefix}{name}.") if section else [f"{prefix}{name}"]
    return keys


def _leaves(content: Mapping[Any, Any], model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Kind, Any]]:
    """The known keys of a recipe's content with their kinds and values."""
    for name, field in model.model_fields.items():
        if name not in content:
            continue
        kind = field_kind(field)
        if kind.section is not None and isinstance(content[name], Mapping):
            yield from _leaves(content[name], kind.section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", kind, content[name]


def _with_none(content: Mapping[Any, Any], model: type[BaseModel]) -> dict[Any, Any]:
    """YAML has ``null``; people write ``none``. Only where a key may be none and the word means nothing else."""
    result = dict(content)
    for name in result.keys() & model.model_fields.keys():
        kind, value = field_kind(model.model_fields[name]), result[name]
        if kind.section is not None and isinstance(value, Mapping):
            result[name] = _with_none(value, kind.section)
        elif kind.optional and "none" not in kind.choices and str(value).lower() == "none":
            result[name] = None
    return result


def _unfit(kind: Kind, value: Any) -> bool:
    """What pydantic lets through: true as the number 1, and numbers that are not finite."""
    if isinstance(value, list | tuple):
        return any(_unfit(kind, item) for item in value)
    if isinstance(value, bool):
        return all(one.type is not bool for one in kind.alternatives) and True not in kind.choices
    return isinstance(value, float) and not math.isfinite(value)


def _explain(problem: Any, content: Mapping[Any, Any], model: type[BaseModel]) -> tuple[str, str]:
    """The key that a pydantic problem is about, and a sentence for it."""
    location = list(problem["loc"])
    if problem["type"] in ("extra_forbidden", "invalid_key"):
        return ".".join(map(str, location)), _unknown_key([str(part) for part in location], model)
    if problem["type"] == "missing" and _field(location, model) is not None:
        return ".".join(location), f"{'.'.join(location)} is missing"
    # Pydantic appends the names of a union's alternatives and positions in lists: only keys are kept.
    while location and _field(location, model) is None:
        location.pop()
    dotted, kind = ".".join(location), _field(location, model)
    if problem["type"] == "value_error":
        message = problem["msg"].removeprefix("Value error, ")
        section = kind is None or kind.section is not None
        return dotted, message if section else f"{dotted}: {message}"
    return dotted, _must_be(dotted, kind, _value(content, location)) if kind else problem["msg"]


def _value(content: Any, names: Sequence[str]) -> Any:
    """What stands at a key; None where nothing does."""
    for name in names:
        content = content.get(name) if isinstance(content, Mapping) else None
    return content


def _must_be(dotted: str, kind: Kind, value: Any) -> str:
    nearest = nearest_value(kind, value)
    if nearest is None:
        end = ""
    elif isinstance(nearest, str):
        end = f"; did you mean {shown(nearest)}?"
    else:
        end = f"; the nearest valid value is {shown(nearest)}"
    return f"{dotted} must be {in_words(kind)} (got {'nothing' if value is None else shown(value)}){end}"


def _unknown_key(names: Sequence[str], model: type[BaseModel]) -> str:
    """A sentence with the nearest key of the same section or of another one, else all keys of the section."""
    known = next(n for n in range(len(names)) if _field(names[: n + 1], model) is None)
    parent = _field(names[:known], model)
    section = parent.section if parent else model
    dotted, above = ".".join(names), [f"{name}." for name in names[:known]]
    if section is None:
        return f"unknown key '{dotted}': {dotted.rpartition('.')[0]} has no parts"
    elsewhere = [key for key in all_keys(model) if key.rpartition(".")[2] == names[-1]]
    close = difflib.get_close_matches(names[known], list(section.model_fields), n=1)
    if len(elsewhere) == 1:
        return f"unknown key '{dotted}', did you mean '{elsewhere[0]}'?"
    if close:
        return f"unknown key '{dotted}', did you mean '{''.join(above)}{close[0]}'?"
    return f"unknown key '{dotted}'; valid: {', '.join(''.join(above) + name for name in section.model_fields)}"


def _not_valid(source: str, problems: Iterable[str]) -> str:
    sentences = list(problems)
    if len(sentences) == 1:
        return f"The recipe {source} is not valid: {sentences[0]}"
    return f"The recipe {source} is not valid:" + "".join(f"\n  {sentence}" for sentence in sentences)
