"""The user's own rules about which scans of a catalogue are used: ``exclude modality == 'T1w' and min_spacing >= 3``.

They stand in the settings of the catalogue, so that it says itself what was left out and why. What a condition may
hold is described in :mod:`nnssl_mae.catalogue.where`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas
from numpy.typing import NDArray
from rich.console import Console

from nnssl_mae.catalogue.checks import DUPLICATES, Limits, duplicate_verdicts
from nnssl_mae.catalogue.known import rows_of, writing_to
from nnssl_mae.catalogue.lock import writing_alone
from nnssl_mae.catalogue.table import ACCEPTED, REJECTED, Catalogue, read_catalogue, write_catalogue
from nnssl_mae.catalogue.where import Where, parse_where
from nnssl_mae.errors import UserError
from nnssl_mae.recipes.words import did_you_mean

Kind = Literal["include", "exclude"]
KINDS: tuple[Kind, ...] = ("include", "exclude")
_SETTING = "rules"


@dataclass(frozen=True)
class Rule:
    """``include``: only scans that fulfil one of these are used. ``exclude``: scans that fulfil it are not."""

    kind: Kind
    where: Where

    @property
    def text(self) -> str:
        """As it stands in the column ``rule``."""
        return f"{self.kind} {self.where.text}"


@dataclass(frozen=True)
class Effect:
    """What a rule does to the scans that passed all checks."""

    number: int
    """Its place in the list, from 1: what :func:`remove_rules` takes."""
    rule: Rule
    matches: int
    """How many of those scans fulfil it."""
    rejects: int
    """How many it leaves out that no rule before it did; of ``include`` rules together, given to the first."""


def rules_of(catalogue: Catalogue) -> list[Rule]:
    """The rules in force, in the order they were added.

    Raises:
        UserError: the catalogue's own list is damaged.
    """
    stored = catalogue.settings.get(_SETTING, [])
    try:
        return [Rule(_kind(entry["kind"]), parse_where(entry["where"])) for entry in stored]
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"The catalogue's list of rules is damaged ({stored!r}); remove all rules and add them again"
        ) from error


def apply_rules(catalogue: Catalogue) -> Catalogue:
    """The same catalogue with ``rule`` and ``verdict`` set anew from ``check`` and all rules.

    A scan that failed a check stays rejected for that reason and has no ``rule``. Duplicates are found anew among the
    scans that are left: the copy of one that a rule leaves out is no duplicate any more.

    Raises:
        UserError: a stored rule is damaged.
    """
    rows = catalogue.rows.copy()
    were_duplicates = rows["check"].isin(DUPLICATES) & (rows["voxel_hash"] != "")
    rows.loc[were_duplicates, ["check", "detail"]] = ""
    passed = _passed(rows)
    left_out = np.where(passed, _left_out_by(rows, rules_of(catalogue)), "")
    rows["rule"] = pandas.Series(left_out.tolist(), index=rows.index, dtype=object)
    accepted = passed & (left_out == "")
    rows["verdict"] = pandas.Series(np.where(accepted, ACCEPTED, REJECTED).tolist(), index=rows.index, dtype=object)
    _reject_duplicates(rows, tuple(catalogue.settings.get("limits", {}).get("allow", ())))
    return replace(catalogue, rows=rows)


def _reject_duplicates(rows: pandas.DataFrame, allowed: tuple[str, ...]) -> None:
    """Sets check, detail and verdict of all but one of the accepted scans that have the same voxels."""
    accepted = rows[(rows["verdict"] == ACCEPTED) & (rows["voxel_hash"] != "")]
    copies = accepted[accepted.duplicated("voxel_hash", keep=False)]
    verdicts = duplicate_verdicts(rows_of(Catalogue(copies)), Limits(allow=allowed))
    for place, (check, detail) in verdicts.items():
        rows.loc[copies.index[place], ["check", "detail", "verdict"]] = [check, detail, REJECTED]


def add_rule(folder: Path, kind: str, where: str) -> Catalogue:
    """Appends a rule to a catalogue on disk and applies all; one that is there already is not added twice.

    Args:
        folder: of the catalogue.
        kind: ``include`` or ``exclude``.
        where: the condition.

    Raises:
        UserError: the condition is not possible (the catalogue stays as it is), or there is no catalogue.
    """
    rule = Rule(_kind(kind), parse_where(where))
    with _changing(folder) as catalogue:
        rules = rules_of(catalogue)
        return _rewrite(folder, catalogue, rules if rule in rules else [*rules, rule])


def remove_rules(folder: Path, number: int | None = None) -> Catalogue:
    """Removes one rule by its number, from 1, or all, and applies the rest.

    Raises:
        UserError: there is no such rule, or no catalogue.
    """
    with _changing(folder) as catalogue:
        if number is None:
            return _rewrite(folder, catalogue, [])
        rules = rules_of(catalogue)
        if not 1 <= number <= len(rules):
            numbers = f"its rules have the numbers 1 to {len(rules)}" if rules else "it has no rules"
            raise UserError(f"{folder} has no rule {number}; {numbers}")
        return _rewrite(folder, catalogue, rules[: number - 1] + rules[number:])


def effects(catalogue: Catalogue) -> list[Effect]:
    """What each rule in force does, in order."""
    rules = rules_of(catalogue)
    rows = catalogue.rows[_passed(catalogue.rows)]
    left_out = _left_out_by(rows, rules)
    first_include = next((rule for rule in rules if rule.kind == "include"), None)
    by_include = int(np.isin(left_out, [_included_text(rules)]).sum())
    found = []
    for number, rule in enumerate(rules, 1):
        rejects = (
            (by_include if rule is first_include else 0) if rule.kind == "include" else _count(left_out, rule.text)
        )
        found.append(Effect(number, rule, int(rule.where.matches(rows).sum()), rejects))
    return found


def notes(catalogue: Catalogue) -> list[str]:
    """What a user should know about the rules: those that match nothing, and when nothing is left."""
    passed = int(_passed(catalogue.rows).sum())
    found = effects(catalogue)
    said = [
        f"Rule {effect.number} ({effect.rule.text}) matches none of the {passed} scans that passed the checks."
        for effect in found
        if passed and not effect.matches
    ]
    if found and passed and catalogue.accepted.empty:
        said.append("The rules leave no scan; remove one with `nnssl-mae scan rules CATALOGUE --remove NUMBER`.")
    return said


def print_rules(catalogue: Catalogue, console: Console, before: Catalogue | None = None) -> None:
    """Prints the rules with their numbers and what each does, how many scans are left, and the notes.

    Args:
        catalogue: with the rules applied.
        console: to print on.
        before: the same catalogue before its rules were changed, if they were: what became of duplicates is said then.
    """
    found = effects(catalogue)
    lines = [
        f"{effect.number}. {effect.rule.text}: matches {effect.matches}, leaves out {effect.rejects}"
        for effect in found
    ] or ["No rules."]
    lines += [] if before is None else _former_duplicates(before, catalogue)
    lines.append(f"{len(catalogue.accepted)} of {len(catalogue.rows)} scans are accepted.")
    for line in (*lines, *notes(catalogue)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _former_duplicates(before: Catalogue, after: Catalogue) -> list[str]:
    """Why fewer or more scans are left than the rules' numbers tell: scans that were rejected as duplicates."""
    duplicates = before.rows["case"][before.rows["check"].isin(DUPLICATES)]
    passed = after.rows[after.rows["case"].isin(duplicates) & _passed(after.rows)]
    back = int((passed["verdict"] == ACCEPTED).sum())
    ruled_out = len(passed) - back
    said = []
    if back == 1:
        said.append("1 comes back: the copy that was kept before is left out now.")
    elif back:
        said.append(f"{back} come back: the copies that were kept before are left out now.")
    if ruled_out:
        was = "was a duplicate" if ruled_out == 1 else "were duplicates"
        said.append(f"{ruled_out} of those that the rules leave out {was} before.")
    return said


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[Catalogue]:
    """A catalogue that no scan writes meanwhile, which would undo the change."""
    read_catalogue(path)  # or there is no folder to hold a lock in
    folder = path if path.is_dir() else path.parent
    with writing_alone(folder):
        yield read_catalogue(path)


