"""What all recipe models share."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class FrozenRecipe(BaseModel):
    """Cannot be changed, refuses unknown keys; the text below a field is its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Limit = TypeVar("Limit", int, float)


def low_first(limits: tuple[Limit, Limit]) -> tuple[Limit, Limit]:
    """Refuses (high, low), with the other way round as the remedy."""
    if limits[0] > limits[1]:
        raise ValueError(f"the range must be [low, high] with low <= high; did you mean [{limits[1]}, {limits[0]}]?")
    return limits


Probability = Annotated[float, Field(ge=0, le=1)]
Size3 = tuple[int, int, int]
Spacing3 = tuple[float, float, float]
Interval = Annotated[tuple[float, float], AfterValidator(low_first)]
"""(low, high), drawn uniformly."""
_NotNegative = Annotated[float, Field(ge=0)]
Spread = Annotated[tuple[_NotNegative, _NotNegative], AfterValidator(low_first)]
"""(low, high) of numbers that are not negative, drawn uniformly."""
