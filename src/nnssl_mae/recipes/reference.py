"""The recipe reference ``docs/recipes.md``, written from the models and the shipped files themselves.

python -m nnssl_mae.recipes.reference > docs/recipes.md
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from nnssl_mae.markdown import table
from nnssl_mae.recipes.base import FrozenRecipe
from nnssl_mae.recipes.finetuning import FinetuneRecipe, finetuning_folder, load_finetune_recipe
from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.recipes.reading import all_keys, base_of, configs_folder, load_recipe, shipped_recipes
from nnssl_mae.recipes.words import field_kind, in_words, shown

COMMAND = "python -m nnssl_mae.recipes.reference > docs/recipes.md"
_LABELS = ("name", "summary", "citation")

_INTRODUCTION = f"""\
# Recipes

<!-- Generated; do not edit. `{COMMAND}` -->

A recipe is everything that decides a run. It is stored in nnU-Net's plans, so results and checkpoints carry it along.
Choose a shipped one by name, change single values, or write a file of your own (one of these; another experiment on
the same scans needs another number, or `pretrain --recipe`):

    nnssl-mae prepare SCANS -d 900 -n Brains --recipe s3d
    nnssl-mae prepare SCANS -d 900 -n Brains --recipe s3d --set masking.block_size=16 --set schedule.patience=50
    nnssl-mae prepare SCANS -d 900 -n Brains --recipe mine.yaml

## `--set key=value`

Give it as often as you like. The key is written as in the tables below, the value as in YAML:

| kind | example |
|---|---|
| number | `--set optimiser.learning_rate=1e-3` |
| word | `--set data.spacing=native` |
| true or false | `--set augmentation.mirror=false` |
| several numbers, in quotes for the shell | `--set "masking.ratio=[0.6, 0.9]"` |
| nothing | `--set optimiser.gradient_clip=none` |

`--spacing`, `--patch` and `--batch` of `prepare` are short for `data.spacing`, `network.patch_size` and
`network.batch_size`. `pretrain --recipe` takes `--set` too, and so does `adapt` for the fine-tuning recipe.

## A file of your own

Name a recipe to start from with `base`, and write what differs. All else is taken over, except `name` and `summary`
(left out, the file's name is the name). `base` may also be another file, relative to this one.

```yaml
# mine.yaml
base: mae
name: mine
summary: plain MAE at 0.8 mm
data:
  spacing: [0.8, 0.8, 0.8]
network:
  patch_size: [128, 128, 128]
  batch_size: 4
```

Without `base`, keys that are left out have the defaults of the tables below. Unknown keys and impossible values are
refused, with the nearest valid one.
"""


@dataclass(frozen=True)
class _Family:
    """One kind of recipe: its model, the shipped ones, and the one that the others are compared with."""

    title: str
    model: type[FrozenRecipe]
    folder: Path
    load: Callable[[str], FrozenRecipe]
    standard: str


def families() -> list[_Family]:
    """Pre-training and fine-tuning."""
    return [
        _Family("Pre-training", Recipe, configs_folder(), load_recipe, "mae"),
        _Family("Fine-tuning", FinetuneRecipe, finetuning_folder(), load_finetune_recipe, "warmup"),
    ]


def reference() -> str:
    """The whole page as Markdown."""
    return "\n".join([_INTRODUCTION, *(_family(family) for family in families())])


def differences(recipe: BaseModel, other: BaseModel) -> list[tuple[str, Any, Any]]:
    """Key, value and the other's value wherever two recipes of a kind differ, apart from name, summary and citation."""
    keys = [key for key in all_keys(type(recipe)) if key not in _LABELS]
    rows = [(key, _at(recipe, key), _at(other, key)) for key in keys]
    return [row for row in rows if row[1] != row[2]]


def _at(recipe: BaseModel, dotted: str) -> Any:
    value: Any = recipe
    for name in dotted.split("."):
        value = getattr(value, name)
    return value


def _family(family: _Family) -> str:
    recipes = [family.load(name) for name in _standard_first(family)]
    shipped = table(("recipe", "what it is"), [(f"`{_name(one)}`", one.model_dump()["summary"]) for one in recipes])
    by_name = {_name(one): one for one in recipes}
    compared = [_comparison(one, by_name[_compared_with(family, _name(one))]) for one in recipes[1:]]
    parts = [f"## {family.title}: the shipped recipes", shipped, *compared, f"## {family.title}: all keys"]
    return "\n\n".join([*parts, *_sections(family.model)]) + "\n"


def _standard_first(family: _Family) -> list[str]:
    return sorted(shipped_recipes(family.folder), key=lambda name: (name != family.standard, name))


def _compared_with(family: _Family, name: str) -> str:
    """The recipe that a file builds on says most about it; the standard one where it builds on none."""
    return base_of(family.folder / f"{name}.yaml") or family.standard


def _name(recipe: BaseModel) -> str:
    return str(recipe.model_dump()["name"])


def _comparison(recipe: BaseModel, standard: BaseModel) -> str:
    rows = [(f"`{key}`", _code(value), _code(other)) for key, value, other in differences(recipe, standard)]
    heading = f"### `{_name(recipe)}`, compared with `{_name(standard)}`"
    return f"{heading}\n\n{table(('key', f'`{_name(recipe)}`', f'`{_name(standard)}`'), rows)}"


def _sections(model: type[BaseModel]) -> Iterable[str]:
    """A table of the keys without a section, then a heading, a sentence and a table for each section."""
    plain = [row for name, field in model.model_fields.items() if not field_kind(field).section
             for row in _rows(name, field)]  # fmt: skip
    yield f"{_prose(inspect.getdoc(model))}\n\n{_keys_table(plain)}"
    for name, field in model.model_fields.items():
        section = field_kind(field).section
        if section:
            rows = [row for key, part in section.model_fields.items() for row in _rows(f"{name}.{key}", part)]
            yield f"### `{name}`\n\n{_prose(inspect.getdoc(section))}\n\n{_keys_table(rows)}"


def _rows(dotted: str, field: FieldInfo) -> list[tuple[str, str, str, str]]:
    """Key, what it may hold, default and meaning; a section is followed by its own keys."""
    kind = field_kind(field)
    if kind.section is None:
        default = "required" if field.is_required() else _code(field.get_default(call_default_factory=True))
        return [(f"`{dotted}`", _words_as_code(in_words(kind)), default, _prose(field.description))]
    rows = [(f"`{dotted}`", "section", "", _prose(inspect.getdoc(kind.section)))]
    for name, part in kind.section.model_fields.items():
        rows += _rows(f"{dotted}.{name}", part)
    return rows


def _keys_table(rows: Sequence[Sequence[str]]) -> str:
    return table(("key", "may be", "default", "meaning"), rows)


def _code(value: Any) -> str:
    """A value as written in YAML; words need no quotes there."""
    return f"`{value if isinstance(value, str) and value else shown(value)}`"


def _words_as_code(words: str) -> str:
    return re.sub(r"'([^']+)'", r"`\1`", words)


def _prose(docstring: str | None) -> str:
    """A docstring in one line of Markdown."""
    return " ".join((docstring or "").replace("``", "`").split())


if __name__ == "__main__":
    print(reference(), end="")