def _rewrite(folder: Path, catalogue: Catalogue, rules: Sequence[Rule]) -> Catalogue:
    stored = [{"kind": rule.kind, "where": rule.where.text} for rule in rules]
    changed = apply_rules(replace(catalogue, settings={**catalogue.settings, _SETTING: stored}))
    folder = folder if folder.is_dir() else folder.parent
    with writing_to(folder):
        write_catalogue(folder, changed)
    return changed


def _kind(word: str) -> Kind:
    for kind in KINDS:
        if word == kind:
            return kind
    raise UserError(f"'{word}' is no kind of rule{did_you_mean(str(word), KINDS)}")


def _passed(rows: pandas.DataFrame) -> NDArray[np.bool_]:
    return np.asarray(rows["check"].fillna("") == "", dtype=bool)


def _left_out_by(rows: pandas.DataFrame, rules: Sequence[Rule]) -> NDArray[np.object_]:
    """(scans,) text of the first rule that leaves each scan out, empty where none does; ``include`` comes first."""
    found = np.full(len(rows), "", dtype=object)
    included = [rule.where.matches(rows) for rule in rules if rule.kind == "include"]
    if included:
        found[~np.logical_or.reduce(included)] = _included_text(rules)
    for rule in rules:
        if rule.kind == "exclude":
            found[rule.where.matches(rows) & (found == "")] = rule.text
    return found


def _included_text(rules: Sequence[Rule]) -> str:
    """What stands in ``rule`` where a scan fulfils none of the ``include`` rules."""
    return "; ".join(rule.text for rule in rules if rule.kind == "include")


def _count(left_out: NDArray[np.object_], text: str) -> int:
    return int((left_out == text).sum())
