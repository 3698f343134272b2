"""The metrics of the table of cases: column, name, unit, direction."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: column of the table of cases.
        title: for people.
        unit: empty where there is none.
        digits: after the point, in tables and sentences.
        higher_is_better: False for distances.
        best: the value of a perfect segmentation.
    """

    name: str
    title: str
    unit: str
    digits: int
    higher_is_better: bool
    best: float

    @property
    def axis(self) -> str:
        """For headings and axes: ``HD95, mm``."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def words(self) -> str:
        """Unit and name behind a number in a sentence: ``mm HD95``."""
        return f"{self.unit} {self.title}".lstrip()

    def gain(self, difference: float) -> float:
        """The difference with the sign that is positive where the first arm is better."""
        return difference if self.higher_is_better else -difference


METRICS = (
    Metric("dice", "Dice", "", 3, higher_is_better=True, best=1.0),
    Metric("nsd", "NSD", "", 3, higher_is_better=True, best=1.0),
    Metric("hd95", "HD95", "mm", 2, higher_is_better=False, best=0.0),
    Metric("lesion_f1", "lesion F1", "", 3, higher_is_better=True, best=1.0),
)
