"""Recipe fields in words: what a key may hold, how a value is written in YAML, and the nearest value that is valid.

Error sentences and the recipe reference share these words, so that they cannot disagree.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_COUNTS = {2: "two", 3: "three", 4: "four"}
_LIMITS = ("ge", "gt", "le", "lt", "min_length")


@dataclass(frozen=True)
class Kind:
    """A type of the recipe model and its limits (``ge``, ``gt``, ``le``, ``lt``, ``min_length``)."""

    type: Any
    limits: Mapping[str, float]

    @property
    def alternatives(self) -> list[Kind]:
        """The members of a union, without None; the kind itself where there is no union."""
        if get_origin(self.type) not in (Union, UnionType):
            return [] if self.type is NoneType else [self]
        members = [_kind(member, self.limits) for member in get_args(self.type)]
        return [alternative for member in members for alternative in member.alternatives]

    @property
    def optional(self) -> bool:
        """Whether the key may be none."""
        return any(member is NoneType for member in get_args(self.type)) or self.type is NoneType

    @property
    def choices(self) -> list[Any]:
        """The values of a literal, over all alternatives."""
        literals = [one for one in self.alternatives if get_origin(one.type) is Literal]
        return [choice for literal in literals for choice in get_args(literal.type)]

    @property
    def section(self) -> type[BaseModel] | None:
        """The model of a part with keys of its own."""
        models = [one.type for one in self.alternatives if isinstance(one.type, type)]
        return next((model for model in models if issubclass(model, BaseModel)), None)

    @property
    def items(self) -> list[Kind]:
        """The kinds of the items of a tuple; of a tuple of any length, one kind."""
        return [_kind(item, {}) for item in get_args(self.type) if item is not Ellipsis]

    @property
    def any_length(self) -> bool:
        """Whether a tuple may have any number of items."""
        return Ellipsis in get_args(self.type)


def field_kind(field: FieldInfo) -> Kind:
    """The kind of a field of a recipe model."""
    # Some fields work out what is left open: none is their default, although not their type.
    annotation: Any = field.annotation
    return _kind(annotation | None if field.default is None else annotation, _limits(field.metadata))


def _kind(annotation: Any, limits: Mapping[str, float]) -> Kind:
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        return _kind(inner, {**limits, **_limits(metadata)})
    return Kind(annotation, limits)


def _limits(metadata: Sequence[Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for item in metadata:
        if isinstance(item, FieldInfo):
            found |= _limits(item.metadata)
        found |= {name: getattr(item, name) for name in _LIMITS if getattr(item, name, None) is not None}
    return found


def in_words(kind: Kind) -> str:
    """What may stand there, e.g. ``three whole numbers or 'planner'``."""
    if kind.section is not None:
        return "a section of keys"
    words = [_alternative_in_words(one) for one in kind.alternatives if get_origin(one.type) is not Literal]
    words += [repr(choice) if isinstance(choice, str) else shown(choice) for choice in kind.choices]
    either = " or ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)
    return f"{either}, or none" if kind.optional else either


def _alternative_in_words(kind: Kind) -> str:
    if get_origin(kind.type) is tuple:
        return _tuple_in_words(kind)
    if get_origin(kind.type) is dict:
        value = _kind(get_args(kind.type)[1], {})
        return f"{{name: {_alternative_in_words(value)}}}, any number of names"
    if kind.type is bool:
        return "true or false"
    if kind.type is str:
        return "text"
    names = {int: "a whole number", float: "a number"}
    return " ".join(part for part in (names.get(kind.type, str(kind.type)), _range(kind.limits)) if part)


def _tuple_in_words(kind: Kind) -> str:
    item = kind.items[0]
    noun = {int: "whole numbers", float: "numbers", str: "texts"}.get(item.type, "values")
    if kind.any_length:
        count = "a list of one or more" if kind.limits.get("min_length") == 1 else "a list of"
    else:
        count = _COUNTS.get(len(kind.items), str(len(kind.items)))
    pair = " [low, high]" if len(kind.items) == 2 else ""
    each = f", each {_range(item.limits)}" if item.limits else ""
    return f"{count} {noun}{pair}{each}"


def _range(limits: Mapping[str, float]) -> str:
    if "ge" in limits and "le" in limits:
        return f"from {shown(limits['ge'])} to {shown(limits['le'])}"
    parts = {"ge": "of {} or more", "gt": "greater than {}", "le": "at most {}", "lt": "less than {}"}
    return " and ".join(text.format(shown(limits[name])) for name, text in parts.items() if name in limits)


def shown(value: Any) -> str:
    """A value as a person writes it in YAML, in one line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(shown(item) for item in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def did_you_mean(word: str, valid: Sequence[str]) -> str:
    """The end of a sentence about an unknown word: the nearest valid one, or all of them."""
    close = difflib.get_close_matches(word, valid, n=1)
    return f", did you mean '{close[0]}'?" if close else f"; valid: {', '.join(valid)}"


def nearest_value(kind: Kind, value: Any) -> Any:
    """The valid value nearest to an impossible one, or None where there is no sensible one."""
    if isinstance(value, str):
        close = difflib.get_close_matches(value, [choice for choice in kind.choices if isinstance(choice, str)], n=1)
        if close:
            return close[0]
        value = _numbers_in(value)
    for alternative in kind.alternatives:
        found = _nearest_alternative(alternative, value)
        if found is not None:
            return found
    return None


def _nearest_alternative(kind: Kind, value: Any) -> Any:
    if get_origin(kind.type) is tuple:
        return _nearest_list(kind, value)
    return _nearest_number(kind, value) if _is_number(value) and kind.type in (int, float) else None


def _nearest_number(kind: Kind, value: float) -> float | None:
    limits, whole = kind.limits, kind.type is int
    lowest = limits.get("ge", limits["gt"] + 1 if whole and "gt" in limits else -math.inf)
    highest = limits.get("le", limits["lt"] - 1 if whole and "lt" in limits else math.inf)
    number = min(max(value, lowest), highest)
    if not math.isfinite(number) or number <= limits.get("gt", -math.inf) or number >= limits.get("lt", math.inf):
        return None  # beside an open end there is no nearest number
    return round(number) if whole else number


def _nearest_list(kind: Kind, value: Any) -> list[Any] | None:
    given = value if isinstance(value, list | tuple) else [value]
    if not given or not all(_is_number(item) for item in given):
        return None
    if kind.any_length:
        kinds = kind.items * len(given)
    elif len(given) == len(kind.items):
        kinds = kind.items
    elif len(set(given)) == 1:  # one edge length stands for a cube
        kinds, given = kind.items, [given[0]] * len(kind.items)
    else:
        return None
    found = [_nearest_number(item, number) for item, number in zip(kinds, given, strict=True)]
    return None if None in found else found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers_in(text: str) -> Any:
    """The numbers of ``1 1 1``, ``1,1,1`` or ``(1, 1, 1)``; the text itself if it holds anything else."""
    try:
        numbers = [float(part) for part in re.split(r"[\s,()\[\]]+", text) if part]
    except ValueError:
        return text
    return (numbers[0] if len(numbers) == 1 else numbers) if numbers else text
