"""The table of all cases into a comparison of arms: means with intervals, ranks, pairs with verdicts, holes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from nnssl_mae.comparison.cases import checked_cases
from nnssl_mae.comparison.cells import cell_table, label_table
from nnssl_mae.comparison.entries import Unfinished
from nnssl_mae.comparison.groups import groups_of
from nnssl_mae.comparison.holes import find_holes, with_unfinished
from nnssl_mae.comparison.notes import notes_of
from nnssl_mae.comparison.pairs import pair_table
from nnssl_mae.comparison.ranks import rank_table
from nnssl_mae.errors import UserError

FAILURE_COLUMNS = ["dataset", "arm", "replicate", "fold", "case", "failure"]


@dataclass(frozen=True)
class Comparison:
    """What a table of cases says about its arms.

    Scores keep the unit of the table of cases: `dice`, `nsd` and `lesion_f1` are 0..1, `hd95` is in mm. `labelled` is
    Int64, NA for runs on all labels. A metric that was measured nowhere has no rows. Numbers that cannot be given are
    NaN, never 0.

    Attributes:
        cells: one row = one (dataset, labelled, arm, metric).
            dataset str; labelled Int64; arm str; metric str (dice | nsd | hd95 | lesion_f1);
            mean float: mean over subjects (NaN with a hole);
            low, high float: 95 % bootstrap interval of that mean over subjects (NaN with a hole or under 6 subjects);
            seed_sd float: standard deviation of the means of the replicates x repeats (NaN if there is one);
            n_subjects int: subjects with a value; n_replicates int: replicates found; n_failures int: case x run that
            failed (counted in the mean); hole str: "" if whole, else what is missing in words.
        labels: one row = one (dataset, labelled, arm, metric, label): columns of `cells`, and `label` after `metric`.
        ranks: one row = one (labelled, metric, arm): rank float (mean over datasets, 1 = best, ties share the middle;
            NaN if no dataset is whole for all arms), n_datasets int (datasets that are whole for all arms).
        pairs: one row = one (dataset, labelled, metric, arm, control); dataset "all" = mean over datasets, only where
            there are several.
            difference float: arm - control, whatever the direction of the metric;
            low, high float: 95 % bootstrap interval over subjects (NaN under 6 subjects);
            n_subjects int; p float: Wilcoxon signed rank, two-sided (NaN under 6); p_holm float: corrected over all
            pairs of the metric; effect float: Cohen's d_z (NaN under 6); rank_biserial float: -1..1 (NaN under 6);
            better, worse, equal int: subjects in which the arm is better, worse, equal (in the metric's direction);
            seed_sd float: spread of the difference over seeds (NaN if one); verdict str: a sentence.
        holes: dataset str, labelled Int64, fold str, repeat Int64, arm str, replicate str ("" if not known by name),
            what str.
        failures: dataset, arm, replicate, fold, case, failure (all str): one row = one case of one run.
        arms: in the order in which the table of cases names them.
        controls: the arms that others are compared with.
        notes: sentences that belong under the tables.
    """

    cells: pd.DataFrame
    labels: pd.DataFrame
    ranks: pd.DataFrame
    pairs: pd.DataFrame
    holes: pd.DataFrame
    failures: pd.DataFrame
    arms: tuple[str, ...]
    controls: tuple[str, ...]
    notes: tuple[str, ...]


def compare(
    cases: pd.DataFrame,
    control: str | Sequence[str],
    seed: int = 0,
    resamples: int = 10000,
    overlap: Mapping[str, str | None] | None = None,
    uneven_replicates: bool = False,
    unfinished: Sequence[Unfinished] = (),
) -> Comparison:
    """Compare the arms of a table of cases.

    The unit that is resampled and tested is the subject: labels, seeds, repeats and folds are averaged within it first,
    so further seeds never count as further evidence. With fewer than 6 independent subjects there are means and spread
    over seeds, and no interval, p-value or word on significance.

    Args:
        cases: one row = one case x one label of one run, as `measure` gives it.
        control: the arm or arms that the others are compared with; controls are not compared with each other. With none
            there are no pairs.
        seed: of the bootstrap.
        resamples: of the bootstrap.
        overlap: for each arm a sentence on overlap between pre-training and test data, None if nobody checked.
        uneven_replicates: True if arms may have different numbers of replicates (else an arm with fewer than another
            has a hole).
        unfinished: holes that are known before measuring, such as runs that were begun; also of arms without any case.

    Raises:
        UserError: if a control is no arm, or the table contradicts itself.
    """
    table = checked_cases(cases)
    arms = tuple(dict.fromkeys([*table["arm"], *(run.arm for run in unfinished)]))
    controls = _known_controls(control, arms)
    holes = with_unfinished(find_holes(table, arms, uneven_replicates), unfinished)
    groups = groups_of(table, holes, arms)
    pairs = pair_table(groups, arms, controls, seed, resamples)
    failed = table.loc[table["failure"] != "", FAILURE_COLUMNS]
    return Comparison(
        cells=cell_table(groups, seed, resamples),
        labels=label_table(groups, seed, resamples),
        ranks=rank_table(groups, arms),
        pairs=pairs,
        holes=holes,
        failures=failed.drop_duplicates(ignore_index=True),
        arms=arms,
        controls=controls,
        notes=notes_of(table, groups, pairs, overlap, uneven_replicates),
    )


def _known_controls(control: str | Sequence[str], arms: Sequence[str]) -> tuple[str, ...]:
    controls = tuple(dict.fromkeys([control] if isinstance(control, str) else control))
    unknown = [name for name in controls if name not in arms]
    if unknown:
        raise UserError(f"{unknown[0]} cannot be the control; choose among {', '.join(arms)}.")
    return controls
